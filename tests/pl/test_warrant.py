import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from gdml import pl


@pytest.fixture
def table():
    """Sixty genes: a third of each verdict."""
    rng = np.random.default_rng(0)
    attainable = rng.uniform(0.2, 0.95, 60)
    share = np.repeat([0.9, 0.5, 0.05], 20) + rng.normal(0, 0.04, 60)
    made = pd.DataFrame(
        {
            "warrant": np.repeat(["carried by the image", "partly", "not shown"], 20),
            "pcc_expected": share * attainable,
            "pcc_attainable": attainable,
        },
        index=[f"GENE{i}" for i in range(60)],
    )
    made["pcc_low"], made["pcc_high"] = made["pcc_expected"] - 0.1, made["pcc_expected"] + 0.1
    return made


@pytest.fixture
def predicted(table):
    return ad.AnnData(obs=pd.DataFrame(index=["s"]), uns={"gdml": {"predict": {"genes": table}}})


def named(ax):
    return {text.get_text() for text in ax.texts}


def test_expected_stands_against_attainable(predicted, table):
    ax = pl.warrant(predicted)
    points = np.concatenate([line.get_xydata() for line in ax.lines if line.get_linestyle() == "None"])
    np.testing.assert_allclose(points, table[["pcc_attainable", "pcc_expected"]])
    (bars,) = [one for one in ax.collections if len(one.get_paths()) == 60]
    ends = np.array([path.vertices for path in bars.get_paths()])
    np.testing.assert_allclose(ends[:, :, 1], table[["pcc_low", "pcc_high"]])
    np.testing.assert_allclose(ends[:, 0, 0], table["pcc_attainable"])
    slopes = {line.get_label(): np.ptp(line.get_ydata()) / np.ptp(line.get_xdata()) for line in ax.lines[3:5]}
    assert list(slopes.values()) == [1, 0.5]


def test_a_gene_that_one_slide_scored_has_a_point_and_no_interval(predicted, table):
    table.loc["GENE3", ["pcc_low", "pcc_high"]] = [-1, 1]
    ax = pl.warrant(predicted)
    assert any(len(one.get_paths()) == 59 for one in ax.collections)
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "None") == 60
    assert ax.get_ylim()[0] == pytest.approx(min(0, table["pcc_low"].drop("GENE3").min()) - 0.05)
    table["pcc_low"], table["pcc_high"] = -1, 1  # of one patient nothing is certain
    assert pl.warrant(predicted).get_ylim()[0] > -0.5


def test_the_legend_counts_the_verdicts(predicted, table):
    table.iloc[:2, 0] = "partly"
    table.iloc[59, 0] = "a word that is not known yet"
    table.iloc[[5, 6], 2] = np.nan  # counts that could not be thinned
    ax = pl.warrant(predicted)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [one.replace("\n", " ") for one in said[:4]] == [
        "carried by the image (16): at least half of the attainable, interval from 0.2 up",
        "partly (22): interval above 0",
        "not shown (19): interval reaches 0, or is not known",
        "a word that is not known yet (1)",
    ]
    assert ax.get_xlabel() == "attainable PCC (58 genes, 2 left out)"


def test_the_legend_gives_the_rule_by_which_genes_were_judged(predicted):
    from gdml.training import warrant

    assert warrant.LEAST_SHARE == 0.5 and f"interval from {warrant.LEAST_PCC:g} up" in rule(predicted)
    low, expected = np.array([0.2, 0.2, 0.19, 0.01, 0.0]), np.array([0.4, 0.39, 0.5, 0.1, 0.3])
    verdicts = warrant.judge(expected, low, np.full(5, 0.8))
    assert list(verdicts) == ["carried by the image", "partly", "partly", "partly", "not shown"]


def rule(predicted):
    return " ".join(text.get_text() for text in pl.warrant(predicted).get_legend().get_texts()).replace("\n", " ")


def test_what_was_held_out_is_named(predicted):
    predicted.uns["gdml"]["predict"]["unseen"] = "unseen part of a known slide"
    figure = pl.warrant(predicted, return_fig=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert ax.get_ylabel().startswith("expected PCC on an unseen part of a known slide\n")
    box = ax.yaxis.label.get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_best_and_worst_genes_are_named(predicted, table):
    ranked = table["pcc_expected"].sort_values().index
    assert named(pl.warrant(predicted, n_labels=3)) == {*ranked[:3], *ranked[-3:]}
    assert named(pl.warrant(predicted, genes=["GENE7", "GENE40"])) == {"GENE7", "GENE40"}
    assert named(pl.warrant(predicted, n_labels=0)) == set()


def test_names_do_not_collide(predicted, table):
    table.iloc[:30, 1:3] = [0.6, 0.7]  # at one point
    figure = pl.warrant(predicted, n_labels=8, return_fig=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert figure.get_size_inches()[0] * 25.4 == pytest.approx(85)
    texts = [text for text in ax.texts if text.get_text()]
    boxes = [super(type(text), text).get_window_extent() for text in texts]  # without the line to the point
    boxes.append(ax.get_legend().get_window_extent())
    assert len(boxes) == 17
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_own_axes_and_another_key(predicted):
    predicted.uns["other"] = predicted.uns.pop("gdml")
    own = plt.subplots()[1]
    assert pl.warrant(predicted, key="other", ax=own) is own


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "says"),
    [
        (
            lambda a: a.uns["gdml"].pop("predict"),
            {},
            KeyError,
            r"gdml.tl.predict\(adata, model\) writes it.*out-of-fold",
        ),
        (lambda a: None, {"key": "other"}, KeyError, "key_added='other'"),
        (lambda a: a.uns["gdml"]["predict"]["genes"].pop("pcc_low"), {}, ValueError, "no column 'pcc_low'"),
        (lambda a: None, {"genes": "GENE60"}, KeyError, "`genes` names 'GENE60'.*Did you mean"),
        (lambda a: None, {"n_labels": -1}, ValueError, "`n_labels`"),
    ],
)
def test_bad_arguments(predicted, change, kwargs, error, says):
    change(predicted)
    with pytest.raises(error, match=says):
        pl.warrant(predicted, **kwargs)


def test_picture(predicted, looks_the_same):
    looks_the_same(pl.warrant(predicted, return_fig=True), "warrant")
