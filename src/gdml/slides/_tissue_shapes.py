"""Tissue outlined by hand: polygons of a GeoJSON file, as QuPath exports them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from shapely.geometry.base import BaseGeometry

from ._tissue_map import TISSUE, TissueMap, tile_boxes

_LONGEST = 4096  # px of the labels, which serve for pictures alone
_MOST_POINTS = 64  # of a piece that tiles are cut with
_POLYGONS = ("Polygon", "MultiPolygon")


@dataclass(frozen=True)
class PolygonMap(TissueMap):
    """Tissue within polygons: its shares are those of the polygons, not those of the labels drawn from them.

    Parameters
    ----------
    pieces
        Polygons without common area, full-resolution px, which together are the tissue.
    """

    pieces: NDArray[np.object_]

    def fraction(self, xy: ArrayLike, side_px: float) -> NDArray[np.float32]:
        """Share of tissue in square tiles, exact; see :meth:`TissueMap.fraction`."""
        boxes = shapely.box(*tile_boxes(xy, side_px).T)
        tiles, pieces = shapely.STRtree(self.pieces).query(boxes, predicate="intersects")
        shared = shapely.area(shapely.intersection(boxes[tiles], self.pieces[pieces]))
        area = np.bincount(tiles, weights=shared, minlength=len(boxes))
        return np.clip(area / side_px**2, 0, 1).astype(np.float32)


def tissue_from_geojson(source: str | os.PathLike[str] | Mapping[str, Any], slide_size: tuple[int, int]) -> TissueMap:
    """Tissue within the polygons of a GeoJSON file.

    Parameters
    ----------
    source
        Path of the file, or its content: a FeatureCollection, a Feature, a list of features or a geometry, as QuPath
        exports annotations. Coordinates are full-resolution px from the image's upper left corner. All polygons are
        tissue, whatever their classification; their holes are not. Points and lines are left out.
    slide_size
        Width and height of the slide, full-resolution px.

    Returns
    -------
    The map. Its ``fraction`` is exact; its labels are drawn at no more than 4096 px.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no GeoJSON, holds no polygons, or all of them lie outside the slide.

    Notes
    -----
    Polygons that cross themselves are repaired by :func:`shapely.make_valid`.
    """
    name = "the GeoJSON" if isinstance(source, Mapping | list) else repr(os.fspath(source))
    shapes = _polygons(_geometries(_content(source, name), name), name)
    slide = shapely.box(0, 0, *slide_size)
    tissue = shapely.intersection(shapes, slide)
    if shapely.area(tissue) == 0:
        left, top, right, bottom = shapely.bounds(shapes)
        raise ValueError(
            f"The polygons of {name} lie outside the slide: they extend from ({left:g}, {top:g}) to ({right:g}, "
            f"{bottom:g}), the slide from (0, 0) to ({slide_size[0]}, {slide_size[1]}). Their coordinates must be "
            "full-resolution px: export them without rescaling, or divide them by the scale factor."
        )
    return PolygonMap(_drawn(tissue, slide_size), slide_size, np.array(_cut(tissue), dtype=object))


def _content(source: Any, name: str) -> Any:
    if isinstance(source, Mapping | list):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"The GeoJSON {name} {what}; pass the path of the file, or `tissue=True` to detect.")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # also of bytes that are no text
        raise ValueError(
            f"The file {name} is not JSON ({error}); export the annotations as GeoJSON, without compression."
        ) from error


def _geometries(content: Any, name: str) -> list[Any]:
    """Geometries in a FeatureCollection, a Feature, a GeometryCollection, a geometry, or a list of them."""
    if isinstance(content, list):
        return [geometry for one in content for geometry in _geometries(one, name)]
    kind = content.get("type") if isinstance(content, Mapping) else None
    if kind == "Feature":
        return [] if content.get("geometry") is None else _geometries(content["geometry"], name)
    inner = {"FeatureCollection": "features", "GeometryCollection": "geometries"}.get(str(kind))
    if inner is None and isinstance(content, Mapping) and "coordinates" in content:
        return [content]
    members = content.get(inner or "features") if isinstance(content, Mapping) else None
    if not isinstance(members, list):
        found = f"type {kind!r}" if kind else f"{type(content).__name__} without a type"
        raise ValueError(
            f"The content of {name} is not GeoJSON: found {found}. A FeatureCollection, a Feature, a list of features "
            "or a geometry is needed, as QuPath exports (File > Export objects as GeoJSON)."
        )
    return _geometries(members, name)


def _polygons(geometries: list[Any], name: str) -> BaseGeometry:
    """Union of the polygons, valid."""
    kinds = [str(geometry["type"]) for geometry in geometries]
    shapes = []
    for geometry, kind in zip(geometries, kinds, strict=True):
        if kind not in _POLYGONS:
            continue
        try:
            shapes.append(shapely.from_geojson(json.dumps(geometry)))
        except shapely.errors.GEOSException as error:
            raise ValueError(f"A {kind} of {name} has no valid coordinates ({error}); export it again.") from error
    tissue = shapely.union_all(shapely.make_valid(np.array(shapes, dtype=object)))
    parts = [part for part in shapely.get_parts(tissue) if part.geom_type in _POLYGONS and part.area > 0]
    if not parts:
        found = ", ".join(sorted(set(kinds))) or "no geometry"
        raise ValueError(
            f"There are no polygons with an area in {name}: found {found}. Outline the tissue with polygons and export "
            "them as GeoJSON."
        )
    return shapely.union_all(parts)


def _cut(shape: BaseGeometry) -> list[BaseGeometry]:
    """Cut polygons into pieces of few points, by halving their bounding boxes."""
    pieces, todo = [], list(shapely.get_parts(shape))
    while todo:
        polygon = todo.pop()
        if polygon.geom_type not in _POLYGONS or polygon.area == 0:
            continue  # a line or a point where the polygon touches the cut
        if shapely.get_num_coordinates(polygon) <= _MOST_POINTS:
            pieces.append(polygon)
            continue
        left, top, right, bottom = polygon.bounds
        if right - left > bottom - top:
            middle = (left + right) / 2
            halves = shapely.box(left, top, middle, bottom), shapely.box(middle, top, right, bottom)
        else:
            middle = (top + bottom) / 2
            halves = shapely.box(left, top, right, middle), shapely.box(left, middle, right, bottom)
        todo += [part for half in halves for part in shapely.get_parts(shapely.intersection(polygon, half))]
    return pieces


def _drawn(shape: BaseGeometry, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Labels of the polygons."""
    shrink = max(max(size) / _LONGEST, 1.0)
    width, height = (max(round(side / shrink), 1) for side in size)
    # pixel (i, j) covers [i, i + 1), and Pillow draws through the centres of pixels
    factors, labels = np.array([width / size[0], height / size[1]]), Image.new("L", (width, height))
    draw = ImageDraw.Draw(labels)
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    # an island lies in a hole of a polygon whose outline encloses more: it is drawn after that hole
    for polygon in sorted(polygons, key=lambda one: shapely.Polygon(one.exterior).area, reverse=True):
        for ring, ink in [(polygon.exterior, TISSUE), *((hole, 0) for hole in polygon.interiors)]:
            draw.polygon([tuple(xy) for xy in np.asarray(ring.coords) * factors - 0.5], fill=ink)
    return np.array(labels)
