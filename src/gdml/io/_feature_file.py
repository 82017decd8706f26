"""Features of tiles in a file of another program."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FP16_MAX = float(np.finfo(np.float16).max)
ROWS = 4096  # tiles that are read at once


@dataclass(frozen=True)
class FeatureFile:
    """Tiles and features of one slide, in whichever program's layout; features are read in pieces.

    Parameters
    ----------
    path
        The file or store.
    program
        That computed the features: ``"TRIDENT"`` or ``"wsidata"``.
    encoder
        Name of the encoder by that program.
    corners
        (n, 2) float64, top left corners of the tiles (x, y), full-resolution px.
    side_px
        Side of a tile, full-resolution px.
    tile_px
        Side of the image that was encoded, px, before any resizing by the encoder.
    tile_um
        Side of a tile that the file states, um; None where it states none.
    um_per_px
        Of the full-resolution image, as measured; None where the file states none.
    size
        Width and height of the full-resolution image; None where the file states none.
    dim
        Width of a feature vector, D.
    dtype
        Of the features in the file.
    chunks
        Gives the features in the order of ``corners``, at most ``ROWS`` rows at a time.
    barcodes
        (n,) names of the spots that the tiles belong to; None where the file has none.
    nominal_um_per_px
        Of the full-resolution image by its magnification, where ``um_per_px`` is not known.
    """

    path: Path
    program: str
    encoder: str
    corners: NDArray[np.float64]
    side_px: float
    tile_px: int
    tile_um: float | None
    um_per_px: float | None
    size: tuple[int, int] | None
    dim: int
    dtype: str
    chunks: Callable[[], Iterator[NDArray[np.floating]]]
    barcodes: NDArray[np.str_] | None = None
    nominal_um_per_px: float | None = None

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def identity(self) -> str:
        """What the numbers depend on, as far as the file says: the program and its encoder."""
        return f"{self.program.lower()} {self.encoder}"

    @property
    def centers(self) -> NDArray[np.float64]:
        """(n, 2) float64, centres of the tiles, full-resolution px."""
        return self.corners + self.side_px / 2

    def digest(self, centers: NDArray[np.float64]) -> str:
        """Hash of tiles, by the ``centers`` (n, 2) under which they are stored, and features; reads all of them.

        Raises
        ------
        ValueError
            If a feature is NaN or exceeds the range of float16, in which features are stored.
        """
        digest = hashlib.blake2b(np.ascontiguousarray(centers).tobytes(), digest_size=16)
        bad, largest = 0, 0.0
        for chunk in self.chunks():
            digest.update(np.ascontiguousarray(chunk).data)
            with np.errstate(invalid="ignore"):
                most = np.abs(chunk, dtype=np.float32).max(1)
            bad += int((~np.isfinite(most)).sum())
            largest = max(largest, float(most[np.isfinite(most)].max(initial=0)))
        if bad:
            raise ValueError(f"{str(self.path)!r}: the features of {bad} of {len(self)} tiles are NaN or infinite.")
        if largest > FP16_MAX:
            raise ValueError(
                f"{str(self.path)!r} has features up to {largest:.3g}; gdml stores float16, which ends at {FP16_MAX:.0f}. "
                "Scale the features, the same way for all slides."
            )
        return digest.hexdigest()


def check_tiles(path: Path, corners: NDArray[np.generic], n_features: int) -> NDArray[np.float64]:
    """Check the corners of the tiles, and return them as float64.

    Raises
    ------
    ValueError
        If there are no tiles, or their corners are not (n, 2) finite numbers for n features.
    """
    found = np.asarray(corners)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype.kind not in "fiu":
        raise ValueError(f"{str(path)!r}: tile coordinates must be numbers (n, 2), found {found.dtype} {found.shape}.")
    if len(found) != n_features:
        raise ValueError(f"{str(path)!r} has features of {n_features} tiles, but coordinates of {len(found)}.")
    if not len(found):
        raise ValueError(f"{str(path)!r} has no tiles: was no tissue found on the slide?")
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"{str(path)!r} has NaN or infinite tile coordinates.")
    return found
