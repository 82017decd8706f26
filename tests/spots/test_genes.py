import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scanpy import logging

from gdml.spots.genes import match_genes, why_few

PANEL = ("ACTB", "GAPDH", "CD3E")
IDS = ("ENSG00000075624", "ENSG00000111640", "ENSG00000198851")


def table(names, **columns):
    return ad.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(columns, index=list(names)))


@pytest.mark.parametrize("as_category", [False, True])
def test_a_column_is_taken_where_it_has_more_of_the_panel(as_category):
    adata = table(["CD3E", "x", "y", "z"], other=["ACTB", "GAPDH", "q", "CD3E"], number=[1, 2, 3, 4])
    if as_category:
        adata.var = adata.var.astype({"other": "category"})
    match = match_genes(adata, PANEL)
    assert (match.gene_key, match.n, match.ambiguous) == ("other", 3, ())
    assert list(match.columns) == [0, 1, 3]
    assert str(match) == "3 of 3 panel genes matched by var['other']"
    here = match_genes(adata, PANEL, "var_names")
    assert (here.gene_key, list(here.columns)) == ("var_names", [-1, -1, 0])
    assert str(here) == "1 of 3 panel genes matched by var_names"


def test_var_names_come_first_where_a_column_has_as_many():
    adata = table(PANEL, copy=PANEL[::-1])
    assert match_genes(adata, PANEL).gene_key == "var_names"
    assert list(match_genes(adata, PANEL, "copy").columns) == [2, 1, 0]


def test_versions_of_ensembl_ids_are_left_aside():
    adata = table([f"{gene}.{i}" for i, gene in enumerate(IDS)])
    assert list(match_genes(adata, IDS).columns) == [0, 1, 2]
    assert list(match_genes(adata, [f"{gene}.17" for gene in IDS]).columns) == [0, 1, 2]
    # what looks like a version in a symbol is part of it
    assert match_genes(table(["AC1.2", "AC1.3"]), ["AC1.1", "AC1.3"]).columns.tolist() == [-1, 1]
    # an id that is there as it is written is that gene, whatever else looks like it
    both = table([f"{IDS[0]}.1", f"{IDS[0]}.2"])
    assert match_genes(both, [f"{IDS[0]}.2"]).columns.tolist() == [1]
    assert match_genes(both, [IDS[0]]).ambiguous == (IDS[0],)
    # two genes of a panel are never one measured gene
    match = match_genes(table([IDS[0]]), [f"{IDS[0]}.1", f"{IDS[0]}.2"])
    assert match.n == 0 and len(match.ambiguous) == 2


def test_an_ambiguous_name_is_not_matched(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lines.append)
    adata = table("abcde", symbol=["ACTB", "GAPDH", "ACTB", None, None])
    match = match_genes(adata, PANEL, "symbol")
    assert match.columns.tolist() == [-1, 1, -1] and match.ambiguous == ("ACTB",)
    assert "1 of 3 panel genes occur more than once in var['symbol'] (ACTB)" in lines[0]


def test_a_column_of_numbers_can_be_named():
    match = match_genes(table("abc", entrez=[60, 2597, 916]), ["916", "60"], "entrez")
    assert match.columns.tolist() == [2, 0]


def test_an_unknown_column():
    with pytest.raises(KeyError, match="`gene_key` is 'gene_id'.*no column of `adata.var`.*'gene_ids'"):
        match_genes(table(PANEL, gene_ids=IDS), PANEL, "gene_id")


@pytest.mark.parametrize(
    ("adata", "panel", "says"),
    [
        (table(["Actb", "Gapdh", "x"]), PANEL, r"2 match when case is ignored \(ACTB, Actb, GAPDH, Gapdh\).*human and"),
        (table("abc", name=["Actb", "q", "r"]), PANEL, "or in another column.*1 match when case is ignored"),
        (table(IDS), PANEL, r"\(symbols: ACTB, .*human Ensembl ids: ENSG.*put the symbols in a column.*gene_key="),
        (table(PANEL), IDS, "put the human Ensembl ids in a column"),
        (table(["ENSMUSG00000029580"]), IDS, "mouse Ensembl ids: .*two species: put the names of the orthologs"),
        (table("xyz"), PANEL, "matched by name, symbols or Ensembl ids"),
        (table("xyz", name=["ACTB", "ACTB", "ACTB"]), PANEL, "occur more than once.*unique names"),
    ],
)
def test_the_explanation_where_nothing_matches(adata, panel, says):
    match = match_genes(adata, panel)
    assert match.n == 0
    text = why_few(adata, panel, match)
    assert text.startswith("None of the 3 panel genes")
    assert re.search(says, text), text
