"""Features of TRIDENT and wsidata: the same numbers and results as gdml's own, or a refusal with its reason."""

import importlib.util
import shutil
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest

import gdml
from gdml.features import open_path
from gdml.io import read_features
from gdml.pp import load_features
from gdml.spots.provenance import slide_key
from gdml.spots.resolve import Spots

_spec = importlib.util.spec_from_file_location("feature_files", Path(__file__).with_name("feature_files.py"))
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)
write_trident, write_wsidata = files.write_trident, files.write_wsidata

SIDE = 112  # px and um


def lattice(n_cols=5, n_rows=4, side=224):
    cols, rows = np.meshgrid(np.arange(n_cols), np.arange(n_rows))
    return np.stack([cols.ravel(), rows.ravel()], 1).astype(np.int64) * side


def noise(n, dim=8, dtype=np.float32):
    return np.random.default_rng(1).normal(size=(n, dim)).astype(dtype)


@pytest.fixture
def trident(tmp_path):
    """A function that writes a file of 20 tiles of 224 px, with changes."""

    def write(name="A", features=None, corners=None, folder="features_uni_v1", **changes):
        corners = lattice() if corners is None else corners
        features = noise(len(corners)) if features is None else features
        return write_trident(tmp_path / folder / f"{name}.h5", features, corners, **changes)

    return write


@pytest.fixture(scope="session")
def _own(_synthetic):
    """Four slides with gdml's own pooled features of tiles of 112 px, without neighbours."""
    adata = _synthetic.copy()
    gdml.pp.tile(adata, SIDE, um_per_px=1.0, n_side=1)
    gdml.pp.embed(adata, "stain", tokens="pooled")
    gdml.pp.normalize(adata, n_genes=20)
    return adata


@pytest.fixture
def own(_own):
    return _own.copy()


@pytest.fixture
def paired(trident):
    """Two slides of 20 measured spots with TRIDENT's features."""
    read = read_features({name: trident(name) for name in ("A", "B")})
    counts = np.random.default_rng(0).poisson(5, (40, 12)).astype(np.float32)
    paired = ad.AnnData(counts, obs=read.obs, obsm=dict(read.obsm), uns=read.uns)
    gdml.pp.normalize(paired, n_genes=10)
    return paired


def as_trident(adata, folder, encoder="stain_v1", **changes):
    """Write the features that gdml computed, as TRIDENT would have: corners are whole px."""
    paths = {}
    for name, found in load_features(adata).items():
        rows = (adata.obs["library_id"] == name).to_numpy()
        slide = adata.uns["gdml"]["tiles"]["slides"][name]
        paths[name] = write_trident(
            folder / f"features_{encoder}" / f"{name}.h5",
            found.pooled.astype(np.float32),
            np.rint(adata.obsm["spatial"][rows] - SIDE / 2).astype(np.int64),
            encoder=encoder,
            side=SIDE,
            patch=SIDE,
            mag=10,
            target=10,
            size=(slide["width"], slide["height"]),
            **changes,
        )
    return paths


def external(adata, folder):
    """The same spots with the features of files in place of gdml's."""
    spots = adata.copy()
    del spots.uns["gdml"]["tiles"], spots.uns["gdml"]["features"]
    return read_features(as_trident(adata, folder), adata=spots, um_per_px=1.0, n_side=1)


# ---- the same results


def test_models_learn_and_predict_what_they_do_from_gdmls_own_features(own, tmp_path):
    read = external(own, tmp_path)
    np.testing.assert_array_equal(read.obsm["X_stain_v1"], own.obsm["X_stain"])
    is_test = (own.obs["library_id"] == "S4").to_numpy()
    for model, options in (("ridge", {}), ("stnet", {"max_epochs": 2, "training": {"refit": False}})):
        predicted = []
        for adata in (own, read):
            train, test = adata[~is_test].copy(), adata[is_test].copy()
            gdml.tl.predict(test, gdml.tl.fit(train, model, group_key="patient", device="cpu", **options), device="cpu")
            predicted.append(test.obsm["gdml"])
        np.testing.assert_array_equal(*predicted)


