"""A SpatialData, resolved once: its table, and for each slide the image and the spots in the pixels of that image."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml._errors import did_you_mean, some
from gdml.slides import Slide
from gdml.slides.spatialdata import GLOBAL, NAME, TOLERANCE, matrix, open_pixels
from gdml.slides.thumbnail import thumbnail

ATTRS = "spatialdata_attrs"  # uns of a table: which elements it annotates
_DOWNSCALED = ("_hires_image", "_lowres_image")  # spatialdata-io's names
_BIN = re.compile(r"square_(\d{3})um$")  # spatialdata-io's names of the bins of Visium HD
_AGREE_PX = 0.5  # between coordinates that are taken for the same


@dataclass(frozen=True)
class Placed:
    """The spots of a slide in the pixels of its image.

    Attributes
    ----------
    region, image
        Names of the elements.
    xy
        (n, 2) centres, px of the image.
    diameter
        Of a spot, or side of a square as large, px; NaN where it has none.
    slide
        The image, in its pixels.
    """

    region: str
    image: str
    xy: NDArray[np.float64]
    diameter: float
    slide: Slide

    def scalefactors(self) -> dict[str, float]:
        """Size of the spots by their shapes, as in Visium's scale factors."""
        found = {"spot_diameter_fullres": self.diameter} if np.isfinite(self.diameter) else {}
        bins = _BIN.search(self.region)
        return found | ({"bin_size_um": float(bins[1])} if bins else {})

    def thumbnails(self, sides: Mapping[str, int]) -> tuple[dict[str, NDArray[np.uint8]], dict[str, float]]:
        """Make thumbnails at most so many px long, with their scale factors; none of an image too large to read."""
        images = {name: thumbnail(self.slide, side) for name, side in sides.items()}
        found = {name: image for name, image in images.items() if image is not None}
        longest = max(self.slide.size)
        return found, {f"tissue_{name}_scalef": max(image.shape[:2]) / longest for name, image in found.items()}


def is_spatialdata(data: Any) -> bool:
    """Whether ``data`` is a SpatialData."""
    return type(data).__module__.split(".")[0] == "spatialdata" and hasattr(data, "tables")


def table_of(data: Any, name: str = "adata") -> Any:
    """Table of a SpatialData; whatever else is given is returned as it is.

    Raises
    ------
    ValueError
        If there are several tables, or none.
    """
    return data.tables[table_name(data, name)] if is_spatialdata(data) else data


def table_name(sdata: Any, name: str = "adata") -> str:
    """Name of the only table of a SpatialData.

    Raises
    ------
    ValueError
        If there are several, or none.
    """
    names = list(sdata.tables)
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(
            f"`{name}` is a SpatialData with {len(names)} tables ({some(names)}): choose one, adata = "
            f"gdml.io.from_spatialdata(sdata, table={names[0]!r}), and put the result back with "
            f"sdata.tables[{names[0]!r}] = adata."
        )
    images = list(sdata.images)
    mend = "gdml.io.from_spatialdata(sdata, shapes=...) makes one of its shapes"
    if images:
        mend = (
            f"for an image alone, pass the image: slide = gdml.pp.grid(sdata[{images[0]!r}]), or "
            f"gdml.tl.predict(sdata[{images[0]!r}], model); {mend}"
        )
    raise ValueError(f"`{name}` is a SpatialData without a table; {mend}.")


def region_keys(table: AnnData, name: str) -> tuple[str, str]:
    """Columns of a table with the element and the instance that each row annotates.

    Raises
    ------
    ValueError
        If it annotates nothing.
    """
    attrs = table.uns.get(ATTRS) or {}
    keys = (str(attrs.get("region_key")), str(attrs.get("instance_key")))
    if not set(keys) <= set(table.obs.columns):
        raise ValueError(
            f"The table {name!r} annotates no shapes, so that its spots have no place on an image: link it with "
            "sdata.set_table_annotates_spatialelement, or parse it with spatialdata.models.TableModel.parse(table, "
            "region=..., region_key=..., instance_key=...)."
        )
    return keys


