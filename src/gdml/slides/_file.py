"""Slides in files: OpenSlide for the formats that it reads, else libvips row by row."""

import threading
from collections import deque
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyvips
from numpy.typing import NDArray

from ._bad_files import refuse_drawings, unreadable
from ._metadata import believable, ome_um_per_px
from ._resample import as_rgb8
from ._slide import BrokenLevelError, PixelSlide
from .thumbnail import MOST_PX

_BLOCK = 1 << 20
_BLOCKS = 256
_STRIP = 64  # rows decoded at a time
_CACHE_BYTES = 32 << 20, 512 << 20  # least and most memory for the tiles that OpenSlide has decoded
_SHRINKS = ("jpegload", "jpegload_buffer")  # libvips loaders that decode at reduced size


class _FileSlide(PixelSlide):
    def __init__(
        self, path: Path, level_sizes: list[tuple[int, int]], um_per_px: tuple[float, float], description: str
    ) -> None:
        super().__init__(str(path), level_sizes, believable(ome_um_per_px(description) or um_per_px))
        self._path = path

    def _hash(self) -> str:
        size = self._path.stat().st_size
        digest = blake2b(str(size).encode(), digest_size=16)
        starts = range(0, size, _BLOCK)
        if len(starts) > _BLOCKS:
            starts = np.linspace(0, size - _BLOCK, _BLOCKS).astype(int).tolist()
        with self._path.open("rb") as file:
            for start in starts:
                file.seek(start)
                digest.update(file.read(_BLOCK))
        return digest.hexdigest()

    def _broken(self, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())
        return ValueError(
            f"The image {self.name!r} cannot be read, it may be truncated or damaged ({reason}). "
            "Compare its size with the original and copy it again."
        )


