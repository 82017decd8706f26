import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from gdml import pl

N = 60


@pytest.fixture
def shared():
    """Three groups that lie apart, each expression profile near its image."""
    rng = np.random.default_rng(0)
    group = np.arange(N) % 3
    image = np.eye(3, 8)[group] * 3 + rng.normal(0, 0.4, (N, 8))
    profile = image + rng.normal(0, 0.1, (N, 8))
    obs = pd.DataFrame({"patient": pd.Categorical.from_codes(group, list("ABC")), "total": np.arange(N)})
    obs.index = [f"s{i}" for i in range(N)]
    made = ad.AnnData(obs=obs)
    made.obsm["X_gdml"] = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    made.obsm["X_gdml_expression"] = (profile / np.linalg.norm(profile, axis=1, keepdims=True)).astype(np.float32)
    return made


def points(ax):
    images, profiles = [c for c in ax.collections if isinstance(c, PathCollection)]
    return images, profiles


def legends(ax):
    return [[text.get_text() for text in legend.get_texts()] for legend in ax.findobj(Legend)]


def test_images_are_filled_and_expression_is_hollow(shared):
    ax = pl.embedding(shared, color="patient", method="pca")
    images, profiles = points(ax)
    assert len(images.get_offsets()) == len(profiles.get_offsets()) == N
    assert len(profiles.get_facecolor()) == 0 and len(images.get_facecolor()) == N
    assert {to_hex(c) for c in images.get_facecolor()} == {to_hex(c) for c in profiles.get_edgecolor()}
    assert legends(ax) == [["image", "expression"], ["A", "B", "C"]]
    assert ax.get_aspect() == 1 and not len(ax.get_xticks()) and ax.get_xlabel().startswith("PC1 (")


def test_both_are_mapped_together(shared):
    ax = pl.embedding(shared, method="pca")
    joint = np.concatenate([shared.obsm["X_gdml"], shared.obsm["X_gdml_expression"]])
    values = np.linalg.eigvalsh(np.cov(joint.T))[::-1]
    xy = np.concatenate([kind.get_offsets() for kind in points(ax)])
    np.testing.assert_allclose(np.cov(xy.T), np.diag(values[:2]), atol=1e-6)
    assert ax.get_xlabel() == f"PC1 ({100 * values[0] / values.sum():.0f} %)"
    assert legends(ax) == [["image", "expression"]]


@pytest.mark.slow  # numba compiles umap-learn
def test_umap_keeps_groups_together_and_is_seeded(shared):
    images, _ = points(pl.embedding(shared, color="patient"))
    again, _ = points(pl.embedding(shared, color="patient"))
    np.testing.assert_array_equal(images.get_offsets(), again.get_offsets())
    xy, color = np.asarray(images.get_offsets()), images.get_facecolor()
    distance = np.linalg.norm(xy[:, None] - xy, axis=2) + np.diag(np.full(N, np.inf))
    assert (color[distance.argmin(1)] == color).all(1).mean() > 0.9
    other, _ = points(pl.embedding(shared, color="patient", seed=1))
    assert not np.array_equal(np.sort(images.get_offsets(), 0), np.sort(other.get_offsets(), 0))


def test_nothing_is_written(shared):
    before = shared.copy()
    pl.embedding(shared, color="patient", pairs=True, method="pca")
    assert shared.obsm.keys() == before.obsm.keys() and not shared.uns and list(shared.obs) == list(before.obs)
    np.testing.assert_array_equal(shared.obsm["X_gdml"], before.obsm["X_gdml"])


def test_spots_without_embedding_are_left_out(shared):
    shared.obsm["X_gdml"][:10] = np.nan
    shared.obsm["X_gdml_expression"][5:30, 0] = np.nan
    ax = pl.embedding(shared, method="pca", pairs=20, color="patient")
    images, profiles = points(ax)
    assert (len(images.get_offsets()), len(profiles.get_offsets())) == (50, 35)
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert len(lines.get_segments()) == 20
    color = {tuple(xy): to_hex(c) for xy, c in zip(images.get_offsets().data, images.get_facecolor(), strict=True)}
    color |= {tuple(xy): to_hex(c) for xy, c in zip(profiles.get_offsets().data, profiles.get_edgecolor(), strict=True)}
    for start, end in lines.get_segments():  # an image and an expression profile of one spot
        assert color[tuple(start)] == color[tuple(end)] and np.linalg.norm(start - end) < 0.5


def test_expression_is_optional(shared):
    ax = pl.embedding(shared, method="pca", expression=False, color="patient")
    assert [len(kind.get_offsets()) for kind in points(ax)] == [N, 0] and legends(ax) == [["A", "B", "C"]]
    del shared.obsm["X_gdml_expression"]
    assert legends(pl.embedding(shared, method="pca")) == [["image"]]
    shared.obsm["other"] = shared.obsm["X_gdml"]
    assert len(points(pl.embedding(shared, method="pca", expression="other"))[1].get_offsets()) == N


