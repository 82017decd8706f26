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


def title(ax):
    """Lines above a map, from the first."""
    lines = [text for text in ax.texts if text.get_fontsize() == 7]
    return [text.get_text() for text in sorted(lines, key=lambda text: -text.xyann[1])]


def heading(ax):
    """Letter, gene and slide above the maps of a gene."""
    return [text.get_text() for text in ax.texts if text.get_fontsize() == 8]


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


def test_measured_stands_beside_predicted_on_one_scale(adata):
    adata.uns["gdml"] = {"predict": {"name": "ridge"}}
    axes = pl.spatial_pred(one(adata), "A")
    assert [type(ax) for ax in axes] == [Axes, Axes]
    measured, predicted = (adata.obsm[table]["A"].to_numpy()[:48] for table in ("gdml_measured", "gdml"))
    assert heading(axes[0]) == ["A", "slide s1"] and not heading(axes[1])
    assert title(axes[0]) == ["measured", "48 spots"]
    pcc = np.corrcoef(measured, predicted)[0, 1]
    assert title(axes[1]) == ["predicted by ridge", f"PCC {pcc:.2f} over 48 spots"]
    for ax, values in zip(axes, (measured, predicted), strict=True):
        np.testing.assert_allclose(drawn(ax).get_array(), values)  # in their unit
        assert drawn(ax).get_clim() == drawn(axes[0]).get_clim()
        bottom, top = ax.get_ylim()
        assert bottom > top and ax.get_aspect() == 1  # y down, as in the image
    low, high = drawn(axes[0]).get_clim()
    both = np.r_[measured, predicted]
    assert both.min() <= low <= np.percentile(both, 5) and np.percentile(both, 95) <= high <= both.max()


def test_negative_correlations_have_a_minus_sign(adata):
    assert title(pl.spatial_pred(one(adata), "B")[1])[1] == "PCC \N{MINUS SIGN}1.00 over 48 spots"


def test_correlations_are_over_the_spots_with_both_values(adata):
    adata.obsm["gdml_measured"].iloc[:5, 0] = np.nan
    adata.obsm["gdml"].iloc[40:44, 0] = np.nan
    left, right = pl.spatial_pred(one(adata), "A")
    assert title(left)[1] == "43 spots" and title(right)[1].endswith("over 39 spots")


def test_each_map_on_its_own_scale_says_so(adata):
    adata.uns["gdml"] = {"normalization": {"log": "e"}}
    shared, each = (pl.spatial_pred(one(adata), "B", scale=scale) for scale in ("shared", "each"))
    assert [len(ax.child_axes) for ax in shared] == [0, 1] and [len(ax.child_axes) for ax in each] == [1, 1]
    for ax in (shared[1], *each):
        assert "ln(counts per 10,000 + 1)" in ax.child_axes[0].get_ylabel().replace("\n", " ")
    said = [text.get_text() for ax in each for text in ax.texts]
    assert "each map on its own scale" in said
    assert "each map on its own scale" not in [text.get_text() for ax in shared for text in ax.texts]
    measured, predicted = (adata.obsm[table]["B"][:48] for table in ("gdml_measured", "gdml"))
    assert drawn(each[0]).get_clim()[1] <= measured.max() and drawn(each[1]).get_clim()[0] >= predicted.min()


def test_single_spots_do_not_determine_the_scale(adata):
    many = ad.concat([one(adata)] * 5, index_unique="-", uns_merge="first")
    many.obsm["gdml"].iloc[3, 0] = 1e6
    ax = pl.spatial_pred(many, "A")[1]
    assert drawn(ax).get_clim()[1] < 2
    assert drawn(ax).colorbar.extend in ("max", "both")  # the bar is pointed where values lie beyond it


def test_a_constant_gene_is_drawn(adata):
    adata.obsm["gdml_measured"]["A"] = adata.obsm["gdml"]["A"] = 2.0
    axes = pl.spatial_pred(one(adata), "A")
    assert drawn(axes[0]).get_clim() == (1.5, 2.5) and title(axes[1])[1] == "PCC undefined over 48 spots"


