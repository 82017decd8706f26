"""Feature files of TRIDENT: HDF5 with ``features`` (n, D) and ``coords`` (n, 2), which carry the geometry as attributes.

The layout is that of ``trident.IO.save_h5`` and ``WSI.extract_patch_features`` (github.com/mahmoodlab/TRIDENT).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from gdml._errors import some

from ._feature_file import ROWS, FeatureFile, check_tiles
from ._values import positive

_UM_PER_PX_AT_1X = 10.0  # TRIDENT takes a magnification of m for 10 / m um per px
_FOLDER = "features_"  # of an encoder's files
_BARCODES = ("barcodes", "barcode")


def open_trident(path: Path, encoder: str | None = None) -> FeatureFile:
    """Open a feature file of TRIDENT; features are read later.

    Parameters
    ----------
    path
        The file.
    encoder
        Name of the encoder, where the file does not state it; it must agree with the file where it does.

    Raises
    ------
    ValueError
        If the file is truncated or has another layout, lacks the geometry, or is of another encoder.
    """
    with _opened(path) as file:
        features = _dataset(file, path, "features", "give a file under features_{encoder}/, not the patches or the .pt")
        coords = _dataset(file, path, "coords", "without positions features cannot be assigned to tiles")
        attrs = {**_attributes(file), **_attributes(coords)}
        named = _attributes(features).get("encoder") or _of_folder(path)
        shape = features.shape[1:] if len(features.shape) == 3 and features.shape[0] == 1 else features.shape
        if len(shape) != 2 or features.dtype.kind != "f":
            raise ValueError(
                f"{str(path)!r}: `features` must be numbers (n, D), a vector per tile; found {features.dtype} "
                f"{features.shape}. Embeddings of whole slides have no tiles."
            )
        corners = coords[()]
        corners = corners[0] if corners.ndim == 3 and len(corners) == 1 else corners
        barcodes = next((_names(_dataset(file, path, name, "")) for name in _BARCODES if name in file), None)
        dtype = str(features.dtype)
    if barcodes is not None and len(barcodes) != shape[0]:
        raise ValueError(f"{str(path)!r} has features of {shape[0]} tiles, but {len(barcodes)} barcodes.")
    if encoder and named and encoder != named:
        raise ValueError(f"`encoder` is {encoder!r}, but {str(path)!r} has features of {named!r}; leave it out.")
    if not (encoder or named):
        raise ValueError(f"{str(path)!r} does not name its encoder; pass it, encoder='uni_v1'.")

    patch, level0, target = (
        positive(attrs.get(n)) for n in ("patch_size", "level0_magnification", "target_magnification")
    )
    side = positive(attrs.get("patch_size_level0")) or (patch and level0 and target and patch * level0 / target)
    if not (patch and side):
        legacy = " It has `patch_level`: CLAM's layout, which does not state it." if "patch_level" in attrs else ""
        raise ValueError(
            f"{str(path)!r} does not state the size of its tiles: `coords` lacks the attributes patch_size and "
            f"patch_size_level0 (found: {some(attrs) or 'none'}).{legacy} Extract the features again with TRIDENT."
        )
    width, height = positive(attrs.get("level0_width")), positive(attrs.get("level0_height"))
    return FeatureFile(
        path=path,
        program="TRIDENT",
        encoder=str(encoder or named).replace("/", "_"),
        corners=check_tiles(path, corners, shape[0]),
        side_px=float(side),
        tile_px=round(patch),
        tile_um=patch * _UM_PER_PX_AT_1X / target if target else None,
        um_per_px=None,
        size=(round(width), round(height)) if width and height else None,
        dim=int(shape[1]),
        dtype=dtype,
        chunks=lambda: _chunks(path),
        barcodes=barcodes,
        nominal_um_per_px=_UM_PER_PX_AT_1X / level0 if level0 else None,
    )


def _chunks(path: Path) -> Iterator[NDArray[np.floating]]:
    with _opened(path) as file:
        features = file["features"]
        batched = features.ndim == 3
        for start in range(0, features.shape[1 if batched else 0], ROWS):
            rows = slice(start, start + ROWS)
            yield features[0, rows] if batched else features[rows]


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:  # of reading too: HDF5 reads lazily
        raise ValueError(
            f"{str(path)!r} cannot be read as HDF5: it is truncated, still being written, or another kind of file ({error})."
        ) from error


def _dataset(file: h5py.File, path: Path, name: str, mend: str) -> h5py.Dataset:
    """Dataset of the file itself: links to other files are not followed."""
    link = file.get(name, getlink=True)
    found = file[name] if isinstance(link, h5py.HardLink) else None
    if isinstance(found, h5py.Dataset) and not found.is_virtual and found.external is None:
        return found
    raise ValueError(
        f"{str(path)!r} is no feature file of TRIDENT: it has no `{name}` ({some(file) or 'empty'}); {mend}."
    )


def _attributes(found: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Attributes; TRIDENT writes "None" for those without a value."""
    return {name: value for name, value in found.attrs.items() if not (isinstance(value, str) and value == "None")}


def _of_folder(path: Path) -> str:
    """Name of the encoder in the name of the folder, ``features_uni_v1``; empty where it has none."""
    folder = path.absolute().parent.name
    return folder.removeprefix(_FOLDER) if folder.startswith(_FOLDER) else ""


def _names(barcodes: h5py.Dataset) -> NDArray[np.str_]:
    return np.array([name.decode() if isinstance(name, bytes) else str(name) for name in barcodes[()].ravel()])
