import errno
import pickle
import threading
import warnings
from contextlib import closing
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import gdml
from gdml._marker import marked
from gdml.encoders import CustomEncoder, get_encoder
from gdml.features import FeatureStore, TileBank, open_path
from gdml.features.store import read_head
from gdml.features.tiles import distinct_tiles
from gdml.pp import _memory, load_features
from gdml.pp._read_ahead import read_ahead
from gdml.pp._tokens import thin_tokens
from gdml.pp.stores import has_features
from gdml.slides.neighbors import neighbor_tiles
from gdml.spots.features import bank_rows
from gdml.spots.resolve import Spots

SIDE = 16  # px of a tile, in the image and for the encoder


class Mean:
    """Mean colour, the number of its calls counted."""

    name, identity, dim, tile_px = "mean", "mean-1", 3, SIDE

    def __init__(self):
        self.tiles = 0
        self.fail_after = None

    def encode(self, tiles):
        assert tiles.dtype == torch.uint8 and tiles.shape[1:] == (SIDE, SIDE, 3)
        self.tiles += len(tiles)
        if self.fail_after is not None and self.tiles > self.fail_after:
            raise RuntimeError("power cut")
        pooled = tiles.float().mean((1, 2))
        return pooled[:, None], pooled

    def to(self, device):
        return self


def image(seed=0, size=(160, 200)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def spots(n=12, library="A", seed=0):
    rng = np.random.default_rng(seed)
    xy = rng.integers([8, 8], [192, 152], (n, 2)).astype(float)
    obs = pd.DataFrame({"library_id": pd.Categorical([library] * n)}, index=[f"{library}{i}" for i in range(n)])
    return ad.AnnData(np.ones((n, 2), np.float32), obs=obs, obsm={"spatial": xy})


def tiled(adata=None, images=None, **kwargs):
    adata = spots() if adata is None else adata
    images = {"A": image()} if images is None else images
    gdml.pp.tile(adata, **{"tile_um": None, "tile_px": SIDE, "n_side": 3, "image": images, **kwargs})
    return adata, images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path)


