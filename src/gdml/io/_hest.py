"""Samples of HEST-1k: counts in ``st/{id}.h5ad``, the slide in ``wsis/{id}.tif``, metadata beside them."""

import csv
import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.spots.images import HIRES, HIRES_SCALE
from gdml.spots.placement import IN_TISSUE

from ._values import positive

_TABLE = "HEST_v*.csv"
_DOWNSCALED = "downscaled_fullres"  # HEST's name of the thumbnail
_COLUMNS = ("patient", "organ", "species")


def read_hest(folder: str | PathLike[str], sample_id: str, *, image: str | PathLike[str] | None = None) -> ad.AnnData:
    """Read a sample of HEST-1k :cite:p:`Jaume2024`.

    Parameters
    ----------
    folder
        Folder of the downloaded data set, with its subfolders ``st``, ``wsis`` and ``metadata``.
    sample_id
        Name of the sample, such as ``"TENX95"``.
    image
        Full-resolution image; by default ``wsis/{sample_id}.tif``, if it was downloaded. It is not opened.

    Returns
    -------
    AnnData of n spots x n genes:

    - ``X``, ``obs`` and ``var`` as HEST-1k has them, raw counts in ``X``. Spots beside the tissue (``in_tissue`` is 0)
      are left out and counted in the log; repeated gene names are made unique;
    - ``obs``: also ``library_id`` (the sample) and, where the metadata name them, ``patient``, ``organ`` and
      ``species``, categorical;
    - ``obsm["spatial"]``: spot centres (x, y), full-resolution px, float64;
    - ``uns["spatial"][sample_id]``: ``images`` (``hires``, the downscaled image that HEST-1k calls
      ``downscaled_fullres``), ``scalefactors`` (``tissue_hires_scalef``, ``spot_diameter_fullres`` and
      ``microns_per_pixel``, the estimate of HEST-1k) and ``metadata`` (``source_image_path``, absolute, and
      ``spot_pitch_um``, the larger of pitch and diameter, which HEST-1k has swapped for some samples).

    Metadata are read from ``metadata/{sample_id}.json``, else from the newest table ``HEST_v*.csv`` in ``folder``.
    Without either, the scale is derived from the spots by :func:`gdml.pp.tile`.

    Raises
    ------
    FileNotFoundError
        If the folder, the sample or ``image`` does not exist.
    ValueError
        If a file is truncated or is not a sample of HEST-1k.

    See Also
    --------
    gdml.pp.tile : Compares ``microns_per_pixel`` with the pitch of the spots.

    Notes
    -----
    HEST-1k contains a slide more than once under different names. :func:`gdml.tl.cross_validate` recognises equal
    counts and equal images, and keeps them on one side of a fold.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.io.read_hest("hest_data", "TENX95")  # doctest: +SKIP
    """
    folder = Path(folder).expanduser()
    counts = _find(folder, sample_id)
    slide = folder / "wsis" / f"{sample_id}.tif" if image is None else Path(image).expanduser()
    if image is not None and not slide.is_file():
        raise FileNotFoundError(f"image: there is no file {str(slide)!r}.")
    about = _metadata(folder, sample_id)
    adata = _read_counts(counts)
    adata.var_names_make_unique()

    adata.obs[_keys.LIBRARY] = pd.Categorical([sample_id] * adata.n_obs)
    for column in _COLUMNS:
        if about.get(column):
            adata.obs[column] = pd.Categorical([str(about[column])] * adata.n_obs)
    entry = _entry(adata, about)
    if slide.is_file():
        entry["metadata"][_keys.IMAGE_PATH] = str(slide.resolve())
    adata.uns = {_keys.SPATIAL: {sample_id: entry}}
    scale = entry["scalefactors"].get("microns_per_pixel")
    logg.info(
        f"{sample_id}: {adata.n_obs} spots x {adata.n_vars} genes; "
        f"{'um per px unknown' if scale is None else f'{scale:.4g} um per px'}; "
        f"{'image ' + slide.name if slide.is_file() else 'no image in wsis/'}"
    )
    return adata


