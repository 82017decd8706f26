"""Expression as objects that QuPath imports."""

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, did_you_mean, some
from gdml._files import write_text
from gdml.spots.images import slide_entry
from gdml.spots.resolve import Spots

Values = Literal["predicted", "measured"]
Shape = Literal["square", "circle"]
ObjectType = Literal["tile", "detection", "annotation"]
_CORNERS = 24  # of the polygon that stands for a circle
_COLORS = "viridis"


def to_geojson(
    adata: AnnData,
    genes: str | Sequence[str],
    path: str | PathLike[str] | None = None,
    *,
    values: Values = "predicted",
    library_id: str | None = None,
    shape: Shape | None = None,
    color_by: str | None = None,
    n_classes: int | None = None,
    object_type: ObjectType = "tile",
    key: str = _keys.KEY,
) -> dict[str, Any] | None:
    """Export the expression of some genes on a slide for QuPath :cite:p:`Bankhead2017`.

    Drop the file on the slide in QuPath (0.4 or later), or use *File > Import objects from file*. Values are
    measurements of the objects, which *Measure > Show measurement maps* draws.

    Parameters
    ----------
    adata
        Spots with predicted or measured expression.
    genes
        Genes to export.
    path
        File to write, ``.geojson``, in an existing folder; an existing file is replaced. None returns the objects.
    values
        ``"predicted"``: ``obsm[key]``. ``"measured"``: ``obsm["gdml_evaluated"]``, measured expression on the scale of
        the predictions, else ``obsm["gdml_measured"]``.
    library_id
        Slide to export; may be left out where there is one.
    shape
        ``"circle"``: a polygon of 24 corners with the diameter of the spot; ``"square"``: the tile of the spot, or its
        bin. By default circles for measured spots, and squares for bins, for slides without genes and where the
        diameter is unknown.
    color_by
        Gene whose values colour the objects, between its minimum and maximum on the slide; by default the first one.
    n_classes
        Number of classes of about equal size, ``"FASN Q1"`` (lowest) and so on, that objects are put into by the value
        of ``color_by``; None for no classification.
    object_type
        What QuPath makes of a spot. Annotations can be edited; tiles and detections are drawn faster.
    key
        Name under which results are stored.

    Returns
    -------
    None, or the FeatureCollection where ``path`` is None. A feature per spot of the slide, in the order of ``adata``:

    - ``geometry``: polygon in px of the full-resolution image from its top left corner, closed and counterclockwise
      :cite:p:`RFC7946` for an upward y axis;
    - ``properties``: ``objectType``, ``name`` (of the spot), ``measurements``, a value by gene (measured ones are
      called ``"FASN (measured)"``), ``color`` and ``classification``. Values that are NaN are left out.

    The member ``gdml`` names the slide, the place of the values in ``adata`` and their model.

    Raises
    ------
    KeyError
        If there are no such values, or a gene or slide is unknown.
    ValueError
        If there are several slides and ``library_id`` is missing, or another argument is not valid.
    FileNotFoundError
        If the folder of ``path`` does not exist.

    Examples
    --------
    >>> import gdml
    >>> gdml.io.to_geojson(adata, ["FASN", "GNAS"], "slide.geojson")  # doctest: +SKIP
    """
    for name, value, known in (
        ("values", values, Values),
        ("shape", shape, Shape),
        ("object_type", object_type, ObjectType),
    ):
        if value not in get_args(known) and not (name == "shape" and value is None):
            raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), get_args(known))}")
    if n_classes is not None:
        check_count("n_classes", n_classes, at_least=2)
    target = None if path is None else _target(path)
    spots = Spots.resolve(adata, key=key, copy=getattr(adata, "is_view", False))
    library = _library(spots, library_id)
    rows = spots.slides[library]
    names = [genes] if isinstance(genes, str) else list(genes)
    color_by = names[0] if color_by is None and names else color_by
    table, source = _table(spots.adata, values, key, [*names, *([color_by] if color_by else [])])
    expression = table[names].to_numpy(np.float64)[rows]
    labels = names if values == "predicted" else [f"{gene} (measured)" for gene in names]

    features = _features(_polygons(spots, library, shape), expression, labels, spots.adata.obs_names[rows], object_type)
    _paint(features, table[color_by].to_numpy(np.float64)[rows], str(color_by), n_classes)
    record = (spots.record(_keys.PREDICT) or {}) if values == "predicted" else {}
    about = {"library_id": library, "values": values, "source": source}
    about |= {name: str(record[name]) for name in ("model", "name", "provenance") if name in record}
    collection = {"type": "FeatureCollection", "features": features, "gdml": about}
    if target is None:
        return collection
    write_text(target, json.dumps(collection, allow_nan=False, separators=(",", ":")))
    return None


