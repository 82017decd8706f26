"""An embedding that is killed at any moment, and called again."""

import os
import subprocess
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import torch

import gdml

SIDE, N_SPOTS = 16, 400


class Slow:
    """Colours of the quarters of a tile, no faster than a network."""

    name, identity, dim, tile_px = "slow", "slow-1", 3, SIDE

    def encode(self, tiles):
        time.sleep(0.01)
        quarters = tiles.float().unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4)).flatten(1, 2)
        return quarters, quarters.mean(1)

    def to(self, device):
        return self


def embed(folder):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)
    obs = pd.DataFrame({"library_id": ["A"] * N_SPOTS}, index=[str(i) for i in range(N_SPOTS)])
    xy = rng.uniform([0, 0], [800, 600], (N_SPOTS, 2))
    adata = ad.AnnData(np.ones((N_SPOTS, 1), np.float32), obs=obs, obsm={"spatial": xy})
    gdml.pp.tile(adata, tile_um=None, tile_px=SIDE, n_side=3, image=image)
    gdml.pp.embed(adata, Slow(), image=image, cache_dir=folder, batch_size=8)
    return adata


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_killed_at_a_random_moment_it_ends_with_the_same_bytes(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    start = time.monotonic()
    embed(undisturbed)
    took = time.monotonic() - start
    process = subprocess.Popen([sys.executable, __file__, str(disturbed)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begin\n"
    seed = int.from_bytes(os.urandom(4), "little")
    time.sleep(np.random.default_rng(seed).uniform(0, 0.8) * took)
    process.kill()
    assert process.wait() != 0, f"it was done before it was killed (seed {seed})"
    half = len(contents(disturbed))
    embed(disturbed)
    assert contents(disturbed) == contents(undisturbed), f"seed {seed}"
    assert half < len(contents(undisturbed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("begin", flush=True)
    embed(sys.argv[1])