def _find(folder: Path, sample_id: str) -> Path:
    if not isinstance(sample_id, str) or not re.fullmatch(r"\w[\w.-]*", sample_id):
        raise ValueError(f"`sample_id` must be the name of a sample such as 'TENX95', found {sample_id!r}.")
    if not (folder / "st").is_dir():
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has no subfolder 'st'; give the folder that HEST-1k was downloaded to."
        )
    path = folder / "st" / f"{sample_id}.h5ad"
    if not path.is_file():
        known = [file.stem for file in (folder / "st").glob("*.h5ad")]
        hint = did_you_mean(sample_id, known) if known else "The folder has no samples."
        raise FileNotFoundError(f"sample_id: there is no file {str(path)!r}. {hint}")
    return path


def _metadata(folder: Path, sample_id: str) -> dict[str, Any]:
    """Metadata of a sample, without empty fields; empty where there are none."""
    path = folder / "metadata" / f"{sample_id}.json"
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is not readable JSON ({error}); download it again.") from error
        if not isinstance(found, dict):
            raise ValueError(f"{str(path)!r} holds no metadata of a sample; download it again.")
    else:
        found = _table_row(folder, sample_id)
    return {name: value for name, value in found.items() if not _is_empty(value)}


def _table_row(folder: Path, sample_id: str) -> dict[str, str]:
    """Row of a sample in the newest table of HEST-1k in ``folder``; empty where there is none."""
    version = lambda path: [int(number) for number in re.findall(r"\d+", path.stem)]
    newest = max(folder.glob(_TABLE), key=version, default=None)
    if newest is None:
        return {}
    with newest.open(newline="", encoding="utf-8", errors="replace") as file:
        return next((row for row in csv.DictReader(file) if row.get("id") == sample_id), {})


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _read_counts(path: Path) -> ad.AnnData:
    """Spots in tissue, with their centres as float64."""
    try:
        found = ad.read_h5ad(path)
    except (OSError, TypeError) as error:  # no HDF5, or one of other content
        raise ValueError(f"{str(path)!r} is truncated or not an h5ad file ({error}); download it again.") from error
    xy = np.asarray(found.obsm.get(_keys.SPATIAL, np.empty(0)))
    if xy.shape != (found.n_obs, 2) or found.X is None:
        raise ValueError(
            f"{str(path)!r} is no sample of HEST-1k: it has no counts in X, or no spot centres (n, 2) in "
            f"obsm['spatial'] (found shape {xy.shape})."
        )
    found.obsm[_keys.SPATIAL] = xy.astype(np.float64)
    if IN_TISSUE in found.obs:
        inside = found.obs[IN_TISSUE].to_numpy().astype(bool)
        if not inside.all():
            logg.info(f"{path.stem}: left out {int((~inside).sum())} spots beside the tissue")
            found = found[inside].copy()
    return found


def _entry(adata: ad.AnnData, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Entry of the sample in ``uns["spatial"]``, from that of HEST-1k (``"ST"``) and the metadata."""
    theirs: Mapping[str, Any] = next(iter(adata.uns.get(_keys.SPATIAL, {}).values()), {})
    images, factors = theirs.get("images", {}), theirs.get("scalefactors", {})
    entry: dict[str, dict[str, Any]] = {"images": {}, "scalefactors": {}, "metadata": {}}
    scale = positive(factors.get(f"tissue_{_DOWNSCALED}_scalef"))
    if _DOWNSCALED in images and scale is not None:
        entry["images"][HIRES] = np.asarray(images[_DOWNSCALED])
        entry["scalefactors"][HIRES_SCALE] = scale
    listed = positive(about.get("pixel_size_um_estimated"))
    if listed is not None:
        entry["scalefactors"]["microns_per_pixel"] = listed
    pitch, diameter = positive(about.get("inter_spot_dist")), positive(about.get("spot_diameter"))
    if pitch is not None and diameter is not None:
        # swapped for the samples of GSE144240: spots 150 um wide and 110 um apart would overlap
        pitch, diameter = max(pitch, diameter), min(pitch, diameter)
    diameter_px = diameter / listed if diameter and listed else positive(factors.get("spot_diameter_fullres"))
    if diameter_px is not None:
        entry["scalefactors"]["spot_diameter_fullres"] = diameter_px
    if pitch is not None:
        entry["metadata"][_keys.SPOT_PITCH] = pitch
    return entry
