"""Space Ranger folders in every layout, written by the tests."""

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
SIZE = (330, 250)  # width, height of the full-resolution image
SCALES = {"hires": 0.5, "lowres": 0.2}


def picture(seed: int = 0, size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth coloured noise."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def hex_positions(n_rows: int = 8, n_cols: int = 9) -> pd.DataFrame:
    """Positions of a Visium array: columns are even in even rows and odd in odd ones; the left column is off tissue."""
    grid = [(row, 2 * i + row % 2) for row in range(n_rows) for i in range(n_cols)]
    rng = np.random.default_rng(1)
    names = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in grid]
    table = pd.DataFrame(grid, columns=["array_row", "array_col"], index=names)
    table["in_tissue"] = (table["array_col"] > 1).astype(int)
    table["pxl_row_in_fullres"] = 30 + 26 * table["array_row"]
    table["pxl_col_in_fullres"] = 20 + 15 * table["array_col"]
    return table


def bin_positions(n: int, um: int) -> pd.DataFrame:
    """Positions of n x n bins of Visium HD, the array turned a little; bins are in tissue within a circle."""
    row, col = (axis.ravel() for axis in np.mgrid[:n, :n])
    table = pd.DataFrame({"array_row": row, "array_col": col})
    table.index = [f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)]
    v, u = (row + 0.5) * um, (col + 0.5) * um  # um from the corner of the array
    table["pxl_col_in_fullres"] = 60 + 2.0 * u - 0.3 * v
    table["pxl_row_in_fullres"] = 20 + 0.3 * u + 2.0 * v
    table["in_tissue"] = (np.hypot(u - n * um / 2, v - n * um / 2) < n * um * 0.4).astype(int)
    return table


def counts_of(barcodes: list[str], n_genes: int = 5, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).poisson(2, (len(barcodes), n_genes))
    return pd.DataFrame(values, index=barcodes, columns=[f"G{i}" for i in range(n_genes)])


def write_h5(path: Path, counts: pd.DataFrame, types: list[str], **attributes: object) -> None:
    """Write 10x's layout: features x barcodes, by column."""
    matrix = sparse.csc_matrix(counts.to_numpy().T, dtype=np.int32)
    with h5py.File(path, "w") as file:
        for name, value in attributes.items():
            file.attrs[name] = value
        group = file.create_group("matrix")
        group["barcodes"] = np.array(counts.index, "S")
        group["data"], group["shape"] = matrix.data, np.array(matrix.shape, np.int32)
        group["indices"], group["indptr"] = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:05d}" for i in range(counts.shape[1])], "S")
        features["name"], features["feature_type"] = np.array(counts.columns, "S"), np.array(types, "S")
        features["genome"] = np.array(["GRCh38"] * counts.shape[1], "S")
        features["_all_tag_keys"] = np.array(["genome"], "S")


def write_mtx(folder: Path, counts: pd.DataFrame, types: list[str]) -> None:
    folder.mkdir()
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        mmwrite(file, sparse.coo_matrix(counts.to_numpy().T))
    features = zip(counts.columns, types, strict=True)
    lines = [f"ENSG{i:05d}\t{name}\t{kind}\n" for i, (name, kind) in enumerate(features)]
    with gzip.open(folder / "features.tsv.gz", "wt") as file:
        file.writelines(lines)
    with gzip.open(folder / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in counts.index)


def write_positions(spatial: Path, table: pd.DataFrame, kind: str) -> None:
    """Write positions as ``kind``: "v1", "v2" or "parquet"."""
    table = table.rename_axis("barcode").reset_index()[COLUMNS]
    if kind == "v1":
        table.to_csv(spatial / "tissue_positions_list.csv", index=False, header=False)
    elif kind == "v2":
        table.to_csv(spatial / "tissue_positions.csv", index=False)
    else:
        table.to_parquet(spatial / "tissue_positions.parquet")


@dataclass
class Run:
    """What was written."""

    outs: Path
    counts: pd.DataFrame
    positions: pd.DataFrame

    @property
    def spatial(self) -> Path:
        return self.outs / "spatial"


