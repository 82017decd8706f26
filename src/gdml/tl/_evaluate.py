"""Scores of predictions against measured counts."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys, metrics
from gdml._errors import check_count, count, some
from gdml._progress import tell
from gdml.expression import Normalization
from gdml.spots.genes import GeneMatch, match_as_predicted, warn_of_few, why_few
from gdml.spots.measured import measured_expression
from gdml.spots.provenance import in_training
from gdml.spots.resolve import Spots

from ._coverage import score_intervals
from ._slide_scores import ALL, score_slides


def evaluate(
    adata: AnnData,
    *,
    key: str = _keys.KEY,
    layer: str | None = None,
    library_key: str | None = None,
    gene_key: str | None = None,
    n_high: int = 50,
) -> pd.DataFrame:
    """Score predicted expression against the measured counts, gene by gene and slide by slide.

    The counts are normalised as the model's training data were. Correlations are taken over the spots of
    one slide, then averaged over genes, then over slides. A gene with constant values in a slide has no
    correlation: it is left out of the means, ranks lowest, and is counted. Panel genes that were not measured, or
    that have ambiguous names, are counted and left out. Predictions of :func:`gdml.tl.cross_validate` are scored where
    they exist: spots without predictions are left out, and so are genes that are not in the panel of a slide's fold.

    Parameters
    ----------
    adata
        Predictions of :func:`gdml.tl.predict`, and raw counts. A SpatialData with one table works as well.
    key
        Name under which the predictions are stored and the scores are written, such as ``"gdml"``, or
        ``"gdml_ridge"`` after :func:`gdml.tl.cross_validate`.
    layer
        Layer with the raw counts. By default the one that :func:`gdml.tl.cross_validate` or
        :func:`gdml.pp.normalize` recorded, else ``adata.X``.
    library_key
        Column of ``adata.obs`` with the slide of each spot. By default the one that :func:`gdml.pp.tile`
        recorded, else ``'library_id'``.
    gene_key
        Column of ``adata.var`` with the names by which measured genes are matched to the panel, or ``"var_names"``,
        as in :func:`gdml.tl.predict`. By default the one recorded there.
    n_high
        Number of genes of ``pcc_h_best``.

    Returns
    -------
    DataFrame with a row per slide, the row ``'all'``, and the columns

    ``in_training``
        Whether the model was trained on the slide (nullable boolean; NA where its training slides are unknown). Scores
        of training slides say nothing about new slides. Row ``'all'``: whether this holds for any slide.
    ``n_spots``, ``n_genes``
        Spots and genes that were scored.
    ``n_absent``, ``n_constant``, ``n_flat``
        Panel genes not measured; measured, but constant in the slide; predicted as constant, though they vary.
        Row ``'all'``: genes of which this holds in one slide at least.
    ``pcc_a``
        PCC(A), the mean over genes. Row ``'all'``: the mean over slides.
    ``pcc_attainable``, ``pcc_reached``
        The mean over the same genes of the PCC that a perfect prediction would reach with the counts measured here
        (:func:`gdml.metrics.attainable_pcc`), and ``pcc_a`` as a share of it: the ratio of the two means, since the
        ratio of a gene that can hardly be measured says nothing. NaN where nothing is attainable.
    ``pcc_h``
        PCC(H), the mean over the genes that correlated best **on the model's own validation split**; NaN where
        the model recorded none.
    ``pcc_h_best``
        The mean over the ``n_high`` genes that correlate best on the slides scored here. The genes are chosen
        by the score itself, so it is **optimistic**: published PCC(H) are of this kind.
    ``mse``, ``mse_level``, ``mse_pattern``, ``mae``
        Errors over spots and genes. ``mse`` is the sum of two parts (:func:`gdml.metrics.mse_parts_per_gene`): the
        squared difference of the slide's means of each gene, and the rest. Row ``'all'``: over all spots.
    ``spread``
        Standard deviation of the predictions over that of the measured values, the median over genes. Row ``'all'``:
        the mean over slides.
    ``coverage``, ``width``
        Only where the predictions have intervals: the share of measured values that are within theirs, and the mean full
        width, over spots and genes. Spots that the intervals were calibrated on are left out. Row ``'all'``: over all spots.

    Writes to ``adata`` (there is no ``copy``, since the table is returned):

    ``.obsm['gdml_evaluated']`` : DataFrame, float32, spots x panel genes
        Measured expression on the scale of the predictions; NaN for genes not measured. What :func:`gdml.tl.fit`
        learns, ``.obsm['gdml_measured']`` and its normalisation, is left unchanged.
    ``.var['gdml_pcc']``, ``.var['gdml_attainable']``, ``.var['gdml_spread']`` : float64
        Correlation, the attainable one, and predicted over measured standard deviation of each gene, averaged over
        slides; NaN outside the panel.
    ``.var['gdml_mse']``, ``.var['gdml_mae']`` : float64
        Errors of each gene over all spots, NaN outside the panel.
    ``.var['gdml_coverage']`` : float64
        Share of the spots at which each gene is within its interval; only where there are intervals.
    ``.uns['gdml']['evaluate']`` : dict
        The table (``summary``), the correlations and the attainable ones (``pcc``, ``attainable``, slides x genes, with
        ``libraries`` and ``genes``), and the ``normalization`` of the measured values.

    Raises
    ------
    KeyError
        If there are no predictions under ``key``, or a column or layer that is named does not exist.
    ValueError
        If none of the panel genes was measured, or the counts are not raw counts.
    TypeError
        If ``n_high`` is not a number.

    Warns
    -----
    UserWarning
        If slides are among the model's training slides; if fewer than half of the panel genes were measured; if the
        model's normalisation scales spots by their total over the panel, and panel genes were not measured.

    Notes
    -----
    The metrics are those of TRIPLEX :cite:p:`Chung2024` and Gene-DML :cite:p:`Song2026`, section 4; they rank
    the genes of PCC(H) on the test folds, as ``pcc_h_best`` does.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(adata, model)  # doctest: +SKIP
    >>> gdml.tl.evaluate(adata)  # doctest: +SKIP
    """
    spots = Spots.resolve(adata, key=key, library_key=library_key, coordinates=False)
    adata = spots.adata
    check_count("n_high", n_high)
    predicted, record = _predictions(spots)
    slides = _scored_rows(spots, predicted)
    if layer is None:
        compared = spots.record(_keys.PREDICT) or {}
        layer = compared.get("layer", (spots.record(_keys.NORMALIZATION) or {}).get("layer"))
    genes = predicted.columns
    match = match_as_predicted(adata, genes, gene_key, spots.record(_keys.PREDICT) or {})
    present = match.present
    if not match.n:
        raise ValueError(f"No gene can be scored. {why_few(adata, genes, match, gene_key)}")
    norm = Normalization.from_dict(record)
    measured = measured_expression(spots, genes, norm, layer=layer, columns=match.columns)

    scored = genes[present]
    y, p = measured[scored].to_numpy(np.float64), predicted[scored].to_numpy(np.float64)
    columns = match.columns[present]
    scores = score_slides(spots, y, p, slides, normalization=norm, layer=layer, columns=columns)
    summary = scores.table(list(slides), _high_genes(spots, scored), metrics.top_genes(scores.pcc, n_high))
    summary.insert(2, "n_absent", int((~present).sum()))
    covered = score_intervals(spots, measured[scored].to_numpy(np.float64), scored, slides)
    if covered is not None:
        summary = summary.join(covered.table(list(slides)))
    seen = in_training(spots, list(slides))
    summary.insert(0, "in_training", pd.array([*seen, seen.any(skipna=False)], "boolean"))

    adata.obsm[_keys.evaluated(key)] = measured
    if _keys.score("coverage", key) in adata.var:  # of an earlier prediction
        del adata.var[_keys.score("coverage", key)]
    by_gene = scores.by_gene() | ({} if covered is None else {"coverage": covered.by_gene()})
    for name, value in by_gene.items():
        column = np.full(adata.n_vars, np.nan)
        column[columns] = value
        adata.var[_keys.score(name, key)] = column
    evaluation = {
        "summary": summary,
        "pcc": scores.pcc,
        "attainable": scores.attainable,
        "libraries": np.array(list(slides), dtype=object),
        "genes": scored.to_numpy(dtype=object),
        "normalization": norm.to_dict(),
    }
    spots.write_record(_keys.EVALUATE, evaluation)
    if seen.any():
        warnings.warn(
            f"The model was trained on {count(int(seen.sum()), 'slide')} that {'is' if seen.sum() == 1 else 'are'} scored "
            f"({some(seen.index[seen.fillna(False)])}): its scores there say nothing about new slides. Score other slides, "
            "or compare models with gdml.tl.cross_validate.",
            UserWarning,
            stacklevel=2,
        )
    warn_of_few(adata, genes, match, gene_key, stacklevel=2)
    if norm.order == "panel" and not present.all():
        _warn_of_another_total(match)
    overall = summary.loc[ALL]
    within = "" if covered is None else f"; {overall['coverage']:.1%} within their intervals"
    tell(
        f"evaluate: PCC(A) {overall['pcc_a']:.3f} of {overall['pcc_attainable']:.3f} attainable, MSE {overall['mse']:.3f} "
        f"over {count(len(slides), 'slide')}, {match}"
        f"{within}"
        f"{_left_out(spots, p, slides)}"
    )
    return summary.copy()


def _warn_of_another_total(match: GeneMatch) -> None:
    n_panel = len(match.columns)
    warnings.warn(
        f"{n_panel - match.n} of {n_panel} panel genes were not measured, and the model's normalisation scales each spot "
        f'by its total over the panel (order="panel"): here that is a total of {match.n} genes, so that measured values '
        "are on a higher scale than predictions. This affects MSE and MAE, but not correlations.",
        UserWarning,
        stacklevel=3,
    )


def _predictions(spots: Spots) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predicted expression, and its normalisation."""
    key = spots.key
    predicted = spots.adata.obsm.get(key)
    if not isinstance(predicted, pd.DataFrame):
        tables = [name for name, table in spots.adata.obsm.items() if isinstance(table, pd.DataFrame)]
        compared = [name for name in tables if _keys.PREDICT in spots.adata.uns.get(name, {})]
        mend = f"name one of: {some(compared)}" if compared else "run gdml.tl.predict(adata)"
        raise KeyError(f"`key` is {key!r}, but `adata.obsm[{key!r}]` holds no predictions; {mend}.")
    for record in ((spots.record(_keys.PREDICT) or {}).get(_keys.NORMALIZATION), spots.record(_keys.NORMALIZATION)):
        if record:
            return predicted, record
    raise KeyError(
        f"`adata.uns[{key!r}]` does not record on which scale the predictions are; run gdml.tl.predict(adata), or, for "
        "predictions of your own, gdml.pp.normalize(adata) with the normalisation that they were trained on."
    )


