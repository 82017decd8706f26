"""Matching of the genes of a panel, by symbol or Ensembl id, in ``var_names`` or a column of ``var``."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml._errors import did_you_mean, some

VAR_NAMES = "var_names"
_ENSEMBL = re.compile(r"^ENS([A-Z]*)G\d+(\.\d+)?$")
_SPECIES = {"": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "SSC": "pig"}


@dataclass(frozen=True)
class GeneMatch:
    """Columns of the genes of a panel.

    Parameters
    ----------
    columns
        Column of each panel gene, -1 for those that are absent or ambiguous.
    gene_key
        Names that were matched: ``"var_names"``, or a column of ``var``.
    ambiguous
        Panel genes whose name occurs more than once. Which gene is meant is unknown, so none is matched.
    """

    columns: NDArray[np.intp]
    gene_key: str
    ambiguous: tuple[str, ...]

    @property
    def present(self) -> NDArray[np.bool_]:
        """Panel genes that were found."""
        return self.columns >= 0

    @property
    def n(self) -> int:
        """Number of panel genes that were found."""
        return int(self.present.sum())

    def __str__(self) -> str:
        return f"{self.n} of {len(self.columns)} panel genes matched by {_place(self.gene_key)}"


def match_genes(adata: AnnData, panel: Sequence[str], gene_key: str | None = None) -> GeneMatch:
    """Find the genes of a panel.

    Names are matched exactly, and then without the version of Ensembl ids (``ENSG00000111640.15``).

    Parameters
    ----------
    adata
        With unique ``var_names``.
    panel
        Names of the genes, each once.
    gene_key
        Column of ``var`` with their names, or ``"var_names"``. None: ``var_names`` or a column of text, whichever
        matches more panel genes.

    Raises
    ------
    KeyError
        If there is no such column.
    """
    found = [match_names(_names(adata, key), panel, key) for key in _candidates(adata, gene_key)]
    match = max(found, key=lambda m: m.n)  # the first of equals
    if match.ambiguous:
        logg.warning(
            f"{len(match.ambiguous)} of {len(panel)} panel genes occur more than once in {_place(match.gene_key)} "
            f"({some(match.ambiguous)}): which gene is meant is unknown, so they count as not measured."
        )
    return match


def match_as_predicted(
    adata: AnnData, panel: Sequence[str], gene_key: str | None, record: Mapping[str, Any]
) -> GeneMatch:
    """Find the genes by the names that a prediction recorded, unless ``gene_key`` is given or they match none."""
    before = record.get("gene_key")
    if gene_key is None and (before in adata.var or before == VAR_NAMES):
        match = match_genes(adata, panel, before)
        if match.n:
            return match
    return match_genes(adata, panel, gene_key)


def warn_of_few(
    adata: AnnData, panel: Sequence[str], match: GeneMatch, gene_key: str | None, *, stacklevel: int
) -> None:
    """Warn where fewer than half of the panel's genes were matched in an AnnData that has genes."""
    if adata.n_vars and 2 * match.n < len(match.columns):
        warnings.warn(why_few(adata, panel, match, gene_key), UserWarning, stacklevel=stacklevel + 1)


