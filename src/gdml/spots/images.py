"""The image of a slide: found, described, and opened at the recorded scale."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData

from gdml import _keys
from gdml._errors import some
from gdml.slides import Slide, open_slide
from gdml.slides.scaled import ScaledSlide
from gdml.slides.spatialdata import NAME as SPATIALDATA

HIRES = "hires"
IN_MEMORY = "in memory"
HIRES_SCALE = "tissue_hires_scalef"


def slide_entry(adata: AnnData, library: str, spatial_key: str = _keys.SPATIAL) -> Mapping[str, Any]:
    """Entry of a slide in ``uns``, also where its name there is not text; empty where it has none.

    It is looked for under ``spatial_key``, and under ``"spatial"`` where the coordinates alone have another key.
    """
    slides = adata.uns.get(spatial_key, adata.uns.get(_keys.SPATIAL, {}))
    return by_name(slides).get(library, {})


def by_name(slides: Mapping[Any, Any]) -> dict[str, Any]:
    """Turn the names of slides into text, as in ``Spots.slides``."""
    return {str(name): value for name, value in slides.items()}


def names_slides(image: Any) -> bool:
    """Whether ``image`` is a dict of images by slide; a multi-scale SpatialData image is a mapping too."""
    return isinstance(image, Mapping) and type(image).__module__.split(".")[0] != "xarray"


def resolve_image(adata: AnnData, library: str, image: Any = None, *, spatial_key: str = _keys.SPATIAL) -> Any:
    """Find the image of a slide.

    Parameters
    ----------
    adata
        The spots.
    library
        Name of the slide.
    image
        None for the path in ``uns[spatial_key][library]["metadata"]["source_image_path"]``; ``"hires"`` for the
        downscaled image in ``uns``; another source; or a dict of these by slide.
    spatial_key
        Key of the slides in ``uns``.

    Returns
    -------
    A source that :func:`gdml.slides.open_slide` takes.

    Raises
    ------
    KeyError
        If the dict lacks the slide, or ``"hires"`` is asked for and absent.
    FileNotFoundError
        If the file in ``uns`` does not exist.
    ValueError
        If no image is known, or only a downscaled one.
    """
    if names_slides(image):
        image = by_name(image)
        if library not in image:
            raise KeyError(f"`image` has no entry for slide {library!r}, only for: {some(image) or 'none'}.")
        image = image[library]
    entry = slide_entry(adata, library, spatial_key)
    images = entry.get("images", {})
    mend = f"image={{{library!r}: 'slide.tif'}}"
    if image is None:
        path = entry.get("metadata", {}).get(_keys.IMAGE_PATH)
        if path is not None:
            path = path.decode() if isinstance(path, bytes) else str(path)
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"The image of slide {library!r}, {path!r} in uns[{spatial_key!r}], does not exist; "
                    f"pass its path: {mend}."
                )
            return path
        if images:
            raise ValueError(
                f"Slide {library!r} has only downscaled images ({some(images)}), in which a tile is a few pixels "
                f'wide: the full-resolution image is needed. Pass its path: {mend}, or insist with image="hires".'
            )
        raise ValueError(f"No image is known for slide {library!r}; pass its path: {mend}.")
    if is_hires(image):
        scale = entry.get("scalefactors", {}).get(HIRES_SCALE)
        if HIRES not in images or scale is None:
            raise KeyError(
                f"uns[{spatial_key!r}][{library!r}] has no hires image with its scale factor; "
                f"pass the full-resolution image: {mend}."
            )
        return ScaledSlide(open_slide(np.asarray(images[HIRES])), float(scale))
    return image


def is_hires(image: Any) -> bool:
    """Whether the downscaled image in ``uns`` is asked for."""
    return isinstance(image, str) and image == HIRES


def describe_image(image: Any, resolved: Any) -> str:
    """Name of an image in ``uns``: its path, "hires", "SpatialData image 'name'" or "in memory"."""
    if isinstance(resolved, Slide) and _of_spatialdata(resolved.name):
        return resolved.name
    if isinstance(resolved, str | os.PathLike):
        return os.path.abspath(os.path.expanduser(resolved))
    return HIRES if is_hires(image) else IN_MEMORY


def _of_spatialdata(name: str) -> bool:
    return name.startswith(f"{SPATIALDATA} ")


def tiled_image(adata: AnnData, library: str, image: Any = None, *, key: str = _keys.KEY, own: Any = None) -> Any:
    """Find the image that :func:`gdml.pp.tile` recorded for a slide, or the one in its place.

    Parameters
    ----------
    adata
        The spots, tiled.
    library
        Name of the slide.
    image
        In place of the recorded one, as in :func:`resolve_image`; needed where that was in memory.
    key
        ``key_added`` of the tiles.
    own
        Image of the slide in the SpatialData, if it is in one: used where that was tiled, or the file is gone.

    Returns
    -------
    A source that :func:`open_as_tiled` takes.

    Raises
    ------
    FileNotFoundError
        If the recorded image does not exist any more.
    ValueError
        If it was in memory, or in a SpatialData, and is not given again.
    """
    tiles = adata.uns[key][_keys.TILES]
    if image is None:
        image = str(tiles["slides"][library]["image"])
        gone = image not in (HIRES, IN_MEMORY) and not os.path.exists(image)
        if own is not None and (_of_spatialdata(image) or gone):
            image = own
        elif _of_spatialdata(image):
            raise ValueError(
                f"Slide {library!r} was tiled on the {image}; pass the SpatialData itself in place of its table, or "
                "gdml.io.from_spatialdata(sdata)."
            )
        elif image == IN_MEMORY:
            raise ValueError(
                f"The image of slide {library!r} was given in memory; give it again: image={{{library!r}: ...}}."
            )
    return resolve_image(adata, library, image, spatial_key=tiles["spatial_key"])


def open_as_tiled(source: Any, library: str, record: Mapping[str, Any]) -> Slide:
    """Open the image of a slide at the scale that :func:`gdml.pp.tile` recorded.

    Parameters
    ----------
    source
        What :func:`gdml.slides.open_slide` takes.
    library
        Name of the slide, for messages.
    record
        Record of the slide by :func:`gdml.pp.tile`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or its size is not the recorded one.
    """
    scale = float(record["um_per_px"])
    slide = open_slide(source, um_per_px=scale if np.isfinite(scale) else None)
    if slide.size != (int(record["width"]), int(record["height"])):
        raise ValueError(
            f"The image of slide {library!r} has {slide.size[0]} x {slide.size[1]} px, {record['width']} x "
            f"{record['height']} when it was tiled; name the right one with image=, or call gdml.pp.tile(adata) again."
        )
    return slide
