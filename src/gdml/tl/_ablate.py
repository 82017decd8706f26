"""Compare settings of one model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from anndata import AnnData

from gdml import _keys
from gdml._errors import did_you_mean, renamed
from gdml._progress import tell
from gdml.spots.resolve import Spots

from ._comparison import Comparison
from ._cross_validate import as_comparison, compare_models
from ._fold_predictions import fold_warrants

_FABRIC = ("device", "precision", "devices", "strategy", "num_nodes")
_OPTIONS = (
    *("group_key", "folds", "n_folds", "n_repeats", "protocol", "seeds", "normalize", "validation"),
    *("validation_fraction", "allow_shared_groups", "save_to", "keep_models", *_FABRIC),
)
Grid = Mapping[str, Sequence[Any] | Mapping[str, Mapping[str, Any]]]


def ablate(
    adata: AnnData,
    model: str = "gene-dml",
    grid: Grid | None = None,
    *,
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    max_epochs: int | None = None,
    frame: str | Mapping[str, Any] | None = None,
    key: str = _keys.KEY,
    groups: str | None = None,
    **options: Any,
) -> Comparison:
    """Change the settings of a model one at a time, and compare on the same folds.

    Every value of every field of ``grid`` is one variant of the model, in addition to the unchanged model. Runs are
    done, kept and skipped as by :func:`gdml.tl.cross_validate`; only missing tiles and features are written to ``adata``.

    Parameters
    ----------
    adata
        Spots of all slides, with raw counts. A SpatialData with one table works as well.
    model
        Name of the model.
    grid
        Values by field of the model's config, ``{"n_groups": [9, 18, 36]}``. Settings that change together get a name
        of your choice: ``{"pathways": {"neither": {"instance_weight": 0, "group_weight": 0}}}``. None: the grids of
        the model's paper, for Gene-DML both pathways on and off, k, lambda and tau of the group loss
        :cite:p:`Song2026`.
    preset, config, training, max_epochs, frame
        The model that is varied, as in :func:`gdml.tl.fit`.
    key
        Name under which tiles, features and normalisation are stored.
    groups
        Former name of ``group_key``.
    **options
        Of :func:`gdml.tl.cross_validate`: ``group_key``, ``folds``, ``protocol``, ``seeds``, ``save_to``, ...

    Returns
    -------
    :class:`gdml.tl.Comparison`, whose ``variants`` tells for each model label the ``field`` that was changed
    (empty for the unchanged model), the value of every varied field, and whether it is the ``default``.

    Raises
    ------
    ValueError
        If a field is no field of the model's config, a value is not valid, or the model has no published grids.

    See Also
    --------
    gdml.pl.ablation : Draw the result.

    Examples
    --------
    >>> import gdml
    >>> found = gdml.tl.ablate(adata, "gene-dml", {"group_weight": [0, 0.24, 1]}, group_key="patient")  # doctest: +SKIP
    >>> found.compare("gene-dml")  # doctest: +SKIP
    """
    from gdml.training.candidates import resolve_settings

    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"gdml.tl.ablate has no argument {name!r}. {did_you_mean(name, _OPTIONS)}")
    options["group_key"] = renamed("groups", groups, "group_key", options.get("group_key"))
    options["fabric"] = {name: options.pop(name) for name in _FABRIC if name in options}
    model_class, base, _, _ = resolve_settings(model, preset, config, training, max_epochs, frame)
    grid = model_class.published_grids(base) if grid is None else grid
    if not grid:
        raise ValueError(f"`grid` is empty: name a field of {model!r} and its values, such as {{'width': [64, 128]}}.")
    own: dict[str, Any] = {
        "model": model,
        "preset": preset,
        "config": dict(config or {}),
        "training": training,
        "max_epochs": max_epochs,
        "frame": frame,
    }
    candidates: dict[str, dict[str, Any]] = {model: own}
    default = {field: _default(values, base, field) for field, values in grid.items()}
    variants = {model: {"field": "", "default": True, **default}}
    for field, values in grid.items():
        for name, changes in _named(field, values).items():
            # fails here, before anything is run, where a field or a value is not valid
            changed = resolve_settings(model, preset, {**own["config"], **changes}, training, max_epochs, frame)[1]
            if changed == base:
                continue
            label = f"{field}={name}"
            candidates[label] = {**own, "config": {**own["config"], **changes}}
            variants[label] = {"field": field, "default": False, **default, field: name}
    spots = Spots.resolve(adata, key=key)
    plan, results = compare_models(spots, candidates, **options)
    warrants = fold_warrants(spots, plan, results)
    found = as_comparison(plan, results, options.get("allow_shared_groups", False), warrants)
    found.variants = pd.DataFrame.from_dict(variants, orient="index")
    found.variants.index.name = "model"
    tell(f"ablate: {found.line()}")
    return found


def _named(field: str, values: Any) -> dict[Any, dict[str, Any]]:
    """List the changes of the config by the value, or name, that stands for them."""
    if isinstance(values, Mapping):
        return {name: dict(changes) for name, changes in values.items()}
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"`grid[{field!r}]` is {values!r}; give a list of values, or named settings.")
    return {value: {field: value} for value in values}


def _default(values: Any, base: Any, field: str) -> Any:
    """Value, or name of the settings, of the unchanged model."""
    fields = asdict(base)
    if not isinstance(values, Mapping):
        return fields.get(field)
    for name, changes in values.items():
        if all(fields.get(k) == v for k, v in changes.items()):
            return name
    return "default"
