"""How well predictions match what was measured."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys, metrics
from gdml._errors import count
from gdml.expression import Normalization
from gdml.spots.coordinates import check_adata, library_of_each_spot
from gdml.spots.genes import GeneMatch, match_as_predicted, why_none
from gdml.spots.measured import measured_expression, record_measured

ALL = "all"


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

    The counts are brought to the scale that the model was trained on. Correlations are taken over the spots of
    one slide, then averaged over genes, then over slides. A gene with constant values in a slide has no
    correlation: it is left out of the means, ranks lowest, and is counted. Panel genes that were not measured
    are counted, and the rest is scored; a gene whose name several genes bear counts as not measured.

    Parameters
    ----------
    adata
        Predictions of :func:`gdml.tl.predict`, and raw counts.
    key
        Name under which the predictions are stored, and results will be.
    layer
        Layer with the raw counts. By default the one that :func:`gdml.pp.normalize` recorded, else ``adata.X``.
    library_key
        Column of ``adata.obs`` with the slide of each spot. By default the one that :func:`gdml.pp.tile`
        recorded, else ``'library_id'``.
    gene_key
        Column of ``adata.var`` with the names by which measured genes are matched to the panel, or ``"var_names"``,
        as in :func:`gdml.tl.predict`. By default the one that it recorded.
    n_high
        Number of genes of ``pcc_h_best``.

    Returns
    -------
    DataFrame with a row a slide, the row ``'all'``, and the columns

    ``n_spots``, ``n_genes``
        Spots, and panel genes measured.
    ``n_absent``, ``n_constant``, ``n_flat``
        Panel genes not measured; measured, but constant in the slide; predicted as constant, though they vary.
        Row ``'all'``: genes of which this holds in one slide at least.
    ``pcc_a``
        PCC(A), the mean over genes. Row ``'all'``: the mean over slides.
    ``pcc_h``
        PCC(H), the mean over the genes that correlated best **on the model's own validation split**; NaN where
        the model recorded none.
    ``pcc_h_best``
        The mean over the ``n_high`` genes that correlate best on the slides scored here. The genes are chosen
        by the score itself, so it is **optimistic**: published PCC(H) are of this kind.
    ``mse``, ``mae``
        Errors over spots and genes. Row ``'all'``: over all spots.

    Writes:

    ``.obsm['gdml_measured']`` : DataFrame, float32, spots x panel genes
        Measured expression on the model's scale; NaN for genes not measured. ``.uns['gdml']['normalization']``
        records the scale.
    ``.var['gdml_pcc']``, ``.var['gdml_mse']``, ``.var['gdml_mae']`` : float64
        Scores of each gene, NaN outside the panel; correlations are averaged over slides.
    ``.uns['gdml']['evaluate']`` : dict
        The table (``summary``), and the correlations (``pcc``, slides x genes, with ``libraries`` and ``genes``).

    Raises
    ------
    KeyError
        If there are no predictions under ``key``, or ``gene_key`` is no column of ``var``.
    ValueError
        If none of the panel genes was measured, or the counts are not raw counts.

    Warns
    -----
    UserWarning
        If the model's normalisation scales spots by their total over the panel, and panel genes were not measured.

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
    from scanpy import logging as logg

    check_adata(adata)
    predicted, record = _predictions(adata, key)
    if n_high < 1:
        raise ValueError(f"`n_high` is {n_high!r}; it must be one or more.")
    stored = adata.uns[key]
    if layer is None:
        layer = stored.get(_keys.NORMALIZATION, {}).get("layer")
    if library_key is None:
        library_key = str(stored.get(_keys.TILES, {}).get("library_key", _keys.LIBRARY))
    genes = predicted.columns
    match = match_as_predicted(adata, genes, gene_key, stored.get(_keys.PREDICT, {}))
    present = match.present
    if not match.n:
        raise ValueError(f"There is nothing to score. {why_none(adata, genes, gene_key)}")
    norm = Normalization.from_dict(record)
    measured = measured_expression(adata, genes, norm, layer=layer, library_key=library_key, columns=match.columns)
    if norm.order == "panel" and not present.all():
        _warn_of_another_total(match)
    library = library_of_each_spot(adata, library_key)

    scored = genes[present]
    y, p = measured[scored].to_numpy(np.float64), predicted[scored].to_numpy(np.float64)
    slides = {name: np.flatnonzero(library == name) for name in pd.unique(library)}
    pcc = np.stack([metrics.pearson_per_gene(y[rows], p[rows]) for rows in slides.values()])
    mse, mae = metrics.mse_per_gene(y, p), metrics.mae_per_gene(y, p)
    summary = _summary(y, p, pcc, slides, _high_genes(stored, scored), metrics.top_genes(pcc, n_high))
    summary.insert(2, "n_absent", int((~present).sum()))

    record_measured(adata, measured, norm, layer=layer, key_added=key)
    for name, value in {"pcc": metrics.nan_mean(pcc, 0), "mse": mse, "mae": mae}.items():
        column = np.full(adata.n_vars, np.nan)
        column[match.columns[present]] = value
        adata.var[_keys.score(name, key)] = column
    adata.uns[key][_keys.EVALUATE] = {
        "summary": summary,
        "pcc": pcc,
        "libraries": np.array(list(slides), dtype=object),
        "genes": scored.to_numpy(dtype=object),
    }
    overall = summary.loc[ALL]
    logg.info(
        f"PCC(A) {overall['pcc_a']:.3f}, MSE {overall['mse']:.3f} over {count(len(slides), 'slide')}, {match}; "
        f"per gene in .var[{_keys.score('pcc', key)!r}]"
    )
    return summary.copy()


def _warn_of_another_total(match: GeneMatch) -> None:
    n_panel = len(match.columns)
    warnings.warn(
        f"{n_panel - match.n} of {n_panel} panel genes were not measured, and the model's normalisation scales each spot "
        f'by its total over the panel (order="panel"): here that is a total of {match.n} genes, so measured values '
        "are on a higher scale than predictions. Correlations bear that, MSE and MAE do not.",
        UserWarning,
        stacklevel=3,
    )


def _predictions(adata: AnnData, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Predicted expression, and the normalisation that it is on the scale of."""
    predicted = adata.obsm.get(key)
    if not isinstance(predicted, pd.DataFrame):
        raise KeyError(f"`key` is {key!r}, but `adata.obsm[{key!r}]` holds no predictions; run gdml.tl.predict(adata).")
    if not np.isfinite(predicted.to_numpy()).all():
        raise ValueError(f"`adata.obsm[{key!r}]` holds NaN or infinite values; run gdml.tl.predict(adata) again.")
    stored = adata.uns.get(key, {})
    for record in (stored.get(_keys.PREDICT, {}).get(_keys.NORMALIZATION), stored.get(_keys.NORMALIZATION)):
        if record:
            return predicted, record
    raise KeyError(
        f"`adata.uns[{key!r}]` does not say on which scale the predictions are; run gdml.tl.predict(adata), or, for "
        "predictions of your own, gdml.pp.normalize(adata) with the normalisation that they were trained on."
    )