def test_neighbours_are_tiles_of_the_file(own, tmp_path):
    """On a lattice of tiles that touch, gdml's neighbour tiles are the tiles of the file."""
    slide = own[own.obs["library_id"] == "S1"].copy()
    image = slide.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    width, height = (slide.uns["gdml"]["tiles"]["slides"]["S1"][side] for side in ("width", "height"))
    corners = lattice(width // SIDE, height // SIDE, SIDE)
    tiles = ad.AnnData(obsm={"spatial": corners + SIDE / 2})
    gdml.pp.tile(tiles, SIDE, um_per_px=1.0, image=image, check=False)
    gdml.pp.embed(tiles, "stain", tokens="pooled", image=image)
    (mine,) = load_features(tiles).values()

    path = write_trident(
        tmp_path / "S1.h5",
        mine.pooled,
        corners,
        encoder="stain_v1",
        side=SIDE,
        patch=SIDE,
        mag=10,
        target=10,
        size=(width, height),
    )
    read = read_features(path, image)
    (theirs,) = load_features(read).values()
    np.testing.assert_array_equal(read.obsm["spatial"], tiles.obsm["spatial"])
    for part in ("tokens", "pooled", "neighbors", "neighbor_mask"):
        np.testing.assert_array_equal(getattr(theirs, part), getattr(mine, part))
    np.testing.assert_array_equal(read.obsm["gdml_neighbor_mask"], tiles.obsm["gdml_neighbor_mask"])
    assert (
        read.uns["gdml"]["tiles"]["slides"]["S1"]["fingerprint"]
        == slide.uns["gdml"]["tiles"]["slides"]["S1"]["fingerprint"]
    )

    # a tile that the file lacks is no neighbour, and the others are as they were
    lost = len(corners) // 2
    keep = np.arange(len(corners)) != lost
    path = write_trident(
        tmp_path / "part.h5", mine.pooled[keep], corners[keep], encoder="stain_v1", side=SIDE, patch=SIDE, mag=10, target=10,
    )  # fmt: skip
    (part,) = load_features(read_features(path, n_side=3)).values()
    of_three = (np.arange(25).reshape(5, 5)[1:4, 1:4]).ravel()
    offsets = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), -1).reshape(-1, 2) * SIDE
    is_lost = (corners[keep][:, None] + offsets == corners[lost]).all(2)
    assert is_lost.sum() == 8
    mask = mine.neighbor_mask[keep][:, of_three] & ~is_lost
    np.testing.assert_array_equal(part.neighbor_mask, mask)
    np.testing.assert_array_equal(part.neighbors[mask], mine.neighbors[keep][:, of_three][mask])
    assert not part.neighbors[~mask].any()


def test_a_model_that_reads_neighbours(paired, trident):
    config = {"width": 16, "branch_width": 16, "neighbor_depth": 1, "neighbor_heads": 2, "slide_depth": 1}
    config |= {"slide_heads": 2, "fusion_heads": 2, "n_groups": 4}
    model = gdml.tl.fit(paired, "gene-dml", config=config, max_epochs=1, training={"refit": False}, device="cpu")
    adata = read_features(trident("C"))
    gdml.tl.predict(adata, model, device="cpu")
    assert adata.obsm["gdml"].shape == (20, 10) and np.isfinite(adata.obsm["gdml"].to_numpy()).all()


# ---- an AnnData of the tiles


