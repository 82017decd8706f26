"""Plots of paired differences, made of real results of gdml.tl."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from gdml import pl
from gdml.tl import Comparison

MODELS = ["gene-dml", "triplex", "kernel", "stnet", "ridge"]


def make(n_groups=8, models=MODELS, *, group_key="patient", n_blocks=0, seed=0):
    """Two slides of each group, or blocks of one slide; the first model is the best, the last the worst."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(n_groups):
        level = rng.normal(0.25, 0.08)
        for part in range(n_blocks or 2):
            for i, model in enumerate(models):
                pcc = level - 0.02 * i + rng.normal(0, 0.02)
                rows.append(
                    {"model": model, "fold": f"block {part}" if n_blocks else f"P{group}", "repeat": 0, "seed": 0,
                     "slide": f"S{group}" if n_blocks else f"S{group}-{part}", "group": f"P{group}", "gene": "g",
                     "n_spots": 100 + 100 * part, "pcc": pcc, "spearman": pcc, "mse": 0.5 - pcc / 2, "mae": 1 - pcc,
                     "high": True}
                )  # fmt: skip
    scores = pd.DataFrame(rows)
    runs = scores[["model", "fold", "seed"]].drop_duplicates().assign(status="done", error="", seconds=1.0)
    held_out = "unseen part of a known slide" if n_blocks else "unseen patient"
    return Comparison(scores, runs, "nested", group_key=group_key, held_out=held_out)


@pytest.fixture
def ablated():
    names = ["gene-dml", "k=6", "k=26", "k=12", "tau=0.05", "tau=0.1"]
    result = make(7, names)
    fields = {"k": [18, 6, 26, 12, 18, 18], "tau": [0.07] * 4 + [0.05, 0.1], "default": [True] + [False] * 5}
    result.variants = pd.DataFrame({**fields, "field": ["", "k", "k", "k", "tau", "tau"]}, index=names)
    return result


def marks(ax, color):
    lines = [line for line in ax.lines if line.get_color() == color and line.get_marker() == "o"]
    return np.concatenate([line.get_xydata() for line in lines])


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_means_intervals_and_groups_of_the_differences_are_drawn():
    result = make()
    (ax,) = pl.benchmark(result, reference="ridge", metrics="mse")
    table = result.compare("ridge", metric="mse").sort_values("difference")  # the lowest error on top
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table.model)
    np.testing.assert_allclose(marks(ax, "#000000")[:, 0], table.difference)
    segments = np.array([path.get_segments()[0][:, 0] for path in ax.collections if hasattr(path, "get_segments")])
    np.testing.assert_allclose(segments, table[["low", "high"]])
    dots = marks(ax, "#0072B2").reshape(4, 8, 2)
    scores = result.scores.set_index(["model", "slide"])
    for row, model in zip(dots, table.model, strict=True):
        expected = []
        for group in range(8):
            of = [scores.loc[(m, f"S{group}-{part}"), "mse"] for part in (0, 1) for m in (model, "ridge")]
            expected.append((100 * (of[0] - of[1]) + 200 * (of[2] - of[3])) / 300)  # errors are over spots
        np.testing.assert_allclose(row[:, 0], expected)
    heights = dots[:, :, 1] - np.arange(4)[:, None]
    assert np.ptp(heights, axis=0).max() < 1e-9  # a group is at one height in all rows
    assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines)
    assert ax.get_xlabel() == "difference in MSE\nfrom ridge (lower is better)"


def test_n_and_p_are_said():
    figure = pl.benchmark(make(), reference="ridge", metrics="pcc_a", return_fig=True)
    assert legend(figure) == [
        "mean, interval over 8 patients",
        "patient (n = 8)",
        "P: sign flips over 8 patients, 0.008 at least",
    ]
    result = make(3)
    (ax,) = pl.benchmark(result, reference="ridge", metrics="pcc_a")
    ps = [text for text in ax.texts if text.get_text() not in ("P", "")]
    table = result.compare("ridge").sort_values("difference", ascending=False)
    assert [text.get_text() for text in ps] == [f"{p:.2f}" for p in table.p_value]
    assert {text.get_color() for text in ps} == {"#8C8C8C"}  # nothing could have made them small
    assert legend(ax.figure)[-1] == "P: sign flips over 3 patients, 0.25 at least"


