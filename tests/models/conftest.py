from dataclasses import asdict, replace

import pytest
import torch

from gdml import metrics
from gdml.models import Batch, Nearest, Shape, Slides, get_model
from gdml.models.base import make_config
from gdml.models.ridge import stripes
from gdml.models.summary import summarize
from gdml.training.config import make_training_config
from gdml.training.data import SpotData
from gdml.training.fabric import make_fabric
from gdml.training.loop import predict, train

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
        measured = torch.randn(total, shape.n_genes, generator=g) + 3
        nearest = []
        for start, n in zip((0, *lengths), lengths, strict=False):
            cell = grid[start : start + n].float()
            order = torch.cdist(cell, cell).argsort(dim=1, stable=True)
            nearest.append(order[:, torch.arange(9) % n] + start)
        nearest = torch.cat(nearest)
        return Batch(
            tokens=tokens[index],
            neighbors=(neighbors * mask[..., None])[index],
            neighbor_mask=mask[index],
            pooled=tokens[index, 0],
            slide=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[index],
            spot=index,
            summary=summarize(tokens, neighbors, mask)[index],
            stripe=torch.cat([stripes(part) for part in grid.split(lengths)])[index],
            slides=Slides(tokens[:, 0], grid, tuple(lengths), nearest),
            index=index,
            expression=measured[index] if expression else None,
            counts=torch.poisson(measured.exp(), generator=g)[index] if expression else None,
            nearest=Nearest(tokens[nearest[index]], measured[nearest[index]] if expression else None),
        )

    return make


N_SPOTS = 64


@pytest.fixture
def spots(make_spots):
    """64 spots on two slides."""
    return make_spots()


@pytest.fixture
def make_spots():
    """Features and expression of 64 spots, some of them changed."""
    return lambda **changes: SpotData.in_memory(**{**_parts(), **changes})


def _parts():
    """64 spots on two slides; half of the variance of their expression is noise, which has to be memorised."""
    g = torch.Generator().manual_seed(0)
    dim, n_genes = 32, 6
    pooled = torch.randn(N_SPOTS, dim, generator=g)
    neighbors = torch.randn(N_SPOTS, 25, dim, generator=g)
    neighbors[:, 12] = pooled
    cells = torch.stack([torch.arange(32) // 6, torch.arange(32) % 6], 1).repeat(2, 1)
    signal = pooled @ torch.randn(dim, n_genes, generator=g) / dim**0.5
    expression = signal + torch.randn(N_SPOTS, n_genes, generator=g) + 2
    return {
        "tokens": torch.cat([pooled[:, None], pooled[:, None] + torch.randn(N_SPOTS, 9, dim, generator=g)], 1).half(),
        "pooled": pooled.half(),
        "neighbors": neighbors.half(),
        "neighbor_mask": torch.ones(N_SPOTS, 25, dtype=torch.bool),
        "grid": cells,
        "xy": cells.flip(1) * 1.8 + 0.05 * torch.randn(N_SPOTS, 2, generator=g),
        "slide": torch.arange(2).repeat_interleave(32),
        "names": ["A", "B"],
        "groups": ["a", "b"],
        "expression": expression,
        "counts": torch.poisson(expression.clamp(min=0).exp(), generator=g),
    }


@pytest.fixture
def train_on(spots):
    """Train a model on the 64 spots, without validation; options are fields of its config and of the loop."""

    def run(name, config=None, training=None, *, data=spots, seed=0):
        model = get_model(name)
        shape = replace(data.shape(), n_side=5, n_rows=6, n_cols=6)
        made = model.adapt(
            make_config(model, None, config or {}), {"order": "all", "target_sum": 1e4, "log": "e", "smooth": False}
        )
        loop = make_training_config(model.recipe, training)
        fabric = make_fabric("cpu", precision="fp32")
        module, _ = train(lambda: model(made, shape), data, torch.arange(len(data)), loop, fabric, seed=seed)
        return module

    return run


@pytest.fixture
def predict_spots(spots):
    """Predictions of a model at the 64 spots."""
    fabric = make_fabric("cpu", precision="fp32")
    return lambda module, data=spots: predict(module, data, fabric)[0]


@pytest.fixture
def fit_quality(spots, train_on, predict_spots):
    """Mean PCC, over genes, of a trained model's predictions at the 64 spots that it was trained on."""

    def run(name, config=None, training=None):
        predicted = predict_spots(train_on(name, config, training))
        return float(metrics.nan_mean(metrics.pearson_per_gene(spots.expression, predicted)))

    return run


@pytest.fixture
def check_contract(spots, train_on, predict_spots):
    """What every model must hold: deterministic, blind to what it predicts, whole after a save, true to its spots."""

    def check(name, config, training):
        first, again = (train_on(name, config, training) for _ in range(2))
        predicted = predict_spots(first)
        assert predicted.shape == spots.expression.shape and predicted.isfinite().all()
        assert torch.equal(predicted, predict_spots(first)), "evaluation is not deterministic"
        assert torch.equal(predicted, predict_spots(again)), "the same seed gives other numbers"

        blind = replace(spots, expression=None, counts=None)
        assert torch.equal(predicted, predict_spots(first, blind)), "the prediction reads the expression"

        # a model is made anew from its config and shape, as it is when it is read from disk
        state = {k: v.clone() for k, v in first.state_dict().items()}
        copy = type(first)(make_config(type(first), None, asdict(first.config)), Shape(**asdict(first.shape)))
        copy.load_state_dict(state)
        assert torch.equal(predicted, predict_spots(copy.eval())), "a saved model predicts otherwise"

        # a slide alone is predicted as beside others
        alone = spots.select([1])
        torch.testing.assert_close(predict_spots(first, alone), predicted[32:], atol=1e-4, rtol=1e-4)

    return check
