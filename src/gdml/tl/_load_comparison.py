"""Comparisons on disk: tables as Parquet, everything else as JSON."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gdml._errors import check_path
from gdml._marker import mark, marked
from gdml._saved import Saved, whole_folder

if TYPE_CHECKING:
    from ._comparison import Comparison

_KIND = "comparison"  # in the marker
_RECORD = "comparison.json"
_TABLES = ("scores", "runs")
_WARRANTS = "genes"  # a table that earlier versions did not write
_FORMAT, _VERSION = "gdml-comparison", 1
_SAVED = Saved("comparison", _RECORD, [f"{name}.parquet" for name in _TABLES], _FORMAT, _VERSION, "found.save(path)")
_PARTS = {"format_version": int, "protocol": str, "note": str, "optimistic": bool, "held_out": str, "variants": dict}


def save_comparison(found: "Comparison", path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write a comparison to a folder, completely or not at all; see :meth:`gdml.tl.Comparison.save`."""
    check_path("path", path)
    target = Path(path).expanduser().absolute()
    _SAVED.check_target(target, mine=(marked(target) or {}).get("gdml") == _KIND, overwrite=overwrite)
    variants = found.variants
    record = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "protocol": found.protocol,
        "note": found.note,
        "optimistic": bool(found.optimistic),
        "group_key": found.group_key,
        "held_out": found.held_out,
        "variants": {
            "index": [str(label) for label in variants.index],
            "index_name": variants.index.name,
            "columns": {str(name): [_pack(value) for value in variants[name]] for name in variants},
            "dtypes": {str(name): str(variants[name].dtype) for name in variants},
        },
    }
    with whole_folder(target) as made:
        for name in (*_TABLES, *([] if found.genes.empty else [_WARRANTS])):
            getattr(found, name).to_parquet(made / f"{name}.parquet")
        (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
        mark(made, _KIND, name=", ".join(found.models), protocol=found.protocol)


def load_comparison(path: str | os.PathLike[str]) -> "Comparison":
    """Read what :meth:`gdml.tl.Comparison.save` wrote. No code is run from the files.

    Parameters
    ----------
    path
        Folder of the comparison.

    Returns
    -------
    The comparison, equal to the one that was saved.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    TypeError
        If ``path`` is no path.
    ValueError
        If it is not a comparison, is damaged, or was written by a newer gdml.

    Examples
    --------
    >>> import gdml
    >>> found = gdml.tl.cross_validate(adata, ["ridge", "stnet"], group_key="patient")  # doctest: +SKIP
    >>> found.save("her2st-comparison")  # doctest: +SKIP
    >>> found = gdml.tl.load_comparison("her2st-comparison")  # doctest: +SKIP
    """
    from ._comparison import Comparison

    check_path("path", path)
    folder = Path(path).expanduser().absolute()
    record = _read_record(folder)
    try:
        there = [_WARRANTS] if (folder / f"{_WARRANTS}.parquet").is_file() else []
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in (*_TABLES, *there)}
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(
            f"`path` {str(folder)!r} holds a damaged table ({error}): save the comparison again."
        ) from error
    stored = record["variants"]
    columns = {
        name: pd.Series([_unpack(value) for value in values], stored["index"], stored["dtypes"][name])
        for name, values in stored["columns"].items()
    }
    variants = pd.DataFrame(columns) if columns else pd.DataFrame()
    variants.index.name = stored["index_name"]
    about = {name: record[name] for name in ("protocol", "note", "optimistic", "group_key", "held_out")}
    return Comparison(**tables, **about, variants=variants)


def _read_record(folder: Path) -> dict[str, Any]:
    """Read and check the JSON of a saved comparison."""
    record, where = _SAVED.read(folder), repr(str(folder))
    wrong = [name for name, kind in _PARTS.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise ValueError(f"{where} is not a whole comparison: {_RECORD} lacks {', '.join(wrong)}.")
    return record


def _pack(value: Any) -> Any:
    """Value of a setting for JSON, which knows no tuples and no numbers of numpy."""
    if isinstance(value, tuple):
        return {"tuple": [_pack(part) for part in value]}
    if isinstance(value, list):
        return [_pack(part) for part in value]
    return value.item() if hasattr(value, "item") else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(map(_unpack, value["tuple"]))
    return [_unpack(part) for part in value] if isinstance(value, list) else value
