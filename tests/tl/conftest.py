import pytest

import gdml
from gdml.training import compare

N_GENES = 30


@pytest.fixture(scope="session")
def _ready(_synthetic):
    adata = _synthetic.copy()
    gdml.pp.tile(adata)
    gdml.pp.embed(adata, "stain")
    gdml.pp.normalize(adata, n_genes=N_GENES)
    return adata


@pytest.fixture
def ready(_ready):
    """Four small slides of two patients, tiled, embedded and normalised: a fresh copy for each test."""
    return _ready.copy()


@pytest.fixture
def small():
    """Settings of a small model and a short training, none left to the defaults that matter for speed."""
    return {
        "config": {
            "width": 16,
            "branch_width": 16,
            "neighbor_depth": 1,
            "neighbor_heads": 2,
            "slide_depth": 1,
            "slide_heads": 2,
            "fusion_heads": 2,
            "n_groups": 4,
            "group_iterations": 3,
            "floor": "none",
        },
        "training": {"max_epochs": 3, "patience": 3, "batch_size": 32, "slides_per_batch": 8, "refit": True},
    }


@pytest.fixture(scope="session")
def _fitted(_ready):
    """Ridge is solved at once."""
    adata = _ready.copy()
    return adata, gdml.tl.fit(adata, "ridge", group_key="patient")


@pytest.fixture
def fitted(_fitted):
    """A copy of the spots that a ridge was fitted on, and the ridge."""
    adata, model = _fitted
    return adata.copy(), model


@pytest.fixture
def trained(monkeypatch):
    """Labels of the runs that were trained, not read from disk."""
    done = []
    original = compare._train_and_predict

    def record(plan, data, candidate, seed, show):
        done.append((candidate.label, data.fold.name, seed))
        return original(plan, data, candidate, seed, show)

    monkeypatch.setattr(compare, "_train_and_predict", record)
    return done
