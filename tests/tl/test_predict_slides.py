"""Many slides that have only an image: the same bytes however many processes predict them."""

import copy
import multiprocessing
import warnings
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gdml
from gdml.pp import embedding

UNLIKE = SimpleNamespace(  # a client of two workers
    submit=print,
    scheduler_info=print,
    scheduler=SimpleNamespace(address="tcp://scheduler:8786"),
    wait_for_workers=lambda n: None,
    run=lambda *args, **kwargs: {"a": ("1", "fp32"), "b": ("1", "bf16")},
)


@pytest.fixture(scope="module")
def manifest(_synthetic, _fitted):
    """Three images, their names, patients and scales."""
    scales = _fitted[0].uns["gdml"]["tiles"]["slides"]
    metadata = {slide: _synthetic.uns["spatial"][slide]["metadata"] for slide in scales}
    return pd.DataFrame(
        {
            "path": [metadata[slide]["source_image_path"] for slide in scales],
            "name": [f"biopsy {slide}" for slide in scales],
            "group": ["P1", "P1", "P2", "P2"],
            "um_per_px": [float(scale["um_per_px"]) for scale in scales.values()],
        }
    )[1:].reset_index(drop=True)


@pytest.fixture(scope="module")
def model(_fitted, tmp_path_factory):
    """Folder of a ridge."""
    path = tmp_path_factory.mktemp("model") / "ridge"
    _fitted[1].save(path)
    return path


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model was trained on")
        yield


