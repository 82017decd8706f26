import os
from pathlib import Path

import pytest

# for the two processes of xdist, which inherit it: their threads would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gdml


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory):
    """No test touches the user's cache."""
    before = gdml.settings.cache_dir
    gdml.settings.cache_dir = tmp_path_factory.mktemp("gdml-cache")
    yield gdml.settings.cache_dir
    gdml.settings.cache_dir = before


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real sample data."""
    if not os.environ.get("GDML_DATA_DIR"):
        pytest.skip("GDML_DATA_DIR is not set: no real sections here")
    return Path(os.environ["GDML_DATA_DIR"])


@pytest.fixture(scope="session")
def _her2st_c6(data_dir):
    return gdml.datasets.her2st(["C6"])


@pytest.fixture
def her2st_section(_her2st_c6):
    """The real section C6, a fresh copy for each test."""
    return _her2st_c6.copy()


@pytest.fixture(scope="session")
def _synthetic(cache_dir):
    return gdml.datasets.synthetic(n_slides=4, n_patients=2, grid=7, n_genes=40, seed=0)


@pytest.fixture
def synthetic_adata(_synthetic):
    """Four small slides of two patients, a fresh copy for each test."""
    return _synthetic.copy()