def test_values_against_a_plain_loop():
    adata, images = tiled()
    gdml.pp.embed(adata, Mean(), image=images)
    features = load_features(adata)["A"]
    mask = adata.obsm["gdml_neighbor_mask"]
    assert not mask.all() and mask[:, 4].all()
    for i, (x, y) in enumerate(adata.obsm["spatial"].astype(int)):
        for k in range(9):
            top, left = y - SIDE // 2 + (k // 3 - 1) * SIDE, x - SIDE // 2 + (k % 3 - 1) * SIDE
            expected = np.zeros(3)
            if k == 4 or (top >= 0 and left >= 0 and top + SIDE <= 160 and left + SIDE <= 200):
                canvas = np.full((SIDE, SIDE, 3), 255.0)
                inside = images["A"][max(top, 0) : top + SIDE, max(left, 0) : left + SIDE]
                canvas[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
                expected = canvas.mean((0, 1))
            np.testing.assert_allclose(features.neighbors[i, k], expected, rtol=2e-3, err_msg=f"{i} {k}")
    np.testing.assert_array_equal(features.pooled, features.neighbors[:, 4])
    np.testing.assert_array_equal(adata.obsm["X_mean"], features.pooled)
    assert adata.obsm["X_mean"].dtype == np.float32
    record = adata.uns["gdml"]["features"]
    assert (record["encoder"], record["n_tokens"], record["dim"], record["obsm"]) == ("mean", 1, 3, "X_mean")


def n_tiles(adata, neighbors="exact"):
    """Tiles that spots need, each counted once."""
    scale = adata.uns["gdml"]["tiles"]["slides"]["A"]
    centers, mask = neighbor_tiles(adata.obsm["spatial"], scale, adata.uns["gdml"]["tiles"]["n_side"], neighbors)
    return len(distinct_tiles(centers[mask]))


def test_second_call_reads_and_new_spots_are_added():
    adata, images = tiled()
    encoder = Mean()
    gdml.pp.embed(adata[:8].copy(), encoder, image=images)
    first = encoder.tiles
    assert first == n_tiles(adata[:8]) + 1  # the white one, which tells the number of tokens
    gdml.pp.embed(adata, encoder, image=images)
    assert encoder.tiles == n_tiles(adata) + 1
    first = encoder.tiles
    gdml.pp.embed(adata, encoder, image=images, neighbors="lattice")
    assert encoder.tiles > first
    first = encoder.tiles
    shuffled = adata[::-1].copy()
    gdml.pp.embed(shuffled, encoder, image=images)
    assert encoder.tiles == first
    np.testing.assert_array_equal(shuffled.obsm["X_mean"], adata.obsm["X_mean"][::-1])


def test_interrupted_call_goes_on():
    adata, images = tiled(spots(150))
    adata.obsm["spatial"] += np.arange(150)[:, None] / 10  # no two alike
    encoder = Mean()
    encoder.fail_after = 700  # in the midst of the neighbours, two units of which are written by then
    with pytest.raises(RuntimeError, match="power cut"):
        gdml.pp.embed(adata, encoder, image=images)
    assert "features" not in adata.uns["gdml"] and "X_mean" not in adata.obsm
    encoder.fail_after, encoder.tiles = None, 0
    gdml.pp.embed(adata, encoder, image=images)
    assert encoder.tiles == n_tiles(adata) - 150 - 256 * 2
    assert len(load_features(adata)["A"].tokens) == 150


@pytest.mark.parametrize("tokens", ["all", "pooled"])
def test_each_tile_is_encoded_once_where_spots_stand_as_close_as_tiles_are_wide(tokens):
    x, y = np.meshgrid(np.arange(5), np.arange(4))
    adata = spots(20)
    adata.obsm["spatial"] = np.column_stack([x.ravel(), y.ravel()]) * float(SIDE) + 48
    adata, images = tiled(adata)
    counts, results = [], []
    for neighbors in ("exact", "lattice"):
        encoder = Mean()
        encoder.identity = neighbors
        gdml.pp.embed(adata, encoder, image=images, neighbors=neighbors, tokens=tokens)
        counts.append(encoder.tiles - (tokens == "all"))
        results.append(load_features(adata)["A"])
    # of the lattice's tiles, half a tile off here, those under the spots are nobody's neighbours but one another's
    assert counts == [7 * 6, 20 + 7 * 6]
    for part in results:
        assert part.neighbor_mask.all() and part.neighbors.shape == (20, 9, 3)
        np.testing.assert_array_equal(part.pooled, part.neighbors[:, 4])


@settings(deadline=None, max_examples=50)
@given(
    arrays(np.float64, (7, 2), elements=st.floats(0, 5000)), st.floats(20, 400), st.sampled_from([1, 3, 5]), st.data()
)
def test_lattice_is_at_most_half_a_tile_off_and_shared(xy, side_px, n_side, data):
    scale = {"side_px": side_px, "width": 5000, "height": data.draw(st.integers(5000, 9000))}
    exact, _ = neighbor_tiles(xy, scale, n_side, "exact")
    lattice, mask = neighbor_tiles(xy, scale, n_side, "lattice")
    assert np.abs(lattice - exact).max() <= side_px / 2 * (1 + 1e-9)
    middle = n_side**2 // 2
    np.testing.assert_array_equal(lattice[:, middle], xy)
    others = np.delete(lattice, middle, 1)
    cells = others / side_px - 0.5
    np.testing.assert_allclose(cells, np.rint(cells), atol=1e-6)
    inside = (others >= side_px / 2 - 1e-3) & (others <= np.array([5000, scale["height"]]) - side_px / 2 + 1e-3)
    np.testing.assert_array_equal(np.delete(mask, middle, 1), inside.all(2))


class Cramped(Mean):
    """Has memory for five tiles."""

    largest = 0

    def __init__(self, error):
        super().__init__()
        self.error = error

    def encode(self, tiles):
        if len(tiles) > 5:
            raise self.error
        self.largest = max(self.largest, len(tiles))
        return super().encode(tiles)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_smaller_batches_where_memory_runs_out(error, caplog):
    adata, images = tiled()
    plain = adata.copy()
    gdml.pp.embed(plain, Mean(), image=images)
    cramped = Cramped(error)
    cramped.identity = "cramped"
    with caplog.at_level("WARNING"):
        gdml.pp.embed(adata, cramped, image=images)
    assert 2 <= cramped.largest <= 5
    np.testing.assert_array_equal(adata.obsm["X_mean"], plain.obsm["X_mean"])
    np.testing.assert_array_equal(load_features(adata)["A"].neighbors, load_features(plain)["A"].neighbors)


def test_other_errors_are_not_taken_for_lack_of_memory():
    adata, images = tiled()
    with pytest.raises(RuntimeError, match="shapes"):
        gdml.pp.embed(adata, Cramped(RuntimeError("shapes do not match")), image=images)


def test_batch_size_follows_the_free_memory(monkeypatch):
    free = {}
    monkeypatch.setattr(_memory, "_free", lambda device: free["bytes"])
    for size, expected in ((64 << 30, 64), (1 << 30, 16), (100 << 20, 1), (0, 1)):
        free["bytes"] = size
        assert _memory.batch_size(torch.device("cpu"), 224) == expected
    free["bytes"] = 64 << 30
    assert _memory.batch_size(torch.device("cuda"), 224) == 256


def test_compiled_features_are_kept_apart():
    adata, images = tiled()
    encoder = Mean()
    encoder.name, encoder.compiled = "small", 0
    encoder.compile = lambda: setattr(encoder, "compiled", encoder.compiled + 1)
    compiled = CustomEncoder(lambda x: x.mean((2, 3)), tile_px=SIDE)
    compiled.compile()
    compiled.compile()
    assert compiled.compiled
    results, paths = [], set()
    for compile in (False, True):
        gdml.pp.embed(adata, encoder, image=images, compile=compile)
        results.append(adata.obsm["X_small"])
        paths.add(adata.uns["gdml"]["features"]["stores"]["own"]["A"])
    assert encoder.compiled == 1 and len(paths) == 2
    np.testing.assert_array_equal(*results)
    with pytest.raises(ValueError, match="`compile`.*'mean'"):
        gdml.pp.embed(adata, Mean(), image=images, compile=True)


def test_other_image_encoder_or_geometry_is_another_store():
    adata, images = tiled()
    paths = set()

    def embed(adata, **kwargs):
        gdml.pp.embed(adata, **{"encoder": Mean(), "image": images, "precision": "fp32", **kwargs})
        stores = adata.uns["gdml"]["features"]["stores"]
        paths.add((stores["own"]["A"], stores["neighbors"]["A"]))

    embed(adata)
    embed(adata, image={"A": image(1)})
    other = Mean()
    other.identity = "mean-2"
    embed(adata, encoder=other)
    embed(tiled(tile_px=SIDE, tile_um=15.0, um_per_px=1.0)[0])
    embed(adata, precision="bf16")
    embed(adata, tokens="all")
    assert len(paths) == 6
    assert len({neighbors for _, neighbors in paths}) == 5  # of neighbours no tokens are kept in any case


def test_whether_there_are_features_is_known_without_the_image(tmp_path):
    adata, images = tiled()
    how = {"tokens": "pooled", "precision": "fp32"}
    found = lambda **other: has_features(Spots.resolve(adata), Mean(), **{**how, **other})
    assert not found(), "there is no cache"
    gdml.pp.embed(adata, Mean(), image=images, **how)
    assert found() and found(cache_dir=tmp_path)
    assert not found(precision="bf16") and not found(tokens="grid7") and not found(cache_dir=tmp_path / "other")
    tiled(adata, {"A": image(seed=1)})
    assert not found(), "another image"


def test_several_slides_and_round_trip(tmp_path):
    adata = ad.concat([spots(5), spots(7, "B", seed=1)])[[0, 5, 1, 6, 2, 7, 3, 8, 4, 9, 10, 11]].copy()
    adata, images = tiled(adata, {"A": image(), "B": image(1, (170, 210))})
    gdml.pp.embed(adata, Mean(), image=images)
    alone, _ = tiled(spots(7, "B", seed=1), {"B": images["B"]})
    gdml.pp.embed(alone, Mean(), image=images)
    np.testing.assert_array_equal(adata[alone.obs_names].obsm["X_mean"], alone.obsm["X_mean"])
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    for library, features in load_features(again).items():
        rows = again.obs["library_id"] == library
        np.testing.assert_array_equal(features.pooled, adata.obsm["X_mean"][rows])
    adata.write_zarr(tmp_path / "a.zarr")


def test_stain_tiles_itself_and_leaves_copy_alone(synthetic_adata):
    adata = synthetic_adata[:6].copy()
    out = gdml.pp.embed(adata, "stain", copy=True)
    assert "gdml" not in adata.uns and "X_stain" not in adata.obsm
    assert out.obsm["X_stain"].shape == (6, get_encoder("stain").dim)
    features = next(iter(load_features(out).values()))
    assert features.tokens.shape[1] == 50 and features.neighbors.shape[1] == 25


@pytest.mark.parametrize(
    ("n", "n_prefix", "expected"),
    [(197, 1, 50), (265, 9, 50), (17, None, 17), (16, None, 17), (1, None, 1), (50, 1, 50)],
)
def test_grid7(n, n_prefix, expected):
    tokens = torch.randn(2, n, 3)
    pooled = torch.randn(2, 3)
    thin = thin_tokens(tokens, pooled, "grid7", n_prefix)
    assert thin.shape == (2, expected, 3)
    torch.testing.assert_close(thin[:, 0], pooled if n in (16, 1) else tokens[:, 0])
    if n == 197:  # each of the 7 x 7 is the mean of 2 x 2
        plain = torch.stack([tokens[:, 1 + r * 14 + c] for r, c in ((2, 4), (2, 5), (3, 4), (3, 5))]).mean(0)
        torch.testing.assert_close(thin[:, 1 + 1 * 7 + 2], plain)
    assert thin_tokens(tokens, pooled, "all").shape == (2, n, 3)
    assert thin_tokens(tokens, pooled, "pooled").shape == (2, 1, 3)


def test_grid7_needs_a_grid():
    with pytest.raises(ValueError, match="n_prefix"):
        thin_tokens(torch.zeros(1, 12, 3), torch.zeros(1, 3), "grid7")


def test_record_says_where_features_are_and_what_they_depend_on(monkeypatch):
    lines = []
    monkeypatch.setattr("gdml.pp.embedding.tell", lines.append)
    adata, images = tiled()
    gdml.pp.embed(adata, Mean(), image=images, tokens="all")
    record = adata.uns["gdml"]["features"]
    path = Path(record["stores"]["own"]["A"])
    assert record["keys"] == {"A": path.name} == {"A": read_head(path)["key"]}
    assert set(record["stores"]) == {"own", "neighbors"} and "views" not in record
    assert adata.uns["gdml"]["tiles"]["slides"]["A"]["fingerprint"] == marked(path)["image"]
    gdml.pp.embed(adata, Mean(), image=images, tokens="all")
    assert lines == [
        f"embed: mean, 1 token per spot; {n} tiles encoded, {88 - n} found in {str(path.parent)!r}" for n in (88, 0)
    ]


def test_rows_of_the_bank_are_those_of_the_spots():
    adata, images = tiled(ad.concat([spots(5), spots(7, "B", seed=1)]), {"A": image(), "B": image(1, (170, 210))})
    gdml.pp.embed(adata, Mean(), image=images, tokens="all")
    features, resolved = load_features(adata), Spots.resolve(adata)
    for slide in ("A", "B"):
        bank, own, neighbors = bank_rows(resolved, slide)
        assert own.dtype == neighbors.dtype == np.int32 and isinstance(bank, TileBank)
        assert own.max() < bank.n_own <= len(bank) and neighbors.max() < len(bank)
        np.testing.assert_array_equal(neighbors >= 0, features[slide].neighbor_mask)
        np.testing.assert_array_equal(bank.tokens(own), features[slide].tokens)
        np.testing.assert_array_equal(bank.pooled(neighbors[:, 4]), features[slide].pooled)
        again = pickle.loads(pickle.dumps(bank))
        np.testing.assert_array_equal(again.pooled(own), features[slide].pooled)
    assert len(pickle.dumps(bank)) < 4000


def test_a_cache_that_cannot_be_written_to_is_found_before_anything_is_encoded(tmp_path, monkeypatch):
    adata, images = tiled()
    encoder = Mean()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "file")
    with pytest.raises(OSError, match=r"cannot be written.*gdml.settings.cache_dir \(set by GDML_CACHE_DIR\)"):
        gdml.pp.embed(adata, encoder, image=images)
    with pytest.raises(OSError, match="cannot be written.*choose another folder with `cache_dir`"):
        gdml.pp.embed(adata, encoder, image=images, cache_dir=tmp_path / "file")
    assert encoder.tiles == 0 and "features" not in adata.uns["gdml"]


