"""Counts, positions and scale factors of a Space Ranger folder."""

import json
import warnings
import zlib
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scanpy as sc
from scipy import sparse

from gdml import _keys
from gdml._errors import some

GENES = "Gene Expression"  # the feature type of transcripts; others are Antibody Capture and the like
PIXELS = ["pxl_col_in_fullres", "pxl_row_in_fullres"]  # x, y
IN_TISSUE = "in_tissue"
COLUMNS = ["barcode", IN_TISSUE, _keys.ARRAY_ROW, _keys.ARRAY_COL, *reversed(PIXELS)]  # order of files without a header
_DATASETS = ("barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name", "features/feature_type")
LEFT_OUT = "left_out"
_ATTRIBUTES = ("software_version", "chemistry_description")


def read_counts(path: Path, *, gex_only: bool) -> tuple[ad.AnnData, dict[str, str]]:
    """Raw counts of a matrix of Space Ranger.

    Parameters
    ----------
    path
        HDF5 file, or folder with ``matrix.mtx.gz``, ``features.tsv.gz`` and ``barcodes.tsv.gz``.
    gex_only
        Leave out features that are not genes.

    Returns
    -------
    AnnData, counts as CSR of float32, genes named by symbol as in the file; and what is known beside: the library id,
    software version and chemistry of an HDF5 file, and under ``"left_out"`` which features were left out.

    Raises
    ------
    FileNotFoundError
        If a part of a matrix market folder is missing.
    ValueError
        If the file is truncated or has no genes, if a barcode is repeated, or if it holds several libraries.
    """
    told = _attributes(path) if path.is_file() else {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*names are not unique")  # they are made so later
            if path.is_file():
                adata = sc.read_10x_h5(path, gex_only=False)
            else:
                adata = sc.read_10x_mtx(path, make_unique=False, gex_only=False)
    except FileNotFoundError as err:
        raise FileNotFoundError(
            f"folder: {str(path)!r} needs matrix.mtx.gz, features.tsv.gz and barcodes.tsv.gz: {err}."
        ) from err
    except (OSError, EOFError, ValueError, KeyError, IndexError, zlib.error) as err:
        raise ValueError(
            f"folder: {str(path)!r} is truncated or no matrix of Space Ranger: {err}. Copy it again."
        ) from err
    if not adata.obs_names.is_unique:
        twice = adata.obs_names[adata.obs_names.duplicated()].unique()
        raise ValueError(f"folder: {len(twice)} barcode(s) occur more than once in {str(path)!r}: {some(twice)}.")
    if gex_only and "feature_types" in adata.var and not (genes := adata.var["feature_types"] == GENES).all():
        if not genes.any():
            raise ValueError(
                f"folder: {str(path)!r} has no features of type {GENES!r}, only "
                f"{some(adata.var['feature_types'].unique())}; read them with gex_only=False."
            )
        told[LEFT_OUT] = f"{int((~genes).sum())} features that are not genes"
        adata = adata[:, genes].copy()
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata, told


def _attributes(path: Path) -> dict[str, str]:
    """Library id, software version and chemistry; refuses a file that is no matrix of Space Ranger."""
    try:
        with h5py.File(path) as file:
            missing = [name for name in _DATASETS if f"matrix/{name}" not in file]
            attributes = {name: np.atleast_1d(value).tolist() for name, value in file.attrs.items()}
    except OSError as err:
        raise ValueError(f"folder: {str(path)!r} is truncated or not HDF5: {err}. Copy it again.") from err
    if missing:
        raise ValueError(f"folder: {str(path)!r} is no matrix of Space Ranger; it lacks matrix/{some(missing)}.")
    texts = {
        name: [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        for name, values in attributes.items()
    }
    libraries = texts.get("library_ids", [])
    if len(libraries) > 1:
        raise ValueError(
            f"folder: {str(path)!r} holds {len(libraries)} libraries (spaceranger aggr: {some(libraries)}); read the "
            "folder of each run and join them with anndata.concat(..., uns_merge='unique')."
        )
    told = {name: texts[name][0] for name in _ATTRIBUTES if texts.get(name)}
    return told | ({_keys.LIBRARY: libraries[0]} if libraries else {})


def read_positions(path: Path, barcodes: pd.Index) -> tuple[pd.DataFrame, int]:
    """Positions of the given barcodes.

    Parameters
    ----------
    path
        Table with or without a header, or parquet.
    barcodes
        Those of the counts.

    Returns
    -------
    Table of ``in_tissue``, ``array_row``, ``array_col`` (int64), ``pxl_col_in_fullres`` (x) and ``pxl_row_in_fullres``
    (y) (float64), by barcode, in the order of ``barcodes`` and without those that have no position; and the number of
    positions under tissue that have no counts.

    Raises
    ------
    ValueError
        If the file is truncated, lacks a column or has no barcode of the counts, or if one of these is repeated or has
        a position that is no number.
    """
    table = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    known = table["barcode"].isin(barcodes).to_numpy(bool)
    if not known.any():
        raise ValueError(
            f"Counts and positions have no barcode in common: the counts have {some(barcodes, 3)}, {str(path)!r} has "
            f"{some(table['barcode'].head(3))}. Are they of the same slide?"
        )
    # the table of all 2 um bins has 11 million rows: only those of the counts become Python text
    uncounted = int((table.loc[~known, IN_TISSUE] == 1).sum())
    table = table[known]
    names = pd.Index(table["barcode"].to_numpy(object))
    if not names.is_unique:
        twice = names[names.duplicated()].unique()
        raise ValueError(f"positions: {len(twice)} barcode(s) occur more than once in {str(path)!r}: {some(twice)}.")
    numbers = table[COLUMNS[1:]].apply(pd.to_numeric, errors="coerce").astype(np.float64).set_axis(names)
    numbers = numbers.reindex(barcodes[barcodes.isin(names)])
    bad = ~np.isfinite(numbers.to_numpy()).all(1)
    if bad.any():
        raise ValueError(
            f"positions: {int(bad.sum())} barcode(s) of {str(path)!r} have a position that is no finite number "
            f"({some(numbers.index[bad], 3)}); is the file complete? Copy it again."
        )
    whole = dict.fromkeys(COLUMNS[1:4], np.int64)
    if (numbers[list(whole)] % 1 != 0).any(axis=None) or not numbers[IN_TISSUE].isin([0, 1]).all():
        raise ValueError(
            f"positions: {str(path)!r} needs 0 or 1 in in_tissue and whole numbers in array_row and array_col; the order "
            f"of the columns is {', '.join(COLUMNS)}."
        )
    return numbers.astype(whole), uncounted


def _parquet(path: Path) -> pd.DataFrame:
    """Table of a parquet file; its text stays Arrow's, which needs a fifth of the memory of Python's."""
    try:
        found = pq.read_schema(path).names
        _refuse_missing(path, found)
        return pq.read_table(path, columns=COLUMNS).to_pandas(types_mapper=pd.ArrowDtype)
    except (pa.ArrowException, OSError) as err:
        raise ValueError(f"positions: {str(path)!r} is truncated or not parquet: {err}. Copy it again.") from err


def _csv(path: Path) -> pd.DataFrame:
    """Table of a CSV file. Space Ranger 1 writes no header; some copies of its files have one all the same."""
    try:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str)
        has_header = bool(pd.to_numeric(first.iloc[0, 1:], errors="coerce").isna().all())
        if not has_header and first.shape[1] != len(COLUMNS):
            raise ValueError(
                f"positions: {str(path)!r} has {first.shape[1]} columns and no header; {len(COLUMNS)} are needed: "
                f"{', '.join(COLUMNS)}."
            )
        table = pd.read_csv(path, header=0) if has_header else pd.read_csv(path, header=None, names=COLUMNS)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError, zlib.error) as err:
        raise ValueError(f"positions: {str(path)!r} is not a readable table: {err}. Copy it again.") from err
    _refuse_missing(path, list(table.columns))
    return table.astype({"barcode": str})


def _refuse_missing(path: Path, found: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise ValueError(f"positions: {str(path)!r} lacks the column(s) {some(missing)}; found {some(found, 8)}.")


def read_scale_factors(path: Path) -> dict[str, Any]:
    """Scale factors of the JSON: all that are numbers, as float; other entries unchanged, empty ones left out.

    Raises
    ------
    ValueError
        If the file is no JSON object, or a number is not positive.
    """
    try:
        entries = json.loads(path.read_text())
    except ValueError as err:  # of JSON and of text
        raise ValueError(f"scale factors: {str(path)!r} is not JSON: {err}. Copy it again.") from err
    if not isinstance(entries, dict):
        raise ValueError(f"scale factors: {str(path)!r} holds a {type(entries).__name__}, not names and numbers.")
    factors: dict[str, Any] = {}
    for name, value in entries.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"scale factors: {name} in {str(path)!r} is {value}, but must be positive.")
            factors[name] = float(value)
        elif value is not None:
            factors[name] = value
    return factors