def test_tiles_become_spots(trident, tmp_path):
    path = trident(
        features=noise(20, dtype=np.float16), mag=40, target=20, side=448, corners=lattice(side=448), size=(2240, 1800)
    )
    adata = read_features(path)
    assert adata.shape == (20, 0) and adata.obs_names[1] == "448x0-A" and set(adata.obs["library_id"]) == {"A"}
    np.testing.assert_array_equal(adata.obsm["spatial"], lattice(side=448) + 224.0)
    np.testing.assert_array_equal(adata.obsm["X_uni_v1"], noise(20, dtype=np.float16).astype(np.float32))
    tiles, features = adata.uns["gdml"]["tiles"], adata.uns["gdml"]["features"]
    assert (tiles["tile_um"], tiles["tile_px"], tiles["n_side"]) == (112.0, 224, 5)
    slide = tiles["slides"]["A"]
    assert (slide["um_per_px"], slide["um_per_px_source"]) == (0.25, "magnification")
    assert (slide["side_px"], slide["width"], slide["height"]) == (448.0, 2240, 1800)
    assert (features["encoder"], features["identity"], features["source"]) == ("uni_v1", "trident uni_v1", "TRIDENT")
    assert (features["dim"], features["tokens"], features["precision"]) == (8, "pooled", "float16")
    assert "microns_per_pixel" not in adata.uns["spatial"]["A"]["scalefactors"]  # a magnification is no measurement

    adata.write_h5ad(tmp_path / "a.h5ad")
    again = load_features(ad.read_h5ad(tmp_path / "a.h5ad"))["A"]
    np.testing.assert_array_equal(again.pooled, noise(20, dtype=np.float16))


def test_with_its_image(trident, own):
    entry = own.uns["spatial"]["S1"]
    size = tuple(own.uns["gdml"]["tiles"]["slides"]["S1"][side] for side in ("width", "height"))
    image = entry["metadata"]["source_image_path"]
    path = trident(size=size, side=112, patch=224, corners=lattice(side=112))
    adata = read_features(path, image, um_per_px=1.0, library_id="S1")
    made = adata.uns["spatial"]["S1"]
    assert made["metadata"] == {"source_image_path": image, "spot_pitch_um": 112.0}
    assert made["images"]["hires"].shape[:2] == tuple(
        round(side * made["scalefactors"]["tissue_hires_scalef"]) for side in size[::-1]
    )
    assert made["scalefactors"]["microns_per_pixel"] == 1.0
    assert (
        gdml.io.read_features(path, {"A": image}, um_per_px={"A": 1.0}).uns["gdml"]["tiles"]["slides"]["A"]["image"]
        == image
    )
    with pytest.raises(
        ValueError, match=r"of an image of 2000 x 1500 px, that of slide 'A' has \d+ x \d+ px. Pass the image"
    ):
        read_features(trident("B"), image, library_id="A")


def test_a_batch_dimension_is_accepted(trident):
    flat = read_features(trident())
    batched = read_features(trident("B", features=noise(20)[None], corners=lattice()[None]))
    np.testing.assert_array_equal(batched.obsm["X_uni_v1"], flat.obsm["X_uni_v1"])
    np.testing.assert_array_equal(batched.obsm["spatial"], flat.obsm["spatial"])


def test_repeated_tiles_are_one_spot(trident):
    corners = np.concatenate([lattice(), lattice()[:3]])
    assert read_features(trident(corners=corners)).n_obs == 20


def test_files_are_copied_once_and_changes_are_seen(trident, own, monkeypatch):
    image = own.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    size = tuple(own.uns["gdml"]["tiles"]["slides"]["S1"][side] for side in ("width", "height"))
    read = lambda **changes: read_features(
        trident(side=112, size=size, corners=lattice(side=112), **changes), image, um_per_px=1
    )
    first = read()
    monkeypatch.setattr("gdml.features.FeatureStore.append", lambda *args: pytest.fail("copied again"))
    again = read()
    assert again.uns["gdml"]["features"] == first.uns["gdml"]["features"]
    monkeypatch.undo()
    other = read(features=noise(20) + 1)
    np.testing.assert_array_equal(other.obsm["X_uni_v1"], (noise(20) + 1).astype(np.float16).astype(np.float32))
    # the image and the encoder are the same; finished runs on other features are not used all the same
    keys = [slide_key(Spots.resolve(adata), "A") for adata in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]


