"""The map of a slide's tissue, and the share of it in tiles."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLASSES = ("glass", "tissue", "pen", "fold", "blurred")  # codes 0 to 4
GLASS, TISSUE, PEN, FOLD, BLURRED = range(len(CLASSES))


@dataclass(frozen=True)
class TissueMap:
    """What covers a slide: tissue, glass, or what is neither.

    Parameters
    ----------
    labels
        Codes of ``CLASSES``, (h, w). The map covers the whole slide; its pixels need not be square.
    size
        Width and height of the slide, full-resolution px.
    """

    labels: NDArray[np.uint8]
    size: tuple[int, int]

    def fraction(self, xy: ArrayLike, side_px: float) -> NDArray[np.float32]:
        """Share of tissue in square tiles.

        Parameters
        ----------
        xy
            Centres of the tiles (x, y), full-resolution px from the image's upper left corner, (n, 2).
        side_px
            Side of the tiles, full-resolution px.

        Returns
        -------
        From 0 to 1, (n,). What lies outside the slide is no tissue. Exact for the pixels of the map, of which tiles
        may cover parts; the cost does not depend on the size of the tiles.

        Raises
        ------
        ValueError
            If ``side_px`` is not positive, or ``xy`` is not (n, 2) and finite.
        """
        left, top, right, bottom = tile_boxes(xy, side_px).T
        height, width = self.labels.shape
        # sums over all pixels above and to the left of each corner of a pixel
        sums = np.zeros((height + 1, width + 1), np.int64 if self.labels.size > np.iinfo(np.int32).max else np.int32)
        np.cumsum(self.labels == TISSUE, axis=0, dtype=sums.dtype, out=sums[1:, 1:])
        np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
        by_x, by_y = width / self.size[0], height / self.size[1]
        columns = [np.clip(x * by_x, 0, width) for x in (left, right)]
        rows = [np.clip(y * by_y, 0, height) for y in (top, bottom)]
        area = sum(
            sign * _between(sums, rows[i], columns[j]) for i, j, sign in ((1, 1, 1), (0, 1, -1), (1, 0, -1), (0, 0, 1))
        )
        return np.clip(area / (side_px * by_x * side_px * by_y), 0, 1).astype(np.float32)


def tile_boxes(xy: ArrayLike, side_px: float) -> NDArray[np.float64]:
    """Left, top, right and bottom of square tiles, (n, 4), from their centres; raises as ``TissueMap.fraction`` does."""
    centres = np.asarray(xy, np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise ValueError(f"`xy` must hold finite centres (x, y), (n, 2); found an array of shape {centres.shape}.")
    if not (np.isfinite(side_px) and side_px > 0):
        raise ValueError(f"`side_px` must be positive, found {side_px}.")
    return np.hstack([centres - side_px / 2, centres + side_px / 2])


def _between(sums: NDArray[np.integer], row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate the sums between corners of pixels: bilinear, exact where the image is constant in each pixel."""
    r, c = (np.minimum(at.astype(np.intp), n - 2) for at, n in zip((row, column), sums.shape, strict=True))
    down, right = row - r, column - c
    upper = sums[r, c] * (1 - right) + sums[r, c + 1] * right
    lower = sums[r + 1, c] * (1 - right) + sums[r + 1, c + 1] * right
    return upper * (1 - down) + lower * down
