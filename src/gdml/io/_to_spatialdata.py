"""From an AnnData to a SpatialData: image, spots as shapes, table."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count
from gdml._grid import is_hexagonal
from gdml._progress import tell
from gdml.slides.spatialdata import scales
from gdml.spots.container import ATTRS
from gdml.spots.images import HIRES_SCALE, resolve_image
from gdml.spots.resolve import Spots

from ._lazy_image import lazy_image

if TYPE_CHECKING:
    from spatialdata import SpatialData

_REGION, _INSTANCE = "region", "spot_id"  # columns of obs, as spatialdata-io names them
_THUMBNAILS = {"hires": HIRES_SCALE, "lowres": "tissue_lowres_scalef"}
_ABUT = 0.8  # diameter over pitch above which spots of a square grid are squares


def to_spatialdata(
    adata: AnnData,
    *,
    image: bool | Any = True,
    library_key: str | None = None,
    spatial_key: str | None = None,
    key: str = _keys.KEY,
) -> "SpatialData":
    """Make a SpatialData of one or more slides, with the names that spatialdata-io gives to Visium's elements.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    image
        True: the full-resolution images whose paths ``uns["spatial"]`` has; False: the thumbnails alone; or another
        source, or a dict of these by slide, as in :func:`gdml.pp.tile`. Files are read when they are needed, block by
        block.
    library_key, spatial_key
        As in :func:`gdml.tl.predict`.
    key
        ``key_added`` of the results.

    Returns
    -------
    For each slide ``{id}``, characters other than letters, digits, ``_``, ``-`` and ``.`` in its name replaced by ``_``:

    - image ``{id}_full_image``, with levels of half the size each; ``{id}_hires_image`` and ``{id}_lowres_image``;
    - shapes ``{id}``: circles of the spots' diameter; squares where the spots of a square grid touch, as the tiles of
      :func:`gdml.pp.grid` and the bins of Visium HD do;
    - coordinate systems ``{id}`` (full-resolution px), ``{id}_downscaled_hires``, ``{id}_downscaled_lowres``.

    The table ``"table"`` is a copy of ``adata`` that annotates the shapes (``obs["region"]``, ``obs["spot_id"]``), with all
    that gdml wrote; every verb takes the SpatialData in place of the AnnData. Predictions are the layer ``"gdml"``: the
    table of slides without genes gets the panel as its genes, and no ``X``.

    Raises
    ------
    FileNotFoundError
        If an image does not exist; pass its path with ``image=``, or ``image=False``.
    KeyError, ValueError
        As :func:`gdml.pp.tile` raises of coordinates and images.
    ImportError
        If spatialdata is not installed.

    See Also
    --------
    gdml.io.from_spatialdata : The other direction.

    Examples
    --------
    Draw predictions with spatialdata-plot:

    >>> sdata = gdml.io.to_spatialdata(adata)  # doctest: +SKIP
    >>> shown = sdata.pl.render_images("C6_full_image")  # doctest: +SKIP
    >>> shown = shown.pl.render_shapes("C6", color="FASN", table_layer="gdml")  # doctest: +SKIP
    >>> shown.pl.show("C6")  # doctest: +SKIP
    """
    spatialdata = _spatialdata()
    spots = Spots.resolve(
        adata, key=key, library_key=library_key, spatial_key=spatial_key, copy=getattr(adata, "is_view", False)
    )
    names = _element_names(list(spots.slides))
    images: dict[str, Any] = {}
    shapes = {}
    for slide, rows in spots.slides.items():
        name, entry = names[slide], spots.entry(slide)
        small = _thumbnails(entry)
        systems = {name: 1.0, **{f"{name}_downscaled_{kind}": factor for kind, (_, factor) in small.items()}}
        full = _full_image(spots, slide, entry, image)
        if full is not None:
            images[f"{name}_full_image"] = lazy_image(full, {name: 1.0})
        for kind, (pixels, factor) in small.items():
            images[f"{name}_{kind}_image"] = _image(pixels, {name: 1 / factor, f"{name}_downscaled_{kind}": 1.0})
        shapes[name] = _shapes(spots, slide, rows, entry, systems)
    table = _table(spots, names)
    tell(
        f"to_spatialdata: {count(len(spots), 'spot')} on {count(len(shapes), 'slide')}, "
        f"{count(sum(one.endswith('_full_image') for one in images), 'full-resolution image')}"
        + (f"; draw predictions with table_layer={key!r}" if key in table.layers else "")
    )
    return spatialdata.SpatialData(images=images, shapes=shapes, tables={"table": table})


def _spatialdata() -> Any:
    try:
        import spatialdata
    except ImportError as error:
        raise ImportError("SpatialData needs the package spatialdata: pip install 'gdml[spatial]'") from error
    return spatialdata


def _element_names(slides: list[str]) -> dict[str, str]:
    """Names that SpatialData allows, each once, also where case is ignored."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for slide in slides:
        clean = re.sub(r"[^\w.-]", "_", slide)
        clean = f"slide{clean}" if clean.startswith("_") or clean in ("", ".", "..") else clean
        name, i = clean, 1
        while name.lower() in taken:
            i += 1
            name = f"{clean}_{i}"
        taken.add(name.lower())
        names[slide] = name
    return names


