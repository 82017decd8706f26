"""``gdml predict``."""

import argparse
from typing import Any

from . import _options


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = _options.add_parser(
        commands,
        "predict",
        "predict the expression of slides",
        description="Predict expression on the tissue of each slide (gdml.tl.predict_slides). Called again with the same "
        "folder, it does what is missing; callers that share the folder share the slides.",
        example="gdml predict slides.csv --model her2st-gdml --out predicted --shard 3/16",
    )
    _options.add_slides(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="folder of a saved model")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the results, an AnnData (zarr) a slide")
    group = _options.add_computing(parser)
    group.add_argument(
        "--devices", metavar="LIST", help="such as cuda:0,cuda:1: a process for each, which share the slides"
    )
    group.add_argument(
        "--batch-size", type=int, default=512, metavar="N", help="tiles that are predicted at once (512)"
    )
    group.add_argument(
        "--no-clip", action="store_true", help="leave predictions below 0 as they are, instead of setting them to 0"
    )
    group.add_argument(
        "--interval", type=float, metavar="X", help="write intervals of this level, such as 0.8, beside the predictions"
    )
    group.add_argument(
        "--interval-for",
        metavar="TEXT",
        help="what they are for: 'unseen patient' (or 'unseen donor' where that column was grouped by), 'unseen slide' or "
        "'unseen part of a known slide' (what was held out)",
    )
    group.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process (1)")
    group.add_argument("--keep-features", action="store_true", help="keep the features in the cache")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    import gdml

    _options.be_quiet(options)
    with _options.cluster(options.scheduler) as client:
        table = gdml.tl.predict_slides(
            _options.slide_table(options),
            options.model,
            options.out,
            client=client,
            shard=options.shard,
            devices=None if options.devices is None else options.devices.split(","),
            precision=options.precision,
            batch_size=options.batch_size,
            clip=not options.no_clip,
            interval=options.interval,
            interval_for=options.interval_for,
            threads=options.threads,
            keep_features=options.keep_features,
            **_options.grid_options(options),
        )
    return _options.report(table, f"results in {options.out}")