def _target(path: str | PathLike[str]) -> Path:
    target = Path(path).expanduser().absolute()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {str(target.parent)!r}; make it first.")
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder; name a file in it, such as 'slide.geojson'.")
    return target


def _library(spots: Spots, library_id: str | None) -> str:
    if library_id is None:
        if len(spots.slides) > 1:
            raise ValueError(
                f"`adata` has {len(spots.slides)} slides ({some(spots.slides)}), but QuPath opens one image: choose "
                f"one, library_id={next(iter(spots.slides))!r}."
            )
        return next(iter(spots.slides))
    if str(library_id) not in spots.slides:
        raise KeyError(f"`library_id` is {library_id!r}, no such slide. {did_you_mean(str(library_id), spots.slides)}")
    return str(library_id)


def _table(adata: AnnData, values: Values, key: str, genes: list[str]) -> tuple[pd.DataFrame, str]:
    """Table of the values, and its place in the AnnData."""
    if not genes:
        raise ValueError("`genes` is empty; name one gene at least.")
    if values == "predicted":
        places, mend = [key], "gdml.tl.predict(adata, model) writes them"
    else:
        places, mend = [_keys.evaluated(key), _keys.measured(key)], "gdml.pp.normalize(adata) writes it"
    place = next((name for name in places if isinstance(adata.obsm.get(name), pd.DataFrame)), None)
    if place is None:
        raise KeyError(f"`values` is {values!r}, but there is no table obsm[{places[-1]!r}]; {mend}.")
    table = adata.obsm[place]
    for gene in genes:
        if gene not in table:
            raise KeyError(f"{gene!r} is not in obsm[{place!r}]. {did_you_mean(str(gene), map(str, table.columns))}")
    return table, f"obsm[{place!r}]"


def _polygons(spots: Spots, library: str, shape: Shape | None) -> NDArray[np.float64]:
    """Outline the spots by closed rings, (n, corners + 1, 2), px of the image."""
    factors = slide_entry(spots.adata, library, spots.spatial_key).get("scalefactors", {})
    tile = ((spots.record(_keys.TILES) or {}).get("slides", {})).get(library, {})
    side, diameter = tile.get("side_px"), factors.get("spot_diameter_fullres")
    is_bin = "bin_size_um" in factors
    has_genes = spots.adata.n_vars > 0
    if is_bin and diameter:
        side = diameter
    shape = shape or ("circle" if diameter and has_genes and not is_bin else "square")
    size = diameter if shape == "circle" else side
    if not size:
        lacks = "diameter of its spots" if shape == "circle" else "size of its tiles"
        raise ValueError(
            f"`shape` is {shape!r}, but the {lacks} is unknown on slide {library!r}; "
            + ('pass shape="square".' if side else "call gdml.pp.tile(adata) first.")
        )
    if shape == "square":
        outline = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0)])
    else:
        angle = 2 * np.pi * np.arange(_CORNERS + 1) / _CORNERS
        outline = np.column_stack([np.cos(angle), np.sin(angle)])
        outline[-1] = outline[0]
    # spots of a SpatialData are in its coordinate system, where the image may lie anywhere
    corner = np.array([float(tile.get("left", 0.0)), float(tile.get("top", 0.0))])
    return (spots.xy[spots.slides[library]] - corner)[:, None] + outline * (float(size) / 2)


def _features(
    polygons: NDArray[np.float64], expression: NDArray[np.float64], labels: list[str], names: pd.Index, kind: ObjectType
) -> list[dict[str, Any]]:
    return [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": kind,
                "name": name,
                "measurements": {
                    label: value for label, value in zip(labels, row, strict=True) if math.isfinite(value)
                },
            },
        }
        for ring, row, name in zip(polygons.tolist(), expression.tolist(), map(str, names), strict=True)
    ]


def _paint(features: list[dict[str, Any]], values: NDArray[np.float64], gene: str, n_classes: int | None) -> None:
    """Give objects with a value its colour, and its class."""
    import matplotlib as mpl

    shown = np.flatnonzero(np.isfinite(values))
    if not len(shown):
        return
    known = values[shown]
    low, high = known.min(), known.max()
    shades = mpl.colormaps[_COLORS]
    colors = shades((known - low) / (high - low or 1), bytes=True)[:, :3].tolist()
    for i, color in zip(shown.tolist(), colors, strict=True):
        features[i]["properties"]["color"] = color
    if n_classes is None:
        return
    edges = np.quantile(known, np.arange(1, n_classes) / n_classes)
    ramp = shades(np.arange(n_classes) / (n_classes - 1), bytes=True)[:, :3].tolist()
    for i, place in zip(shown.tolist(), np.searchsorted(edges, known, side="right").tolist(), strict=True):
        features[i]["properties"]["classification"] = {"name": f"{gene} Q{place + 1}", "color": ramp[place]}
