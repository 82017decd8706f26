"""Shares of a blend, chosen on held-out parts of the training slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from lightning_fabric import Fabric
from torch import Tensor

from gdml.models import SpotModel

from .data import SpotData
from .split import Split, cut_across

#: Shares that are tried are multiples of this.
STEP = 0.1


@dataclass(frozen=True)
class Products:
    """Sums of products of the members' predictions with each other and with the targets, over parts of slides.

    Parameters
    ----------
    members
        (B, k, k) by part.
    targets
        (B, k).
    """

    members: Tensor
    targets: Tensor

    @classmethod
    def join(cls, found: Sequence["Products"]) -> "Products":
        """Put the parts of several together."""
        return cls(torch.cat([one.members for one in found]), torch.cat([one.targets for one in found]))


@torch.inference_mode()
def held_out_products(module: SpotModel, data: SpotData, targets: Tensor, split: Split, fabric: Fabric) -> Products:
    """Compare the predictions of the members of a blend with the targets on held-out spots.

    Each held-out part of a slide is cut in halves across its shorter axis. Predictions and targets are centred on each half,
    so that the level, which the image does not tell, does not count.

    Parameters
    ----------
    module
        Trained on the training rows of the split, on the device of ``fabric``.
    data
        The spots.
    targets
        (n, M) what is to be predicted, in the units of the frame.
    split
        The split.
    fabric
        Device and precision.
    """
    module.eval()
    data = data.in_frame(module.frame)
    members, products = [], []
    for number in data.slide[split.validation].unique().tolist():
        rows = split.validation[data.slide[split.validation] == number]
        with fabric.autocast():
            found = [
                module(batch).parts["members"].float().cpu()
                for batch in data.in_order(rows, 512, module.needs, fabric.device)
            ]
        predicted = torch.cat(found).double()
        start = int(data.rows_of(number)[0])
        half = torch.from_numpy(cut_across(data.slides[number].xy[rows - start], 2, axis=1))
        for part in half.unique():
            here = half == part
            p, y = predicted[here], targets[rows[here]].double()
            p, y = p - p.mean(0), y - y.mean(0)
            members.append(torch.einsum("nim,njm->ij", p, p))
            products.append(torch.einsum("nim,nm->i", p, y))
    return Products(torch.stack(members), torch.stack(products))


def choose_shares(products: Products) -> Tensor:
    """Choose the shares of the members of a blend, the first of which is the floor.

    Shares are not negative and sum to 1. Chosen are those whose gain over the floor alone, in squared error, is largest
    after one standard error of the gain over the parts is subtracted. Where no member helps beyond that, the floor has
    the share 1.

    Parameters
    ----------
    products
        Of all held-out parts.

    Returns
    -------
    (k,) float32.
    """
    k = products.targets.shape[1]
    steps = round(1 / STEP)
    grid = [rest for rest in product(range(steps + 1), repeat=k - 1) if sum(rest) <= steps]
    shares = torch.tensor([[steps - sum(rest), *rest] for rest in grid], dtype=torch.float64) / steps
    error = torch.einsum("si,bij,sj->sb", shares, products.members, shares) - 2 * shares @ products.targets.T
    alone = int((shares[:, 0] == 1).nonzero()[0, 0])
    gain = error[alone] - error
    n = gain.shape[1]
    doubt = gain.std(1) / n**0.5 if n > 1 else torch.full((len(gain),), torch.inf).masked_fill(shares[:, 0] == 1, 0.0)
    return shares[(gain.mean(1) - doubt).argmax()].float()
