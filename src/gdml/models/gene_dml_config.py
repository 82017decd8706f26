"""Settings of Gene-DML, and the paper's by data set."""

from dataclasses import dataclass
from typing import Any, Literal

from .config import Config


@dataclass(frozen=True)
class GeneDMLConfig(Config):
    """Settings of Gene-DML; ``preset=`` of :func:`gdml.tl.fit` gives the paper's.

    Parameters
    ----------
    width
        d, width of the shared space.
    features
        Scale of the features: ``"standardize"`` each column on the training spots, ``"scale"`` (centre, and
        divide all columns by one number, so that their directions keep their weight), or ``"raw"`` (paper).
    targets
        Scale on which expression is learnt, the same choices; predictions are always on the scale of the
        measured expression. With ``"raw"`` (paper) the head has to learn the mean expression from zero.
    branch_width
        Width of the neighbour and slide transformers, to which the features are projected; 0 for the
        encoder's own width (paper).
    neighbor_depth, neighbor_heads, neighbor_mlp, neighbor_dropout
        Transformer over the neighbour tiles.
    slide_depth, slide_heads, slide_mlp, slide_dropout
        Transformer over the spots of a slide.
    projection
        One linear layer to d per scale (``"separate"``, paper), or one for all (``"shared"``, authors' code;
        needs ``branch_width=0``).
    fusion_heads, fusion_mlp, fusion_dropout
        Transformer layer over the tokens of all scales.
    fusion_residual
        Residual around the feed-forward layer after it.
    attention_dropout
        Drop attention weights too (the authors' code), which rules out the fused attention kernels.
    head
        ``"paper"``: d -> 3d -> d -> genes with ReLU; ``"linear"``: one layer.
    head_dropout, gene_dropout
        Of the expression head and of the gene encoder.
    input_dropout
        Rate at which entries of the features are zeroed in training.
    feature_shift
        Standard deviation, in units of the scaled features, of a random offset that is added in training to each
        feature of all spots of a batch, as slides of different patients differ by such offsets.
    token_dropout
        Share of the local tokens that are left out of a training step.
    contrast
        What learns from the instance and group losses: ``"joint"``, both encoders (paper), or ``"expression"``, the
        encoder of the expression alone. It then maps expression to where the image is, as in :cite:t:`Zhai2022`, and the
        prediction gives nothing up for it.
    instance_weight
        Weight of the instance loss; 0 switches the pathway off.
    instance_reduction
        Two directions of equation 4: ``"average"`` (authors' code) or ``"sum"`` (paper).
    tau
        Temperature of the instance loss.
    group_weight
        lambda of equation 7; 0 switches the pathway off. The defaults of the two pathways are 0.3 times the
        paper's 1 and 0.8.
    n_groups
        k, at most the number of spots in a batch.
    group_iterations
        Lloyd iterations of k-means in each batch.
    group_tau
        tau_IG.
    group_target
        ``"paired"`` (authors' code), ``"nearest"`` (paper's words) or ``"soft"`` (equation 5 as printed).
    grouping
        One layer before k-means for both modalities (``"shared"``, authors' code), or one each.
    detach_centroids
        Stop gradients at the centroids.
    normalize_image
        Unit length of the fused embedding in the group loss (the authors' code leaves it as it is).
    scale_weight
        Weight of the supervision of each scale by a head of its own; 0 for none (paper).
    distillation
        Share of that supervision that comes from the fused prediction instead of the measured expression.
    average_scales
        Predict by the mean of the fused head and the scales' heads.
    floor
        Models in closed form that the network is blended with: ``"ridge"``, ``"ridge+kernel"``, or ``"none"`` for the
        network alone (paper). Their shares are chosen on held-out parts of the training slides.
    gene_specific
        Share that is kept of the gene-specific part of a prediction, of the network and of the floor; the common part (the
        mean over genes on the scale of ``targets``) is kept whole. The common part reflects depth and cellularity and generalises better
        across patients. None: 0.5 for expression that is scaled within the panel and smoothed over neighbours
        (``normalization="paper"``), where the common part explains half of the variance; else 1, the plain
        prediction (paper).
    """

    width: int = 128
    features: Literal["standardize", "scale", "raw"] = "standardize"
    targets: Literal["standardize", "scale", "raw"] = "standardize"
    branch_width: int = 128
    neighbor_depth: int = 2
    neighbor_heads: int = 4
    neighbor_mlp: int = 2
    neighbor_dropout: float = 0.3
    slide_depth: int = 2
    slide_heads: int = 4
    slide_mlp: int = 2
    slide_dropout: float = 0.3
    projection: Literal["separate", "shared"] = "separate"
    fusion_heads: int = 4
    fusion_mlp: int = 2
    fusion_dropout: float = 0.3
    fusion_residual: bool = True
    attention_dropout: bool = False
    head: Literal["paper", "linear"] = "paper"
    head_dropout: float = 0.3
    gene_dropout: float = 0.3
    input_dropout: float = 0.0
    feature_shift: float = 0.5
    token_dropout: float = 0.5
    contrast: Literal["joint", "expression"] = "expression"
    instance_weight: float = 0.3
    instance_reduction: Literal["average", "sum"] = "average"
    tau: float = 0.07
    group_weight: float = 0.24
    n_groups: int = 18
    group_iterations: int = 10
    group_tau: float = 0.07
    group_target: Literal["paired", "nearest", "soft"] = "paired"
    grouping: Literal["shared", "separate"] = "shared"
    detach_centroids: bool = False
    normalize_image: bool = True
    scale_weight: float = 1.0
    distillation: float = 0.3
    average_scales: bool = True
    floor: Literal["none", "ridge", "ridge+kernel"] = "ridge+kernel"
    gene_specific: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection == "shared" and self.branch_width:
            raise ValueError('`projection="shared"` needs all scales at the encoder\'s width: set branch_width=0.')
        self.check_at_least(2, "n_groups")
        self.check_at_least(0, "instance_weight", "group_weight", "scale_weight")
        if self.gene_specific is not None:
            self.check_share("gene_specific")


