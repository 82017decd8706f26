"""Chunks of lazy images that were read last."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from numpy.typing import NDArray


class Chunks:
    """Keeps what was computed last, of all images together.

    Parameters
    ----------
    most
        Bytes kept, beyond the chunk that was asked for last.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[int, Hashable], NDArray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, image: int, place: Hashable, compute: Callable[[], NDArray]) -> NDArray:
        """Chunk of an image, computed where it is not kept.

        Parameters
        ----------
        image
            Number of the image.
        place
            Which chunk of it.
        compute
            Makes the chunk.
        """
        with self._lock:
            pixels = self._kept.pop((image, place), None)
        if pixels is None:
            pixels = compute()
        with self._lock:
            self._kept[image, place] = pixels
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._most:
                self._kept.popitem(last=False)
        return pixels

    def drop(self, image: int) -> None:
        """Forget the chunks of an image."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == image]:
                del self._kept[key]
