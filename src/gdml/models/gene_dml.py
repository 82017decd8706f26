"""Gene-DML: dual-pathway multi-level discrimination (Song, Fan, Chang, Cai; WACV 2026; arXiv 2507.14670)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .base import Shape, SpotModel, squared_error
from .batch import Batch, Output
from .branches import NeighborTransformer, SlideTransformer
from .discrimination import group_loss, instance_loss
from .dropout import Dropout
from .floor import Floor
from .gene_dml_config import PAPER_LABELS_GENE_SPECIFIC, PRESET_RECIPES, PRESETS, GeneDMLConfig, published_grids
from .layers import Block, FeedForward, ProjectionHead
from .scaling import Moments, Standardize

SCALES = ("local", "neighbor", "global")


class GeneEncoder(ProjectionHead):
    """Expression to the shared space (equation 1)."""

    def __init__(self, n_genes: int, width: int, dropout: float) -> None:
        super().__init__(n_genes, width, dropout)
        self.feed_forward = FeedForward(width, 2 * width, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Embed expression ``x`` (N, M) in (N, d), rows of unit length."""
        return F.normalize(self.feed_forward(super().forward(x)).float(), dim=1)


class ScaleFusion(nn.Module):
    """Self-attention over the tokens of all scales, then a feed-forward layer.

    With ``residual`` the input of the last feed-forward layer is added to its output (the authors' code does not).
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, *, residual: bool, **options: bool) -> None:
        super().__init__()
        self.block = Block(width, heads, mlp, dropout, **options)
        self.feed_forward = FeedForward(width, 2 * width, dropout)
        self.residual = residual

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:
        """Tokens ``x`` (N, T, d) of each spot to (N, T, d); only those ``inside`` (N, T) are attended to."""
        outside = torch.zeros(inside.shape, dtype=x.dtype, device=x.device).masked_fill_(~inside, float("-inf"))
        x = self.block(x, outside[:, None, None])
        y = self.feed_forward(x)
        return x + y if self.residual else y


def _means(x: Tensor, inside: Tensor, sizes: list[int]) -> list[Tensor]:
    """Mean of the tokens of each scale, and of all, that are ``inside``.

    Parameters
    ----------
    x
        (N, T, d) tokens, scale by scale.
    inside
        (N, T) bool.
    sizes
        Tokens of each scale; they add up to T.

    Returns
    -------
    (N, d) for each scale, then for all tokens.
    """
    kept = inside.new_zeros(len(x), len(sizes), x.shape[1])
    for scale, part in enumerate(inside.split(sizes, 1)):
        kept[:, scale].split(sizes, 1)[scale].copy_(part)
    # one product reads the tokens once, for all means
    sums, counts = torch.bmm(kept.to(x.dtype), x).float(), kept.sum(2, keepdim=True)
    means = [*(sums / counts).unbind(1), sums.sum(1) / counts.sum(1)]
    return [mean.to(x.dtype) for mean in means]


def _head(width: int, n_genes: int, kind: str, dropout: float) -> nn.Module:
    """Expression head: the paper's d -> 3d -> d -> M with ReLU, or one linear layer."""
    if kind == "linear":
        return nn.Sequential(Dropout(dropout), nn.Linear(width, n_genes))
    layers: list[nn.Module] = []
    for a, b in ((width, 3 * width), (3 * width, width)):
        layers += [nn.Linear(a, b), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, n_genes))


