import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import gdml
from gdml.models import Shape, get_model
from gdml.models.base import make_config
from gdml.models.bleep import BLEEPConfig, soft_clip_loss
from gdml.training import TrainedModel
from gdml.training.config import make_training_config
from gdml.training.fabric import make_fabric
from gdml.training.loop import predict, train

SMALL = {"width": 16, "n_neighbors": 5}


def build(spots, rows=None, **config):
    """Untrained, prepared on some of the spots."""
    torch.manual_seed(0)
    model = get_model("bleep")
    module = model(make_config(model, None, {**SMALL, **config}), Shape(32, 10, 5, 6))
    module.prepare(spots.in_order(torch.arange(64) if rows is None else rows, 20, model.needs))
    return module


def test_it_keeps_the_contract(check_contract):
    check_contract("bleep", SMALL, {"max_epochs": 2})


def test_one_neighbor_is_the_training_spot_itself(fit_quality):
    assert fit_quality("bleep", {"n_neighbors": 1, "dropout": 0.0}, {"max_epochs": 60, "batch_size": 64}) > 0.95


def soft_clip_by_loops(image, gene, temperature):
    """Both directions, spot by spot."""
    n = len(image)
    dot = lambda a, b: sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    softmax = lambda row: [math.exp(x - max(row)) / sum(math.exp(y - max(row)) for y in row) for x in row]
    target = [
        softmax([(dot(image[i], image[j]) + dot(gene[i], gene[j])) / 2 * temperature for j in range(n)])
        for i in range(n)
    ]
    of_gene = of_image = 0.0
    for i in range(n):
        log_p = [math.log(p) for p in softmax([dot(gene[i], image[j]) / temperature for j in range(n)])]
        of_gene -= sum(target[i][j] * log_p[j] for j in range(n)) / n
        log_p = [math.log(p) for p in softmax([dot(gene[j], image[i]) / temperature for j in range(n)])]
        of_image -= sum(target[j][i] * log_p[j] for j in range(n)) / n
    return of_image, of_gene


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_the_loss_as_loops_have_it(temperature):
    g = torch.Generator().manual_seed(0)
    image, gene = torch.randn(2, 6, 4, generator=g, dtype=torch.float64)
    found = soft_clip_loss(image, gene, temperature)
    np.testing.assert_allclose([float(x) for x in found], soft_clip_by_loops(image, gene, temperature), rtol=1e-9)