def test_predictions_are_stretched_for_the_map_alone(adata):
    measured = adata.obsm["gdml_measured"]["A"].to_numpy()[:48]
    plain, wide = (pl.spatial_pred(one(adata), "A", spread=spread)[1] for spread in (None, "measured"))
    before, after = (np.asarray(drawn(ax).get_array()) for ax in (plain, wide))
    assert np.std(after) == pytest.approx(np.std(measured)) and np.std(before) < 0.6 * np.std(measured)
    assert np.mean(after) == pytest.approx(np.mean(before))
    assert title(wide)[1] == title(plain)[1]  # the same score
    factor = np.std(measured) / np.std(before)
    assert " ".join(title(wide)[2:]) == f"spread as measured (×{factor:.1f})" and len(title(plain)) == 2


def test_stretched_counts_are_not_negative(adata):
    adata.obsm["gdml_measured"]["A"] = adata.obsm["gdml_measured"]["A"] + 1.0
    adata.obsm["gdml"]["A"] = 0.1 + 0.05 * adata.obsm["gdml_measured"]["A"]
    assert np.asarray(drawn(pl.spatial_pred(one(adata), "A", spread="measured")[1]).get_array()).min() == 0


def test_a_spread_that_was_not_measured_is_refused(adata):
    adata.obsm["gdml_measured"].loc[adata.obs["library_id"] == "s2", "A"] = np.nan
    with pytest.raises(ValueError, match="'A' was not measured on slide 's2'"):
        pl.spatial_pred(adata, "A", spread="measured")
    pl.spatial_pred(adata, "A", spread="measured", library_id="s1")  # the call that the message names


@pytest.mark.parametrize("where", ["uns", "var"])
def test_predictions_alone_say_what_they_are_worth(adata, where):
    adata = ad.AnnData(var=pd.DataFrame(index=["A", "B"]), obs=adata.obs, obsm=dict(adata.obsm), uns=dict(adata.uns))
    table = pd.DataFrame({"warrant": ["carried by the image", "not shown"], "pcc_expected": [0.47, np.nan]}, ["A", "B"])
    adata.uns["gdml"] = {"predict": {"name": "ridge"} | ({"genes": table} if where == "uns" else {})}
    if where == "var":
        adata.var = table.add_prefix("gdml_")
    alone = adata.copy()
    del alone.obsm["gdml_measured"]
    first, second = pl.spatial_pred(one(alone), ["A", "B"])
    assert " ".join(title(first)) == "predicted by ridge, 48 spots carried by the image, expected PCC 0.47"
    assert " ".join(title(second)) == "predicted by ridge, 48 spots not shown to be carried by the image"
    assert "expected" not in " ".join(title(pl.spatial_pred(one(adata), "A")[1]))  # measured: the score itself
    assert " ".join(title(pl.spatial_pred(one(alone), "only-predicted")[0])) == "predicted by ridge, 48 spots"


def test_each_slide_begins_a_row(adata):
    axes = pl.spatial_pred(adata, ["A", "B", "A"])
    assert len(axes) == 12
    assert [heading(ax) for ax in axes[::2]] == [
        [letter, gene, slide]
        for letter, gene, slide in zip("abcdef", "ABAABA", ["slide s1"] * 3 + ["slide s2"] * 3, strict=True)
    ]
    boxes = [ax.get_position() for ax in axes]
    rows = [boxes[0:4], boxes[4:6], boxes[6:10], boxes[10:]]  # two genes, one more, and the next slide
    for row in rows:
        assert np.ptp([box.y1 for box in row]) < 1e-9
        np.testing.assert_allclose([box.x0 for box in row], [box.x0 for box in boxes[: len(row)]])
    assert all(upper[0].y0 > lower[0].y1 for upper, lower in zip(rows, rows[1:], strict=False))
    assert len(pl.spatial_pred(adata, ["A", "B"], library_id="s2")) == 4


def in_mm(figure):
    return figure.get_size_inches() * 25.4


