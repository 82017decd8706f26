import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from gdml import pl


def rows(ax):
    """Names of the rows, and where the means stand."""
    (means,) = [line for line in ax.lines if line.get_color() == "#000000" and line.get_marker() == "o"]
    return [label.get_text() for label in ax.get_yticklabels()], means.get_xdata()


def boxes(figure):
    figure.canvas.draw()
    shown = [figure._suptitle] if figure._suptitle else []
    for ax in figure.axes:
        shown += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        shown += [tick.label1 for axis in (ax.xaxis, ax.yaxis) for tick in axis._update_ticks()]
        shown += list(ax.get_legend().get_texts()) if ax.get_legend() else []
    return [text.get_window_extent() for text in shown if text.get_text() and text.get_visible()]


def assert_readable(figure):
    found = boxes(figure)
    assert len(found) > 10
    for i, box in enumerate(found):
        assert not any(box.overlaps(other) for other in found[i + 1 :])
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1


def test_models_are_sorted_by_the_first_metric(compared):
    axes = pl.benchmark(compared, metrics=["mse", "pcc_a"])
    table = compared.intervals().set_index(["metric", "model"])["mean"]
    names, means = rows(axes[0])
    assert names == list(table["mse"].sort_values().index)  # the lowest error on top
    np.testing.assert_allclose(means, np.sort(table["mse"]))
    np.testing.assert_allclose(rows(axes[1])[1], table["pcc_a"][names])
    assert "lower is better" in axes[0].get_xlabel() and axes[1].get_xlabel() == "PCC(A)"
    bottom, top = axes[0].get_ylim()
    assert bottom > top


def test_intervals_and_slides_are_drawn(compared):
    (ax,) = pl.benchmark(compared, metrics="pcc_h")
    table = compared.intervals().query("metric == 'pcc_h'").set_index("model").loc[rows(ax)[0]]
    drawn = np.array([np.array(path)[:, 0] for path in ax.collections[0].get_segments()])
    np.testing.assert_allclose(drawn, table[["low", "high"]])
    slides = [line for line in ax.lines if line.get_color() in ("#0072B2", "#E69F00", "#009E73")]
    got = np.sort(np.concatenate([line.get_xdata() for line in slides]))
    np.testing.assert_allclose(got, np.sort(compared.slides()["pcc_h"]))
    for line in slides:  # every slide in the row of its model, below the mean, at the same height in all rows
        height = np.unique(np.round(line.get_ydata() % 1, 9))
        assert len(height) == len(line.get_xdata()) / 10 and (height < 0.5).all()


def test_the_floor_is_a_line_through_ridge(compared):
    (ax,) = pl.benchmark(compared, metrics="pcc_a", labels={"ridge": "Ridge, tuned"})
    mean = compared.intervals().query("metric == 'pcc_a' and model == 'ridge'")["mean"].item()
    (line,) = [line for line in ax.lines if list(line.get_xdata()) == [mean] * 2]
    assert line.get_linestyle() == "--"
    assert "mean of Ridge, tuned" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert "Ridge, tuned" in rows(ax)[0]
    texts = [t.get_text() for t in pl.benchmark(compared, floor=None)[-1].get_legend().get_texts()]
    assert not any("ridge" in text for text in texts)


def legend(ax):
    return [text.get_text().replace("\n", " ") for text in ax.get_legend().get_texts()]


def test_the_legend_says_what_intervals_are_over(compared, ablated):
    for result, draw in ((compared, pl.benchmark), (ablated, pl.ablation)):
        for groups, label in (
            (None, "mean, bootstrap interval"),
            (2, "mean, interval over 7 slides (2 patients)"),
            (1, "mean, interval over 7 slides (1 patient)"),
            (8, "mean, interval over 8 patients"),
        ):
            result.groups = groups
            assert legend(draw(result)[-1])[0] == label
    compared.groups, compared.group_key = 2, None
    assert legend(pl.benchmark(compared)[-1])[0] == "mean, interval over 7 slides (2 groups)"
    axes = pl.benchmark(compared, folds=["B4 to C", "C to B4"])  # four slides and one
    assert legend(axes[1])[0] == "mean, interval over slides (2 groups)"
    axes = pl.benchmark(compared, folds="C to B4")
    assert legend(axes[1])[0] == "mean (1 slide, 2 groups)"


def test_order_chooses_models(compared):
    axes = pl.benchmark(compared, order=["ridge", "egn"])
    assert rows(axes[0])[0] == ["ridge", "egn"]


