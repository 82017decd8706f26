"""Resampling of image regions."""

from collections.abc import Callable
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Half width of the bicubic kernel in source px at scale 1; it grows with the scale when shrinking.
_SUPPORT = 2.0
WHITE = 255


def resample(
    pixels: Callable[[int, int, int, int], NDArray[np.uint8]],
    size: tuple[int, int],
    box: tuple[float, float, float, float],
    out: tuple[int, int],
) -> NDArray[np.uint8]:
    """Read a box with sub-pixel corners and resample it.

    Bicubic for shrinking and enlarging, so that slides slightly above and below the target resolution look alike; the
    kernel is widened when shrinking, against aliasing. A box of whole pixels at scale 1 is copied.

    Parameters
    ----------
    pixels
        Returns RGB (height, width, 3) of a window (left, top, right, bottom) inside the image.
    size
        Width and height of the image, px.
    box
        Left, top, right, bottom, px; may extend beyond the image.
    out
        Width and height of the result, px.

    Returns
    -------
    (out height, out width, 3), white outside the image.
    """
    left, top, right, bottom = box
    scale = ((right - left) / out[0], (bottom - top) / out[1])
    exact = scale == (1.0, 1.0) and left == floor(left) and top == floor(top)
    margin = [0 if exact else ceil(_SUPPORT * max(1.0, s)) for s in scale]
    x0, x1 = _window(left, right, margin[0], size[0])
    y0, y1 = _window(top, bottom, margin[1], size[1])
    window = _on_white(pixels, size, x0, y0, x1, y1)
    if exact:
        return window
    image = Image.fromarray(np.ascontiguousarray(window))
    inner = (max(left - x0, 0.0), max(top - y0, 0.0), min(right - x0, x1 - x0), min(bottom - y0, y1 - y0))
    return np.array(image.resize(out, Image.Resampling.BICUBIC, box=inner))


def _window(start: float, stop: float, margin: int, size: int) -> tuple[int, int]:
    """Whole pixels that the box touches, with the margin of the kernel.

    The margin ends at the edge of the image, where the kernel is renormalised: a tile that touches the edge gets no
    white fringe.
    """
    first, last = floor(start), ceil(stop)
    if first > 0:
        first = max(first - margin, 0)
    if last < size:
        last = min(last + margin, size)
    return first, max(last, first + 1)


def _on_white(
    pixels: Callable[[int, int, int, int], NDArray[np.uint8]], size: tuple[int, int], x0: int, y0: int, x1: int, y1: int
) -> NDArray[np.uint8]:
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, size[0]), min(y1, size[1])
    if (left, top, right, bottom) == (x0, y0, x1, y1):
        return pixels(left, top, right, bottom)
    canvas = np.full((y1 - y0, x1 - x0, 3), WHITE, np.uint8)
    if left < right and top < bottom:
        canvas[top - y0 : bottom - y0, left - x0 : right - x0] = pixels(left, top, right, bottom)
    return canvas


def as_rgb8(pixels: NDArray, name: str) -> NDArray[np.uint8]:
    """Convert RGB or RGBA, uint8 or float in [0, 1], to RGB uint8; transparent pixels become white.

    Raises
    ------
    ValueError
        If floats lie outside [0, 1].
    """
    if pixels.dtype.kind == "f":
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                f"{name}: floating point pixels must lie in [0, 1], found {pixels.min():.4g} to {pixels.max():.4g}. "
                "Divide by the largest value, or cast to uint8."
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.shape[2] == 4 and (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
    return pixels
