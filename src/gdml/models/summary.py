"""What a linear model reads of a spot: mean and spread of its tokens and of its neighbour tiles."""

import torch
from torch import Tensor


def summarize(tokens: Tensor, neighbors: Tensor, mask: Tensor) -> Tensor:
    """Summarise the features of spots.

    Parameters
    ----------
    tokens
        (N, T, D) local tokens.
    neighbors
        (N, K, D) features of the neighbour tiles.
    mask
        (N, K) bool, True where the tile lies inside the image.

    Returns
    -------
    (N, 4 D): mean and population standard deviation over the local tokens, then over the neighbours inside the image;
    zeros where there is none.
    """
    tokens, inside = tokens.float(), mask[..., None].float()
    n = inside.sum(1).clamp(min=1)
    around = (neighbors.float() * inside).sum(1) / n
    spread = (((neighbors.float() - around[:, None]).square() * inside).sum(1) / n).sqrt()
    return torch.cat([tokens.mean(1), tokens.std(1, correction=0), around, spread], 1)
