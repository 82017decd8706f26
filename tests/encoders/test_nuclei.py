"""Nuclei that the stain encoder counts, against scikit-image and drawn ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.draw import ellipse
from skimage.measure import label, regionprops

from gdml.encoders import _nuclei_kernel as nuclei
from gdml.encoders._stain_kernel import UNMIX

STAINS = np.linalg.inv(UNMIX)  # optical density of haematoxylin and eosin


def stained(haematoxylin: np.ndarray, eosin: float = 0.15, strength: float = 1.0) -> np.ndarray:
    """Draw a tile (224, 224, 3) with these optical densities of stain, (112, 112)."""
    density = strength * (haematoxylin[..., None] * STAINS[0] + eosin * STAINS[1])
    return (256 * 10**-density - 1).clip(0, 255).round().astype(np.uint8).repeat(2, 0).repeat(2, 1)


def drawn(shapes, pale: float = 0.1, dark: float = 0.6) -> np.ndarray:
    """Haematoxylin (112, 112) of ellipses (y, x, half axes, angle)."""
    h = np.full((112, 112), pale)
    for shape in shapes:
        h[ellipse(*shape[:4], shape=h.shape, rotation=shape[4] if len(shape) > 4 else 0)] = dark
    return h


def reference(mask: np.ndarray) -> np.ndarray:
    """Nuclei of each size by cell, by scikit-image."""
    counts = np.zeros((7, 7, nuclei.N_SIZES))
    for region in regionprops(label(mask, connectivity=1)):
        if nuclei.MIN_AREA <= region.area <= nuclei.MAX_AREA:
            size = np.searchsorted(nuclei.SIZES, region.area, side="right")
            np.add.at(counts[..., size], tuple(region.coords.T // 16), 1 / region.area)
    return counts.reshape(49, -1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.8, 4), st.floats(-0.5, 1.5))
def test_counts_match_scikit_image_on_random_blobs(seed, blur, level):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(112, 112)), blur)
    mask = noise > level * noise.std()
    counts = np.zeros((49, nuclei.N_SIZES))
    nuclei._count(mask.copy(), nuclei.SIZES, counts)
    np.testing.assert_allclose(counts, reference(mask), atol=1e-9)


def test_mask_matches_a_plain_reference():
    tile = stained(np.abs(ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(112, 112)), 3)) * 4)
    h = (-np.log10((tile[::2, ::2].astype(float) + 1) / 256) @ UNMIX.astype(float))[..., 0]

    def mean(half: int) -> np.ndarray:
        total, n = (ndimage.uniform_filter(a, 2 * half + 1, mode="constant") for a in (h, np.ones_like(h)))
        return total / n

    here = mean(1)
    expected = (here > 0.1) & (here > 1.1 * mean(8) + 0.02) & (here > mean(24))
    found = nuclei.nuclei_mask(tile)
    assert 0.05 < expected.mean() < 0.5 and (found != expected).mean() < 1e-3


def test_drawn_nuclei_are_counted_where_they_are_and_by_size():
    shapes = [(8, 8, 1.8, 1.8), (8, 40, 1.8, 1.8), (40, 40, 3.2, 3.2), (72, 72, 4.5, 4.5), (104, 40, 7, 7)]
    counts = nuclei.nuclei_counts(stained(drawn(shapes)))
    np.testing.assert_allclose(counts.sum(0), [2, 1, 1, 1], atol=1e-9)
    cells = [y // 16 * 7 + x // 16 for y, x, *_ in shapes]
    np.testing.assert_allclose(counts.sum(1)[cells], 1, atol=0.25)  # large ones reach into the next cell


def test_areas_are_those_drawn():
    h = drawn([(30, 30, 5, 5), (30, 80, 4, 8, 0.5), (80, 50, 6, 6)])
    place = lambda region: round(region.centroid[1])
    found = sorted(regionprops(label(nuclei.nuclei_mask(stained(h)), connectivity=1)), key=place)
    for got, true in zip(found, sorted(regionprops(label(h > 0.3)), key=place), strict=True):
        assert 0 <= np.sqrt(got.area / np.pi) - np.sqrt(true.area / np.pi) < 1  # it is found on a blurred tile
        np.testing.assert_allclose(got.centroid, true.centroid, atol=0.5)
        assert abs(got.eccentricity - true.eccentricity) < 0.1


def test_touching_nuclei_fall_apart_but_joined_px_are_one():
    chain = [(56, 30 + 11 * i, 5, 5) for i in range(5)]
    h = ndimage.gaussian_filter(drawn(chain), 1)
    assert nuclei.nuclei_counts(stained(h)).sum() == pytest.approx(5)
    joined = drawn([(56, 50, 4, 4), (56, 58, 4, 5)])
    assert nuclei.nuclei_counts(stained(joined)).sum() == pytest.approx(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.6, 1.6))
def test_strength_of_the_stain_hardly_matters(seed, strength):
    rng = np.random.default_rng(seed)
    centres = [
        (y + rng.integers(-3, 4), x + rng.integers(-3, 4)) for y in range(12, 112, 22) for x in range(12, 112, 22)
    ]
    h = ndimage.gaussian_filter(drawn([(*c, *rng.uniform(3, 6, 2), rng.uniform(0, 3)) for c in centres]), 0.7)
    before, after = (nuclei.nuclei_counts(stained(h, strength=s)).sum() for s in (1.0, strength))
    assert before == pytest.approx(25) and after == pytest.approx(25)


def test_nothing_is_found_on_glass_and_clumps_are_left_out():
    noise = np.random.default_rng(0).integers(235, 256, (224, 224, 3)).astype(np.uint8)
    assert nuclei.nuclei_counts(noise).sum() == 0
    assert nuclei.nuclei_counts(np.zeros((224, 224, 3), np.uint8)).sum() == 0
    assert nuclei.nuclei_counts(stained(drawn([(56, 56, 3, 50)]))).sum() == 0  # more than 400 px
    assert nuclei.nuclei_counts(stained(drawn([(56, 56, 3, 15)]))).sum() == pytest.approx(1)
