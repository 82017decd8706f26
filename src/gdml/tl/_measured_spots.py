"""Spots of a new slide that were measured, on the scale of a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count, some
from gdml.expression import Normalization, find_bad_count, normalize_counts
from gdml.spots.coordinates import check_column
from gdml.spots.genes import GeneMatch, why_few
from gdml.spots.resolve import Spots

if TYPE_CHECKING:
    from gdml.training import TrainedModel


@dataclass(frozen=True)
class MeasuredSpots:
    """Spots to calibrate intervals on, by slide.

    Parameters
    ----------
    rows
        Rows of the marked spots of each slide, ascending.
    values
        Their expression, (spots, panel), on the scale of the model; NaN for genes that were not measured.
    """

    rows: dict[str, NDArray[np.intp]]
    values: dict[str, NDArray[np.float64]]


def measured_spots(spots: Spots, trained: "TrainedModel", match: GeneMatch, calibrate_on: Any) -> MeasuredSpots:
    """Read the marked spots, of which alone counts are needed.

    Parameters
    ----------
    spots, trained, match
        What is to be predicted, by which model, and the panel genes among those of the spots.
    calibrate_on
        As in :func:`gdml.tl.predict`.

    Raises
    ------
    TypeError, ValueError, KeyError
        If no spots, or all, are marked on a slide; if they have no counts, or none that can be brought to the scale of the
        model.
    """
    adata = spots.adata
    mask = _mask(adata, calibrate_on)
    rows = {name: inside[mask[inside]] for name, inside in spots.slides.items()}
    none = [name for name, one in rows.items() if not len(one)]
    if none:
        raise ValueError(
            f"`calibrate_on` marks no spot of {count(len(none), 'slide')} ({some(none)}), and spots of one slide say nothing "
            "about another: predict slides without measured spots by themselves."
        )
    whole = [name for name, one in rows.items() if len(one) == len(spots.slides[name])]
    if whole:
        raise ValueError(
            f"`calibrate_on` marks all spots of {count(len(whole), 'slide')} ({some(whole)}), so that none is left that an "
            "interval could be for: mark a part of them."
        )
    norm = _scale(adata, trained, match)
    layer = (spots.record(_keys.NORMALIZATION) or {}).get("layer")
    values = {name: _normalized(adata, one, match, norm, layer) for name, one in rows.items()}
    return MeasuredSpots(rows, values)


def _mask(adata: AnnData, given: Any) -> NDArray[np.bool_]:
    """Boolean mask of the spots, from a column of ``obs`` or as it is."""
    if isinstance(given, str):
        check_column(adata, "calibrate_on", given)
        values = adata.obs[given]
        place = f"obs[{given!r}]"
    else:
        values, place = given, "`calibrate_on`"
        if isinstance(given, pd.Series) and len(given) == adata.n_obs and not given.index.equals(adata.obs_names):
            raise ValueError("`calibrate_on` is a Series with another index than `adata.obs_names`; reindex it first.")
    values = pd.Series(np.asarray(values) if not isinstance(values, pd.Series) else values.to_numpy(), dtype=None)
    if values.dtype == object and len(values) and all(isinstance(value, bool | np.bool_) for value in values):
        values = values.astype(bool)  # a nullable column of booleans without gaps
    if values.dtype != bool:
        raise TypeError(
            f"{place} must be boolean, True where a spot was measured, found {values.dtype}; make one by a comparison, such "
            "as adata.obs['n_counts'] > 0."
        )
    if len(values) != adata.n_obs:
        raise ValueError(f"`calibrate_on` has length {len(values)}, and `adata` {adata.n_obs} spots.")
    return values.to_numpy()


def _scale(adata: AnnData, trained: "TrainedModel", match: GeneMatch) -> Normalization:
    """Give the scale of the model, if single spots and their measured genes can be brought to it."""
    if not match.n:
        raise ValueError(f"`calibrate_on`: no gene was measured. {why_few(adata, trained.panel, match)}")
    norm = Normalization.from_dict(trained.normalization)
    if norm.smooth:
        raise ValueError(
            "`calibrate_on` cannot be used with this model: it predicts averages over neighbouring spots, and the neighbours "
            "of a measured spot may not be. Leave calibrate_on out, or fit a model to single spots: "
            "gdml.pp.normalize(adata, smooth=False) before gdml.tl.fit."
        )
    if norm.order == "panel" and not match.present.all():
        raise ValueError(
            f"`calibrate_on` cannot be used here: the model scales each spot by its total over {len(match.columns)} panel "
            f"genes, of which {len(match.columns) - match.n} were not measured, so that counts are not on its scale. Leave "
            'calibrate_on out, or fit a model whose total is over all genes: gdml.pp.normalize(adata, order="all").'
        )
    return norm


def _normalized(
    adata: AnnData, rows: NDArray[np.intp], match: GeneMatch, norm: Normalization, layer: str | None
) -> NDArray[np.float64]:
    """Expression of the marked spots of a slide; other spots may have no counts."""
    where = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    matrix = adata.X if layer is None else adata.layers.get(layer)
    if matrix is None:
        raise ValueError(
            f"`calibrate_on` needs raw counts of the marked spots, and there is no {where}: put them there."
        )
    counts = matrix[rows]
    bad = find_bad_count(counts)
    if bad:
        raise ValueError(
            f"`calibrate_on` needs raw counts of the marked spots, and {where} holds {bad[2]:g} (spot "
            f"{adata.obs_names[rows[bad[0]]]!r}, gene {adata.var_names[bad[1]]!r}): put the whole counts there."
        )
    empty = np.flatnonzero(np.asarray(counts.sum(1)).ravel() == 0)
    if len(empty):
        raise ValueError(
            f"`calibrate_on` marks {count(len(empty), 'spot')} without any counts in {where} "
            f"({some(adata.obs_names[rows[empty]])}): mark measured spots alone."
        )
    return normalize_counts(counts, match.columns, norm).astype(np.float64)