class Shifted:
    """A white image whose corner is not the origin of the coordinates, as those of a SpatialData can be."""

    name, size, um_per_px, origin = "shifted", (2000, 1500), 0.5, (1000.0, 200.0)

    def read_region(self, x, y, width, height, size):
        return np.full((size[1], size[0], 3), 255, np.uint8)

    def fingerprint(self):
        return "white"

    def close(self):
        pass


def test_places_are_in_the_coordinates_of_the_image(trident):
    tiles = read_features(trident(), Shifted())
    np.testing.assert_array_equal(tiles.obsm["spatial"], lattice() + 112.0 + (1000, 200))
    spots = ad.AnnData(obsm={"spatial": tiles.obsm["spatial"][::-1].copy()})
    read_features(trident(), Shifted(), adata=spots)
    np.testing.assert_array_equal(spots.obsm["X_uni_v1"], tiles.obsm["X_uni_v1"][::-1])
    slide = spots.uns["gdml"]["tiles"]["slides"]["slide"]
    assert (slide["left"], slide["top"], slide["um_per_px_source"]) == (1000.0, 200.0, "image metadata")


# ---- assigned to spots


def test_spots_have_their_own_tile(own, tmp_path):
    """Rows of the file in another order, and tiles beside those of the spots."""
    one = own[own.obs["library_id"] == "S1"].copy()
    path = as_trident(one, tmp_path)["S1"]
    with h5py.File(path) as file:
        features, corners = file["features"][()], file["coords"][()]
    order = np.random.default_rng(0).permutation(len(corners))
    tiles = own.uns["gdml"]["tiles"]["slides"]["S1"]
    write_trident(
        path, np.concatenate([features[order], np.ones((2, features.shape[1]))]), np.concatenate([corners[order], [[3, 5], [7, 600]]]),
        encoder="stain_v1", side=SIDE, patch=SIDE, mag=10, target=10, size=(tiles["width"], tiles["height"]),
    )  # fmt: skip
    read = read_features(path, adata=one)
    assert read is one
    np.testing.assert_array_equal(one.obsm["X_stain_v1"], one.obsm["X_stain"])


def test_spots_without_a_tile(own, tmp_path):
    one = own[own.obs["library_id"] == "S1"].copy()
    path = as_trident(one[:-3].copy(), tmp_path)["S1"]
    before = dict(one.uns["gdml"])
    with pytest.raises(
        ValueError, match=r"3 of \d+ spots of slide 'S1' \(the nearest tile is \d+ px away .* unmatched=\"drop\""
    ):
        read_features(path, adata=one)
    assert one.uns["gdml"] == before and "X_stain_v1" not in one.obsm
    names = list(one.obs_names[:-3])
    read_features(path, adata=one, unmatched="drop")
    assert list(one.obs_names) == names
    np.testing.assert_array_equal(one.obsm["X_stain_v1"], one.obsm["X_stain"])

    moved = own[own.obs["library_id"] == "S1"].copy()
    moved.obsm["spatial"] = moved.obsm["spatial"] + [1.6, 0]
    with pytest.raises(ValueError, match="Spots have no features"):
        read_features(path, adata=moved, unmatched="drop")  # none is left


def test_spots_by_name(own, tmp_path):
    one = own[own.obs["library_id"] == "S1"].copy()
    path = as_trident(one, tmp_path)["S1"]
    with h5py.File(path, "r+") as file:
        n = len(file["coords"])
        order = np.random.default_rng(0).permutation(n)
        for name in ("features", "coords"):
            file[name][...] = file[name][()][order]
        file["coords"][...] += 3  # rounding that is not held against a tile of the spot's name
        file["barcode"] = np.array(one.obs_names, "S")[order][:, None]
    read_features(path, adata=one)
    np.testing.assert_array_equal(one.obsm["X_stain_v1"], one.obsm["X_stain"])
    with h5py.File(path, "r+") as file:
        file["coords"][...] = np.roll(file["coords"][()], 1, axis=0)
    with pytest.raises(ValueError, match=r"tiles bear the names of spots \(.*\), but lie up to \d+ px away"):
        read_features(path, adata=one)


