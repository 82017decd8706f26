"""Features of one slide on disk: a folder of unit files, whose tiles are addressed by their centres."""

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml._errors import some

from . import units as _units
from ._spec import FORMAT, FeatureSpec

_HEAD = "store.json"
_WITH_TOKENS, _POOLED_ONLY = 64, 256  # tiles in a unit: about 3 MB and 0.3 MB at 512 channels
_GRAIN = 64  # tiles closer than 1/64 px are one: what is asked for again may be rounded differently
_FP16_MAX = float(np.finfo(np.float16).max)

Key = tuple[int, int]


@dataclass
class SlideFeatures:
    """Features of the spots of a slide.

    Attributes
    ----------
    tokens
        Tokens of the spot's own tile, float16, (n, T, D).
    pooled
        Pooled embedding of that tile, float16, (n, D).
    neighbors
        Pooled embeddings of the tiles of the neighbour region, row-major, float16, (n, n_side**2, D);
        zeros where a tile leaves the image.
    neighbor_mask
        Where there is a tile, bool, (n, n_side**2).
    """

    tokens: NDArray[np.float16]
    pooled: NDArray[np.float16]
    neighbors: NDArray[np.float16]
    neighbor_mask: NDArray[np.bool_]


class FeatureStore:
    """Features of tiles of one slide and one :class:`FeatureSpec`; open it with :func:`open_store`.

    Tiles lie in unit files that are written once, whole, and carry the digest of their content in their
    name. A writer that is killed loses the unit in flight and nothing else; asked for the same
    tiles again, it ends with the same files as one that was never stopped. Tiles are known by
    their centre, rounded to 1/64 px.

    Parameters
    ----------
    path
        The folder.
    head
        What it says of itself: see :func:`read_head`.

    Notes
    -----
    ``n_tokens`` and ``dim`` are the tokens of a tile, T, and their width, D; ``keeps_tokens`` tells whether more than the
    pooled embedding is kept; ``unit`` is the number of tiles in a full unit, 64 with tokens, else 256.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.n_tokens, self.dim = int(head["n_tokens"]), int(head["dim"])
        self.keeps_tokens = head["spec"]["tokens"] != "pooled"
        self.unit = _WITH_TOKENS if self.keeps_tokens else _POOLED_ONLY
        self._units: list[Path] = []  # those that can be read
        self._known: set[Path] = set()
        self._row: dict[Key, tuple[int, int]] = {}
        self._refresh()

    def __len__(self) -> int:
        """Return the number of tiles stored."""
        return len(self._row)

    def missing(self, xy: NDArray[np.float64], *, verify: bool = False) -> NDArray[np.bool_]:
        """Which of the tiles are not stored.

        Parameters
        ----------
        xy
            Tile centres, full-resolution px, (n, 2).
        verify
            Also read the units of these tiles and check them. A damaged one is removed with a warning,
            and its tiles are missing.

        Returns
        -------
        bool, (n,).
        """
        keys = _keys(xy)
        if verify:
            self._remove_damaged({self._row[key][0] for key in keys if key in self._row})
        return np.array([key not in self._row for key in keys], bool)

    def append(self, xy: NDArray[np.float64], tokens: NDArray | None, pooled: NDArray) -> None:
        """Add tiles as one unit, or as several where there are more than ``unit``.

        A unit that is stored already, by another process say, is left as it is.

        Parameters
        ----------
        xy
            Tile centres, full-resolution px, (n, 2), float64.
        tokens
            (n, T, D), any float type; None where only the pooled embedding is kept.
        pooled
            (n, D), any float type.

        Raises
        ------
        ValueError
            If a shape doesn't fit, or a value is not finite or too large for float16.
        FileNotFoundError
            If the store was removed meanwhile, by ``gdml.settings.clear_cache()`` say.
        """
        arrays: dict[str, NDArray] = {"pooled": self._checked("pooled", pooled, (len(xy), self.dim))}
        if self.keeps_tokens:
            given = np.empty(0) if tokens is None else tokens
            arrays["tokens"] = self._checked("tokens", given, (len(xy), self.n_tokens, self.dim))
        arrays["xy"] = np.asarray(xy, np.float64).reshape(-1, 2)
        with _units.locked(self.path):
            if not self._folder.is_dir():
                raise FileNotFoundError(
                    f"The feature store {str(self.path)!r} was removed while it was written to; "
                    "call gdml.pp.embed(adata) again."
                )
            _units.clean(self._folder)
            self._refresh()
            for first in range(0, len(xy), self.unit):
                unit = {name: a[first : first + self.unit] for name, a in arrays.items()}
                if not all(key in self._row for key in _keys(unit["xy"])):
                    _units.write(self._folder, unit)
            self._refresh()

    def read_tokens(self, xy: NDArray[np.float64]) -> NDArray[np.float16]:
        """Tokens of tiles.

        Parameters
        ----------
        xy
            Tile centres, full-resolution px, (n, 2).

        Returns
        -------
        float16, (n, T, D), in the order asked for.

        Raises
        ------
        KeyError
            If some are not stored.
        ValueError
            If some lie in a unit that is damaged.
        """
        if not self.keeps_tokens:
            return self.read_pooled(xy)[:, None]
        return self._take("tokens", xy, (self.n_tokens, self.dim))

    def read_pooled(self, xy: NDArray[np.float64]) -> NDArray[np.float16]:
        """Pooled embeddings (n, D), float16; asked for and raising as :meth:`read_tokens`."""
        return self._take("pooled", xy, (self.dim,))

    @property
    def _folder(self) -> Path:
        return self.path / "units"

    def _refresh(self) -> None:
        """Learn of units that appeared or went since the last look."""
        found = _units.listed(self._folder)
        if not self._known.issubset(found):
            self._units, self._row, self._known = [], {}, set()
        for path in found:
            if path in self._known:
                continue
            self._known.add(path)
            try:
                keys = _keys(_units.read_xy(path))
            except _units.DamagedUnitError:  # its tiles are missing, until missing(verify=True) removes the file
                continue
            for i, key in enumerate(keys):
                self._row.setdefault(key, (len(self._units), i))
            self._units.append(path)

    def _remove_damaged(self, units: set[int]) -> None:
        suspects = self._known.difference(self._units).union(self._units[i] for i in units)
        damaged = sorted(path for path in suspects if path.exists() and not _is_whole(path))
        if damaged:
            with _units.locked(self.path):
                for path in damaged:
                    path.unlink(missing_ok=True)
            self._refresh()
            warnings.warn(
                f"{len(damaged)} of {len(self._units) + len(damaged)} files in the feature store {str(self.path)!r} "
                "were damaged and are removed; their tiles are computed anew.",
                UserWarning,
                stacklevel=3,
            )

    def _checked(self, name: str, values: NDArray, expected: tuple[int, ...]) -> NDArray[np.float16]:
        if values.shape != expected:
            raise ValueError(f"`{name}` must have shape {expected}, found {values.shape}.")
        if not np.abs(values, dtype=np.float32).max(initial=0) <= _FP16_MAX:
            raise ValueError(
                f"`{name}` has values that float16 can't hold (NaN or beyond {_FP16_MAX:.0f}); "
                'try precision="fp32", or scale the output of the encoder.'
            )
        return values.astype(np.float16)

    def _take(self, name: str, xy: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float16]:
        keys = _keys(xy)
        absent = [point for point, key in zip(_points(xy), keys, strict=True) if key not in self._row]
        if absent:
            shown = some([f"({x:g}, {y:g})" for x, y in absent], 3)
            raise KeyError(f"{len(absent)} of {len(keys)} tiles are not in the store {str(self.path)!r}: {shown}.")
        at = np.array([self._row[key] for key in keys], np.int64).reshape(-1, 2)
        result = np.empty((len(keys), *shape), np.float16)
        for unit, rows in _by_unit(at[:, 0]):
            try:
                result[rows] = _units.read(self._units[unit])[name][at[rows, 1]]
            except _units.DamagedUnitError as error:
                raise ValueError(
                    f"The feature store {str(self.path)!r} is damaged: {Path(str(error)).name} is not what was written. "
                    "Call gdml.pp.embed(adata) again, which computes it anew."
                ) from error
        return result


def distinct_tiles(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tiles without those that a store takes for the same, from top to bottom, then from left to right.

    Parameters
    ----------
    xy
        Tile centres, full-resolution px, (n, 2).

    Returns
    -------
    float64, (m, 2).
    """
    xy = np.asarray(xy, np.float64).reshape(-1, 2)
    xy = xy[np.lexsort(xy.T)]
    cells = np.floor(xy * _GRAIN + 0.5).astype(np.int64)
    first = np.unique(cells[:, ::-1], axis=0, return_index=True)[1]
    return xy[np.sort(first)]


