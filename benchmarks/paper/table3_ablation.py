"""Tables 3 to 6 (skinST), 8 to 11 (HER2ST) and 12 to 15 (STNet) of the paper: one setting of Gene-DML at a time.

    python benchmarks/paper/table3_ablation.py --set skinst --check
    python benchmarks/paper/table3_ablation.py --set her2st --yes --fields pathways k

    GDML_DATA_DIR=... python benchmarks/paper/table3_ablation.py --set her2st --sections B4 C2 --encoder stain \
        --fields tau_IG --max-epochs 2                                          # a trial on two sections

Finished runs are kept in the folder and skipped when the script is called again.
"""

import json
from collections.abc import Sequence

from _common import make_parser, model_options, normalization, parse, prepare, run
from _published import ABLATION, ABLATION_TABLES
from _report import PROTOCOLS, measured, print_caveats, print_failed, print_table
from _sets import SETS

import gdml

MODEL = "gene-dml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, run what is missing, print."""
    parser = make_parser(__doc__, models=[MODEL])
    parser.add_argument("--set", default="skinst", choices=list(SETS))
    parser.add_argument("--fields", nargs="+", default=["pathways", "k", "lambda", "tau_IG"])
    parser.add_argument("--protocol", nargs="+", default=["nested"], choices=list(PROTOCOLS))
    parser.add_argument("--config", type=json.loads, default={}, help="fields of the model's config, as JSON")
    options = parse(parser, arguments)
    paper_set = SETS[options.set]
    slides = list(paper_set.choose(options.sections))
    folds = paper_set.splits(slides)
    chosen = model_options([MODEL], options.set, options.preset)[MODEL]
    chosen["config"] = options.config
    grids = gdml.models.GeneDML.published_grids(
        gdml.models.GeneDML.presets[chosen["preset"]] if "preset" in chosen else gdml.models.GeneDMLConfig()
    )
    unknown = [name for name in options.fields if name not in grids]
    if unknown:
        raise ValueError(f"--fields: the paper varies {', '.join(grids)}, not {', '.join(unknown)}.")
    grid = {name: grids[name] for name in options.fields}
    # every grid has the model as it is, which is run once
    n_variants = 1 + sum(len(values) - 1 for values in grid.values())
    sets = prepare(
        options,
        {options.set: (paper_set, slides)},
        {MODEL: chosen},
        n_folds=len(folds),
        n_runs=n_variants * len(options.protocol),
    )
    if sets is None:
        return
    for protocol in options.protocol:
        found = gdml.tl.ablate(
            sets[options.set],
            MODEL,
            grid,
            preset=chosen.get("preset"),
            config=options.config,
            max_epochs=options.max_epochs,
            group_key="patient",
            folds=folds,
            protocol=protocol,
            seeds=options.seeds,
            normalize=normalization(options),
            device=options.device,
            save_to=options.folder / "runs",
        )
        ours = measured(found)
        for name in options.fields:
            number, theirs = ABLATION_TABLES[options.set][name], ABLATION[options.set][name]
            values = {value: f"{name}={value}" for value in grid[name]}
            default = found.variants.loc[MODEL, name]
            rows = {value: ours.get(MODEL if value == default else label) for value, label in values.items()}
            print(
                f"\nTable {number}, {paper_set.title}, {name}, protocol {protocol}, {len(folds)} of {len(paper_set.folds)} folds"
            )
            print_caveats(len(slides), len(paper_set.patients), options, found, paper_set.note)
            print_table(name, list(values), rows, theirs)
        print_failed(found)


if __name__ == "__main__":
    run(main)