def test_every_slide_needs_a_file(own, tmp_path):
    paths = as_trident(own, tmp_path)
    with pytest.raises(ValueError, match="`path` is one file, but `adata` has 4 slides"):
        read_features(paths["S1"], adata=own)
    with pytest.raises(KeyError, match="it lacks S4; S5 are not among them"):
        read_features({**{k: paths[k] for k in ("S1", "S2", "S3")}, "S5": paths["S4"]}, adata=own)


# ---- scale


def test_the_stated_size_holds_where_the_slide_agrees(trident):
    """TRIDENT calls 0.4 to 0.6 um per px 20x: what it calls 112 um is not that on every slide."""
    assert read_features(trident(), um_per_px=0.52).uns["gdml"]["tiles"]["tile_um"] == 112.0
    with pytest.warns(UserWarning, match=r"tiles are 130\.\d um, not 112 as TRIDENT states"):
        tiles = read_features(trident(), um_per_px=0.5842).uns["gdml"]["tiles"]
    assert tiles["tile_um"] == pytest.approx(130.9, abs=0.1)
    with pytest.raises(ValueError, match="tiles differ in size .A: 112 um, B: 130.9 um"):
        read_features({"A": trident("A"), "B": trident("B")}, um_per_px={"B": 0.5842})


def test_without_any_scale(trident):
    path = trident(level0_magnification=None, target_magnification=None)
    assert np.isnan(read_features(path).uns["gdml"]["tiles"]["tile_um"])  # native pixels
    with pytest.raises(ValueError, match="does not state how many um its tiles are.*pass um_per_px="):
        read_features(trident(level0_magnification=None, target_magnification=None, side=448, size=(4000, 4000)))


def test_the_pitch_of_measured_spots_goes_before_the_magnification(own, tmp_path):
    one = own[own.obs["library_id"] == "S1"].copy()
    del one.uns["gdml"]
    read_features(as_trident(own, tmp_path)["S1"], adata=one)
    slide = one.uns["gdml"]["tiles"]["slides"]["S1"]
    assert slide["um_per_px_source"] == "spot pitch" and slide["um_per_px"] == pytest.approx(1, rel=0.02)


# ---- what does not fit is refused


def test_models_refuse_features_that_they_were_not_trained_on(paired, own, trident, tmp_path):
    model = gdml.tl.fit(paired, "ridge", save_to=tmp_path / "model")
    loaded = gdml.load(tmp_path / "model")  # also after a round trip
    with pytest.warns(UserWarning, match="tiles are 56 um, not 112 as TRIDENT states"):
        smaller = read_features(trident("F"), um_per_px=0.25)
    for adata, message in (
        (
            read_features(trident("C", encoder="conch_v1")),
            "encoder does not fit: .*'trident uni_v1'.*'trident conch_v1'",
        ),
        (read_features(trident("D", features=noise(20, dim=9))), r"encoder does not fit: .*\(D = 8\).*\(D = 9\)"),
        (
            read_features(trident("E", patch=256, side=256, corners=lattice(side=256))),
            "tiles do not fit: .* 112 um, 224 px, .* 128 um, 256 px",
        ),
        (smaller, "tiles do not fit: .* 112 um, 224 px, .* 56 um, 224 px"),
    ):
        before = set(adata.obsm), set(adata.uns["gdml"])
        with pytest.raises(ValueError, match=message):
            gdml.tl.predict(adata, loaded)
        assert (set(adata.obsm), set(adata.uns["gdml"])) == before
    with pytest.raises(
        ValueError, match=r"regions do not fit: 5 tiles a side .*read_features\(path, adata=adata, n_side=5\)"
    ):
        gdml.tl.predict(read_features(trident("G"), n_side=3), model)
    with pytest.raises(ValueError, match="features that TRIDENT computed .*those of `adata` were computed by gdml"):
        gdml.tl.predict(own, model)
    plain = own.copy()
    del plain.uns["gdml"]
    with pytest.raises(ValueError, match="`adata` has none. Read those of these slides: gdml.io.read_features"):
        gdml.tl.predict(plain, model)
    assert "gdml" not in plain.uns  # nothing was tiled

    image = own.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    with pytest.raises(ValueError, match=r"cannot compute: predict slides .*read_features\(path\), model\)"):
        gdml.tl.predict(image, model)

    fits = read_features(trident("H"))
    for name, value in (("um_per_px", 0.5), ("image", "a.tif"), ("encoder", "stain"), ("spot_pitch_um", 100.0)):
        with pytest.raises(ValueError, match=f"`{name}` has no effect on features that TRIDENT computed"):
            gdml.tl.predict(fits, model, **{name: value})
    gdml.tl.predict(fits, loaded)
    assert np.isfinite(fits.obsm["gdml"].to_numpy()).all()


