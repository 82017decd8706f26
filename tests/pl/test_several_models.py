import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from gdml import pl


@pytest.fixture
def compared_maps(adata):
    """Predictions of three models: A by all, B not by the second; the third knows one slide, and not each spot."""
    first = adata.obsm.pop("gdml")
    adata.obsm["gdml_one"], adata.obsm["gdml_two"] = first, first[["A"]] * 2
    adata.obsm["gdml_three"] = third = first.copy()
    third.iloc[48:] = np.nan
    third.iloc[:5] = np.nan
    return adata


KEYS = ["gdml_one", "gdml_two", "gdml_three"]


def headings(axes):
    """Headings of columns, above their first map."""
    return [
        text.get_text()
        for ax in axes
        for text in ax.texts
        if text.get_fontsize() == 7 or text.get_text() == "optimistic"
    ]


def score(ax):
    return ax.get_title(loc="left")


def drawn(ax):
    return np.ma.filled(ax.collections[0].get_array(), np.nan)


def test_models_stand_in_columns(compared_maps):
    axes = pl.spatial_pred(compared_maps, ["A", "B"], key=KEYS)
    assert len(axes) == 2 * 2 * 4
    grid = axes.reshape(4, 4)  # slides with their genes, measured and three models
    assert headings(axes) == ["measured", "one", "two", "three"] == headings(grid[0])
    assert [row[0].get_ylabel() for row in grid] == ["A", "B", "A", "B"]
    boxes = [[ax.get_position() for ax in row] for row in grid]
    for j in range(4):
        assert np.ptp([row[j].x0 for row in boxes]) < 1e-9
        assert all(upper[j].y0 > lower[j].y1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    assert {text.get_text() for text in axes[0].figure.texts} == {"slide s1", "slide s2", "expression"}
    notes = [[text.get_text() for text in row[-1].texts if text.get_text().startswith("PCC over")] for row in grid]
    assert notes == [[], ["PCC over 43 to 48 spots"], [], ["PCC over 48 spots"]]
    pcc = np.corrcoef(compared_maps.obsm["gdml_measured"]["A"][:48], compared_maps.obsm["gdml_one"]["A"][:48])[0, 1]
    assert [score(ax) for ax in grid[0][:2]] == ["a", f"PCC {pcc:.2f}"]
    assert score(grid[1][1]) == "PCC \N{MINUS SIGN}1.00"


def test_what_a_model_did_not_predict_is_absent(compared_maps):
    grid = pl.spatial_pred(compared_maps, ["A", "B"], key=KEYS).reshape(4, 4)
    empty = [[np.isnan(drawn(ax)).all() for ax in row] for row in grid]
    assert empty == [[False] * 4, [False, False, True, False], [False] * 3 + [True], [False, False, True, True]]
    for row, absent in zip(grid, empty, strict=True):
        for ax, gone in zip(row, absent, strict=True):
            assert ("not predicted" in [text.get_text() for text in ax.texts]) == gone
            assert not (gone and score(ax))
    part = drawn(grid[0][3])
    assert np.isnan(part[:5]).all() and not np.isnan(part[5:]).any()
    seen = compared_maps.obsm["gdml_measured"]["A"][5:48], compared_maps.obsm["gdml_three"]["A"][5:48]
    assert score(grid[0][3]) == f"PCC {np.corrcoef(*seen)[0, 1]:.2f}"


def test_measured_expression_is_found(compared_maps):
    own = compared_maps.obsm["gdml_measured"] * 3
    compared_maps.obsm["gdml_two_measured"] = own
    axes = pl.spatial_pred(compared_maps, "A", key=KEYS)  # the first that has its own
    np.testing.assert_allclose(drawn(axes[0]), own["A"][:48])
    del compared_maps.obsm["gdml_two_measured"]
    axes = pl.spatial_pred(compared_maps, "A", key=KEYS)
    np.testing.assert_allclose(drawn(axes[0]), own["A"][:48] / 3)
    assert len({ax.collections[0].get_clim() for ax in axes[:4]}) == 1
    one = pl.spatial_pred(compared_maps, "A", key="gdml_two", library_id="s1")  # one key alone finds it too
    assert [headings([ax])[-1] for ax in one] == ["measured", "predicted"]
    del compared_maps.obsm["gdml_measured"]
    axes = pl.spatial_pred(compared_maps, "A", key=KEYS[:2])
    assert headings(axes) == ["one", "two"] and not any(score(ax) for ax in axes[1:2])


def test_what_was_evaluated_comes_before_what_was_learned(compared_maps):
    table = compared_maps.obsm["gdml_measured"]
    compared_maps.obsm["gdml_one_measured"] = table * 2
    compared_maps.obsm["gdml_three_evaluated"] = table * 3
    for keys, factor in ((KEYS[:2], 2), (KEYS, 3), (KEYS[1:2], 1)):
        axes = pl.spatial_pred(compared_maps, "A", key=keys)
        np.testing.assert_allclose(drawn(axes[0]), table["A"][:48] * factor)
    compared_maps.uns |= {"gdml_three": {"predict": {"normalization": {"log": "2"}}}}
    pl.spatial_pred(compared_maps, "A", key="gdml_three")  # evaluated on the scale of the predictions: no warning
    compared_maps.uns |= {"gdml_one": {"predict": {"normalization": {"log": "e"}}}}
    with pytest.warns(UserWarning, match="'gdml_one'.*different scales.*key='gdml_one'"):
        pl.spatial_pred(compared_maps, "A", key=KEYS)


def test_the_default_key_names_the_predictions_of_a_comparison(compared_maps):
    with pytest.raises(KeyError, match="'gdml', but .*Did you mean 'gdml_"):
        pl.spatial_pred(compared_maps, "A")
    with pytest.raises(KeyError, match=r"predictions are under 'gdml_one', .*evaluate\(adata, key='gdml_one'\)"):
        pl.gene_scores(compared_maps)
    with pytest.raises(KeyError, match=r"run gdml.tl.evaluate\(adata, key='gdml_two'\)"):
        pl.gene_scores(compared_maps, key="gdml_two")
    with pytest.raises(KeyError, match=r"run gdml.tl.predict\(adata, model\) and then"):
        pl.gene_scores(ad.AnnData())


def test_tiles_are_found_under_the_common_key(compared_maps):
    compared_maps.uns["gdml"] = {"tiles": {"library_key": "slide", "slides": {"s1": {"um_per_px": 5.0}}}}
    compared_maps.obs["slide"] = compared_maps.obs.pop("library_id")
    axes = pl.spatial_pred(compared_maps, "A", key=KEYS, library_id="s1")
    assert "2 mm" in [text.get_text() for text in axes[0].texts]


def texts_of(figure):
    figure.canvas.draw()
    shown = list(figure.texts)
    for ax in figure.axes:
        shown += [ax._left_title, ax.yaxis.label, *ax.texts]
    return [text.get_window_extent() for text in shown if text.get_text()]


@pytest.mark.parametrize("scale", ["shared", "each"])
def test_texts_of_columns_do_not_overlap(compared_maps, scale):
    for i in range(9):
        compared_maps.obsm[f"gdml_model-{i}"] = compared_maps.obsm["gdml_one"]
    keys = [*KEYS, *(f"gdml_model-{i}" for i in range(9))]
    compared_maps.uns["gdml_one"] = {"predict": {"protocol": "paper"}}
    labels = {"gdml_one": "TRIPLEX, own recipe"}
    figure = pl.spatial_pred(compared_maps, ["A", "B"], key=keys, scale=scale, labels=labels, return_fig=True)
    assert figure.get_size_inches()[0] * 25.4 < 200  # thirteen columns of 11 mm
    boxes = texts_of(figure)
    assert len(boxes) > 60
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_optimistic_correlations_are_named_so(compared_maps):
    compared_maps.uns["gdml_two"] = {"predict": {"protocol": "paper"}}
    axes = pl.spatial_pred(compared_maps, "A", key=KEYS, library_id="s1")
    assert headings(axes) == ["measured", "one", "optimistic", "two", "three"]
    assert [to_hex(ax._left_title.get_color()) for ax in axes[1:]] == ["#000000", "#d55e00", "#000000"]
    (_, right) = pl.spatial_pred(compared_maps, "A", key="gdml_two", library_id="s1")
    assert any(text.startswith("optimistic PCC ") for text in headings([right]))


def test_own_axes_for_columns(compared_maps):
    own = plt.subplots(2, 4)[1]
    axes = pl.spatial_pred(compared_maps, ["A", "B"], key=KEYS, library_id="s1", ax=own)
    assert list(axes) == list(own.ravel()) and headings(axes) == ["measured", "one", "two", "three"]
    with pytest.raises(ValueError, match="`ax` holds 8 axes, but 4"):
        pl.spatial_pred(compared_maps, "A", key=KEYS, library_id="s1", ax=own)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"key": ["gdml_one", "gdml_tow"]}, KeyError, "`key` names 'gdml_tow'.*Did you mean 'gdml_two'"),
        ({"key": []}, ValueError, "`key` is empty"),
        ({"key": KEYS, "ncols": 2}, ValueError, "`ncols` is 2"),
        ({"key": KEYS[0], "ncols": "2"}, TypeError, "`ncols` must be a whole number .*found '2'"),
        ({"key": KEYS[0], "size": "1"}, ValueError, "`size` is '1'. Known names: 'touch', 'true'"),
        ({"key": KEYS, "labels": {"two": "x"}}, KeyError, "`labels` names 'two'.*Did you mean 'gdml_two'"),
        ({"key": KEYS, "genes": "C"}, KeyError, "`genes` names 'C'"),
        ({"key": "gdml_tow"}, KeyError, "gdml.tl.predict"),  # measured expression alone is not what was asked for
    ],
)
def test_bad_arguments(compared_maps, kwargs, error, says):
    with pytest.raises(error, match=says):
        pl.spatial_pred(compared_maps, **{"genes": "A"} | kwargs)


