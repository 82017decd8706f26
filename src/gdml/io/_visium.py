"""Space Ranger folders: Visium, Visium with CytAssist, and Visium HD."""

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count, did_you_mean
from gdml._progress import tell
from gdml.slides import open_slide

from ._visium_bins import aggregate_bins
from ._visium_folder import Bins, Layout, find_layout
from ._visium_image import check_holds, check_image, find_image, first_downscaled
from ._visium_tables import IN_TISSUE, LEFT_OUT, PIXELS, read_counts, read_positions, read_scale_factors

_MATRICES = ("filtered", "raw")
_BIN_SIZE = "bin_size_um"
_DIAMETER = "spot_diameter_fullres"


def read_visium(
    folder: str | PathLike[str],
    image: str | PathLike[str] | None = None,
    *,
    bin_um: float | None = None,
    matrix: Literal["filtered", "raw"] = "filtered",
    in_tissue: bool = True,
    gex_only: bool = True,
    library_id: str | None = None,
) -> ad.AnnData:
    """Read what Space Ranger wrote for one slide: Visium, Visium with CytAssist, or Visium HD.

    Read are the outputs of Space Ranger 1 (``tissue_positions_list.csv``, without a header), 2 to 4
    (``tissue_positions.csv``) and, for Visium HD, 3 and 4 (``binned_outputs`` with ``tissue_positions.parquet``); the
    matrix is the HDF5 file or, where there is none, the folder with ``matrix.mtx.gz``. Cells segmented by Space
    Ranger 4 (``segmented_outputs``) are not read. Spots and counts are aligned by barcode.

    The full-resolution image is not part of the outputs. Unless ``image`` names it, it is searched in the folder and
    the one around it: an image is taken if it alone has the size of which the downscaled image of the run was made,
    and shows the same. Where several do, they are named and none is taken.

    Parameters
    ----------
    folder
        Space Ranger's ``outs``, or the folder around it; for Visium HD also ``binned_outputs`` or one of the folders in
        it.
    image
        Full-resolution image that Space Ranger was given; only its header and a thumbnail are read.
    bin_um
        Side of the bins of a Visium HD slide, um: a size in the folder (such as 2, 8 or 16), or a multiple of one, such
        as 24, for which the counts of the largest bins that divide it are summed. None for slides with spots.
    matrix
        Space Ranger's filtered matrix, or the raw one of all barcodes.
    in_tissue
        Leave out spots that do not lie under tissue.
    gex_only
        Leave out features other than genes, such as antibodies.
    library_id
        Name of the slide; by default that in the matrix, else the name of the folder.

    Returns
    -------
    AnnData of spots (or bins) x genes, rows in the order of the matrix (larger bins: of the array):

    - ``X``: raw counts, CSR, float32;
    - ``obs_names``: barcodes; larger bins are named as Space Ranger names bins, ``s_024um_00012_00034-1``;
    - ``obs``: ``in_tissue``, ``array_row``, ``array_col``, int64, ``library_id``, categorical, and for larger bins
      ``n_bins``, int64, how many were summed;
    - ``var``: ``gene_ids``, ``feature_types`` and, from HDF5, ``genome``; symbols that occur more than once get a suffix
      (``-1``, ``-2``), as in scanpy;
    - ``obsm["spatial"]``: centres (x, y), full-resolution px, float64;
    - ``uns["spatial"][library_id]``: ``images`` (``hires``, ``lowres``, where the run has them: uint8, height x width x
      3), ``scalefactors`` (all of Space Ranger's; for bins with ``bin_size_um`` and ``microns_per_pixel``),
      ``metadata`` (``source_image_path``, absolute, where the image is known; ``software_version`` and
      ``chemistry_description`` from HDF5).

    Raises
    ------
    FileNotFoundError
        The folder is not Space Ranger's, or the matrix, the positions, the scale factors or ``image`` are missing.
    ValueError
        A file is truncated or broken; barcodes are repeated, or those of counts and positions have none in common; a
        position is no number; ``bin_um`` is missing, does not fit, or is given for spots; ``image`` is of another
        size or shows another section.
    TypeError
        ``image`` is no path, or ``bin_um`` no number.

    Notes
    -----
    Formats: Space Ranger's pages on `spatial outputs
    <https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/spatial-outputs>`_ and on
    `segmented outputs
    <https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/outputs/segmented-outputs>`_.

    The whole matrix is in memory, which for bins of 2 um takes gigabytes. A larger size that the folder has is read from
    there, which is cheaper than summing small bins.

    Examples
    --------
    >>> adata = gdml.io.read_visium("sample/outs", "sample.tif")  # doctest: +SKIP
    >>> hd = gdml.io.read_visium("sample_hd/outs", "sample_hd.btf", bin_um=16)  # doctest: +SKIP
    """
    if matrix not in _MATRICES:
        raise ValueError(f"`matrix` is {matrix!r}. {did_you_mean(str(matrix), _MATRICES)}")
    layout = find_layout(folder, bin_um, matrix)
    factors = _scale_factors(layout)
    images = _images(layout)
    downscaled = first_downscaled(images, factors)
    if image is None:  # before the counts, which may take a minute
        path, note = find_image(_places(Path(folder).expanduser().resolve(), layout.run), downscaled)
        note += "" if path else "; without it, pass it to gdml.pp.tile(adata, image=...)"
    else:
        path = check_image(image, downscaled)
        note = f"full-resolution image {str(path)!r}"

    adata, told = read_counts(layout.matrix, gex_only=gex_only)
    adata, left_out = _place(adata, layout.positions, in_tissue)
    if path is not None and downscaled is None:
        check_holds(path, adata.obsm[_keys.SPATIAL])
    if other := told.pop(LEFT_OUT, None):
        left_out.append(other)
    if layout.bins is not None and layout.bins.factor > 1:
        adata = aggregate_bins(adata, layout.bins.factor, layout.bins.um)
    repeated = int(adata.var_names.duplicated().sum())
    if repeated:
        adata.var_names_make_unique()
        note = f"{count(repeated, 'repeated gene symbol')} got a suffix; {note}"

    named = told.pop(_keys.LIBRARY, layout.name)
    library = named if library_id is None else library_id
    adata.obs[_keys.LIBRARY] = pd.Categorical([library] * adata.n_obs)
    metadata = told | ({_keys.IMAGE_PATH: str(path)} if path else {})
    adata.uns[_keys.SPATIAL] = {library: {"images": images, "scalefactors": factors, "metadata": metadata}}
    tell(_line(adata, library, layout.bins, matrix, left_out, note))
    return adata


