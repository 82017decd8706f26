"""The model that a verb was given, or that was fitted on its spots."""

import os
from typing import TYPE_CHECKING, Any

from gdml import _keys
from gdml.spots.resolve import Spots

if TYPE_CHECKING:
    from gdml.training import TrainedModel

IN_MEMORY = "in memory"


def as_model(model: Any) -> "TrainedModel":
    """Read a model from its folder, or take it as it is.

    Parameters
    ----------
    model
        A trained model, or the folder of a saved one.

    Raises
    ------
    TypeError
        If it is neither.
    FileNotFoundError, ValueError
        As :func:`gdml.load`.
    """
    from gdml.training.trained import TrainedModel, load

    if isinstance(model, TrainedModel):
        return model
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"`model` must be a trained model or the folder of one, found {type(model).__name__}.")
    return load(model)


def find_model(spots: Spots, model: Any) -> tuple["TrainedModel", str]:
    """Find the model to use, and the folder it is saved in or ``"in memory"``.

    Parameters
    ----------
    spots
        Spots that a model may have been fitted on.
    model
        As in :func:`as_model`; None: the one that was fitted.

    Raises
    ------
    KeyError
        If none is given and none was fitted.
    ValueError
        If the fitted one was not saved.
    FileNotFoundError
        If it is not there any more.
    """
    found = as_model(_fitted(spots) if model is None else model)
    return found, found.path or IN_MEMORY


def _fitted(spots: Spots) -> str:
    """Folder of the model that was fitted on these spots."""
    record = spots.record(_keys.FIT)
    if record is None:
        raise KeyError(
            f"No `model` is given, and uns[{spots.key!r}] records none: call gdml.tl.fit(adata) first, or pass a "
            "model or the folder of a saved one."
        )
    model = str(record["model"])
    if model == IN_MEMORY:
        raise ValueError("`model`: the fitted model could not be saved; pass the model that gdml.tl.fit returned.")
    if not os.path.exists(model):
        raise FileNotFoundError(
            f"No `model` is given, and the one that uns[{spots.key!r}]['fit'] records, {model!r}, does not exist: pass "
            "a model or the folder of a saved one, or call gdml.tl.fit(adata) again."
        )
    return model
