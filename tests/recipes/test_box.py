"""The recipe of the encoder in the box, for a few steps."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = Path(__file__).parents[2] / "recipes" / "box"


@pytest.fixture(scope="module")
def views():
    spec = importlib.util.spec_from_file_location("views", RECIPE / "views.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["views"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["views"]


def slide(views, um_per_px=0.5):
    rng = np.random.default_rng(0)
    pixels = np.full((900, 1200, 3), 240, np.uint8)
    pixels[300:700, 200:900] = rng.integers(60, 200, (400, 700, 3), dtype=np.uint8)
    return views.TrainingSlide.of(pixels, um_per_px)


def test_places_lie_on_tissue(views):
    places = slide(views).places
    assert len(places) > 500
    assert (places >= [100, 200]).all() and (places <= [1000, 800]).all()


def test_a_batch_depends_on_seed_and_number_alone(views):
    make = lambda seed: views.Views([slide(views)], 5, 32, views.Augmentation(), seed)
    one = make(0)
    later, first = one(3), one(0)
    assert first.shape == (10, 3, 32, 32) and first.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(make(0)(0), first, rtol=0, atol=0)
    torch.testing.assert_close(make(0)(3), later, rtol=0, atol=0)
    assert not torch.equal(first, later) and not torch.equal(first, make(1)(0))


def test_views_without_augmentation_are_the_slide(views):
    plain = views.Augmentation((0.5, 0.5), scale_jitter=0, stain_gain=0, stain_shift=0, blur=0)
    one = slide(views)
    drawn = views.Views([one], 40, 24, plain, 0)(0)
    pixels = (drawn.permute(0, 2, 3, 1) * views.STD + views.MEAN) * 256 - 1
    ours, theirs = pixels[:40], pixels[40:]
    for image, twin in zip(ours.numpy(), theirs.numpy(), strict=True):
        turned = [np.rot90(m, k) for m in (twin, twin[:, ::-1]) for k in range(4)]
        assert min(np.abs(image - t).max() for t in turned) < 1.5  # float32, through optical density and back
    assert pixels.min() > 40 and pixels.max() < 256


#: The recipe as a process of its own, on a small synthetic slide in place of whole sections, which take long to read.
ON_A_SMALL_SLIDE = """
import runpy, sys
import gdml
folder, script = sys.argv[1:3]
sys.argv, sys.path[0] = sys.argv[2:], script.rpartition("/")[0]
gdml.datasets.her2st = lambda sections: gdml.datasets.synthetic(1, 1, grid=6, n_genes=10, path=folder)
runpy.run_path(script, run_name="__main__")
"""


def run(out, *options, **kwargs):
    script = [sys.executable, "-c", ON_A_SMALL_SLIDE, str(out.parent / "slides"), str(RECIPE / "train.py")]
    command = ["--sections", "S1", "--steps", "5", "--pairs", "4", "--px", "32", "--hidden", "64"]
    command += ["--checkpoint-every", "1", "--device", "cpu", "--out", str(out), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen([*script, *command], stdout=subprocess.PIPE, text=True, env=env, **kwargs)


@pytest.mark.slow
def test_killed_and_called_again_it_ends_with_the_same_weights(tmp_path):
    pytest.importorskip("lightly")
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    undisturbed, disturbed = run(whole), run(parts)
    for line in disturbed.stdout:
        if line.startswith("step 2"):
            disturbed.kill()
            break
    assert undisturbed.wait(300) == 0 and disturbed.wait(60) != 0
    other = run(parts, "--lr", "0.1", stderr=subprocess.PIPE)
    assert "another recipe" in other.communicate()[1] and other.returncode != 0
    again = run(parts)
    printed = again.communicate()[0]
    assert again.returncode == 0 and "resuming at step" in printed
    assert whole.read_bytes() == parts.read_bytes()
    assert not list(tmp_path.glob("*.checkpoint*"))