def test_a_disk_that_fills_up_is_named(monkeypatch):
    adata, images = tiled()

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FeatureStore, "append", full)
    with pytest.raises(OSError, match="No space left") as error:
        gdml.pp.embed(adata, Mean(), image=images)
    assert "gdml.settings.cache_dir (set by GDML_CACHE_DIR)" in error.value.__notes__[0]


def test_a_damaged_store_is_refused_and_mended():
    adata, images = tiled()
    gdml.pp.embed(adata, Mean(), image=images, tokens="all")
    before = load_features(adata)["A"]
    path = Path(adata.uns["gdml"]["features"]["stores"]["own"]["A"]) / "tokens" / "c.0.0.0"
    content = bytearray(path.read_bytes())
    content[1] ^= 16
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged.*call gdml.pp.embed\(adata\) again"):
        load_features(adata)
    encoder = Mean()
    with pytest.warns(UserWarning, match="was damaged: 1 file removed"):
        gdml.pp.embed(adata, encoder, image=images, tokens="all")
    assert encoder.tiles == 12
    np.testing.assert_array_equal(load_features(adata)["A"].tokens, before.tokens)


def test_batch_size_changes_nothing():
    adata, images = tiled()
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.Flatten(2))
    encoder = CustomEncoder(lambda x: net(x).transpose(1, 2), name="conv", tile_px=SIDE)
    results = []
    for i, batch_size in enumerate((1, 30, 1000)):
        encoder.identity = f"conv-{i}"
        gdml.pp.embed(adata, encoder, image=images, batch_size=batch_size, precision="fp32", device="cpu")
        results.append(load_features(adata)["A"])
    for other in results[1:]:
        np.testing.assert_allclose(other.tokens, results[0].tokens, atol=2e-3)
        np.testing.assert_allclose(other.neighbors, results[0].neighbors, atol=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tokens": "grid"}, "`tokens`.*Did you mean 'grid7'"),
        ({"device": "gpu"}, "`device`"),
        ({"precision": "fp16"}, "`precision`"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"neighbors": "latice"}, "`neighbors`.*Did you mean 'lattice'"),
        ({"encoder": "stan"}, "Did you mean 'stain'"),
        ({"encoder": "stain"}, "call gdml.pp.tile.adata, tile_px=224"),
        ({"image": None}, "give it again"),
        ({"image": {"A": image(size=(100, 100))}}, "when it was tiled"),
        ({"encoder": lambda x: 1e6 * x.mean((2, 3))}, "tile_px=224"),
        ({"encoder": CustomEncoder(lambda x: 1e6 * x.mean((2, 3)), tile_px=SIDE)}, "float16"),
    ],
)
def test_bad_arguments_leave_no_trace(kwargs, message):
    adata, images = tiled()
    before = set(adata.obsm), set(adata.uns["gdml"])
    with pytest.raises(ValueError, match=message):
        gdml.pp.embed(adata, **{"encoder": Mean(), "image": images, **kwargs})
    assert (set(adata.obsm), set(adata.uns["gdml"])) == before


