"""Base of all models, and their registry: every public module here that declares ``MODELS`` takes part."""

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .batch import PARTS, Batch, Output
from .scaling import Scalers

#: Training of most published models: Adam at a constant rate of 1e-4, without warm-up, decay, clipping or averaging.
PLAIN_RECIPE: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "max_epochs": 200,
    "patience": 20,
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "clip": 0.0,
    "average": 0.0,
}


@dataclass(frozen=True)
class Shape:
    """The sizes that the data give a model.

    Parameters
    ----------
    dim
        Width D of a token.
    n_tokens
        Local tokens T of a spot.
    n_side
        Neighbour tiles along one edge of the region.
    n_genes
        Panel genes M.
    n_rows, n_cols
        Extent of the largest slide's grid.
    n_bank
        Spots in the reference bank of a model that keeps one; the model sets it itself.
    """

    dim: int
    n_tokens: int
    n_side: int
    n_genes: int
    n_rows: int = 64
    n_cols: int = 64
    n_bank: int = 0

    def require(self, model: str, *, n_tokens: int = 1, n_side: int = 1) -> None:
        """Raise a ValueError with the missing call where a model needs more tokens or neighbours."""
        if self.n_tokens < n_tokens:
            raise ValueError(
                f"{model} attends to the local tokens of a tile, but the features are pooled to one: call "
                'gdml.pp.embed(adata, tokens="grid7"), with an encoder that has tokens of patches.'
            )
        if self.n_side < n_side:
            raise ValueError(
                f"{model} reads {n_side} x {n_side} neighbour tiles, but there are {self.n_side} x {self.n_side}: call "
                f"gdml.pp.tile(adata, n_side={max(n_side, 5)}) and embed again."
            )


class SpotModel(nn.Module):
    """Base of all models: features of spots to the expression of the panel genes.

    A subclass sets ``config_class``, ``citation`` and ``needs``, and writes ``forward``. With :class:`Scalers` as
    ``self.scalers`` and :meth:`predicted` for its output, it inherits ``prepare`` and ``loss``. Where the data have too few
    tokens or neighbours it calls :meth:`Shape.require`.

    Parameters
    ----------
    config
        Instance of ``config_class``, a frozen dataclass.
    shape
        Sizes of the data.
    """

    config_class: ClassVar[type]
    citation: ClassVar[str]
    #: Configs of published recipes, by name.
    presets: ClassVar[dict[str, Any]] = {}
    #: Normalisation of the expression that ``presets`` are for, where the user has chosen none.
    preset_normalization: ClassVar[str] = "scanpy"
    #: Fields of :class:`gdml.training.TrainingConfig` in which the recipe of the model differs from the defaults.
    recipe: ClassVar[Mapping[str, Any]] = {}
    #: The same for each of ``presets`` whose published training differs.
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: Parts of a :class:`gdml.models.Batch` that are read: of tokens, neighbors, summary, slides, counts
    #: and nearest.
    needs: frozenset[str] = frozenset({"tokens", "neighbors"})
    #: Whether image and expression share a space, that of ``Output.embedding`` and ``embed_expression``.
    shared_space: ClassVar[bool] = False
    #: Solved in ``prepare``, without training steps.
    closed_form: ClassVar[bool] = False
    #: Frame that the model learns in where none is named, one of ``gdml.training.frame.FRAMES``; of ``presets``: raw.
    default_frame: ClassVar[str] = "raw"
    scalers: Scalers

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for part in cls.needs:
            if part not in PARTS:
                raise ValueError(f"{cls.__name__}.needs has {part!r}. {did_you_mean(part, PARTS)}")

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape
        #: Units that the model learns in (``gdml.training.frame.Frame``), set before training; None: those of the data.
        self.frame: Any = None

    @classmethod
    def adapt(cls, config: Any, normalization: Mapping[str, Any]) -> Any:
        """Fill in the fields of a config that depend on the kind of expression.

        Parameters
        ----------
        config
            Instance of ``config_class``.
        normalization
            Fields of the :class:`gdml.expression.Normalization` that made the expression.
        """
        return config

    @classmethod
    def published_grids(cls, config: Any) -> dict[str, dict[Any, dict[str, Any]]]:
        """Ablations of the paper: by name of a setting and its value, the fields of ``config`` that change.

        Parameters
        ----------
        config
            Instance of ``config_class`` that is varied.
        """
        return {}

    @classmethod
    def members(cls, config: Any) -> tuple[str, ...]:
        """Names of the predictions that the model blends, the floor's first; empty where it blends none.

        The shares are chosen on held-out spots: in evaluation mode the output has ``parts["members"]``, (N, k, M), and
        ``take_shares`` sets the shares. From a batch of ``network_needs`` alone, the last member alone predicts.
        """
        return ()

    @classmethod
    def holds_out_every_spot(cls, config: Any) -> bool:
        """Whether each training spot is to be held out once: to weigh the members of a blend, or because it costs little."""
        return cls.closed_form or bool(cls.members(config))

    def take_shares(self, shares: Tensor) -> None:
        """Set the shares (k,) of a blend."""
        raise NotImplementedError(f"{type(self).__name__} blends nothing.")

    @property
    def network_needs(self) -> frozenset[str]:
        """Parts of a batch that the training steps and the choice of the epoch read, ``needs`` without those of a floor."""
        return self.needs

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Compute constants (scales, means, reference banks) from the training spots, once, before the first step.

        ``batches`` can be iterated over several times.
        """
        if hasattr(self, "scalers"):
            self.scalers.prepare(batches, neighbors="neighbors" in self.needs)

    @property
    def target_components(self) -> Tensor | None:
        """Components of the targets that the frame keeps, (k, M) orthonormal rows; None for all, and without a frame."""
        return None if self.frame is None else self.frame.components()

    @property
    def n_parameters(self) -> int:
        """Number of parameters; of a model in closed form the number of solved values."""
        solved = (b.numel() for name, b in self.named_buffers() if not name.startswith("frame."))
        return sum(p.numel() for p in self.parameters()) or sum(solved)

    def forward(self, batch: Batch) -> Output:
        """Predict the expression of a batch; ``expression`` and ``counts`` must not be read."""
        raise NotImplementedError

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Expression (N, M) on the training scale to the shared space: (N, d), rows of unit length."""
        raise NotImplementedError(f"{type(self).__name__} has no space that image and expression share.")

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Scalars by name: ``"loss"`` is minimised, the others are recorded. Here: the mean squared error.

        Parameters
        ----------
        batch
            With ``expression``.
        output
            Of ``forward`` on it.
        generator
            Source of the run's random numbers, on the CPU.

        Raises
        ------
        ValueError
            If the batch has no expression.
        """
        with torch.autocast(batch.measured.device.type, enabled=False):
            if "prediction" in output.parts:
                target = self.scalers.target(batch.measured)
                error = squared_error(output.parts["prediction"].float(), target, batch.weight)
            else:
                error = squared_error(output.prediction, batch.measured, batch.weight)
        return {"loss": error, "loss_pred": error}

    def predicted(self, prediction: Tensor, embedding: Tensor | None = None, **parts: Tensor) -> Output:
        """Output of a prediction (N, M) on the scale of ``scalers.target``, kept in ``parts["prediction"]``."""
        return Output(self.scalers.target.inverse(prediction.float()), embedding, {"prediction": prediction, **parts})


def squared_error(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of ``prediction`` (N, M), each spot by its ``weight`` (N,); None: all the same."""
    if weight is None:
        return F.mse_loss(prediction, target)
    return ((prediction - target).square().mean(1) * weight).mean()


