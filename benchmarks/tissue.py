"""Tissue found on the real sections, as it is and behind synthetic pen marks, folds and blur; squidpy's beside it.

    GDML_DATA_DIR=../shared/data python benchmarks/tissue.py [--marks | --crops] [SECTION ...]

Spots off tissue are those with less than a quarter of tissue in the 112 um around them. ``--marks`` draws the marks and
gives the share of them that is found and of the tissue away from them that is lost; ``--crops`` gives the classes of the
images in ``he_tiles``, most of which show no glass.
"""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.filters import gaussian

from gdml.slides import Slide, open_slide
from gdml.slides.geometry import um_per_px_from_neighbors
from gdml.slides.glass import optical_density
from gdml.slides.tissue import CLASSES, TissueMap, find_tissue, look_at

TILE_UM, LEAST = 112.0, 0.25
INKS = {
    "blue": (40, 70, 190),
    "dark blue": (25, 25, 150),
    "green": (30, 140, 70),
    "red": (205, 30, 45),
    "black": (25, 25, 30),
}
PEN_UM, FOLD_UM, BLUR_UM, SPOT_UM = 500.0, 120.0, 20.0, 700.0  # widths of lines; standard deviation; radius
TISSUE, PEN, FOLD, BLURRED = (CLASSES.index(name) for name in ("tissue", "pen", "fold", "blurred"))