#: ``gene_specific`` where it is None and the labels are the paper's.
PAPER_LABELS_GENE_SPECIFIC = 0.5

_SIZES = ("depth", "heads", "mlp", "dropout")


def _published(neighbor: tuple[float, ...], slide: tuple[float, ...], n_groups: int) -> GeneDMLConfig:
    """Config of the paper (supplement, tables 7 and 13, and the authors' configuration)."""
    sizes: dict[str, Any] = {f"neighbor_{name}": value for name, value in zip(_SIZES, neighbor, strict=True)}
    sizes |= {f"slide_{name}": value for name, value in zip(_SIZES, slide, strict=True)}
    weights = {"contrast": "joint", "instance_weight": 1.0, "group_weight": 0.8, "scale_weight": 0.0}
    dropout = {"fusion_dropout": 0.1, "head_dropout": 0.1, "feature_shift": 0.0, "token_dropout": 0.0}
    scales = {"floor": "none", "features": "raw", "targets": "raw", "gene_specific": 1.0, "normalize_image": False}
    fusion = {"fusion_heads": 1, "fusion_residual": False, "attention_dropout": True, "average_scales": False}
    return GeneDMLConfig(width=512, branch_width=0, n_groups=n_groups, **(sizes | weights | dropout | scales | fusion))


#: By data set: neighbour and slide transformers (depth, heads, mlp, dropout), and k.
PRESETS = {
    "her2st": _published((4, 4, 4, 0.3), (5, 8, 4, 0.3), 18),
    "stnet": _published((4, 8, 4, 0.3), (3, 8, 2, 0.1), 90),
    "skinst": _published((4, 16, 1, 0.3), (2, 16, 1, 0.1), 25),
}

#: The paper's training: Adam 1e-4, x0.95 every 20 epochs, 200 epochs, patience 20, the authors' batch sizes.
_PAPER_RECIPE = {
    "max_epochs": 200,
    "patience": 20,
    "batch_size": 512,
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "warmup_steps": 0,
    "decay_epochs": 20,
    "decay": 0.95,
    "weight_decay": 0.0,
    "clip": 0.0,
    "average": 0.0,
    "refit": False,
}
PRESET_RECIPES = {"her2st": _PAPER_RECIPE, "stnet": _PAPER_RECIPE, "skinst": {**_PAPER_RECIPE, "batch_size": 256}}

#: k in tables 9 (HER2ST), 13 (STNet) and 4 (skinST), by the k that was chosen.
_K = {18: (15, 16, 18, 20), 90: (80, 90, 100), 25: (15, 20, 25, 30)}


def published_grids(config: GeneDMLConfig) -> dict[str, dict[Any, dict[str, Any]]]:
    """Ablations of the paper: pathways (tables 3, 8, 12), k (4, 9, 13), lambda (5, 10, 14), tau_IG (6, 11, 15).

    lambda is the ratio of the weights of the group loss and the instance loss.
    """
    instance, group = config.instance_weight, config.group_weight
    pathways = {
        "neither": {"instance_weight": 0.0, "group_weight": 0.0},
        "instance": {"instance_weight": instance, "group_weight": 0.0},
        "group": {"instance_weight": 0.0, "group_weight": group},
        "both": {"instance_weight": instance, "group_weight": group},
    }
    ratio = lambda value: round(value * (instance or 1.0), 12)
    return {
        "pathways": pathways,
        "k": {k: {"n_groups": k} for k in _K.get(config.n_groups, _K[18])},
        "lambda": {value: {"group_weight": ratio(value)} for value in (0.3, 0.5, 0.8, 1.0)},
        "tau_IG": {value: {"group_tau": value} for value in (0.05, 0.07, 0.1)},
    }
