"""The frame: the units that models learn in, so that slides of different stain, depth and level can be learnt together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gdml._errors import did_you_mean
from gdml.models.base import Shape, SpotModel
from gdml.models.config import Config
from gdml.models.scaling import Moments

#: Parts of a batch that are expressed in units of their slide, and their widths in multiples of the token width.
PARTS = {"tokens": 1, "pooled": 1, "summary": 4}
#: Spots by which the moments of a slide are shrunk towards those of the training slides.
PRIOR_SPOTS = 10
#: A column of a slide is scaled by no less than this share of its standard deviation on the training slides.
LEAST_SCALE = 0.5
#: Added to the standard deviation of a gene on a slide, so that genes that hardly vary are not blown up.
LEAST_SPREAD = 0.1
#: Components of the targets that are kept at most.
MAX_COMPONENTS = 64
_PIECE = 65536


@dataclass(frozen=True)
class FrameConfig(Config):
    """Settings of the frame; ``frame=`` of :func:`gdml.tl.fit` gives one by name, or the fields that differ.

    Parameters
    ----------
    features
        ``"slide"``: the mean of each feature over the spots of a slide is subtracted, and the difference divided by its
        standard deviation on the slide, so that another stain or scanner leaves the features as they are. Needs no
        expression. ``"raw"``: as the encoder gave them.
    targets
        ``"slide"``: the expression of each gene on each training slide minus its mean there, divided by its standard
        deviation there. Predictions get the mean level and spread of the training slides. ``"raw"``: as measured.
    components
        ``"signal"``: the targets are projected on their principal components above the noise (the optimal hard
        threshold of :cite:t:`Gavish2014`), 64 at most; ``"all"``: as they are.
    weights
        ``"depth"``: spots with few counts weigh less, by 2 t / (t + 1), where t is the total count of a spot over the
        median of its slide; ``"equal"``.
    """

    features: Literal["slide", "raw"] = "slide"
    targets: Literal["slide", "raw"] = "slide"
    components: Literal["signal", "all"] = "signal"
    weights: Literal["depth", "equal"] = "depth"


#: Frames by name.
FRAMES = {
    "slide": FrameConfig(),
    "raw": FrameConfig(features="raw", targets="raw", components="all", weights="equal"),
}


def make_frame_config(frame: "str | Mapping[str, Any] | FrameConfig | None", default: str) -> FrameConfig:
    """Resolve ``frame=``: a name of ``FRAMES``, fields that differ from ``default``, or None for ``default``.

    Raises
    ------
    ValueError
        If a name, field or value is unknown.
    TypeError
        If ``frame`` is none of these.
    """
    if isinstance(frame, FrameConfig):
        return frame
    if frame is None:
        return FRAMES[default]
    if isinstance(frame, str):
        if frame not in FRAMES:
            raise ValueError(f"`frame` is {frame!r}. {did_you_mean(frame, FRAMES)}")
        return FRAMES[frame]
    if not isinstance(frame, Mapping):
        raise TypeError(f"`frame` must be a name ({', '.join(FRAMES)}) or a dict of fields, found {frame!r}.")
    names = [f.name for f in fields(FrameConfig)]
    for name in frame:
        if name not in names:
            raise ValueError(f"`frame` has no field {name!r}. {did_you_mean(str(name), names)}")
    return replace(FRAMES[default], **frame)


@dataclass(frozen=True)
class Units:
    """Mean that is subtracted and scale that is divided by, (width,) float32 each."""

    mean: Tensor
    scale: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Express ``x`` (..., width) in these units."""
        return (x - self.mean) / self.scale


