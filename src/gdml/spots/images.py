"""The image of a slide: found, described, and opened at the scale that was recorded."""

import os
from typing import Any

import numpy as np
from anndata import AnnData

from gdml import _keys
from gdml._errors import some
from gdml.slides import ScaledSlide, Slide, open_slide

HIRES = "hires"
IN_MEMORY = "in memory"


def resolve_image(adata: AnnData, library: str, image: Any = None, *, spatial_key: str = _keys.SPATIAL) -> Any:
    """Find the image of a slide, as something that :func:`gdml.slides.open_slide` takes.

    Parameters
    ----------
    adata
        The spots.
    library
        Name of the slide.
    image
        None for the path in ``uns[spatial_key][library]["metadata"]["source_image_path"]``; ``"hires"``
        for the downscaled image in ``uns``; another source; or a dict of these by slide.

    Raises
    ------
    KeyError
        If the dict lacks the slide, or ``"hires"`` is asked for and absent.
    ValueError
        If no image is known, or only a downscaled one.
    """
    if isinstance(image, dict):
        if library not in image:
            raise KeyError(f"`image` has no entry for slide {library!r}, only for: {some(image) or 'none'}.")
        image = image[library]
    record = adata.uns.get(spatial_key, {}).get(library, {})
    images = record.get("images", {})
    mend = f"image={{{library!r}: 'slide.tif'}}"
    if image is None:
        path = record.get("metadata", {}).get(_keys.IMAGE_PATH)
        if path is not None:
            path = path.decode() if isinstance(path, bytes) else str(path)
            if not os.path.exists(path):
                raise FileNotFoundError(
                    f"The image of slide {library!r}, {path!r} in uns[{spatial_key!r}], does not exist; "
                    f"say where it is: {mend}."
                )
            return path
        if images:
            raise ValueError(
                f"Slide {library!r} has only downscaled images ({some(images)}), in which a tile is a few pixels "
                f'wide: the full-resolution image is needed. Say where it is: {mend}, or insist with image="hires".'
            )
        raise ValueError(f"No image is known for slide {library!r}; say where it is: {mend}.")
    if isinstance(image, str) and image == HIRES:
        scale = record.get("scalefactors", {}).get("tissue_hires_scalef")
        if HIRES not in images or scale is None:
            raise KeyError(
                f"uns[{spatial_key!r}][{library!r}] has no hires image with its scale factor; "
                f"name the full-resolution image: {mend}."
            )
        return ScaledSlide(open_slide(np.asarray(images[HIRES])), float(scale))
    return image


def describe_image(image: Any, resolved: Any) -> str:
    """How ``uns`` names an image: its path, "hires" or "in memory"."""
    if isinstance(resolved, str | os.PathLike):
        return os.path.abspath(os.path.expanduser(resolved))
    return HIRES if isinstance(image, str) and image == HIRES else IN_MEMORY


def open_tiled(adata: AnnData, library: str, image: Any = None, *, key: str = _keys.KEY) -> Slide:
    """Open the image that :func:`gdml.pp.tile` recorded for a slide, with the scale recorded.

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

    Raises
    ------
    FileNotFoundError
        If the recorded image is gone.
    ValueError
        If it was in memory and is not given again, or its size is not the recorded one.
    """
    tiles = adata.uns[key][_keys.TILES]
    record = tiles["slides"][library]
    if image is None:
        image = record["image"]
        if image == IN_MEMORY:
            raise ValueError(
                f"The image of slide {library!r} was given in memory; give it again: image={{{library!r}: ...}}."
            )
    scale = float(record["um_per_px"])
    source = resolve_image(adata, library, image, spatial_key=tiles["spatial_key"])
    slide = open_slide(source, um_per_px=scale if np.isfinite(scale) else None)
    if slide.size != (int(record["width"]), int(record["height"])):
        raise ValueError(
            f"The image of slide {library!r} has {slide.size[0]} x {slide.size[1]} px, {record['width']} x "
            f"{record['height']} when it was tiled; name the right one with image=, or call gdml.pp.tile(adata) again."
        )
    return slide
