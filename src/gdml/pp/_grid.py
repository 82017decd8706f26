"""The verb that makes an AnnData of a slide without spots."""

from os import PathLike
from typing import Any

from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml.slides import Slide
from gdml.slides.lattice import Layout
from gdml.spots.lattice import lattice_spots


def grid(
    slide: str | PathLike | NDArray | Slide | Any,
    tile_um: float | None = 112.0,
    *,
    spacing_um: float | None = None,
    layout: Layout = "square",
    tissue: bool | NDArray | str | PathLike | dict[str, Any] | Any = True,
    min_tissue: float = 0.25,
    region: tuple[float, float, float, float] | None = None,
    um_per_px: float | None = None,
    tile_px: int = 224,
    n_side: int = 5,
    library_id: str | None = None,
    library_key: str = _keys.LIBRARY,
    key_added: str = _keys.KEY,
) -> AnnData:
    """Lay tiles on the tissue of a slide that has only an H&E image.

    The tiles lie on a lattice that starts in the upper left corner of the image, or of ``region``, so that equal calls
    give equal tiles. Each lies wholly inside it, and those with too little tissue are left out.

    Parameters
    ----------
    slide
        Full-resolution image: anything that :func:`gdml.slides.open_slide` takes.
    tile_um
        Side of a tile, um. None takes ``tile_px`` pixels without resampling.
    spacing_um
        Distance between the centres of neighbouring tiles, um; by default the side of a tile, so that they touch.
    layout
        ``"square"``, or ``"hex"``: every second row is shifted by half a spacing, rows are sqrt(3)/2 spacings apart.
    tissue
        True detects the tissue on a thumbnail. False takes the whole image. Else a mask of the whole slide, (h, w) at
        any scale; the path of a GeoJSON file with polygons in full-resolution px, as QuPath exports them, or its
        content; or a ``TissueMap`` of ``gdml.slides.tissue``.
    min_tissue
        Least share of tissue in a tile, 0 to 1.
    region
        Part of the slide to tile: left, top, right, bottom, full-resolution px. It is cut at the edges of the image.
    um_per_px
        Micrometres per full-resolution px; by default from the metadata of the image.
    tile_px
        Side of the image given to the encoder, px.
    n_side
        Tiles along a side of the neighbour region, odd.
    library_id
        Name of the slide; by default that of its file without the ending, else "slide".
    library_key
        Column of ``obs`` that the name is written to.
    key_added
        Replaces ``gdml`` in the names below.

    Returns
    -------
    AnnData of n tiles and no genes, tiles row by row:

    - ``obs_names``: ``{column}x{row}-{library_id}``; ``obs``: ``tissue_fraction``, float32; ``array_row`` and
      ``array_col``, int64, position on the lattice (of ``"hex"``, columns are counted in halves, as Visium's are); and
      ``library_key``, categorical;
    - ``obsm["spatial"]``: centres of the tiles (x, y), full-resolution px, float64;
    - ``uns["spatial"][library_id]``: ``images`` (``hires``, ``lowres``: uint8, height x width x 3, at most 2,000 and
      600 px long; none where a slide without an overview is too large to be read whole), ``scalefactors``
      (``spot_diameter_fullres`` is the side of a tile in px, ``bin_size_um`` in um, ``microns_per_pixel``), and
      ``metadata`` (``source_image_path``, absolute, for files; ``spot_pitch_um``, the spacing);
    - ``obsm["gdml_neighbor_mask"]`` and ``uns["gdml"]["tiles"]``, as :func:`gdml.pp.tile` writes them;
    - ``uns["gdml"]["tissue"][library_id]``: ``labels``, the map of the tissue, uint8 (h, w), codes of
      ``gdml.slides.tissue.CLASSES``; ``source``: "detected", "mask", "all" or the path of the GeoJSON file.

    Raises
    ------
    FileNotFoundError
        If the image or the GeoJSON file does not exist.
    TypeError
        If text or another object is passed where a number is needed, or ``slide`` or ``tissue`` is of another kind.
    ValueError
        If an argument is not valid; the image cannot be read; the micrometres per pixel are unknown; the region lies
        outside the image; the mask has another aspect ratio; or no tissue is found, or too little in every tile.

    Warns
    -----
    UserWarning
        If ``um_per_px`` and the metadata of the image differ by more than 10 %, if ``region`` reaches beyond the image,
        or if a tile is too few pixels wide to show cells.

    See Also
    --------
    gdml.tl.predict : Takes the image itself, and makes the grid that its model needs.
    gdml.pp.embed : Read and encode the tiles.

    Examples
    --------
    >>> import gdml
    >>> path = gdml.datasets.synthetic().uns["spatial"]["S1"]["metadata"]["source_image_path"]
    >>> slide = gdml.pp.grid(path, tile_um=112, um_per_px=1.0)
    >>> slide.n_vars
    0
    """
    return lattice_spots(
        slide,
        tile_um,
        spacing_um=spacing_um,
        layout=layout,
        tissue=tissue,
        min_tissue=min_tissue,
        region=region,
        um_per_px=um_per_px,
        tile_px=tile_px,
        n_side=n_side,
        library_id=library_id,
        library_key=library_key,
        key=key_added,
    ).adata