def _scored_rows(spots: Spots, predicted: pd.DataFrame) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide that have predictions; a gene has them for all of these rows or for none.

    Raises
    ------
    ValueError
        If values are infinite, or NaN for some of a gene's spots.
    """
    finite = np.isfinite(predicted.to_numpy())
    slides = {name: rows[finite[rows].any(1)] for name, rows in spots.slides.items()}
    slides = {name: rows for name, rows in slides.items() if len(rows)}
    whole = all((finite[rows].all(0) == finite[rows].any(0)).all() for rows in slides.values())
    if not slides or not whole or np.isinf(predicted.to_numpy()).any():
        raise ValueError(
            f"`adata.obsm[{spots.key!r}]` holds NaN or infinite values {'in part of the spots of a slide' if slides else ''}"
            f"{'' if slides else 'alone'}; make the predictions again."
        )
    return slides


def _left_out(spots: Spots, p: NDArray[np.float64], slides: dict[str, NDArray[np.intp]]) -> str:
    """Clause about spots and genes without predictions; empty if there are none."""
    n_spots = len(spots) - sum(map(len, slides.values()))
    parts = [f"{count(n_spots, 'spot')} without predictions"] if n_spots else []
    n_genes = int(np.stack([np.isnan(p[rows]).all(0) for rows in slides.values()]).any(0).sum())
    parts += [f"{count(n_genes, 'gene')} not predicted on every slide"] if n_genes else []
    return f"; left out: {', '.join(parts)}" if parts else ""


def _high_genes(spots: Spots, scored: pd.Index) -> NDArray[np.intp]:
    """Columns of the genes that correlated best on the model's validation split, if measured."""
    genes = (spots.record(_keys.PREDICT) or {}).get("high_genes", [])
    columns = scored.get_indexer(pd.Index(genes, dtype=object))
    return columns[columns >= 0]
