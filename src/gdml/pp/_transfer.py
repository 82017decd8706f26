"""Tiles to the device and features back, beside the computation where the device allows it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass
class OnTheWay:
    """Features that may still be computed; :meth:`get` waits for them."""

    tensors: "tuple[torch.Tensor, ...]"
    arrived: Any = None

    def get(self) -> tuple[NDArray[np.float16], ...]:
        """Arrays in memory, float16."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return tuple(tensor.numpy() for tensor in self.tensors)


@dataclass
class Transfer:
    """Ways to a device and back.

    On CUDA, tiles lie in page-locked memory and are copied by a stream of their own, so that the copy of one
    batch runs beside the computation of the one before; features are fetched without waiting for them.
    Elsewhere these are plain copies, on the CPU none.
    """

    device: "torch.device"
    _stream: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            import torch

            self._stream = torch.cuda.Stream(self.device)

    def room(self, n: int, side: int) -> "torch.Tensor":
        """Memory for ``n`` tiles, (n, side, side, 3) uint8."""
        import torch

        return torch.empty((n, side, side, 3), dtype=torch.uint8, pin_memory=self._stream is not None)

    def to_device(self, tiles: "torch.Tensor") -> "torch.Tensor":
        """Tiles on the device; their room may be written to again when this returns."""
        if self._stream is None:
            return tiles.to(self.device)
        import torch

        with torch.cuda.stream(self._stream):
            there = tiles.to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._stream)
        there.record_stream(now)
        self._stream.synchronize()  # the copy alone: the computation of the batch before goes on
        return there

    def to_host(self, *tensors: "torch.Tensor") -> OnTheWay:
        """Features as float16, which are there when :meth:`OnTheWay.get` returns."""
        import torch

        # what float16 can't hold becomes infinite, which the store refuses
        halves = tuple(tensor.to(torch.float16) for tensor in tensors)
        if self._stream is None:
            return OnTheWay(tuple(half.cpu() for half in halves))
        homes = tuple(torch.empty(half.shape, dtype=half.dtype, pin_memory=True) for half in halves)
        for home, half in zip(homes, halves, strict=True):
            home.copy_(half, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        return OnTheWay(homes, arrived)
