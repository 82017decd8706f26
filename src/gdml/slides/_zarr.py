"""Slides in OME-Zarr images, those of SpatialData stores among them, read window by window."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from gdml._errors import some

from ._array import check_pixels
from ._metadata import believable
from ._resample import as_rgb8
from ._slide import PixelSlide
from .patches import patch_hash

_UM = {"micrometer": 1.0, "millimeter": 1000.0, "nanometer": 0.001}


class ZarrSlide(PixelSlide):
    """A slide in the arrays of an OME-Zarr image.

    Tiles come from the full resolution, since coarser levels may be point samples, which alias; thumbnails come from
    the coarser ones.

    Parameters
    ----------
    path
        Folder of the image.
    arrays
        One for each resolution, the full one first.
    axes
        Names of their axes; other than ``y``, ``x`` and one of channels they must have length 1.
    um_per_px
        Micrometres per px of the first array, where known.
    """

    def __init__(self, path: Path, arrays: list[Any], axes: list[str], um_per_px: float | None = None) -> None:
        self._arrays, self._axes = arrays, axes
        full = arrays[0]
        sizes = dict(zip(axes, full.shape, strict=False))
        channels = [axis for axis in axes if axis not in ("y", "x") and sizes[axis] > 1]
        if not {"y", "x"} <= set(axes) or len(channels) != 1 or len(axes) != full.ndim:
            raise ValueError(
                f"{str(path)!r}: needs the axes y, x and one of channels, found {axes} of an array {full.shape}."
            )
        self._order = [axes.index(name) for name in ("y", "x", channels[0])]
        check_pixels(tuple(full.shape[axis] for axis in self._order), full.dtype, str(path))
        super().__init__(str(path), [(sizes["x"], sizes["y"])], um_per_px)

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        return as_rgb8(self._window(self._arrays[0], left, top, right, bottom), self.name)

    def _window(self, array: Any, left: int, top: int, right: int, bottom: int) -> NDArray[Any]:
        windows = {"y": slice(top, bottom), "x": slice(left, right)}
        values = np.asarray(array[tuple(windows.get(axis, slice(None)) for axis in self._axes)])
        rest = tuple(range(3, values.ndim))
        return np.moveaxis(values, self._order, (0, 1, 2)).squeeze(rest)

    def thumbnail(self, longest: int) -> NDArray[np.uint8] | None:
        """Whole image at reduced size, from the coarsest array that has as many pixels."""
        y, x = (self._axes.index(axis) for axis in ("y", "x"))
        fine = [array for array in self._arrays[1:] if max(array.shape[y], array.shape[x]) >= longest]
        if not fine:
            return super().thumbnail(longest)
        return ZarrSlide(Path(self.name), fine[-1:], self._axes).thumbnail(longest)

    def _hash(self) -> str:
        return patch_hash(self, self._arrays[0].dtype)


def open_ome_zarr(path: Path) -> ZarrSlide:
    """Open the folder of an OME-Zarr image (version 0.4 or 0.5), such as ``store.zarr/images/name``.

    Raises
    ------
    FileNotFoundError
        If the folder is no such image.
    ValueError
        If its metadata are incomplete, or it is no RGB image.
    """
    try:
        group = zarr.open_group(path, mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"The image {str(path)!r} is a folder, not an image; pass the path of the full-resolution image."
        ) from error
    about = dict(group.attrs)
    scales = about.get("ome", about)
    found = scales.get("multiscales") if isinstance(scales, dict) else None
    if not found:
        inside = [f"images/{name}" for name in zarr.open_group(path / "images", mode="r")] if "images" in group else []
        raise FileNotFoundError(
            f"The image {str(path)!r} is a Zarr store without OME metadata of an image; pass the path of an image in it "
            f"(it has: {some(inside) or 'none'})."
        )
    try:
        axes = [axis if isinstance(axis, str) else str(axis["name"]) for axis in found[0]["axes"]]
        arrays: list[Any] = [group[str(dataset["path"])] for dataset in found[0]["datasets"]]
        um_per_px = _um_per_px(found[0])
    except (KeyError, TypeError, IndexError, ValueError, StopIteration) as error:
        raise ValueError(
            f"The image {str(path)!r} cannot be opened: its OME metadata are incomplete or wrong ({error}). Write it again, or convert it to a "
            "tiled TIFF."
        ) from error
    arrays.sort(key=lambda array: array.shape[axes.index("x")] if "x" in axes else 0, reverse=True)
    return ZarrSlide(path, arrays, axes, um_per_px)


def _um_per_px(scales: dict[str, Any]) -> float | None:
    """Micrometres per px, where the axes of the image have a unit of length."""
    steps = next(t["scale"] for t in scales["datasets"][0]["coordinateTransformations"] if t["type"] == "scale")
    sizes = {
        axis["name"]: float(step) * _UM[axis["unit"]]
        for axis, step in zip(scales["axes"], steps, strict=True)
        if isinstance(axis, dict) and axis.get("unit") in _UM
    }
    return believable((sizes["x"], sizes["y"])) if {"x", "y"} <= set(sizes) else None