class PyramidSlide(_FileSlide):
    """A slide in a format that OpenSlide reads tile by tile."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise unreadable(path, error) from error
        properties = self._handle.properties
        try:
            um_per_px = float(properties["openslide.mpp-x"]), float(properties["openslide.mpp-y"])
        except (KeyError, ValueError):
            um_per_px = 0.0, 0.0
        description = properties.get("tiff.ImageDescription", "")
        super().__init__(path, list(self._handle.level_dimensions), um_per_px, description)
        self._factors = self._handle.level_downsamples
        # regions are read row by row: those of the next row need the same tiles of the file again
        tile_height = int(properties.get("openslide.level[0].tile-height", 256))
        self._cache_bytes = int(np.clip(4 * self.size[0] * tile_height * 2, *_CACHE_BYTES))
        self._handle.set_cache(openslide.OpenSlideCache(self._cache_bytes))

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        # OpenSlide takes the corner in pixels of level 0 and divides it by its own factor
        factor = self._factors[level]
        region = (round(left * factor), round(top * factor)), level, (right - left, bottom - top)
        try:
            window = self._handle.read_region(*region)
        except openslide.OpenSlideError:
            window = self._read_afresh(level, region)
        return as_rgb8(np.asarray(window), self.name)

    def _read_afresh(self, level: int, region: tuple[Any, ...]) -> Any:
        """Read with a handle of its own: after an error, OpenSlide refuses all use of a handle, by other threads too."""
        handle = self._open()
        try:
            window = handle.read_region(*region)
        except openslide.OpenSlideError as error:
            self._handle = self._open()
            raise self._broken_level(level, error) from error
        self._handle = handle
        return window

    def _open(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._path)
        except openslide.OpenSlideError as error:
            raise unreadable(self._path, error) from error
        handle.set_cache(openslide.OpenSlideCache(self._cache_bytes))
        return handle

    def _broken_level(self, level: int, error: Exception) -> BrokenLevelError:
        if level == 0:
            return BrokenLevelError(f"{self._broken(error)} The damage is in its full resolution (level 0).")
        reason = " ".join(str(error).split())
        return BrokenLevelError(
            f"Level {level} of the {len(self._level_sizes)} levels of the image {self.name!r} is damaged ({reason}). Copy "
            f"the file again, or write its pyramid anew: pyvips.Image.new_from_file({self.name!r}).tiffsave('mended.tif', "
            "tile=True, pyramid=True, compression='jpeg')."
        )

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


class FlatSlide(_FileSlide):
    """A slide in a file without tiles (JPEG, PNG, striped TIFF), of which a window of rows is held in memory.

    Regions read in order of y cost one pass over the file; a region further up starts another pass. Progressive
    JPEG and interlaced PNG files are decoded whole. An orientation tag is not applied.
    """

    in_order = True

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._source: Any = None
        self._reader: threading.Thread | None = None
        self._strips: deque[NDArray[np.uint8]] = deque()
        self._top = self._next = 0  # first row held, first row not yet decoded
        try:
            image = _rgb(path)
        except pyvips.Error as error:
            raise unreadable(path, error) from error
        # libvips has px per mm, 0 where unknown
        um_per_px = (1000 / image.xres if image.xres > 0 else 0.0, 1000 / image.yres if image.yres > 0 else 0.0)
        fields = image.get_fields()
        description = image.get("image-description") if "image-description" in fields else ""
        self._shrinks = "vips-loader" in fields and image.get("vips-loader") in _SHRINKS
        super().__init__(path, [(image.width, image.height)], um_per_px, str(description))

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        with self._lock:
            try:
                # a libvips region belongs to the thread that made it
                if self._source is None or top < self._top or self._reader is not threading.current_thread():
                    self._restart()
                self._advance(top, bottom)
            except pyvips.Error as error:
                self.close()
                raise self._broken(error) from error
            first = self._top
            parts = []
            for strip in self._strips:
                parts.append(strip[max(top - first, 0) : max(bottom - first, 0), left:right])
                first += len(strip)
            return np.concatenate(parts)

    def thumbnail(self, longest: int) -> NDArray[np.uint8] | None:
        """Whole image at reduced size; a JPEG is decoded at that size."""
        if not self._shrinks and self.size[0] * self.size[1] > MOST_PX:
            return None
        try:
            small = pyvips.Image.thumbnail(
                str(self._path), longest, height=longest, size="down", no_rotate=True, fail_on="error"
            )
            return _as_rgb(small, self._path).numpy()
        except pyvips.Error as error:
            raise self._broken(error) from error

    def _restart(self) -> None:
        self.close()
        self._source, self._reader = pyvips.Region.new(_rgb(self._path)), threading.current_thread()

    def _advance(self, top: int, bottom: int) -> None:
        """Decode down to the row ``bottom`` and drop the rows above ``top``."""
        width, height = self.size
        while self._next < bottom:
            rows = min(_STRIP, height - self._next)
            strip = np.frombuffer(self._source.fetch(0, self._next, width, rows), np.uint8)
            self._strips.append(strip.reshape(rows, width, 3))
            self._next += rows
            self._drop(top)
        self._drop(top)

    def _drop(self, top: int) -> None:
        while self._strips and self._top + len(self._strips[0]) <= top - _STRIP:
            self._top += len(self._strips.popleft())

    def decoded(self) -> "DecodedSlide":
        """Decode all of it, for regions in any order."""
        return DecodedSlide(self._path)

    def close(self) -> None:
        """Free the rows in memory and the decoder; a later read starts a new pass."""
        with self._lock:
            self._source = self._reader = None
            self._strips.clear()
            self._top = self._next = 0


class DecodedSlide(_FileSlide):
    """A slide in a file without tiles, decoded once: in memory, or beyond 100 MB in a temporary file of libvips."""

    def __init__(self, path: Path) -> None:
        try:
            self._image = _as_rgb(pyvips.Image.new_from_file(str(path), fail_on="error"), path)
        except pyvips.Error as error:
            raise unreadable(path, error) from error
        super().__init__(path, [(self._image.width, self._image.height)], (0.0, 0.0), "")

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        try:
            return self._image.crop(left, top, right - left, bottom - top).numpy()
        except pyvips.Error as error:
            raise self._broken(error) from error


def open_file(path: Path) -> PixelSlide:
    """Open a file with the reader for its format.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is no image, or its pixels are not 8 or 16 bit.
    """
    if not path.is_file():
        what = "is a folder, not an image" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"The image {str(path)!r} {what}; pass the path of the full-resolution image.")
    return FlatSlide(path) if openslide.OpenSlide.detect_format(path) is None else PyramidSlide(path)


def _rgb(path: Path) -> pyvips.Image:
    """Pipeline that decodes a file from top to bottom as RGB uint8."""
    return _as_rgb(pyvips.Image.new_from_file(str(path), access="sequential", fail_on="error"), path)


def _as_rgb(image: pyvips.Image, path: Path) -> pyvips.Image:
    refuse_drawings(image, path)
    if image.format not in ("uchar", "ushort"):
        raise ValueError(f"The image {str(path)!r} has pixels of type {image.format}; save it with 8 bits a channel.")
    if image.hasalpha():
        image = image.flatten(background=65535 if image.format == "ushort" else 255)
    if (image.interpretation, image.format) != ("srgb", "uchar"):  # every step has buffers of its own
        image = image.colourspace("srgb").cast("uchar")
    if image.bands != 3:
        raise ValueError(f"The image {str(path)!r} has {image.bands} channels, RGB is needed; export it as RGB.")
    return image
