"""Measure the attainable PCC where the truth is known, and on real sections.

    python benchmarks/attainable.py simulated [--spots 300 2600]
    python benchmarks/attainable.py her2st
    python benchmarks/attainable.py totals

Simulated: for genes of several abundances, without a pattern and with one, and for spots of equal and of unequal totals,

``truth``
    PCC of the noise-free normalised values with the measured ones;
``replicate``
    square root of the PCC of two independent samples of the same spots;
``attainable``
    what :func:`gdml.metrics.attainable_pcc` finds in one sample;
``by seed``, ``by sample``
    standard deviation of the last over seeds of the splits, and over samples.

HER2ST: ridge regression on stain features, learnt on other sections of the same patient or on the other patient, and what
:func:`gdml.tl.evaluate` says of it. The sections are those on which settings are chosen.

Totals: counts that are drawn with the totals of the spots of a real section, once of tissue that is the same everywhere, and
once of the 10 largest principal components of the section. In sections of the first generation totals vary a hundredfold.
"""

import argparse
import time

import numpy as np
import pandas as pd
from anndata import AnnData

import gdml
from gdml import metrics
from gdml.expression import NORMALIZATIONS, normalize_counts

MEANS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 100.0)
TOTAL = 7000.0
GENES = 25  # of each abundance


def simulate(n_spots: int, pattern: float, depth: float, rng: np.random.Generator, n_samples: int = 4) -> pd.DataFrame:
    """Simulate one slide several times; a row for each abundance."""
    panel = np.arange(len(MEANS) * GENES)
    normal = rng.normal(size=(n_spots, len(panel)))
    rate = np.repeat(MEANS, GENES) * np.exp(pattern * normal - pattern**2 / 2)
    rate = np.column_stack([rate, np.full(n_spots, TOTAL - sum(MEANS) * GENES)])
    scale = np.exp(depth * rng.normal(size=(n_spots, 1)) - depth**2 / 2)
    clean = np.log1p(1e4 * rate / rate.sum(1, keepdims=True))[:, panel]
    samples = [rng.poisson(scale * rate) for _ in range(n_samples)]
    values = [normalize_counts(sample, panel, NORMALIZATIONS["scanpy"]) for sample in samples]
    found = np.stack([metrics.attainable_pcc(sample, panel) for sample in samples])
    again = np.stack([metrics.attainable_pcc(samples[0], panel, seed=seed) for seed in range(n_samples)])

    def by_mean(one: np.ndarray) -> np.ndarray:
        return metrics.nan_mean(one.reshape(len(MEANS), GENES), 1)

    replicate = by_mean(metrics.nan_mean([metrics.pearson_per_gene(values[0], other) for other in values[1:]], 0))
    return pd.DataFrame(
        {
            "spots": n_spots,
            "pattern": pattern,
            "depth": depth,
            "counts": MEANS,
            "truth": by_mean(metrics.pearson_per_gene(values[0], clean)),
            "replicate": np.sqrt(replicate.clip(0)),
            "attainable": by_mean(metrics.nan_mean(found, 0)),
            "by seed": by_mean(again.std(0, ddof=1)),
            "by sample": by_mean(found.std(0, ddof=1)),
            "99th of 100": np.nanpercentile(found.reshape(n_samples, len(MEANS), GENES), 99, axis=(0, 2)),
        }
    )


SPLITS = ((("B4", "C2", "C3"), "C4"), (("C2", "C3", "C4"), "B4"), (("B4",), "C4"))
COLUMNS = ["pcc_a", "pcc_attainable", "pcc_reached", "mse", "mse_level", "mse_pattern", "spread"]