_registered: dict[str, type[SpotModel]] = {}


def register(name: str, model: type[SpotModel]) -> None:
    """Register a model under a name, for this Python session.

    :func:`gdml.tl.fit`, :func:`gdml.tl.cross_validate` and :func:`gdml.load` then accept the name.
    Registering a name again replaces the model, so that a notebook cell can be run twice.

    Parameters
    ----------
    name
        Name for ``model=``.
    model
        A subclass of :class:`SpotModel`.

    Raises
    ------
    TypeError
        If ``model`` is not a subclass of :class:`SpotModel`.
    ValueError
        If the name is that of a built-in model, or the class lacks ``config_class`` or ``citation``.
    """
    if not (isinstance(model, type) and issubclass(model, SpotModel)):
        raise TypeError(f"`model` must be a subclass of gdml.models.SpotModel, found {model!r}.")
    if name in _built_in():
        raise ValueError(f"`name` is {name!r}, which is a built-in model; choose another one.")
    for part in ("config_class", "citation"):
        if not hasattr(model, part):
            raise ValueError(f"{model.__name__} has no `{part}`; a model sets config_class and citation.")
    _registered[name] = model


def _models() -> dict[str, type[SpotModel]]:
    return {**_built_in(), **_registered}


@cache
def _built_in() -> dict[str, type[SpotModel]]:
    package = __name__.rpartition(".")[0]
    found: dict[str, type[SpotModel]] = {}
    for module in pkgutil.iter_modules(import_module(package).__path__):
        if not module.name.startswith("_"):
            found |= getattr(import_module(f"{package}.{module.name}"), "MODELS", {})
    return found


def list_models() -> list[str]:
    """List the names that ``model=`` accepts.

    Returns
    -------
    Sorted names.
    """
    return sorted(_models())


def get_model(name: str) -> type[SpotModel]:
    """Find the class of a model.

    Parameters
    ----------
    name
        One of :func:`list_models`.

    Returns
    -------
    A subclass of :class:`SpotModel`.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    models = _models()
    if name not in models:
        raise ValueError(f"`model` is {name!r}, which is not known. {did_you_mean(name, models)}")
    return models[name]


def make_config(model: type[SpotModel], base: Any = None, options: dict[str, Any] | None = None) -> Any:
    """Config of a model: ``base`` or the defaults, with ``options`` in place of some fields.

    Raises
    ------
    ValueError
        If an option is no field of the config.
    """
    config = model.config_class() if base is None else base
    names = [f.name for f in fields(config)]
    for option in options or {}:
        if option not in names:
            raise ValueError(f"`config` has no field {option!r}. {did_you_mean(option, names)}")
    return replace(config, **(options or {}))
