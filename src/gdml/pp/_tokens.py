"""What is kept of the tokens of a tile."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Tokens = Literal["grid7", "all", "pooled"]
_GRID = 7


def thin_tokens(
    tokens: "torch.Tensor", pooled: "torch.Tensor", budget: Tokens, n_prefix: int | None = None
) -> "torch.Tensor":
    """Reduce tokens to a budget.

    Parameters
    ----------
    tokens, pooled
        (B, T, D) and (B, D).
    budget
        ``"all"``; ``"pooled"``, the pooled embedding alone; ``"grid7"``, the class token and the grid of
        patches averaged to 7 x 7 where it is finer.
    n_prefix
        Tokens before the grid (class, registers); None where T or T - 1 is a square, which tells.

    Returns
    -------
    (B, T', D).

    Raises
    ------
    ValueError
        If the tokens hold no square grid.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    if budget == "all":
        return tokens
    if n_prefix is None:
        n_prefix = 0 if _side(tokens.shape[1]) else 1
    n_patches = tokens.shape[1] - n_prefix
    if budget == "pooled" or n_patches == 0:
        return pooled[:, None]
    side = _side(n_patches)
    if side is None:
        raise ValueError(
            f'`tokens`: "grid7" needs a square grid after the class token, found {tokens.shape[1]} tokens; give the '
            'encoder an attribute n_prefix (tokens before the grid), or pass tokens="all" or tokens="pooled".'
        )
    first = tokens[:, :1] if n_prefix else pooled[:, None]
    grid = tokens[:, n_prefix:]
    if side > _GRID:
        image = grid.unflatten(1, (side, side)).movedim(-1, 1).float()
        grid = adaptive_avg_pool2d(image, _GRID).flatten(2).transpose(1, 2)
    return torch.cat([first.float(), grid.float()], 1)


def _side(n: int) -> int | None:
    """Side of a square grid of more than one token."""
    side = round(n**0.5)
    return side if side > 1 and side**2 == n else None
