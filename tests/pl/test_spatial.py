import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.figure import Figure

from gdml import pl


def one(adata, slide="s1"):
    return adata[adata.obs["library_id"] == slide].copy()


def drawn(ax):
    return ax.collections[0]


def titles(ax):
    return ax.get_title(loc="left"), ax.get_title(loc="right")


@pytest.fixture
def visium():
    """Hexagonal grid, turned by 0.1 rad, pitch 100 px."""
    row, col = (x.ravel() for x in np.mgrid[:8, :8])
    obs = pd.DataFrame({"array_row": row, "array_col": 2 * col + row % 2}, index=[f"s{i}" for i in range(64)])
    made = ad.AnnData(obs=obs)
    turn = np.array([[np.cos(0.1), np.sin(0.1)], [-np.sin(0.1), np.cos(0.1)]])
    made.obsm["spatial"] = np.column_stack([obs["array_col"] * 50, obs["array_row"] * 50 * np.sqrt(3)]) @ turn + 400
    made.obsm["gdml"] = pd.DataFrame({"A": np.cos(row / 2.0)}, index=obs.index)
    made.uns["spatial"] = {"x": {"scalefactors": {"spot_diameter_fullres": 55.0}}}
    return made


def test_measured_stands_beside_predicted(adata):
    axes = pl.spatial_pred(one(adata), "A")
    assert [type(ax) for ax in axes] == [Axes, Axes]
    pcc = np.corrcoef(adata.obsm["gdml_measured"]["A"][:48], adata.obsm["gdml"]["A"][:48])[0, 1]
    assert titles(axes[0]) == ("A", "measured") and titles(axes[1]) == ("", f"predicted, PCC {pcc:.2f}")
    for ax, table in zip(axes, ("gdml_measured", "gdml"), strict=True):
        values = adata.obsm[table]["A"].to_numpy()[:48]
        np.testing.assert_allclose(drawn(ax).get_array(), (values - values.min()) / np.ptp(values))
        assert drawn(ax).get_clim() == (0, 1)
        bottom, top = ax.get_ylim()
        assert bottom > top and ax.get_aspect() == 1  # y down, as in the image


def test_negative_correlations_have_a_minus_sign(adata):
    assert titles(pl.spatial_pred(one(adata), "B")[1])[1] == "predicted, PCC \N{MINUS SIGN}1.00"


def test_without_scaling_both_share_one_scale(adata):
    axes = pl.spatial_pred(one(adata), "B", scale=None)
    both = np.r_[adata.obsm["gdml_measured"]["B"][:48], adata.obsm["gdml"]["B"][:48]]
    for ax in axes:
        assert drawn(ax).get_clim() == pytest.approx((both.min(), both.max()))


def test_robust_scale_ignores_a_single_spot(adata):
    adata = one(adata)
    adata.obsm["gdml"].iloc[3, 0] = 1e6
    shown = [
        np.asarray(drawn(pl.spatial_pred(adata, "A", scale=scale)[1]).get_array()) for scale in ("minmax", "robust")
    ]
    assert np.median(shown[0]) < 1e-3 and np.median(shown[1]) > 0.1


def test_grid_of_slides_and_genes(adata):
    axes = pl.spatial_pred(adata, ["A", "B"])
    assert len(axes) == 8
    assert [ax.get_ylabel() for ax in axes] == ["s1", "", "", "", "s2", "", "", ""]
    boxes = [ax.get_position() for ax in axes]
    assert boxes[0].y0 == boxes[2].y0 > boxes[4].y1 and boxes[0].x0 == boxes[4].x0 < boxes[1].x0 < boxes[2].x0
    assert len(pl.spatial_pred(adata, ["A", "B"], library_id="s2")) == 4


def test_texts_do_not_overlap(adata):
    figure = pl.spatial_pred(adata, ["A", "B"], scale=None, return_fig=True)
    figure.canvas.draw()
    shown = [t for ax in figure.axes for t in (ax.title, ax._left_title, ax._right_title, ax.yaxis.label, *ax.texts)]
    boxes = [t.get_window_extent() for t in shown if t.get_text()]
    assert len(boxes) > 12
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_predictions_or_measurements_alone(adata):
    assert [titles(ax) for ax in pl.spatial_pred(one(adata), "only-predicted")] == [("only-predicted", "predicted")]
    assert [titles(ax) for ax in pl.spatial_pred(one(adata), "only-measured")] == [("only-measured", "measured")]
    del adata.obsm["gdml_measured"]
    assert len(pl.spatial_pred(adata, ["A", "B"])) == 4


def test_genes_not_measured_on_a_slide_are_predicted_alone(adata):
    adata.obsm["gdml_measured"].loc[adata.obs["library_id"] == "s2", "A"] = np.nan
    assert [titles(ax)[1][:9] for ax in pl.spatial_pred(adata, "A")] == ["measured", "predicted", "predicted"]


def test_circles_have_the_true_diameter(adata):
    circles = drawn(pl.spatial_pred(one(adata), "A", size=1.5)[0])
    assert isinstance(circles, EllipseCollection)
    np.testing.assert_allclose(circles.get_widths(), 150)
    np.testing.assert_allclose(circles.get_offsets(), adata.obsm["spatial"][:48])