def why_few(adata: AnnData, panel: Sequence[str], match: GeneMatch, gene_key: str | None = None) -> str:
    """Explain that few or none of the panel's genes were matched: names wanted, names found, and the remedy."""
    keys = _candidates(adata, gene_key)
    place = match.gene_key if match.n else keys[0]
    names = _names(adata, place)
    absent = [gene for gene, present in zip(panel, match.present, strict=True) if not present]
    wanted, offered = _kind(absent), _kind(names)
    many = f"Only {match.n}" if match.n else "None"
    elsewhere = " or in another column of text in `adata.var`" if len(keys) > 1 and not match.n else ""
    text = (
        f"{many} of the {len(panel)} panel genes ({wanted}: {some(absent)}{' are absent' if match.n else ''}) "
        f"{'are' if match.n > 1 else 'is'} in {_place(place)} ({offered}: {some(names)}){elsewhere}. "
    )
    mend = "in a column of `adata.var` and name it with gene_key="
    by_case = max((_ignoring_case(absent, _names(adata, key)) for key in keys), key=len)
    if any(match_names(_names(adata, key), panel, key).ambiguous for key in keys):
        return text + f"Some names occur more than once, which leaves the gene unknown: put unique names {mend}."
    if by_case:
        return text + (
            f"{len(by_case)} match when case is ignored ({some(by_case, 2)}): are these genes of two species, such as "
            f"human and mouse? Put the names of their orthologs in the panel's species {mend}."
        )
    if "Ensembl" in wanted and "Ensembl" in offered and wanted != offered:
        return text + f"These are two species: put the names of the orthologs in the panel's species {mend}."
    if wanted != offered:
        return text + f"Genes are matched by name: put the {wanted} {mend}."
    return text + f"Genes are matched by name, symbols or Ensembl ids: put such names {mend}."


def _candidates(adata: AnnData, gene_key: str | None) -> list[str]:
    """List the names to match genes by: ``var_names`` and the columns of text, or what the user named."""
    if gene_key is None:
        return [VAR_NAMES, *(str(name) for name, column in adata.var.items() if _is_text(column))]
    if gene_key != VAR_NAMES and gene_key not in adata.var:
        known = [VAR_NAMES, *map(str, adata.var.columns)]
        raise KeyError(
            f"`gene_key` is {gene_key!r}, which is no column of `adata.var`. {did_you_mean(gene_key, known)}"
        )
    return [gene_key]


def _is_text(column: pd.Series) -> bool:
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column.dropna()
    return pd.api.types.infer_dtype(values, skipna=True) == "string"


def _names(adata: AnnData, key: str) -> pd.Index:
    """Names of all genes; "" where missing."""
    if key == VAR_NAMES:
        return pd.Index(adata.var_names.astype(str), dtype=object)
    column = adata.var[key].astype(object)
    return pd.Index(column.where(column.notna(), "").astype(str), dtype=object)


def match_names(names: pd.Index, panel: Sequence[str], key: str) -> GeneMatch:
    """Find the genes of a panel among the names of ``key``."""
    exact = pd.Index(panel, dtype=object)
    columns: NDArray[np.intp] = np.full(len(exact), -1, np.intp)
    repeats = np.zeros(len(exact), bool)
    for wanted, offered in ((exact, names), (_unversioned(exact), _unversioned(names))):
        repeated = offered.duplicated(keep=False)
        repeats |= (columns < 0) & (
            wanted.isin(offered[repeated]) | wanted.duplicated(keep=False) & wanted.isin(offered)
        )
        left = (columns < 0) & ~repeats
        place = pd.Series(np.flatnonzero(~repeated), index=offered[~repeated])
        columns[left] = place.reindex(wanted[left], fill_value=-1)
    return GeneMatch(columns, key, tuple(exact[repeats]))


def _unversioned(names: pd.Index) -> pd.Index:
    """Ensembl ids without their version."""
    return pd.Index([n.rpartition(".")[0] if "." in n and _ENSEMBL.match(n) else n for n in names], dtype=object)


def _ignoring_case(panel: Sequence[str], names: pd.Index) -> list[str]:
    """Pairs of names that differ only in case, as text."""
    lower = dict(zip((name.lower() for name in names), names, strict=True))
    return [f"{gene}, {lower[gene.lower()]}" for gene in panel if gene.lower() in lower]


def _kind(names: Sequence[str] | pd.Index) -> str:
    """Kind of name that most of the names are."""
    codes = [found[1] for found in map(_ENSEMBL.match, names) if found]
    if 2 * len(codes) <= len(names):
        return "symbols"
    code = max(sorted(set(codes)), key=codes.count)
    return f"{_SPECIES[code]} Ensembl ids" if code in _SPECIES else "Ensembl ids"


def _place(key: str) -> str:
    return VAR_NAMES if key == VAR_NAMES else f"var[{key!r}]"
