"""The verb that lays tiles on spots."""

from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml.slides import Slide
from gdml.spots.resolve import Spots
from gdml.spots.tiles import tile_spots


def tile(
    adata: AnnData,
    tile_um: float | None = 112.0,
    *,
    tile_px: int = 224,
    n_side: int = 5,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    image: str | PathLike | NDArray | Slide | Mapping[str, Any] | Any | None = None,
    outside: Literal["error", "drop"] = "error",
    check: bool = True,
    library_key: str | None = None,
    spatial_key: str | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Lay a square tile on each spot, and a square of neighbour tiles around it.

    A tile covers the same number of micrometres on every slide, so that an encoder sees cells at one size. The
    micrometres per pixel of a slide are the first of these that is known: ``um_per_px``; ``microns_per_pixel`` in
    Space Ranger's scale factors; the metadata of the image (OME ``PhysicalSizeX``, resolution), where within 0.05 to
    5; the spot pitch. These and the spot diameter in the scale factors are held against each other.

    Parameters
    ----------
    adata
        Spots of one or more slides, centres (x, y) in ``obsm[spatial_key]``, full-resolution px. A SpatialData with one
        table works as well.
    tile_um
        Side of a tile, um. None takes ``tile_px`` pixels without resampling, as the paper does.
    tile_px
        Side of the image given to the encoder, px.
    n_side
        Tiles along a side of the neighbour region, odd.
    um_per_px
        Micrometres per full-resolution px, for all slides or by slide.
    spot_pitch_um
        Distance between neighbouring spots, um. By default ``spot_pitch_um`` in ``uns[spatial_key][library]
        ["metadata"]``, ``bin_size_um`` in the scale factors, or that of the array: 100 for the hexagonal grid of
        Visium, 200 for the square grid of legacy ST. Legacy ST is assumed only if no other source contradicts it.
    image
        Full-resolution image: anything that :func:`gdml.slides.open_slide` takes, or a dict of these by slide.
        None takes ``uns[spatial_key][library]["metadata"]["source_image_path"]``; ``"hires"`` insists on the
        downscaled image in ``uns``. The coordinates of a SpatialData image are those of its coordinate system.
    outside
        Spots whose centre lies outside the image: ``"error"``, or ``"drop"`` to remove them from ``adata``.
    check
        Refuse sources of the scale that differ by more than a factor of 2, and compare the spots with the tissue on
        a thumbnail of each image. False takes the first source as it is and reads no thumbnail.
    library_key
        Column of ``obs`` with the slide of each spot; by default ``library_id`` where it exists.
    spatial_key
        Key of the spot centres in ``obsm`` and of the slides in ``uns``; by default ``spatial``.
    key_added
        Replaces ``gdml`` in the names below.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``obsm["gdml_neighbor_mask"]`` : bool, (n_obs, n_side**2)
        True where a tile of the region lies wholly inside the image; row-major from the top left. The spot's own
        tile is in the middle and always True.
    ``uns["gdml"]["tiles"]``
        ``tile_um`` (NaN where None), ``tile_px``, ``n_side``, ``library_key``, ``spatial_key``, and for each of
        ``slides``: ``image`` (path, "hires" or "in memory"), ``fingerprint`` (hash of its content), ``um_per_px``
        (NaN where unknown), ``um_per_px_source``, ``side_px`` (side of a tile in full-resolution px), ``width`` and
        ``height`` (of the image, px), ``left`` and ``top`` (its corner in the coordinates of the spots). Features of
        tiles that have changed are removed (``uns["gdml"]["features"]``).

    Raises
    ------
    KeyError
        If the coordinates, the column of slides or an entry of ``image`` is missing.
    FileNotFoundError
        If an image does not exist.
    TypeError
        If text or another object is passed where a number is needed.
    ValueError
        If an argument or coordinate is not valid; an image cannot be opened, or only a downscaled one is known; the
        micrometres per pixel are unknown, implausible or contradictory; or spots lie outside the image.

    Warns
    -----
    UserWarning
        If sources of the scale differ by more than 10 %, or many spots lie over glass.

    See Also
    --------
    gdml.pp.embed : Read and encode the tiles.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> gdml.pp.tile(adata, tile_um=112)
    >>> adata.obsm["gdml_neighbor_mask"].shape == (adata.n_obs, 25)
    True
    """
    spots = Spots.resolve(adata, key=key_added, library_key=library_key, spatial_key=spatial_key, copy=copy)
    spots = tile_spots(
        spots,
        tile_um,
        tile_px=tile_px,
        n_side=n_side,
        um_per_px=um_per_px,
        spot_pitch_um=spot_pitch_um,
        image=image,
        outside=outside,
        check=check,
    )
    return spots.adata if copy else None
