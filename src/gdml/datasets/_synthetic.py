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

from gdml import _keys
from gdml._errors import check_count, check_number
from gdml._marker import mark
from gdml._progress import bar
from gdml._settings import settings
from gdml.io.visium_layout import visium_entry

from ._render import draw_stain, render
from ._tissue import DRIVERS, Tissue, make_tissue

PITCH_UM = 200.0
DIAMETER_UM = 100.0
MARGIN_UM = 150.0
_LAYOUT = 1  # part of the folder name: raise it when the images change
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
    """Synthetic H&E slides in which the image drives the expression of some genes by a known rule.

    Four drivers vary independently over each slide: the density of nuclei, the strength of haematoxylin and of eosin,
    and the area of gland lumens. Half of the learnable genes depend on one of them, the others on a mixture of two.
    They come in pairs of opposite sign, so that the library size carries no information and normalisation makes no
    noise gene predictable. Noise genes have a constant rate. Slides of one patient share their stain.

    Parameters
    ----------
    n_slides, n_patients
        Number of slides, and of the patients that they are assigned to in order.
    grid
        Spots per side of the square grid, 200 um apart; spots outside the tissue are left out.
    n_genes
        Number of genes.
    learnable
        Fraction of the genes that the image drives.
    depth
        Mean count of a gene in a spot.
    um_per_px
        Resolution of the images, micrometres per pixel, 0.2 to 4.
    seed
        The same seed gives the same images and counts.
    path
        Folder of the images, by default ``synthetic`` in ``gdml.settings.cache_dir``. JPEG files are written once, to
        a subfolder named by a hash of the parameters.

    Returns
    -------
    AnnData as :func:`gdml.io.read_st` returns it, slides concatenated, and

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
    TypeError
        An argument is not a number.
    """
    for name, value, least in (("n_patients", n_patients, 1), ("grid", grid, 3), ("n_genes", n_genes, 4)):
        check_count(name, value, at_least=least)
    check_count("n_slides", n_slides, at_least=n_patients, hint="give at least one slide per patient")
    for name, value in (("learnable", learnable), ("depth", depth), ("um_per_px", um_per_px)):
        check_number(name, value)
    if not 0 <= learnable <= 1:
        raise ValueError(f"`learnable` is {learnable}; it must be a fraction of the genes, 0 to 1.")
    if not depth > 0:
        raise ValueError(f"`depth` is {depth}; it must be a positive mean count, such as 80.")
    if not 0.2 <= um_per_px <= 4:
        raise ValueError(f"`um_per_px` is {um_per_px}; it must be between 0.2 and 4.")

    side = (grid - 1) * PITCH_UM + 2 * MARGIN_UM
    made_from = {"layout": _LAYOUT, "seed": seed, "patients": [n_slides, n_patients], "side": side, "um": um_per_px}
    key = hashlib.blake2b(json.dumps(made_from).encode(), digest_size=8).hexdigest()
    folder = (settings.cache_dir / "synthetic" if path is None else Path(path).expanduser()) / key
    folder.mkdir(parents=True, exist_ok=True)

    parts, drivers, spatial, pictures = [], [], {}, []
    with bar(n_slides, desc="synthetic", unit="slide", leave=False) as progress:
        for i in range(n_slides):
            library, patient = f"S{i + 1}", i * n_patients // n_slides
            tissue = make_tissue(np.random.default_rng([seed, 0, i]), side)
            file = folder / f"{library}.jpg"
            pictures.append(file.name)
            if not file.exists():
                stain = draw_stain(np.random.default_rng([seed, 1, patient]))
                _paint(render(tissue, stain, um_per_px, np.random.default_rng([seed, 2, i])), file)
            obs, um = _spots(tissue, grid, np.random.default_rng([seed, 3, i]))
            obs.index += f"-{library}"
            obs = obs.assign(**{_keys.LIBRARY: library, "patient": f"P{patient + 1}", "x": um[:, 0], "y": um[:, 1]})
            parts.append(obs)
            drivers.append(tissue.drivers(um, DIAMETER_UM))
            spatial[library] = visium_entry(
                file, PITCH_UM / um_per_px, spot_pitch_um=PITCH_UM, spot_diameter_um=DIAMETER_UM
            )
            progress.update()
    mark(folder, "synthetic", name=f"seed {seed}, {n_slides} slides", files=pictures)

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


def _paint(picture: NDArray[np.uint8], file: Path) -> None:
    """Write a picture; it appears under its name only when it is complete."""
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
