"""The scripts of benchmarks/paper: figures, folds, checks before a download, and runs from end to end."""

import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

import gdml
from gdml.datasets._fetch import read_blobs

QUICK = ["--models", "ridge", "--encoder", "stain", "--neighbors", "lattice", "--tiles-per-s", "100"]
SKIN = ["--set", "skinst", "--sections", "NCBI770", "NCBI769", "NCBI767", "NCBI766"]
GATE = SimpleNamespace(headers={}, request=SimpleNamespace(url="x", method="GET"), status_code=403, text="")


@pytest.mark.parametrize(
    ("name", "model", "row"),
    [
        ("her2st", "gene-dml", (0.210, 0.350, 0.331, 0.541)),
        ("her2st", "m2ost", (0.302, 0.421, 0.231, 0.410)),
        ("stnet", "triplex", (0.202, 0.343, 0.206, 0.352)),
        ("skinst", "hist2st", (1.291, 0.924, 0.004, 0.053)),
    ],
)
def test_published_figures_are_those_of_the_paper(paper, name, model, row):
    assert tuple(mean for mean, _ in paper("_published").CROSS_VALIDATION[name][model]) == row


def test_published_tables_agree_with_each_other(paper):
    published = paper("_published")
    assert published.EXTERNAL["gene-dml"][1][2:] == (0.192, 0.411)
    for name, models in published.CROSS_VALIDATION.items():
        assert set(models) < set(gdml.models.list_models())
        chosen = tuple(mean for mean, _ in models["gene-dml"])
        preset = gdml.models.GeneDML.presets[name]
        values = {"pathways": "both", "k": preset.n_groups, "lambda": preset.group_weight, "tau_IG": preset.group_tau}
        for field, value in values.items():
            assert published.ABLATION[name][field][value] == chosen, (name, field)
    numbers = [n for tables in published.ABLATION_TABLES.values() for n in tables.values()]
    assert sorted(numbers) == [3, 4, 5, 6, *range(8, 16)]


def test_sets_have_the_slides_of_their_sources(paper):
    sets = paper("_sets")
    known = {path.split("/")[1].split(".")[0] for path in read_blobs("git_blobs.tsv") if path.startswith("ST-cnts/")}
    assert set(sets.HER2ST.patients) == known
    assert [len(sets.SETS[name].patients) for name in ("her2st", "stnet", "skinst")] == [36, 68, 12]
    assert sets.STNET.patients["SPA111"] == "BC23901" and sets.STNET.patients["SPA51"] == "BC23803"
    assert Counter(Counter(sets.STNET.patients.values()).values()) == {3: 22, 2: 1}
    assert Counter(sets.SKINST.patients.values()) == {"P2": 3, "P5": 3, "P9": 3, "P10": 3}


def test_folds_are_the_authors(paper):
    sets = paper("_sets")
    folds = sets.STNET.folds
    # numpy's permutation of 23 with this seed, cut into parts of 3 (and one of 2), is what KFold deals
    order = np.arange(23)
    np.random.RandomState(2021).shuffle(order)
    for fold, part in zip(folds.values(), np.array_split(order, 8), strict=True):
        assert set(fold) == {sets.STNET_PATIENTS[i] for i in part}
    assert list(sets.SKINST.folds) == ["P2", "P5", "P9", "P10"]
    assert list(sets.HER2ST.folds) == list("ABCDEFGH")
    for paper_set in sets.SETS.values():
        splits = paper_set.splits(list(paper_set.patients))
        assert sorted(slide for _, test in splits.values() for slide in test) == sorted(paper_set.patients)
        for train, test in splits.values():
            assert not {paper_set.patients[s] for s in train} & {paper_set.patients[s] for s in test}
            assert len(train) + len(test) == len(paper_set.patients)


def test_slides_that_make_no_fold_are_refused(paper):
    sets = paper("_sets")
    assert sets.HER2ST.splits(["B4", "C2", "C3"]) == {"B": (["C2", "C3"], ["B4"]), "C": (["B4"], ["C2", "C3"])}
    with pytest.raises(ValueError, match="of one fold; name slides of two patients"):
        sets.HER2ST.splits(["C2", "C3"])
    with pytest.raises(ValueError, match="HER2ST has no Z9; it has A1"):
        sets.HER2ST.choose(["B4", "Z9"])


def call(paper, script, tmp_path, *arguments):
    paper(script).main([*QUICK, "--folder", str(tmp_path / "paper"), *map(str, arguments)])


