"""Legacy Spatial Transcriptomics folders: a counts table, a spot table and an image."""

import gzip
import zlib
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scanpy import logging as logg
from scipy import sparse

from gdml import _keys
from gdml._errors import some

from .visium_layout import pitch_px, visium_entry

SPOT_DIAMETER_UM = 100.0
_POSITION_COLUMNS = ["x", "y", "pixel_x", "pixel_y"]
_SPOT_NAME = r"\d+x\d+"


def read_st(
    counts: str | PathLike[str],
    spots: str | PathLike[str],
    image: str | PathLike[str] | None = None,
    *,
    library_id: str | None = None,
    spot_pitch_um: float = 200.0,
) -> ad.AnnData:
    """Read one section of legacy Spatial Transcriptomics.

    Spots are aligned by name. Those in only one of the two tables, and those that the spot table marks as not
    selected (``selected`` is 0), are left out and counted in the log.

    Parameters
    ----------
    counts
        Raw counts, spots x genes, tab-separated (comma-separated where the name says ``.csv``), gzipped or not.
        Row names are grid positions ``{x}x{y}``.
    spots
        Spot table, tab-separated, with the columns ``x``, ``y`` (grid), ``pixel_x``, ``pixel_y`` (spot centres,
        full-resolution px) and, if there is one, ``selected``.
    image
        Full-resolution H&E image that ``pixel_x`` and ``pixel_y`` refer to. It is read for thumbnails only.
    library_id
        Name of the section; by default the name of the counts file up to its first point.
    spot_pitch_um
        Distance between the centres of neighbouring spots, micrometres: 200 for the 1,007-spot arrays.

    Returns
    -------
    AnnData of n spots x n genes, rows in the order of the counts table:

    - ``X``: raw counts, CSR, float32;
    - ``obs_names``: ``{x}x{y}``; ``obs``: ``array_row`` (y) and ``array_col`` (x), int64, and ``library_id``,
      categorical;
    - ``obsm["spatial"]``: spot centres (x, y), full-resolution px, float64;
    - ``uns["spatial"][library_id]``: ``images`` (``hires``, ``lowres``: uint8, height x width x 3, at most 2,000
      and 600 px long), ``scalefactors`` (``spot_diameter_fullres`` is 100 um on the scale that the pitch implies),
      ``metadata`` (``source_image_path``, absolute, and ``spot_pitch_um``).

    Raises
    ------
    FileNotFoundError
        One of the files does not exist.
    ValueError
        A table is truncated or lacks what is named above; names are duplicated; counts are negative, not whole
        numbers or missing; positions are not finite; the tables have no spot in common; the image can't be read.
    """
    counts, spots = Path(counts), Path(spots)
    for argument, path in (("counts", counts), ("spots", spots)):
        if not path.is_file():
            raise FileNotFoundError(f"{argument}: there is no file {str(path)!r}.")
    if not (np.isfinite(spot_pitch_um) and spot_pitch_um > 0):
        raise ValueError(f"spot_pitch_um is {spot_pitch_um}; give the micrometres between spot centres, such as 200.")
    positions = _read_positions(spots)
    names, genes, values = _read_counts(counts)
    library = counts.name.split(".")[0] if library_id is None else library_id

    common = pd.Index(names).isin(positions.index)
    if not common.any():
        raise ValueError(
            f"counts and spots have no spot in common: {str(counts)!r} has {some(names, 3)}, "
            f"{str(spots)!r} has {some(positions.index, 3)}. Are they of the same section?"
        )
    positions = positions.loc[[n for n, c in zip(names, common, strict=True) if c]]
    xy = positions[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    grid = positions[["x", "y"]].to_numpy(np.int64)
    pitch = pitch_px(xy, grid)
    if not (np.isfinite(pitch) and pitch > 0):
        raise ValueError(f"spots: {len(xy)} spot(s) of {str(spots)!r} don't span a grid; the scale can't be derived.")
    entry = visium_entry(
        None if image is None else Path(image), pitch, spot_pitch_um=spot_pitch_um, spot_diameter_um=SPOT_DIAMETER_UM
    )

    adata = ad.AnnData(
        X=sparse.csr_matrix(values[common]),
        obs=pd.DataFrame(
            {
                _keys.ARRAY_ROW: grid[:, 1],
                _keys.ARRAY_COL: grid[:, 0],
                _keys.LIBRARY: pd.Categorical([library] * len(xy)),
            },
            index=pd.Index(positions.index, name=None),
        ),
        var=pd.DataFrame(index=pd.Index(genes)),
        obsm={_keys.SPATIAL: xy},
        uns={_keys.SPATIAL: {library: entry}},
    )
    logg.info(
        f"{library}: {adata.n_obs} spots x {adata.n_vars} genes; left out {int((~common).sum())} spots of the counts "
        f"without a selected position and {positions.attrs['n_selected'] - adata.n_obs} positions without counts "
        f"({positions.attrs['n_unselected']} positions were not selected)"
    )
    return adata


def _read_positions(path: Path) -> pd.DataFrame:
    """Read the selected rows of a spot table, named ``{x}x{y}``; counts of rows in ``attrs``."""
    try:
        table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, EOFError, OSError) as err:
        raise ValueError(f"spots: {str(path)!r} is no readable table: {err}") from err
    absent = [c for c in _POSITION_COLUMNS if c not in table]
    if absent:
        raise ValueError(
            f"spots: {str(path)!r} lacks the column(s) {some(absent)}; found {some(table.columns)}. "
            "A spot table has x, y (grid), pixel_x, pixel_y (full-resolution px)."
        )
    numbers = table[_POSITION_COLUMNS].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(numbers).all(1) | (numbers[:, :2] != np.floor(numbers[:, :2])).any(1)
    if bad.any():
        raise ValueError(
            f"spots: {int(bad.sum())} row(s) of {str(path)!r} have positions that are not finite or not on the grid, "
            f"the first in line {int(np.flatnonzero(bad)[0]) + 2}. Mend or remove them."
        )
    table[_POSITION_COLUMNS] = numbers
    table.index = pd.Index([f"{int(x)}x{int(y)}" for x, y in numbers[:, :2]])
    _refuse_duplicates(list(table.index), "spots", "spot", path)
    selected = table["selected"].to_numpy() != 0 if "selected" in table else np.ones(len(table), bool)
    out = table.loc[selected, _POSITION_COLUMNS]
    out.attrs = {"n_selected": int(selected.sum()), "n_unselected": int((~selected).sum())}
    return out