def store_path(folder: str | Path, spec: FeatureSpec) -> Path:
    """Place of the store of ``spec`` under ``folder``.

    Parameters
    ----------
    folder
        Folder of all stores.
    spec
        What the features depend on.

    Returns
    -------
    ``folder/{spec.key()}``, whether it exists or not.
    """
    return Path(folder) / spec.key()


def open_store(folder: str | Path, spec: FeatureSpec, *, n_tokens: int, dim: int) -> FeatureStore:
    """Open the store of ``spec`` under ``folder``, made where there is none.

    Parameters
    ----------
    folder
        Folder of all stores.
    spec
        What the features depend on.
    n_tokens
        Tokens of a tile, T.
    dim
        Width of a token, D.

    Returns
    -------
    The store, at ``folder/{spec.key()}``.

    Raises
    ------
    ValueError
        If what lies there belongs to another spec, shape or version, or is no store.
    """
    path = store_path(folder, spec)
    head = {
        "format": FORMAT,
        "n_tokens": n_tokens,
        "dim": dim,
        "key": spec.key(),
        "spec": {name: str(value) for name, value in asdict(spec).items()},
    }
    if not path.exists():
        _create(path, head)
    found = read_head(path)
    for name in ("key", "n_tokens", "dim"):
        if found[name] != head[name]:
            raise ValueError(
                f"The store {str(path)!r} holds features of another kind ({_difference(found, head)}); delete that folder."
            )
    with _units.locked(path):
        _units.clean(path / "units")
    return FeatureStore(path, found)


