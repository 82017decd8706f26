"""Features of one slide on disk: a zarr group whose rows are addressed by the spots' coordinates."""

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from gdml._errors import some

from ._spec import FeatureSpec

try:
    import fcntl
except ImportError:  # no such lock on Windows: one writer at a time is then the user's business
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_ROWS = 64  # of a chunk
_FP16_MAX = float(np.finfo(np.float16).max)


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
    """

    tokens: NDArray[np.float16]
    pooled: NDArray[np.float16]
    neighbors: NDArray[np.float16]


class FeatureStore:
    """Features of one slide and one :class:`FeatureSpec`; open it with :func:`open_store`.

    A row is valid once its coordinates are written, which happens last, and each call of ``append``
    starts a new chunk, so that no chunk is written twice: what is interrupted loses the rows in flight
    and nothing else. Places left over in a chunk have NaN for coordinates.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        self._refresh()

    def _array(self, name: str) -> Any:
        return self._group[name]

    def _refresh(self) -> None:
        xy = np.asarray(self._array("xy")[:], np.float64).reshape(-1, 2)
        self._slots = len(xy)
        self._row = {point: i for i, point in enumerate(map(tuple, xy.tolist())) if not math.isnan(point[0])}

    def __len__(self) -> int:
        """Return the number of spots stored."""
        return len(self._row)

    @property
    def n_tokens(self) -> int:
        """Tokens of a tile, T."""
        return int(self._array("tokens").shape[1])

    @property
    def dim(self) -> int:
        """Width of a token, D."""
        return int(self._array("tokens").shape[2])

    def missing(self, xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which of the spots (n, 2) are not stored; bool, (n,)."""
        return np.array([point not in self._row for point in _points(xy)], bool)

    def append(self, xy: NDArray[np.float64], tokens: NDArray, pooled: NDArray, neighbors: NDArray) -> None:
        """Add spots. Best in multiples of 64 of them, the size of a chunk.

        Parameters
        ----------
        xy
            Spot centres, full-resolution px, (n, 2), float64.
        tokens, pooled, neighbors
            As in :class:`SlideFeatures`, any float type.

        Raises
        ------
        ValueError
            If a shape doesn't fit, or a value is not finite or too large for float16.
        """
        arrays = {"tokens": tokens, "pooled": pooled, "neighbors": neighbors}
        for name, values in arrays.items():
            expected = (len(xy), *self._array(name).shape[1:])
            if values.shape != expected:
                raise ValueError(f"`{name}` must have shape {expected}, found {values.shape}.")
            if not np.abs(values, dtype=np.float32).max(initial=0) <= _FP16_MAX:
                raise ValueError(
                    f"`{name}` has values that float16 can't hold (NaN or beyond {_FP16_MAX:.0f}); "
                    'try precision="fp32", or scale the output of the encoder.'
                )
        if len(xy) == 0:
            return
        with self._locked():
            self._refresh()
            first = math.ceil(self._slots / _ROWS) * _ROWS
            last = first + len(xy)
            for name, values in arrays.items():
                array = self._array(name)
                array.resize((last, *array.shape[1:]))
                array[first:last] = values.astype(np.float16)
            coordinates = self._array("xy")
            coordinates.resize((last, 2))
            coordinates[first:last] = np.asarray(xy, np.float64)
            self._refresh()

    def read(self, xy: NDArray[np.float64]) -> SlideFeatures:
        """Features of the spots (n, 2), in their order.

        Raises
        ------
        KeyError
            If some are not stored.
        """
        rows = self._rows(xy)
        return SlideFeatures(*(self._take(name, rows) for name in ("tokens", "pooled", "neighbors")))

    def read_pooled(self, xy: NDArray[np.float64]) -> NDArray[np.float16]:
        """Pooled embeddings (n, D) alone; raises as :meth:`read`."""
        return self._take("pooled", self._rows(xy))

    def _rows(self, xy: NDArray[np.float64]) -> NDArray[np.int64]:
        points = _points(xy)
        rows = np.array([self._row.get(point, -1) for point in points], np.int64)
        if (rows < 0).any():
            absent = [f"({x:g}, {y:g})" for (x, y), row in zip(points, rows, strict=True) if row < 0]
            raise KeyError(
                f"{len(absent)} of {len(rows)} spots are not in the store {str(self.path)!r}: {some(absent, 3)}."
            )
        return rows

    def _take(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        in_order, back = np.unique(rows, return_inverse=True)
        return self._array(name).oindex[in_order][back]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; the lock goes with the process that holds it."""
        with (self.path.parent / f".{self.path.name}.lock").open("w") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


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
    ``folder/{spec.key()}.zarr``, whether it exists or not.
    """
    return Path(folder) / f"{spec.key()}.zarr"


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
    The store, at ``folder/{spec.key()}.zarr``.

    Raises
    ------
    ValueError
        If what lies there belongs to another spec or shape, or is damaged.
    """
    path = store_path(folder, spec)
    head = {"format": _FORMAT, "n_tokens": n_tokens, "dim": dim, "key": spec.key()}
    if not path.exists():
        _create(path, spec, head)
    store = open_path(path)
    found = {name: store._group.attrs.get(name) for name in head}
    if found != head:
        raise ValueError(
            f"The store {str(path)!r} holds features of another kind ({found}, expected {head}); delete that folder."
        )
    return store


def open_path(path: str | Path) -> FeatureStore:
    """Open an existing store by its path.

    Parameters
    ----------
    path
        The store itself, a folder that ends in ``.zarr``.

    Returns
    -------
    The store.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged or not a store of features.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"The feature store {str(path)!r} does not exist.")
    try:
        group = zarr.open_group(path, mode="r+")
        store = FeatureStore(path, group)
        [store._array(name).shape for name in ("tokens", "pooled", "neighbors")]
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"The feature store {str(path)!r} is damaged ({type(error).__name__}); delete that folder."
        ) from error
    return store


def _create(path: Path, spec: FeatureSpec, head: dict[str, Any]) -> None:
    """Make an empty store beside its place, then move it there, so that a half-made one is never found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{path.stem[:8]}", dir=path.parent))
    group = zarr.open_group(making, mode="w", zarr_format=3)
    group.attrs.update({**head, "spec": {k: str(v) for k, v in asdict(spec).items()}})
    n_tokens, dim, n_neighbors = head["n_tokens"], head["dim"], spec.n_side**2
    shapes = {"tokens": (n_tokens, dim), "pooled": (dim,), "neighbors": (n_neighbors, dim)}
    for name, shape in shapes.items():
        group.create_array(
            name,
            shape=(0, *shape),
            chunks=(_ROWS, *shape),
            dtype="float16",
            compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        )
    group.create_array("xy", shape=(0, 2), chunks=(_ROWS, 2), dtype="float64", fill_value=float("nan"))
    try:
        making.rename(path)
    except OSError:  # another process was first
        shutil.rmtree(making)
        if not path.is_dir():
            raise


def _points(xy: NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(xy, np.float64).reshape(-1, 2).tolist()]
