"""``gdml embed``."""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _options

if TYPE_CHECKING:
    from gdml.corpus.manifest import Item


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = _options.add_parser(
        commands,
        "embed",
        "encode the tiles of slides",
        description="Lay tiles on the tissue of each slide and encode them into the cache (gdml.pp.grid, "
        "gdml.pp.embed). Predictions find them if the model was trained with the same encoder and tiles. Called again, "
        "it does what is missing.",
        example="gdml embed slides.csv --encoder uni --scheduler tcp://10.0.0.1:8786",
    )
    _options.add_slides(parser)
    parser.add_argument("--encoder", required=True, metavar="NAME", help="stain, uni, virchow2, ... or timm:MODEL")
    parser.add_argument("--weights", metavar="FILE", help="file of weights of the encoder")
    parser.add_argument("--tile-um", type=float, default=112.0, metavar="X", help="side of a tile, um (112)")
    parser.add_argument("--n-side", type=int, default=5, metavar="N", help="tiles along a neighbour region (5)")
    parser.add_argument("--tokens", default="grid7", help="grid7 (default), all or pooled")
    parser.add_argument("--neighbors", default="exact", help="exact (default) or lattice")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder of the cache (default: GDML_CACHE_DIR)")
    group = _options.add_computing(parser)
    group.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, mps")
    group.add_argument("--batch-size", type=int, metavar="N", help="tiles that are encoded at once (what fits)")
    parser.set_defaults(command=run)


@dataclass(frozen=True)
class EmbedJob:
    """What is done with each slide.

    Parameters
    ----------
    encoder, weights
        Name of the encoder, and file of its weights.
    tile_um, n_side
        As in :func:`gdml.pp.grid`.
    grid, embed
        Further arguments of :func:`gdml.pp.grid` and of :func:`gdml.pp.embed`, as pairs.
    """

    encoder: str
    weights: str | None
    tile_um: float
    n_side: int
    grid: tuple[tuple[str, Any], ...]
    embed: tuple[tuple[str, Any], ...]


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import pandas as pd

    import gdml
    from gdml._marker import CACHE_DIR, check_writable
    from gdml._progress import bar
    from gdml.corpus.manifest import read_manifest, take_shard
    from gdml.corpus.outlines import outlines_of

    _options.be_quiet(options)
    items = take_shard(read_manifest(_options.slide_table(options)), options.shard)
    cache = Path(options.cache_dir or gdml.settings.cache_dir).expanduser().absolute()
    check_writable(cache, "Features", "--cache-dir" if options.cache_dir else CACHE_DIR)
    grid = _options.grid_options(options)
    grid["tissue"] = outlines_of(grid["tissue"], items)
    job = EmbedJob(
        encoder=options.encoder,
        weights=None if options.weights is None else str(Path(options.weights).expanduser().absolute()),
        tile_um=options.tile_um,
        n_side=options.n_side,
        grid=tuple(grid.items()),
        embed=(
            ("tokens", options.tokens),
            ("neighbors", options.neighbors),
            ("batch_size", options.batch_size),
            ("precision", options.precision),
            ("device", options.device),
            ("cache_dir", str(cache)),
        ),
    )
    _encoder(job.encoder, job.weights)  # refused here, before any slide is
    rows = []
    with _options.cluster(options.scheduler) as client, bar(len(items), desc="embed", unit="slide") as progress:
        done = (embed_item(job, item) for item in items) if client is None else _on_workers(client, job, items, cache)
        for row in done:
            rows.append(row)
            progress.update()
    table = pd.DataFrame(rows, columns=["name", "state", "n_tiles", "seconds", "reason"])
    return _options.report(table, f"features of {int(table['n_tiles'].sum())} tiles in {cache / 'features'}")


def embed_item(job: EmbedJob, item: "Item") -> dict[str, Any]:
    """Embed a slide, in this process.

    Parameters
    ----------
    job
        How.
    item
        The slide.

    Returns
    -------
    Row of the table: name, state, number of tiles, seconds, and the reason where it failed.
    """
    import gdml
    from gdml.corpus.outlines import outline_of
    from gdml.corpus.turns import one_slide_at_a_time

    start = time.monotonic()
    row = {"name": item.name, "state": "done", "n_tiles": 0, "reason": ""}
    with one_slide_at_a_time:
        try:
            encoder = _encoder(job.encoder, job.weights)
            grid = dict(job.grid)
            grid["tissue"] = outline_of(grid["tissue"], item)
            slide = gdml.pp.grid(
                item.path,
                job.tile_um,
                n_side=job.n_side,
                tile_px=encoder.tile_px,
                um_per_px=item.um_per_px,
                library_id=item.name,
                **grid,
            )
            gdml.pp.embed(slide, encoder, **dict(job.embed))
            row["n_tiles"] = slide.n_obs
        except (ValueError, TypeError, LookupError, OSError, RuntimeError, MemoryError) as error:
            row |= {"state": "failed", "reason": str(error)}
    return row | {"seconds": time.monotonic() - start}


@lru_cache(maxsize=1)
def _encoder(name: str, weights: str | None) -> Any:
    """Make the encoder, kept from slide to slide: weights are loaded once."""
    from gdml.encoders import get_encoder

    return get_encoder(name, **({} if weights is None else {"weights": weights}))


def _on_workers(client: Any, job: EmbedJob, items: Sequence["Item"], cache: Path) -> Iterator[dict[str, Any]]:
    """Embed slides on the workers of a Dask cluster; rows as they are done."""
    from gdml.corpus.each import each
    from gdml.corpus.shared import check_shared
    from gdml.pp.workers import settled_precision

    how = dict(job.embed)
    how["precision"] = settled_precision(client, how["device"], how["precision"])
    job = replace(job, embed=tuple(how.items()))
    cache.mkdir(parents=True, exist_ok=True)
    check_shared(client, cache, [item.path for item in items])
    for name, outcome in each(client, embed_item, {item.name: (job, item) for item in items}):
        if isinstance(outcome, BaseException):  # the worker died, or cannot run the function
            outcome = {"name": name, "state": "failed", "n_tiles": 0, "reason": str(outcome)}
        yield outcome
