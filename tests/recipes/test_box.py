"""The recipe of the encoder ``"box"``, for a few steps."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gdml.encoders import get_encoder

RECIPE = Path(__file__).parents[2] / "recipes" / "box"


@pytest.fixture(scope="module")
def recipe():
    """Modules ``views`` and ``sources`` of the recipe, by name."""
    loaded = {}
    for name in ("views", "sources"):
        spec = importlib.util.spec_from_file_location(name, RECIPE / f"{name}.py")
        module = loaded[name] = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield loaded
    for name in loaded:
        del sys.modules[name]


@pytest.fixture(scope="module")
def views(recipe):
    return recipe["views"]


def picture(low=60, high=200):
    """Noise of these values on near white."""
    rng = np.random.default_rng(0)
    pixels = np.full((900, 1200, 3), 240, np.uint8)
    pixels[300:700, 200:900] = rng.integers(low, high, (400, 700, 3), dtype=np.uint8)
    return pixels


def test_places_lie_on_tissue_and_off_the_edge(views):
    places = views.tissue(picture(), 0.5)
    assert len(places) > 500
    assert (places >= [100, 200]).all() and (places <= [1000, 800]).all()
    everywhere = views.tissue(picture()[300:700, 200:900], 0.5)
    edge = views.EDGE_UM / 0.5
    assert len(everywhere) > 500
    assert (everywhere >= edge).all() and (everywhere + views.MASK_PX <= np.array([700, 400]) - edge).all()


def test_a_batch_depends_on_seed_and_number_alone(views):
    sources = [views.Source.of(name, [picture()], 0.5) for name in "ab"]
    make = lambda seed: views.Views(sources, 5, 32, views.Augmentation(), seed)
    one = make(0)
    later, first = one(3), one(0)
    assert first.shape == (10, 3, 32, 32) and first.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(make(0)(0), first, rtol=0, atol=0)
    torch.testing.assert_close(make(0)(3), later, rtol=0, atol=0)
    assert not torch.equal(first, later) and not torch.equal(first, make(1)(0))


def without_augmentation(views, um_per_px=0.5, **augmentation):
    nothing = {"scale_jitter": 0, "stain_gain": 0, "channel_gain": 0, "shift": 0, "blur": 0}
    return views.Augmentation((um_per_px, um_per_px), **nothing | augmentation)


def test_views_without_augmentation_are_the_image(views):
    drawn = views.Views([views.Source.of("a", [picture()], 0.5)], 40, 24, without_augmentation(views), 0)(0)
    pixels = (drawn.permute(0, 2, 3, 1) * views.STD + views.MEAN) * 256 - 1
    ours, theirs = pixels[:40], pixels[40:]
    for image, twin in zip(ours.numpy(), theirs.numpy(), strict=True):
        turned = [np.rot90(m, k) for m in (twin, twin[:, ::-1]) for k in range(4)]
        assert min(np.abs(image - t).max() for t in turned) < 1.5  # float32, through optical density and back
    assert pixels.min() > 40 and pixels.max() < 256


def test_a_view_shows_one_image(views):
    """Of dark and pale images that lie side by side in memory; views are larger than the images."""
    dark, pale = picture(40, 90)[300:500, 200:420], picture(150, 200)[300:500, 200:400]
    source = views.Source.of("a", [dark, pale, dark], 0.5)
    drawn = views.Views([source], 60, 96, without_augmentation(views, 1.5), 0)(0)
    pixels = ((drawn * views.STD + views.MEAN) * 256 - 1).permute(0, 2, 3, 1).flatten(1)
    low, high = pixels.min(1).values, pixels.max(1).values
    is_dark, is_pale = (low > 38) & (high < 92), (low > 148) & (high < 202)
    assert (is_dark | is_pale).all() and is_dark.any() and is_pale.any()
    assert (is_dark[:60] == is_dark[60:]).all()  # a pair is of one image


@pytest.mark.parametrize("change", ["stain_gain", "channel_gain", "shift"])
def test_the_views_of_a_pair_differ_in_stain(views, change):
    source = [views.Source.of("a", [picture()], 0.5)]
    density = lambda augmentation: -torch.log(views.Views(source, 60, 48, augmentation, 0)(0) * views.STD + views.MEAN)
    plain, changed = density(without_augmentation(views)), density(without_augmentation(views, **{change: 0.3}))
    spread = lambda d: (d[:60].mean((2, 3)) - d[60:].mean((2, 3))).std(0)
    assert (spread(changed) > 0.05).all() and (spread(plain) < 1e-3).all()


def test_of_coarse_images_no_fine_views(views):
    """A view at a quarter of the image's um per px is what bilinear interpolation makes of its pixels."""
    coarse = views.Source.of("a", [picture()], 2.0)
    drawn = views.Views([coarse], 20, 48, without_augmentation(views, 0.35), 0)(0)
    along = (drawn[..., 2:] - 2 * drawn[..., 1:-1] + drawn[..., :-2]).abs() > 1e-2
    bent = along.any(1).any(2)  # columns where a view is not linear: at every pixel of the image, every second px
    assert 0.4 < bent.float().mean() and (bent[:, 1:] | bent[:, :-1]).float().mean() > 0.9


