"""Base of the models' configs: values are checked when a config is made."""

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from gdml._errors import check_fields, did_you_mean


def _choices(config: type) -> dict[str, tuple[Any, ...]]:
    """Give the allowed values of the ``Literal`` fields of a config."""
    hints = get_type_hints(config)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


@dataclass(frozen=True)
class Config:
    """Base of frozen config dataclasses; fields annotated as ``Literal`` or as numbers are checked.

    A subclass with further conditions extends ``__post_init__``.
    """

    def __post_init__(self) -> None:
        check_fields(self)
        for name, choices in _choices(type(self)).items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")

    def check_at_least(self, least: int, *names: str) -> None:
        """Raise a ValueError that names the first field below ``least``."""
        for name in names:
            value = getattr(self, name)
            if not value >= least:
                wanted = "must not be negative" if least == 0 else f"must be at least {least}"
                raise ValueError(f"`{name}` {wanted}, found {value!r}.")

    def check_positive(self, *names: str) -> None:
        """Raise a ValueError that names the first field that is not above 0."""
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, found {getattr(self, name)!r}.")

    def check_share(self, *names: str, closed: bool = True) -> None:
        """Raise a ValueError that names the first field outside [0, 1], or [0, 1) where it is not ``closed``."""
        for name in names:
            value = getattr(self, name)
            if not (0 <= value < 1 or (closed and value == 1)):
                raise ValueError(f"`{name}` must lie in [0, 1{']' if closed else ')'}, found {value!r}.")

    def check_heads(self, *names: str) -> None:
        """Raise a ValueError that names the first number of heads that does not divide ``width``."""
        width = getattr(self, "width")  # noqa: B009
        for name in names:
            heads = getattr(self, name)
            if heads < 1 or width % heads:
                raise ValueError(f"`{name}` must divide `width`: found {heads} heads for width {width}.")


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig(Config):
    """Config of a ridge regression.

    Parameters
    ----------
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm.
    """

    alpha_min: float = 1e-1
    alpha_max: float = 1e6
    n_alphas: int = 29

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "n_alphas")
        self.check_positive("alpha_min", "alpha_max")

    @property
    def alphas(self) -> list[float]:
        """Penalties that are tried, ascending."""
        return np.geomspace(self.alpha_min, self.alpha_max, self.n_alphas).tolist()


@dataclass(frozen=True)
class ScaledConfig(Config):
    """Config of a model that has :class:`gdml.models.Scalers`.

    Parameters
    ----------
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"``.
    targets
        Scale on which expression is learnt. ``"center"``: the mean of each gene over the training spots is subtracted,
        so that a model starts there; ``"standardize"``: each gene is also divided by its standard deviation;
        ``"raw"``: as measured.
    """

    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"
