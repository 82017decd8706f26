"""One key for everything whose numbers depend on something: features, finished runs, saved models, predictions.

A slide is known by its image's fingerprint; spots by the ordered digest of their (position, counts) pairs; tiles by
their geometry; features by image, geometry, encoder and precision. What differs in any of these has another key, and is
computed again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

_SIZE = 16  # bytes of a digest


def provenance_key(record: Mapping[str, Any], *, size: int = _SIZE) -> str:
    """Key of a result: the hash of everything that its numbers depend on.

    Parameters
    ----------
    record
        Plain values (text, numbers, lists, mappings) by name. NaN and infinite numbers are refused, since they are
        not equal to themselves.
    size
        Length of the hash, bytes.

    Returns
    -------
    Hexadecimal; equal records, in whatever order their names stand, have equal keys.
    """
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


def array_digest(values: ArrayLike) -> str:
    """Digest of whole numbers, hexadecimal: equal for equal numbers in the same order and shape.

    Parameters
    ----------
    values
        Whole numbers, of any integer type.
    """
    numbers = np.ascontiguousarray(values, "<i8")
    return hashlib.blake2b(repr(numbers.shape).encode() + numbers.tobytes(), digest_size=_SIZE).hexdigest()


def spots_digest(xy: ArrayLike, counts: Sequence[bytes] | None = None) -> str:
    """Digest of a set of spots: the ordered (position, counts) pairs.

    Parameters
    ----------
    xy
        (n, 2) spot centres, full-resolution px.
    counts
        Their :func:`row_digests`, in the order of ``xy``; None for spots whose counts play no part.

    Returns
    -------
    Hexadecimal. Spots in another order, or counts paired with other positions, have another digest.
    """
    places = np.ascontiguousarray(xy, "<f8")
    rows = counts if counts is not None else [b""] * len(places)
    digest = hashlib.blake2b(digest_size=_SIZE)
    for place, row in zip(places, rows, strict=True):
        digest.update(place.tobytes())
        digest.update(row)
    return digest.hexdigest()


def counts_digest(counts: Sequence[bytes]) -> str:
    """Digest of the counts of a slide, whatever the order of its spots: the same for a copy under another name.

    Parameters
    ----------
    counts
        The :func:`row_digests` of its spots.

    Returns
    -------
    Hexadecimal.
    """
    return hashlib.blake2b(b"".join(sorted(counts)), digest_size=_SIZE).hexdigest()


def row_digests(counts: Any) -> list[bytes]:
    """Digest of each row of a matrix; dense and sparse matrices of equal values have equal ones.

    Parameters
    ----------
    counts
        (n, m), dense or sparse, of any numeric type.

    Returns
    -------
    n digests.
    """
    matrix = sparse.csr_array(counts)
    if not matrix.has_canonical_format:
        matrix = matrix.copy()  # never the caller's own
        matrix.sum_duplicates()
    return [
        _row_digest(matrix.indices[a:b], matrix.data[a:b])
        for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)
    ]


def _row_digest(genes: NDArray[Any], values: NDArray[Any]) -> bytes:
    present = values != 0
    content = genes[present].astype("<i8").tobytes() + values[present].astype("<f8").tobytes()
    return hashlib.blake2b(content, digest_size=_SIZE).digest()