def _high_genes(stored: dict[str, Any], scored: pd.Index) -> NDArray[np.intp]:
    """Columns of the genes that the model found best on its validation split, those that were measured."""
    columns = scored.get_indexer(pd.Index(stored.get(_keys.PREDICT, {}).get("high_genes", []), dtype=object))
    return columns[columns >= 0]


def _summary(
    y: NDArray[np.float64],
    p: NDArray[np.float64],
    pcc: NDArray[np.float64],
    slides: dict[str, NDArray[np.intp]],
    high: NDArray[np.intp],
    best: NDArray[np.intp],
) -> pd.DataFrame:
    """One row a slide, and one for all."""
    constant = np.stack([np.isnan(metrics.pearson_per_gene(y[rows], y[rows])) for rows in slides.values()])
    flat = np.isnan(pcc) & ~constant
    parts = [(rows, slice(i, i + 1)) for i, rows in enumerate(slides.values())]
    table = [
        {
            "n_spots": len(y[rows]),
            "n_genes": y.shape[1],
            "n_constant": int(constant[these].any(0).sum()),
            "n_flat": int(flat[these].any(0).sum()),
            "pcc_a": metrics.pcc_a(pcc[these]),
            "pcc_h": metrics.pcc_h(pcc[these], high),
            "pcc_h_best": metrics.pcc_h(pcc[these], best),
            "mse": float(metrics.mse_per_gene(y[rows], p[rows]).mean()),
            "mae": float(metrics.mae_per_gene(y[rows], p[rows]).mean()),
        }
        for rows, these in [*parts, (np.arange(len(y)), slice(None))]
    ]
    return pd.DataFrame(table, index=pd.Index([*slides, ALL], name="slide"))