def test_gdmls_models_refuse_other_programs_features_and_say_how_to_go_on(own, tmp_path):
    model = gdml.tl.fit(own, "ridge")
    read = external(own[own.obs["library_id"] == "S1"].copy(), tmp_path)
    with pytest.raises(ValueError, match=r"not interchangeable.*del adata.uns\['gdml'\]\['features'\]"):
        gdml.tl.predict(read, model)
    del read.uns["gdml"]["features"]
    with pytest.warns(UserWarning, match="trained on 1 slide"):
        gdml.tl.predict(read, model)
    assert read.uns["gdml"]["features"]["encoder"] == "stain"


def test_files_that_do_not_belong_together(trident):
    with pytest.raises(ValueError, match=r"different encoders \(A: trident uni_v1 .*B: trident conch"):
        read_features({"A": trident("A"), "B": trident("B", encoder="conch")})
    with pytest.raises(ValueError, match=r"different encoders .*D = 8.*D = 9"):
        read_features({"A": trident("A"), "B": trident("B", features=noise(20, dim=9))})
    with pytest.raises(ValueError, match="different sizes of the encoded images"):
        read_features({"A": trident("A"), "B": trident("B", patch=256)})


def test_a_store_that_was_cleared_is_explained(trident):
    adata = read_features(trident())
    store = open_path(adata.uns["gdml"]["features"]["stores"]["own"]["A"])
    shutil.rmtree(store.path)
    with pytest.raises(
        FileNotFoundError, match=r"cleared or moved, call gdml.io.read_features\(path, adata=adata\) again"
    ):
        load_features(adata)


# ---- bad files of TRIDENT


def bad(index, value):
    features = noise(20)
    features[index] = value
    return features


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": bad((3, 2), np.nan)}, "features of 1 of 20 tiles are NaN or infinite"),
        ({"features": bad((3, 2), 1e5)}, r"features up to 1e\+05; gdml stores float16, which ends at 65504"),
        ({"features": noise(19)}, "features of 19 tiles, but coordinates of 20"),
        ({"features": noise(0), "corners": lattice()[:0]}, "has no tiles: was no tissue found"),
        ({"features": noise(20)[0]}, r"must be numbers \(n, D\).*found float32 \(8,\).*whole slides"),
        ({"corners": lattice()[:, :1]}, r"coordinates must be numbers \(n, 2\), found int64 \(20, 1\)"),
        ({"corners": lattice() * np.nan}, "NaN or infinite tile coordinates"),
        ({"corners": lattice() + 1200}, "16 of 20 tiles lie outside the image of slide 'A', 2000 x 1500 px"),
        ({"patch_size": None}, r"does not state the size of its tiles: `coords` lacks .*\(found: level0_height"),
        ({"patch_size_level0": None, "target_magnification": None, "patch_level": 0}, "CLAM's layout"),
        ({"encoder": "None", "folder": "features"}, r"does not name its encoder; pass it, encoder='uni_v1'"),
    ],
)
def test_bad_content(trident, changes, message):
    before = sorted(path.name for path in (gdml.settings.cache_dir / "features").glob("*"))
    with pytest.raises(ValueError, match=message):
        read_features(trident(**changes))
    assert sorted(path.name for path in (gdml.settings.cache_dir / "features").glob("*")) == before


