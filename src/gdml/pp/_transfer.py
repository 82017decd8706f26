"""Tiles to the device and features back, beside the computation where the device allows it.

A DataLoader has no place here: its workers are processes, to which a slide that was opened by the user, or lies in
memory, cannot be sent; and its batches are new memory each time, where page-locked buffers are used again and again.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


@dataclass
class Pending:
    """Features whose computation or copy may not have finished; :meth:`get` waits for them."""

    tensors: "tuple[torch.Tensor, ...]"
    copied: Any = None  # CUDA event

    def get(self) -> tuple[NDArray[np.float16], ...]:
        """Arrays in memory, float16."""
        if self.copied is not None:
            self.copied.synchronize()
        return tuple(tensor.numpy() for tensor in self.tensors)


@dataclass
class Transfer:
    """Copies to a device and back.

    On CUDA, tiles lie in page-locked memory and are copied by a stream of their own, so that the copy of one batch
    overlaps with the computation of the one before; features are fetched without waiting for them. On other devices
    these are plain copies, on the CPU none.
    """

    device: "torch.device"
    _stream: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            import torch

            self._stream = torch.cuda.Stream(self.device)

    def buffer(self, n: int, side: int) -> "torch.Tensor":
        """Memory for ``n`` tiles, (n, side, side, 3) uint8."""
        import torch

        return torch.empty((n, side, side, 3), dtype=torch.uint8, pin_memory=self._stream is not None)

    def to_device(self, tiles: "torch.Tensor") -> "torch.Tensor":
        """Tiles on the device; their buffer may be overwritten once this returns."""
        if self._stream is None:
            return tiles.to(self.device)
        import torch

        with torch.cuda.stream(self._stream):
            copy = tiles.to(self.device, non_blocking=True)
        copy.record_stream(torch.cuda.current_stream(self.device))
        self._stream.synchronize()  # waits for the copy alone: the computation of the batch before goes on
        return copy

    def to_host(self, *tensors: "torch.Tensor") -> Pending:
        """Features as float16, complete when :meth:`Pending.get` returns."""
        import torch

        # what float16 can't hold becomes infinite, which the store refuses
        halves = tuple(tensor.to(torch.float16) for tensor in tensors)
        if self._stream is None:
            return Pending(tuple(half.cpu() for half in halves))
        copies = tuple(torch.empty(half.shape, dtype=half.dtype, pin_memory=True) for half in halves)
        for copy, half in zip(copies, halves, strict=True):
            copy.copy_(half, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))
        return Pending(copies, copied)
