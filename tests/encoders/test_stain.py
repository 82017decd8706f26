import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from gdml.encoders import _stain_kernel as kernel
from gdml.encoders import get_encoder

ENCODER = get_encoder("stain")


def random_tiles(seed: int, n: int = 1) -> np.ndarray:
    """Blurred noise in the colours of H&E, with some glass."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(n, 224, 224, 3)), (0, 3, 3, 0))
    noise = noise / noise.std() * 40 + np.array([170, 110, 160]) + rng.normal(size=(n, 1, 1, 3)) * 10
    noise[:, :40, :50] = 250
    return noise.clip(0, 255).astype(np.uint8)


def encode(tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tokens, pooled = ENCODER.encode(torch.from_numpy(np.ascontiguousarray(tiles)))
    return tokens.numpy(), pooled.numpy()


def over_cells(a: np.ndarray) -> np.ndarray:
    """Sum of px over each cell, whatever the size of a px."""
    per = len(a) // 7
    return a.reshape(7, per, 7, per).sum((1, 3)).reshape(49) * (32 // per) ** 2


def test_shapes_and_pooled():
    tokens, pooled = encode(random_tiles(0, 3))
    assert tokens.shape == (3, 50, ENCODER.dim) and tokens.dtype == np.float32
    assert ENCODER.dim == len(set(ENCODER.feature_names)) and ENCODER.dim % 8 == 0
    np.testing.assert_array_equal(pooled, tokens[:, 0])


def named(tokens: np.ndarray) -> pd.DataFrame:
    """Tokens of a tile as a table, the whole tile first."""
    return pd.DataFrame(tokens, columns=list(ENCODER.feature_names))


def test_sums_match_a_plain_reference():
    tile = random_tiles(1)[0]
    sums = kernel.tile_sums(tile)
    density = -np.log10((tile.astype(float) + 1) / 256)
    h, e, rest = np.moveaxis(density @ kernel.UNMIX.astype(float), -1, 0)
    rest = rest.clip(-kernel.MAX_RESIDUAL, kernel.MAX_RESIDUAL)
    np.testing.assert_allclose(sums[:, kernel.RESIDUAL], over_cells(rest), rtol=2e-3, atol=0.02)
    od = density.mean(-1)
    for level in range(kernel.LEVELS):
        close = {"rtol": 2e-3, "atol": 0.02}
        np.testing.assert_allclose(sums[:, kernel.SQUARES_H + level], over_cells(h * h), **close)
        np.testing.assert_allclose(sums[:, kernel.SQUARES_E + level], over_cells(e * e), **close)
        np.testing.assert_allclose(sums[:, kernel.PRODUCTS + level], over_cells(h * e), **close)
        if level in (0, 2, 4):
            np.testing.assert_array_equal(
                sums[:, kernel.WHITE + level // 2], over_cells((od < kernel.OD_WHITE).astype(int))
            )
        if level <= 2:
            gy, gx = (2 * g for g in np.gradient(od))
            inner = np.zeros_like(od)
            inner[1:-1, 1:-1] = (gx**2 + gy**2)[1:-1, 1:-1]
            np.testing.assert_allclose(sums[:, kernel.GRADIENT + level], over_cells(inner), **close)
        if level == 1:
            nuclei, tissue = h > kernel.OD_NUCLEUS, od >= kernel.OD_WHITE
            np.testing.assert_allclose(sums[:, kernel.NUCLEI], over_cells(nuclei.astype(int)), atol=4)
            np.testing.assert_allclose(sums[:, kernel.NUCLEI + 2], over_cells(nuclei * e), atol=1.5)
            np.testing.assert_allclose(sums[:, kernel.TISSUE + 1], over_cells(tissue * h), atol=1)
            counts = np.histogram(h.clip(0, kernel.MAX_OD - 1e-6), kernel.BINS, (0, kernel.MAX_OD))[0] * 4
            assert np.abs(sums[:, kernel.HIST_H : kernel.HIST_H + kernel.BINS].sum(0) - counts).sum() < 40
        if level == 2:
            dense = h > 1.25 * max(h.mean(), 0.1)
            for step in range(4):
                np.testing.assert_array_equal(sums[:, kernel.CORES + step], over_cells(dense.astype(int)))
                dense = ndimage.binary_erosion(dense, border_value=1)
        if level == kernel.LEVELS - 1:
            break
        h, e, od = (a.reshape(len(a) // 2, 2, -1, 2).mean((1, 3)) for a in (h, e, od))


def test_blobs_are_counted():
    centres = np.array([(40, 40), (40, 100), (100, 60), (150, 150), (180, 60)])
    y, x = np.mgrid[:224, :224]
    bump = sum(np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 6**2)) for cy, cx in centres)
    tile = (np.array([230, 200, 225]) - bump[..., None] * np.array([150, 150, 90])).clip(0, 255).astype(np.uint8)
    sums = kernel.tile_sums(tile)
    assert sums[:, kernel.BLOBS].sum() == len(centres)
    assert set(np.flatnonzero(sums[:, kernel.BLOBS])) == {cy // 32 * 7 + cx // 32 for cy, cx in centres}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@example(96, 1)
def test_turning_the_tile_permutes_the_cells(seed, turns):
    tiles = random_tiles(seed)
    tokens, turned = encode(tiles)[0][0], encode(np.rot90(tiles, turns, (1, 2)))[0][0]
    # A px at the threshold of dense stain may fall on its other side, as sums of floats depend on their order: one px moves
    # no statistic of the tile by 0.01, but several of its cell.
    dense = np.array([name.startswith("dense_") for name in ENCODER.feature_names])
    np.testing.assert_allclose(turned[0], tokens[0], atol=1e-2)
    grid, cells = np.rot90(tokens[1:].reshape(7, 7, -1), turns), turned[1:].reshape(7, 7, -1)
    np.testing.assert_allclose(cells[..., ~dense], grid[..., ~dense], atol=0.1)
    assert (np.abs(cells - grid)[..., dense] > 0.1).any(2).sum() <= 4


@pytest.mark.parametrize("flip", [np.fliplr, np.flipud])
def test_flipping_the_tile_changes_nothing_about_it(flip):
    tile = random_tiles(3)[0]
    tokens, flipped = encode(tile[None])[0][0], encode(flip(tile)[None])[0][0]
    np.testing.assert_allclose(flipped[0], tokens[0], atol=2e-3)
    np.testing.assert_allclose(flipped[1:].reshape(7, 7, -1), flip(tokens[1:].reshape(7, 7, -1)), atol=2e-2)


def test_the_names_are_those_of_the_columns():
    tiles = np.full((4, 224, 224, 3), (210, 150, 195), np.uint8)
    y, x = np.mgrid[:224, :224]
    tiles[1][(y // 16 + x // 16) % 2 == 0] = 255  # lumen
    tiles[2][np.hypot(y % 56 - 28, x % 56 - 28) < 6] = (90, 60, 140)  # 16 nuclei
    tiles[3] = (240, 90, 150)  # eosin
    plain, lumen, nuclei, eosin = (named(tokens).iloc[0] for tokens in encode(tiles)[0])
    assert lumen["white_1px"] > plain["white_1px"] + 1 and lumen["white_16px"] > plain["white_16px"] + 1
    assert nuclei["nuclei_number"] > plain["nuclei_number"] + 1 and nuclei["nuclei_medium"] > plain["nuclei_medium"] + 1
    assert nuclei["nuclei_large"] == plain["nuclei_large"]
    assert nuclei["haematoxylin_peaks"] > plain["haematoxylin_peaks"] + 0.5
    assert nuclei["gradient_1px"] > plain["gradient_1px"] + 0.5
    assert eosin["tissue_eosin"] > plain["tissue_eosin"] + 1
    assert eosin["haematoxylin_eosin_ratio"] < plain["haematoxylin_eosin_ratio"]
    assert nuclei["pattern_0_of_8_4px"] < plain["pattern_0_of_8_4px"]


@settings(max_examples=25, deadline=None)
@given(
    arrays(np.uint8, (7, 7, 3), elements=st.sampled_from([0, 1, 60, 128, 200, 254, 255])),
    st.sampled_from([1, 4, 32]),
    st.integers(0, 60),
)
def test_any_tile_gives_finite_bounded_numbers(coarse, px, noise):
    """Flat tiles, glass, ink, checkerboards, and px much coarser than a cell."""
    tile = np.tile(coarse.repeat(px, 0).repeat(px, 1), (32 // px, 32 // px, 1)).astype(int)
    tile = tile + np.random.default_rng(0).integers(-noise, noise + 1, tile.shape)
    tokens, _ = encode(tile.clip(0, 255).astype(np.uint8)[None])
    assert np.isfinite(tokens).all() and np.abs(tokens).max() < 300


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(0, 255)] * 3))
def test_flat_tiles_give_finite_numbers(colour):
    tokens, _ = encode(np.full((1, 224, 224, 3), colour, np.uint8))
    assert np.isfinite(tokens).all() and np.abs(tokens).max() < 100


def test_each_tile_for_itself_and_threads_change_nothing():
    tiles = random_tiles(2, 4)
    together = encode(tiles)[0]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        np.testing.assert_array_equal(encode(tiles)[0], together)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(encode(tiles[2:3])[0], together[2:3])


@pytest.mark.parametrize("tiles", [torch.zeros(1, 200, 200, 3, dtype=torch.uint8), torch.zeros(1, 224, 224, 3)])
def test_refuses_other_tiles(tiles):
    with pytest.raises(ValueError, match="uint8 of shape"):
        ENCODER.encode(tiles)
