"""Features of one slide on disk: a zarr group whose tiles are identified by their centres."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.array_spec import ArrayConfigParams

from gdml._errors import count
from gdml._marker import mark

from ._durable import UNFINISHED, DurableStore
from ._lock import locked
from ._rows import DamagedShardError, Rows
from ._spec import FORMAT, FeatureSpec
from .tiles import TileIndex, tile_keys

_UNIT_WITH_TOKENS, _UNIT_POOLED = 64, 256  # tiles that are written at once
_SHARD = 2048  # rows in a shard of pooled embeddings and of centres: few files, and little to write again
_FP16_MAX = float(np.finfo(np.float16).max)
_WRITE_ALL: ArrayConfigParams = {"write_empty_chunks": True}  # saves zarr the comparison of every chunk with NaN


class FeatureStore:
    """Features of the tiles of one slide and one :class:`FeatureSpec`; open it with :func:`open_store`.

    A zarr group of the arrays ``tokens`` (n, T, D) and ``pooled`` (n, D), float16, and ``xy`` (n, 2), the tile centres
    in full-resolution px, float64. A row holds a tile where its ``xy`` is not NaN, and a tile never changes its row.

    Tiles are appended in units. All files of a unit are on disk before its centres are written, which is one atomic
    step: a process that is killed loses the unit in flight alone, and a second call ends with the same content.

    Parameters
    ----------
    path
        Folder of the store.
    head
        Attributes of the group, as ``read_head`` returns them.

    Notes
    -----
    ``n_tokens`` and ``dim`` are the tokens of a tile, T, and their width, D; ``keeps_tokens`` is False where only the
    pooled embedding is kept; ``unit`` is the number of tiles in a full unit.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.n_tokens, self.dim = int(head["n_tokens"]), int(head["dim"])
        self.keeps_tokens = head["spec"]["tokens"] != "pooled"
        self.unit = _UNIT_WITH_TOKENS if self.keeps_tokens else _UNIT_POOLED
        self._made: tuple[int, int] | None = None
        self._refresh()

    def __len__(self) -> int:
        """Return the number of tiles stored."""
        return self._size - len(self._free) - len(self._lost)

    def missing(self, xy: NDArray[np.float64], *, verify: bool = False) -> NDArray[np.bool_]:
        """Find the tiles that are not stored.

        Parameters
        ----------
        xy
            Tile centres, full-resolution px, (n, 2).
        verify
            Also compare the checksums of these tiles. Damaged files are removed with a warning, and their tiles are
            missing.

        Returns
        -------
        bool, (n,).
        """
        if verify:
            self._remove_damaged(xy)
        return self._lacks(self._index.rows(xy))

    def append(self, xy: NDArray[np.float64], tokens: NDArray | None, pooled: NDArray) -> None:
        """Add tiles, ``unit`` at a time; those that are stored already, by another process say, are skipped.

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
            If a shape does not fit, a value is not finite or too large for float16, or the store is damaged.
        FileNotFoundError
            If the store was removed meanwhile, for example by ``gdml.settings.clear_cache()``.
        """
        values: dict[str, NDArray] = {"pooled": self._checked("pooled", pooled, (len(xy), self.dim))}
        if self.keeps_tokens:
            given = np.empty(0) if tokens is None else tokens
            values["tokens"] = self._checked("tokens", given, (len(xy), self.n_tokens, self.dim))
        values["xy"] = np.asarray(xy, np.float64).reshape(-1, 2)
        with locked(self.path), self._explained():
            self._refresh()
            first = np.sort(np.unique(tile_keys(xy), return_index=True)[1])
            new = first[self._lacks(self._index.rows(values["xy"][first]))]
            for start in range(0, len(new), self.unit):
                self._write({name: array[new[start : start + self.unit]] for name, array in values.items()})

    def _refresh(self) -> None:
        """Read the centres of rows that were added or filled since the last look."""
        created = (self.path / "zarr.json").stat()
        if self._made != (created.st_ino, created.st_mtime_ns):  # the first look, or the store was made anew
            self._made = created.st_ino, created.st_mtime_ns
            self._arrays: dict[str, zarr.Array] = {}
            self._index, self._size = TileIndex(), 0
            # rows that hold no tile: a writer was killed, or their centres are damaged
            self._free = np.empty(0, np.int64)
            # rows of tiles whose features were damaged and removed
            self._lost: set[int] = set()
        centers = Rows(self.path / "xy")
        rows = np.concatenate([self._free, np.arange(self._size, centers.shape[0])])
        xy = read_xy(centers, rows)
        stored = np.isfinite(xy[:, 0])
        self._index.add(xy[stored], rows[stored])
        self._free, self._size = rows[~stored], centers.shape[0]

    def _lacks(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        lost = np.fromiter(self._lost, np.int32, len(self._lost))
        return (rows < 0) | np.isin(rows, lost)

    def _write(self, unit: dict[str, NDArray]) -> None:
        rows = self._index.rows(unit["xy"]).astype(np.int64)  # a damaged tile keeps its row
        new = rows < 0
        rows[new] = np.concatenate([self._free, np.arange(self._size, self._size + len(rows))])[: new.sum()]
        size = max(self._size, int(rows.max()) + 1)
        if not self._arrays:
            store = DurableStore(self.path)
            self._arrays = {name: zarr.open_array(store, path=name, mode="r+").with_config(_WRITE_ALL) for name in unit}

        def prepare(name: str) -> None:
            array = self._arrays[name]
            if array.shape[0] != size:
                array.resize((size, *array.shape[1:]))
            if name != "xy":
                put(name)

        def put(name: str) -> None:
            order = np.argsort(rows, kind="stable")
            for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
                self._arrays[name][rows[run[0]] : rows[run[-1]] + 1] = unit[name][run]

        with ThreadPoolExecutor(len(unit)) as pool:  # their fsyncs wait for the disk together
            list(pool.map(prepare, unit))
        put("xy")
        self._index.add(unit["xy"][new], rows[new])
        self._free, self._size = np.setdiff1d(self._free, rows), size
        self._lost.difference_update(rows.tolist())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The feature store {str(self.path)!r} was removed while it was written to; "
                "call gdml.pp.embed(adata) again."
            ) from error
        except ValueError as error:  # a shard that is to be completed does not match its checksums
            raise ValueError(damage(self.path, str(error))) from error

    def _remove_damaged(self, xy: NDArray[np.float64]) -> None:
        rows = np.unique(np.append(self._index.rows(xy), self._size - 1))  # the last shard will be completed
        rows = np.setdiff1d(rows[rows >= 0], [*self._free, *self._lost])
        arrays = {name: Rows(self.path / name) for name in ("xy", "pooled", *["tokens"] * self.keeps_tokens)}

        def find() -> dict[str, list[int]]:
            found = {name: array.damaged(rows) for name, array in arrays.items() if name != "xy"}
            centers = arrays["xy"].damaged(np.arange(self._size))  # of all tiles: their rows are not known
            # a writer that was killed may leave rows without a file of their centres
            return {**found, "xy": [shard for shard in centers if arrays["xy"].shard_path(shard).exists()]}

        if any(find().values()):
            with locked(self.path):
                damaged = find()  # another process may have mended them
                for name, shards in damaged.items():
                    for shard in shards:
                        arrays[name].shard_path(shard).unlink(missing_ok=True)
            for name in set(arrays) - {"xy"}:
                gone = np.isin(np.arange(self._size) // arrays[name].per_shard, damaged[name])
                self._lost.update(np.setdiff1d(np.flatnonzero(gone), self._free).tolist())
            if damaged["xy"]:  # which tiles its rows held is not known any more
                lost, self._made = self._lost, None
                self._refresh()
                self._lost = lost.difference(self._free.tolist())
            n_damaged = sum(map(len, damaged.values()))
            if n_damaged:
                warnings.warn(
                    f"The feature store {str(self.path)!r} was damaged: {count(n_damaged, 'file')} "
                    "removed; the tiles are computed anew.",
                    UserWarning,
                    stacklevel=3,
                )
        rows = np.setdiff1d(rows, [*self._free, *self._lost]).astype(np.int64)
        for _, at in arrays["pooled"].by_shard(rows):
            # a row of NaN stands where a damaged file was removed and its tiles were not all computed anew
            absent = np.isnan(arrays["pooled"].take(rows[at])[:, 0])
            self._lost.update(rows[at][absent].tolist())

    def _checked(self, name: str, values: NDArray, expected: tuple[int, ...]) -> NDArray[np.float16]:
        if values.shape != expected:
            raise ValueError(f"`{name}` must have shape {expected}, found {values.shape}.")
        if not np.abs(values, dtype=np.float32).max(initial=0) <= _FP16_MAX:
            raise ValueError(
                f"`{name}` has values that float16 can't hold (NaN or beyond {_FP16_MAX:.0f}); "
                'try precision="fp32", or scale the output of the encoder.'
            )
        return values.astype(np.float16)


def read_xy(centers: Rows, rows: NDArray[np.integer]) -> NDArray[np.float64]:
    """Centres of the tiles in ``rows``, (n, 2) full-resolution px; NaN where there is none or it cannot be read."""
    xy = np.full((len(rows), 2), np.nan)
    for _, at in centers.by_shard(rows):
        try:
            xy[at] = centers.take(rows[at])
        except DamagedShardError:  # missing(verify=True) removes the file
            continue
    return xy


def damage(path: Path, what: str) -> str:
    """Error message of a damaged store."""
    return (
        f"The feature store {str(path)!r} is damaged ({what}); call gdml.pp.embed(adata) again, which computes the "
        "damaged part anew."
    )


def store_path(folder: str | Path, spec: FeatureSpec) -> Path:
    """Path of the store of ``spec`` under ``folder``.

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
    """Open the store of ``spec`` under ``folder``, and create it if it does not exist.

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
        If the folder holds a store of another spec, shape or format, or no store.
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
                f"The store {str(path)!r} holds other features ({_difference(found, head)}); delete that folder."
            )
    with locked(path):
        for file in path.glob(f"*/*{UNFINISHED}"):  # of a writer that was killed
            file.unlink(missing_ok=True)
    return FeatureStore(path, found)


