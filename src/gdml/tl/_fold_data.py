"""The data of each fold: panel, normalisation and counts from its training slides, features shared by all."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.expression import Normalization, as_normalization
from gdml.spots.data import panel_counts, spot_data
from gdml.spots.measured import measured_expression
from gdml.spots.panel import choose_panel
from gdml.spots.resolve import Spots

from ._folds import Fold, counts_digest

if TYPE_CHECKING:
    from gdml.training import SpotData

_SWITCHES = ("order", "target_sum", "log", "smooth")
_PANEL = ("n_genes", "method", "genes", "min_fraction")
_KNOWN = ("normalization", "layer", *_SWITCHES, *_PANEL)


@dataclass(frozen=True)
class FoldData:
    """What every model of a fold is given.

    Parameters
    ----------
    fold
        Names of the slides.
    both
        Spots of the training slides, then of the test slides, with expression.
    n_train
        Training slides, the first of ``both``.
    rows
        (n_test,) rows of the AnnData that the test spots came from.
    panel
        Modelled genes.
    """

    fold: Fold
    both: "SpotData"
    n_train: int
    rows: NDArray[np.intp]
    panel: pd.Index

    @property
    def train(self) -> "SpotData":
        """Spots to learn from."""
        return self.both.select(range(self.n_train))

    @property
    def test(self) -> "SpotData":
        """Spots to score, without their expression."""
        part = self.both.select(range(self.n_train, len(self.both.names)))
        return replace(part, expression=None, counts=None)

    @property
    def test_slide(self) -> NDArray[np.intp]:
        """(n_test,) number of the test slide of each test spot."""
        return self.both.slide[len(self.both) - len(self.rows) :].numpy() - self.n_train

    @property
    def measured(self) -> NDArray[np.float32]:
        """(n_test, M) expression of the test spots."""
        return self.both.expression[len(self.both) - len(self.rows) :].numpy()  # type: ignore[index]


class FoldMaker:
    """Makes the data of folds from a tiled and embedded AnnData.

    Parameters
    ----------
    adata
        The spots, with raw counts.
    key
        Name under which they were tiled and embedded.
    groups
        Column with the group of each slide.
    normalize
        Arguments of :func:`gdml.pp.normalize` and :func:`gdml.pp.select_genes` that differ from what the data were
        normalised with.
    needs
        Parts that the models name.

    Raises
    ------
    ValueError
        If an argument of ``normalize`` is unknown or not valid, or the counts are not raw counts.
    KeyError
        If the layer or the column is absent.
    """

    def __init__(
        self, adata: AnnData, *, key: str, groups: str | None, normalize: Mapping[str, Any], needs: Collection[str]
    ) -> None:
        self._panel_rule, self.normalization, layer = _normalization(adata, normalize, key)
        spots = Spots.resolve(adata, key=key)
        counts = spots.counts(layer)
        obs = pd.DataFrame({_keys.LIBRARY: spots.library}, index=adata.obs_names)
        for column in (_keys.ARRAY_ROW, _keys.ARRAY_COL):
            if column in adata.obs:
                obs[column] = adata.obs[column]
        # counts and slides alone: panels are chosen on copies of it
        self._counts = AnnData(counts, obs=obs, var=pd.DataFrame(index=adata.var_names))
        self._with_counts = "counts" in needs
        self.everything, self._order = spot_data(adata, key=key, groups=spots.groups(groups))
        self.names = list(self.everything.names)
        self.groups = dict(zip(self.names, self.everything.groups, strict=True))
        self.digests = {name: counts_digest(self._counts.X[self._rows(name)]) for name in self.names}

    def _rows(self, slide: str) -> NDArray[np.intp]:
        """Rows of the AnnData, in the order of the run's spots."""
        return self._order[self.everything.rows_of(self.names.index(slide)).numpy()]

    def panel(self, fold: Fold) -> pd.Index:
        """Choose the panel of a fold on its training slides.

        Raises
        ------
        ValueError
            If fewer genes pass the rule than asked for.
        """
        rows = np.sort(np.concatenate([self._rows(slide) for slide in fold.train]))
        try:
            chosen, _ = choose_panel(_spots(self._counts[rows].copy()), **self._panel_rule)
        except ValueError as error:
            raise ValueError(f"Fold {fold.name!r}: {error} They are arguments of `normalize`.") from error
        return self._counts.var_names[chosen]

    def make(self, fold: Fold, panel: pd.Index) -> FoldData:
        """Bring the expression of the panel genes of all slides of the fold to scale."""
        import torch

        rows = {side: np.concatenate([self._rows(s) for s in names]) for side, names in _sides(fold)}
        order = np.concatenate([rows["train"], rows["test"]])
        part = self._counts[order].copy()
        measured = measured_expression(_spots(part), panel, self.normalization)
        counts = torch.from_numpy(panel_counts(part, panel, None)) if self._with_counts else None
        both = self.everything.select([self.names.index(s) for _, names in _sides(fold) for s in names])
        both = replace(both, expression=torch.from_numpy(measured.to_numpy(np.float32)), counts=counts)
        return FoldData(fold, both, len(fold.train), rows["test"], panel)

    def content(self, slide: str) -> list[str]:
        """Hashes of a slide's counts and of the positions of its spots, in their order."""
        xy = self.everything.xy[self.everything.rows_of(self.names.index(slide))].numpy()
        return [self.digests[slide], hashlib.blake2b(xy.tobytes(), digest_size=16).hexdigest()]


def _spots(adata: AnnData) -> Spots:
    return Spots.resolve(adata, coordinates=False)


def _sides(fold: Fold) -> tuple[tuple[str, tuple[str, ...]], tuple[str, tuple[str, ...]]]:
    return ("train", fold.train), ("test", fold.test)


def _normalization(
    adata: AnnData, normalize: Mapping[str, Any], key: str
) -> tuple[dict[str, Any], Normalization, str | None]:
    """Arguments of ``choose_panel``, the scale, and the layer: as recorded, with ``normalize`` in place of some."""
    for name in normalize:
        if name not in _KNOWN:
            raise ValueError(f"`normalize` has no argument {name!r}. {did_you_mean(name, _KNOWN)}")
    stored = adata.uns.get(key, {})
    recorded = stored.get(_keys.NORMALIZATION, {})
    scale = normalize.get("normalization") or (Normalization.from_dict(recorded) if recorded else "scanpy")
    norm = as_normalization(scale, **{name: normalize.get(name) for name in _SWITCHES})
    layer = normalize.get("layer", recorded.get("layer"))

    rule = dict(stored.get("panel", {}))
    if rule.get("method") == "given" and _keys.panel(key) in adata.var:
        rule = {"genes": list(adata.var_names[adata.var[_keys.panel(key)]])}
    if "n_genes" in normalize or "method" in normalize:
        rule.pop("genes", None)
    rule = {k: v for k, v in {**rule, **normalize}.items() if k in _PANEL and v is not None}
    rule.setdefault("n_genes", 250)
    return rule, norm, None if layer is None else str(layer)
