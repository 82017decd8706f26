"""Distances of spots and slides from the slides that a model knows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from gdml.models.base import Shape
from gdml.models.scaling import Moments

from .frame import FRAMES, PRIOR_SPOTS, Frame

_SMALL = 1e-6


@dataclass(frozen=True, eq=False)
class Sample:
    """Pooled features of some spots of a slide, and the moments of all of them."""

    rows: Tensor  # (n, D) float32
    moments: Moments
    n_spots: int

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Take some spots for a slide of their own."""
        moments = Moments(rows.shape[1])
        moments.add(rows)
        return cls(rows, moments, len(rows))


@dataclass(frozen=True, eq=False)
class Known:
    """Means of some slides, and the covariance between the spots of a slide, in units of the frame ``"slide"``."""

    means: Tensor  # (S, D) of the slides
    mean: Tensor  # (D,) of the frame
    scale: Tensor  # (D,)
    whiten: Tensor  # (D, D): rows times it have the covariance 1
    frame: Frame = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", _frame(self.means.shape[1]))
        for name in ("mean", "scale"):
            self.frame.get_buffer(f"pooled_{name}").copy_(getattr(self, name))

    @classmethod
    def of(cls, slides: Sequence[Sample]) -> Self:
        """Learn means and covariance of some slides."""
        frame = _frame(slides[0].rows.shape[1])
        frame.fit_features("pooled", [one.moments for one in slides])
        rows = torch.cat([frame.feature_units("pooled", one.moments, one.n_spots)(one.rows) for one in slides])
        covariance = torch.from_numpy(ledoit_wolf(rows.double().numpy(), assume_centered=True)[0])
        root = torch.linalg.cholesky(covariance + _SMALL * torch.eye(len(covariance)))  # of constant features: 0
        whiten = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False).T
        scale = frame.get_buffer("pooled_scale")
        return cls(
            means=torch.stack([one.moments.mean for one in slides]).float(),
            mean=frame.get_buffer("pooled_mean"),
            scale=torch.where(scale > _SMALL, scale, torch.ones_like(scale)),
            whiten=whiten.float().contiguous(),
        )

    def _white(self, raw: Tensor) -> Tensor:
        return (raw - self.mean) / self.scale @ self.whiten / len(self.mean) ** 0.5

    def spots(self, rows: Tensor, moments: Moments, n_spots: int) -> Tensor:
        """Distances (n, 2) of spots: in units of their slide from its mean, and as they are from the nearest slide."""
        units = self.frame.feature_units("pooled", moments, n_spots)
        own = (units(rows) @ self.whiten).norm(dim=1) / len(self.mean) ** 0.5
        return torch.stack([own, torch.cdist(self._white(rows), self._white(self.means)).amin(1)], 1)

    def shift(self, moments: Moments, n_spots: int) -> tuple[float, Tensor]:
        """Distance of a slide's mean from that of the nearest slide, and by how much each feature differs, (D,)."""
        mean = moments.mean.float()
        far = torch.cdist(self._white(mean[None]), self._white(self.means))[0]
        own = n_spots / (n_spots + PRIOR_SPOTS)  # the mean of few spots says little of their slide
        return own * float(far.min()), own * (mean - self.means[far.argmin()]) / self.scale


def _frame(dim: int) -> Frame:
    return Frame(FRAMES["slide"], Shape(dim=dim, n_tokens=1, n_side=1, n_genes=1))
