"""Options that several commands take, and what they stand for."""

import argparse
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SLIDES = (
    "a table (.csv, .tsv) with the column 'path' and, optionally, 'name', 'group' and 'um_per_px'; or images, "
    "a folder of images or a quoted pattern such as 'slides/*.svs'"
)


def add_slides(parser: argparse.ArgumentParser) -> None:
    """Add what says which slides there are, and how tiles are laid on them."""
    parser.add_argument("slides", nargs="+", metavar="SLIDES", help=SLIDES)
    tiles = parser.add_argument_group("tiles")
    tiles.add_argument(
        "--um-per-px", type=float, metavar="X", help="micrometres per px of slides for which none is given"
    )
    tiles.add_argument("--spacing-um", type=float, metavar="X", help="distance between tiles (default: their side)")
    tiles.add_argument("--layout", default="square", help="square (default) or hex")
    tiles.add_argument(
        "--min-tissue", type=float, default=0.25, metavar="X", help="least share of tissue in a tile (0.25)"
    )
    tissue = tiles.add_mutually_exclusive_group()
    tissue.add_argument(
        "--outlines", metavar="PATH", help="GeoJSON files of the tissue, as from QuPath: 'outlines/{name}.geojson'"
    )
    tissue.add_argument("--no-tissue", action="store_true", help="tile the whole image, glass too")


def add_computing(parser: argparse.ArgumentParser) -> Any:
    """Add what says where and how is computed; returns the group."""
    group = parser.add_argument_group("computing")
    where = group.add_mutually_exclusive_group()
    where.add_argument("--shard", metavar="I/N", help="do the I-th of N parts of the slides, as in a job array")
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="address of a Dask scheduler, or the file that it wrote (--scheduler-file); its workers do the slides",
    )
    group.add_argument("--precision", default="auto", help="auto (default), bf16 or fp32")
    messages = parser.add_argument_group("messages")
    messages.add_argument("-q", "--quiet", action="store_true", help="print the outcome alone")
    messages.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return group


def add_parser(commands: Any, name: str, about: str, *, description: str, example: str) -> argparse.ArgumentParser:
    """Add a command, whose help ends with an example that stands on one line."""
    return commands.add_parser(
        name,
        help=about,
        description=textwrap.fill(description, 79),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def be_quiet(options: argparse.Namespace) -> None:
    """Set the verbosity that all of gdml goes by."""
    if options.quiet:
        import scanpy

        scanpy.settings.verbosity = 0


def slide_table(options: argparse.Namespace) -> Any:
    """Slides as the library takes them; a scale that is given for all fills the gaps of the table."""
    slides = options.slides[0] if len(options.slides) == 1 else options.slides
    if options.um_per_px is None:
        return slides
    import pandas as pd

    from gdml._errors import check_number
    from gdml.corpus.manifest import read_manifest

    check_number("--um-per-px", options.um_per_px, above=0)
    items = read_manifest(slides)
    table = pd.DataFrame({"path": [str(item.path) for item in items], "name": [item.name for item in items]})
    if any(item.group is not None for item in items):
        table["group"] = [item.group for item in items]
    table["um_per_px"] = [options.um_per_px if item.um_per_px is None else item.um_per_px for item in items]
    return table


def grid_options(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`gdml.pp.grid` that both commands take."""
    return {
        "spacing_um": options.spacing_um,
        "layout": options.layout,
        "tissue": options.outlines or not options.no_tissue,
        "min_tissue": options.min_tissue,
    }


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Client of the scheduler at an address, or named by the file that it wrote; None without an address.

    Raises
    ------
    ImportError
        If Dask's distributed is not installed.
    ConnectionError
        If there is no scheduler.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("--scheduler needs Dask's distributed: pip install 'gdml[cluster]'.") from error
    file = Path(address).expanduser()
    try:
        client = Client(scheduler_file=str(file)) if file.is_file() else Client(address)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"--scheduler {address}: no Dask scheduler answers ({str(error).splitlines()[0]}). Start one with "
            "`dask scheduler`, which prints its address, and workers with `dask worker ADDRESS --nthreads 1`."
        ) from error
    with client:
        yield client


def report(table: Any, where: str) -> int:
    """Print what failed, and why; returns the exit status."""
    failed = table[table["state"] == "failed"]
    n_done = int((table["state"] == "done").sum())
    for name, reason in zip(failed["name"], failed["reason"], strict=True):
        print(f"failed  {name}: {' '.join(str(reason).split())}")
    print(f"{n_done} of {len(table)} slides done, {len(failed)} failed; {where}")
    return int(len(failed) > 0)