def test_encoders_are_named_by_file_folder_or_user(trident):
    assert "X_uni_v1" in read_features(trident(encoder=None)).obsm
    unnamed = trident(encoder=None, folder="features")
    assert read_features(unnamed, encoder="mine").uns["gdml"]["features"]["identity"] == "trident mine"
    with pytest.raises(ValueError, match="`encoder` is 'conch', but .* has features of 'uni_v1'; leave it out"):
        read_features(trident(), encoder="conch")


def test_files_that_are_no_feature_files(trident, tmp_path):
    path = trident()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as HDF5: it is truncated"):
        read_features(path)
    path.write_bytes(b"features")
    with pytest.raises(ValueError, match="cannot be read as HDF5"):
        read_features(path)
    with h5py.File(path, "w") as file:
        file["coords"] = lattice()
    with pytest.raises(
        ValueError, match=r"no feature file of TRIDENT: it has no `features` \(coords\); .*not the patches"
    ):
        read_features(path)
    with h5py.File(path, "w") as file:
        file["features"] = noise(20)
    with pytest.raises(ValueError, match="it has no `coords`"):
        read_features(path)
    with pytest.raises(FileNotFoundError, match="path: there is no file .*gone.h5"):
        read_features(tmp_path / "gone.h5")
    with pytest.raises(ValueError, match="is a folder of feature files; name one of them, such as 'A.h5'"):
        read_features(path.parent)


def test_links_to_other_files_are_not_followed(trident, tmp_path):
    secret = trident("secret")
    with h5py.File(tmp_path / "linked.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "features")
        file["coords"] = lattice()
    with pytest.raises(ValueError, match="it has no `features`"):
        read_features(tmp_path / "linked.h5")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"n_side": 4}, "`n_side` must be an odd whole number"),
        ({"unmatched": "ignore"}, "`unmatched` is 'ignore'"),
        ({"library_id": "a/b"}, "cannot be called 'a/b'"),
        ({"um_per_px": 0.0}, "`um_per_px` must be positive"),
    ],
)
def test_bad_arguments(trident, kwargs, message):
    with pytest.raises(ValueError, match=message):
        read_features(trident(), **kwargs)


# ---- stores of wsidata


def test_a_store_of_wsidata(tmp_path, trident):
    corners = lattice()
    path = write_wsidata(tmp_path / "a.zarr", {"uni": noise(20), "conch": noise(20, 5)}, corners)
    with pytest.raises(ValueError, match=r"features of 2 encoders \(.*\): choose one, encoder="):
        read_features(path)
    adata = read_features(path, encoder="uni")
    np.testing.assert_array_equal(adata.obsm["spatial"], corners + 112.0)
    np.testing.assert_array_equal(adata.obsm["X_uni"], noise(20).astype(np.float16).astype(np.float32))
    tiles, features = adata.uns["gdml"]["tiles"], adata.uns["gdml"]["features"]
    assert (tiles["tile_um"], tiles["tile_px"]) == (112.0, 224)
    slide = tiles["slides"]["a"]
    assert (slide["um_per_px"], slide["um_per_px_source"], slide["width"]) == (0.5, "feature file", 2000)
    assert (features["identity"], features["source"]) == ("wsidata uni", "wsidata")
    assert adata.obsm["gdml_neighbor_mask"].sum() == read_features(trident()).obsm["gdml_neighbor_mask"].sum()
    assert "X_conch" in read_features(path, encoder="conch_tiles").obsm
    with pytest.raises(ValueError, match="`encoder` is 'uno', of which .* has no features. Did you mean 'uni'"):
        read_features(path, encoder="uno")
    with pytest.raises(ValueError, match="has no tiles 'tile'. Did you mean 'tiles'.*tile_key="):
        read_features(path, encoder="uni", tile_key="tile")