def sections(data: Path) -> Iterator[tuple[str, Path, NDArray[np.float64] | None, float]]:
    """Name, image, spot centres (None where there are none) and um per px of the real sections."""
    for name in ("B4", "C2", "C3", "C4", "C6"):
        table = pd.read_csv(data / "her2st" / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t")
        xy = table[["pixel_x", "pixel_y"]].to_numpy(float)
        image = next((data / "her2st" / "ST-imgs" / name[0] / name).glob("*.jpg"))
        yield name, image, xy, um_per_px_from_neighbors(xy, 200)
    for name in ("01", "02", "11"):
        xy = pd.read_csv(data / "st_mob" / f"rep{name}_spots.csv")[["pixel_x", "pixel_y"]].to_numpy(float)
        yield f"mob{name}", data / "st_mob" / f"rep{name}_he.jpg", xy, 2.76
    table = pd.read_csv(data / "visium_colon" / "spatial" / "tissue_positions_list.csv", header=None)
    yield "colon d0", data / "visium_colon" / "colon_d0_HE.jpg", table[[5, 4]].to_numpy(float), 0.97
    yield "colon d14", data / "visium_colon" / "colon_d14_HE.jpg", None, 0.97


def line(
    shape: tuple[int, int], um: float, width: float, length: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Coverage of each pixel by a curved line at a random place; um per px, width and length in um."""
    height, across = shape
    drawn = Image.new("L", (2 * across, 2 * height))
    point, angle = rng.uniform(0.2, 0.8, 2) * (across, height), rng.uniform(0, 2 * np.pi)
    points = [tuple(2 * point)]
    for _ in range(20):
        angle += rng.normal(0, 0.2)
        point = point + np.array([np.cos(angle), np.sin(angle)]) * length / 20 / um
        points.append(tuple(2 * point))
    ImageDraw.Draw(drawn).line(points, fill=255, width=round(2 * width / um), joint="curve")
    return np.asarray(drawn.resize((across, height), Image.Resampling.BILINEAR)) / 255


def line_on(tissue: NDArray[np.bool_], um: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw a line that lies on tissue, as a fold does."""
    lines = (line(tissue.shape, um, FOLD_UM, 2000.0, rng) for _ in range(30))
    return max(lines, key=lambda one: one[tissue].sum())


def labels_of(image: NDArray[np.uint8], um: float) -> NDArray[np.uint8]:
    """Labels of a thumbnail, as if it were one of a larger slide, so that focus is judged."""
    found, _ = look_at(_Thumbnail(image, um))
    return found.labels


class _Thumbnail:
    """A slide that has its thumbnail alone, a quarter of its size."""

    def __init__(self, image: NDArray[np.uint8], um: float) -> None:
        self.name, self.image, self.um_per_px = "thumbnail", image, um / 4
        self.size = (4 * image.shape[1], 4 * image.shape[0])

    def thumbnail(self, longest: int) -> NDArray[np.uint8]:
        return self.image


def squidpys(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tissue by squidpy, with its defaults."""
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel
    from squidpy.experimental.im import detect_tissue

    he = Image2DModel.parse(image, dims=("y", "x", "c"), c_coords=["r", "g", "b"])
    return np.asarray(detect_tissue(SpatialData(images={"he": he}), "he", inplace=False)) > 0


def as_it_is(slide: Slide, xy: NDArray[np.float64] | None, scale: float) -> dict[str, float]:
    """Classes, spots off tissue, and agreement with squidpy."""
    start = time.perf_counter()
    found = find_tissue(slide, um_per_px=scale)
    row = {"seconds": time.perf_counter() - start}
    row |= {f"% {name}": 100 * float(np.mean(found.labels == code)) for code, name in enumerate(CLASSES)}
    _, image = look_at(slide, um_per_px=scale)
    ours, other = found.labels == TISSUE, squidpys(image)
    row["squidpy IoU"] = np.sum(ours & other) / np.sum(ours | other)
    if xy is not None:
        row["spots"] = len(xy)
        for name, labels in (("ours", found.labels), ("squidpy", other.astype(np.uint8))):
            row[f"off, {name}"] = np.sum(TissueMap(labels, slide.size).fraction(xy, TILE_UM / scale) < LEAST)
    return row


def with_marks(slide: Slide, scale: float, rng: np.random.Generator) -> dict[str, float]:
    """Share of each mark that is found, and of the tissue away from it that is lost."""
    found, image = look_at(slide, um_per_px=scale)
    um, tissue, row = scale * max(slide.size) / max(image.shape[:2]), found.labels == TISSUE, {}
    for name, ink in INKS.items():
        cover = line(image.shape[:2], um, PEN_UM, 8000.0, rng)
        marked = (image * ((np.array(ink) + 1) / 256) ** cover[..., None]).astype(np.uint8)
        labels, on = labels_of(marked, um), cover > 0.5
        for where, part in (("glass", on & ~tissue), ("tissue", on & tissue)):
            row[f"{name} on {where}"] = np.mean(labels[part] == PEN) if part.sum() > 200 else np.nan
        row[f"{name}, lost"] = np.mean(labels[tissue & (gaussian(cover, 8) < 0.01)] != TISSUE)
        if name == "blue":
            row["tissue to squidpy"] = np.mean(squidpys(marked)[on & ~tissue])
    cover = line_on(tissue, um, rng)
    density = optical_density(image) * (1 + cover[..., None])
    labels = labels_of(np.clip(256 * 10**-density - 1, 0, 255).astype(np.uint8), um)
    row["fold"] = np.mean(labels[(cover > 0.5) & tissue] == FOLD)
    row["fold, lost"] = np.mean(labels[tissue & (gaussian(cover, 8) < 0.01)] != TISSUE)
    y, x = np.argwhere(tissue)[rng.integers(tissue.sum())]
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    distance = um * np.hypot(rows - y, columns - x)
    soft = gaussian(image, BLUR_UM / um, channel_axis=2, preserve_range=True)
    labels = labels_of(np.where((distance < SPOT_UM)[..., None], soft, image).astype(np.uint8), um)
    row["blur"] = np.mean(labels[(distance < SPOT_UM) & tissue] == BLURRED)
    row["blur, lost"] = np.mean(labels[tissue & (distance > SPOT_UM + 100)] != TISSUE)
    return row


def crops(data: Path, most: int = 30) -> pd.DataFrame:
    """Shares of the classes on images without a scale, most of which show tissue alone."""
    rows = []
    for source in sorted((data / "he_tiles").iterdir()):
        paths = sorted(source.iterdir())
        for path in paths[:: max(1, len(paths) // most)][:most]:
            labels = look_at(open_slide(path))[0].labels
            rows.append({"source": source.name} | {n: 100 * np.mean(labels == i) for i, n in enumerate(CLASSES)})
    table = pd.DataFrame(rows).groupby("source")
    return table.mean().join(table["tissue"].agg(n="size", all_tissue=lambda share: (share > 99).sum()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--marks", action="store_true")
    parser.add_argument("--crops", action="store_true")
    parser.add_argument("section", nargs="*")
    asked = parser.parse_args()
    data = Path(os.environ["GDML_DATA_DIR"])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    pd.set_option("display.width", 200, "display.float_format", "{:.3f}".format)
    if asked.crops:
        print(crops(data))
        return
    rng, rows = np.random.default_rng(0), {}
    for name, path, xy, scale in sections(data):
        if not asked.section or name in asked.section:
            slide = open_slide(path)
            rows[name] = with_marks(slide, scale, rng) if asked.marks else as_it_is(slide, xy, scale)
            print(name, {key: round(float(value), 4) for key, value in rows[name].items()}, flush=True)
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