def test_folds_get_rows_of_panels_with_their_own_intervals(compared):
    axes = pl.benchmark(compared, folds=["B4 to C", "C to B4"])
    assert len(axes) == 4 and [ax.get_ylabel() for ax in axes] == ["B4 to C", "", "C to B4", ""]
    table = compared.intervals(by_fold=True).query("fold == 'B4 to C' and metric == 'pcc_a'").set_index("model")
    names, means = rows(axes[0])
    np.testing.assert_allclose(means, table["mean"][names])
    assert names == rows(axes[2])[0]  # one order, so that folds can be compared
    colors = [{line.get_color() for line in ax.lines} & {"#0072B2", "#E69F00", "#009E73"} for ax in axes[::2]]
    assert colors == [{"#E69F00"}, {"#009E73"}]  # a fold keeps its colour


def test_failed_runs_are_told_and_no_model_is_left_out(compared):
    compared.runs = pd.DataFrame({"model": ["ridge", "ridge", "new"], "status": ["done", "failed", "failed"]})
    (ax,) = pl.benchmark(compared, metrics="pcc_a")
    names = rows(ax)[0]
    assert "ridge\n(1 of 2 runs failed)" in names and names[-1] == "new\n(1 of 1 run failed)"
    assert [text.get_text() for text in ax.texts] == ["no score"]


def test_what_is_optimistic_cannot_be_missed(compared_optimistically, compared, ablated_optimistically):
    for figure in (
        pl.benchmark(compared_optimistically, return_fig=True),
        pl.ablation(ablated_optimistically, return_fig=True),
        pl.gene_scores(None, key=compared_optimistically, return_fig=True),
    ):
        told = figure._suptitle
        assert told.get_text().replace("\n", " ") == compared_optimistically.note and told.get_fontweight() == "bold"
        assert to_hex(told.get_bbox_patch().get_facecolor()) == "#d55e00" and to_rgb(told.get_color()) == (1, 1, 1)
        figure.canvas.draw()
        box = told.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert all(box.y0 > ax.get_window_extent().y1 for ax in figure.axes)
    compared_optimistically.note = ""
    figure = pl.benchmark(compared_optimistically, return_fig=True)
    assert figure._suptitle.get_text() == "optimistic (protocol 'paper')"
    own = plt.subplots(1, 2)[1]
    assert "optimistic" in pl.benchmark(compared_optimistically, ax=own)[0].get_title(loc="left")
    assert pl.benchmark(compared, return_fig=True)._suptitle is None
    compared.note = "Correlations are over all spots."
    assert pl.benchmark(compared, return_fig=True)._suptitle.get_bbox_patch() is None


@pytest.mark.parametrize("metrics", [["pcc_a", "pcc_h_best", "mse"], "pcc_a"])
def test_texts_of_a_benchmark_do_not_overlap(compared_optimistically, metrics):
    labels = {"triplex": "TRIPLEX, with its own recipe, 200 epochs"}
    assert_readable(pl.benchmark(compared_optimistically, metrics=metrics, labels=labels, return_fig=True))


def test_many_folds_are_told_apart_or_not_at_all():
    from gdml.pl._results import fold_styles

    for n, distinct in ((1, 1), (12, 12), (13, 1)):
        styles = fold_styles(pd.DataFrame({"fold": range(n)}))
        assert len({style[:2] for style in styles.values()}) == distinct


def panels(axes):
    return {ax.get_xlabel(): [label.get_text() for label in ax.get_xticklabels()] for ax in axes}


def test_ablation_has_a_panel_a_field_with_the_default_marked(ablated):
    axes = pl.ablation(ablated)
    assert panels(axes) == {"k": ["6", "12", "18", "26"], "tau": ["0.05", "0.07", "0.1"], "gates": ["off", "on"]}
    bold = [[label.get_text() for label in ax.get_xticklabels() if label.get_fontweight() == "bold"] for ax in axes]
    assert bold == [["18"], ["0.07"], ["on"]]
    table = ablated.intervals().query("metric == 'pcc_a'").set_index("model")["mean"]
    means = axes[0].lines[-1]
    np.testing.assert_allclose(means.get_ydata(), table[["k=6", "k=12", "default", "k=26"]])
    assert axes[2].lines[-1].get_linewidth() == 0 < means.get_linewidth()  # only numbers have values between them
    assert list(pl.ablation(ablated, fields="tau", metric="mse")[0].lines[-1].get_xdata()) == [0, 1, 2]


def test_slides_are_joined_from_value_to_value(ablated):
    ax = pl.ablation(ablated)[1]
    slides = ablated.slides().set_index(["model", "fold", "slide"])["pcc_a"]
    (line,) = [line for line in ax.lines if line.get_color() == "#009E73"]
    np.testing.assert_allclose(
        line.get_ydata(), [slides[m, "C to B4", "B4"] for m in ("tau=0.05", "default", "tau=0.1")]
    )


