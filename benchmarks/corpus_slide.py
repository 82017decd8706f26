"""What one slide of a corpus takes: encoder calls, reading, the work beside the encoder, and the size of its result.

Copies an image to a pyramidal TIFF with JPEG tiles, as scanners write it, and predicts 250 genes with ridge, without spots:

    python benchmarks/corpus_slide.py slide.jpg --um-per-px 0.97 [--enlarge 2] [--encoder stain]

``--enlarge 2`` doubles the pixels, for the resolution of a scanner where the image has half of it.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyvips
import scanpy as sc

import gdml
from gdml.features import open_path
from gdml.slides import open_slide

_READ = 2000  # tiles that are read to measure the rate


def main() -> None:
    """Measure, and print each figure as soon as it is known."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("image", type=Path)
    arguments.add_argument("--um-per-px", type=float, required=True, help="of the image as it is")
    arguments.add_argument("--enlarge", type=int, default=1)
    arguments.add_argument("--encoder", default="stain")
    chosen = arguments.parse_args()
    sc.settings.verbosity = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        image = scanned(chosen.image, root / "slide.tif", chosen.enlarge)
        um_per_px = chosen.um_per_px / chosen.enlarge
        megapixels = np.prod(open_slide(image).size) / 1e6
        megabytes = image.stat().st_size / 1e6
        print(f"image: {megapixels:.0f} megapixels, {megabytes:.0f} MB, {megabytes / megapixels:.2f} bytes/px")
        gdml.settings.cache_dir = root / "training"
        fit(chosen.encoder).save(root / "model")
        gdml.settings.cache_dir = root / "cache"
        manifest = pd.DataFrame({"path": [str(image)], "um_per_px": um_per_px})
        predict = lambda out: gdml.tl.predict_slides(manifest, root / "model", root / out, keep_features=True).iloc[0]
        first = predict("first")
        stores = (root / "cache" / "features").glob("*/zarr.json")
        calls, n_tiles = sum(len(open_path(path.parent)) for path in stores), int(first["n_tiles"])
        print(f"{n_tiles} tiles, {calls} calls of the encoder, {calls / n_tiles:.2f} for each")
        begun = time.process_time()
        predict("again")
        print(f"all else, features being found: {time.process_time() - begun:.1f} core seconds")
        files = [path for path in Path(first["result"]).rglob("*") if path.is_file()]
        print(f"result: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
        xy = gdml.pp.grid(image, um_per_px=um_per_px).obsm["spatial"][:_READ]
        print(f"reading: {read_rate(image, xy, 112 / um_per_px):.0f} tiles a core second")


def scanned(source: Path, target: Path, enlarge: int) -> Path:
    """Write an image as a tiled, pyramidal TIFF."""
    image = pyvips.Image.new_from_file(str(source), access="sequential").resize(enlarge)
    image.tiffsave(str(target), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=80)
    return target


def fit(encoder: str) -> "gdml.training.TrainedModel":
    """Ridge for 250 genes, of synthetic slides."""
    train = gdml.datasets.synthetic(n_slides=4, n_patients=2, grid=7, n_genes=260, seed=1)
    gdml.pp.embed(train, encoder)
    gdml.pp.normalize(train, n_genes=250)
    return gdml.tl.fit(train, "ridge", group_key="patient")


def read_rate(image: Path, xy: np.ndarray, side_px: float) -> float:
    """Tiles a core second, each read at 224 px."""
    slide = open_slide(image)
    begun = time.process_time()
    for x, y in xy - side_px / 2:
        slide.read_region(x, y, side_px, side_px, (224, 224))
    seconds = time.process_time() - begun
    slide.close()
    return len(xy) / seconds


if __name__ == "__main__":
    main()
