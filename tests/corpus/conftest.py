import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from gdml.corpus.folder import open_folder
from gdml.corpus.job import Job
from gdml.corpus.manifest import read_manifest
from gdml.corpus.run import run_here, start, tidy

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)  # other processes inherit it and import corpus_work

import corpus_work  # noqa: E402


@pytest.fixture
def corpus(tmp_path):
    """Twelve small files as slides, a job over them, and a log of what was done."""
    slides, log = tmp_path / "slides", tmp_path / "log"
    slides.mkdir()
    log.touch()
    for i in range(12):
        (slides / f"s{i:02}.png").write_bytes(f"slide {i}".encode())
    folder = open_folder(tmp_path / "out", "predictions", {"model": "a"}, suffix=".zarr")

    def job(**options):
        stale_s = options.pop("stale_s", 60.0)
        return Job(folder, partial(corpus_work.write, log=log, **options), stale_s)

    def run(items=None, job=job(), run=run_here):  # noqa: B008  # the plain job
        items = made.items if items is None else items
        try:
            return run(job, items, start(job, items), lambda state: None)
        finally:
            tidy(job)

    def contents():
        return {str(p.relative_to(folder.path)): p.read_bytes() for p in sorted(folder.path.glob("*.zarr/*"))}

    made = SimpleNamespace(
        root=tmp_path, slides=slides, log=log, folder=folder, job=job, run=run, contents=contents,
        items=read_manifest(slides), told=partial(corpus_work.told, log),
    )  # fmt: skip
    return made
