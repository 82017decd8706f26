"""Three claims, measured: memory stays bounded, what is learnable is learnt, the seed decides everything.

    python benchmarks/checks.py

The first embeds a real section (GDML_DATA_DIR, or a download); the others run on synthetic slides.
"""

import resource
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

import gdml
from gdml import metrics


def synthetic_scores() -> None:
    """Train on three slides of three patients, predict the slide of a fourth."""
    slides = gdml.datasets.synthetic(n_slides=4, n_patients=4)
    unseen = slides.obs["patient"] == slides.obs["patient"].cat.categories[-1]
    train, new = slides[~unseen].copy(), slides[unseen].copy()
    gdml.pp.normalize(train, genes=list(train.var_names))
    for name in ("ridge", "gene-dml"):
        model = gdml.tl.fit(train, name, group_key="patient")
        gdml.tl.predict(new, model)
        gdml.tl.evaluate(new)
        pcc, learnable = new.var["gdml_pcc"], new.var["learnable"].to_numpy()
        chance = 1 / np.sqrt(new.n_obs - 3)  # standard deviation of Fisher's z for unrelated values
        print(
            f"synthetic, unseen patient, {name}: learnable genes mean PCC {pcc[learnable].mean():.3f} "
            f"(lowest {pcc[learnable].min():.3f}); noise genes mean {pcc[~learnable].mean():+.3f}, "
            f"standard deviation {pcc[~learnable].std():.3f} (chance: {chance:.3f})"
        )


def same_seed() -> None:
    """Train twice with one seed on the CPU, once with another."""
    slides = gdml.datasets.synthetic(n_slides=2, n_patients=2)
    predicted = []
    for seed in (0, 0, 1):
        model = gdml.tl.fit(slides, group_key="patient", seed=seed, device="cpu", max_epochs=5)
        gdml.tl.predict(slides, model, device="cpu")
        predicted.append(slides.obsm["gdml"].to_numpy().copy())
    first, again, other = predicted
    print(f"same seed: identical bit for bit: {first.tobytes() == again.tobytes()}; ", end="")
    print(f"another seed: largest difference {np.abs(first - other).max():.3f}")
    agreement = metrics.nan_mean(metrics.pearson_per_gene(first, other))
    print(f"           mean PCC between the predictions of two seeds: {float(agreement):.3f}")


def embed_one() -> None:
    """Embed section C6 in this process; print what it took."""
    adata = gdml.datasets.her2st("C6")
    gdml.pp.tile(adata)
    width, height = (adata.uns["gdml"]["tiles"]["slides"]["C6"][k] for k in ("width", "height"))
    gdml.encoders.get_encoder("stain")  # torch and the compiled kernels are loaded before the start is read
    warm = np.zeros((1, 224, 224, 3), np.uint8)
    import torch

    gdml.encoders.get_encoder("stain").encode(torch.from_numpy(warm))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, start = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        gdml.pp.embed(adata, "stain", cache_dir=folder)
    seconds = time.perf_counter() - start
    print(
        f"memory: embedding C6 ({adata.n_obs} spots, 25 tiles each) raised the peak by {peak() - before:.0f} MiB in "
        f"{seconds:.0f} s; its image is {width * height * 3 / 2**20:.0f} MiB decoded"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    if sys.argv[1:] == ["embed"]:
        embed_one()
    else:
        # in a process of its own and first: a child's peak starts at what its parent holds
        subprocess.run([sys.executable, __file__, "embed"], check=True)
        synthetic_scores()
        same_seed()