def test_blocks_of_one_slide_are_drawn_without_a_test():
    figure = pl.benchmark(make(1, group_key=None, n_blocks=5), reference="ridge", metrics="pcc_a", return_fig=True)
    assert legend(figure) == ["mean, interval over 5 blocks (1 slide)", "block (n = 5)", "no P-value: 1 slide"]
    assert len(marks(figure.axes[0], "#0072B2")) == 5 * 4 and not figure.axes[0].texts
    means = pl.benchmark(make(1, group_key=None, n_blocks=5))
    assert means[-1].get_legend().get_texts()[0].get_text() == "mean, interval over\n5 blocks (1 slide)"


def test_an_ablation_against_its_default(ablated):
    axes = pl.ablation(ablated, reference="gene-dml")
    table = ablated.compare("gene-dml").set_index("model")["difference"]
    at = marks(axes[0], "#000000")
    np.testing.assert_allclose(at[:, 1], table[["k=6", "k=12", "k=26"]])
    np.testing.assert_allclose(np.round(at[:, 0]), [0, 1, 3])  # the default stands between them, without a mark
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["6", "12", "18", "26"]
    assert axes[0].get_ylabel() == "difference in PCC(A)\nfrom gene-dml"
    scores = ablated.scores[ablated.scores["model"] != "k=6"]
    ablated = Comparison(scores, ablated.runs, "nested", variants=ablated.variants)
    assert "no score" in [text.get_text() for text in pl.ablation(ablated, reference="gene-dml")[0].texts]


@pytest.mark.parametrize("metrics", ["pcc_a", ["pcc_a", "pcc_h"], ["pcc_a", "pcc_h", "mse", "mae"]])
@pytest.mark.parametrize("n_models", [2, 5])
def test_a_figure_fits_a_page_and_its_type_can_be_read(metrics, n_models):
    figure = pl.benchmark(make(models=MODELS[-n_models:]), reference="ridge", metrics=metrics, return_fig=True)
    assert 85 <= figure.get_size_inches()[0] * 25.4 <= 180
    assert_legible(figure)


def test_an_ablation_fits_a_page(ablated):
    figure = pl.ablation(ablated, reference="gene-dml", return_fig=True)
    assert 85 <= figure.get_size_inches()[0] * 25.4 <= 180
    assert_legible(figure)


def assert_legible(figure):
    figure.canvas.draw()
    shown = [
        t
        for t in figure.findobj(Text)
        if t.get_text().strip() and t.get_visible() and not t.get_text().startswith("Text")
    ]
    assert min(text.get_fontsize() for text in shown) >= 6
    boxes = []
    for ax in figure.axes:
        boxes += [
            label.get_window_extent() for label in (ax.xaxis.label, ax.yaxis.label, *ax.texts) if label.get_text()
        ]
        ticks = [tick.label1 for axis in (ax.xaxis, ax.yaxis) for tick in axis._update_ticks()]
        boxes += [tick.get_window_extent() for tick in ticks if tick.get_text() and tick.get_visible()]
    boxes += [text.get_window_extent() for text in figure.legends[0].get_texts()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


def test_bad_arguments(ablated):
    result = make()
    with pytest.raises(ValueError, match="`reference` is 'rigde'. Did you mean 'ridge'"):
        pl.benchmark(result, reference="rigde")
    with pytest.raises(ValueError, match="`folds` can't be combined with `reference`"):
        pl.benchmark(result, reference="ridge", folds="P1")
    with pytest.raises(KeyError, match="`order` names 'x'"):
        pl.benchmark(result, reference="ridge", order=["x"])
    with pytest.raises(ValueError, match="`ax` holds 1 axes, but 2"):
        pl.benchmark(result, reference="ridge", ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="there is nothing to compare"):
        pl.benchmark(make(models=["ridge"]), reference="ridge")
    with pytest.raises(ValueError, match="`reference` is 'k=7'"):
        pl.ablation(ablated, reference="k=7")


def test_on_axes_of_the_user_the_legend_is_beside_them():
    figure, ax = plt.subplots()
    (drawn,) = pl.benchmark(make(), reference="ridge", metrics="pcc_a", ax=ax)
    assert drawn is ax and ax.get_legend() is not None and not figure.legends


def test_picture_of_differences(looks_the_same):
    looks_the_same(pl.benchmark(make(), reference="ridge", return_fig=True), "differences")


def test_picture_of_an_ablations_differences(ablated, looks_the_same):
    looks_the_same(pl.ablation(ablated, reference="gene-dml", return_fig=True), "differences_ablation")
