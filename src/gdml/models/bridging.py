"""Parts of EGN: how exemplars reach the tokens of a tile, and how the tokens are pooled.

Yang et al., WACV 2023, section 3, with the authors' code where the text leaves a choice.
"""

import torch
from torch import Tensor, nn

from .layers import Block, FeedForward


class Projector(nn.Module):
    """Bring the tile's global view, the exemplars and their expression to the width of the tokens.

    Parameters
    ----------
    dim, n_genes, width
        Widths of a feature, of the expression, and of the answers.
    depth, dropout
        Of the feed-forward layers that global view and exemplars share.
    """

    def __init__(self, dim: int, n_genes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.view = nn.Linear(dim, width)
        self.exemplar = nn.Linear(dim + n_genes, width)
        self.expression = nn.Linear(n_genes, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), FeedForward(width, width, dropout)) for _ in range(depth)
        )

    def forward(self, view: Tensor, exemplars: Tensor, expression: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D), (N, k, D) and (N, k, M) to (N, width), (N, k, width) and (N, k, width)."""
        both = torch.cat([self.view(view)[:, None], self.exemplar(torch.cat([exemplars, expression], 2))], 1)
        for layer in self.layers:
            both = both + layer(both)
        return both[:, 0], both[:, 1:], self.expression(expression)


class Bridge(nn.Module):
    """Exemplar-bridging block: exemplars revise the global view, which gates what the tokens say.

    Parameters
    ----------
    width
        Token width.
    n_tokens
        Tokens T; each has a gate of its own per head.
    heads, head_width
        Of what is gated.
    """

    def __init__(self, width: int, n_tokens: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.interact = nn.Sequential(nn.Linear(2 * width, 256), nn.SiLU(), nn.Linear(256, 2 * width))
        self.value = nn.Linear(width, width)
        self.norm_exemplar = nn.LayerNorm(width)
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * n_tokens))
        self.token = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.to_tokens = nn.Linear(inner, width, bias=False)
        self.to_view = nn.Linear(inner, width, bias=False)

    def forward(
        self, tokens: Tensor, view: Tensor, exemplars: Tensor, expression: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Revise tokens (N, T, width), global view (N, width) and exemplars (N, k, width)."""
        n, t, _ = tokens.shape
        difference = view[:, None] - exemplars
        for_view, for_exemplar = self.interact(torch.cat([difference, exemplars], 2)).sigmoid().chunk(2, 2)
        value = self.value(expression)
        view = view + (for_view * value).mean(1)
        exemplars = self.norm_exemplar(exemplars + for_exemplar * value)

        gate = self.gate(view).sigmoid().view(n, self.heads, t).transpose(1, 2)
        gated = (self.token(tokens).view(n, t, self.heads, -1) * gate[..., None]).flatten(2)
        return tokens + self.to_tokens(gated), view + self.to_view(gated.mean(1)), exemplars


class ExemplarLayer(nn.Module):
    """Transformer layer with an exemplar-bridging block between its attention and its feed-forward layer.

    Parameters
    ----------
    width, heads, mlp, dropout
        Of the transformer layer.
    bridge
        None: a plain layer.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, bridge: Bridge | None) -> None:
        super().__init__()
        self.block = Block(width, heads, mlp, dropout)
        self.bridge = bridge

    def forward(
        self, tokens: Tensor, position: Tensor, view: Tensor, exemplars: Tensor, expression: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Bridge`; the ``position`` (T, width) of the tokens is told to every attention anew."""
        block = self.block
        tokens = tokens + block.attention(block.norm1(tokens + position))
        if self.bridge is not None:
            tokens, view, exemplars = self.bridge(tokens, view, exemplars, expression)
        return tokens + block.mlp(block.norm2(tokens)), view, exemplars


class ResidualPooling(nn.Module):
    """Mean over the tokens plus an attention-weighted mean, channel by channel: (N, T, width) -> (N, width).

    Zhu, Wu (2021), Residual attention, ICCV.

    Parameters
    ----------
    width
        Token width.
    sharpness, weight
        Scale of the logits; weight of the attended mean.
    """

    def __init__(self, width: int, sharpness: float, weight: float) -> None:
        super().__init__()
        self.score = nn.Linear(width, width)
        self.sharpness, self.weight = sharpness, weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool."""
        score = self.score(tokens).float()
        attended = (score * (self.sharpness * score).softmax(1)).sum(1)
        return score.mean(1) + self.weight * attended
