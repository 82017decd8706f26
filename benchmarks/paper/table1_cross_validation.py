"""Table 1 of the paper (and 7, its MAE): models on the folds of HER2ST, STNet or skinST, beside the published figures.

    python benchmarks/paper/table1_cross_validation.py --set her2st --check      # what it needs
    python benchmarks/paper/table1_cross_validation.py --set her2st --yes        # download what is missing, and run
    python benchmarks/paper/table1_cross_validation.py --set skinst --yes --protocol paper nested --paper-tiles

    GDML_DATA_DIR=... python benchmarks/paper/table1_cross_validation.py --set her2st \
        --sections B4 C2 C3 C4 C6 --encoder stain --models ridge stnet          # a trial on five sections

Finished runs are kept in the folder and skipped when the script is called again.
"""

from collections.abc import Sequence

from _common import make_parser, model_options, normalization, parse, prepare, run
from _published import CROSS_VALIDATION
from _report import PROTOCOLS, measured, print_caveats, print_failed, print_table
from _sets import SETS

import gdml


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, run what is missing, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--set", default="her2st", choices=list(SETS))
    parser.add_argument("--protocol", nargs="+", default=["nested"], choices=list(PROTOCOLS))
    options = parse(parser, arguments)
    paper_set = SETS[options.set]
    slides = list(paper_set.choose(options.sections))
    folds = paper_set.splits(slides)
    models = model_options(options.models, options.set, options.preset)
    sets = prepare(
        options, {options.set: (paper_set, slides)}, models, n_folds=len(folds), n_runs=len(options.protocol)
    )
    if sets is None:
        return
    for protocol in options.protocol:
        found = gdml.tl.cross_validate(
            sets[options.set],
            models,
            group_key="patient",
            folds=folds,
            protocol=protocol,
            seeds=options.seeds,
            normalize=normalization(options),
            max_epochs=options.max_epochs,
            device=options.device,
            save_to=options.folder / "runs",
        )
        print(f"\nTable 1, {paper_set.title}, protocol {protocol}, {len(folds)} of {len(paper_set.folds)} folds")
        print_caveats(len(slides), len(paper_set.patients), options, found, paper_set.note)
        print_table("model", options.models, measured(found), CROSS_VALIDATION[options.set])
        print_failed(found)


if __name__ == "__main__":
    run(main)