def _read_counts(path: Path) -> tuple[list[str], list[str], NDArray[np.float32]]:
    """Spot names, gene names and counts (spots x genes) of a table."""
    separator = "," if ".csv" in path.suffixes else "\t"
    names: list[str] = []
    rows: list[NDArray[np.float32]] = []
    # by hand: pandas renames duplicated columns silently and is slower on 16,000 of them
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            header = next(lines, "").rstrip("\r\n").split(separator)
            for number, line in enumerate(lines, start=2):
                name, *values = line.rstrip("\r\n").split(separator)
                if len(values) != len(header) - 1 and len(values) != len(header):
                    raise ValueError(
                        f"counts: line {number} of {str(path)!r} has {len(values)} values, its header "
                        f"{len(header)} fields; the file is truncated or not a table of spots x genes."
                    )
                try:
                    rows.append(np.array(values, dtype=np.float32))
                except ValueError as err:
                    raise ValueError(
                        f"counts: line {number} of {str(path)!r} has a value that is no number: {err}"
                    ) from err
                names.append(name)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as err:
        raise ValueError(f"counts: {str(path)!r} is truncated or corrupt: {err}. Fetch it again.") from err
    if not rows:
        raise ValueError(f"counts: {str(path)!r} has no spots.")
    genes = header[len(header) - len(rows[0]) :]  # R leaves the corner field out
    _check_counts(names, genes, np.stack(rows), path)
    return names, genes, np.stack(rows)


def _check_counts(names: list[str], genes: list[str], values: NDArray[np.float32], path: Path) -> None:
    if not pd.Series(names).str.fullmatch(_SPOT_NAME).all():
        turned = pd.Series(genes).str.fullmatch(_SPOT_NAME).all()
        raise ValueError(
            f"counts: rows of {str(path)!r} are named {some(names, 3)}, not by grid position such as '10x14'. "
            + ("Its columns are: transpose it to spots x genes." if turned else "Rows must be spots.")
        )
    _refuse_duplicates(names, "counts", "spot", path)
    _refuse_duplicates(genes, "counts", "gene", path)
    bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        raise ValueError(
            f"counts: {int(bad.sum())} value(s) of {str(path)!r} are negative, missing or not whole, the first "
            f"{values[row, column]} at spot {names[row]!r}, gene {genes[column]!r}. Give the raw counts."
        )


def _refuse_duplicates(names: list[str], argument: str, what: str, path: Path) -> None:
    index = pd.Index(names)
    if not index.is_unique:
        twice = index[index.duplicated()].unique()
        raise ValueError(
            f"{argument}: {len(twice)} {what} name(s) occur more than once in {str(path)!r}: {some(twice)}. "
            "Merge or rename them in the file."
        )