def place(
    sdata: Any,
    name: str,
    table: AnnData,
    slides: Mapping[str, NDArray[np.intp]],
    *,
    image: str | Mapping[str, str] | None = None,
    coordinate_system: str | None = None,
) -> dict[str, Placed]:
    """Find the image of each slide, and bring the centroids of its spots to the pixels of that image.

    Parameters
    ----------
    sdata
        The SpatialData.
    name, table
        Its table.
    slides
        Rows of each slide. A slide is one element, or the part of one.
    image
        Name of the image of all slides, or a dict by slide. None: the only full-resolution image that shares a
        coordinate system with the shapes.
    coordinate_system
        That shapes and image share; None: any, provided that all agree.

    Raises
    ------
    KeyError
        If an element, an image, an instance or a coordinate system does not exist.
    ValueError
        If there is no image, several, or only a downscaled one; if they share no coordinate system; if a
        transformation is broken or stretches; if a centroid is not finite.
    """
    region_key, instance_key = region_keys(table, name)
    regions = table.obs[region_key].astype(str).to_numpy()
    placed = {}
    for slide, rows in slides.items():
        own = np.unique(regions[rows])
        if len(own) > 1:
            raise ValueError(
                f"Slide {slide!r} has spots of several elements ({some(own)}), which may have an image each: pass "
                f"library_key={region_key!r}."
            )
        chosen = image.get(slide) if isinstance(image, Mapping) else image
        instances = table.obs[instance_key].to_numpy()[rows]
        placed[slide] = _place(sdata, str(own[0]), instances, chosen, coordinate_system)
    return placed


def _place(sdata: Any, region: str, instances: NDArray[Any], image: str | None, system: str | None) -> Placed:
    from spatialdata import get_centroids

    elements = {**sdata.shapes, **sdata.labels, **sdata.points}
    if region not in elements:
        raise KeyError(
            f"The table annotates {region!r}, which the SpatialData does not have (it has: {some(elements) or 'none'})."
        )
    shapes = elements[region]
    image = choose_image(sdata, region, image, system)
    system = _shared_system(shapes, sdata.images[image], region, image, system)
    to_image = np.linalg.inv(matrix(_transforms(sdata.images[image])[system], f"the image {image!r} to {system!r}"))
    to_system = matrix(_transforms(shapes)[system], f"{region!r} to {system!r}")
    _refuse_stretched(to_image, image, system)

    centroids = get_centroids(shapes, system).compute()
    at = centroids.index.get_indexer(instances)
    if (at < 0).any():
        raise KeyError(
            f"{(at < 0).sum()} of {len(at)} spots of the table are not in {region!r} (instances {some(instances[at < 0])}); "
            "keep those that are: spatialdata.match_table_to_element."
        )
    xy = centroids[["x", "y"]].to_numpy(np.float64)[at] @ to_image[:2, :2].T + to_image[:2, 2]
    bad = ~np.isfinite(xy).all(1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} spots of {region!r} have no finite centroid (instances {some(instances[bad])}); drop them."
        )
    scale = np.sqrt(abs(np.linalg.det((to_image @ to_system)[:2, :2])))
    slide = open_pixels(sdata.images[image], f"{NAME} {image!r}")
    return Placed(region, image, xy, _diameter(shapes) * scale, slide)