def folder_of_images(folder):
    for name, size in {"fine/a.png": (400, 300), "fine/b.png": (300, 400), "coarse/c.png": (300, 300)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(size[0])
        Image.fromarray(rng.integers(60, 200, (size[1], size[0], 3), dtype=np.uint8)).save(folder / name)
    table = folder / "mine.csv"
    table.write_text("source,files,um_per_px,width_px\nfine,fine/*.png,0.25,\ncoarse,coarse/*.png,1.5,160\n")
    return table


def test_sources_are_brought_to_a_common_scale(recipe, tmp_path):
    fine, coarse = recipe["sources"].sources(folder_of_images(tmp_path), tmp_path)
    assert fine.um_per_px == 0.5 and fine.pixels.shape == (350, 200, 3)  # averaged: 200 x 150 over 150 x 200
    assert len(np.unique(fine.frames[:, 1])) == 2
    assert fine.pixels[:150].std() < 0.7 * coarse.pixels.std()
    assert coarse.um_per_px == 1.5 and coarse.pixels.shape == (300, 160, 3)
    (tmp_path / "coarse" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match="coarse/"):
        list(recipe["sources"].sources(tmp_path / "mine.csv", tmp_path))


@pytest.mark.real
def test_scored_images_are_not_trained_on(data_dir):
    table = pd.read_csv(RECIPE / "sources.csv", index_col="source")
    assert not table["files"].str.contains("her2st|st_mob|d14").any()
    spots = pd.read_csv(data_dir / "visium_colon" / "spatial" / "tissue_positions_list.csv", header=None)
    right = spots[5][spots[5] >= spots[5].median()]  # pixels of the spots of the half that is scored
    um_per_px, width = table.loc["colon", ["um_per_px", "width_px"]]
    assert width < right.min() - 2.5 * 112 / um_per_px  # not even tiles of their neighbourhood, five a side


def run(out, *options, **kwargs):
    script = [sys.executable, str(RECIPE / "train.py")]
    command = ["--images", str(out.parent), "--sources", str(out.parent / "mine.csv")]
    command += ["--steps", "5", "--pairs", "4", "--px", "32", "--hidden", "64"]
    command += ["--checkpoint-every", "1", "--device", "cpu", "--out", str(out), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return subprocess.Popen([*script, *command], stdout=subprocess.PIPE, text=True, env=env, **kwargs)


@pytest.mark.slow
def test_killed_and_called_again_it_ends_with_the_same_weights(tmp_path):
    pytest.importorskip("lightly")
    folder_of_images(tmp_path)
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
    tokens, _ = get_encoder("box", weights=whole).encode(torch.zeros(1, 224, 224, 3, dtype=torch.uint8))
    assert tokens.shape == (1, 50, 512) and tokens.isfinite().all()