def test_a_sample_is_downloaded_only_when_told_to_and_then_runs(paper, hub, panel, tmp_path, capsys):
    script = "table1_cross_validation"
    call(paper, script, tmp_path, *SKIN, "--genes", panel)
    printed = capsys.readouterr().out
    assert "8 files, 0.0 MB" in printed and "call again with --yes" in printed and not hub.asked

    call(paper, script, tmp_path, *SKIN, "--genes", panel, "--check", "--yes", "--mbit-s", 8)
    assert "call again" not in capsys.readouterr().out and not hub.asked

    call(paper, script, tmp_path, *SKIN, "--genes", panel, "--yes", "--protocol", "paper", "nested")
    printed = capsys.readouterr().out
    assert hub.asked == [
        ["HEST_v1_*.csv", *(f"{d}/{s}.{e}" for s in SKIN[3:] for d, e in (("st", "h5ad"), ("wsis", "tif")))]
    ]
    # one spot of each sample lies beside the tissue
    assert f"4 slides, {sum(s.n_obs - 1 for s in hub.slides.values())} spots" in printed
    assert (
        "Measured: 4 of 12 slides, encoder stain" in printed
        and "NOT THE SAME EXPERIMENT (slides and encoder" in printed
    )
    assert printed.count("OPTIMISTIC: the epoch") == 1 and "2 of 4 folds" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| ridge |")]
    assert len(rows) == 2 and all(row.count("±") == 4 and row.count("| - ") == 4 for row in rows)

    hub.refuse = AssertionError("nothing is asked of the hub when all is there")
    runs = {p: p.stat().st_mtime_ns for p in (tmp_path / "paper" / "runs").rglob("run.json")}
    call(paper, script, tmp_path, *SKIN, "--genes", panel, "--protocol", "paper", "nested")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "paper" / "runs").rglob("run.json")} == runs
    assert rows == [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ridge |")]


def test_samples_have_patients_pitch_and_scale(paper, hub, tmp_path, capsys):
    hest = paper("_hest")
    hub.snapshot_download(
        "MahmoodLab/hest", repo_type="dataset", local_dir=tmp_path, allow_patterns=hest.files_of(hub.slides)
    )
    patients = {"NCBI770": "P2", "NCBI767": "P5"}
    adata, scales = hest.read_samples(tmp_path, patients)
    assert dict(adata.obs.groupby("library_id", observed=True)["patient"].first()) == patients
    assert adata.obs_names.is_unique and not capsys.readouterr().out
    # the table has pitch and diameter swapped, as for the samples of GSE144240: the larger one is the pitch
    assert {v["metadata"]["spot_pitch_um"] for v in adata.uns["spatial"].values()} == {200.0}
    assert scales == {"NCBI770": 1.01, "NCBI767": 1.01}

    table = tmp_path / "HEST_v1_10_0.csv"
    table.write_text(table.read_text().replace("1.01", "0.55"))
    _, scales = hest.read_samples(tmp_path, patients)
    assert "HEST-1k says 0.550 um per px, its spots 1.0" in capsys.readouterr().out
    assert scales["NCBI770"] == pytest.approx(1.0, rel=0.02)

    with pytest.raises(ValueError, match="'NCBI770' is of patient 'P2' by the table of HEST-1k, of 'P9' by ours"):
        hest.read_samples(tmp_path, {"NCBI770": "P9"})
    (tmp_path / "wsis" / "NCBI770.tif").unlink()
    with pytest.raises(FileNotFoundError, match="NCBI770.tif': pass --yes"):
        hest.read_samples(tmp_path, patients)
    with pytest.raises(ValueError, match="no sample of HEST-1k"):
        hest.files_of(["../NCBI770"])


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            lambda: GatedRepoError("gated", response=GATE),
            PermissionError,
            "datasets/MahmoodLab/hest, then set .* HF_TOKEN",
        ),
        (
            lambda: HfHubHTTPError.__mro__[1]("no name"),
            ConnectionError,
            r"could not be asked for MahmoodLab/hest \(no name",
        ),
    ],
)
def test_a_hub_that_refuses_is_explained_before_anything_is_downloaded(paper, hub, tmp_path, error, kind, message):
    hub.refuse = error()
    with pytest.raises(kind, match=message):
        call(paper, "table1_cross_validation", tmp_path, *SKIN, "--yes")
    assert not hub.asked and not (tmp_path / "paper").exists()


def test_gated_weights_are_asked_for_first(paper, hub):
    needs = paper("_hub")
    assert needs.weights_to_fetch("stain") == 0
    assert needs.weights_to_fetch("uni") == 1000
    hub.refuse = GatedRepoError("gated", response=GATE)
    with pytest.raises(PermissionError, match=r"huggingface.co/MahmoodLab/UNI, then set"):
        needs.weights_to_fetch("uni")