def write_run(
    outs: Path,
    kind: str = "v2",
    *,
    matrix: str = "h5",
    positions: pd.DataFrame | None = None,
    counts: pd.DataFrame | None = None,
    types: list[str] | None = None,
    images: tuple[str, ...] = ("hires", "lowres"),
    factors: dict[str, object] | None = None,
    name: str = "filtered_feature_bc_matrix",
    library: str = "S1",
) -> Run:
    """Write one folder with a matrix and ``spatial``; its matrix has the spots under tissue."""
    outs.mkdir(parents=True, exist_ok=True)
    positions = hex_positions() if positions is None else positions
    counts = counts_of(list(positions.index[positions["in_tissue"] == 1])) if counts is None else counts
    types = ["Gene Expression"] * counts.shape[1] if types is None else types
    if matrix == "h5":
        attributes = {"library_ids": np.array([library], "S"), "chemistry_description": "Visium V4 Slide"}
        write_h5(outs / f"{name}.h5", counts, types, software_version="spaceranger-2.1.0", **attributes)
    else:
        write_mtx(outs / name, counts, types)
    spatial = outs / "spatial"
    spatial.mkdir(exist_ok=True)
    write_positions(spatial, positions, kind)
    known = {f"tissue_{image}_scalef": scale for image, scale in SCALES.items()}
    known |= {"spot_diameter_fullres": 19.5, "fiducial_diameter_fullres": 31.5}
    (spatial / "scalefactors_json.json").write_text(json.dumps(known | (factors or {})))
    for image in images:
        small = tuple(round(side * SCALES[image]) for side in SIZE)
        picture().resize(small, Image.Resampling.BOX).save(spatial / f"tissue_{image}_image.png")
    return Run(outs, counts, positions)


def write_hd(outs: Path, sizes: tuple[int, ...] = (2, 8, 16), *, side_um: int = 96) -> dict[int, Run]:
    """Write a Visium HD run, its bins nested as Space Ranger's are, and all of them in the matrix."""
    fine = bin_positions(side_um // 2, 2)
    counts = counts_of(list(fine.index), n_genes=4)
    runs = {}
    for um in sizes:
        places = zip(fine["array_row"] // (um // 2), fine["array_col"] // (um // 2), strict=True)
        table = counts.groupby([f"s_{um:03d}um_{r:05d}_{c:05d}-1" for r, c in places]).sum()
        factors = {"bin_size_um": float(um), "microns_per_pixel": 0.4945, "spot_diameter_fullres": um / 0.4945}
        folder = outs / "binned_outputs" / f"square_{um:03d}um"
        positions = bin_positions(side_um // um, um)
        runs[um] = write_run(folder, "parquet", positions=positions, counts=table, factors=factors, library="HD1")
    (outs / "spatial").mkdir(exist_ok=True)
    (outs / "feature_slice.h5").write_bytes(b"not read")
    picture().resize((60, 56)).save(outs / "spatial" / "cytassist_image.tiff")
    return runs


@pytest.fixture
def run_folder(tmp_path):
    """Writes a run into ``tmp_path/sample/outs``."""
    return lambda *args, **options: write_run(tmp_path / "sample" / "outs", *args, **options)


@pytest.fixture
def hd_folder(tmp_path):
    """Writes a Visium HD run into ``tmp_path/hd/outs``."""
    return lambda *args, **options: write_hd(tmp_path / "hd" / "outs", *args, **options)


@pytest.fixture
def slide_picture():
    """Picture that the downscaled images of the runs are made from, or with another seed another one."""
    return picture


@pytest.fixture
def array_positions():
    """Positions that runs are written with by default."""
    return hex_positions


@pytest.fixture
def random_counts():
    """Counts of given barcodes."""
    return counts_of


@pytest.fixture
def log():
    """What is told, in memory."""
    before, sc.settings.logfile = sc.settings.logfile, io.StringIO()
    yield sc.settings.logfile
    sc.settings.logfile = before
