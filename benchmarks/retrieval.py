"""Retrieval in shared spaces: tiles of a held-out section, and the expression of their own spots.

    python benchmarks/retrieval.py

Trained on B4, C2, C3 and C4, with queries from C6; one seed, stain statistics, 250 genes.
"""

import warnings

import gdml

TRAIN, TEST = ["B4", "C2", "C3", "C4"], ["C6"]


def main() -> None:
    """Print a row per model with a shared space, and one for chance."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    adata = gdml.datasets.her2st(TRAIN + TEST)
    gdml.pp.tile(adata)
    gdml.pp.embed(adata, "stain")
    train, test = (adata[adata.obs["library_id"].isin(names)].copy() for names in (TRAIN, TEST))
    gdml.pp.normalize(train, n_genes=250)
    names = [name for name in gdml.models.list_models() if gdml.models.get_model(name).shared_space]
    last = test.n_obs - 1
    print("| | relative rank of the own expression | among the first ten | of the same patient |\n|---|---:|---:|---:|")
    for name in names:
        model = gdml.tl.fit(train, name)
        new = test.copy()
        every = gdml.tl.retrieve(new, new, model=model, n_neighbors=test.n_obs, include_self=True)
        own = every.loc[every["query"] == every["match"], "rank"] - 1
        found = gdml.tl.retrieve(new, train, model=model, n_neighbors=10)
        same = found["library"].str[0] == "C"
        print(f"| {name} | {(own / last).mean():.2f} | {(own < 10).mean():.0%} | {same.mean():.0%} |", flush=True)
    chance = (train.obs["patient"] == "C").mean()
    print(f"| by chance | 0.50 | {10 / test.n_obs:.0%} | {chance:.0%} |")


if __name__ == "__main__":
    main()