def test_bad_adata():
    adata, images = tiled()
    with pytest.raises(ValueError, match="view"):
        gdml.pp.embed(adata[:3], Mean(), image=images)
    adata.obs["library_id"] = "B"
    with pytest.raises(KeyError, match=r"lacks the slides B; call gdml.pp.tile"):
        gdml.pp.embed(adata, Mean(), image=images)


def test_features_of_earlier_versions(tmp_path):
    adata, images = tiled()
    gdml.pp.embed(adata, Mean(), image=images)
    record = adata.uns["gdml"]["features"]
    for stores in ({"A": "0.1"}, {"0": record["stores"]}):
        adata.uns["gdml"]["features"] = {**record, "stores": stores}
        with pytest.raises(ValueError, match=r"earlier version.*gdml.pp.embed\(adata, encoder='mean'\) again"):
            load_features(adata)


def test_features_gone_or_of_other_spots(tmp_path):
    adata, images = tiled()
    with pytest.raises(KeyError, match="gdml.pp.embed"):
        load_features(adata)
    gdml.pp.embed(adata, Mean(), image=images)
    assert len(load_features(adata[:3].copy())["A"].pooled) == 3
    moved = adata.copy()
    moved.obsm["spatial"][:2] += 1
    with pytest.raises(KeyError, match="18 of 88 tiles.*spots have moved.*embed"):
        load_features(moved)
    path = adata.uns["gdml"]["features"]["stores"]["own"]["A"]
    assert len(open_path(path)) == 12
    open_path(path).path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="pp.embed"):
        load_features(adata)


