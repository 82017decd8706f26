from dataclasses import replace

import numpy as np
import pytest
import torch

from gdml.models.nh2st import NH2ST, NeighborBranch, NH2STConfig, hypergraph, info_nce
from gdml.training.config import TrainingConfig

SMALL = {"width": 16, "graph_width": 12, "heads": 2, "depth": 1, "decoder_width": 12}


def make(shape, batch=None, **options):
    torch.manual_seed(0)
    model = NH2ST(NH2STConfig(**(SMALL | options)), shape)
    if batch is not None:
        model.prepare([batch])
    return model.eval()


@pytest.mark.parametrize("fusion", ["cross-attention", "query"])
def test_keeps_the_contract(check_contract, fusion):
    check_contract("nh2st", SMALL | {"fusion": fusion}, {"max_epochs": 2})


def test_learns_64_spots_by_heart(fit_quality):
    config = SMALL | {"dropout": 0.0, "width": 32}
    assert fit_quality("nh2st", config, {"max_epochs": 60, "learning_rate": 3e-3, "batch_size": 64}) > 0.95


def test_recipe_is_a_training_config():
    assert TrainingConfig(**NH2ST.recipe).decay_epochs == 50


def loop_hypergraph(x, n_edge):
    """Incidence edge by edge, then the normalisation of Feng et al. entry by entry, for one neighbourhood."""
    k = len(x)
    incidence = np.zeros((k, k))
    for edge in range(k):
        cosine = [x[edge] @ x[node] / np.linalg.norm(x[edge]) / np.linalg.norm(x[node]) for node in range(k)]
        others = sorted((node for node in range(k) if node != edge), key=lambda node: -cosine[node])
        for node in (edge, *others[:n_edge]):
            incidence[node, edge] = 1
    of_node, of_edge = incidence.sum(1), incidence.sum(0)
    answer = np.zeros((k, k))
    for a in range(k):
        for b in range(k):
            for edge in range(k):
                answer[a, b] += incidence[a, edge] * incidence[b, edge] / of_edge[edge]
            answer[a, b] /= np.sqrt(of_node[a] * of_node[b])
    return answer


@pytest.mark.parametrize("n_edge", [1, 3, 20])
def test_hypergraph_agrees_with_loops(n_edge):
    x = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(n_edge))
    found = hypergraph(x, n_edge)
    for i in range(4):
        np.testing.assert_allclose(found[i], loop_hypergraph(x[i].numpy(), n_edge), atol=1e-6)


@torch.no_grad()
def test_convolutions_agree_with_loops():
    torch.manual_seed(0)
    made, x = NeighborBranch(6, 10, 4, 3), torch.randn(2, 9, 6)
    for i in range(2):
        spread, rows = loop_hypergraph(x[i].numpy(), 3), x[i].numpy()
        for layer in made.weights:
            rows = np.maximum(spread @ (rows @ layer.weight.numpy().T) + layer.bias.numpy(), 0)
        np.testing.assert_allclose(made(x)[i], rows, atol=1e-5)


def loop_info_nce(image, gene, tau, negative_weight):
    total = 0.0
    for i in range(len(image)):
        logits = [image[i] @ gene[j] / tau * (1 if i == j else negative_weight) for j in range(len(gene))]
        total += np.log(np.exp(logits).sum()) - logits[i]
    return total / len(image)


