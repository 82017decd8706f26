"""The slide that all benchmarks share: small, synthetic, the same each time."""

import os
import tempfile
from pathlib import Path

import gdml


def quiet() -> None:
    """Keep progress bars out of what is timed."""
    os.environ["TQDM_DISABLE"] = "1"


def tiled(folder: str, grid: int = 3):
    """AnnData of ``grid`` x ``grid`` spots at most, on a JPEG, with tiles."""
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
