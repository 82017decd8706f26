import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from gdml import pl
from gdml.slides import open_slide


@pytest.fixture(scope="module")
def scan():
    """Textured tissue in the left half of pale glass, 8 um per px; a blue stroke crosses the glass."""
    rng = np.random.default_rng(0)
    image = np.full((300, 400, 3), (236, 230, 238), float) + rng.normal(0, 1, (300, 400, 1))
    grain = rng.random((60, 80)).repeat(5, 0).repeat(5, 1)[..., None]
    image[:, :200] = (np.array([170, 90, 160]) + 90 * (grain - 0.5))[:, :200]
    image[100:140, 240:] = (40, 70, 190)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def grid(scan):
    """As gdml.pp.grid leaves it: a map coarser than the image, and tiles of 112 um on the tissue."""
    labels = np.zeros((30, 40), np.uint8)
    labels[:, :20] = 1
    labels[10:14, 24:] = 2
    x, y = (v.ravel() for v in np.meshgrid(np.arange(56.0, 800, 112), np.arange(56.0, 1200, 112)))
    made = ad.AnnData(obs=pd.DataFrame({"library_id": "s1"}, index=[f"t{i}" for i in range(len(x))]))
    made.obsm["spatial"] = np.column_stack([x, y])
    made.uns["spatial"] = {
        "s1": {
            "images": {"hires": scan},
            "scalefactors": {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 56.0},
        }
    }
    made.uns["gdml"] = {
        "tissue": {"s1": {"labels": labels, "source": "detected"}},
        "tiles": {"library_key": "library_id", "slides": {"s1": {"um_per_px": 2.0}}},
    }
    return made


def entries(ax):
    (legend,) = [child for child in ax.get_children() if isinstance(child, Legend)]
    return [text.get_text() for text in legend.get_texts()]


def test_classes_of_a_slide_and_their_shares(scan):
    (ax,) = pl.tissue(scan, um_per_px=8.0)
    assert isinstance(ax, Axes)
    names = {text.rsplit(" ", 2)[0]: float(text.split()[-2]) for text in entries(ax)}
    assert list(names) == ["tissue", "glass", "pen or ink"]
    assert names["tissue"] == pytest.approx(50, abs=2) and names["pen or ink"] == pytest.approx(6, abs=2)
    assert sum(names.values()) == pytest.approx(100, abs=0.2)
    he, tints = ax.images
    np.testing.assert_array_equal(he.get_array(), scan)
    tint = np.asarray(tints.get_array())
    assert tint[120, 300, 3] > 0.5 and tint[120, 100, 3] == tint[200, 300, 3] == 0
    assert he.get_extent() == tints.get_extent() == [0, 400, 300, 0]


def test_outline_runs_around_the_tissue(scan):
    (ax,) = pl.tissue(scan, um_per_px=8.0)
    (outline,) = [one for one in ax.collections if not isinstance(one, PolyCollection)]
    corners = np.concatenate([path.vertices for path in outline.get_paths()])
    np.testing.assert_allclose(corners.min(0), 0, atol=1)
    np.testing.assert_allclose(corners.max(0), [200, 300], atol=4)


def test_scale_bar(scan):
    (ax,) = pl.tissue(scan, um_per_px=8.0)
    (bar,) = ax.lines
    assert np.ptp(bar.get_xdata()) == pytest.approx(500 / 8) and ax.texts[0].get_text() == "500 µm"
    assert not pl.tissue(scan)[0].lines  # unknown scale


def test_slides_whose_origin_is_elsewhere(scan):
    from gdml.slides.scaled import ScaledSlide

    (ax,) = pl.tissue(ScaledSlide(open_slide(scan), 0.5, um_per_px=4.0, origin=(1000.0, 50.0)))
    assert ax.get_xlim() == (1000, 1800) and ax.get_ylim() == (650, 50)


def test_a_slide_without_tissue_is_shown():
    (ax,) = pl.tissue(np.full((300, 300, 3), 240, np.uint8))
    assert entries(ax) == ["tissue 0.0 %", "glass 100.0 %"]


def test_tiles_of_a_grid(grid):
    (ax,) = pl.tissue(grid)
    assert entries(ax) == ["tissue 50.0 %", "glass 44.7 %", "pen or ink 5.3 %", "77 tiles"]
    (tiles,) = [one for one in ax.collections if isinstance(one, PolyCollection)]
    np.testing.assert_allclose(tiles.get_paths()[0].vertices[:4], [[28, 28], [84, 28], [84, 84], [28, 84]])
    assert ax.images[0].get_extent() == [0, 1600, 1200, 0] and ax.texts[0].get_text() == "500 µm"


def test_several_slides(grid):
    both = grid.copy()
    both.uns["gdml"]["tissue"]["2"] = {"labels": np.ones((1, 1), np.uint8), "source": "all"}
    both.uns["spatial"]["2"] = grid.uns["spatial"]["s1"]
    axes = pl.tissue(both)
    assert [ax.get_title(loc="left") for ax in axes] == ["s1", "2"]
    assert entries(axes[1]) == ["tissue 100.0 %"]
    assert len(pl.tissue(both, library_id=2)) == 1


def test_own_axes_and_return_values(grid):
    import matplotlib.pyplot as plt

    figure, own = plt.subplots()
    assert list(pl.tissue(grid, ax=own)) == [own]
    assert pl.tissue(grid, ax=own, return_fig=True) is figure
    assert isinstance(pl.tissue(grid, return_fig=True), Figure)
    with pytest.raises(ValueError, match="`ax` holds 2 axes, but 1"):
        pl.tissue(grid, ax=[own, own])


@pytest.mark.parametrize(
    ("change", "kwargs", "error", "says"),
    [
        (lambda a: a.uns.pop("gdml"), {}, KeyError, "gdml.pp.grid"),
        (lambda a: a.uns["spatial"]["s1"]["images"].clear(), {}, KeyError, "no hires image.*gdml.pl.tissue"),
        (lambda a: None, {"library_id": "s2"}, KeyError, "Did you mean 's1'"),
        (lambda a: None, {"um_per_px": 2.0}, TypeError, "`um_per_px`"),
    ],
)
def test_bad_arguments(grid, change, kwargs, error, says):
    change(grid)
    with pytest.raises(error, match=says):
        pl.tissue(grid, **kwargs)


def test_library_of_a_plain_slide(scan):
    with pytest.raises(TypeError, match="`library_id` is 's1'"):
        pl.tissue(scan, library_id="s1")


def test_picture(grid, looks_the_same):
    grid.uns["gdml"]["tissue"]["s1"]["labels"][20:24, 4:16] = 3
    grid.uns["gdml"]["tissue"]["s1"]["labels"][4:8, 4:10] = 4
    looks_the_same(pl.tissue(grid, return_fig=True), "tissue")
