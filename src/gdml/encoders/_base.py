"""The protocol of an encoder."""

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Encoder(Protocol):
    """A frozen model that turns tile images into tokens.

    Attributes
    ----------
    name
        Short name; the pooled embedding is written to ``obsm["X_{name}"]``.
    identity
        Identifies weights and version. Features are stored under it, so encoders that give different numbers need
        different identities.
    dim
        Width of a token, D.
    tile_px
        Side of the tiles, px.

    Notes
    -----
    Optional attributes: ``n_prefix``, the number of tokens before the grid of patches (needed with register tokens);
    ``um_per_px``, the scales of the training images, µm per px; ``full_precision``, True for an encoder that must not run
    in bfloat16; ``feature_names``, a tuple of D distinct names of the columns of the embedding, for encoders whose features
    can be named; and a method ``compile()`` for ``torch.compile``, after which ``compiled`` is True.
    """

    name: str
    identity: str
    dim: int
    tile_px: int

    def encode(self, tiles: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Encode a batch of tiles.

        Parameters
        ----------
        tiles
            RGB images, uint8, (B, tile_px, tile_px, 3), on any device.

        Returns
        -------
        Tokens, float32, (B, T, D), the class or whole-tile token first if there is one, and the pooled embedding,
        float32, (B, D).
        """
        ...

    def to(self, device: "torch.device | str") -> Self:
        """Move the weights to ``device`` and return the encoder."""
        ...
