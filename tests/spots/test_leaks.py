"""Slides that are not independent, rule by rule."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

import gdml
from gdml.spots import leaks
from gdml.spots.data import spot_data
from gdml.spots.leaks import contradicted, likeness, same_counts
from gdml.spots.resolve import Spots
from gdml.training.data import SpotData

N, GENES, DIM = 144, 300, 5


def section(block, *, seed, stain=0.0):
    """A slide whose expression and features change along x and y, by rules of its block."""
    rng, of_block = np.random.default_rng(seed), np.random.default_rng([9, block])
    xy = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), -1).reshape(-1, 2)
    level = of_block.normal(0, 1.5, GENES) + (xy / 11) @ of_block.normal(0, 0.8, (2, GENES))
    features = of_block.normal(0, 1, DIM) * 3 + (xy / 11) @ of_block.normal(0, 3, (2, DIM)) + stain
    return xy, rng.poisson(3 * np.exp(level)), features + rng.normal(0, 0.5, (N, DIM))


def halves(*sections):
    """Pairs of slides that are as alike as halves, by number."""
    pooled = torch.from_numpy(np.concatenate([features for *_, features in sections])).half()
    xy = np.concatenate([xy for xy, *_ in sections])
    names = [str(i) for i in range(len(sections))]
    data = SpotData.in_memory(
        tokens=pooled[:, None],
        pooled=pooled,
        neighbors=pooled[:, None],
        neighbor_mask=torch.ones(len(pooled), 1, dtype=torch.bool),
        grid=torch.from_numpy(xy).long(),
        xy=torch.from_numpy(xy).float(),
        slide=torch.repeat_interleave(torch.arange(len(sections)), N),
        names=names,
        groups=names,
    )
    rows = {name: np.arange(i * N, (i + 1) * N) for i, name in enumerate(names)}
    counts = sparse.csr_matrix(np.concatenate([counts for _, counts, _ in sections]))
    return likeness(counts, data, SimpleNamespace(slides=rows, xy=xy)).pairs()


def test_sections_of_one_block_are_as_alike_as_halves():
    assert halves(section(0, seed=0), section(1, seed=1), section(0, seed=2), section(2, seed=3)) == [("0", "2")]


def test_alike_in_counts_alone_is_not_enough():
    """Two individuals of one tissue: the same genes, another stain."""
    assert halves(section(0, seed=0), section(0, seed=1, stain=8.0)) == []


def test_alike_in_image_alone_is_not_enough():
    xy, _, features = section(0, seed=1)
    assert halves(section(0, seed=0), (xy, section(1, seed=1)[1], features)) == []


def test_small_slides_are_not_compared(monkeypatch):
    same = section(0, seed=0), section(0, seed=1)
    assert halves(*same) == [("0", "1")]
    monkeypatch.setattr(leaks, "_LEAST_SPOTS", N + 1)
    assert halves(*same) == []


def test_a_part_of_a_slide_under_another_name_has_the_same_counts():
    rng = np.random.default_rng(0)
    a, b = rng.poisson(3, (60, 40)), rng.poisson(3, (60, 40))
    crop = rng.permutation(a[:30])  # other spots, in another order
    mixed = np.concatenate([b[:10], rng.poisson(3, (30, 40))])  # a quarter of them
    counts = sparse.csr_matrix(np.concatenate([a, b, crop, mixed]))
    ends = np.cumsum([0, 60, 60, 30, 40])
    slides = {name: np.arange(*ends[i : i + 2]) for i, name in enumerate("ABCD")}
    assert same_counts(counts, slides) == [("A", "C")]


def test_empty_spots_are_no_copies():
    counts = sparse.csr_matrix(np.zeros((20, 5), int))
    assert same_counts(counts, {"A": np.arange(10), "B": np.arange(10, 20)}) == []


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"B4": "B", "C2": "C", "C3": "C", "C4": "C"}, []),
        ({"B4": "B", "C2": "C", "C3": "B", "C4": "C"}, [("C2", "C3"), ("C3", "C4")]),
        ({"B4": "B", "C2": "C", "C3": "D"}, [("C2", "C3")]),  # a group is named as a stem
        ({"x1a": "p", "x1b": "p", "x2a": "q", "x2b": "p"}, [("x2a", "x2b")]),
        ({"S1": "P1", "S2": "P1", "S3": "P2"}, []),  # one stem says nothing
        ({"tumor1": "p", "tumor2": "q", "normal1": "p", "normal2": "q"}, []),  # words
        ({"DSS1": "p", "DSS2": "q", "H2O_1": "p", "H2O_2": "q"}, []),  # nowhere do groups follow the names
        ({"151507": "a", "151508": "a", "151673": "b"}, []),
    ],
)
def test_names_that_contradict_groups(groups, expected):
    assert contradicted(groups) == expected


@pytest.mark.real
def test_sections_of_one_patient_are_told_from_another_patient(data_dir):
    """HER2ST C2, C3 and C4 are of one patient, B4 is of another."""
    adata = gdml.datasets.her2st(["B4", "C2", "C3", "C4"])
    gdml.pp.tile(adata, n_side=1)
    gdml.pp.embed(adata, "stain", tokens="pooled")
    spots = Spots.resolve(adata)
    found = likeness(spots.counts(), spot_data(spots)[0], spots).pairs()
    assert found == [("C2", "C3"), ("C2", "C4"), ("C3", "C4")]
