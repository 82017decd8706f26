"""Images to train on: ``sources.csv`` names the files of each source, their scale and their licence.

Most published images do not carry their scale. ``scale_from`` says where it comes from; estimates compare cells of known size.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyvips
from numpy.typing import NDArray
from views import Source

FINEST = 0.5  # um per px: finer images are averaged down to it, so that coarse views of them are not aliased


def sources(table: Path, folder: Path) -> Iterator[Source]:
    """Read all images of each source into memory.

    Parameters
    ----------
    table
        CSV with columns ``source``, ``files`` (a pattern below ``folder``), ``um_per_px`` and ``width_px``: of each
        image, only this many columns of pixels from the left are read; empty for all.
    folder
        Where the files are.

    Raises
    ------
    FileNotFoundError
        If a pattern matches no file.
    """
    for row in pd.read_csv(table).itertuples():
        paths = sorted(folder.glob(row.files))
        if not paths:
            raise FileNotFoundError(f"{table} names {row.files}, which matches no file in {folder}.")
        width = None if np.isnan(row.width_px) else int(row.width_px)
        images = [_read(path, row.um_per_px, width) for path in paths]
        yield Source.of(row.source, images, max(row.um_per_px, FINEST))


def _read(path: Path, um_per_px: float, width: int | None) -> NDArray[np.uint8]:
    """Read (height, width, 3) uint8, at ``FINEST`` um per px or coarser."""
    image = pyvips.Image.new_from_file(path)
    if width is not None:
        image = image.crop(0, 0, width, image.height)
    if um_per_px < FINEST:
        image = image.resize(um_per_px / FINEST)
    return image.numpy()[..., :3]
