"""The slides of a corpus: read from a table, a list or a folder, and refused as a whole where a row is wrong."""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gdml._errors import count, did_you_mean, some

from ._cells import cells
from ._names import name_problems

COLUMNS = ("path", "name", "group", "um_per_px")
#: Files of a folder that are taken for slides.
SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm"),
    *(".jpg", ".jpeg", ".png"),
)
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_MOST = 20  # problems that a message lists


@dataclass(frozen=True)
class Item:
    """A slide of a corpus.

    Parameters
    ----------
    name
        Its name, which is the name of its files in the folder of the results.
    path
        Its image, absolute.
    group
        Its patient or the like; None where the manifest has no such column.
    um_per_px
        Micrometres per full-resolution px; None where the image says so itself.
    """

    name: str
    path: Path
    group: str | None = None
    um_per_px: float | None = None


def read_manifest(slides: Any) -> list[Item]:
    """Read and check the slides of a corpus.

    Parameters
    ----------
    slides
        - a CSV file (or TSV) with the column ``path`` and, optionally, ``name`` (by default the file's name without its
          last suffix), ``group`` and ``um_per_px`` (an empty cell: the image says so itself). Relative paths are
          relative to the file;
        - a DataFrame with these columns;
        - a list of paths, or one path;
        - a folder, for the slides in it, or a pattern such as ``"slides/*.svs"``.

    Returns
    -------
    The slides, in the order of the manifest; those of folders and patterns by name.

    Raises
    ------
    FileNotFoundError
        If the manifest or images do not exist.
    ValueError
        If a column is unknown or missing, cells are empty or of several types, names are doubled or no file names, or a
        file is named twice. All problems are in one message.
    TypeError
        If ``slides`` is none of the above.
    """
    table, folder = _table(slides)
    unknown = [column for column in table.columns if column not in COLUMNS]
    if unknown or "path" not in table.columns:
        hints = [f"the column {column!r} is unknown ({did_you_mean(str(column), COLUMNS)})" for column in unknown]
        hints += [] if "path" in table.columns else ["the column 'path' is missing"]
        raise ValueError(f"`slides`: {'; '.join(hints)}. Rename or drop columns; a manifest has {', '.join(COLUMNS)}.")
    doubled = table.columns[table.columns.duplicated()]
    if len(doubled):
        raise ValueError(f"`slides` has the column {doubled[0]!r} twice; drop one.")
    if not len(table):
        raise ValueError("`slides` names no slide.")
    problems: list[str] = []
    values = {column: cells(table[column], column, problems) for column in table.columns}
    items = _items(values, folder, problems)
    missing = [f"{item.name!r}: {str(item.path)!r} does not exist" for item in items if not item.path.exists()]
    _check_doubles(items, problems)
    if problems or missing:
        kind = ValueError if problems else FileNotFoundError
        listed = "".join(f"\n- {problem}" for problem in [*problems, *missing][:_MOST])
        more = len(problems) + len(missing) - _MOST
        raise kind(
            f"`slides` has {count(len(problems) + len(missing), 'problem')}, nothing was started:{listed}"
            + (f"\n- and {more} more" if more > 0 else "")
        )
    return items


def take_shard(items: list[Item], shard: str | None) -> list[Item]:
    """Take one of several parts of a corpus.

    Parameters
    ----------
    items
        All slides, in any order.
    shard
        ``"3/16"`` for the third of sixteen parts; None for all slides.

    Returns
    -------
    Every n-th slide in the order of the names, so that parts differ in size by one at most and do not depend on the
    order of the manifest.

    Raises
    ------
    ValueError
        If ``shard`` is no such text, or i is not within 1..n.
    """
    if shard is None:
        return items
    i, slash, n = str(shard).partition("/")
    if not (slash and i.strip().isdecimal() and n.strip().isdecimal() and 1 <= int(i) <= int(n)):
        raise ValueError(f"`shard` is {shard!r}; give the part and the number of parts, from '1/16' to '16/16'.")
    return sorted(items, key=lambda item: item.name)[int(i) - 1 :: int(n)]