def choose_image(sdata: Any, region: str, image: str | None = None, system: str | None = None) -> str:
    """Name of the full-resolution image of an element.

    Raises
    ------
    KeyError
        If ``image`` is given and does not exist.
    ValueError
        If there is no image, several, or only a downscaled one.
    """
    if image is not None:
        if image not in sdata.images:
            known = did_you_mean(image, sdata.images) if len(sdata.images) else "There are no images."
            raise KeyError(f"`image` is {image!r}, which is no image of the SpatialData. {known}")
        return image
    systems = set(_transforms(sdata[region])) if system is None else {system}
    near = [name for name, element in sdata.images.items() if systems & set(_transforms(element))]
    full = [name for name in near if not name.endswith(_DOWNSCALED)]
    own = [name for name in full if name.startswith(region)]
    if len(full) == 1 or len(own) == 1:
        return (full if len(full) == 1 else own)[0]
    call = f"gdml.io.from_spatialdata(sdata, image={{{region!r}: ...}})"
    if full:
        raise ValueError(
            f"{region!r} shares a coordinate system with {len(full)} images ({some(full)}): name its own, adata = {call}, "
            "or leave the others out with sdata.subset([...])."
        )
    if near:
        raise ValueError(
            f"{region!r} has only downscaled images ({some(near)}), in which a tile is a few pixels wide: add the "
            f"full-resolution image to the SpatialData, or insist with {call}."
        )
    where = "; ".join(f"{name!r} in {some(_transforms(element))}" for name, element in sdata.images.items())
    raise ValueError(
        f"{region!r} shares no coordinate system with an image: it is in {some(systems)}, the images are: "
        f"{where or 'none'}. Align them with spatialdata.transformations.set_transformation(image, transformation, "
        f"{min(systems)!r})."
    )


def _shared_system(shapes: Any, image: Any, region: str, name: str, system: str | None) -> str:
    """Coordinate system that shapes and image share."""
    of_shapes, of_image = _transforms(shapes), _transforms(image)
    shared = [one for one in of_shapes if one in of_image]
    if system is not None:
        shared = [one for one in shared if one == system]
    if not shared:
        asked = "" if system is None else f" {system!r}"
        raise ValueError(
            f"{region!r} (in {some(of_shapes)}) and the image {name!r} (in {some(of_image)}) do not share the coordinate "
            f"system{asked}: align them with spatialdata.transformations.set_transformation(image, transformation, "
            f"{system or next(iter(of_shapes))!r})."
        )
    shared.sort(key=lambda one: one != GLOBAL)
    corners = np.array([[0, 0, 1], [1e4, 0, 1], [0, 1e4, 1]], np.float64)
    first = None
    for one in shared:
        to_image = np.linalg.inv(matrix(of_image[one], f"the image {name!r} to {one!r}"))
        seen = corners @ (to_image @ matrix(of_shapes[one], f"{region!r} to {one!r}")).T
        first = seen if first is None else first
        if not np.allclose(seen, first, rtol=TOLERANCE, atol=_AGREE_PX):
            raise ValueError(
                f"{region!r} lies elsewhere on the image {name!r} by the coordinate system {one!r} than by {shared[0]!r}: "
                f"choose, adata = gdml.io.from_spatialdata(sdata, coordinate_system={one!r})."
            )
    return shared[0]


def _refuse_stretched(affine: NDArray[Any], image: str, system: str) -> None:
    """Allow rotation, mirroring and one scale: a square tile of the image is then a square of tissue."""
    gram = affine[:2, :2].T @ affine[:2, :2]
    if max(abs(gram[0, 1]), abs(gram[0, 0] - gram[1, 1])) > 2 * TOLERANCE * gram.trace() / 2:
        raise ValueError(
            f"The image {image!r} is sheared or stretched in the coordinate system {system!r}, so that square tiles of its "
            f"pixels are not square on the tissue. Resample it first: sdata[{image!r}] = spatialdata.transform("
            f"sdata[{image!r}], to_coordinate_system={system!r})."
        )


def _transforms(element: Any) -> dict[str, Any]:
    from spatialdata.transformations import get_transformation

    return get_transformation(element, get_all=True)


def _diameter(shapes: Any) -> float:
    """Diameter of circles, or side of the squares as large as polygons, in their own coordinates: the median."""
    if not hasattr(shapes, "geometry"):  # labels, points
        return float("nan")
    if "radius" in shapes:
        return 2 * float(np.median(shapes["radius"]))
    return float(np.sqrt(np.median(shapes.geometry.area)))


def agrees(table: AnnData, spatial_key: str, xy: NDArray[np.float64]) -> bool:
    """Whether coordinates that a table has are those of the centroids, to half a pixel."""
    stored = table.obsm.get(spatial_key)
    if stored is None or np.shape(stored) != xy.shape or np.asarray(stored).dtype.kind not in "fiu":
        return False
    return bool(np.abs(np.asarray(stored, np.float64) - xy).max() <= _AGREE_PX)