def open_path(path: str | Path) -> FeatureStore:
    """Open an existing store by its path.

    Parameters
    ----------
    path
        Folder of the store.

    Returns
    -------
    The store.

    Raises
    ------
    FileNotFoundError
        If it does not exist.
    ValueError
        If it is not a store of features, or one of another version of gdml.
    """
    return FeatureStore(Path(path), read_head(Path(path)))


def read_head(path: Path) -> dict[str, Any]:
    """Read the attributes of a store.

    Parameters
    ----------
    path
        Folder of the store.

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
    old = 2 if (path / "store.json").is_file() else None
    try:
        head = {} if old else json.loads((path / "zarr.json").read_text())["attributes"]
        version = old or head.get("format", 1)
        whole = {"n_tokens", "dim", "key"} <= set(head) and "tokens" in head["spec"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The feature store {str(path)!r} is damaged ({type(error).__name__}); delete that folder."
        ) from error
    if version != FORMAT or not whole:
        raise ValueError(
            f"The feature store {str(path)!r} has format {version}, this version of gdml reads format {FORMAT}; call "
            "gdml.pp.embed(adata) again. gdml.settings.clear_cache('features') removes stores that are no longer used."
        )
    return head


def _create(path: Path, head: dict[str, Any]) -> None:
    """Make an empty store in a temporary folder and move it into place, so that a half-made one is never found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        for left in path.parent.glob(f".{path.name}-making-*"):  # by a process that was killed while it held the lock
            shutil.rmtree(left)
        if path.is_dir():  # another process was first
            return
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}-making-", dir=path.parent))
        group = zarr.create_group(making, attributes=head)
        pooled_only = head["spec"]["tokens"] == "pooled"
        token, unit = (head["n_tokens"], head["dim"]), _UNIT_WITH_TOKENS
        for name, shape, chunk, shard, dtype in (
            *(() if pooled_only else [("tokens", token, 1, unit, "float16")]),
            ("pooled", (head["dim"],), _UNIT_POOLED, _SHARD, "float16"),
            ("xy", (2,), _SHARD, _SHARD, "float64"),
        ):
            group.create_array(
                name,
                shape=(0, *shape),
                chunks=(chunk, *shape),
                shards=(shard, *shape),
                dtype=dtype,
                fill_value=np.nan,
                filters=None,
                compressors=[Crc32cCodec()],
                chunk_key_encoding={"name": "default", "separator": "."},  # no folders within folders
            )
        spec = head["spec"]
        geometry = {name: spec[name] for name in ("um_per_px", "side_px", "tile_px", "tokens")}
        mark(making, "features", encoder=spec["encoder"], image=spec["image"], key=head["key"], **geometry)
        making.chmod(0o777 & ~_umask())
        making.rename(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """List what two heads differ in."""
    differ = [(n, found[n], expected[n]) for n in ("n_tokens", "dim") if found[n] != expected[n]]
    theirs = found["spec"]
    differ += [(n, theirs.get(n), value) for n, value in expected["spec"].items() if theirs.get(n) != value]
    return "; ".join(f"{name} {was!r}, expected {now!r}" for name, was, now in differ)
