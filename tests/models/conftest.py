import pytest
import torch

from gdml.models import Batch, Shape, Slides

LENGTHS = (14, 10)  # spots of the slides


@pytest.fixture
def shape():
    return Shape(dim=32, n_tokens=5, n_side=3, n_genes=7)


@pytest.fixture
def make_batch(shape):
    """Two slides on grids with gaps; the batch is all of their spots, or ``index``."""

    def make(index=None, *, seed=0, lengths=LENGTHS, expression=True):
        g = torch.Generator().manual_seed(seed)
        total, k = sum(lengths), shape.n_side**2
        tokens = torch.randn(total, shape.n_tokens, shape.dim, generator=g)
        neighbors = torch.randn(total, k, shape.dim, generator=g)
        mask = torch.rand(total, k, generator=g) > 0.3
        mask[:, k // 2] = True
        cells = [torch.randperm(25, generator=g)[:n] for n in lengths]
        grid = torch.cat([torch.stack([c // 5, c % 5], 1) for c in cells])
        index = torch.arange(total) if index is None else torch.as_tensor(index)
        return Batch(
            tokens=tokens[index],
            neighbors=(neighbors * mask[..., None])[index],
            neighbor_mask=mask[index],
            slides=Slides(tokens[:, 0], grid, tuple(lengths)),
            index=index,
            expression=torch.randn(total, shape.n_genes, generator=g)[index] + 3 if expression else None,
        )

    return make
