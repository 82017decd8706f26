"""Shares of a blend, chosen on held-out parts of the training slides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .data import SpotData
from .split import Split, cut_across

#: Shares that are tried are multiples of this.
STEP = 0.1
#: Gain over the floor, as a share of what the floor explains, below which the floor is kept; ``fit`` records it. On thirds of
#: the left half of the colon, in the development set, it is 0.117 to 0.138 with measured labels and 0.057 to 0.177 with
#: smoothed ones, and blends win in all of them.
LEAST_GAIN = 0.05
#: The same where groups were named and spots are held out of groups that are learnt from. On sections of one of two patients
#: it is 0.025 and 0.036, with smoothed labels 0.056 and 0.098, and blends lose on the other patient.
LEAST_GAIN_WITHIN_GROUPS = 0.1
#: Held-out parts that are needed to give a member up, and standard errors that its gain is given. With four parts and one
#: error the network was given up on half of the colon, where all ten parts give it a share.
LEAST_PARTS, BENEFIT_OF_DOUBT = 6, 2


@dataclass(frozen=True)
class Products:
    """Mean products of the members' predictions with each other and with the targets, over parts of slides.

    Both are differences from the mean of what was learnt from, so that what a member explains beyond the mean can be told.

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

    def explained(self, shares: Tensor) -> Tensor:
        """By how much blends with ``shares`` (s, k) lower the squared error of the mean, each at its best scale: (s, B).

        The scale of a blend is one for all parts. Without it, a blend of members with different errors would gain by its
        smaller spread alone, which no correlation rewards.
        """
        along = shares @ self.targets.T
        own = torch.einsum("si,bij,sj->sb", shares, self.members, shares)
        scale = (along.mean(1) / own.mean(1)).nan_to_num(0).clamp(min=0)[:, None]
        return 2 * scale * along - scale**2 * own

    def gains(self, shares: Tensor) -> Tensor:
        """Give what blends with ``shares`` (s, k) explain beyond the floor alone: (s, B)."""
        return self.explained(shares) - self.explained(_floor_alone(shares.shape[1]))


def held_out_products(predicted: Tensor, data: SpotData, targets: Tensor, split: Split) -> Products:
    """Compare what the members of a blend predict of held-out spots with the targets.

    Each held-out part of a slide is cut in halves across its shorter axis, so that there are more parts to see the
    uncertainty by.

    Parameters
    ----------
    predicted
        (n, k, M) of the validation spots of the split.
    data
        The spots.
    targets
        (n, M) what is to be predicted of all spots, in the same units.
    split
        The split.
    """
    members, products = [], []
    predicted = predicted.double()
    mean = targets[split.train].double().mean(0)
    of = data.slide[split.validation]
    for number in of.unique().tolist():
        here = of == number
        rows = split.validation[here]
        start = int(data.rows_of(number)[0])
        half = torch.from_numpy(cut_across(data.slides[number].xy[rows - start], 2, axis=1))
        for part in half.unique():
            p, y = predicted[here][half == part] - mean, targets[rows[half == part]].double() - mean
            members.append(torch.einsum("nim,njm->ij", p, p) / len(p))
            products.append(torch.einsum("nim,nm->i", p, y) / len(p))
    return Products(torch.stack(members), torch.stack(products))


def least_gain(split: Split) -> float:
    """Give the gain that a blend must have on what such splits hold out."""
    return LEAST_GAIN_WITHIN_GROUPS if split.within_groups else LEAST_GAIN


def choose_shares(products: Products, least: float = LEAST_GAIN, *, without_last: bool = False) -> Tensor:
    """Choose the shares of the members of a blend, the first of which is the floor.

    The shares are not negative and sum to 1. The floor alone is kept where no blend gains, less a standard error over the
    parts, the part ``least`` of what the floor itself explains: a small gain on held-out parts of known slides is lost on new
    ones. Of the blends that do, those are compared whose mean gain is within a standard error (of the difference) of the
    largest, and the one nearest to equal shares is taken: shares that are estimated from few parts are noisy, and equal
    ones hard to beat :cite:p:`Smith2009`.

    Parameters
    ----------
    products
        Of all held-out parts.
    least
        Of :func:`least_gain`.
    without_last
        Leave the last member out, as after :func:`is_hopeless`.

    Returns
    -------
    (k,) float32; (1, 0, ..., 0) where the floor is kept.
    """
    shares, gain = _gains(products, without_last)
    needed, mean = least * _of_floor(products), gain.mean(1)
    enough = mean - _error(gain) >= needed
    if not enough.any():
        return shares[0].float()
    short = gain[mean.argmax()] - gain
    as_good = enough & (short.mean(1) <= _error(short))
    equal = shares.amax(0).sign()
    apart = (shares - equal / equal.sum()).square().sum(1)
    return shares[apart.masked_fill(~as_good, torch.inf).argmin()].float()


def certain_gain(products: Products, *, without_last: bool = False) -> float:
    """Gain of the best blend over the floor, less its standard error, as a share of what the floor explains.

    :func:`choose_shares` compares it with that of :func:`least_gain`. NaN where the floor explains nothing.
    """
    gain, of_floor = _gains(products, without_last)[1], float(_of_floor(products))
    return float((gain.mean(1) - _error(gain)).max()) / of_floor if of_floor > 0 else float("nan")


def _gains(products: Products, without_last: bool) -> tuple[Tensor, Tensor]:
    """Give the shares that are tried, (s, k), those of the floor alone first, and their gains by part, (s, B)."""
    shares = _grid(products)
    if without_last:
        shares = shares[shares[:, -1] == 0]
    return shares, products.gains(shares)


def is_hopeless(products: Products, least: float = LEAST_GAIN) -> bool:
    """Whether more held-out parts will hardly give the last member a share.

    That is where no blend with it, given ``BENEFIT_OF_DOUBT`` standard errors, gains what is needed to leave the floor, or more
    than the best blend without it. Of fewer than ``LEAST_PARTS`` the standard error is too uncertain to tell.
    """
    if len(products.targets) < LEAST_PARTS:
        return False
    shares = _grid(products)
    gain = products.gains(shares)
    with_last = shares[:, -1] > 0
    without = gain[~with_last][gain[~with_last].mean(1).argmax()]
    beyond = torch.maximum(without.mean(), least * _of_floor(products)) - without.mean()
    more = gain[with_last] - without
    return bool((more.mean(1) + BENEFIT_OF_DOUBT * _error(more)).max() < beyond)


def _grid(products: Products) -> Tensor:
    """Give the shares that are tried, (s, k) float64, those of the floor alone first."""
    steps = round(1 / STEP)
    k = products.targets.shape[1]
    grid = [rest for rest in product(range(steps + 1), repeat=k - 1) if sum(rest) <= steps]
    return torch.tensor([[steps - sum(rest), *rest] for rest in grid], dtype=torch.float64) / steps


def _floor_alone(k: int) -> Tensor:
    return torch.eye(1, k, dtype=torch.float64)


def _of_floor(products: Products) -> Tensor:
    """Give what the floor explains, 0 where it is no better than the mean."""
    return products.explained(_floor_alone(products.targets.shape[1])).mean()


def _error(gain: Tensor) -> Tensor:
    """Give the standard error of the mean gain (s, B) over the parts, (s,); of one part infinite, unless nothing is gained."""
    n = gain.shape[1]
    return gain.std(1) / n**0.5 if n > 1 else torch.where(gain[:, 0] == 0, 0.0, torch.inf)