def test_rows_of_a_table_are_assigned_by_tile(tmp_path):
    import spatialdata

    path = write_wsidata(tmp_path / "a.zarr", {"uni": noise(20)}, lattice())
    sdata = spatialdata.read_zarr(path)
    table = sdata.tables["uni_tiles"][::-1].copy()
    sdata.tables["uni_tiles"] = table
    sdata.write(tmp_path / "b.zarr")
    np.testing.assert_array_equal(read_features(tmp_path / "b.zarr").obsm["X_uni"], read_features(path).obsm["X_uni"])
    sdata.tables["uni_tiles"] = table[:-2].copy()
    sdata.write(tmp_path / "c.zarr")
    with pytest.raises(ValueError, match="2 of 20 tiles have no features"):
        read_features(tmp_path / "c.zarr")


def test_bad_stores_of_wsidata(tmp_path):
    write = lambda name, features, **kwargs: write_wsidata(tmp_path / name, features, lattice(), **kwargs)
    with pytest.raises(ValueError, match=r"does not state the size of the tiles 'tiles'"):
        read_features(write("a.zarr", {"uni": noise(20)}, spec={}))
    with pytest.raises(ValueError, match=r"no features of the tiles 'tiles' \(tables: none\)"):
        read_features(write("b.zarr", {}))
    with pytest.raises(ValueError, match="does not state how many um"):
        read_features(write("c.zarr", {"uni": noise(20)}, mpp=None, slide_mpp=None, patch=112))
    (tmp_path / "d.zarr").mkdir()
    with pytest.raises(ValueError, match="cannot be read as a SpatialData store"):
        read_features(tmp_path / "d.zarr")


def test_without_spatialdata(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ImportError, match=r"pip install 'gdml\[spatial\]'"):
        read_features(tmp_path / "a.zarr")


def test_what_wsidata_itself_writes(tmp_path):
    """The layout that the tests write is that of the library."""
    wsidata = pytest.importorskip("wsidata")
    pyvips = pytest.importorskip("pyvips")
    image = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    options = {"tile": True, "pyramid": True, "xres": 2000, "yres": 2000, "resunit": "cm"}  # 0.5 um per px
    pyvips.Image.new_from_array(image).tiffsave(str(tmp_path / "a.tif"), **options)
    wsi = wsidata.open_wsi(tmp_path / "a.tif", store=str(tmp_path / "theirs.zarr"))
    spec = wsidata.TileSpec.from_wsidata(wsi, tile_px=112, mpp=1.0)
    wsidata.io.add_tiles(wsi, "tiles", lattice(), spec, [0] * 20)
    wsidata.io.add_features(wsi, "uni_tiles", "tiles", noise(20))
    wsi.write()
    theirs = read_features(tmp_path / "theirs.zarr", tmp_path / "a.tif", library_id="a")
    ours = read_features(
        write_wsidata(tmp_path / "ours.zarr", {"uni": noise(20)}, lattice(), patch=112, mpp=1.0),
        tmp_path / "a.tif",
        library_id="a",
    )
    assert theirs.uns["gdml"]["tiles"] == ours.uns["gdml"]["tiles"]
    assert theirs.uns["gdml"]["features"] == ours.uns["gdml"]["features"]
    np.testing.assert_array_equal(theirs.obsm["X_uni"], ours.obsm["X_uni"])
