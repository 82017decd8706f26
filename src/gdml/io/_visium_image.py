"""The full-resolution image of a Space Ranger run: checked where it is named, searched where it is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml._errors import some
from gdml.slides import Slide, open_slide
from gdml.slides.thumbnail import thumbnail

SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".qptiff", ".jpg", ".jpeg", ".png")
_TOLERANCE = 1.0  # px of the downscaled image
_COMPARED_PX = 256  # longer side at which two pictures are compared
_SAME = 0.9  # correlation of their grey values; of two sections from one scanner it was 0.39, of the same one 0.997
_FLAT = 1.0  # standard deviation of grey values below which a picture shows nothing


@dataclass(frozen=True)
class Downscaled:
    """The downscaled image of the run, which shows what the full-resolution image is.

    Parameters
    ----------
    name
        ``"hires"`` or ``"lowres"``.
    pixels
        RGB, (height, width, 3).
    scale
        Px of it per full-resolution px.
    """

    name: str
    pixels: NDArray[np.uint8]
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def has_size_of(self, slide: Slide) -> bool:
        """Whether the size of an image is that of the image this one was made from."""
        return all(
            abs(full * self.scale - small) <= _TOLERANCE for full, small in zip(slide.size, self.size, strict=True)
        )

    def correlation(self, slide: Slide) -> float | None:
        """Correlation of the grey values with those of an image of the same aspect.

        Returns
        -------
        None where it cannot be had at little cost (a very large image without a pyramid), or either shows nothing.
        """
        small = thumbnail(slide, _COMPARED_PX)
        if small is None:
            return None
        own = open_slide(self.pixels).read_region(0, 0, *self.size, out=(small.shape[1], small.shape[0]))
        grey = [picture.astype(np.float64).mean(2).ravel() for picture in (own, small)]
        if min(picture.std() for picture in grey) < _FLAT:
            return None
        return float(np.corrcoef(*grey)[0, 1])


def first_downscaled(images: Mapping[str, NDArray[np.uint8]], factors: Mapping[str, Any]) -> Downscaled | None:
    """Largest of the downscaled images whose scale factor is known."""
    for name in ("hires", "lowres"):
        if name in images and f"tissue_{name}_scalef" in factors:
            return Downscaled(name, images[name], factors[f"tissue_{name}_scalef"])
    return None


def check_image(image: str | PathLike[str], downscaled: Downscaled | None) -> Path:
    """Refuse a named image that is not the one of the run.

    Parameters
    ----------
    image
        Its path.
    downscaled
        Image of the run to hold it against; None where there is none, and only that it is an image is checked.

    Returns
    -------
    The absolute path.

    Raises
    ------
    TypeError
        If it is no path.
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is no image, or its size or what it shows is not that of the downscaled image.
    """
    if not isinstance(image, str | PathLike):
        raise TypeError(
            f"`image` must be the path of the full-resolution image, found {type(image).__name__}; an image in memory "
            "goes to gdml.pp.tile(adata, image=...)."
        )
    path = Path(image).expanduser().resolve()
    slide = open_slide(path)
    try:
        if downscaled is not None:
            _refuse_other(slide, downscaled)
    finally:
        slide.close()
    return path


def check_holds(path: Path, xy: NDArray[np.float64]) -> None:
    """Refuse an image in which centres of spots (x, y; px) do not lie, with a ValueError."""
    slide = open_slide(path)
    outside = ~((xy >= 0) & (xy < slide.size)).all(1)
    slide.close()
    if outside.any():
        raise ValueError(
            f"image: {str(path)!r} has {slide.size[0]} x {slide.size[1]} px, but {int(outside.sum())} of {len(xy)} "
            f"spots lie outside it (up to x {xy[:, 0].max():.0f}, y {xy[:, 1].max():.0f} px). Name the full-resolution "
            "image that was given to spaceranger."
        )


def _refuse_other(slide: Slide, downscaled: Downscaled) -> None:
    """Refuse an image of another size than the one that was downscaled, or one that shows something else."""
    found = f"{slide.size[0]} x {slide.size[1]} px"
    small = f"{downscaled.name} image of the run"
    if not downscaled.has_size_of(slide):
        made_from = " x ".join(f"{side / downscaled.scale:.0f}" for side in downscaled.size)
        raise ValueError(
            f"image: {slide.name!r} has {found}, but the {small} ({downscaled.size[0]} x {downscaled.size[1]} px, scale "
            f"{downscaled.scale:.4g}) was made from one of about {made_from} px, to which the positions refer. Name the "
            "image that was given to spaceranger as --image, not the hires image, a crop, or the CytAssist image of a "
            "run that has a microscope image."
        )
    alike = downscaled.correlation(slide)
    if alike is not None and alike < _SAME:
        raise ValueError(
            f"image: {slide.name!r} has the size of the run's image ({found}) but shows something else: its correlation "
            f"with the {small} is {alike:.2f}, at least {_SAME} is expected. Is it of another section, or turned? If it "
            "is meant, read without it and pass it to gdml.pp.tile(adata, image=...)."
        )


def find_image(folders: list[Path], downscaled: Downscaled | None) -> tuple[Path | None, str]:
    """Search the full-resolution image by its size and by what it shows.

    Parameters
    ----------
    folders
        Searched in this order, each without the folders in it; the first with a fitting image is the last.
    downscaled
        Image of the run to hold candidates against; without it none can be told to be the right one.

    Returns
    -------
    Path, or None where no image fits or several do; and what was found, for the log.
    """
    if downscaled is None:
        return None, "no full-resolution image: it is not searched for where the run has no downscaled image"
    for folder in folders:
        fitting = _fitting(folder, downscaled)
        shown = [path for path, alike in fitting.items() if alike is not None]
        chosen = shown or list(fitting)
        if len(chosen) == 1:
            by = "its size and what it shows" if shown else "its size"
            return chosen[0], f"full-resolution image {str(chosen[0])!r}, known by {by}"
        if chosen:
            return None, (
                f"no full-resolution image: {some(path.name for path in chosen)} in {str(folder)!r} all fit; name one "
                "with image="
            )
    return None, "no full-resolution image found"


def _fitting(folder: Path, downscaled: Downscaled) -> dict[Path, float | None]:
    """Images in a folder that have the right size and show nothing else, with the correlation where it is known."""
    fitting: dict[Path, float | None] = {}
    if not folder.is_dir():
        return fitting
    try:
        paths = sorted({path.resolve() for path in folder.iterdir() if path.suffix.lower() in SUFFIXES})
    except PermissionError as err:  # the folder around the run may be somebody else's
        logg.info(f"no full-resolution image searched in {str(folder)!r}: {err}")
        return fitting
    for path in paths:
        try:
            slide = open_slide(path)
        except (ValueError, FileNotFoundError) as err:
            logg.info(f"not taken for the full-resolution image: {err}")
            continue
        try:
            if downscaled.has_size_of(slide):
                alike = downscaled.correlation(slide)
                if alike is None or alike >= _SAME:
                    fitting[path] = alike
        except ValueError as err:  # damaged behind its header
            logg.info(f"not taken for the full-resolution image: {err}")
        finally:
            slide.close()
    return fitting
