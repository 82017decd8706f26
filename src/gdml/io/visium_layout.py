"""Entry of a library in ``uns["spatial"]``, in the layout of scanpy and squidpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pyvips
from numpy.typing import NDArray

from gdml import _keys
from gdml.slides.thumbnail import HIRES_PX, LOWRES_PX


def pitch_px(xy: NDArray[np.floating], grid: NDArray[np.floating]) -> float:
    """Distance in full-resolution px between neighbours of a square grid.

    Parameters
    ----------
    xy
        Spot centres, (n, 2), full-resolution px.
    grid
        Their integer grid positions, (n, 2).

    Returns
    -------
    Ratio of the two spreads: an average over all spots and both axes, independent of rotation, mirroring and
    transposition of the grid. NaN if all spots have the same position.
    """
    spread = np.sqrt([((a - a.mean(0)) ** 2).sum() for a in (xy, grid)])
    return float(spread[0] / spread[1]) if spread.all() else float("nan")


def thumbnail(path: Path, side: int) -> NDArray[np.uint8]:
    """Image of a file, (height, width, 3), its long side at most ``side`` px; never decoded at full size.

    The orientation tag is ignored: spot positions refer to the pixels as they are stored.

    Raises
    ------
    ValueError
        The file is not an image that libvips reads, or is truncated.
    """
    try:
        image = pyvips.Image.thumbnail(
            str(path), side, height=side, size="down", no_rotate=True, fail_on="error"
        ).colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=[255, 255, 255])
        return np.ascontiguousarray(image.cast("uchar").numpy())
    except pyvips.Error as err:
        raise ValueError(
            f"image: {str(path)!r} cannot be read as an image; it is truncated or of an unknown format. "
            f"Download or export it again. libvips says: {err}"
        ) from err


def visium_entry(
    image: Path | None, pitch: float, *, spot_pitch_um: float, spot_diameter_um: float
) -> dict[str, dict[str, Any]]:
    """``uns["spatial"][library_id]`` of a slide: thumbnails, scale factors, path of the full-resolution image.

    Parameters
    ----------
    image
        File of the full-resolution image; None for an entry without images and their scale factors.
    pitch
        Distance between centres of neighbouring spots, full-resolution px.
    spot_pitch_um
        The same, micrometres.
    spot_diameter_um
        Diameter of a spot, micrometres.
    """
    diameter = spot_diameter_um * pitch / spot_pitch_um
    entry: dict[str, dict[str, Any]] = {
        "images": {},
        "scalefactors": {"spot_diameter_fullres": diameter, "fiducial_diameter_fullres": diameter},
        "metadata": {_keys.SPOT_PITCH: float(spot_pitch_um)},
    }
    if image is not None:
        long_side = max(image_size(image))
        hires = thumbnail(image, HIRES_PX)
        for name, small in (("hires", hires), ("lowres", thumbnail(image, LOWRES_PX))):
            entry["images"][name] = small
            entry["scalefactors"][f"tissue_{name}_scalef"] = max(small.shape[:2]) / long_side
        entry["metadata"][_keys.IMAGE_PATH] = str(image.resolve())
    return entry


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in px of an image file, read from its header.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is not an image that libvips reads.
    """
    if not path.is_file():
        raise FileNotFoundError(f"image: there is no file {str(path)!r}; give the path of the full-resolution image.")
    try:
        header = pyvips.Image.new_from_file(str(path), access="sequential")
    except pyvips.Error as err:
        raise ValueError(f"image: {str(path)!r} is not an image that libvips can read: {err}") from err
    return header.width, header.height
