import csv
import importlib
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import huggingface_hub
import pandas as pd
import pytest
from PIL import Image

import gdml

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"


@pytest.fixture
def paper(monkeypatch, cache_dir):
    """Import a file of benchmarks/paper by its name; features go to the tests' cache."""
    monkeypatch.syspath_prepend(PAPER)
    monkeypatch.setenv("GDML_CACHE_DIR", str(cache_dir))
    return importlib.import_module


class Hub:
    """A hub that has some samples of HEST-1k; ``refuse`` is what it raises, ``asked`` what was downloaded."""

    def __init__(self, slides, patients, columns):
        self.slides, self.patients, self.columns = slides, patients, columns
        self.refuse, self.asked = None, []

    def __call__(self):
        return self

    def auth_check(self, repo_id, *, repo_type=None):
        if self.refuse is not None:
            raise self.refuse

    def list_repo_tree(self, repo_id, *, repo_type, recursive):
        return [SimpleNamespace(path=name) for name in ("README.md", "HEST_v1_1_0.csv", "HEST_v1_10_0.csv")]

    def get_paths_info(self, repo_id, paths, *, repo_type=None):
        return [SimpleNamespace(path=path, size=1000) for path in paths]

    def snapshot_download(self, repo_id, *, repo_type, local_dir, allow_patterns):
        assert (repo_id, repo_type) == ("MahmoodLab/hest", "dataset")
        self.asked.append(list(allow_patterns))
        for sub in ("st", "wsis"):
            (local_dir / sub).mkdir(parents=True, exist_ok=True)
        for sample, slide in self.slides.items():
            if f"st/{sample}.h5ad" in allow_patterns:
                self.write_counts(sample, slide, local_dir / "st" / f"{sample}.h5ad")
            if f"wsis/{sample}.tif" in allow_patterns:
                (source,) = (entry["metadata"]["source_image_path"] for entry in slide.uns["spatial"].values())
                Image.open(source).save(local_dir / "wsis" / f"{sample}.tif")
        # of two tables the newer one counts; the older one knows no sample
        (local_dir / "HEST_v1_1_0.csv").write_text("id,patient\n")
        with (local_dir / "HEST_v1_10_0.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "patient", *self.columns])
            writer.writeheader()
            writer.writerows({"id": s, "patient": p, **self.columns} for s, p in self.patients.items())

    @staticmethod
    def write_counts(sample, slide, path):
        """As HEST-1k has it: spots in tissue and beside it, and an image under a name of its own."""
        obs = slide.obs[["array_row", "array_col"]].assign(in_tissue=1)
        obs.iloc[-1, -1] = 0
        uns = {"spatial": {"ST": {"images": {}, "scalefactors": {"spot_diameter_fullres": 100.0}}}}
        found = ad.AnnData(slide.X, obs=obs, var=pd.DataFrame(index=slide.var_names), uns=uns)
        found.obsm["spatial"] = slide.obsm["spatial"]
        found.write_h5ad(path)


@pytest.fixture
def hub(monkeypatch, synthetic_adata):
    """Two skin patients of two samples each, and nothing else, on a hub that every call goes to."""
    slides = {}
    for number, name in zip((770, 769, 767, 766), ("S1", "S2", "S3", "S4"), strict=True):
        slide = synthetic_adata[synthetic_adata.obs["library_id"] == name].copy()
        slide.uns["spatial"] = {name: synthetic_adata.uns["spatial"][name]}
        slides[f"NCBI{number}"] = slide
    patients = dict(zip(slides, ("Patient 2", "Patient 2", "Patient 5", "Patient 5"), strict=True))
    columns = {"inter_spot_dist": "100", "spot_diameter": "200", "pixel_size_um_estimated": "1.01"}
    made = Hub(slides, patients, columns)
    importlib.import_module("gdml.training.fabric")  # may import transformers, which needs the class as it is
    monkeypatch.setattr(huggingface_hub, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(gdml.settings, "cache_dir", gdml.settings.cache_dir)
    return made


@pytest.fixture
def panel(tmp_path, synthetic_adata):
    """File with a panel of thirty genes."""
    path = tmp_path / "panel.txt"
    path.write_text("\n".join(synthetic_adata.var_names[:30]))
    return path