def test_values_that_are_no_numbers_keep_their_order_and_are_broken(ablated):
    ablated.variants["k"] = ["instance and group", None, ["local", "neighbor"], "none", *["instance and group"] * 3]
    figure = pl.ablation(ablated, return_fig=True)
    assert panels(figure.axes)["k"] == ["instance and\ngroup", "none", "local,\nneighbor", "none"]
    assert_readable(figure)


def test_a_failed_variant_keeps_its_place(ablated):
    ablated.scores = ablated.scores[ablated.scores["model"] != "k=6"]
    ax = pl.ablation(ablated)[0]
    assert panels([ax])["k"] == ["6", "12", "18", "26"] and [text.get_text() for text in ax.texts] == ["no score"]


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"metrics": ["pcc"]}, ValueError, "Unknown metric 'pcc'. Did you mean 'pcc_"),
        ({"metrics": []}, ValueError, "`metrics` is empty"),
        ({"folds": "B4 to c"}, KeyError, "`folds` names 'B4 to c'.*Did you mean 'B4 to C'"),
        ({"order": ["ridge", "triplx"]}, KeyError, "Did you mean 'triplex'"),
        ({"order": []}, ValueError, "`order` is empty"),
        ({"floor": "rigde"}, KeyError, "Did you mean 'ridge'"),
        ({"labels": {"rigde": "x"}}, KeyError, "`labels` names 'rigde'"),
        ({"ax": "one"}, ValueError, "`ax` holds 1 axes, but 2"),
    ],
)
def test_bad_arguments_of_benchmark(compared, kwargs, error, says):
    if "ax" in kwargs:
        kwargs = {"ax": plt.subplots()[1]}
    with pytest.raises(error, match=says):
        pl.benchmark(compared, **kwargs)


def test_bad_arguments_of_ablation(ablated, compared):
    with pytest.raises(ValueError, match="Unknown metric 'pccs'"):
        pl.ablation(ablated, metric="pccs")
    with pytest.raises(KeyError, match="`fields` names 'gate'.*Did you mean 'gates'"):
        pl.ablation(ablated, fields=["gate"])
    with pytest.raises(ValueError, match="`ax` holds 1 axes, but 3"):
        pl.ablation(ablated, ax=plt.subplots()[1])
    ablated.variants = ablated.variants.loc[["default"]]
    with pytest.raises(ValueError, match="the default only"):
        pl.ablation(ablated)
    with pytest.raises(TypeError, match="gdml.tl.ablate"):
        pl.ablation(compared)
    compared.variants = pd.DataFrame()
    with pytest.raises(TypeError, match="gdml.tl.ablate"):
        pl.ablation(compared)
    with pytest.raises(
        TypeError, match="`result` is a DataFrame without 'intervals'; give what gdml.tl.cross_validate"
    ):
        pl.benchmark(pd.DataFrame())


def test_return_values(compared, ablated):
    figure, own = plt.subplots(1, 2)
    assert list(pl.benchmark(compared, ax=own)) == list(own)
    assert pl.benchmark(compared, ax=own, return_fig=True) is figure
    assert isinstance(pl.ablation(ablated, return_fig=True), Figure)


def test_picture_of_a_benchmark(compared, looks_the_same):
    looks_the_same(pl.benchmark(compared, return_fig=True), "benchmark")


def test_picture_of_an_ablation(ablated, looks_the_same):
    looks_the_same(pl.ablation(ablated, return_fig=True), "ablation")


@pytest.mark.parametrize("optimistic", [False, True])
def test_the_results_of_tl_are_drawn(ablated, optimistic):
    from gdml.tl import Comparison

    runs = ablated.scores[["model", "fold", "seed"]].drop_duplicates().assign(status="done")
    scores = ablated.scores.assign(n_spots=100)
    note = "OPTIMISTIC: of the test fold" if optimistic else ""
    result = Comparison(scores, runs, "paper" if optimistic else "nested", note, optimistic, ablated.variants)
    table = result.intervals().query("metric == 'pcc_a'").set_index("model")["mean"]
    names, means = rows(pl.benchmark(result)[0])
    np.testing.assert_allclose(means, table[names])
    assert len(pl.benchmark(result, folds=["B4 to C"])) == 2
    np.testing.assert_allclose(pl.ablation(result)[1].lines[-1].get_ydata(), table[["tau=0.05", "default", "tau=0.1"]])
    figure = pl.gene_scores(None, key=result, return_fig=True)
    assert f"k=6 {table['k=6']:.2f}" in [text.get_text() for text in figure.axes[0].texts]
    assert (figure._suptitle is not None) == optimistic