class GeneDML(SpotModel):
    """Gene-DML: three scales of morphology, aligned with expression by instances and by groups.

    Local tokens, a transformer over the neighbour tiles and a transformer over the slide's spots are projected to one
    width and fused by self-attention; a head on the mean of all tokens predicts the expression. Tiles outside the image
    take no part. In training each scale is aligned with the expression of its spot (equations 3, 4), and spots with the
    groups of the other modality (equation 5).
    """

    config_class = GeneDMLConfig
    citation: ClassVar[str] = "Song, Fan, Chang, Cai (2026), Gene-DML, WACV; arXiv 2507.14670"
    presets: ClassVar[dict[str, Any]] = PRESETS
    recipe: ClassVar[Mapping[str, Any]] = {"balance": True}
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_RECIPES
    preset_normalization = "paper"
    default_frame = "slide"
    needs: frozenset[str] = frozenset({"tokens", "neighbors", "summary", "slides"})
    shared_space = True
    config: GeneDMLConfig

    def __init__(self, config: GeneDMLConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c, d, m = config, config.width, shape.n_genes
        inner = c.branch_width or shape.dim
        self.local_scale = Standardize(shape.dim)
        self.pooled_scale = Standardize(shape.dim)
        self.target_scale = Standardize(m)
        self.drop_input = Dropout(c.input_dropout)
        self.into_neighbor = nn.Linear(shape.dim, inner) if c.branch_width else nn.Identity()
        self.into_slide = nn.Linear(shape.dim, inner) if c.branch_width else nn.Identity()
        options = {"attention_dropout": c.attention_dropout}
        self.neighbor = NeighborTransformer(
            inner, shape.n_side, c.neighbor_depth, c.neighbor_heads, c.neighbor_mlp, c.neighbor_dropout, **options
        )
        self.slide = SlideTransformer(inner, c.slide_depth, c.slide_heads, c.slide_mlp, c.slide_dropout, **options)
        if c.projection == "shared":
            self.projections = nn.ModuleList([nn.Linear(shape.dim, d)] * len(SCALES))
        else:
            self.projections = nn.ModuleList(nn.Linear(width, d) for width in (shape.dim, inner, inner))
        self.fusion = ScaleFusion(
            d, c.fusion_heads, c.fusion_mlp, c.fusion_dropout, residual=c.fusion_residual, **options
        )
        self.head = _head(d, m, c.head, c.head_dropout)
        if c.floor == "none":
            self.needs = self.needs - {"summary"}
        else:
            self.floor = Floor(4 * shape.dim, m, kernel=c.floor == "ridge+kernel")
        if c.scale_weight:
            self.scale_heads = nn.ModuleList(_head(d, m, "linear", c.head_dropout) for _ in SCALES)
        if c.instance_weight or c.group_weight:
            self.gene = GeneEncoder(m, d, c.gene_dropout)
        if c.group_weight:
            groupers = [nn.Linear(d, d)] * 2 if c.grouping == "shared" else [nn.Linear(d, d), nn.Linear(d, d)]
            self.group = nn.ModuleList(groupers)

    @classmethod
    def adapt(cls, config: GeneDMLConfig, normalization: Mapping[str, Any]) -> GeneDMLConfig:
        """Fill in ``gene_specific`` where it is None."""
        if config.gene_specific is not None:
            return config
        as_paper = normalization["order"] == "panel" and normalization["smooth"]
        return replace(config, gene_specific=PAPER_LABELS_GENE_SPECIFIC if as_paper else 1.0)

    @classmethod
    def published_grids(cls, config: GeneDMLConfig) -> dict[str, dict[Any, dict[str, Any]]]:
        """Tables 3 to 6 and 8 to 15 of the paper."""
        return published_grids(config)

    @classmethod
    def members(cls, config: GeneDMLConfig) -> tuple[str, ...]:
        """Members of the floor, then the network; empty for the network alone."""
        return () if config.floor == "none" else (*config.floor.split("+"), "network")

    def take_shares(self, shares: Tensor) -> None:
        """Set the shares of the floor and of the network."""
        self.floor.shares.copy_(shares)

    @property
    def network_needs(self) -> frozenset[str]:
        """Parts that the network reads; the summary is for the floor."""
        return self.needs - {"summary"}

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Scale features and targets by the moments of the training spots, as the config says."""
        dim = self.shape.dim
        local, pooled, target = Moments(dim), Moments(dim), Moments(self.shape.n_genes)
        for batch in batches:
            local.add(batch.tokens.flatten(0, 1))
            pooled.add(batch.neighbors[batch.neighbor_mask])
            if batch.expression is not None:
                target.add(batch.expression)
        for scaler, moments, kind in (
            (self.local_scale, local, self.config.features),
            (self.pooled_scale, pooled, self.config.features),
            (self.target_scale, target, self.config.targets),
        ):
            if kind == "standardize":
                scaler.set(moments.mean, moments.std)
            elif kind == "scale":
                one = moments.std.square().mean().sqrt()
                scaler.set(moments.mean, one.expand_as(moments.std))
        if self.config.floor != "none":
            self.floor.solve(batches, self.target_components)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from all scales; the embedding is the fused one, (N, d), rows of unit length.

        Without a summary in the batch, the network alone predicts.
        """
        context, features, index = batch.context
        shift = self._random_shift(batch.tokens)
        tokens = batch.tokens
        if self.training and self.config.token_dropout:
            tokens = self._drop_tokens(tokens)
        local = self.drop_input(self.local_scale(tokens) + shift)
        neighbors = self.drop_input(self.pooled_scale(batch.neighbors) + shift)
        slides = self.drop_input(self.pooled_scale(features) + shift)

        neighbors = self.neighbor(self.into_neighbor(neighbors), batch.neighbor_mask)
        spots = self.slide(context, self.into_slide(slides), batch.visitors, index)
        by_scale = (local, neighbors, spots[:, None])
        tokens = torch.cat([project(x) for project, x in zip(self.projections, by_scale, strict=True)], 1)
        n, t = local.shape[:2]
        inside = torch.cat(
            [batch.neighbor_mask.new_ones(n, t), batch.neighbor_mask, batch.neighbor_mask.new_ones(n, 1)], 1
        )
        tokens = self.fusion(tokens, inside)

        sizes = [x.shape[1] for x in by_scale]
        *scales, fused = _means(tokens, inside, sizes)
        prediction = self.head(fused)
        parts = {"fused": fused, "prediction": prediction}
        parts |= dict(zip(SCALES, scales, strict=True))
        if self.config.scale_weight:
            by_head = [head(x) for head, x in zip(self.scale_heads, scales, strict=True)]
            parts |= {f"{name}_prediction": y for name, y in zip(SCALES, by_head, strict=True)}
            if self.config.average_scales:
                prediction = torch.stack([prediction, *by_head]).mean(0)
        prediction = self.target_scale.inverse(prediction.float())
        if not self.training:
            prediction = self._shrink(prediction)
            if self.config.floor != "none" and batch.summary is not None:
                by_floor = [self._shrink(y) for y in self.floor(batch.summarized)]
                parts["members"] = torch.stack([*by_floor, prediction], 1)
                prediction = self.floor.blend(parts["members"])
        return Output(prediction, F.normalize(fused.float(), dim=1), parts)

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Expression (N, M) to the shared space by the gene encoder: (N, d), rows of unit length."""
        if not (self.config.instance_weight or self.config.group_weight):
            raise ValueError(
                "Both pathways are switched off, so this Gene-DML has no shared space: train it with `instance_weight` "
                "or `group_weight` above 0."
            )
        return self.gene(self.target_scale(expression))

    def _shrink(self, prediction: Tensor) -> Tensor:
        """Keep what all genes share, on the scale of ``targets``; shrink what is each gene's own towards it."""
        share = 1.0 if self.config.gene_specific is None else self.config.gene_specific
        if share == 1:
            return prediction
        scaled = self.target_scale(prediction.float())
        common = scaled.mean(1, keepdim=True)
        return self.target_scale.inverse(common + share * (scaled - common))

    def _random_shift(self, like: Tensor) -> Tensor | float:
        """One random offset per feature for the whole batch, as another stain or scanner would give."""
        if not (self.training and self.config.feature_shift):
            return 0.0
        return self.config.feature_shift * torch.randn(self.shape.dim, device=like.device)

    def _drop_tokens(self, local: Tensor) -> Tensor:
        """Leave out a share of the local tokens, the same for all spots of the batch; the first one stays."""
        n = local.shape[1]
        kept = max(1, round((n - 1) * (1 - self.config.token_dropout)))
        order = torch.randperm(n - 1, device=local.device)[:kept].sort().values + 1
        return torch.cat([local[:, :1], local[:, order]], 1)

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Equation 7, with the terms that the config switches on."""
        c = self.config
        target = self.target_scale(batch.measured)
        # the losses are small differences of large exponents: never in bf16
        with torch.autocast(target.device.type, enabled=False):
            parts = {name: x.float() for name, x in output.parts.items()}
            losses = {"loss_pred": squared_error(parts["prediction"], target, batch.weight)}
            total = losses["loss_pred"]
            if c.scale_weight:
                losses["loss_scales"] = self._scale_loss(parts, target, batch.weight)
                total = total + c.scale_weight * losses["loss_scales"]
            if c.instance_weight or c.group_weight:
                gene = self.gene(target)
            if c.contrast == "expression":
                parts = {name: x.detach() for name, x in parts.items()}
            if c.instance_weight:
                images = [F.normalize(parts[name], dim=1) for name in SCALES]
                losses["loss_instance"] = instance_loss(images, gene, tau=c.tau, reduction=c.instance_reduction)
                total = total + c.instance_weight * losses["loss_instance"]
            if c.group_weight:
                losses["loss_group"] = self._group_loss(parts["fused"], gene, generator)
                total = total + c.group_weight * losses["loss_group"]
        return {"loss": total, **losses}

    def _scale_loss(self, parts: dict[str, Tensor], target: Tensor, weight: Tensor | None) -> Tensor:
        """Each scale predicts on its own, and follows the fused prediction (TRIPLEX, Chung et al. 2024)."""
        teacher, share = parts["prediction"].detach(), self.config.distillation
        each = [parts[f"{name}_prediction"] for name in SCALES]
        terms = [(1 - share) * squared_error(y, target, weight) + share * F.mse_loss(y, teacher) for y in each]
        return torch.stack(terms).sum()

    def _group_loss(self, fused: Tensor, gene: Tensor, generator: Generator) -> Tensor:
        c = self.config
        unit = F.normalize(fused, dim=1)
        of_image, of_gene = self.group
        start = torch.randperm(len(gene), generator=generator)[: c.n_groups].to(gene.device)
        return group_loss(
            unit if c.normalize_image else fused,
            gene,
            F.normalize(of_image(unit), dim=1),
            F.normalize(of_gene(gene), dim=1),
            k=c.n_groups,
            tau=c.group_tau,
            iterations=c.group_iterations,
            start=start,
            target=c.group_target,
            detach=c.detach_centroids,
        )


MODELS = {"gene-dml": GeneDML}
