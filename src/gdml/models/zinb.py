"""Counts as draws from a zero-inflated negative binomial."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LOG_MEAN = (math.log(1e-5), math.log(1e6))
_DISPERSION = (1e-4, 1e4)


def size_factors(counts: Tensor) -> Tensor:
    """Depth of each spot over the median depth of all: (N, M) counts to (N,), positive."""
    depth = counts.sum(1)
    return depth.clamp(min=1) / depth.quantile(0.5).clamp(min=1)


def zinb_loss(counts: Tensor, log_mean: Tensor, dispersion: Tensor, zero_logit: Tensor) -> Tensor:
    """Negative log-likelihood, averaged over all entries (Eraslan et al. 2019, equations 1 to 3).

    A count is zero with the probability pi, and else drawn from a negative binomial of mean mu and variance
    mu + mu^2 / r. All is computed in logarithms, so that neither a large mean nor a small probability overflows.

    Parameters
    ----------
    counts
        (N, M) raw counts.
    log_mean
        (N, M) logarithm of mu, the spot's size factor included; clamped to 1e-5 and 1e6.
    dispersion
        (N, M) r, positive; clamped to 1e-4 and 1e4.
    zero_logit
        (N, M) logit of pi.

    Returns
    -------
    Scalar.
    """
    log_mean, r = log_mean.clamp(*_LOG_MEAN), dispersion.clamp(*_DISPERSION)
    log_total = torch.logaddexp(log_mean, r.log())
    zero = r * (r.log() - log_total)  # of the negative binomial alone
    some = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
    some = some + zero + counts * (log_mean - log_total)
    drop, keep = F.logsigmoid(zero_logit), F.logsigmoid(-zero_logit)
    return -torch.where(counts > 0, keep + some, torch.logaddexp(drop, keep + zero)).mean()
