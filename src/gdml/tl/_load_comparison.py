"""Comparisons on disk: tables as Parquet, everything else as JSON."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gdml._errors import check_path
from gdml._marker import mark, marked

if TYPE_CHECKING:
    from ._comparison import Comparison

_KIND = "comparison"  # in the marker
_RECORD = "comparison.json"
_TABLES = ("scores", "runs")
_FORMAT, _VERSION = "gdml-comparison", 1
_PARTS = {"protocol": str, "note": str, "optimistic": bool, "held_out": str, "variants": dict}


def save_comparison(found: "Comparison", path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Write a comparison to a folder, completely or not at all; see :meth:`gdml.tl.Comparison.save`."""
    check_path("path", path)
    target = Path(path).expanduser().absolute()
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
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
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in _TABLES:
            getattr(found, name).to_parquet(made / f"{name}.parquet")
        (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
        mark(made, _KIND, name=", ".join(found.models), protocol=found.protocol)
        made.chmod(0o755)
        old = made.with_name(f"{made.name}-old")
        if target.exists():
            os.replace(target, old)
        os.replace(made, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES}
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


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuse a folder that a comparison must not be saved in."""
    if not (target.exists() or target.is_symlink()):
        return
    if (marked(target) or {}).get("gdml") != _KIND:
        raise FileExistsError(f"`path` {str(target)!r} exists and is no saved comparison; choose another folder.")
    if not overwrite:
        raise FileExistsError(
            f"`path` {str(target)!r} holds a saved comparison; choose another folder or pass overwrite=True."
        )


def _read_record(folder: Path) -> dict[str, Any]:
    """Read and check the JSON of a saved comparison."""
    where = repr(str(folder))
    if not folder.exists():
        raise FileNotFoundError(f"`path` {where} does not exist; found.save(path) writes one.")
    files = (_RECORD, *(f"{name}.parquet" for name in _TABLES))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`path` {where} is not a whole comparison: {' and '.join(missing)} missing.")
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {_RECORD} is truncated or not JSON ({error}).") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{where} is not a comparison: {_RECORD} does not say so.")
    version = record.get("format_version")
    if not isinstance(version, int) or version > _VERSION:
        raise ValueError(
            f"{where} was written by a newer gdml (format {version}, this one reads {_VERSION}): "
            "pip install --upgrade gdml."
        )
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
