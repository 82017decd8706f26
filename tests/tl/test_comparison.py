"""Tables of a comparison, against loops over its scores."""

import numpy as np
import pandas as pd
import pytest

from gdml.tl import Comparison

FOLDS = {"one": {"A": 20, "B": 10}, "two": {"C": 40}}
GENES = [f"g{i}" for i in range(60)]


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    rows = []
    for model, level in (("good", 0.4), ("poor", 0.1)):
        for fold, slides in FOLDS.items():
            genes = GENES if fold == "one" else GENES[5:]  # another panel
            for seed in (0, 1):
                high = set(rng.choice(genes, 50, replace=False))
                for slide, n in slides.items():
                    for gene in genes:
                        pcc = np.nan if gene == "g7" and slide == "A" else level + 0.2 * rng.normal()
                        rows.append(
                            {
                                "model": model, "fold": fold, "seed": seed, "slide": slide, "gene": gene, "n_spots": n,
                                "pcc": pcc, "spearman": pcc / 2, "mse": rng.random() - level + 1, "mae": rng.random(),
                                "high": gene in high,
                            }
                        )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def result(scores):
    runs = scores[["model", "fold", "seed"]].drop_duplicates(ignore_index=True)
    runs = runs.assign(status="done", error="", epoch=3, seconds=1.5, parameters=7)
    return Comparison(scores, runs, "nested")


def by_loop(scores, model, slide, seed, column, genes=None):
    """Mean of a column over the genes of a slide, NaN left out."""
    found = []
    for row in scores.itertuples():
        if (row.model, row.slide, row.seed) == (model, slide, seed) and (genes is None or row.gene in genes):
            value = getattr(row, column)
            if not np.isnan(value):
                found.append(value)
    return sum(found) / len(found)


def test_slides_are_means_over_genes_then_seeds(result, scores):
    slides = result.slides().set_index(["model", "slide"])
    for model in ("good", "poor"):
        for slide in "ABC":
            got = slides.loc[(model, slide)]
            for metric, column in (("pcc_a", "pcc"), ("spearman", "spearman"), ("mse", "mse"), ("mae", "mae")):
                expected = np.mean([by_loop(scores, model, slide, seed, column) for seed in (0, 1)])
                assert got[metric] == pytest.approx(expected)
            of_seeds = []
            for seed in (0, 1):
                here = scores[(scores.model == model) & (scores.seed == seed) & (scores.slide == slide) & scores.high]
                of_seeds.append(by_loop(scores, model, slide, seed, "pcc", set(here.gene)))
            assert got["pcc_h"] == pytest.approx(np.mean(of_seeds))


def test_the_best_genes_have_the_best_ranks_averaged_over_folds(result, scores):
    of_seeds = []
    for seed in (0, 1):
        total = dict.fromkeys(GENES, 0.0)
        for slides in FOLDS.values():
            value = {}
            for gene in GENES:
                found = [
                    row.pcc
                    for row in scores.itertuples()
                    if (row.model, row.seed, row.gene) == ("good", seed, gene) and row.slide in slides
                ]
                found = [x for x in found if not np.isnan(x)]
                value[gene] = sum(found) / len(found) if found else -2.0
            for gene in GENES:
                better = sum(v > value[gene] for v in value.values())
                equal = sum(v == value[gene] for v in value.values())
                total[gene] += better + (equal + 1) / 2
        best = sorted(GENES, key=lambda gene: total[gene])[:50]
        of_seeds.append(by_loop(scores, "good", "B", seed, "pcc", set(best)))
    got = result.slides().set_index(["model", "slide"]).loc[("good", "B"), "pcc_h_best"]
    assert got == pytest.approx(np.mean(of_seeds))


def test_means_are_over_slides_and_errors_over_spots(result):
    slides = result.slides()
    slides = slides[slides.model == "good"].set_index("slide")
    found = result.intervals().set_index(["model", "metric"])
    assert found.loc[("good", "pcc_a"), "mean"] == pytest.approx(np.mean([slides.pcc_a[s] for s in "ABC"]))
    expected = (20 * slides.mse["A"] + 10 * slides.mse["B"] + 40 * slides.mse["C"]) / 70
    assert found.loc[("good", "mse"), "mean"] == pytest.approx(expected)
    folds = [(slides.pcc_a["A"] + slides.pcc_a["B"]) / 2, slides.pcc_a["C"]]
    assert found.loc[("good", "pcc_a"), "sd_folds"] == pytest.approx(np.std(folds, ddof=1))