@pytest.mark.parametrize("n_readers", [1, 4])
def test_read_ahead_is_bounded_passes_errors_on_and_stops(n_readers):
    buffers, read = np.zeros((3, 10), int), []
    batches = [range(first, min(first + 10, 95)) for first in range(0, 95, 10)]

    def put(item, buffer, place):
        read.append(item)
        if item == 77:
            raise OSError("disk")
        buffers[buffer, place] = item

    with closing(read_ahead(put, batches, n_readers=n_readers, n_buffers=3)) as ahead:
        for expected in batches[:3]:
            batch, buffer = next(ahead)
            threading.Event().wait(0.05)
            assert batch == expected and buffers[buffer].tolist() == list(batch)
            assert max(read) < batch[-1] + 1 + 20
    assert not any(t.name.startswith("gdml-read-ahead") for t in threading.enumerate())
    if n_readers == 1:
        assert read == sorted(read)
    with pytest.raises(OSError, match="disk"):
        list(read_ahead(put, batches, n_readers=n_readers, n_buffers=3))


@pytest.mark.real
def test_real_section_in_bounded_memory(her2st_section):
    psutil = pytest.importorskip("psutil")
    adata = her2st_section
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(adata)
    size = adata.uns["gdml"]["tiles"]["slides"]["C6"]
    decoded = size["width"] * size["height"] * 3
    get_encoder("stain").encode(torch.zeros(50, 224, 224, 3, dtype=torch.uint8))  # compiled and allocated before
    process, peak, done = psutil.Process(), [0], threading.Event()
    start = process.memory_info().rss

    def watch():
        while not done.wait(0.01):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    gdml.pp.embed(adata, "stain")
    done.set()
    watcher.join()
    assert peak[0] < decoded, f"{peak[0] / 2**20:.0f} MiB above the start, {decoded / 2**20:.0f} MiB decoded"
    assert np.isfinite(adata.obsm["X_stain"]).all()
