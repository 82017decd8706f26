from types import SimpleNamespace

import pytest
import torch

from gdml.training.data import SpotData


@pytest.fixture
def make_data():
    """Slides of spots on square grids, 1.8 tiles apart; expression that follows the features."""

    def make(lengths=(30, 20, 25), *, groups=None, seed=0, dim=8, n_genes=4, width=6, noise=0.1, **changes):
        g = torch.Generator().manual_seed(seed)
        n = sum(lengths)
        cells = torch.cat([torch.stack([torch.arange(k) // width, torch.arange(k) % width], 1) for k in lengths])
        pooled = torch.randn(n, dim, generator=g).half()
        tokens = torch.stack([pooled, *torch.randn(2, n, dim, generator=g).half()], 1)
        mask = torch.rand(n, 9, generator=g) > 0.2
        mask[:, 4] = True
        rule = torch.randn(dim, n_genes, generator=g)
        names = [f"S{i}" for i in range(len(lengths))]
        parts = {
            "tokens": tokens,
            "pooled": pooled,
            "neighbors": torch.randn(n, 9, dim, generator=g).half() * mask[..., None],
            "neighbor_mask": mask,
            "grid": cells,
            "xy": cells.flip(1).float() * 1.8,
            "slide": torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
            "names": names,
            "groups": groups or names,
            "expression": pooled.float() @ rule + noise * torch.randn(n, n_genes, generator=g) + 2,
        }
        data = SpotData.in_memory(**{**parts, **changes})
        data.parts = SimpleNamespace(**{**parts, **changes})  # what it was made of, to compare with
        return data

    return make