def test_the_spread_over_seeds_is_that_of_their_means(result, scores):
    of_seeds = [np.mean([by_loop(scores, "good", slide, seed, "pcc") for slide in "ABC"]) for seed in (0, 1)]
    found = result.intervals().set_index(["model", "metric"])
    assert found.loc[("good", "pcc_a"), "sd_seeds"] == pytest.approx(np.std(of_seeds, ddof=1))


def test_intervals_are_the_quantiles_of_all_ways_to_draw_slides(result):
    slides = result.slides()
    values = slides[slides.model == "good"].pcc_a.to_numpy()
    ways = [np.mean([values[i], values[j], values[k]]) for i in range(3) for j in range(3) for k in range(3)]
    found = result.intervals(n_bootstrap=20_000, level=0.8).set_index(["model", "metric"]).loc[("good", "pcc_a")]
    assert min(ways) <= found.low <= found["mean"] <= found.high <= max(ways)
    assert np.mean(np.array(ways) < found.low - 1e-9) <= 0.1 <= np.mean(np.array(ways) <= found.low + 1e-9)
    assert np.mean(np.array(ways) < found.high - 1e-9) <= 0.9 <= np.mean(np.array(ways) <= found.high + 1e-9)
    pd.testing.assert_frame_equal(result.intervals(), result.intervals())


def test_one_slide_has_no_interval(result):
    found = result.intervals(by_fold=True).set_index(["fold", "model", "metric"])
    assert np.isnan(found.loc[("two", "good", "pcc_a"), "low"])
    assert found.loc[("one", "good", "pcc_a"), "low"] <= found.loc[("one", "good", "pcc_a"), "high"]


def test_differences_are_paired_by_slide(result):
    slides = result.slides().set_index(["model", "slide"])
    (row,) = result.compare("poor").to_dict("records")
    difference = [slides.pcc_a["good", s] - slides.pcc_a["poor", s] for s in "ABC"]
    assert row["model"] == "good" and row["difference"] == pytest.approx(np.mean(difference))
    assert min(difference) <= row["low"] <= row["high"] <= max(difference)
    assert (row["n_better"], row["n_slides"]) == (3, 3)
    (lower,) = result.compare("good", metric="mse").to_dict("records")
    assert lower["difference"] > 0 and lower["n_better"] == 0  # a smaller error is better


def test_a_model_that_failed_on_a_fold_is_compared_on_the_others(result, scores):
    some = Comparison(scores[(scores.model == "good") | (scores.fold == "one")], result.runs, "nested")
    (row,) = some.compare("poor").to_dict("records")
    assert row["n_slides"] == 2


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reference": "god"}, "`reference` is 'god'. Did you mean 'good'"),
        ({"reference": "good", "metric": "pcc"}, "`metric` is 'pcc'. Did you mean"),
    ],
)
def test_unknown_names(result, options, match):
    with pytest.raises(ValueError, match=match):
        result.compare(**options)


def test_the_summary_is_sorted_and_counts_failures(result):
    result.runs.loc[0, "status"] = "failed"
    table = result.summary()
    assert list(table.index) == ["good", "poor"]
    assert list(table["failed"]) == [1, 0] and list(table["seconds"]) == [6, 6]
    assert result.summary(by_fold=True).index.tolist() == [
        (fold, model) for fold in FOLDS for model in ("good", "poor")
    ]


def test_optimism_is_written_wherever_scores_stand(result):
    assert "OPTIMISTIC" not in repr(result)
    biased = Comparison(result.scores, result.runs, "paper", "OPTIMISTIC: the epoch ...", True)
    for text in (
        repr(biased),
        biased._repr_html_(),
        biased.summary().to_string(),
        biased.summary(by_fold=True).to_string(),
    ):
        assert "OPTIMISTIC" in text


def test_nothing_but_failures_still_prints(result):
    runs = result.runs.assign(status="failed")
    assert "0 of 8 runs" in repr(Comparison(result.scores[:0], runs, "nested"))
