"""Predictions of training spots by models that had not seen them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor

from gdml import metrics
from gdml.models import SpotModel

from .context import even_subset
from .data import SpotData
from .split import Split

#: Spots that are kept at most, spread evenly over the slides.
MOST_SPOTS = 20_000
_BATCH = 512  # spots that are predicted at once


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions, on the scale of the measured expression.

    Parameters
    ----------
    rows
        (n,) int64 rows of the training spots, ascending, each once.
    part
        (n,) int64 number of the split that held the spot out.
    predicted
        (n, M) float32.
    by
        What was held out: ``"group"``, ``"slide"`` or ``"block"``.
    """

    rows: Tensor
    part: Tensor
    predicted: Tensor
    by: str

    @classmethod
    def join(cls, members: Sequence[Tensor], splits: Sequence[Split], shares: Tensor, data: SpotData) -> "OutOfFold":
        """Blend what the members of a model predict of the held-out spots of each split.

        Parameters
        ----------
        members
            (n, k, M) for each split, on the scale of the measured expression.
        splits
            The splits.
        shares
            (k,) of the members.
        data
            The spots, of which ``MOST_SPOTS`` at most are kept.
        """
        rows = torch.cat([split.validation for split in splits])
        part = torch.cat([torch.full((len(split.validation),), i) for i, split in enumerate(splits)])
        predicted = torch.cat([torch.einsum("nkm,k->nm", one, shares) for one in members])
        order = rows.argsort()
        order = order[torch.isin(rows[order], even_rows(data))]
        return cls(rows[order], part[order], predicted[order], splits[0].by)

    def pcc(self, data: SpotData) -> NDArray[np.float64]:
        """PCC of each gene over the held-out spots of a slide, averaged over slides: (M,)."""
        measured, predicted = data.expression[self.rows].numpy(), self.predicted.numpy()  # type: ignore[index]
        slide = data.slide[self.rows].numpy()
        found = [metrics.pearson_per_gene(measured[slide == s], predicted[slide == s]) for s in np.unique(slide)]
        return metrics.nan_mean(np.stack(found), 0)


def even_rows(data: SpotData) -> Tensor:
    """Rows of ``MOST_SPOTS`` spots at most, each slide with its share."""
    share = min(1.0, MOST_SPOTS / max(len(data), 1))
    return torch.cat(
        [
            data.rows_of(number)[torch.from_numpy(even_subset(slide.xy, max(1, int(share * len(slide)))))]
            for number, slide in enumerate(data.slides)
        ]
    )


@torch.inference_mode()
def predict_members(module: SpotModel, data: SpotData, rows: Tensor, fabric: Fabric) -> Tensor:
    """Predict spots by each member of a blend, (n, k, M), in the units of the model's frame; k is 1 for other models.

    Parameters
    ----------
    module
        On the device of ``fabric``.
    data
        The spots.
    rows
        (n,) rows, ascending.
    fabric
        Device and precision.
    """
    module.eval()
    data = data.in_frame(module.frame)
    found = []
    with fabric.autocast():
        for batch in data.in_order(rows, _BATCH, module.needs, fabric.device):
            output = module(batch)
            found.append(output.parts.get("members", output.prediction[:, None]).float().cpu())
    return torch.cat(found)
