"""Arguments of fit, checked and completed before anything is computed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gdml._errors import check_number, did_you_mean

if TYPE_CHECKING:
    from gdml.training import TrainingConfig


def resolve_settings(
    name: str,
    preset: str | None,
    config: Mapping[str, Any] | None,
    training: "Mapping[str, Any] | TrainingConfig | None",
    max_epochs: int | None,
) -> tuple[Any, Any, "TrainingConfig"]:
    """Class of a model, its config and the settings of the training loop; arguments as in :func:`gdml.tl.fit`."""
    from gdml.models.base import get_model, make_config
    from gdml.training import TrainingConfig, make_training_config

    model_class = get_model(name)
    base = None
    if preset is not None:
        if preset not in model_class.presets:
            known = model_class.presets or {}
            raise ValueError(
                f"`preset` is {preset!r}. {did_you_mean(preset, known)}"
                if known
                else f"`preset` is {preset!r}, but the model {name!r} has none."
            )
        base = model_class.presets[preset]
    if isinstance(training, TrainingConfig):
        loop = training
    else:
        recipe = model_class.recipe if preset is None else model_class.preset_recipes.get(preset, model_class.recipe)
        loop = make_training_config(recipe, training)
    if max_epochs is not None:
        loop = replace(loop, max_epochs=max_epochs)
    return model_class, make_config(model_class, base, dict(config or {})), loop


def check_split_arguments(validation: str | None, fraction: float) -> None:
    """Refuse an unknown way to hold spots out, and a share that is not between 0 and 1."""
    if validation not in (None, "auto", "group", "block"):
        raise ValueError(f"`validation` is {validation!r}. {did_you_mean(str(validation), ('auto', 'group', 'block'))}")
    check_number("validation_fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, found {fraction!r}.")
