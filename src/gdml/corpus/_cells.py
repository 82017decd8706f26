"""Cells of a manifest, checked column by column."""

import math
import os
from typing import Any

import pandas as pd

from gdml._errors import count, some


def cells(column: pd.Series, name: str, problems: list[str]) -> list[Any]:
    """Read a column.

    Parameters
    ----------
    column
        Its cells.
    name
        Its name.
    problems
        What is wrong with it is appended here, a sentence each.

    Returns
    -------
    Its values; None for an empty cell, which only ``um_per_px`` may have.
    """
    values = [None if _is_empty(value) else value for value in column.tolist()]
    empty = [i + 1 for i, value in enumerate(values) if value is None]
    if empty and name != "um_per_px":
        problems.append(f"the column {name!r} has {count(len(empty), 'empty cell')} (rows {some(empty)})")
    if name == "um_per_px":
        return [None if value is None else _scale(value, i + 1, problems) for i, value in enumerate(values)]
    kinds = {_kind(value) for value in values if value is not None}
    wanted = {"text"} if name == "path" else {"text", "whole number"}
    if len(kinds) > 1 or kinds - wanted:
        problems.append(
            f"the column {name!r} has values of the types {' and '.join(sorted(kinds))}; give text in all rows"
        )
    return values


def _is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (pd.api.types.is_scalar(value) and pd.isna(value))
    )


def _kind(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return "text"
    if pd.api.types.is_integer(value) and not pd.api.types.is_bool(value):
        return "whole number"
    return type(value).__name__


def _scale(value: Any, row: int, problems: list[str]) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        problems.append(f"the column 'um_per_px' has {value!r} in row {row}; give micrometres per px, such as 0.5")
        return None
    return number