def test_scales_that_differ_are_told_for_every_model(compared_maps):
    compared_maps.uns |= {
        "gdml": {"normalization": {"log": "e"}},
        "gdml_two": {"predict": {"normalization": {"log": "2"}}},
    }
    with pytest.warns(UserWarning, match="'gdml_two'.*different scales"):
        pl.spatial_pred(compared_maps, "A", key=KEYS)


def test_picture_of_columns(compared_maps, looks_the_same):
    looks_the_same(pl.spatial_pred(compared_maps, ["A", "B"], key=KEYS, library_id="s1", return_fig=True), "columns")


@pytest.mark.real
def test_columns_on_a_real_section(her2st_section):
    import gdml

    gdml.pp.normalize(her2st_section, genes=["FASN", "GNAS"])
    for name in ("ridge", "triplex"):
        her2st_section.obsm[f"gdml_{name}"] = her2st_section.obsm["gdml_measured"] * 0.5
    axes = pl.spatial_pred(her2st_section, ["FASN", "GNAS"], key=["gdml_ridge", "gdml_triplex"], img=True)
    assert [score(ax) for ax in axes] == ["a", "PCC 1.00", "PCC 1.00", "b", "PCC 1.00", "PCC 1.00"]
    assert axes[3].texts[-1].get_text() == "1 mm" and headings(axes) == ["measured", "ridge", "triplex"]


