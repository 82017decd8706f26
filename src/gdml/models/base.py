"""What every model has in common, and the registry: a public module that declares ``MODELS`` takes part."""

import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .batch import Batch, Output


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


class SpotModel(nn.Module):
    """Base of all models: features of spots to the expression of the panel genes.

    A subclass sets ``config_class`` and ``citation``, and writes ``forward`` and ``loss``, and ``prepare`` where there is
    something to learn before the first step. It raises a ValueError that names the missing call where the data's shape
    does not suffice (one token only, no neighbours).

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
    #: Fields of :class:`gdml.training.TrainingConfig` in which the model's own recipe differs from ours.
    recipe: ClassVar[Mapping[str, Any]] = {}
    #: The same for each of ``presets``, where the published training is another.
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: Parts of a :class:`gdml.models.Batch` that it reads, of tokens, neighbors, counts, nearest.
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "neighbors"})
    #: Whether image and expression share a space, which ``Output.embedding`` and ``embed_expression`` are in.
    shared_space: ClassVar[bool] = False
    #: Solved in ``prepare``; there is nothing to iterate.
    closed_form: ClassVar[bool] = False

    def __init__(self, config: Any, shape: Shape) -> None:
        super().__init__()
        self.config = config
        self.shape = shape

    @classmethod
    def adapt(cls, config: Any, normalization: Mapping[str, Any]) -> Any:
        """Fill in what a config leaves to the kind of expression that is learnt.

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
        """Ablations of the model's paper: by the name of a setting, changes of ``config`` by the value they stand for.

        Parameters
        ----------
        config
            Instance of ``config_class`` that is varied.
        """
        return {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Learn constants (scales, means, reference banks) from the training spots, once, before the first step."""

    def forward(self, batch: Batch) -> Output:
        """Predict; reads neither ``expression`` nor ``counts``."""
        raise NotImplementedError

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Expression (N, M) on the training scale to the shared space: (N, d), rows of unit length."""
        raise NotImplementedError(f"{type(self).__name__} has no space that image and expression share.")

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Scalars by name; ``"loss"`` is minimised, the others are recorded.

        Parameters
        ----------
        batch
            With ``expression``.
        output
            Of ``forward`` on it.
        generator
            Source of the run's random numbers, on the CPU.
        """
        raise NotImplementedError


_registered: dict[str, type[SpotModel]] = {}


def register(name: str, model: type[SpotModel]) -> None:
    """Make a model of your own known under a name, in this Python session.

    :func:`gdml.tl.fit`, :func:`gdml.tl.cross_validate` and :func:`gdml.load` find it as they find the built-in ones.
    Registering a name again replaces the model, so that a notebook cell can be run twice.

    Parameters
    ----------
    name
        That ``model=`` will take.
    model
        A subclass of :class:`SpotModel`.

    Raises
    ------
    TypeError
        If it is no subclass of :class:`SpotModel`.
    ValueError
        If a built-in model has the name, or the class lacks ``config_class`` or ``citation``.
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
    """List the names that ``model=`` takes.

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


def config_record(config: Any) -> dict[str, Any]:
    """Fields of a config as plain values, for JSON and ``uns``."""
    return asdict(config)
