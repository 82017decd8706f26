from dataclasses import replace

import numpy as np
import pytest
import torch

from gdml.models import Shape
from gdml.models.histogene import MAX_POSITIONS, HisToGene, HisToGeneConfig, SpotTransformer

SMALL = {"width": 32, "depth": 2, "heads": 4}


def model_of(shape, batch=None, seed=0, **options):
    torch.manual_seed(seed)
    model = HisToGene(HisToGeneConfig(**(SMALL | options)), shape)
    if batch is not None:
        model.prepare([batch])
    return model.eval()


def test_contract(check_contract):
    check_contract("histogene", SMALL, {"max_epochs": 2})


def test_64_spots_are_learnt_by_heart(fit_quality):
    loop = {"max_epochs": 60, "learning_rate": 1e-3}
    assert fit_quality("histogene", {**SMALL, "width": 64, "dropout": 0.0}, loop) > 0.95


def test_a_batch_of_the_recipe_is_a_slide(spots, train_on, monkeypatch):
    seen = []
    forward = HisToGene.forward
    monkeypatch.setattr(HisToGene, "forward", lambda self, batch: seen.append(batch) or forward(self, batch))
    train_on("histogene", SMALL, {"max_epochs": 1})
    assert [batch.slides.lengths for batch in seen] == [(32,), (32,)]
    assert all(len(batch) == 32 for batch in seen)


def test_some_spots_are_predicted_as_all_are(shape, make_batch):
    model, rows = model_of(shape, make_batch()), [20, 3, 4]
    with torch.no_grad():
        some, every = model(make_batch(rows)).prediction, model(make_batch()).prediction
    torch.testing.assert_close(some, every[rows], atol=1e-5, rtol=1e-5)


def test_spots_around_and_position_matter(shape, make_batch):
    model, batch = model_of(shape, make_batch()), make_batch()
    moved, other = make_batch(), make_batch()
    moved.slides.grid[0, 0] = (moved.slides.grid[0, 0] + 1) % 5
    other.slides.features[0] += 1
    with torch.no_grad():
        before = model(batch).prediction
        for changed in (moved, other):
            after = model(changed).prediction
            assert not torch.allclose(after[1:14], before[1:14], atol=1e-5), "a spot does not see its slide"
            torch.testing.assert_close(after[14:], before[14:], atol=1e-5, rtol=1e-5)  # the other slide


def test_positions_of_a_larger_grid_are_scaled_to_the_table(make_batch):
    torch.manual_seed(0)
    made, slides = SpotTransformer(32, 16, 1, 2, 2, 0.0, n_rows=5, n_cols=3).eval(), make_batch().slides
    extent = torch.tensor([[9, 5], [5, 3]])  # the first slide exceeds both tables, the second neither
    position = made._position(replace(slides, grid=slides.grid.minimum(torch.tensor([4, 2])), extent=extent), None)
    row, col = made.row.weight.detach().numpy(), made.col.weight.detach().numpy()
    grid = slides.grid.minimum(torch.tensor([4, 2])).numpy()
    for i, (r, c) in enumerate(grid):
        across, down = (r / 2, c / 2) if i < 14 else (r, c)
        expected = [np.interp(across, range(5), row[:, d]) + np.interp(down, range(3), col[:, d]) for d in range(16)]
        np.testing.assert_allclose(position[i].detach(), expected, atol=1e-5)
    # the ends of the grid take the ends of the tables, and no two rows the same entry
    lines = replace(slides, grid=torch.arange(24)[:, None].repeat(1, 2), lengths=(24,))
    position = made._position(lines, None).detach()
    torch.testing.assert_close(position[[0, -1]], torch.from_numpy(row[[0, -1]] + col[[0, -1]]))
    assert len(position.unique(dim=0)) == 24


def test_tables_are_bounded(make_batch):
    made = SpotTransformer(32, 16, 1, 2, 2, 0.0, n_rows=100_000, n_cols=1)
    assert made.row.num_embeddings == MAX_POSITIONS


def test_tables_are_sized_by_the_data():
    model = model_of(Shape(dim=8, n_tokens=1, n_side=5, n_genes=2, n_rows=78, n_cols=64))
    assert (model.transformer.row.num_embeddings, model.transformer.col.num_embeddings) == (78, 64)


@pytest.mark.parametrize("targets", ["center", "standardize", "raw"])
def test_loss_is_of_the_spots_of_the_batch_alone(shape, make_batch, targets):
    model, batch = model_of(shape, make_batch(), targets=targets), make_batch([2, 5, 17])
    every = make_batch().expression.numpy()
    scale = every.std(0) if targets == "standardize" else np.ones(7)
    with torch.no_grad():
        output = model(batch)
        losses = model.loss(batch, output, torch.Generator())
    error = 0.0
    for predicted, measured in zip(output.prediction.numpy(), batch.expression.numpy(), strict=True):
        error += sum(((p - m) / s) ** 2 for p, m, s in zip(predicted, measured, scale, strict=True)) / 21
    assert float(losses["loss"]) == pytest.approx(error, rel=1e-4)


def test_config(shape):
    with pytest.raises(ValueError, match="`features` is 'standard'. Did you mean 'standardize'"):
        HisToGeneConfig(features="standard")
    with pytest.raises(ValueError, match="`heads` must divide the token width: found 5 heads for width 32"):
        model_of(shape, heads=5)
