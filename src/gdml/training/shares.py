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
_BATCH = 512  # spots that are predicted at once


@dataclass(frozen=True)
class Products:
    """Mean products of the members' predictions with each other and with the targets, over parts of slides.

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

    def gains(self, shares: Tensor) -> Tensor:
        """By how much blends with ``shares`` (s, k) lower the squared error of the floor alone: (s, B)."""
        error = torch.einsum("si,bij,sj->sb", shares, self.members, shares) - 2 * shares @ self.targets.T
        return self.members[:, 0, 0] - 2 * self.targets[:, 0] - error


@torch.inference_mode()
def held_out_products(module: SpotModel, data: SpotData, targets: Tensor, split: Split, fabric: Fabric) -> Products:
    """Compare the predictions of the members of a blend with the targets on held-out spots.

    Each held-out part of a slide is cut in halves across its shorter axis, so that there are more parts to see the
    uncertainty by.

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
    of = data.slide[split.validation]
    for number in of.unique().tolist():
        rows = split.validation[of == number]
        with fabric.autocast():
            found = [
                module(batch).parts["members"].float().cpu()
                for batch in data.in_order(rows, _BATCH, module.needs, fabric.device)
            ]
        predicted = torch.cat(found).double()
        start = int(data.rows_of(number)[0])
        half = torch.from_numpy(cut_across(data.slides[number].xy[rows - start], 2, axis=1))
        for part in half.unique():
            p, y = predicted[half == part], targets[rows[half == part]].double()
            members.append(torch.einsum("nim,njm->ij", p, p) / len(p))
            products.append(torch.einsum("nim,nm->i", p, y) / len(p))
    return Products(torch.stack(members), torch.stack(products))


def choose_shares(products: Products, *, without_last: bool = False) -> Tensor:
    """Choose the shares of the members of a blend, the first of which is the floor.

    A member takes part only where it alone predicts better than the floor, by more than one standard error of the gain
    over the parts. A member that helps a blend but is worse alone follows what is particular to the training slides:
    on HER2ST such members lost across patients what they had gained on held-out blocks. Of the shares of those
    that take part, which are not negative and sum to 1, those with the largest gain less its standard error are taken.

    Parameters
    ----------
    products
        Of all held-out parts.
    without_last
        Leave the last member out, as after :func:`is_hopeless`.

    Returns
    -------
    (k,) float32; (1, 0, ..., 0) where no member takes part.
    """
    k = products.targets.shape[1]
    alone = _certain(products.gains(torch.eye(k, dtype=torch.float64)))
    steps = round(1 / STEP)
    grid = [rest for rest in product(range(steps + 1), repeat=k - 1) if sum(rest) <= steps]
    shares = torch.tensor([[steps - sum(rest), *rest] for rest in grid], dtype=torch.float64) / steps
    barred = alone <= 0
    barred[-1] |= without_last
    barred[0] = False
    shares = shares[(shares[:, barred] == 0).all(1)]
    return shares[_certain(products.gains(shares)).argmax()].float()


def is_hopeless(products: Products) -> bool:
    """Whether the last member is so much worse than the floor that more held-out parts will hardly change it."""
    k = products.targets.shape[1]
    gain = products.gains(torch.eye(k, dtype=torch.float64)[-1:])
    return bool(gain.mean() + _error(gain) < 0)


def _certain(gain: Tensor) -> Tensor:
    """Mean gain (s, B) over the parts less its standard error: (s,)."""
    return gain.mean(1) - _error(gain)


def _error(gain: Tensor) -> Tensor:
    """Give the standard error of the mean gain (s, B) over the parts, (s,); of one part infinite, unless nothing is gained."""
    n = gain.shape[1]
    return gain.std(1) / n**0.5 if n > 1 else torch.where(gain[:, 0] == 0, 0.0, torch.inf)