class Frame(nn.Module):
    """Constants of a frame, learnt on the training spots and saved with the model.

    Parameters
    ----------
    config
        Settings.
    shape
        Sizes of the data.
    """

    level: Tensor
    level_sd: Tensor
    spread: Tensor
    center: Tensor
    axes: Tensor

    def __init__(self, config: FrameConfig, shape: Shape) -> None:
        super().__init__()
        self.config = config
        m = shape.n_genes
        for part, width in PARTS.items():
            self.register_buffer(f"{part}_mean", torch.zeros(width * shape.dim))
            self.register_buffer(f"{part}_scale", torch.ones(width * shape.dim))
        self.register_buffer("level", torch.zeros(m))
        self.register_buffer("level_sd", torch.full((m,), torch.nan))
        self.register_buffer("spread", torch.ones(m))
        self.register_buffer("center", torch.zeros(m))
        self.register_buffer("axes", torch.zeros(min(MAX_COMPONENTS, m), m))

    def fit_features(self, part: str, slides: Iterable[Moments]) -> None:
        """Take the mean over slides of the moments of each slide, towards which those of a slide are shrunk."""
        slides = list(slides)
        mean = torch.stack([slide.mean for slide in slides]).mean(0)
        scale = torch.stack([slide.std.square() for slide in slides]).mean(0).sqrt()
        self.get_buffer(f"{part}_mean").copy_(mean)
        self.get_buffer(f"{part}_scale").copy_(scale)

    def feature_units(self, part: str, slide: Moments, n_spots: int) -> Units:
        """Units of a part of the features of a slide.

        The moments of the slide count as its number of spots, those of the training slides as ``PRIOR_SPOTS``. The
        scale is at least half that of the training slides: on a slide that shows one kind of spots only, small
        differences are not blown up.

        Parameters
        ----------
        part
            One of ``PARTS``.
        slide
            Moments of the spots of the slide.
        n_spots
            Their number; tokens of one spot are not independent.
        """
        mean, scale = (self.get_buffer(f"{part}_{name}").double().cpu() for name in ("mean", "scale"))
        own = n_spots / (n_spots + PRIOR_SPOTS)
        shrunk = (own * slide.std.square() + (1 - own) * scale.square()).sqrt()
        found = torch.maximum(shrunk, LEAST_SCALE * scale)
        found = torch.where(found > 1e-6, found, torch.ones_like(found))
        return Units((own * slide.mean + (1 - own) * mean).float(), found.float())

    def fit_targets(self, slides: Iterable[Tensor], weights: Tensor) -> list[Units]:
        """Learn level, spread and components of the targets.

        Parameters
        ----------
        slides
            Expression (n, M) of the training spots of each slide.
        weights
            Weight of all training spots, slide after slide.

        Returns
        -------
        Units of the targets of each slide.
        """
        found, moments = [], []
        slides = list(slides)
        for expression in slides:
            one = Moments(expression.shape[1])
            one.add(expression)
            moments.append(one)
        levels = torch.stack([one.mean for one in moments])
        spread = torch.stack([one.std.square() for one in moments]).mean(0).sqrt()
        if self.config.targets == "slide":
            self.level.copy_(levels.mean(0))
            self.spread.copy_(spread + LEAST_SPREAD)
            if len(slides) > 1:
                self.level_sd.copy_(levels.std(0))
            for one in moments:
                own = one.count / (one.count + PRIOR_SPOTS)
                scale = (own * one.std.square() + (1 - own) * spread.square()).sqrt() + LEAST_SPREAD
                found.append(Units(one.mean.float(), scale.float()))
        else:
            nothing = Units(torch.zeros(levels.shape[1]), torch.ones(levels.shape[1]))
            found = [nothing] * len(slides)
        if self.config.components == "signal":
            targets = torch.cat([units(part) for units, part in zip(found, slides, strict=True)])
            center, axes = signal_axes(targets, weights, MAX_COMPONENTS)
            self.center.copy_(center)
            self.axes.zero_()
            self.axes[: len(axes)].copy_(axes)
        return found

    def components(self) -> Tensor | None:
        """Components of the targets that are kept, (k, M) orthonormal rows; None for all."""
        return None if self.config.components == "all" else self.axes[self.axes.any(1)]

    def project(self, targets: Tensor) -> Tensor:
        """Project targets (..., M) on the components that are kept."""
        if self.config.components == "all":
            return targets
        return (targets - self.center) @ self.axes.T @ self.axes + self.center

    def inverse(self, prediction: Tensor) -> Tensor:
        """Bring a prediction (N, M) to the scale of the measured expression of a new slide."""
        return prediction * self.spread + self.level

    def targets(self, expression: Tensor) -> Tensor:
        """Bring expression (N, M) of a slide without units of its own to the scale that is learnt."""
        return self.project((expression - self.level) / self.spread)


def signal_axes(targets: Tensor, weights: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Find the principal components of the targets above the noise.

    A component is kept where its singular value exceeds the optimal hard threshold for unknown noise
    :cite:p:`Gavish2014`: the median singular value times a factor that depends on the shape of the matrix.

    Parameters
    ----------
    targets
        (n, M).
    weights
        (n,) weight of each spot, mean 1.
    most
        Components to keep at most; one is kept at least.

    Returns
    -------
    center : (M,) float64
        Weighted mean of the targets.
    axes : (k, M) float64
        Orthonormal rows.
    """
    n, m = targets.shape
    weights = weights.double()
    center = (weights @ targets.double()) / weights.sum()
    if n < m:
        rows = (targets.double() - center) * weights.sqrt()[:, None]
        values, axes = torch.linalg.svd(rows, full_matrices=False)[1:]
    else:  # sums over pieces, so that memory does not grow with the number of spots
        gram = torch.zeros(m, m, dtype=torch.float64)
        for part, weight in zip(targets.split(_PIECE), weights.split(_PIECE), strict=True):
            centered = part.double() - center
            gram += (centered * weight[:, None]).T @ centered
        squares, vectors = torch.linalg.eigh(gram)
        values, axes = squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1).T
    beta = min(n, m) / max(n, m)
    factor = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    kept = int((values > factor * values.median()).sum())
    return center, axes[: min(max(kept, 1), most)]


def depth_weights(depth: Tensor, median: Tensor | float) -> Tensor:
    """Weight of spots by their total count (n,), where the median of the slide has 1: 2 t / (t + 1)."""
    t = depth / median
    return 2 * t / (t + 1)


def make_module(model: type[SpotModel], config: Any, shape: Shape, frame: FrameConfig) -> SpotModel:
    """Make an untrained model that learns in a frame; in ``"raw"`` it has none."""
    module = model(config, shape)
    if frame != FRAMES["raw"]:
        module.frame = Frame(frame, shape)
    return module
