"""The commands as a shell calls them: what they pass on, what they print, and their exit status."""

import json
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
import pyvips

import gdml
from gdml.cli import main
from gdml.features import open_path
from gdml.pp import workers
from gdml.pp._extract import Extractor

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(synthetic_adata, tmp_path):
    """Two small slides without a scale."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("S1", "S2"):
        source = synthetic_adata.uns["spatial"][name]["metadata"]["source_image_path"]
        pyvips.Image.new_from_file(source).crop(400, 400, 400, 300).pngsave(str(folder / f"{name}.png"))
    return folder


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


# ---- the program


def test_the_script_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"gdml": "gdml.cli:main"}


@pytest.mark.parametrize("command", [[], ["predict"], ["embed"], ["doctor"]])
def test_help_is_light_and_ends_with_an_example(command):
    code = (
        "import sys\nfrom gdml.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code\n"
        "print('loaded:', *[m for m in ('torch', 'scanpy', 'pandas', 'numpy', 'distributed') if m in sys.modules])\n"
        "sys.exit(status)"
    )
    done = python("-c", code, *command, "--help")
    assert done.returncode == 0, done.stderr
    *text, loaded = done.stdout.splitlines()
    assert loaded == "loaded:"
    assert max(map(len, text)) <= 100
    if command:
        assert text[-2:][0] == "example:" and f"gdml {command[0]}" in text[-1]


def test_it_runs_as_a_module():
    done = python("-m", "gdml", "--version")
    assert done.returncode == 0 and done.stdout.strip() == f"gdml {gdml.__version__}"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["predict", "slides.csv"],
        ["embed", "slides.csv"],
        ["embed", "s.csv", "--encoder", "stain", "--shard", "1/2", "--scheduler", "tcp://a:1"],
        ["predict", "s.csv", "--model", "m", "--out", "o", "--batch-size", "many"],
    ],
)
def test_arguments_that_are_missing_or_contradict(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert "gdml" in capsys.readouterr().err


# ---- gdml predict


@pytest.fixture
def asked(monkeypatch):
    """What gdml.tl.predict_slides is called with; one slide of two fails."""
    calls = []

    def predict_slides(slides, model, out, **options):
        calls.append({"slides": slides, "model": model, "out": out, **options})
        return pd.DataFrame(
            {
                "name": ["S1", "S2"],
                "state": ["done", "failed"],
                "reason": ["", "no tissue was found\nin 'S2.png'"],
            }
        )

    monkeypatch.setattr(gdml.tl, "predict_slides", predict_slides, raising=False)
    return calls


def test_predict_passes_everything_on(asked, capsys):
    words = (
        "predict slides.csv --model m --out o --shard 2/3 --precision fp32 --batch-size 8 --no-clip --threads 2 "
        "--keep-features --interval 0.8"
    )
    tiles = "--spacing-um 56 --layout hex --min-tissue 0.5 --devices cuda:0,cuda:1"
    assert main([*words.split(), *tiles.split(), "--interval-for", "unseen slide"]) == 1
    assert asked == [
        {
            "slides": "slides.csv",
            "model": "m",
            "out": "o",
            "client": None,
            "shard": "2/3",
            "devices": ["cuda:0", "cuda:1"],
            "precision": "fp32",
            "batch_size": 8,
            "clip": False,
            "interval": 0.8,
            "interval_for": "unseen slide",
            "threads": 2,
            "keep_features": True,
            "spacing_um": 56.0,
            "layout": "hex",
            "tissue": True,
            "min_tissue": 0.5,
        }
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "failed  S2: no tissue was found in 'S2.png'",
        "1 of 2 slides done, 1 failed; results in o",
    ]


def test_several_images_are_a_list_and_glass_is_tiled_on_request(asked):
    main(["predict", "a.svs", "b.svs", "--model", "m", "--out", "o", "--no-tissue"])
    assert asked[0]["slides"] == ["a.svs", "b.svs"] and asked[0]["tissue"] is False
    main(["predict", "a.svs", "--model", "m", "--out", "o", "--outlines", "o/{name}.geojson"])
    assert asked[1]["tissue"] == "o/{name}.geojson"


def test_a_scale_for_all_fills_the_gaps_of_a_table(asked, images):
    table = pd.DataFrame({"path": ["S1.png", "S2.png"], "group": ["P1", "P2"], "um_per_px": [0.5, None]})
    table.to_csv(images / "slides.csv", index=False)
    main(["predict", str(images / "slides.csv"), "--um-per-px", "0.25", "--model", "m", "--out", "o"])
    passed = asked[0]["slides"]
    assert passed["um_per_px"].tolist() == [0.5, 0.25] and passed["group"].tolist() == ["P1", "P2"]
    assert passed["path"].tolist() == [str(images / "S1.png"), str(images / "S2.png")]


def test_a_scheduler_is_a_client_and_closed_at_the_end(asked, tmp_path):
    distributed = pytest.importorskip("distributed")
    words = ["predict", "a.svs", "--model", "m", "--out", "o", "--scheduler"]
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        main([*words, cluster.scheduler_address])
        (tmp_path / "scheduler.json").write_text(json.dumps(cluster.scheduler.identity(), default=str))
        main([*words, "scheduler.json"])
    for call in asked:
        assert isinstance(call["client"], distributed.Client) and call["client"].status == "closed"
        assert call["client"].scheduler is None or cluster.scheduler_address in repr(call["client"].scheduler)


def test_all_done_is_zero(asked, monkeypatch):
    table = pd.DataFrame({"name": ["S1"], "state": ["done"], "reason": [""]})
    monkeypatch.setattr(gdml.tl, "predict_slides", lambda *args, **options: table)
    assert main(["predict", "a.svs", "--model", "m", "--out", "o"]) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("`model`: no such thing"), "gdml: error: `model`: no such thing\n"),
        (ValueError("2 problems:\n- a\n- b"), "gdml: error: 2 problems:\n- a\n- b\n"),
        (
            FileNotFoundError(2, "No such file or directory", "m"),
            "gdml: error: [Errno 2] No such file or directory: 'm'\n",
        ),
        (RuntimeError(), "gdml: error: RuntimeError\n"),
    ],
)
def test_errors_are_their_message_and_two(asked, monkeypatch, capsys, error, line):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(gdml.tl, "predict_slides", fail)
    words = ["predict", "a.svs", "--model", "m", "--out", "o"]
    assert main(words) == 2
    assert capsys.readouterr().err == line
    with pytest.raises(type(error)):
        main([*words, "--traceback"])


def test_notes_of_an_error_are_printed(asked, monkeypatch, capsys):
    def fail(*args, **options):
        error = ValueError("no")
        error.add_note("Try yes.")
        raise error

    monkeypatch.setattr(gdml.tl, "predict_slides", fail)
    main(["predict", "a.svs", "--model", "m", "--out", "o"])
    assert capsys.readouterr().err == "gdml: error: no Try yes.\n"


def test_warnings_are_one_line(asked, monkeypatch, capsys):
    def warn(*args, **options):
        warnings.warn("The model was trained\non S1.", UserWarning, stacklevel=2)
        return pd.DataFrame({"name": ["S1"], "state": ["done"], "reason": [""]})

    monkeypatch.setattr(gdml.tl, "predict_slides", warn)
    before = warnings.showwarning
    assert main(["predict", "a.svs", "--model", "m", "--out", "o"]) == 0
    assert capsys.readouterr().err == "gdml: warning: The model was trained on S1.\n"
    assert warnings.showwarning is before


def test_an_interrupt_says_how_to_go_on(asked, monkeypatch, capsys):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gdml.tl, "predict_slides", interrupt)
    assert main(["predict", "a.svs", "--model", "m", "--out", "o"]) == 130
    assert "the same command does what is left" in capsys.readouterr().err


# ---- gdml embed


def embed(*words):
    images, *rest = map(str, words)
    return main(["embed", images, "--encoder", "stain", "--um-per-px", "1", "--precision", "fp32", *rest])


def test_embed_then_predict_encodes_nothing(images, synthetic_adata, monkeypatch, capsys):
    train = synthetic_adata[synthetic_adata.obs["library_id"] == "S3"].copy()
    gdml.pp.tile(train)
    gdml.pp.embed(train, "stain", precision="fp32")
    gdml.pp.normalize(train, n_genes=10)
    gdml.tl.fit(train, "ridge", validation=None, max_epochs=1, save_to="model")
    encoded, run = [], Extractor.run

    def count(extractor, slide, store, xy, *args, **options):
        encoded.append(len(xy))
        run(extractor, slide, store, xy, *args, **options)

    monkeypatch.setattr(Extractor, "run", count)
    assert embed(images) == 0
    n_tiles, encoded[:] = sum(encoded), []
    assert f"2 of 2 slides done, 0 failed; features of {6 * 2} tiles" in capsys.readouterr().out and n_tiles == 12
    predict = ["predict", str(images), "--um-per-px", "1", "--model", "model", "--precision", "fp32"]
    assert main([*predict, "--out", "predicted"]) == 0
    assert sum(encoded) == 0
    assert "2 of 2 slides done, 0 failed; results in predicted" in capsys.readouterr().out
    assert ad.read_zarr("predicted/S1.zarr").obsm["gdml"].shape == (6, 10)
    assert main([*predict, "--out", "others", "--spacing-um", "56"]) == 0
    assert sum(encoded) > 0, "tiles that were not embedded are encoded"


def test_a_slide_that_fails_leaves_the_others_alone(images, capsys):
    (images / "S0.png").write_bytes(b"no image")
    assert embed(images) == 1
    said = capsys.readouterr().out
    assert said.startswith("failed  S0: ") and "2 of 3 slides done, 1 failed" in said


def test_outlines_say_where_the_tissue_is(images, tmp_path, capsys):
    square = lambda side: [[[0, 0], [side, 0], [side, side], [0, side], [0, 0]]]
    (tmp_path / "{cohort}").mkdir()  # of braces, {name} alone is filled in
    for name, side in (("S1", 250), ("S2", 120)):
        outline = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": square(side)}}
        (tmp_path / "{cohort}" / f"{name}.geojson").write_text(json.dumps(outline))
    assert embed(images, "--outlines", "{cohort}/{name}.geojson") == 0
    assert "features of 5 tiles" in capsys.readouterr().out  # 2 x 2 and one


def test_shards_are_disjoint_and_complete(images, capsys):
    assert [embed(images, "--shard", f"{i}/2") for i in (1, 2)] == [0, 0]
    assert capsys.readouterr().out.count("1 of 1 slides done") == 2
    assert len({open_path(path).path.name for path in stores()}) == 4  # own and neighbour tiles of two slides


def stores():
    return [path.parent for path in (gdml.settings.cache_dir / "features").glob("*/gdml.json")]


def test_embed_on_a_scheduler(images, tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster:
        assert embed(images, "--scheduler", cluster.scheduler_address) == 0
    assert "2 of 2 slides done, 0 failed" in capsys.readouterr().out
    first = {path.name for path in stores()}
    embed(images)
    assert {path.name for path in stores()} == first


def test_all_workers_encode_with_one_precision(images, monkeypatch):
    distributed = pytest.importorskip("distributed")
    asked = []
    monkeypatch.setattr(
        workers, "_about", lambda device, precision: ("1", "bf16" if precision == "auto" else precision)
    )
    monkeypatch.setattr(gdml.pp, "embed", lambda slide, encoder, **how: asked.append(how["precision"]))
    with distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
        for precision in ("auto", "fp32"):
            assert embed(images, "--precision", precision, "--scheduler", cluster.scheduler_address) == 0
    assert asked == ["bf16", "bf16", "fp32", "fp32"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shard", "3/2"], "`shard` is '3/2'"),
        (["--um-per-px", "-1"], "`--um-per-px` must be positive"),
        (["--encoder", "unu"], "`encoder` is 'unu', which is not known. Did you mean"),
        (["--outlines", "{name}.geojson"], "`tissue`: 2 files missing"),
        (["--outlines", "S1.geojson"], "give True, False, or a path with {name}"),
        (["--weights", "nothing.safetensors"], "`encoder` does not take these options"),
        (["--cache-dir", "/proc/nothing"], "choose another folder with --cache-dir"),
        (["--scheduler", "tcp://127.0.0.1:1"], "no Dask scheduler answers"),
    ],
)
def test_embed_refuses_before_any_slide(images, monkeypatch, capsys, words, message):
    pytest.importorskip("distributed")
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        assert embed(images, *words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not stores()


def test_a_scheduler_needs_the_extra(images, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert embed(images, "--scheduler", "tcp://127.0.0.1:1") == 2
    assert "pip install 'gdml[cluster]'" in capsys.readouterr().err