def _full_image(spots: Spots, slide: str, entry: Mapping[str, Any], image: Any) -> Any:
    """Source of the full-resolution image; None where it is not wanted or not known."""
    if image is False or (image is True and _keys.IMAGE_PATH not in entry.get("metadata", {})):
        return None
    return resolve_image(spots.adata, slide, None if image is True else image, spatial_key=spots.spatial_key)


def _thumbnails(entry: Mapping[str, Any]) -> dict[str, tuple[NDArray[np.uint8], float]]:
    """Thumbnails that have a scale factor, (height, width, 3), with it."""
    found = {}
    for kind, factor in _THUMBNAILS.items():
        scale = entry.get("scalefactors", {}).get(factor)
        if kind in entry.get("images", {}) and scale is not None:
            pixels = np.asarray(entry["images"][kind])[..., :3]
            pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
            found[kind] = pixels, float(scale)
    return found


def _image(pixels: NDArray[np.uint8], systems: Mapping[str, float]) -> Any:
    from spatialdata.models import Image2DModel

    return Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=scales(systems)
    )


def _shapes(
    spots: Spots, slide: str, rows: NDArray[np.intp], entry: Mapping[str, Any], systems: Mapping[str, float]
) -> Any:
    import shapely
    from geopandas import GeoDataFrame
    from scipy.spatial import KDTree
    from spatialdata.models import ShapesModel

    xy = spots.xy[rows]
    nearest = float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 2.0
    diameter = float(entry.get("scalefactors", {}).get("spot_diameter_fullres", nearest / 2))
    grid = [spots.adata.obs[k].to_numpy()[rows] for k in (_keys.ARRAY_ROW, _keys.ARRAY_COL) if k in spots.adata.obs]
    transformations = scales(systems)
    if len(grid) == 2 and not is_hexagonal(*grid) and diameter > _ABUT * nearest:
        low, high = xy - diameter / 2, xy + diameter / 2
        squares = GeoDataFrame(geometry=shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1]), index=rows)
        return ShapesModel.parse(squares, transformations=transformations)
    return ShapesModel.parse(xy, geometry=0, radius=diameter / 2, index=rows, transformations=transformations)


def _table(spots: Spots, names: Mapping[str, str]) -> AnnData:
    from spatialdata.models import TableModel

    adata = spots.adata
    uns = dict(adata.uns)
    uns.pop(ATTRS, None)
    if _keys.SPATIAL in uns:
        without = lambda entry: {part: value for part, value in entry.items() if part != "images"}
        uns[_keys.SPATIAL] = {slide: without(entry) for slide, entry in uns[_keys.SPATIAL].items()}
    table = AnnData(
        X=None if adata.n_vars == 0 else adata.X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        layers=dict(adata.layers),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        uns=uns,
    )
    table = (_with_panel(table) if table.n_vars == 0 else table).copy()
    table.obs[_REGION] = pd.Categorical([names[slide] for slide in spots.library])
    table.obs[_INSTANCE] = np.arange(len(table))
    regions = list(names.values())
    return TableModel.parse(table, region=regions, region_key=_REGION, instance_key=_INSTANCE)


def _with_panel(table: AnnData) -> AnnData:
    """Spots without genes: predictions as layers over the panel, so that tools that draw by gene find them."""
    predicted = {
        name: frame
        for name, frame in table.obsm.items()
        if isinstance(frame, pd.DataFrame) and _keys.PREDICT in table.uns.get(name, {})
    }
    if not predicted:
        return table
    genes = pd.Index([]).append([frame.columns for frame in predicted.values()]).unique()
    return AnnData(
        obs=table.obs,
        var=pd.DataFrame(index=genes),
        obsm=dict(table.obsm),
        obsp=dict(table.obsp),
        uns=table.uns,
        layers={name: frame.reindex(columns=genes).to_numpy(np.float32) for name, frame in predicted.items()},
    )
