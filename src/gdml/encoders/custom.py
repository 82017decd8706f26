"""The user's own encoder: a module or a function."""

import re
from collections.abc import Callable
from typing import Self

import torch

from ._identity import content_identity
from .published import IMAGENET_MEAN, IMAGENET_STD
from .timm_models import normalize


class CustomEncoder:
    """A user's ``torch.nn.Module`` or function as an encoder.

    Parameters
    ----------
    function
        Takes tiles (B, 3, tile_px, tile_px) float32, centred and scaled by ``mean`` and ``std``; returns
        tokens (B, T, D), the class token first if there is one, or one vector per tile (B, D). A module is
        put into evaluation mode.
    name
        Name of the embedding; by default that of the function or class.
    tile_px
        Side of the tiles, px.
    mean, std
        By channel, of pixels in [0, 1].
    identity
        Text under which features are stored, in place of a hash of code and weights. It is then up to you to give
        another one when weights or code change: features stored under the same identity are used again.

    Raises
    ------
    ValueError
        If the result has another shape, or if ``identity`` is needed: code or weights cannot be read.

    Notes
    -----
    By default the identity is a hash of bytecode and weights: of the function or class, the functions, values and
    modules that it refers to, and of names and versions of the packages that it uses. It does not depend on the
    machine; another version of Python may change it, after which features are computed again.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        *,
        name: str | None = None,
        tile_px: int = 224,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        identity: str | None = None,
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
        self.identity = "custom " + (
            content_identity(function, tile_px=tile_px, mean=mean, std=std) if identity is None else f"named {identity}"
        )
        tokens, _ = self.encode(torch.zeros((2, tile_px, tile_px, 3), dtype=torch.uint8, device=self._device))
        self.dim = tokens.shape[2]

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and pooled (B, D), float32, of tiles (B, tile_px, tile_px, 3) uint8.

        Pooled is the first token, or the mean where T is a square: a grid of patches without a class token. The mean
        then comes first among the tokens.
        """
        out = self._function(normalize(tiles, self._mean, self._std))
        if not isinstance(out, torch.Tensor) or out.ndim not in (2, 3) or len(out) != len(tiles):
            found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise ValueError(
                f"`encoder`: {self.name!r} must return a tensor (B, D) or (B, T, D) for B = {len(tiles)} tiles, found "
                f"{found}; return the features before any classifier, without a list or dict around them."
            )
        tokens = out.float() if out.ndim == 3 else out[:, None].float()
        bare_grid = tokens.shape[1] > 1 and round(tokens.shape[1] ** 0.5) ** 2 == tokens.shape[1]
        pooled = tokens.mean(1) if bare_grid else tokens[:, 0]
        return (torch.cat([pooled[:, None], tokens], 1) if bare_grid else tokens), pooled

    def compile(self) -> None:
        """Compile the module or function with ``torch.compile``, when the next tile is encoded."""
        if not self.compiled:
            self.compiled, self._function = True, torch.compile(self._function)

    def to(self, device: torch.device | str) -> Self:
        """Move a module to ``device``; a function receives its tiles on it."""
        self._device = torch.device(device)
        if isinstance(self._function, torch.nn.Module):
            self._function.to(self._device)
        return self
