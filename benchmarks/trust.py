"""Whether genes keep what their warrant promises, on slides that no choice has seen.

    python benchmarks/trust.py development
    python benchmarks/trust.py report           # logged as a look at the report set

The splits are those of ``benchmarks/learner.py``. Of each: how many genes have which warrant; their expected PCC, and that
which was found; and the share of them that reaches half of what was expected.
"""

import argparse
import warnings

import pandas as pd
from learner import Split, log_look, without_stripes

import gdml

MODELS = ["ridge", "kernel"]


def rows(split: Split, model: str) -> pd.DataFrame:
    """Compare the warrant of each gene with its PCC on the other side of a split: a row for each kind of warrant."""
    train, new = (part.copy() for part in split)
    gdml.pp.normalize(train, n_genes=250)
    trained = gdml.tl.fit(train, model, group_key="patient" if "patient" in train.obs else None)
    gdml.tl.predict(new, trained)
    gdml.tl.evaluate(new)
    genes = new.uns["gdml"]["predict"]["genes"].copy()
    genes["pcc"] = new.var["gdml_pcc"].reindex(genes.index)
    genes["half"] = genes["pcc"] >= genes["pcc_expected"] / 2
    genes["inside"] = genes["pcc"].between(genes["pcc_low"], genes["pcc_high"])
    order = ["carried by the image", "partly", "not shown"]
    found = genes.groupby("warrant").agg(
        genes=("pcc", "size"),
        expected=("pcc_expected", "mean"),
        found=("pcc", "mean"),
        reach_half=("half", "mean"),
        inside_interval=("inside", "mean"),
        attainable=("pcc_attainable", "mean"),
    )
    return found.reindex([name for name in order if name in found.index]).assign(unseen=trained.warrant.unseen)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["development", "report"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    splits = without_stripes(options.set)
    if options.set == "report":
        log_look(len(splits) * len(options.models), "; ".join(options.models) + " (warrants)")
    tables = {(name, model): rows(make(), model) for name, make in splits.items() for model in options.models}
    print(pd.concat(tables, names=["split", "model"]).reset_index().to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    main()
