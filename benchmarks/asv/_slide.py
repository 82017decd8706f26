"""The small synthetic slide of all benchmarks."""

import os
import tempfile
from pathlib import Path

import gdml


def quiet() -> None:
    """Disable progress bars, which would be timed."""
    os.environ["TQDM_DISABLE"] = "1"


def tiled(folder: str, grid: int = 3):
    """AnnData of at most ``grid`` x ``grid`` spots on a JPEG, with tiles."""
    quiet()
    adata = gdml.datasets.synthetic(1, 1, grid=grid, n_genes=20, path=folder)
    gdml.pp.tile(adata)
    return adata


def image(adata) -> Path:
    """Path of its picture."""
    (library,) = adata.uns["spatial"]
    return Path(adata.uns["spatial"][library]["metadata"]["source_image_path"])


def scratch() -> tempfile.TemporaryDirectory:
    """Folder for one benchmark."""
    return tempfile.TemporaryDirectory(prefix="gdml-asv-")
