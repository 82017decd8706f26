"""Table 2 of the paper: trained on HER2ST, scored on three 10x Visium slides of breast, genes matched by name.

    python benchmarks/paper/table2_external.py --check
    python benchmarks/paper/table2_external.py --yes --models gene-dml triplex ridge

    GDML_DATA_DIR=... python benchmarks/paper/table2_external.py \
        --sections B4 C2 C3 --test-sections C6 --encoder stain --models ridge   # a trial without Visium slides

The epoch is chosen on held-out patients of HER2ST: the slides that are scored have no part in it. Trained models are
kept in the folder and read when the script is called again.
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anndata as ad
from _common import make_parser, model_options, normalization, parse, prepare, run
from _published import EXTERNAL, METRICS
from _report import cell, print_if_another
from _sets import HER2ST, VISIUM

import gdml
from gdml._provenance import provenance_key


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, train what is missing, score, print."""
    parser = make_parser(__doc__, models=(*EXTERNAL, "ridge"))
    parser.add_argument("--slides", nargs="+", help="samples of HEST-1k in place of ours, such as TENX13")
    parser.add_argument("--test-sections", nargs="+", help="sections of HER2ST in place of Visium slides, for a trial")
    options = parse(parser, arguments)
    train = list(HER2ST.choose(options.sections))
    if options.test_sections:
        scored, names = HER2ST, list(HER2ST.choose(options.test_sections))
    else:
        names = options.slides or list(VISIUM.patients)
        scored = replace(VISIUM, patients={name: VISIUM.patients.get(name, "") for name in names})
    if set(train) & set(names):
        raise ValueError(f"--test-sections: {', '.join(sorted(set(train) & set(names)))} are also training sections.")
    models = model_options(options.models, "her2st", options.preset)
    wanted = {"train": (HER2ST, train), "test": (scored, names)}
    sets = prepare(options, wanted, models, n_folds=1)
    if sets is None:
        return
    print(f"\nTable 2: trained on {len(train)} of 36 sections of HER2ST, encoder {options.encoder}, scored on {names}")
    print("Measured: the epoch chosen on held-out training patients. Published: UNI, all sections.")
    print("PCC(H) ranks its genes on the slide that is scored, as published; in brackets, on the validation split.")
    print_if_another(len(train) < len(HER2ST.patients) or bool(options.test_sections), options)
    if scored.note:
        print(scored.note)
    print("| model | slide | genes | " + " | ".join(METRICS.values()) + " |\n|---|---|---|" + "---|" * len(METRICS))
    for label, chosen in models.items():
        for seed in range(options.seeds):
            trained = _trained(sets["train"], chosen, seed, train, options)
            for name in names:
                _print_scores(f"{label}, seed {seed}" if options.seeds > 1 else label, name, sets["test"], trained)
        for number, row in enumerate(EXTERNAL.get(label, ()), start=1):
            print(f"| {label}, published | Visium-{number} | | " + " | ".join(map(cell, row)) + " |")


def _trained(adata: ad.AnnData, chosen: Mapping[str, Any], seed: int, slides: Sequence[str], options: Namespace) -> Any:
    """Load the model if it was trained before, else train it."""
    labels = normalization(options)
    about = {
        "model": dict(chosen),
        "seed": seed,
        "slides": list(slides),
        "labels": labels,
        "features": {k: str(v) for k, v in adata.uns["gdml"]["features"].items() if k not in ("stores", "obsm")},
        "tiles": {k: str(adata.uns["gdml"]["tiles"][k]) for k in ("tile_um", "tile_px", "n_side")},
        "max_epochs": options.max_epochs,
        "gdml": gdml.__version__,
    }
    place = options.folder / "models" / f"{chosen['model']}-{provenance_key(about, size=8)}"
    if (place / "model.json").is_file():
        return gdml.load(place)
    if "gdml_measured" not in adata.obsm:
        gdml.pp.normalize(adata, **labels)
    return gdml.tl.fit(
        adata,
        chosen["model"],
        preset=chosen.get("preset"),
        group_key="patient",
        max_epochs=options.max_epochs,
        seed=seed,
        device=options.device,
        save_to=place,
    )


def _print_scores(label: str, name: str, test: ad.AnnData, trained: Any) -> None:
    slide = test[test.obs["library_id"] == name].copy()
    gdml.tl.predict(slide, trained)
    scores = gdml.tl.evaluate(slide).loc["all"]
    cells = [cell(scores[m]) for m in METRICS]
    cells[-1] += f" ({cell(scores['pcc_h'])})"
    genes = f"{scores['n_genes']:.0f} of {len(trained.panel)}"
    print(f"| {label} | {name} | {genes} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run(main)