# genes of several models


def curves(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 2]


def named(ax):
    return [text.get_text() for text in ax.texts]


def test_a_result_is_drawn_as_a_curve_a_model(compared):
    ax = pl.gene_scores(None, key=compared, labels={"gene-dml": "Gene-DML"})
    assert len(curves(ax)) == 10
    for line in curves(ax):
        assert (np.diff(line.get_ydata()) <= 0).all() and len(line.get_xdata()) == 59  # one of 60 is constant
    best = compared.scores.query("model == 'triplex'").groupby(["fold", "slide", "gene"])["pcc"].mean()
    mean = best.groupby("gene").mean().dropna().sort_values(ascending=False)
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), mean)
    pcc_a = compared.intervals().query("metric == 'pcc_a'").set_index("model")["mean"]
    assert {"PCC(A)", f"triplex {pcc_a['triplex']:.2f}", f"Gene-DML {pcc_a['gene-dml']:.2f}"} < set(named(ax))
    assert len({(line.get_color(), line.get_linestyle()) for line in curves(ax)}) == 10
    assert "7 slides" in ax.get_ylabel()


def test_scores_under_several_keys():
    made = ad.AnnData()
    for key, shift in (("gdml_one", 0.0), ("gdml_two", 0.1)):
        pcc = np.array([[0.5, 0.1, np.nan], [0.7, 0.3, np.nan]]) + shift
        made.uns[key] = {"evaluate": {"pcc": pcc, "genes": np.array(["A", "B", "C"], object)}}
    made.uns["gdml_two"]["predict"] = {"protocol": "paper"}
    ax = pl.gene_scores(made, key=["gdml_one", "gdml_two"], genes=["A"])
    assert named(ax)[:2] == ["one 0.40", "two 0.50, optimistic"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A"]
    marks = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_ydata()) for line in marks] == [pytest.approx([0.6]), pytest.approx([0.7])]
    with pytest.raises(KeyError, match="'C', which has no correlation"):
        pl.gene_scores(made, key=["gdml_one", "gdml_two"], genes=["C"])
    with pytest.raises(ValueError, match="at most 6"):
        pl.gene_scores(made, key=["gdml_one", "gdml_two"], genes=list("ABCDEFG"))
    with pytest.raises(KeyError, match="'gdml_three'.*gdml.tl.evaluate"):
        pl.gene_scores(made, key=["gdml_one", "gdml_three"])
    with pytest.raises(TypeError, match="`key` is a int without 'scores'; give what gdml.tl.cross_validate"):
        pl.gene_scores(made, key=3)
    with pytest.raises(ValueError, match="`key` is empty"):
        pl.gene_scores(made, key=[])
    one = pl.gene_scores(made, key=["gdml_two"], n_labels=1)  # a list of one is one model
    assert "PCC(A) 0.50\noptimistic" in named(one) and {"A", "B"} < set(named(one))


def test_names_of_curves_do_not_overlap(compared):
    from matplotlib.text import Text

    figure = pl.gene_scores(None, key=compared, genes=["GENE3", "GENE40"], return_fig=True)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 11
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.y0 >= 0 and box.x1 <= figure.bbox.x1


def test_more_models_than_lines_of_text_get_a_legend(compared):
    from matplotlib.legend import Legend

    compared.scores = compared.scores.query("model == 'egn'")
    every = [compared.scores.assign(model=f"model {i}") for i in range(30)]
    compared.scores = pd.concat(every, ignore_index=True)
    figure = pl.gene_scores(None, key=compared, genes=["GENE3"], return_fig=True)
    (ax,) = figure.axes
    figure.canvas.draw()
    legends = ax.findobj(Legend)
    assert sorted(len(legend.get_texts()) for legend in legends) == [1, 30]
    for legend in legends:
        box = legend.get_window_extent()
        assert box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1


def test_picture_of_curves(compared, looks_the_same):
    looks_the_same(pl.gene_scores(None, key=compared, genes=["GENE3", "GENE40"], return_fig=True), "curves")
