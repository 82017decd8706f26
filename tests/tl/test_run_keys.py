"""What a finished run of a comparison depends on: whatever differs is computed again."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gdml
from gdml._provenance import provenance_key, row_digests
from gdml.spots.provenance import slide_key
from gdml.spots.resolve import Spots
from gdml.training import compare


def test_runs_on_misaligned_counts_are_not_handed_out_after_repair(ready, tmp_path):
    right = ready.X.copy()
    for rows in (np.flatnonzero(ready.obs["library_id"] == name) for name in ready.obs["library_id"].cat.categories):
        ready.X[rows] = right[np.random.default_rng(0).permutation(rows)]  # the same rows, at other spots
    call = lambda folder: gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path / folder)
    wrong = call("shared").scores.pcc
    ready.X = right
    repaired, fresh = call("shared").scores, call("fresh").scores
    pd.testing.assert_frame_equal(repaired, fresh)
    assert not np.allclose(repaired.pcc, wrong, equal_nan=True)


def test_runs_on_another_image_are_not_handed_out(ready, tmp_path):
    call = lambda folder: gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path / folder)
    images = {n: np.asarray(Image.open(s["metadata"]["source_image_path"])) for n, s in ready.uns["spatial"].items()}
    um = {name: float(of["um_per_px"]) for name, of in ready.uns["gdml"]["tiles"]["slides"].items()}
    scale = float(np.mean(list(um.values())))
    turned = {name: np.ascontiguousarray(image[::-1, ::-1]) for name, image in images.items()}
    gdml.pp.tile(ready, image=turned, um_per_px=scale)
    gdml.pp.embed(ready, "stain", image=turned)
    wrong = call("shared").scores
    gdml.pp.tile(ready, image=images, um_per_px=scale)
    gdml.pp.embed(ready, "stain", image=images)
    right, fresh = call("shared").scores, call("fresh").scores
    pd.testing.assert_frame_equal(right, fresh)
    assert not np.allclose(right.pcc, wrong.pcc, equal_nan=True)


@pytest.fixture
def plan(ready, tmp_path, monkeypatch):
    """The plan of a comparison, and the data of its first fold."""
    caught = []
    original = compare.run_plan
    monkeypatch.setattr(compare, "run_plan", lambda plan: caught.append(plan) or original(plan))
    gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    (made,) = caught
    return made, made.source.make(made.folds[0], made.source.panel(made.folds[0]))


@pytest.mark.parametrize("what", ["device", "validation", "validation_fraction", "group", "slide", "panel", "seed"])
def test_the_key_of_a_run_depends_on(plan, what):
    plan, data = plan
    seed = 0
    key = lambda plan, data, seed: provenance_key(plan.record(data, plan.candidates[0], seed))
    before = key(plan, data, seed)
    assert before == key(plan, data, seed)
    train = data.fold.train[0]
    if what == "device":
        kind = SimpleNamespace(type="cuda")
        plan = replace(plan, fabric=SimpleNamespace(device=kind, strategy=plan.fabric.strategy, world_size=1))
    elif what == "validation":
        plan = replace(plan, validation="block")
    elif what == "validation_fraction":
        plan = replace(plan, validation_fraction=0.3)
    elif what in ("group", "slide"):
        other = {"group" if what == "group" else "key": "another"}
        slides = {**plan.source.slides, train: replace(plan.source.slides[train], **other)}
        plan = replace(plan, source=SimpleNamespace(slides=slides, normalization=plan.source.normalization))
    elif what == "panel":
        data = replace(data, panel=data.panel[::-1])
    else:
        seed = 1
    assert key(plan, data, seed) != before


@pytest.mark.parametrize(
    "what", ["fingerprint", "um_per_px", "side_px", "tile_px", "n_side", "neighbors", "identity", "precision", "tokens"]
)
def test_the_key_of_a_slide_depends_on(ready, what):
    spots = Spots.resolve(ready)
    name = next(iter(spots.slides))
    key = lambda: slide_key(spots, name, counts=row_digests(ready.X))
    before = key()
    stored = ready.uns["gdml"]
    home = next(part for part in (stored["tiles"]["slides"][name], stored["tiles"], stored["features"]) if what in part or (
        what == "fingerprint"))  # fmt: skip
    value = home.get(what, "")
    home[what] = f"{value}x" if isinstance(value, str) else value + 1
    assert key() != before
    home[what] = value
    if what != "fingerprint":
        assert key() == before


@pytest.mark.parametrize("what", ["xy", "counts", "grid"])
def test_the_key_of_a_slide_pairs_its_spots_with_their_counts(ready, what):
    spots = Spots.resolve(ready)
    name, rows = next(iter(spots.slides.items()))
    counts = ready.X.toarray()
    before = slide_key(spots, name, counts=row_digests(counts))
    if what == "xy":
        spots.xy[rows[0]] += 1
    elif what == "counts":
        counts[rows] = counts[rows[::-1]]
    else:
        ready.obs["array_row"] *= 2
    assert slide_key(spots, name, counts=row_digests(counts)) != before


def test_another_precision_is_another_run(ready, trained, tmp_path):
    call = lambda precision: gdml.tl.cross_validate(
        ready, "ridge", group_key="patient", save_to=tmp_path, precision=precision
    )
    call("fp32")
    call("bf16")
    assert len(trained) == 4