def _place(adata: ad.AnnData, path: Path, in_tissue: bool) -> tuple[ad.AnnData, list[str]]:
    """Give the spots their positions; leave out those that have none, and those off the tissue."""
    positions, uncounted = read_positions(path, adata.obs_names)
    left_out = []
    if adata.n_obs > len(positions):
        left_out.append(count(adata.n_obs - len(positions), "barcode") + " without a position")
    if uncounted:
        left_out.append(count(uncounted, "position") + " under tissue without counts")
    if in_tissue:
        off = int((positions[IN_TISSUE] == 0).sum())
        positions = positions[positions[IN_TISSUE] == 1]
        if off:
            left_out.append(count(off, "spot") + " off the tissue")
        if positions.empty:
            raise ValueError(
                f"folder: none of the {adata.n_obs} spots lies under tissue ({str(path)!r}); read all of them with "
                "in_tissue=False."
            )
    if adata.n_obs > len(positions):
        adata = adata[positions.index].copy()
    adata.obs = positions.drop(columns=PIXELS)
    adata.obsm[_keys.SPATIAL] = positions[PIXELS].to_numpy(np.float64)
    return adata, left_out


def _scale_factors(layout: Layout) -> dict[str, Any]:
    """Scale factors of the run; those of bins are made to be of the bins that are read."""
    factors = read_scale_factors(layout.scale_factors)
    if layout.bins is None:
        return factors
    stated = factors.get(_BIN_SIZE, layout.bins.stored_um)
    if stated != layout.bins.stored_um:
        raise ValueError(
            f"scale factors: {str(layout.scale_factors)!r} has bins of {stated} um in a folder of "
            f"{layout.bins.stored_um} um bins. Copy the folder again."
        )
    factors[_BIN_SIZE] = float(layout.bins.um)
    if _DIAMETER in factors:
        factors[_DIAMETER] *= layout.bins.factor
    return factors


def _images(layout: Layout) -> dict[str, NDArray[np.uint8]]:
    """Downscaled images of the run that exist."""
    images = {}
    for name in ("hires", "lowres"):
        paths = [folder / f"tissue_{name}_image.png" for folder in layout.spatial]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            slide = open_slide(path)
            images[name] = slide.read_region(0, 0, *slide.size, out=slide.size)
            slide.close()
    return images


def _places(folder: Path, run: Path) -> list[Path]:
    """Folders in which the full-resolution image is searched, without repeats."""
    return list(dict.fromkeys([run, run / "microscope_image", folder, run.parent, folder.parent]))


def _line(adata: ad.AnnData, library: str, bins: Bins | None, matrix: str, left_out: list[str], note: str) -> str:
    what = "spots" if bins is None else f"bins of {bins.um} um"
    summed = "" if bins is None or bins.factor == 1 else f", summed from bins of {bins.stored_um} um"
    without = f"; left out: {', '.join(left_out)}" if left_out else ""
    return f"{library}: {adata.n_obs} {what}{summed} x {adata.n_vars} genes ({matrix} matrix){without}; {note}."