@pytest.fixture(scope="module")
def predicted(manifest, model, tmp_path_factory):
    """Folder with the results of all slides, and the table."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return out, gdml.tl.predict_slides(manifest, model, out)


def contents(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*.zarr/**/*")) if p.is_file()}


def test_one_result_a_slide(predicted, manifest, model):
    out, table = predicted
    assert list(table.columns) == [
        *("name", "path", "state", "n_tiles", "verdict", "unusual_spots", "seconds", "reason", "result")
    ]
    assert (table["state"] == "done").all() and table["name"].tolist() == manifest["name"].tolist()
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "slides.csv", keep_default_na=False), table.astype({"n_tiles": int}).sort_values("name")
    )
    row = manifest.iloc[2]
    found = anndata.read_zarr(table["result"][2])
    expected = gdml.tl.predict(row["path"], model, um_per_px=row["um_per_px"], library_id=row["name"])
    pd.testing.assert_frame_equal(found.obsm["gdml"], expected.obsm["gdml"], check_column_type=False)
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert found.n_obs == table["n_tiles"][2]
    assert found.obs["group"].unique().tolist() == ["P2"]
    assert found.uns["gdml"]["predict"]["provenance"] == expected.uns["gdml"]["predict"]["provenance"]
    assert found.uns["gdml"]["predict"]["model"] == str(model)


def test_values_below_zero_are_kept_on_request_in_a_folder_of_their_own(manifest, _fitted, tmp_path):
    low = copy.deepcopy(_fitted[1])
    low.module.frame.level.zero_()
    one, found = manifest[:1], {}
    for clip in (True, False):
        table = gdml.tl.predict_slides(one, low, tmp_path / str(clip), clip=clip)
        found[clip] = anndata.read_zarr(table["result"][0]).obsm["gdml"]
    assert (found[False] < 0).any(axis=None)
    pd.testing.assert_frame_equal(found[True], found[False].clip(lower=0))
    with pytest.raises(ValueError, match="clip True, now False"):
        gdml.tl.predict_slides(one, low, tmp_path / "True", clip=False)


def test_a_result_goes_on_as_any_annadata(predicted, model):
    found = anndata.read_zarr(predicted[1]["result"][0])
    before = found.obsm["gdml"].to_numpy().copy()
    gdml.tl.predict(found, model)  # features are gone, and made again
    np.testing.assert_array_equal(found.obsm["gdml"].to_numpy(), before)


def test_features_are_removed_unless_they_are_to_be_kept(predicted, manifest, model, tmp_path, monkeypatch):
    assert sorted(path.name for path in predicted[0].iterdir() if path.suffix != ".zarr") == [
        *("gdml.json", "leases", "slides.csv", "state", "work")
    ]
    assert not list((predicted[0] / "work").iterdir())
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "cache")
    one = manifest[:1]
    gdml.tl.predict_slides(one, model, tmp_path / "a")
    assert not (tmp_path / "cache").exists()
    gdml.tl.predict_slides(one, model, tmp_path / "b", keep_features=True)
    assert len(gdml.settings.list_cache()) == 2  # own and neighbour tiles
    encoded = []
    monkeypatch.setattr(embedding.Extractor, "run", lambda self, slide, store, xy, *a, **k: encoded.append(len(xy)))
    gdml.tl.predict_slides(one, model, tmp_path / "c")
    assert encoded and not any(encoded), "those of the cache are used"
    assert contents(tmp_path / "a") == contents(tmp_path / "c")


def test_a_model_in_memory_is_saved_for_other_processes(predicted, manifest, _fitted, tmp_path):
    table = gdml.tl.predict_slides(manifest, _fitted[1], tmp_path / "out", devices=["cpu", "cpu"])
    assert (table["state"] == "done").all() and not multiprocessing.active_children()
    assert gdml.load(tmp_path / "out" / "model").panel == _fitted[1].panel
    ours, theirs = contents(tmp_path / "out"), contents(predicted[0])
    assert ours.keys() == theirs.keys()
    differ = [name for name in ours if ours[name] != theirs[name]]
    # two folders of one model: all else is the same, byte for byte
    assert {name.split(".zarr/")[1] for name in differ} <= {"zarr.json", "uns/gdml/predict/model/c"}, differ


def test_unusual_slides_and_spots_are_in_the_table_and_counted(manifest, model, tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr("gdml.tl._predict_slides.tell", log.append)
    pixels = np.asarray(Image.open(manifest["path"][0]).convert("RGB"))
    exchanged, partly = pixels[..., ::-1], pixels.copy()  # red and blue
    partly[:, : pixels.shape[1] // 3] = exchanged[:, : pixels.shape[1] // 3]
    changed = manifest.iloc[[0, 0, 0]].reset_index(drop=True).assign(name=["as it was", "in part", "exchanged"])
    for number, values in ((1, partly), (2, exchanged)):
        changed.loc[number, "path"] = str(tmp_path / f"{number}.png")
        Image.fromarray(values).save(changed.loc[number, "path"])
    with pytest.warns(UserWarning, match="unlike anything .*'exchanged'"):
        table = gdml.tl.predict_slides(changed, model, tmp_path / "out").set_index("name")
    for name, row in table.iterrows():
        judged = anndata.read_zarr(row["result"]).uns["gdml"]["predict"]["ood"].loc[name]
        assert (row["verdict"], row["unusual_spots"]) == (judged["verdict"], judged["unusual_spots"])
    assert table.loc["exchanged", "verdict"] == "unlike the training slides"
    assert table.loc["as it was", "verdict"] == "like the training slides"
    assert table.loc["as it was", "unusual_spots"] < table.loc["in part", "unusual_spots"]
    assert log[-1].endswith(f"; {(table['verdict'] == 'unlike the training slides').sum()} unlike the training slides")
    kept = pd.read_csv(tmp_path / "out" / "slides.csv").set_index("name")
    pd.testing.assert_series_equal(kept["unusual_spots"], table["unusual_spots"].sort_index())


def test_a_model_that_cannot_tell_leaves_the_columns_empty(manifest, _fitted, tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr("gdml.tl._predict_slides.tell", log.append)
    older = copy.copy(_fitted[1])
    older.familiarity = None
    table = gdml.tl.predict_slides(manifest[:1], older, tmp_path / "out")
    assert table["verdict"].tolist() == [""] and table["unusual_spots"].isna().all()
    assert "unlike" not in log[-1]


def test_a_failed_slide_is_mended_by_the_next_call(manifest, model, tmp_path, monkeypatch):
    log = []
    monkeypatch.setattr("gdml.tl._predict_slides.tell", log.append)
    broken = manifest[:2].copy()
    broken.loc[1, "path"] = str(tmp_path / "broken.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    table = gdml.tl.predict_slides(broken, model, tmp_path / "out")
    assert table["state"].tolist() == ["done", "failed"] and pd.isna(table["n_tiles"][1])
    assert "broken.jpg" in table["reason"][1] and table["result"][1] == ""
    assert "1 slide of 2 done; 1 slide failed: biopsy S3 (" in log[0]
    table = gdml.tl.predict_slides(manifest[:2], model, tmp_path / "out")
    assert table["state"].tolist() == ["done", "done"]


def test_shards_share_a_folder(manifest, model, tmp_path):
    parts = [gdml.tl.predict_slides(manifest, model, tmp_path / "out", shard=f"{i}/2") for i in (1, 2)]
    assert [part["name"].tolist() for part in parts] == [["biopsy S2", "biopsy S4"], ["biopsy S3"]]
    assert len(pd.read_csv(tmp_path / "out" / "slides.csv")) == 3


def test_other_options_and_other_models_are_refused(predicted, manifest, model, _fitted):
    with pytest.raises(ValueError, match=r"min_tissue 0\.25, now 0\.5\); choose another folder"):
        gdml.tl.predict_slides(manifest, model, predicted[0], min_tissue=0.5)
    adata = _fitted[0].copy()
    other = gdml.tl.fit(adata[adata.obs["patient"] == adata.obs["patient"].iloc[0]].copy(), "ridge")
    with pytest.raises(ValueError, match="weights '.*', now '"):
        gdml.tl.predict_slides(manifest, other, predicted[0])


def test_outlines_of_each_slide(manifest, model, tmp_path):
    ring = [[400, 400], [1100, 400], [1100, 1100], [400, 1100], [400, 400]]
    square = {"type": "Polygon", "coordinates": [ring]}
    (tmp_path / "biopsy S2.geojson").write_text(str(square).replace("'", '"'))
    pattern = str(tmp_path / "{name}.geojson")
    table = gdml.tl.predict_slides(manifest[:1], model, tmp_path / "out", tissue=pattern, min_tissue=0.9)
    xy = anndata.read_zarr(table["result"][0]).obsm["spatial"]
    assert len(xy) and xy.min() > 400 and xy.max() < 1100
    with pytest.raises(FileNotFoundError, match="2 files missing"):
        gdml.tl.predict_slides(manifest, model, tmp_path / "out", tissue=pattern)


@pytest.mark.parametrize(
    ("wrong", "kind", "told"),
    [
        ({"slides": "none.csv"}, FileNotFoundError, "`slides`"),
        ({"model": "none"}, FileNotFoundError, "`path` .* does not exist"),
        ({"model": 3}, TypeError, "`model`"),
        ({"out": 3}, TypeError, "`out`"),
        ({"client": "tcp://scheduler:8786"}, TypeError, "`client`"),
        ({"shard": "4/3"}, ValueError, "`shard`"),
        ({"devices": []}, ValueError, "`devices` is empty"),
        ({"devices": ["cpu", "cuda:99"]}, ValueError, "cuda:99"),
        (
            {"devices": ["cpu", "cpu"], "client": SimpleNamespace(submit=print, scheduler_info=print)},
            ValueError,
            "start a worker for each GPU",
        ),
        ({"client": UNLIKE}, ValueError, "pass precision='fp32' or precision='bf16'"),
        ({"tissue": "outline.geojson"}, ValueError, "{name}"),
        ({"min_tissue": 2}, ValueError, "`min_tissue`"),
        ({"spacing_um": "far"}, TypeError, "`spacing_um`"),
        ({"layout": "round"}, ValueError, "`layout`"),
        ({"precision": "fp64"}, ValueError, "`precision`"),
        ({"threads": 0}, ValueError, "`threads`"),
        ({"batch_size": 0}, ValueError, "`batch_size`"),
        ({"takeover_s": 0}, ValueError, "`takeover_s`"),
    ],
)
def test_bad_arguments_leave_no_folder(manifest, model, tmp_path, wrong, kind, told):
    call = {"slides": manifest, "model": model, "out": tmp_path / "out", **wrong}
    with pytest.raises(kind, match=told):
        gdml.tl.predict_slides(**call)
    assert not (tmp_path / "out" / "state").exists()
