"""Features and targets of a data set in the units of a frame, slide by slide."""

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .frame import Frame, Units, depth_weights

if TYPE_CHECKING:
    from .data import SlideSpots


@dataclass(eq=False)
class SlideUnits:
    """Units of the slides of a data set.

    Units of features are those of all spots of a slide and need no expression. Units of targets are learnt on training
    spots; a slide without them has those of the frame.

    Parameters
    ----------
    frame
        The frame.
    targets
        Units of the targets by training slide.
    median_depth
        Median total count by training slide.
    """

    frame: Frame
    targets: dict["SlideSpots", Units] = field(default_factory=dict)
    median_depth: dict["SlideSpots", float] = field(default_factory=dict)
    _features: dict[tuple["SlideSpots", str], Units] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.frame = copy.deepcopy(self.frame).cpu()  # batches are made on the CPU, wherever the model is

    def features(self, slide: "SlideSpots", part: str, values: Tensor) -> Tensor:
        """Express a part (n, ..., width) of the features of a slide in its units."""
        if self.frame.config.features == "raw":
            return values
        key = (slide, part)
        if key not in self._features:
            self._features[key] = self.frame.feature_units(part, slide.moments(part), slide.n_moments)
        return self._features[key](values)

    def expression(self, slide: "SlideSpots", values: Tensor) -> Tensor:
        """Bring expression (n, M) of a slide to the scale that is learnt."""
        if slide in self.targets:
            return self.frame.project(self.targets[slide](values))
        return self.frame.targets(values)

    def weights(self, slide: "SlideSpots", depth: Tensor) -> Tensor:
        """Weight of spots of a slide by their total counts (n,)."""
        if self.frame.config.weights == "equal" or slide not in self.median_depth:
            return torch.ones(len(depth))
        return depth_weights(depth, self.median_depth[slide])
