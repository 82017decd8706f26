import hashlib
import json
import os
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyvips
from numpy.typing import NDArray
from scanpy import logging as logg
from scipy import sparse
from scipy.special import expit
from tqdm.auto import tqdm

from gdml import _keys
from gdml._settings import settings
from gdml.io._visium_layout import visium_entry

from ._render import draw_stain, render
from ._tissue import DRIVERS, Tissue, make_tissue

PITCH_UM = 200.0
DIAMETER_UM = 100.0
MARGIN_UM = 150.0
_LAYOUT = 1  # to be raised when the pictures change: it is part of the name of their folder
_RULE = (
    "expected share of a gene = mean_share * 2 * logistic(strength * weights @ x), "
    "x = (drivers - center) / scale; counts are negative binomial"
)


def synthetic(
    n_slides: int = 4,
    n_patients: int = 2,
    *,
    grid: int = 12,
    n_genes: int = 300,
    learnable: float = 0.5,
    depth: float = 80.0,
    um_per_px: float = 1.0,
    seed: int = 0,
    path: str | PathLike[str] | None = None,
) -> ad.AnnData:
    """Made-up H&E slides in which the picture drives the expression of some genes by a known rule.

    Four things vary over each slide, independently: the density of nuclei, the strength of haematoxylin and of
    eosin, and the area of gland lumens. Half of the learnable genes follow one of them, the others a mixture of two.
    They come in pairs, one rising as the other falls by the same amount, so that the library size carries no
    information and no noise gene becomes predictable by normalisation. Noise genes have a constant rate. Slides of
    one patient share the shades of their stains.

    Parameters
    ----------
    n_slides, n_patients
        Slides, and the patients they are shared out to in order.
    grid
        Spots a side of the square grid, 200 um apart; those beside the tissue are left out.
    n_genes
        Number of genes.
    learnable
        Share of the genes that the picture drives.
    depth
        Mean count of a gene in a spot.
    um_per_px
        Scale of the pictures.
    seed
        Same seed, same pictures and counts.
    path
        Where the pictures go, by default ``synthetic`` in ``gdml.settings.cache_dir``: JPEG files, in a folder named
        after what they were made from, written once.

    Returns
    -------
    AnnData as :func:`gdml.io.read_st` returns it, the slides one below the other, and

    - ``obs``: ``library_id`` (``S1``...) and ``patient`` (``P1``...), both categorical;
    - ``var``: ``learnable`` (bool) and ``driver`` (names joined by ``+``, or ``none``);
    - ``layers["rate"]``: expected counts, float32;
    - ``obsm["drivers"]``: DataFrame of the drivers in each spot's disc: ``nuclei`` (per mm2), ``haematoxylin`` and
      ``eosin`` (mean strength, 1 is usual), ``glands`` (share of the area that is lumen);
    - ``uns["synthetic"]``: ``learnable`` and ``noise`` (names of genes), ``drivers`` (names), ``weights``
      (genes x drivers), ``center`` and ``scale`` (of the drivers), ``strength``, ``mean_share`` (genes), ``rule``,
      ``seed``.

    Raises
    ------
    ValueError
        A number is out of its range, or there are more patients than slides.
    """
    for name, value, least in (("n_patients", n_patients, 1), ("grid", grid, 3), ("n_genes", n_genes, 4)):
        if int(value) != value or value < least:
            raise ValueError(f"{name} is {value}; give a whole number of at least {least}.")
    if int(n_slides) != n_slides or n_slides < n_patients:
        raise ValueError(f"n_slides is {n_slides} for {n_patients} patients; give at least one slide a patient.")
    if not 0 <= learnable <= 1:
        raise ValueError(f"learnable is {learnable}; give a share of the genes, 0 to 1.")
    if not (np.isfinite(depth) and depth > 0):
        raise ValueError(f"depth is {depth}; give the mean count of a gene in a spot, such as 80.")
    if not 0.2 <= um_per_px <= 4:
        raise ValueError(f"um_per_px is {um_per_px}; give a scale of 0.2 to 4.")

    side = (grid - 1) * PITCH_UM + 2 * MARGIN_UM
    made_from = {"layout": _LAYOUT, "seed": seed, "patients": [n_slides, n_patients], "side": side, "um": um_per_px}
    key = hashlib.blake2b(json.dumps(made_from).encode(), digest_size=8).hexdigest()
    folder = (settings.cache_dir / "synthetic" if path is None else Path(path).expanduser()) / key
    folder.mkdir(parents=True, exist_ok=True)

    parts, drivers, spatial = [], [], {}
    for i in tqdm(range(n_slides), desc="synthetic", unit="slide", disable=None, leave=False):
        library, patient = f"S{i + 1}", i * n_patients // n_slides
        tissue = make_tissue(np.random.default_rng([seed, 0, i]), side)
        file = folder / f"{library}.jpg"
        if not file.exists():
            _paint(
                tissue, file, um_per_px, patient_rng=np.random.default_rng([seed, 1, patient]), rng_seed=[seed, 2, i]
            )
        obs, um = _spots(tissue, grid, np.random.default_rng([seed, 3, i]))
        obs.index += f"-{library}"
        parts.append(obs.assign(**{_keys.LIBRARY: library, "patient": f"P{patient + 1}", "x": um[:, 0], "y": um[:, 1]}))
        drivers.append(tissue.drivers(um, DIAMETER_UM))
        spatial[library] = visium_entry(
            file, PITCH_UM / um_per_px, spot_pitch_um=PITCH_UM, spot_diameter_um=DIAMETER_UM
        )

    obs, driven_by = pd.concat(parts), np.concatenate(drivers)
    xy = obs[["x", "y"]].to_numpy() / um_per_px
    obs = obs.drop(columns=["x", "y"]).astype({_keys.LIBRARY: "category", "patient": "category"})
    var, truth, share = _genes(driven_by, n_genes, learnable, np.random.default_rng([seed, 4]))
    rate, counts = _draw_counts(share, depth * n_genes, np.random.default_rng([seed, 5]))
    adata = ad.AnnData(
        X=sparse.csr_matrix(counts),
        obs=obs,
        var=var,
        layers={"rate": rate},
        obsm={_keys.SPATIAL: xy, "drivers": pd.DataFrame(driven_by, index=obs.index, columns=list(DRIVERS))},
        uns={_keys.SPATIAL: spatial, "synthetic": {**truth, "seed": seed, "rule": _RULE}},
    )
    logg.info(f"{n_slides} synthetic slides, {adata.n_obs} spots, {n_genes} genes; pictures in {folder}")
    return adata


