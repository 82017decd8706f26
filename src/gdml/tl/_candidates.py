"""The models of a comparison, by label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gdml._errors import did_you_mean

from ._arguments import resolve_settings

if TYPE_CHECKING:
    from gdml.models import Shape, SpotModel
    from gdml.training import TrainingConfig

#: What can be said of one model.
_OPTIONS = ("model", "preset", "config", "training", "max_epochs")


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison.

    Parameters
    ----------
    label
        Its name in the tables.
    name
        Its name in the registry.
    model
        Its class.
    config
        Its settings.
    loop
        Settings of its training.
    """

    label: str
    name: str
    model: "type[SpotModel]"
    config: Any
    loop: "TrainingConfig"

    def check(self, shape: "Shape") -> None:
        """Raise what the model says of data of this shape, at no cost.

        Raises
        ------
        ValueError
            If parts are missing that it needs.
        """
        import torch

        with torch.device("meta"):
            try:
                self.model(self.config, shape)
            except ValueError as error:
                raise ValueError(f"`model` {self.label!r}: {error}") from error


def make_candidates(
    model: str | Sequence[str] | Mapping[str, Any], presets: Mapping[str, str], max_epochs: int | None
) -> list[Candidate]:
    """Resolve what the user asked for.

    Parameters
    ----------
    model
        A name, names, or a mapping from labels to names or to options (``model``, ``preset``, ``config``,
        ``training``, ``max_epochs``).
    presets
        Preset of a model of which nothing is said but its name.
    max_epochs
        Of all models, where they don't say otherwise.

    Raises
    ------
    ValueError
        If there is none, one twice, or an option, name or field is unknown.
    """
    if isinstance(model, str):
        model = [model]
    pairs = list(model.items()) if isinstance(model, Mapping) else [(name, name) for name in model]
    labels = [str(label) for label, _ in pairs]
    if not pairs or len(set(labels)) < len(labels):
        raise ValueError(
            f"`model` names {labels or 'no model'}: give different names, or, to compare settings of one model, a mapping "
            'such as {"ridge, HEST": {"model": "ridge", "preset": "hest"}}.'
        )
    return [_candidate(label, said, presets, max_epochs) for label, (_, said) in zip(labels, pairs, strict=True)]


def _candidate(label: str, said: Any, presets: Mapping[str, str], max_epochs: int | None) -> Candidate:
    options = {"model": said} if isinstance(said, str) else dict(said)
    for option in options:
        if option not in _OPTIONS:
            raise ValueError(f"`model[{label!r}]` has no option {option!r}. {did_you_mean(option, _OPTIONS)}")
    name = str(options.pop("model", label))
    if not options.keys() - {"max_epochs"}:
        options["preset"] = presets.get(name)
    settings: dict[str, Any] = {option: options.get(option) for option in _OPTIONS[1:]}
    if settings["max_epochs"] is None:
        settings["max_epochs"] = max_epochs
    model_class, config, loop = resolve_settings(name, **settings)
    return Candidate(label, name, model_class, config, loop)