@pytest.mark.parametrize("negative_weight", [1.0, 0.1])
def test_info_nce_agrees_with_loops(negative_weight):
    g = torch.Generator().manual_seed(0)
    image, gene = (torch.nn.functional.normalize(torch.randn(6, 4, generator=g), dim=1) for _ in range(2))
    expected = loop_info_nce(image.double().numpy(), gene.double().numpy(), 0.05, negative_weight)
    assert info_nce(image, gene, 0.05, negative_weight).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_no_pairs_is_zero():
    assert info_nce(torch.zeros(0, 4), torch.zeros(0, 4), 0.05).item() == 0


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@torch.no_grad()
@pytest.mark.parametrize("targets", ["center", "raw"])
def test_loss_agrees_with_loops(shape, make_batch, targets):
    batch = make_batch()
    model = make(shape, batch, targets=targets, query_weight=0.7, neighbor_weight=0.4, tau=0.2)
    batch.nearest.expression[3, 2:] = torch.nan
    batch.nearest.expression[5] = torch.nan  # nothing to learn from: left out
    output = model(batch)
    mean = batch.expression.numpy().mean(0) if targets == "center" else np.zeros(shape.n_genes)
    encode = lambda layers, rows: unit(layers(torch.tensor(np.stack(rows), dtype=torch.float32)).numpy())

    predicted, measured = output.prediction.numpy(), batch.expression.numpy()
    squared = np.mean([(p - y) ** 2 for p, y in zip(predicted.ravel(), measured.ravel(), strict=True)])
    gene = encode(model.query_gene, [row - mean for row in measured])
    query = loop_info_nce(unit(output.parts["query"].numpy()), gene, 0.2, 1.0)
    around, kept = [], []
    for i, neighbors in enumerate(batch.nearest.expression.numpy()):
        known = [row - mean for row in neighbors if not np.isnan(row).any()]
        if known:
            around.append(np.mean(known, 0))
            kept.append(i)
    assert len(kept) == len(batch) - 1
    gene = encode(model.neighbor_gene, around)
    neighbor = loop_info_nce(unit(output.parts["neighbor"].numpy()[kept]), gene, 0.2, 1.0)

    losses = model.loss(batch, output, torch.Generator())
    found = [losses[f"loss_{name}"].item() for name in ("pred", "query", "neighbor")]
    assert found == pytest.approx([squared, query, neighbor], rel=1e-4)
    assert losses["loss"].item() == pytest.approx(squared + 0.7 * query + 0.4 * neighbor, rel=1e-4)


def test_unknown_neighbours_leave_the_gradient_finite(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch)
    batch.nearest.expression[:] = torch.nan
    losses = model.loss(batch, model(batch), torch.Generator())
    losses["loss"].backward()
    assert losses["loss_neighbor"].item() == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_weights_of_zero_switch_a_loss_off(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch, query_weight=0.0, neighbor_weight=0.0)
    losses = model.loss(batch, model(batch), torch.Generator())
    assert set(losses) == {"loss", "loss_pred"} and losses["loss"] == losses["loss_pred"]


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["cross-attention", "query"])
def test_neighbours_reach_the_prediction_by_cross_attention_alone(shape, make_batch, fusion):
    batch = make_batch()
    model = make(shape, batch, fusion=fusion)
    before = model(batch)
    tokens = batch.nearest.tokens.clone()
    tokens[:, 1:] *= 2
    after = model(replace(batch, nearest=replace(batch.nearest, tokens=tokens)))
    assert torch.equal(before.prediction, after.prediction) == (fusion == "query")
    assert torch.equal(before.embedding, after.embedding)
    assert not torch.equal(before.parts["neighbor"], after.parts["neighbor"])


@torch.no_grad()
def test_one_module_joins_the_branches_both_ways(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch)
    parts = model(batch).parts
    nodes = model.neighbor(model.scalers.tokens(batch.nearest.tokens.mean(2)))
    torch.testing.assert_close(parts["neighbor"], nodes.mean(1))
    for i in range(len(batch)):
        query, neighbor = parts["query"][i][None, None], parts["neighbor"][i][None, None]
        joined = model.cross(query, nodes[i][None]) + model.cross(neighbor, query)
        expected = model.decoder(model.norm(joined))[0, 0]
        torch.testing.assert_close(parts["prediction"][i], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_shared_space(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch)
    for embedding in (model(batch).embedding, model.embed_expression(batch.expression)):
        assert embedding.shape == (len(batch), 16)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(batch)))


@torch.no_grad()
def test_a_batch_that_holds_a_slide_twice_predicts_it_twice(shape, make_batch):
    once = make_batch(lengths=(14,))
    model = make(shape, once)
    nearest = replace(once.nearest, tokens=torch.cat([once.nearest.tokens] * 2))
    twice = replace(once, tokens=torch.cat([once.tokens] * 2), nearest=nearest, index=torch.cat([once.index] * 2))
    torch.testing.assert_close(model(twice).prediction, torch.cat([model(once).prediction] * 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "cross"}, "`fusion` is 'cross'. Did you mean 'cross-attention'"),
        ({"features": "mean"}, "`features` is 'mean'"),
        ({"targets": "scale"}, "`targets` is 'scale'"),
        ({"heads": 7}, "`heads` must divide `width`: found 7 heads for width 512"),
        ({"n_edge": 0}, "`n_edge` must be at least 1, found 0"),
        ({"query_weight": -1.0}, "`query_weight` must not be negative"),
        ({"tau": 0.0}, "`tau` must be positive"),
    ],
)
def test_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        NH2STConfig(**options)


def test_a_batch_without_nearest_spots(shape, make_batch):
    batch = make_batch()
    with pytest.raises(ValueError, match='needs={"tokens", "nearest"}'):
        make(shape, batch)(replace(batch, nearest=None))