def _paint(
    tissue: Tissue, file: Path, um_per_px: float, *, patient_rng: np.random.Generator, rng_seed: list[int]
) -> None:
    """Write the picture of a slide; it appears under its name only when it is whole."""
    picture = render(tissue, draw_stain(patient_rng), um_per_px, np.random.default_rng(rng_seed))
    part = file.with_name(f"{file.stem}.{os.getpid()}.part.jpg")
    try:
        pyvips.Image.new_from_array(picture).jpegsave(str(part), Q=92)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _spots(tissue: Tissue, grid: int, rng: np.random.Generator) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Place spots on the tissue; return their grid positions, and their centres in um, (n, 2)."""
    row, column = (a.ravel() for a in np.mgrid[:grid, :grid])
    um = MARGIN_UM + PITCH_UM * np.stack([column, row], 1) + rng.normal(0, 3, (grid * grid, 2))
    on = tissue.at(tissue.inside, um) > DIAMETER_UM / 2
    names = [f"{x}x{y}" for x, y in zip(column[on], row[on], strict=True)]
    return pd.DataFrame({_keys.ARRAY_ROW: row[on], _keys.ARRAY_COL: column[on]}, index=names), um[on]


def _genes(
    drivers: NDArray[np.float64], n_genes: int, learnable: float, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, object], NDArray[np.float64]]:
    """Make genes with their rule: ``var``, the ground truth, and each gene's share of a spot's counts, (n_obs, n_genes)."""
    n_pairs, n_drivers = round(learnable * n_genes) // 2, drivers.shape[1]
    weights, names, driver = np.zeros((n_genes, n_drivers)), [], []
    for pair in range(n_pairs):
        chosen = [pair % n_drivers]
        if pair >= n_pairs / 2:  # a mixture with one of the others
            chosen.append((chosen[0] + 1 + rng.integers(n_drivers - 1)) % n_drivers)
        weight = rng.uniform(0.5, 1, len(chosen)) * rng.choice([-1, 1], len(chosen))
        weights[2 * pair, chosen] = weight / np.linalg.norm(weight)
        weights[2 * pair + 1] = -weights[2 * pair]
        label = "+".join(DRIVERS[c] for c in chosen)
        names += [f"{'-'.join(DRIVERS[c][:3].upper() for c in chosen)}{pair + 1}{end}" for end in "AB"]
        driver += [label, label]
    noise = [f"NOISE{i + 1}" for i in range(n_genes - 2 * n_pairs)]
    names, driver = names + noise, driver + ["none"] * len(noise)

    mean = rng.lognormal(0, 0.35, n_genes)
    mean[1 : 2 * n_pairs : 2] = mean[: 2 * n_pairs : 2]  # the two of a pair add up to a constant
    mean /= mean.sum()
    center, scale, strength = drivers.mean(0), drivers.std(0), 1.2
    share = mean * 2 * expit(strength * ((drivers - center) / scale) @ weights.T)
    is_learnable = np.arange(n_genes) < 2 * n_pairs
    var = pd.DataFrame({"learnable": is_learnable, "driver": pd.Categorical(driver)}, index=names)
    truth = {
        "learnable": np.array(names[: 2 * n_pairs], dtype=object),
        "noise": np.array(noise, dtype=object),
        "drivers": np.array(DRIVERS, dtype=object),
        "weights": weights,
        "center": center,
        "scale": scale,
        "strength": strength,
        "mean_share": mean,
    }
    return var, truth, share


def _draw_counts(
    share: NDArray[np.float64], total: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw expected counts, with spots of unequal depth, and negative binomial counts of them."""
    rate = share * total * rng.lognormal(0, 0.25, (len(share), 1))
    counts = rng.poisson(rate * rng.gamma(60, 1 / 60, rate.shape))
    return rate.astype(np.float32), counts.astype(np.float32)
