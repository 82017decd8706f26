"""What is compared, and by which rules: models by label, and protocols."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gdml._errors import did_you_mean
from gdml.models.base import Shape, SpotModel, get_model, make_config

from .config import TrainingConfig, make_training_config
from .frame import FrameConfig, make_frame_config

#: Options of one model.
_OPTIONS = ("model", "preset", "config", "training", "max_epochs", "frame")


@dataclass(frozen=True)
class Protocol:
    """Rules of a comparison.

    Parameters
    ----------
    name
        Name of the protocol.
    normalize
        Arguments of :func:`gdml.pp.normalize` and :func:`gdml.pp.select_genes` that replace those that the data were
        normalised with.
    select_on_test
        The epoch is chosen by the scores on the test slides.
    pooled
        Correlations are computed over all test spots of a fold, not slide by slide.
    presets
        Preset of a model for which only a name is given.
    note
        Caveat shown with every score.
    """

    name: str
    normalize: Mapping[str, Any] = field(default_factory=dict)
    select_on_test: bool = False
    pooled: bool = False
    presets: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


PROTOCOLS = {
    "nested": Protocol("nested"),
    "paper": Protocol(
        "paper",
        normalize={"normalization": "paper"},
        select_on_test=True,
        note="OPTIMISTIC: the epoch is selected on the test fold (protocol 'paper').",
    ),
    "hest-bench": Protocol(
        "hest-bench",
        normalize={"n_genes": 50, "method": "hest", "normalization": "hest"},
        pooled=True,
        presets={"ridge": "hest"},
        note="Genes are chosen on all slides, test slides included, and correlations are over all test spots of a fold "
        "(protocol 'hest-bench').",
    ),
}


def get_protocol(name: str) -> Protocol:
    """Find a protocol.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` is {name!r}. {did_you_mean(str(name), PROTOCOLS)}")
    return PROTOCOLS[name]


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
    frame
        Units that it learns in.
    """

    label: str
    name: str
    model: type[SpotModel]
    config: Any
    loop: TrainingConfig
    frame: FrameConfig

    def check(self, shape: Shape) -> None:
        """Make the model without memory for its weights, so that unsuitable data are refused at once.

        Raises
        ------
        ValueError
            If parts are missing that it needs.
        """
        with torch.device("meta"):
            try:
                self.model(self.config, shape)
            except ValueError as error:
                raise ValueError(f"`model` {self.label!r}: {error}") from error


def make_candidates(
    model: str | Sequence[str] | Mapping[str, Any], presets: Mapping[str, str], max_epochs: int | None
) -> list[Candidate]:
    """Resolve the models of a comparison.

    Parameters
    ----------
    model
        A name, names, or a mapping from labels to names or to options (``model``, ``preset``, ``config``,
        ``training``, ``max_epochs``, ``frame``).
    presets
        Preset of a model for which only a name is given.
    max_epochs
        Of models without a number of their own.

    Raises
    ------
    ValueError
        If there is none, one twice, or an option, name or field is unknown.
    TypeError
        If ``model`` is neither.
    """
    if isinstance(model, str):
        model = [model]
    elif not isinstance(model, Iterable):
        raise TypeError(f"`model` must be a name, a list of names or a dict by label, found {model!r}.")
    pairs = list(model.items()) if isinstance(model, Mapping) else [(name, name) for name in model]
    labels = [str(label) for label, _ in pairs]
    if not pairs or len(set(labels)) < len(labels):
        raise ValueError(
            f"`model` names {labels or 'no model'}: give different names, or, to compare settings of one model, a mapping "
            'such as {"ridge, HEST": {"model": "ridge", "preset": "hest"}}.'
        )
    return [_candidate(label, given, presets, max_epochs) for label, (_, given) in zip(labels, pairs, strict=True)]


def _candidate(label: str, given: Any, presets: Mapping[str, str], max_epochs: int | None) -> Candidate:
    options = {"model": given} if isinstance(given, str) else dict(given)
    for option in options:
        if option not in _OPTIONS:
            raise ValueError(f"`model[{label!r}]` has no option {option!r}. {did_you_mean(option, _OPTIONS)}")
    name = str(options.pop("model", label))
    if not options.keys() - {"max_epochs"}:
        options["preset"] = presets.get(name)
    settings: dict[str, Any] = {option: options.get(option) for option in _OPTIONS[1:]}
    if settings["max_epochs"] is None:
        settings["max_epochs"] = max_epochs
    return Candidate(label, name, *resolve_settings(name, **settings))


def resolve_settings(
    name: str,
    preset: str | None,
    config: Mapping[str, Any] | None,
    training: Mapping[str, Any] | TrainingConfig | None,
    max_epochs: int | None,
    frame: str | Mapping[str, Any] | FrameConfig | None = None,
) -> tuple[type[SpotModel], Any, TrainingConfig, FrameConfig]:
    """Class of a model, its config, the settings of its training, and its frame; that of a preset is raw.

    Raises
    ------
    ValueError
        If a name or a field is unknown, or a value is not valid.
    """
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
    frame_config = make_frame_config(frame, model_class.default_frame if preset is None else "raw")
    return model_class, make_config(model_class, base, dict(config or {})), loop, frame_config
