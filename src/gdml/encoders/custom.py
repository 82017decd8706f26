"""The user's own encoder: a module or a function."""

import hashlib
import re
from collections.abc import Callable
from typing import Self

import torch

from .timm_models import IMAGENET_MEAN, IMAGENET_STD, normalize


class CustomEncoder:
    """A user's ``torch.nn.Module`` or function as an encoder.

    Parameters
    ----------
    function
        Takes tiles (B, 3, tile_px, tile_px) float32, centred and scaled by ``mean`` and ``std``; returns
        tokens (B, T, D), the class token first if there is one, or one vector per tile (B, D). A module is
        put into evaluation mode.
    name
        Name of the embedding; that of the function or class if None.
    tile_px
        Side of the tiles, px.
    mean, std
        By channel, of pixels in [0, 1].

    Raises
    ------
    ValueError
        If what comes back has another shape.

    Notes
    -----
    The identity is a hash of what comes back for two fixed test tiles, to three digits: a change of the
    weights or of the code is noticed without looking into either.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        *,
        name: str | None = None,
        tile_px: int = 224,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        self._function = function
        self.compiled = False
        self._device = torch.device("cpu")
        if isinstance(function, torch.nn.Module):
            function.eval()
            self._device = next((t.device for t in function.parameters()), self._device)
        own = getattr(function, "__name__", type(function).__name__)
        self.name = name or re.sub(r"\W+", "-", own).strip("-") or "custom"
        self.tile_px = tile_px
        self._mean, self._std = mean, std
        tokens, _ = self.encode(_test_tiles(tile_px).to(self._device))
        self.dim = tokens.shape[2]
        digits = [f"{v:.2e}" for v in tokens.flatten().tolist()]
        self.identity = "custom " + hashlib.sha256(" ".join(digits).encode()).hexdigest()[:16]

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and pooled (B, D), float32; pooled is the first token, or the mean where T is a square."""
        out = self._function(normalize(tiles, self._mean, self._std))
        if not isinstance(out, torch.Tensor) or out.ndim not in (2, 3) or len(out) != len(tiles):
            found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"`encoder`: {self.name!r} must return a tensor (B, D) or (B, T, D) for B = {len(tiles)} tiles, found "
                f"{found}; return the features before any classifier, without a list or dict around them."
            )
        tokens = out.float() if out.ndim == 3 else out[:, None].float()
        # T square: a bare grid of patches, which has no class token to stand for the tile
        bare_grid = tokens.shape[1] > 1 and round(tokens.shape[1] ** 0.5) ** 2 == tokens.shape[1]
        pooled = tokens.mean(1) if bare_grid else tokens[:, 0]
        return (torch.cat([pooled[:, None], tokens], 1) if bare_grid else tokens), pooled

    def compile(self) -> None:
        """Have the module or function compiled by ``torch.compile`` at the next tile."""
        if not self.compiled:
            self.compiled, self._function = True, torch.compile(self._function)

    def to(self, device: torch.device | str) -> Self:
        """Move a module to ``device``; a function gets its tiles there."""
        self._device = torch.device(device)
        if isinstance(self._function, torch.nn.Module):
            self._function.to(self._device)
        return self


def _test_tiles(tile_px: int) -> torch.Tensor:
    """Two tiles (2, tile_px, tile_px, 3) uint8: a coloured ramp and a checkerboard."""
    y, x = torch.meshgrid(torch.arange(tile_px), torch.arange(tile_px), indexing="ij")
    ramp = torch.stack([255 * x // tile_px, 255 * y // tile_px, 255 * (x + y) // (2 * tile_px)], -1)
    board = (255 * ((x // 8 + y // 8) % 2))[..., None].expand(-1, -1, 3)
    return torch.stack([ramp, board]).to(torch.uint8)
