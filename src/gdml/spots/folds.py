"""The data of each fold: panel, normalisation and expression from its training slides, features shared by all."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean
from gdml._provenance import counts_digest, row_digests
from gdml.expression import Normalization, as_normalization
from gdml.training.compare import FoldData, Slide
from gdml.training.data import SpotData
from gdml.training.folds import Fold

from .attainable import panel_attainable
from .data import panel_counts, spot_data, total_counts
from .measured import measured_expression
from .panel import choose_panel
from .provenance import encoder_record, fingerprint, slide_key, tile_geometry
from .resolve import Spots

_SWITCHES = ("order", "target_sum", "log", "smooth")
_PANEL = ("n_genes", "method", "genes", "min_fraction")
_KNOWN = ("normalization", "layer", *_SWITCHES, *_PANEL)


class FoldMaker:
    """Makes the data of folds from tiled and embedded spots.

    Parameters
    ----------
    spots
        The spots, with raw counts.
    group_key
        Column with the group of each slide; None: each slide is its own.
    normalize
        Arguments of :func:`gdml.pp.normalize` and :func:`gdml.pp.select_genes` that replace those that the data were
        normalised with.
    needs
        Parts of a batch that the models read.

    Raises
    ------
    ValueError
        If an argument of ``normalize`` is unknown or not valid, or the counts are not raw counts.
    KeyError
        If the layer or the column is absent.
    """

    def __init__(
        self, spots: Spots, *, group_key: str | None, normalize: Mapping[str, Any], needs: Collection[str]
    ) -> None:
        self._panel_rule, self.normalization, self.layer = fold_normalization(spots, normalize)
        counts = row_digests(spots.counts(self.layer))
        self._resolved = spots
        self._with_counts = "counts" in needs
        self.spots, _ = spot_data(spots, depth=total_counts(spots, self.layer), group_key=group_key)
        self.slides = {
            slide.name: Slide(
                slide.group,
                slide_key(spots, slide.name, counts=counts),
                counts_digest([counts[row] for row in spots.slides[slide.name]]),
                fingerprint(spots, slide.name),
            )
            for slide in self.spots.slides
        }
        self.features = encoder_record(spots)
        self.tiles = tile_geometry(spots.record(_keys.TILES))

    def panel(self, fold: Fold) -> list[str]:
        """Choose the panel of a fold on its training spots; that of HEST-bench on all spots, as its authors do.

        Raises
        ------
        ValueError
            If fewer genes pass the rule than asked for.
        """
        rule = self._panel_rule
        on_all = rule.get("method") == "hest"
        rows = None if on_all else np.sort(np.concatenate(fold.rows_to_learn(self._resolved.slides)))
        try:
            chosen, _ = choose_panel(self._resolved, layer=self.layer, rows=rows, **rule)
        except ValueError as error:
            raise ValueError(f"Fold {fold.name!r}: {error} They are arguments of `normalize`.") from error
        return list(self._resolved.adata.var_names[chosen])

    def make(self, fold: Fold, panel: list[str]) -> FoldData:
        """Bring the expression of the panel genes to scale, slide by slide, for all slides of the fold."""
        slides = self._resolved.slides
        names, learnt = [*fold.train, *fold.test], len(fold.train)
        rows = [*fold.rows_to_learn(slides), *fold.rows_to_score(slides)]
        expression = np.empty((sum(map(len, rows)), len(panel)), np.float32)
        counts = np.empty_like(expression) if self._with_counts else None
        start = 0
        for i, (name, of_part) in enumerate(zip(names, rows, strict=True)):
            part = slice(start, start := start + len(of_part))
            # of the whole slide, since labels may be averages over neighbours
            found = measured_expression(
                self._resolved, panel, self.normalization, layer=self.layer, rows=slides[name]
            ).to_numpy()
            expression[part] = found if fold.cut is None else found[fold.cut[name][i >= learnt]]
            if counts is not None:
                counts[part] = panel_counts(self._resolved, pd.Index(panel), self.layer, of_part)
        both = self._parts(fold)
        both.expression = torch.from_numpy(expression)
        both.counts = None if counts is None else torch.from_numpy(counts)
        return FoldData(fold, both, np.concatenate(rows[learnt:]), panel)

    def attainable(self, fold: Fold, panel: list[str]) -> NDArray[np.float64]:
        """PCC that a perfect prediction of each gene would have on the training slides; see :func:`panel_attainable`."""
        return panel_attainable(self._resolved, panel, self.normalization, layer=self.layer, slides=fold.train)

    def _parts(self, fold: Fold) -> SpotData:
        """Spots of the training slides, or of the parts of slides to learn from, then of those to score."""
        number = {name: i for i, name in enumerate(self.spots.names)}
        if fold.cut is None:
            return self.spots.select([number[name] for name in (*fold.train, *fold.test)])
        of = {slide.name: slide for slide in self.spots.slides}
        known = {name: of[name].take(fold.cut[name][0]) for name in fold.train}
        # the slide of a block is known: its units are those of the part that is learnt from
        held = [of[name].take(fold.cut[name][1], known=known[name]) for name in fold.test]
        of_cut = [self.spots.rows_of(number[name])[fold.cut[name][0]] for name in fold.train]
        of_cut += [self.spots.rows_of(number[name])[fold.cut[name][1]] for name in fold.test]
        depth = None if self.spots.depth is None else self.spots.depth[torch.cat(of_cut)]
        return replace(self.spots, slides=[*known.values(), *held], depth=depth)


def fold_normalization(spots: Spots, normalize: Mapping[str, Any]) -> tuple[dict[str, Any], Normalization, str | None]:
    """Arguments of ``choose_panel``, the scale, and the layer: as recorded, with ``normalize`` in place of some.

    Raises
    ------
    ValueError
        If an argument is unknown or not valid, or the counts are not raw counts.
    KeyError
        If the layer is absent.
    """
    for name in normalize:
        if name not in _KNOWN:
            raise ValueError(f"`normalize` has no argument {name!r}. {did_you_mean(name, _KNOWN)}")
    recorded = spots.record(_keys.NORMALIZATION) or {}
    scale = normalize.get("normalization") or (Normalization.from_dict(recorded) if recorded else "scanpy")
    norm = as_normalization(scale, **{name: normalize.get(name) for name in _SWITCHES})
    layer = normalize.get("layer", recorded.get("layer"))
    layer = None if layer is None else str(layer)
    try:
        spots.counts(layer)
    except (KeyError, ValueError) as error:
        error.add_note("gdml.tl.cross_validate and gdml.tl.ablate take the layer as normalize={'layer': ...}.")
        raise

    rule = dict(spots.record("panel") or {})
    panel = _keys.panel(spots.key)
    if rule.get("method") == "given" and panel in spots.adata.var:
        rule = {"genes": list(spots.adata.var_names[spots.adata.var[panel]])}
    if "n_genes" in normalize or "method" in normalize:
        rule.pop("genes", None)
    rule = {k: v for k, v in {**rule, **normalize}.items() if k in _PANEL and v is not None}
    rule.setdefault("n_genes", 250)
    return rule, norm, layer
