"""How many tiles to encode at once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Enough to fill the hardware; the same for everyone with enough memory, so that features are the same to the bit.
_MOST = {"cpu": 64, "cuda": 256, "mps": 64}
_TILE_BYTES = 32 << 20  # of activations for 224 x 224 px, generous: ViT-L/16 takes 20 MB, a ResNet-18 10 MB
_SHARE = 0.5  # of the free memory


def batch_size(device: "torch.device", tile_px: int) -> int:
    """Tiles that fit the free memory of ``device``, a power of two of at most 64 (256 on CUDA).

    Parameters
    ----------
    device
        Where the encoder runs.
    tile_px
        Side of the tiles, px.

    Returns
    -------
    At least 1.
    """
    most = _MOST[device.type]
    fits = _SHARE * _free(device) / (_TILE_BYTES * (tile_px / 224) ** 2)
    while most > 1 and most > fits:
        most //= 2
    return most


def _free(device: "torch.device") -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a type for it on CUDA only."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "not enough memory", "can't allocate memory")
    )
