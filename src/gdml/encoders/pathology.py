"""Published pathology encoders by name, from weights on the Hugging Face hub or in a file."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from gdml._errors import did_you_mean

from ._build import arguments, build
from ._hub import cached_file, hub_file
from .published import PUBLISHED, Pooling, Published
from .timm_models import TimmEncoder

__all__ = ["PUBLISHED", "Published", "PublishedEncoder", "find_weights"]


class PublishedEncoder(TimmEncoder):
    """A published pathology encoder, built and used as its authors do.

    Parameters
    ----------
    name
        Name in ``PUBLISHED``, such as ``"virchow2"``.
    pretrained
        Load the published weights; False leaves them random.
    weights
        File of weights, as published (safetensors, or a torch file of tensors); by default that of the hub's cache, or
        downloaded.
    pooling
        Embedding of a tile; by default as the authors define it. ``"class"`` is the class token, and halves the width
        of ``"class+mean"``, the class token followed by the mean of the patch tokens. ``"attention"`` is CONCH's.
    **kwargs
        As in :class:`~gdml.encoders.TimmEncoder`.

    Raises
    ------
    ValueError
        If the name or an option is unknown; when the first tile is encoded, if the weights are those of another model.
    FileNotFoundError
        If ``weights`` does not exist.
    PermissionError, ConnectionError
        If access to the weights is refused, or they cannot be downloaded.

    Notes
    -----
    With ``"class+mean"``, every token is as wide as the embedding: the class token followed by that of a patch. The mean
    of the patches' tokens is then the embedding, which is also the first token; register tokens are left out. CONCH has
    one token, its embedding: its patches lie in another space.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        weights: str | Path | None = None,
        pooling: Pooling | None = None,
        **kwargs: Any,
    ) -> None:
        self.published = _published(name)
        self.pooling = _pooling(name, self.published, pooling)
        self.um_per_px = self.published.um_per_px
        if weights is None and pretrained:
            weights = hub_file(name, self.published)
        options = {"name": name, "mean": self.published.mean, "std": self.published.std, **arguments(self.published)}
        super().__init__(self.published.architecture, pretrained=pretrained, weights=weights, **{**options, **kwargs})
        if self.pooling == "class+mean":
            self._model_prefix, self.n_prefix = self.n_prefix, 1
            self.dim *= 2

    def _create(self, pretrained: bool = False) -> Any:
        # the tensors of a file of weights replace those of the model, which need no memory then
        with nullcontext() if self._weights is None else torch.device("meta"):
            return build(self.published, self._kwargs)

    @property
    def _wanted(self) -> Published:
        return self.published

    def _identify(self, published: dict[str, Any]) -> str:
        pooled = "" if self.pooling == "class" else f" pooling={self.pooling}"
        return super()._identify({}) + pooled

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and pooled (B, D), float32, of tiles (B, tile_px, tile_px, 3) uint8."""
        tokens, pooled = super().encode(tiles)
        if self.pooling != "class+mean":
            return tokens, pooled
        patches = tokens[:, self._model_prefix :]
        both = torch.cat([patches.mean(1, keepdim=True), patches], 1)
        tokens = torch.cat([pooled[:, None].expand(-1, both.shape[1], -1), both], 2)
        return tokens, tokens[:, 0]


def find_weights(name: str) -> Path | None:
    """Look for the weights of a published encoder in the cache of the Hugging Face hub.

    Nothing is downloaded or read.

    Parameters
    ----------
    name
        Name in ``PUBLISHED``.

    Returns
    -------
    Path of the file, or None where there is none.

    Raises
    ------
    ValueError
        If the name is unknown.

    Examples
    --------
    >>> from gdml.encoders.pathology import PUBLISHED, find_weights
    >>> here = {name: path for name in PUBLISHED if (path := find_weights(name))}
    """
    published = _published(name)
    return cached_file(published.repository, published.filenames)


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        raise ValueError(f"`name` is {name!r}. {did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name]


def _pooling(name: str, published: Published, pooling: Pooling | None) -> Pooling:
    """Pooling to use; attention pooling is a part of the model that has it."""
    known = ("attention",) if published.pooling == "attention" else get_args(Pooling)[:2]
    if pooling is not None and pooling not in known:
        raise ValueError(f"`pooling` is {pooling!r}, but {name!r} has {' and '.join(map(repr, known))}.")
    return pooling or published.pooling


ENCODERS: dict[str, Callable[..., PublishedEncoder]] = {name: partial(PublishedEncoder, name) for name in PUBLISHED}
