"""Local binary patterns that the stain encoder counts."""

import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import local_binary_pattern

from gdml.encoders import _pattern_kernel as patterns

AROUND = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]


def tissue(seed: int, blur: float = 6, strength: float = 1.0, contrast: float = 0.1) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(224, 224, 3)), (blur, blur, 0))
    density = strength * (0.4 + contrast * noise / noise.std()).clip(0.02, None)
    return (256 * 10**-density - 1).clip(0, 255).round().astype(np.uint8)


def averaged_density(tile: np.ndarray, step: int) -> np.ndarray:
    density = -np.log10((tile.astype(float) + 1) / 256).mean(-1)
    return density.reshape(224 // step, step, -1, step).mean((1, 3))


@pytest.mark.parametrize(("i", "step"), enumerate(patterns.STEPS))
def test_counts_match_a_plain_reference(i, step):
    tile = tissue(0)
    density = averaged_density(tile, step)
    bits = np.stack([np.roll(density, (-y, -x), (0, 1)) > density + patterns.MARGIN for y, x in AROUND])
    changes = (bits != np.roll(bits, 1, 0)).sum(0)
    code = np.where(changes <= 2, bits.sum(0), patterns.PATTERNS - 1)[1:-1, 1:-1]
    code = np.pad(code, 1, constant_values=-1)
    per = 32 // step
    cells = code.reshape(7, per, 7, per).swapaxes(1, 2).reshape(49, -1)
    expected = (cells[..., None] == np.arange(patterns.PATTERNS)).sum(1)
    assert np.abs(patterns.pattern_counts(tile)[:, i] - expected).sum() <= 0.02 * expected.sum()  # rounding to integers


def test_agrees_with_scikit_image():
    """It interpolates the diagonal px and knows no margin, so that only smooth tiles give the same."""
    tile = tissue(1, blur=8, contrast=0.3)
    levels = np.round(averaged_density(tile, 4) * 1e5).astype(int)
    theirs = np.bincount(local_binary_pattern(levels, 8, 1, "uniform")[1:-1, 1:-1].astype(int).ravel(), minlength=10)
    ours = patterns.pattern_counts(tile)[:, 0].sum(0)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9


@pytest.mark.parametrize("turn", [np.rot90, np.fliplr, np.flipud])
def test_turning_a_tile_changes_no_count(turn):
    tile = tissue(2, blur=1)
    counts = patterns.pattern_counts(tile).reshape(7, 7, -1)
    np.testing.assert_array_equal(patterns.pattern_counts(turn(tile)).reshape(7, 7, -1), turn(counts))


@pytest.mark.parametrize("strength", [0.75, 1.3])
def test_strength_of_the_stain_hardly_matters(strength):
    shares = [patterns.pattern_counts(tissue(3, strength=s)).sum(0) / 49 / 64 for s in (1.0, strength)]
    assert np.abs(shares[1] - shares[0]).max() < 0.04


def test_a_flat_tile_has_one_pattern():
    counts = patterns.pattern_counts(np.full((224, 224, 3), 180, np.uint8))
    np.testing.assert_array_equal(counts[:, :, 1:], 0)
    assert counts[:, 0].sum() == 54**2 and counts[:, 1].sum() == 26**2