def real() -> pd.DataFrame:
    """Score ridge regression on the splits; a row for each."""
    sections = gdml.datasets.her2st(["B4", "C2", "C3", "C4"])
    gdml.pp.tile(sections)
    gdml.pp.embed(sections, "stain")
    rows = []
    for train, test in SPLITS:
        learnt = sections[sections.obs["library_id"].isin(train)].copy()
        new = sections[sections.obs["library_id"] == test].copy()
        gdml.pp.normalize(learnt, n_genes=250)
        model = gdml.tl.fit(learnt, "ridge")
        below = gdml.tl.predict(new, model, clip=False, copy=True).obsm["gdml"].lt(0).to_numpy().mean()
        gdml.tl.predict(new, model)
        start = time.perf_counter()
        found = gdml.tl.evaluate(new).loc["all", COLUMNS]
        about = {"split": f"{', '.join(train)} to {test}", "seconds": time.perf_counter() - start}
        rows.append({**about, **found, "level": found["mse_level"] / found["mse"], "below 0": below})
        print(gene_table(new).to_string(), flush=True)
    return pd.DataFrame(rows)


def gene_table(adata: AnnData) -> pd.DataFrame:
    """List scores of the best genes, the worst ones and two that are often looked at, with their mean count."""
    scores = adata.var.filter(regex="^gdml_(pcc|attainable|spread|mse)$").dropna()
    scores.insert(0, "counts", np.asarray(adata[:, scores.index].X.mean(0)).ravel())
    scores = scores.sort_values("gdml_pcc", ascending=False)
    named = scores.loc[scores.index.intersection(["FASN", "ERBB2"])]
    rank = scores[["counts", "gdml_attainable"]].corr("spearman").iloc[0, 1]
    quartiles = scores["gdml_attainable"].quantile([0.25, 0.5, 0.75]).round(2).tolist()
    print(f"attainable follows counts: Spearman {rank:.2f}; quartiles {quartiles}")
    return pd.concat([scores[:5], scores[-5:], named]).round(3)


def totals() -> pd.DataFrame:
    """Simulate sections with the totals of real ones; a row for each, without a pattern and with one."""
    scanpy, rng, rows = NORMALIZATIONS["scanpy"], np.random.default_rng(0), []
    for name in ("C2", "B4"):
        counts = gdml.datasets.her2st([name]).X.toarray()
        total, of_gene = counts.sum(1), counts.sum(0)
        genes = np.argsort(-of_gene)[:250]
        values = normalize_counts(counts, genes, scanpy).astype(float)
        left, scale, right = np.linalg.svd(values - values.mean(0), full_matrices=False)
        smooth = (left[:, :10] * scale[:10]) @ right[:10] + values.mean(0)
        flat = np.broadcast_to(of_gene[genes] / of_gene.sum(), values.shape)
        for pattern, share in {"none": flat, "10 components": np.expm1(smooth.clip(0)) / 1e4}.items():
            rate = np.column_stack([share, 1 - share.sum(1)]) * total[:, None]
            samples = [rng.poisson(rate) for _ in range(2)]
            one, other = (normalize_counts(sample, np.arange(len(genes)), scanpy) for sample in samples)
            row = {"section": name, "median total": np.median(total), "sd of ln total": np.log(total).std()}
            row |= {"pattern": pattern, "truth": metrics.pcc_a(metrics.pearson_per_gene(one, np.log1p(1e4 * share)))}
            row["replicate"] = np.sqrt(metrics.pearson_per_gene(one, other).clip(0)).mean()
            row["attainable"] = metrics.pcc_a(metrics.attainable_pcc(samples[0], np.arange(len(genes))))
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["simulated", "her2st", "totals"])
    parser.add_argument("--spots", type=int, nargs="+", default=[300, 2600])
    options = parser.parse_args()
    if options.what != "simulated":
        print((real() if options.what == "her2st" else totals()).round(3).to_string(index=False))
        return
    rng = np.random.default_rng(0)
    for n_spots in options.spots:
        for pattern in (0.0, 0.3, 0.7):
            for depth in (0.0, 0.5):
                print(simulate(n_spots, pattern, depth, rng).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