def _table(slides: Any) -> tuple[pd.DataFrame, Path]:
    """Rows of the manifest, and the folder that its relative paths start at."""
    here = Path.cwd()
    if isinstance(slides, pd.DataFrame):
        return slides, here
    if isinstance(slides, str | os.PathLike):
        path = Path(slides).expanduser()
        if path.suffix.lower() in _SEPARATORS and not path.is_dir():
            return _read_csv(path), path.absolute().parent
        return pd.DataFrame({"path": _found(path)}, dtype=object), here
    if isinstance(slides, Iterable):
        paths = list(slides)
        if all(isinstance(path, str | os.PathLike) for path in paths):
            return pd.DataFrame({"path": paths}, dtype=object), here
    raise TypeError(
        f"`slides` must be a CSV file, a DataFrame, a list of paths, a folder or a pattern, found {type(slides).__name__}."
    )


def _found(path: Path) -> list[Path]:
    """Slides of a folder or a pattern; the path itself where it is a file."""
    if path.is_dir() and path.suffix.lower() != ".zarr":
        paths = sorted(one for one in path.iterdir() if one.suffix.lower() in SUFFIXES and not one.name.startswith("."))
        if not paths:
            raise FileNotFoundError(
                f"`slides`: the folder {str(path)!r} has no files with the suffixes {some(SUFFIXES, 20)}; pass a "
                "pattern, such as 'slides/*.zarr', or a list."
            )
        return paths
    if path.exists():
        return [path]
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"`slides` {str(path)!r} does not exist.")
    matched = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not matched:
        raise FileNotFoundError(f"`slides`: no file matches {str(path)!r}.")
    return matched


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise FileNotFoundError(f"`slides` {str(path)!r} does not exist.")
    try:
        table = pd.read_csv(
            path, sep=_SEPARATORS[path.suffix.lower()], dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`slides`: {str(path)!r} is no table of text in UTF-8 ({' '.join(str(error).split())}); write it again with "
            "DataFrame.to_csv(path, index=False)."
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first of too many cells for an index
        raise ValueError(f"`slides`: rows of {str(path)!r} have more cells than the header has columns.")
    return table.rename(columns=str.strip).map(str.strip)


def _items(values: dict[str, list[Any]], folder: Path, problems: list[str]) -> list[Item]:
    """Rows as slides; those without a path are left out, their problem is known."""
    items = []
    for i, path in enumerate(values["path"]):
        if path is None or not isinstance(path, str | os.PathLike):
            continue
        whole = Path(os.path.abspath(folder / Path(path).expanduser()))
        name, group = values.get("name", [whole.stem] * (i + 1))[i], values.get("group", [None] * (i + 1))[i]
        if name is None:
            continue
        problems.extend(f"row {i + 1}: {problem}" for problem in name_problems(str(name)))
        scale = values.get("um_per_px", [None] * (i + 1))[i]
        items.append(Item(str(name), whole, None if group is None else str(group), scale))
    return items


def _check_doubles(items: list[Item], problems: list[str]) -> None:
    """Refuse names that are the same, also on file systems that ignore case, and files that are the same."""
    by_name: dict[str, list[Item]] = {}
    by_file: dict[str, list[Item]] = {}
    for item in items:
        by_name.setdefault(item.name.casefold(), []).append(item)
        by_file.setdefault(os.path.realpath(item.path), []).append(item)
    for same in by_name.values():
        if len(same) > 1:
            names = " and ".join(repr(name) for name in dict.fromkeys(item.name for item in same))
            paths = some(repr(str(item.path)) for item in same)
            problems.append(f"{count(len(same), 'slide')} are named {names} ({paths}); name them in a column 'name'")
    for file, same in by_file.items():
        if len(same) > 1:
            problems.append(
                f"the file {file!r} is given {len(same)} times, as {some(repr(item.name) for item in same)}"
            )
