"""Checks that the verbs share. All of them run before anything is written."""

import os
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some
from gdml.slides import ScaledSlide, Slide, open_slide

ONE_SLIDE = "slide"  # name of the only slide where the AnnData names none
HIRES = "hires"
IN_MEMORY = "in memory"


def check_adata(adata: AnnData, *, copy: bool = False, name: str = "adata") -> None:
    """Refuse what the verbs can't write to: a view, a backed object, ambiguous names, no spots.

    Parameters
    ----------
    adata
        What the user gave.
    copy
        Whether a copy is written to, so that a view does no harm.
    name
        Of the argument, for messages.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    ValueError
        If it is backed, a view (without ``copy``) or empty, or if names of spots or genes repeat.
    """
    if not isinstance(adata, AnnData):
        hint = '; pass the table: sdata.tables["table"]' if hasattr(adata, "tables") else ""
        raise TypeError(f"`{name}` must be an AnnData, found {type(adata).__name__}{hint}.")
    if adata.isbacked:
        raise ValueError(f"`{name}` is backed: load it with {name} = {name}.to_memory() first.")
    if adata.is_view and not copy:
        raise ValueError(f"`{name}` is a view: call {name} = {name}.copy() first.")
    if adata.n_obs == 0:
        raise ValueError(f"`{name}` has no spots.")
    for names, what, mend in (
        (adata.obs_names, "spot names (obs_names)", "obs_names_make_unique"),
        (adata.var_names, "gene names (var_names)", "var_names_make_unique"),
    ):
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise ValueError(f"`{name}` has duplicate {what}: {some(twice)}; call {name}.{mend}().")


def spot_coordinates(adata: AnnData, spatial_key: str = _keys.SPATIAL) -> NDArray[np.float64]:
    """Spot centres (x, y), full-resolution px, (n_obs, 2).

    Raises
    ------
    KeyError
        If ``obsm`` has none.
    ValueError
        If the shape is another one, or a coordinate is NaN or infinite.
    """
    if spatial_key not in adata.obsm:
        raise KeyError(
            f"obsm[{spatial_key!r}] is missing: spot centres (x, y) in full-resolution pixels are needed; "
            f"name their place with spatial_key= (obsm has: {some(adata.obsm) or 'nothing'})."
        )
    xy = np.asarray(adata.obsm[spatial_key])
    if xy.shape != (adata.n_obs, 2) or xy.dtype.kind not in "fiu":
        raise ValueError(
            f"obsm[{spatial_key!r}] must be numbers of shape ({adata.n_obs}, 2), found {xy.dtype} {xy.shape}; "
            "keep the columns x and y."
        )
    xy = xy.astype(np.float64)
    bad = ~np.isfinite(xy).all(1)
    if bad.any():
        raise ValueError(
            f"obsm[{spatial_key!r}] has NaN or infinite coordinates in {bad.sum()} spots "
            f"({some(adata.obs_names[bad])}); drop them: adata = adata[np.isfinite(adata.obsm[{spatial_key!r}])"
            ".all(1)].copy()."
        )
    return xy


def libraries(
    adata: AnnData, library_key: str = _keys.LIBRARY, *, spatial_key: str = _keys.SPATIAL
) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide, slides in order of appearance.

    Without the column there is one slide: the only one in ``uns[spatial_key]``, or one called "slide".

    Raises
    ------
    KeyError
        If the column is absent and ``uns`` holds several slides.
    ValueError
        If a spot has no slide.
    """
    if library_key not in adata.obs:
        names = list(adata.uns.get(spatial_key, {}))
        if len(names) > 1:
            raise KeyError(
                f"obs[{library_key!r}] is missing while uns[{spatial_key!r}] holds {len(names)} slides "
                f"({some(names)}): name the column of obs that tells them apart with library_key=."
            )
        return {names[0] if names else ONE_SLIDE: np.arange(adata.n_obs)}
    codes, names = pd.factorize(adata.obs[library_key].astype(object))
    if (codes < 0).any():
        raise ValueError(
            f"obs[{library_key!r}] is missing for {(codes < 0).sum()} spots ({some(adata.obs_names[codes < 0])}); "
            "fill it in or drop them."
        )
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}


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
