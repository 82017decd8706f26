"""NH2ST: a spot and its neighbourhood, each aligned with its expression (Qu et al., MICCAI 2025; arXiv 2506.23827)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .base import PLAIN_RECIPE, Shape, SpotModel, squared_error
from .batch import Batch, Output
from .config import ScaledConfig
from .layers import CrossBlock, masked_mean
from .scaling import Scalers


@dataclass(frozen=True)
class NH2STConfig(ScaledConfig):
    """Settings of NH2ST.

    Parameters
    ----------
    width
        Width of the space that images and expression share.
    graph_width
        Width between the two hypergraph convolutions.
    n_edge
        Most similar spots of the neighbourhood that a hyperedge joins to its central spot.
    heads, depth, mlp, dropout
        Cross-attention between the branches; ``mlp`` is a multiple of ``width``.
    decoder_width
        Hidden width of the decoder.
    fusion
        Input of the decoder: the spot and its neighbourhood, joined by cross-attention (``"cross-attention"``, the
        abstract), or the spot only (``"query"``, authors' code).
    query_weight, neighbor_weight
        Weights of the contrastive losses of the two branches; 0 switches a loss off.
    tau
        Temperature of both losses.
    negative_weight
        Factor of the similarities of unpaired spots (authors' code: 0.1).
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (``"raw"`` targets in the paper).
    """

    width: int = 512
    graph_width: int = 1024
    n_edge: int = 3
    heads: int = 8
    depth: int = 2
    mlp: int = 2
    dropout: float = 0.1
    decoder_width: int = 256
    fusion: Literal["cross-attention", "query"] = "cross-attention"
    query_weight: float = 1.0
    neighbor_weight: float = 0.5
    tau: float = 0.05
    negative_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_heads("heads")
        self.check_at_least(1, "n_edge", "depth")
        self.check_at_least(0, "query_weight", "neighbor_weight")
        self.check_positive("tau")


@torch.no_grad()
def hypergraph(x: Tensor, n_edge: int) -> Tensor:
    """Propagation of a hypergraph with an edge around each node: (N, K, D) features -> (N, K, K).

    Edge e joins node e and the ``n_edge`` nodes of the highest cosine similarity to it. With the incidence H,
    the result is D_v^-1/2 H D_e^-1 H' D_v^-1/2 (Feng et al. 2019).
    """
    with torch.autocast(x.device.type, enabled=False):
        unit = F.normalize(x.float(), dim=-1)
        similarity = unit @ unit.transpose(1, 2)
        itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        similar = similarity.masked_fill(itself, float("-inf")).topk(min(n_edge, x.shape[1] - 1), -1).indices
        incidence = itself.float() + torch.zeros_like(similarity).scatter_(2, similar, 1.0)
        incidence = incidence.transpose(1, 2)  # rows are nodes, columns edges
        of_edges, of_nodes = incidence.sum(1, keepdim=True), incidence.sum(2, keepdim=True).rsqrt()
        spread = of_nodes * incidence
        return (spread / of_edges) @ spread.transpose(1, 2)


class NeighborBranch(nn.Module):
    """Two hypergraph convolutions over the spots of a neighbourhood."""

    def __init__(self, dim: int, hidden: int, width: int, n_edge: int) -> None:
        super().__init__()
        self.n_edge = n_edge
        self.weights = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        """Features ``x`` (N, K, D) of the spots around each spot to (N, K, width)."""
        propagate = hypergraph(x, self.n_edge)
        for weight in self.weights:
            x = F.relu(weight(propagate.to(x.dtype) @ x))
        return x


def info_nce(image: Tensor, gene: Tensor, tau: float, negative_weight: float = 1.0) -> Tensor:
    """Cross-entropy of finding each image's own expression among those of the batch.

    Parameters
    ----------
    image, gene
        (N, d) pairs, rows of unit length.
    tau
        Temperature of the similarities.
    negative_weight
        Factor of the similarities of unpaired rows.

    Returns
    -------
    A scalar; 0 where there is no pair.
    """
    if not len(image):
        return image.sum()
    paired = torch.eye(len(image), dtype=torch.bool, device=image.device)
    logits = image @ gene.T / tau
    logits = torch.where(paired, logits, negative_weight * logits)
    return F.cross_entropy(logits, torch.arange(len(image), device=image.device))


class NH2ST(SpotModel):
    """NH2ST: the map of a spot, and a hypergraph of the spots around it, joined by cross-attention.

    In training each branch is aligned with expression: the spot with its own, and its neighbourhood with the mean over
    the neighbours in the training set.
    """

    config_class = NH2STConfig
    citation: ClassVar[str] = "Qu et al. (2025), NH2ST, MICCAI; arXiv 2506.23827"
    needs = frozenset({"tokens", "nearest"})
    shared_space = True
    recipe = {**PLAIN_RECIPE, "batch_size": 128, "decay_epochs": 50, "decay": 0.9}
    config: NH2STConfig

    def __init__(self, config: NH2STConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c, d, m = config, config.width, shape.n_genes
        self.scalers = Scalers(shape.dim, m, c.features, c.targets)
        self.query = nn.Linear(shape.n_tokens * shape.dim, d)
        self.neighbor = NeighborBranch(shape.dim, c.graph_width, d, c.n_edge)
        # two linear layers without an activation between them, as in the authors' code
        self.query_gene = nn.Sequential(nn.Linear(m, d), nn.Linear(d, d))
        self.neighbor_gene = nn.Sequential(nn.Linear(m, d), nn.Linear(d, d))
        if c.fusion == "cross-attention":
            self.cross = CrossBlock(d, c.depth, c.heads, c.mlp, c.dropout)
            self.norm = nn.LayerNorm(d)
        self.decoder = nn.Sequential(nn.Linear(d, c.decoder_width), nn.Linear(c.decoder_width, m))

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from each spot and its nearest ones; the embedding (N, d) is that of the spot itself."""
        if batch.nearest is None:
            raise ValueError('The batch has no nearest spots: build it with needs={"tokens", "nearest"}.')
        around = self.scalers.tokens(batch.nearest.tokens.mean(2))
        query = self.query(self.scalers.tokens(batch.tokens).flatten(1))
        nodes = self.neighbor(around)
        neighbor = nodes.mean(1)

        fused = query
        if self.config.fusion == "cross-attention":
            # one module both ways: the spot attends to its neighbourhood, and the neighbourhood to the spot
            both = self.cross(query[:, None], nodes) + self.cross(neighbor[:, None], query[:, None])
            fused = self.norm(both[:, 0])
        embedding = F.normalize(query.float(), dim=1)
        return self.predicted(self.decoder(fused), embedding, query=query, neighbor=neighbor)

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Expression (N, M) to the space of the spot itself: (N, d), rows of unit length."""
        return F.normalize(self.query_gene(self.scalers.target(expression)).float(), dim=1)

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error, and the contrastive loss of each branch."""
        expression, c = batch.measured, self.config
        options = (c.tau, c.negative_weight)
        with torch.autocast(expression.device.type, enabled=False):
            parts = {name: x.float() for name, x in output.parts.items()}
            target = self.scalers.target(expression)
            losses = {"loss_pred": squared_error(parts["prediction"], target, batch.weight)}
            total = losses["loss_pred"]
            if c.query_weight:
                image = F.normalize(parts["query"], dim=1)
                losses["loss_query"] = info_nce(image, self.embed_expression(expression), *options)
                total = total + c.query_weight * losses["loss_query"]
            if c.neighbor_weight:
                if batch.nearest is None or batch.nearest.expression is None:
                    raise ValueError("The batch has no expression of the nearest spots to learn from.")
                measured = batch.nearest.expression
                known = measured.isfinite().all(2)
                mean = masked_mean(self.scalers.target(measured), known)
                some = known.any(1)
                gene = F.normalize(self.neighbor_gene(mean[some]), dim=1)
                losses["loss_neighbor"] = info_nce(F.normalize(parts["neighbor"][some], dim=1), gene, *options)
                total = total + c.neighbor_weight * losses["loss_neighbor"]
        return {"loss": total, **losses}


MODELS = {"nh2st": NH2ST}
