"""Arguments of :func:`gdml.io.read_features`: files and images by slide, and whether they belong together."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gdml import _keys
from gdml._errors import some
from gdml.slides import Slide, open_slide
from gdml.spots.images import IN_MEMORY, by_name, names_slides, slide_entry
from gdml.spots.resolve import Spots

from ._feature_file import FeatureFile
from ._feature_tiles import Tiles
from ._trident import open_trident
from ._wsidata import open_wsidata


def paths_of(path: Any, spots: Spots | None, library_id: str | None) -> dict[str, Path]:
    """Path of the file of each slide, slides in the order of the spots.

    Raises
    ------
    ValueError
        If one file is given for several slides.
    KeyError
        If slides of the spots have no file, or files no slide.
    FileNotFoundError
        If a file does not exist.
    """
    if isinstance(path, Mapping):
        if library_id is not None:
            raise ValueError("`library_id` names one slide, but `path` is a dict by slide; leave it out.")
        paths = {str(name): Path(found).expanduser() for name, found in path.items()}
        if not paths:
            raise ValueError("`path` is an empty dict; give the feature file of each slide.")
    else:
        one = Path(path).expanduser()
        if library_id is None and spots is not None and len(spots.slides) == 1:
            library_id = next(iter(spots.slides))
        if library_id is None and spots is not None:
            raise ValueError(
                f"`path` is one file, but `adata` has {len(spots.slides)} slides ({some(spots.slides)}); pass a dict by "
                "slide, path={'A': 'A.h5', ...}."
            )
        paths = {library_id or one.stem: one}
    for name, found in paths.items():
        if "/" in name:
            raise ValueError(f"A slide cannot be called {name!r}: its name must not contain '/'.")
        if not found.exists():
            raise FileNotFoundError(f"path: there is no file {str(found)!r} of slide {name!r}.")
    if spots is None:
        return paths
    unknown = [name for name in paths if name not in spots.slides]
    absent = [name for name in spots.slides if name not in paths]
    if unknown or absent:
        raise KeyError(
            f"`path` must have the slides of `adata` ({some(spots.slides)})"
            + (f"; it lacks {some(absent)}" if absent else "")
            + (f"; {some(unknown)} are not among them" if unknown else "")
            + "."
        )
    return {name: paths[name] for name in spots.slides}


def open_file(path: Path, encoder: str | None, tile_key: str) -> FeatureFile:
    """Open a file of TRIDENT, or a store of wsidata; raises ValueError as they do."""
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.h5"))
        if files:
            raise ValueError(
                f"path: {str(path)!r} is a folder of feature files; name one of them, such as {files[0]!r}, or a dict by "
                "slide."
            )
        return open_wsidata(path, encoder, tile_key=tile_key)
    return open_trident(path, encoder)


def check_alike(files: Mapping[str, FeatureFile]) -> None:
    """Refuse slides whose features are of different encoders, or of images of different sizes, with a ValueError."""
    for what, of in (
        ("encoders", lambda file: f"{file.identity} (D = {file.dim}, {file.dtype})"),
        ("sizes of the encoded images", lambda file: f"{file.tile_px} px"),
    ):
        found = {name: of(file) for name, file in files.items()}
        if len(set(found.values())) > 1:
            shown = some(f"{name}: {value}" for name, value in found.items())
            raise ValueError(f"The files have different {what} ({shown}); they must be the same for all slides.")


def check_sizes(tiles: Mapping[str, Tiles]) -> None:
    """Refuse tiles that differ in size between slides, with a ValueError."""
    sizes = {name: found.tile_um for name, found in tiles.items()}
    if not np.allclose(list(sizes.values()), next(iter(sizes.values())), equal_nan=True):
        shown = some(f"{name}: {size:.4g} um" for name, size in sizes.items())
        raise ValueError(
            f"The tiles differ in size ({shown}); compute features of tiles of one size, or pass um_per_px= by slide if "
            "the scale is wrong."
        )


class Image(NamedTuple):
    """Image of a slide: None where it is not known, and its name in the record of the tiles."""

    slide: Slide | None
    name: str

    @property
    def origin(self) -> tuple[float, float]:
        """Its corner in the coordinates of the spots, px; other than (0, 0) for images of a SpatialData."""
        return getattr(self.slide, "origin", (0.0, 0.0))


@contextmanager
def image_of(slide: Any, library: str, n_slides: int, spots: Spots | None) -> Iterator[Image]:
    """Open the image of a slide: that of the argument, else the one that measured spots name, if the file exists.

    Raises
    ------
    ValueError
        If one image is given for several slides, or an image cannot be opened.
    """
    if slide is not None and not names_slides(slide) and n_slides > 1:
        raise ValueError(f"`slide` is one image, but there are {n_slides} slides; pass a dict by slide.")
    source = by_name(slide).get(library) if names_slides(slide) else slide
    if source is None and spots is not None:
        named = slide_entry(spots.adata, library, spots.spatial_key).get("metadata", {}).get(_keys.IMAGE_PATH)
        named = named.decode() if isinstance(named, bytes) else named
        source = named if named is not None and os.path.exists(named) else None
    if source is None:
        yield Image(None, IN_MEMORY)
        return
    image = open_slide(source)
    try:
        path = os.path.abspath(os.path.expanduser(source)) if isinstance(source, str | PathLike) else IN_MEMORY
        yield Image(image, path)
    finally:
        if image is not source:
            image.close()