def test_a_disk_that_is_too_small_is_refused(paper, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="GB free; .* are needed. Name another with --folder"):
        call(paper, "table1_cross_validation", tmp_path, *SKIN, "--yes")
    assert not hub.asked


def test_features_lie_in_the_folder_unless_the_user_has_a_cache(paper, hub, tmp_path, monkeypatch):
    monkeypatch.delenv("GDML_CACHE_DIR")
    call(paper, "table1_cross_validation", tmp_path, *SKIN)
    assert gdml.settings.cache_dir == tmp_path / "paper" / "cache"


def test_needs_are_counted_from_files_and_rates(paper, hub, tmp_path):
    needs, sets, measure = paper("_needs"), paper("_sets"), paper("_measure")
    encoding = measure.Encoding(tiles_per_s=10, n_tokens=50, dim=100)
    slides = ["A1", "A2", "B1"]
    found = needs.find_needs({"her2st": (sets.HER2ST, slides)}, tmp_path, "stain")
    needs.add_features(found, encoding, "exact")
    assert len(found.files["her2st"]) == 9 and found.download == 3 * sum(needs.HER2ST_BYTES.values())
    assert found.spots == round(13620 * 3 / 36) and found.tiles == 25 * found.spots
    assert found.features == 2 * 100 * found.spots * (50 + 25)
    seconds = measure.training_seconds(
        {"ridge": {"model": "ridge"}, "stnet": {"model": "stnet", "training": {"refit": False}}},
        encoding,
        n_train=600,
        n_folds=4,
        n_seeds=2,
        n_genes=9,
        max_epochs=5,
        device="cpu",
        spots_per_s=100,
    )
    assert seconds == {"stnet": 4 * 2 * 5 * 600 / 100}


def test_rates_are_measured_where_none_is_given(paper):
    measure = paper("_measure")
    (candidate,) = measure.make_candidates({"stnet": {"model": "stnet"}}, {}, None)
    data = measure.noise(measure.Encoding(1, n_tokens=4, dim=8), n_genes=5)
    assert 0 < measure.measure_training(candidate, data, "cpu") < 1e9
    encoding = measure.measure_encoder("stain", "grid7", "cpu", tiles_per_s=7)
    assert (encoding.tiles_per_s, encoding.n_tokens, encoding.dim) == (7, 50, gdml.encoders.get_encoder("stain").dim)


def test_ablation_stands_beside_its_table(paper, hub, panel, tmp_path, capsys):
    config = '{"width": 16, "branch_width": 16, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 4}'
    arguments = [*SKIN, "--genes", panel, "--yes", "--preset", "none", "--config", config, "--max-epochs", 1]
    call(paper, "table3_ablation", tmp_path, *arguments, "--fields", "tau_IG", "--spots-per-s", 100)
    printed = capsys.readouterr().out
    assert "Table 6, skinST, tau_IG, protocol nested" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| 0.")]
    assert [row.split(" | ")[0] for row in rows] == ["| 0.05", "| 0.07", "| 0.1"]
    assert [row.split(" | ")[-1] for row in rows] == ["0.513 |", "0.520 |", "0.490 |"]
    assert all("±" in row.split(" | ")[1] for row in rows) and "FAILED" not in printed
    with pytest.raises(ValueError, match="the paper varies pathways, k, lambda, tau_IG, not width"):
        call(paper, "table3_ablation", tmp_path, *SKIN, "--fields", "width")


@pytest.mark.real
@pytest.mark.slow
def test_tables_1_and_2_run_on_real_sections(paper, data_dir, tmp_path, capsys):
    call(paper, "table1_cross_validation", tmp_path, "--sections", "B4", "C6")
    printed = capsys.readouterr().out
    assert "download: 0 files" in printed and "Table 1, HER2ST, protocol nested, 2 of 8 folds" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("| ridge |"))
    pcc_a = float(row.split(" | ")[5].split()[0])
    assert pcc_a > 0.1

    call(paper, "table2_external", tmp_path, "--sections", "B4", "--test-sections", "C6")
    printed = capsys.readouterr().out
    (row,) = (line for line in printed.splitlines() if line.startswith("| ridge | C6 | 250 of 250 |"))
    # the same model on the same slide: the fold C of table 1
    call(paper, "table2_external", tmp_path, "--sections", "B4", "--test-sections", "C6")
    assert row in capsys.readouterr().out
    with pytest.raises(ValueError, match="C6 are also training sections"):
        call(paper, "table2_external", tmp_path, "--sections", "B4", "C6", "--test-sections", "C6")