@pytest.mark.parametrize(
    ("genes", "slides", "options", "width"),
    [
        ("A", "s1", {}, 85),
        ("A", "s1", {"scale": "each"}, 85),
        (["A", "B"], "s1", {}, 180),
        (["A", "B"], "s1", {"ncols": 1}, 85),
        (["A", "B", "A"], "s1", {"ncols": 3}, 180),
        ("A", ["s1", "s2"], {}, 180),
        ("only-predicted", ["s1", "s2"], {}, 180),
        (["A", "B", "A"], "s2", {"scale": "each"}, 180),
    ],
)
def test_figures_have_the_width_of_a_column_or_a_page(adata, genes, slides, options, width):
    from matplotlib.text import Text

    figure = pl.spatial_pred(adata, genes, library_id=slides, return_fig=True, **options)
    assert in_mm(figure)[0] == pytest.approx(width)
    sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes) >= 6 and max(sizes) <= 8


@pytest.mark.parametrize("options", [{}, {"scale": "each"}, {"spread": "measured"}, {"img": True, "scale": "each"}])
def test_texts_do_not_overlap(adata, options):
    adata.uns["gdml"] = {"predict": {"name": "a model with a long name", "protocol": "paper"}}
    figure = pl.spatial_pred(adata, ["A", "B"], return_fig=True, **options)
    figure.canvas.draw()
    bars = [child for ax in figure.axes for child in ax.child_axes]
    shown = [t for ax in figure.axes for t in ax.texts]
    shown += [bar.yaxis.label for bar in bars]
    for bar in bars:
        low, high = bar.get_ylim()
        labels = zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)
        shown += [label for tick, label in labels if low <= tick <= high]  # others are not drawn
    boxes = [t.get_window_extent() for t in shown if t.get_text()]
    assert len(boxes) > 40
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_letters_and_long_names(adata):
    adata.obs["library_id"] = adata.obs["library_id"].map({"s1": "a very long name of a slide " * 4, "s2": "s2"})
    del adata.uns["spatial"]
    first, _, second, _ = pl.spatial_pred(adata, "A", letters=False)
    assert heading(first)[1].endswith("…") and heading(second) == ["A", "slide s2"]
    assert heading(pl.spatial_pred(adata, "A", library_id="s2", letters=True)[0]) == ["a", "A", "slide s2"]
    from gdml.pl._spatial import _letter

    assert [_letter(i) for i in (0, 25, 26, 27, 52)] == ["a", "z", "aa", "ab", "ba"]


def test_predictions_or_measurements_alone(adata):
    assert [title(ax) for ax in pl.spatial_pred(one(adata), "only-predicted")] == [["predicted, 48 spots"]]
    assert [title(ax) for ax in pl.spatial_pred(one(adata), "only-measured")] == [["measured", "48 spots"]]
    del adata.obsm["gdml_measured"]
    assert len(pl.spatial_pred(adata, ["A", "B"])) == 4


def test_genes_not_measured_on_a_slide_are_predicted_alone(adata):
    adata.obsm["gdml_measured"].loc[adata.obs["library_id"] == "s2", "A"] = np.nan
    assert [title(ax)[0][:9] for ax in pl.spatial_pred(adata, "A")] == ["measured", "predicted", "predicted"]


@pytest.mark.parametrize(
    ("options", "diameter"),
    [
        ({}, 200),
        ({"img": True}, 100),
        ({"size": "true"}, 100),
        ({"img": True, "size": "touch"}, 200),
        ({"size": 1.5}, 150),
    ],
)
def test_circles_touch_or_have_the_true_diameter(adata, options, diameter):
    circles = drawn(pl.spatial_pred(one(adata), "A", **options)[0])
    assert isinstance(circles, EllipseCollection)
    np.testing.assert_allclose(circles.get_widths(), diameter, rtol=1e-6)
    np.testing.assert_allclose(circles.get_offsets(), adata.obsm["spatial"][:48])


def test_many_spots_touch_over_the_image_too(adata, monkeypatch):
    widths = lambda: drawn(pl.spatial_pred(one(adata), "A", img=True)[0]).get_widths()
    few = widths()
    monkeypatch.setattr("gdml.pl._spots.LEGIBLE", 47)  # one less than there are
    assert (widths() > 1.5 * few).all()
    monkeypatch.setattr("gdml.pl._spots.LEGIBLE", 48)
    assert (widths() == few).all()


