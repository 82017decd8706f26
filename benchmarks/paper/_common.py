"""Options shared by the scripts, and the preparation of embedded slides."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
from _hest import read_samples
from _hub import download
from _measure import measure_encoder, training_seconds
from _needs import add_features, check_disk, find_needs, report_needs
from _sets import PaperSet

import gdml

N_GENES = 250
MODELS = ("gene-dml", "triplex", "m2ost", "bleep", "egn", "hist2st", "histogene", "stnet", "ridge")
Wanted = Mapping[str, tuple[PaperSet, Sequence[str]]]


def make_parser(description: str | None, *, models: Sequence[str] = MODELS) -> argparse.ArgumentParser:
    """Make a parser with the options of all scripts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sections", nargs="+", help="some of the set's slides, to try the script")
    add("--encoder", default="uni", help="uni (gated, the paper's), stain, or another of gdml that needs no file")
    add("--tokens", choices=["grid7", "all", "pooled"], help="tokens of a tile; all with --paper-tiles, else grid7")
    add("--neighbors", default="exact", choices=["exact", "lattice"])
    add("--paper-tiles", action="store_true", help="224 px as they are and all tokens, as the paper; else 112 um")
    add("--models", nargs="+", default=list(models), choices=gdml.models.list_models(), metavar="MODEL")
    add("--preset", default="set", help="of models that have it: the set's name by default, none for our defaults")
    add("--seeds", type=int, default=1)
    add("--max-epochs", type=int)
    add("--genes", type=Path, help="file with a panel, a symbol a line; else chosen on the training slides")
    add("--folder", type=Path, default=Path("results/paper"), help="downloads, features and finished runs")
    add("--device", default="auto")
    add("--yes", action="store_true", help="download what is missing")
    add("--check", action="store_true", help="print the requirements and stop")
    add("--mbit-s", type=float, help="rate of your connection, for the estimate")
    add("--tiles-per-s", type=float, help="rate of the encoder, for the estimate; else measured")
    add("--spots-per-s", type=float, help="rate of training, for the estimate; else measured for each model")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options. Everything is written to ``--folder``, including features unless GDML_CACHE_DIR is set."""
    options = parser.parse_args(arguments)
    options.folder = options.folder.expanduser().absolute()
    options.tokens = options.tokens or ("all" if options.paper_tiles else "grid7")
    if not os.environ.get("GDML_CACHE_DIR"):
        gdml.settings.cache_dir = options.folder / "cache"
    return options


def run(main: Callable[[], None]) -> None:
    """Run a script; print errors that the user can correct without a traceback."""
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def model_options(names: Sequence[str], set_name: str, preset: str) -> dict[str, dict[str, Any]]:
    """Models with the preset of the set if they have it, as the argument of cross_validate."""
    wanted = set_name if preset == "set" else preset
    has = lambda name: wanted in gdml.models.get_model(name).presets
    return {name: {"model": name, **({"preset": wanted} if has(name) else {})} for name in names}


def normalization(options: argparse.Namespace) -> dict[str, Any]:
    """Normalisation of the paper, on whose scale MSE and MAE are."""
    if options.genes is None:
        return {"normalization": "paper", "n_genes": N_GENES}
    return {"normalization": "paper", "genes": options.genes.read_text().split()}


def prepare(
    options: argparse.Namespace, wanted: Wanted, models: Mapping[str, Any], *, n_folds: int, n_runs: int = 1
) -> dict[str, ad.AnnData] | None:
    """Print the requirements, download with ``--yes``, and return the sets, tiled and embedded.

    Parameters
    ----------
    options
        Of :func:`make_parser`.
    wanted
        Sets with their slides, by name; the first one is for training.
    models
        Models to train.
    n_folds, n_runs
        Number of folds, and of runs per model, fold and seed.

    Returns
    -------
    The sets by name; None after ``--check`` or without ``--yes``.

    Raises
    ------
    PermissionError, ConnectionError, OSError
        If access is not granted, the hub cannot be reached, or a disk is too small.
    """
    needs = find_needs(wanted, options.folder, options.encoder)
    if not (options.tiles_per_s and options.spots_per_s):
        print(
            "Measuring how fast this machine encodes and trains (not with --tiles-per-s and --spots-per-s).", flush=True
        )
    encoding = measure_encoder(options.encoder, options.tokens, options.device, options.tiles_per_s)
    add_features(needs, encoding, options.neighbors)
    check_disk(needs, options.folder)
    trained, slides = next(iter(wanted.values()))
    spots = trained.n_spots * len(slides) / len(trained.patients)
    needs.training = training_seconds(
        models,
        encoding,
        n_train=spots * (1 - 1 / n_folds) if n_folds > 1 else spots,
        n_folds=n_folds * n_runs,
        n_seeds=options.seeds,
        n_genes=N_GENES,
        max_epochs=options.max_epochs,
        device=options.device,
        spots_per_s=options.spots_per_s,
    )
    report_needs(needs, mbit_s=options.mbit_s)
    if options.check:
        return None
    if not needs.nothing_to_fetch and not options.yes:
        print("Nothing was downloaded: call again with --yes.")
        return None
    found = {}
    for name, (paper_set, chosen) in wanted.items():
        if paper_set.hest and needs.files[name]:
            download(needs.files[name], options.folder / "hest")
        found[name] = _embedded(paper_set, chosen, options)
    return found


def _embedded(paper_set: PaperSet, slides: Sequence[str], options: argparse.Namespace) -> ad.AnnData:
    scales = None
    if paper_set.hest:
        adata, scales = read_samples(options.folder / "hest", paper_set.choose(slides))
    else:
        adata = gdml.datasets.her2st(slides, cache_dir=options.folder / "her2st")
    print(
        f"{paper_set.title}: {len(slides)} slides, {adata.n_obs} spots, {adata.n_vars} genes. {paper_set.note}".rstrip()
    )
    gdml.pp.tile(adata, None if options.paper_tiles else 112.0, um_per_px=scales)
    gdml.pp.embed(adata, options.encoder, tokens=options.tokens, neighbors=options.neighbors, device=options.device)
    return adata