def test_colours_of_scanpy_come_first(shared):
    shared.uns["patient_colors"] = ["#111111", "#222222", "#333333"]
    images, _ = points(pl.embedding(shared, color="patient", method="pca"))
    assert {to_hex(c) for c in images.get_facecolor()} == {"#111111", "#222222", "#333333"}
    shared.uns["patient_colors"] = ["#111111"]  # of other categories: not enough
    images, _ = points(pl.embedding(shared, color="patient", method="pca"))
    assert {to_hex(c) for c in images.get_facecolor()} == {"#0072b2", "#e69f00", "#009e73"}


@pytest.mark.parametrize("n", [7, 25, 40, 110])
def test_any_number_of_categories(shared, n):
    rows = np.arange(2 * n) % N
    big = ad.AnnData(
        obs=pd.DataFrame(index=[f"s{i}" for i in range(2 * n)]), obsm={k: v[rows] for k, v in shared.obsm.items()}
    )
    big.obs["cluster"] = pd.Categorical.from_codes(np.r_[-1, np.arange(1, 2 * n) % n], range(n))
    figure = pl.embedding(big, color="cluster", method="pca", return_fig=True)
    figure.canvas.draw()
    (ax,) = figure.axes
    assert legends(ax)[1] == [*map(str, range(n)), "NA"]
    for legend in ax.findobj(Legend):
        box = legend.get_window_extent()
        assert box.x1 <= figure.bbox.x1 + 1 and box.y0 >= 0
    assert ax.get_window_extent().width > 250


def test_numbers_get_a_colour_bar(shared):
    shared.obs["total"] = shared.obs["total"].astype(float)
    shared.obs.iloc[3, 1] = np.nan
    figure = pl.embedding(shared, color="total", method="pca", return_fig=True)
    ax, bar = figure.axes[0], figure.axes[0].child_axes[0]
    assert bar.get_ylabel() == "total" and bar.get_ylim() == (0, N - 1) and legends(ax) == [["image", "expression"]]
    images, _ = points(ax)
    assert "#d3d3d3" in {to_hex(c) for c in images.get_facecolor()}
    shared.obs["flag"] = shared.obs["patient"] == "A"
    assert legends(pl.embedding(shared, color="flag", method="pca"))[1] == ["False", "True"]


def test_return_values(shared):
    figure, own = plt.subplots()
    assert pl.embedding(shared, method="pca", ax=own) is own
    assert pl.embedding(shared, method="pca", ax=own, return_fig=True) is figure
    assert isinstance(pl.embedding(shared, method="pca", return_fig=True), Figure)


@pytest.mark.parametrize(
    ("kwargs", "error", "says"),
    [
        ({"basis": "X_gdlm"}, KeyError, "`basis` is 'X_gdlm'.*gdml.tl.predict.*Did you mean 'X_gdml"),
        ({"expression": "X_gdml_expresion"}, KeyError, "`expression`.*Did you mean 'X_gdml_expression'"),
        ({"expression": "narrow"}, ValueError, "8 columns and .*'narrow'.* 3"),
        ({"basis": "flat"}, ValueError, r"shape \(60, 1\)"),
        ({"color": "pateint"}, KeyError, "Did you mean 'patient'"),
        ({"method": "tsne"}, ValueError, "`method` is 'tsne'"),
        ({"color": "total", "cmap": "virids"}, ValueError, "Did you mean 'viridis'"),
        ({"pairs": True, "expression": False}, KeyError, "gdml.tl.retrieve"),
        ({"basis": "empty", "expression": False}, ValueError, "0 rows without NaN"),
        ({"size": "3"}, TypeError, "`size` must be a number, found '3'"),
        ({"pairs": "10"}, TypeError, "`pairs` must be a whole number .*found '10'"),
        ({"seed": "0"}, TypeError, "`seed` must be a whole number"),
        ({"ax": []}, ValueError, "`ax` holds 0 axes, but 1"),
    ],
)
def test_bad_arguments(shared, kwargs, error, says):
    shared.obsm["narrow"], shared.obsm["flat"] = np.zeros((N, 3)), np.zeros((N, 1))
    shared.obsm["empty"] = np.full((N, 8), np.nan)
    with pytest.raises(error, match=says):
        pl.embedding(shared, **{"method": "pca"} | kwargs)


def test_picture_of_an_embedding(shared, looks_the_same):
    figure = pl.embedding(shared, color="patient", method="pca", pairs=True, return_fig=True)
    looks_the_same(figure, "embedding")