def open_path(path: str | Path) -> FeatureStore:
    """Open an existing store by its path.

    Parameters
    ----------
    path
        The store itself, a folder.

    Returns
    -------
    The store.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not a store of features, or one of another version of gdml.
    """
    return FeatureStore(Path(path), read_head(Path(path)))


def read_head(path: Path) -> dict[str, Any]:
    """Read what a store says of itself.

    Parameters
    ----------
    path
        The store, a folder.

    Returns
    -------
    ``format``, ``key``, ``n_tokens``, ``dim`` and ``spec``, the :class:`FeatureSpec` as text.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_path`.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"The feature store {str(path)!r} does not exist.")
    if (path / "zarr.json").is_file():
        raise ValueError(
            f"The feature store {str(path)!r} was written by gdml 0.1, whose features lay spot by spot (format 1); "
            "call gdml.pp.embed(adata) again, and gdml.settings.clear_cache('features') to be rid of it."
        )
    try:
        head = json.loads((path / _HEAD).read_text())
        version = head["format"]
        whole = {"n_tokens", "dim", "key"} <= set(head) and "tokens" in head["spec"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The feature store {str(path)!r} is damaged ({type(error).__name__}); delete that folder."
        ) from error
    if version != FORMAT or not whole:
        raise ValueError(
            f"The feature store {str(path)!r} has format {version}, this gdml reads {FORMAT}; "
            "call gdml.pp.embed(adata) again."
        )
    return head


def _create(path: Path, head: dict[str, Any]) -> None:
    """Make an empty store beside its place, then move it there, so that a half-made one is never found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _units.locked(path):
        for left in path.parent.glob(f".{path.name}-making-*"):  # by a process that was killed: we hold its lock
            shutil.rmtree(left)
        if path.is_dir():  # another process was first
            return
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}-making-", dir=path.parent))
        (making / "units").mkdir()
        (making / _HEAD).write_text(json.dumps(head, indent=1, sort_keys=True))
        os.chmod(making, 0o777 & ~_umask())
        making.rename(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Say what two heads differ in."""
    apart = [(n, found[n], expected[n]) for n in ("n_tokens", "dim") if found[n] != expected[n]]
    theirs = found["spec"]
    apart += [(n, theirs.get(n), value) for n, value in expected["spec"].items() if theirs.get(n) != value]
    return "; ".join(f"{name} {was!r}, expected {now!r}" for name, was, now in apart)


def _is_whole(path: Path) -> bool:
    try:
        _units.read(path)
    except _units.DamagedUnitError:
        return False
    return True


def _by_unit(unit: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Each unit with the places that ask for it, so that a file is read once."""
    order = np.argsort(unit, kind="stable")
    ends = np.flatnonzero(np.diff(unit[order])) + 1
    for rows in np.split(order, ends):
        if len(rows):
            yield int(unit[rows[0]]), rows


def _points(xy: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(xy, np.float64).reshape(-1, 2).tolist()]


def _keys(xy: NDArray[np.float64]) -> list[Key]:
    return [(math.floor(x * _GRAIN + 0.5), math.floor(y * _GRAIN + 0.5)) for x, y in _points(xy)]
