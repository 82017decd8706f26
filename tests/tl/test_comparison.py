"""Tables of a comparison, against loops over its scores."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_the_p_value_counts_all_sign_flips(result):
    """Against a loop over all signs; slides are the groups, since none were named."""
    for metric in ("pcc_a", "mse"):
        rows = result.differences("poor", metric=metric)
        weight = rows.n_spots if metric == "mse" else pd.Series(1.0, rows.index)
        totals = (weight * rows.difference).groupby(rows.slide).sum()
        (row,) = result.compare("poor", metric=metric).to_dict("records")
        assert row["p_value"] == pytest.approx(by_flips(list(totals)))
        assert row["p_least"] == 2 / 2**3


def by_flips(totals):
    """Share of all sign flips whose sum is at least as far from zero."""
    observed, as_far, n = abs(sum(totals)), 0, 0
    for signs in itertools.product((1, -1), repeat=len(totals)):
        flipped = abs(sum(sign * value for sign, value in zip(signs, totals, strict=True)))
        as_far += flipped >= observed - 1e-9
        n += 1
    return as_far / n


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=8))
def test_sign_flips_are_those_of_the_loop(totals):
    from gdml.tl._paired import least_p, sign_flip_test

    found = sign_flip_test(totals)
    assert found == pytest.approx(by_flips(totals))
    assert found >= least_p(len(totals)) - 1e-12


def test_many_groups_are_tested_with_drawn_flips():
    from gdml.tl._paired import least_p, sign_flip_test

    rng = np.random.default_rng(0)
    totals = rng.normal(0.35, 1, 25)
    assert sign_flip_test(totals) == sign_flip_test(totals)
    # the sum of signed values is nearly normal: two sides of it
    z = abs(totals.sum()) / np.sqrt((totals**2).sum())
    assert sign_flip_test(totals) == pytest.approx(math.erfc(z / 2**0.5), abs=0.02)
    assert sign_flip_test(np.ones(25)) <= 1e-4 and least_p(25) == least_p(16)
    assert np.isnan(sign_flip_test([1.0])) and least_p(1) == 1.0


def test_too_few_groups_for_a_small_p_value_are_told(monkeypatch):
    told = []
    monkeypatch.setattr("gdml.tl._comparison.tell", told.append)
    (row,) = of_groups(dict.fromkeys("ABCDE", 3)).compare("a").to_dict("records")
    assert row["p_value"] == row["p_least"] == 1 / 16  # b is better in all five
    assert "5 patients allow 32 sign flips" in told[0] and "no p-value is below 0.062" in told[0]
    (row,) = of_groups({"A": 6}).compare("a").to_dict("records")
    assert np.isnan(row["p_value"]) and "of 1 patient, nothing can be tested" in told[1]
    (row,) = of_groups(dict.fromkeys("ABCDEF", 3)).compare("a").to_dict("records")
    assert row["p_value"] == 1 / 32 and len(told) == 2


def test_slides_of_a_patient_are_flipped_together():
    """Twelve slides of two patients are no twelve patients."""
    two = of_groups({"A": 6, "B": 6})
    assert two.compare("a").p_value.item() == 0.5
    alone = Comparison(two.scores.assign(group=two.scores.slide), two.runs, "nested")
    assert alone.compare("a").p_value.item() == 2 / 2**12


def test_several_metrics_are_compared_at_once(result):
    table = result.compare("poor", metric=["pcc_a", "mse"])
    one = pd.concat([result.compare("poor"), result.compare("poor", metric="mse")], ignore_index=True)
    pd.testing.assert_frame_equal(table, one)


def of_blocks(n_slides, n_blocks, n_repeats=1, seed=0):
    """Scores of one gene of one model in blocks of slides."""
    rng = np.random.default_rng(seed)
    rows = [
        {"model": "a", "fold": f"repeat {r}, block {b}", "repeat": r, "seed": r, "slide": f"S{s}", "group": f"S{s}",
         "gene": "g", "n_spots": 10, "pcc": rng.normal(), "spearman": 0.0, "mse": 1.0, "mae": 1.0, "high": True}
        for r in range(n_repeats) for b in range(n_blocks) for s in range(n_slides)
    ]  # fmt: skip
    scores = pd.DataFrame(rows)
    runs = scores[["model", "fold", "seed"]].drop_duplicates(ignore_index=True)
    runs = runs.assign(status="done", error="", epoch=1, seconds=1.0, parameters=1)
    return Comparison(scores, runs, "nested", held_out="unseen part of a known slide")


def test_blocks_of_one_slide_have_an_interval_of_their_own():
    result = of_blocks(1, 4)
    values = result.scores.pcc.to_numpy()
    ways = np.stack(np.meshgrid(*[values] * 4)).reshape(4, -1).mean(0)
    found = result.intervals(n_bootstrap=20_000).set_index("metric").loc["pcc_a"]
    assert (found.interval_over, found.n_slides, found.n_groups) == ("blocks", 1, 1)
    np.testing.assert_allclose([found.low, found.high], np.quantile(ways, [0.025, 0.975]), atol=0.05)
    assert "4 blocks of 1 slide" in repr(result) and "nothing about another slide" in repr(result)
    assert set(of_blocks(5, 3).intervals().interval_over) == {"slides"}


def test_repeats_of_blocks_do_not_narrow_the_interval():
    width = lambda result: result.intervals().set_index("metric").loc["pcc_a", ["low", "high"]].diff().iloc[1]
    many = of_blocks(1, 4, n_repeats=12)
    as_if_independent = many.scores.pcc.std() / np.sqrt(48) * 3.92
    of_one = many.scores.pcc.std() / np.sqrt(4) * 3.92
    assert 0.8 * of_one < width(many) < 1.2 * of_one and width(many) > 2 * as_if_independent


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


def test_the_summary_holds_numbers(result):
    table = result.summary(["pcc_a", "mse"])
    means = result.intervals().set_index(["model", "metric"])
    for metric in ("pcc_a", "mse"):
        for column, value in ((metric, "mean"), (f"{metric}_low", "low"), (f"{metric}_high", "high")):
            assert table[column].dtype == np.float64
            assert table.loc["good", column] == means.loc[("good", metric), value]
    assert "pcc_h" not in table
    assert f"{table.loc['good', 'pcc_a']:.3f} [" in repr(result)


def of_groups(groups, *, folds=("one",), seed=0):
    """Scores of one gene of two models; slides of one group are alike."""
    rng = np.random.default_rng(seed)
    rows = []
    for group, n in groups.items():
        level = rng.normal()
        for i in range(n):
            for fold in folds:
                for model, shift in (("a", 0.0), ("b", 0.1)):
                    value = level + shift + 0.01 * rng.normal()
                    about = {
                        "model": model,
                        "fold": fold,
                        "seed": 0,
                        "slide": f"{group}{i}",
                        "group": group,
                        "gene": "g",
                    }
                    rows.append({**about, "n_spots": 10, "pcc": value, "spearman": value, "mse": 1.0, "mae": 1.0})
    scores = pd.DataFrame(rows).assign(high=True)
    runs = scores[["model", "fold", "seed"]].drop_duplicates(ignore_index=True)
    runs = runs.assign(status="done", error="", epoch=1, seconds=1.0, parameters=1)
    return Comparison(scores, runs, "nested", group_key="patient")


def test_intervals_draw_whole_groups():
    result = of_groups(dict.fromkeys("ABCDE", 6))
    slides = result.slides()
    of = slides[slides.model == "a"].groupby("group").pcc_a.mean().to_numpy()
    ways = np.stack(np.meshgrid(*[of] * 5)).reshape(5, -1).mean(0)  # groups are of one size
    found = result.intervals(n_bootstrap=20_000).set_index(["model", "metric"]).loc[("a", "pcc_a")]
    assert (found.interval_over, found.n_groups, found.n_slides) == ("groups", 5, 30)
    np.testing.assert_allclose([found.low, found.high], np.quantile(ways, [0.025, 0.975]), atol=0.02)
    # slides taken for independent would promise far more
    alone = Comparison(result.scores, result.runs, "nested")
    naive = alone.intervals().set_index(["model", "metric"]).loc[("a", "pcc_a")]
    assert naive.interval_over == "slides" and found.high - found.low > 1.5 * (naive.high - naive.low)


def test_fewer_than_five_groups_have_no_interval_over_groups():
    result = of_groups({"A": 3, "B": 2})
    found = result.intervals()
    assert set(found.interval_over) == {"slides"}
    assert set(found.n_groups) == {2} and set(found.n_slides) == {5}
    (row,) = result.compare("a").to_dict("records")
    assert (row["interval_over"], row["n_groups"], row["n_slides"]) == ("slides", 2, 5)
    assert "5 slides of 2 groups (patient)" in repr(result) and "there is no interval over groups" in repr(result)
    assert "no interval over groups" in result._repr_html_()
    assert set(of_groups(dict.fromkeys("ABCDE", 2)).compare("a").interval_over) == {"groups"}


def test_a_slide_of_two_folds_is_drawn_with_both_of_its_scores():
    result = of_groups({"A": 3, "B": 2}, folds=("one", "two"))
    result.scores = result.scores.query("slide == 'A0' or fold == 'one'").reset_index(drop=True)
    rows = result.slides().query("model == 'a'")
    assert len(rows) == 6
    found = result.intervals(n_bootstrap=20_000).set_index(["model", "metric"]).loc[("a", "pcc_a")]
    assert found["mean"] == pytest.approx(rows.pcc_a.mean()) and found.n_slides == 5
    by_slide = rows.groupby("slide").pcc_a.agg(["sum", "size"]).to_numpy()
    draws = by_slide[np.stack(np.meshgrid(*[range(5)] * 5)).reshape(5, -1)].sum(0)
    expected = np.quantile(draws[:, 0] / draws[:, 1], [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.02)
    (row,) = result.compare("a").to_dict("records")
    assert row["n_slides"] == 5 and row["n_better"] <= 5


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
