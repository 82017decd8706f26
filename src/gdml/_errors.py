"""Small helpers for errors: argument checks, and messages that name what was found and what would mend it."""

import math
import os
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence with the names nearest to ``name``, or all known ones where none is near."""
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)]
    if near:
        return "Did you mean " + " or ".join(repr(k) for k in near) + "?"
    return "Known names: " + ", ".join(repr(k) for k in known) + "."


def some(names: Iterable[object], most: int = 5) -> str:
    """Give the first few of ``names`` as text, with the count of those left out."""
    texts = [str(name) for name in names]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def count(n: int, what: str) -> str:
    """Give a number with its noun, in the plural where it is not one: ``"1 slide"``, ``"3 slides"``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def check_number(
    name: str, value: Any, *, above: float | None = None, at_least: float | None = None, hint: str = ""
) -> None:
    """Refuse an argument that is not a finite number within its bounds.

    Parameters
    ----------
    name
        Name of the argument.
    value
        What the user passed.
    above, at_least
        Exclusive and inclusive lower bound.
    hint
        Clause appended to the message.

    Raises
    ------
    TypeError
        If ``value`` is text, a boolean or otherwise not a real number.
    ValueError
        If it is NaN, infinite or out of bounds.
    """
    end = f"; {hint}." if hint else "."
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, found {value!r}{end}")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, found {value!r}{end}")
    if above is not None and not float(value) > above:
        raise ValueError(f"`{name}` must be {'positive' if above == 0 else f'above {above}'}, found {value!r}{end}")
    if at_least is not None and not float(value) >= at_least:
        raise ValueError(f"`{name}` must be at least {at_least}, found {value!r}{end}")


def check_count(name: str, value: Any, *, at_least: int = 1, hint: str = "") -> None:
    """Refuse an argument that is not a whole number of at least ``at_least``; raises as :func:`check_number` does."""
    end = f"; {hint}." if hint else "."
    if isinstance(value, bool) or not isinstance(value, Integral):
        kind = ValueError if isinstance(value, Real) else TypeError
        raise kind(f"`{name}` must be a whole number of at least {at_least}, found {value!r}{end}")
    if value < at_least:
        raise ValueError(f"`{name}` must be a whole number of at least {at_least}, found {value!r}{end}")


def check_switch(name: str, value: Any) -> None:
    """Refuse an argument that is not True or False, with a TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False, found {value!r}.")


def check_path(name: str, value: Any) -> None:
    """Refuse an argument that is not a path, with a TypeError."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"`{name}` must be the path of a folder, found {value!r}.")


def check_fields(config: Any) -> None:
    """Refuse a dataclass with text or another type in fields that are annotated as numbers or booleans.

    Raises
    ------
    TypeError
        If there is such a field.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds, value = set(get_args(hint)) or {hint}, getattr(config, name, None)
        if value is None and type(None) in kinds:
            continue
        if kinds == {bool}:
            if not isinstance(value, bool):
                raise TypeError(f"`{name}` must be True or False, found {value!r}.")
        elif kinds <= {int, float, type(None)} and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"`{name}` must be a number, found {value!r}.")


def renamed(old: str, old_value: Any, new: str, new_value: Any) -> Any:
    """Value of a renamed argument, with a FutureWarning where its old name was used.

    Parameters
    ----------
    old, old_value
        Former name and the value passed under it; None where it was not used.
    new, new_value
        Present name and its value.

    Returns
    -------
    The value to use.

    Raises
    ------
    TypeError
        If both names were used.
    """
    if old_value is None:
        return new_value
    if new_value is not None:
        raise TypeError(f"`{old}` was renamed to `{new}`: pass `{new}` alone.")
    warnings.warn(f"`{old}` was renamed to `{new}`; pass {new}={old_value!r}.", FutureWarning, stacklevel=3)
    return old_value