def test_hexagons_tile_the_plane(visium):
    hexagons = drawn(pl.spatial_pred(visium, "A")[0])
    assert isinstance(hexagons, PolyCollection)
    corners = np.stack([path.vertices[:6] for path in hexagons.get_paths()])
    np.testing.assert_allclose(corners.mean(1), visium.obsm["spatial"], atol=1e-6)
    middle = 3 * 8 + 3  # an inner spot: each of its corners is also one of two neighbours
    distance = np.linalg.norm(corners.reshape(-1, 1, 2) - corners[middle], axis=2)
    assert ((distance < 1e-6).sum(0) == 3).all()


def test_spots_without_grid_or_scale_factors_are_drawn(visium):
    bare = ad.AnnData(obs=pd.DataFrame(index=visium.obs_names), obsm={k: visium.obsm[k] for k in ("spatial", "gdml")})
    (ax,) = pl.spatial_pred(bare, "A")
    np.testing.assert_allclose(drawn(ax).get_widths(), 50, rtol=1e-6)
    assert not ax.lines and not ax.texts  # no scale, no bar
    assert len(pl.spatial_pred(bare[:1].copy(), "A")) == 1


def test_scale_bar_is_true(adata):
    adata.uns["spatial"]["s1"]["metadata"]["spot_pitch_um"] = 100.0  # 0.5 um per px
    (bar,) = pl.spatial_pred(one(adata), "A")[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(400)  # 200 um
    assert pl.spatial_pred(one(adata), "A")[0].texts[0].get_text() == "200 µm"
    adata.uns["gdml"] = {"tiles": {"slides": {"s1": {"um_per_px": 5.0}}}}  # what pp.tile found comes first
    assert pl.spatial_pred(one(adata), "A")[0].texts[0].get_text() == "2 mm"


def test_scale_of_a_visium_grid_is_known(visium):
    (bar,) = pl.spatial_pred(visium, "A")[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(200)  # pitch 100 px = 100 um


def test_own_axes_and_return_values(adata):
    import matplotlib.pyplot as plt

    figure, own = plt.subplots(1, 2)
    assert list(pl.spatial_pred(one(adata), "A", ax=own)) == list(own)
    assert pl.spatial_pred(one(adata), "A", ax=own, return_fig=True) is figure
    assert isinstance(pl.spatial_pred(one(adata), "A", return_fig=True), Figure)
    with pytest.raises(ValueError, match="`ax` holds 1 axes, but 2"):
        pl.spatial_pred(one(adata), "A", ax=own[0])


def test_different_scales_are_told(adata):
    adata.uns["gdml"] = {"normalization": {"log": "e"}, "predict": {"normalization": {"log": "10"}}}
    with pytest.warns(UserWarning, match="different scales.*gdml.tl.evaluate") as caught:
        pl.spatial_pred(one(adata), "A")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"genes": "only-measure"}, KeyError, "Did you mean 'only-measured'"),
        ({"genes": []}, ValueError, "`genes` is empty"),
        ({"library_id": "s3"}, KeyError, "unknown slide 's3'"),
        ({"shape": "hexagon"}, ValueError, "`shape` is 'hexagon'. Did you mean 'hex'"),
        ({"scale": "max"}, ValueError, "`scale`"),
        ({"size": 0}, ValueError, "`size`"),
        ({"key": "other"}, KeyError, "gdml.tl.predict"),
    ],
)
def test_bad_arguments(adata, kwargs, error, says):
    with pytest.raises(error, match=says):
        pl.spatial_pred(adata, **{"genes": "A"} | kwargs)


def test_slides_may_be_named_by_numbers(adata):
    adata.obs["library_id"] = np.repeat([6, 7], 48)
    adata.uns["spatial"] = {6: adata.uns["spatial"]["s1"], 7: adata.uns["spatial"]["s2"]}
    for named in (6, "6", [6]):
        axes = pl.spatial_pred(adata, "A", library_id=named)
        assert len(axes) == 2 and axes[0].texts[0].get_text()  # its scale factors are found
    with pytest.raises(KeyError, match="unknown slide '8'"):
        pl.spatial_pred(adata, "A", library_id=8)


def test_missing_image_is_told(adata):
    adata.uns["spatial"]["s1"]["images"] = {}
    with pytest.raises(KeyError, match="img=False"):
        pl.spatial_pred(one(adata), "A", img=True)


@pytest.mark.real
def test_real_section(her2st_section):
    import gdml

    gdml.pp.normalize(her2st_section, genes=["FASN", "GNAS"])
    her2st_section.obsm["gdml"] = her2st_section.obsm["gdml_measured"] * 0.5
    axes = pl.spatial_pred(her2st_section, ["FASN", "GNAS"], img=True)
    assert [titles(ax)[1] for ax in axes] == ["measured", "predicted, PCC 1.00"] * 2
    assert axes[0].texts[0].get_text() == "1 mm"
    assert len(axes[0].images) == 1


@pytest.mark.parametrize("img", [False, True])
def test_picture_of_circles(adata, looks_the_same, img):
    looks_the_same(pl.spatial_pred(one(adata), "A", img=img, return_fig=True), f"circles_{img}")


def test_picture_of_hexagons(visium, looks_the_same):
    looks_the_same(pl.spatial_pred(visium, "A", return_fig=True), "hexagons")