def test_spots_of_visium_have_55_um_at_their_true_size(visium):
    visium.uns["spatial"]["x"]["scalefactors"]["spot_diameter_fullres"] = 65.0  # as Space Ranger writes
    circles = drawn(pl.spatial_pred(visium, "A", size="true")[0])
    assert isinstance(circles, EllipseCollection)
    np.testing.assert_allclose(circles.get_widths(), 55, rtol=1e-6)


@pytest.mark.parametrize(("img", "opacity"), [(True, 0.5), (0.8, 0.8), (1, 1.0)])
def test_the_image_is_faded(adata, img, opacity):
    ax = pl.spatial_pred(one(adata), "A", img=img)[0]
    assert ax.images[0].get_alpha() == opacity
    assert not pl.spatial_pred(one(adata), "A")[0].images


def test_colours_stand_off_the_stains():
    """Of light to dark, in even steps, and far from haematoxylin and eosin, faded or not."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    from gdml.pl._expression_colors import EXPRESSION

    lab = rgb2lab(EXPRESSION(np.linspace(0, 1, 33))[None, :, :3])[0]
    steps = np.diff(lab[:, 0])
    assert (steps < 0).all() and steps.min() > 1.5 * steps.mean()
    stains = np.array([[53, 14, -23], [51, 32, -14], [63, 17, -17]])  # medians of HER2ST C2, the colon and the bulb
    faded = stains * 0.5 + np.array([50, 0, 0])
    for tissue in (stains, faded):
        assert deltaE_ciede2000(lab[:, None], tissue[None].astype(float)).min() > 30


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
    np.testing.assert_allclose(drawn(ax).get_widths(), 100, rtol=1e-6)
    assert not ax.lines  # no scale, no bar
    assert heading(ax) == ["A"]  # a slide without a name
    assert len(pl.spatial_pred(bare[:1].copy(), "A")) == 1


def test_scale_bar_is_true(adata):
    adata.uns["spatial"]["s1"]["metadata"]["spot_pitch_um"] = 100.0  # 0.5 um per px
    (bar,) = pl.spatial_pred(one(adata), "A")[0].lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(400)  # 200 um
    assert pl.spatial_pred(one(adata), "A")[0].texts[-1].get_text() == "200 µm"
    adata.uns["gdml"] = {"tiles": {"slides": {"s1": {"um_per_px": 5.0}}}}  # what pp.tile found comes first
    assert pl.spatial_pred(one(adata), "A")[0].texts[-1].get_text() == "2 mm"


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
        ({"scale": "minmax"}, ValueError, "`scale` is 'minmax'; it must be 'shared'"),
        ({"spread": "training"}, ValueError, "`spread`"),
        ({"size": 0}, ValueError, "`size`"),
        ({"size": "tuch"}, ValueError, "`size` is 'tuch'. Did you mean 'touch'"),
        ({"img": 1.5}, ValueError, "`img` is 1.5"),
        ({"img": "yes"}, TypeError, "`img` must be a number, found 'yes'"),
        ({"cmap": "virids"}, ValueError, "`cmap` is 'virids'. Did you mean 'viridis'"),
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
        assert len(axes) == 2 and axes[0].lines  # its scale factors are found
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
    scored = ["predicted", f"PCC 1.00 over {her2st_section.n_obs} spots"]
    assert [title(ax) for ax in axes] == [["measured", f"{her2st_section.n_obs} spots"], scored] * 2
    assert axes[0].texts[-1].get_text() == "1 mm"
    assert len(axes[0].images) == 1


@pytest.mark.parametrize("img", [False, True])
def test_picture_of_circles(adata, looks_the_same, img):
    looks_the_same(pl.spatial_pred(one(adata), "A", img=img, return_fig=True), f"circles_{img}")


def test_picture_of_hexagons(visium, looks_the_same):
    looks_the_same(pl.spatial_pred(visium, "A", return_fig=True), "hexagons")
