"""Outlines of the tissue of many slides: a file for each, which a pattern names."""

import os
from collections.abc import Sequence
from typing import Any

from gdml._errors import count, some

from .manifest import Item


def outlines_of(tissue: Any, items: Sequence[Item]) -> bool | str:
    """Refuse what is no choice of tissue for many slides, and outlines that do not exist.

    Parameters
    ----------
    tissue
        As in :func:`gdml.tl.predict_slides`.
    items
        The slides.

    Returns
    -------
    The choice, with an absolute path: processes may run in other folders.

    Raises
    ------
    ValueError
        If it is neither a boolean nor a path with ``{name}``.
    FileNotFoundError
        If files are missing.
    """
    if isinstance(tissue, bool):
        return tissue
    if not isinstance(tissue, str) or "{name}" not in tissue:
        raise ValueError(
            f"`tissue` is {tissue!r}; for many slides give True, False, or a path with {{name}}, such as "
            "'outlines/{name}.geojson'."
        )
    pattern = os.path.abspath(os.path.expanduser(tissue))
    missing = [path for item in items if not os.path.exists(path := outline_of(pattern, item))]
    if missing:
        raise FileNotFoundError(f"`tissue`: {count(len(missing), 'file')} missing: {some(map(repr, missing))}.")
    return pattern


def outline_of(tissue: bool | str, item: Item) -> Any:
    """Fill in the name of a slide.

    Parameters
    ----------
    tissue
        As :func:`outlines_of` returned it.
    item
        The slide.

    Returns
    -------
    What :func:`gdml.pp.grid` takes.
    """
    return tissue.replace("{name}", item.name) if isinstance(tissue, str) else tissue