def test_the_loss_is_the_mean_of_both_directions(spots):
    module = build(spots, dropout=0.0)
    batch = spots.batch(torch.tensor([3, 60, 17, 40]), module.needs)
    losses = module.loss(batch, module(batch), torch.Generator())
    image = module.image(module.scalers.pooled(batch.pooled)).detach()
    gene = module.gene(batch.expression - spots.expression.mean(0)).detach()  # centred on the training spots
    of_image, of_gene = soft_clip_by_loops(image, gene, 1.0)
    assert losses["loss_image"].item() == pytest.approx(of_image, rel=1e-4)
    assert losses["loss_gene"].item() == pytest.approx(of_gene, rel=1e-4)
    assert losses["loss"].item() == pytest.approx((of_image + of_gene) / 2, rel=1e-4)
    losses["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("weighting", ["mean", "similarity"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_prediction_as_a_loop_has_it(spots, weighting, normalize):
    rows = torch.cat([torch.arange(20), torch.arange(40, 64)])
    module = build(spots, rows, weighting=weighting, normalize=normalize, temperature=0.7).eval()
    batch = spots.batch(torch.arange(15, 30), module.needs)
    with torch.no_grad():
        output = module(batch)
        image = module.image(module.scalers.pooled(batch.pooled)).numpy()
        gene = module.gene(module.scalers.target(spots.expression[rows])).numpy()
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    for i in range(len(batch)):
        cosine = unit(gene) @ unit(image[i])
        near = np.argsort(-cosine, kind="stable")[:5]
        weight = np.full(5, 0.2)
        if weighting == "similarity":
            logit = (cosine[near] if normalize else gene[near] @ image[i]) / 0.7
            weight = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
        expected = weight @ spots.expression[rows].numpy()[near]
        np.testing.assert_allclose(output.prediction[i], expected, atol=1e-5)
    np.testing.assert_allclose(output.embedding, unit(image), atol=1e-6)


def test_both_embeddings_have_unit_length(spots):
    module = build(spots).eval()
    image = module(spots.batch(torch.arange(64), module.needs)).embedding
    gene = module.embed_expression(spots.expression)
    for x in (image, gene):
        assert x.shape == (64, 16)
        torch.testing.assert_close(x.norm(dim=1), torch.ones(64))


def test_training_predicts_the_mean(spots):
    module = build(spots)
    found = module(spots.batch(torch.arange(5, 9), module.needs)).prediction
    torch.testing.assert_close(found, spots.expression.mean(0).expand(4, -1))


def test_the_bank_is_embedded_with_the_present_weights(spots, predict_spots):
    module = build(spots)
    first = predict_spots(module)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    with torch.no_grad():
        for p in module.gene.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    second = predict_spots(module)
    assert not torch.equal(first, second)
    # without a switch in between
    batch = spots.batch(torch.arange(64), module.needs)
    module.load_state_dict(state)
    torch.testing.assert_close(module(batch).prediction, first)


def test_the_bank_is_embedded_once(spots):
    module = build(spots).eval()
    batch = spots.batch(torch.arange(8), module.needs)
    module(batch)
    keys = module.keys
    module(batch)
    assert module.keys is keys and keys.shape == (64, 16)
    assert module.train().keys is None and module.eval().keys is None
    assert "keys" not in module.state_dict()


def test_the_bank_holds_training_spots_alone(spots):
    """With a validation split no held-out spot is retrieved, whatever the data hold."""
    rows, held = torch.arange(40), torch.arange(40, 64)
    data = replace(spots, expression=spots.expression.clone())
    data.expression[held] += 100
    model = get_model("bleep")
    loop = make_training_config(model.recipe, {"max_epochs": 2, "batch_size": 20})
    fabric = make_fabric("cpu", precision="fp32")
    make = lambda: model(make_config(model, None, SMALL), Shape(32, 10, 5, 6))
    module, run = train(make, data, rows, loop, fabric, seed=0, validation=held)
    assert torch.equal(module.bank.spot, rows) and torch.equal(module.bank.expression, spots.expression[rows])
    assert module.shape.n_bank == 40 and len(run.history["val_pcc"]) == 2
    assert predict(module, data, fabric, rows=held)[0].max() < spots.expression.max() + 1e-5


def test_saved_and_loaded(spots, train_on, predict_spots, tmp_path):
    module = train_on("bleep", SMALL, {"max_epochs": 2})
    TrainedModel(
        module=module,
        name="bleep",
        panel=tuple("ABCDEF"),
        normalization={},
        features={"encoder": "stain"},
        tiles={},
    ).save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    assert again.module.shape.n_bank == 64
    assert torch.equal(predict_spots(again.module), predict_spots(module))


def test_more_neighbors_than_spots(spots):
    with pytest.raises(ValueError, match=r"`n_neighbors` is 21, but there are 20 .* config=\{'n_neighbors': 5\}"):
        build(spots, torch.arange(20), n_neighbors=21)
    module = build(spots, torch.arange(20), n_neighbors=20).eval()
    found = module(spots.batch(torch.arange(30, 34), module.needs)).prediction
    torch.testing.assert_close(found, spots.expression[:20].mean(0).expand(4, -1))


def test_features_that_are_all_alike(spots, make_spots):
    module = build(make_spots(pooled=torch.zeros(64, 32))).eval()
    assert module(spots.batch(torch.arange(9), module.needs)).prediction.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("weighting", "means", "`weighting` is 'means'. Did you mean 'mean'"),
        ("features", "standard", "`features` is 'standard'. Did you mean 'standardize'"),
        ("targets", "centre", "`targets` is 'centre'. Did you mean 'center'"),
        ("temperature", 0.0, "`temperature` must be positive, found 0.0"),
        ("n_neighbors", 0, "`n_neighbors` must be at least 1, found 0"),
    ],
)
def test_settings_that_can_not_be(field, value, match):
    with pytest.raises(ValueError, match=match):
        BLEEPConfig(**{field: value})
