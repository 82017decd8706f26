"""Samples of HEST-1k: counts in ``st/{id}.h5ad``, the slide in ``wsis/{id}.tif``, and one table of all samples."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from gdml.slides.geometry import um_per_px_from_grid, um_per_px_from_neighbors

REPOSITORY = "MahmoodLab/hest"
TABLE = "HEST_v1_*.csv"
_SAMPLE = re.compile(r"[A-Z]+\d+")
_AGREE = 0.1  # relative


def files_of(samples: Iterable[str]) -> list[str]:
    """Paths in the repository, the table aside.

    Raises
    ------
    ValueError
        If a name is no sample's.
    """
    samples = list(samples)
    for sample in samples:
        if not _SAMPLE.fullmatch(sample):
            raise ValueError(f"{sample!r} is no sample of HEST-1k; they are named as SPA118 or TENX13.")
    return [path for sample in samples for path in (f"st/{sample}.h5ad", f"wsis/{sample}.tif")]


def find_table(folder: Path) -> Path | None:
    """Newest table of samples in ``folder``; None where there is none."""
    version = lambda path: [int(number) for number in re.findall(r"\d+", path.stem)]
    return max(folder.glob(TABLE), key=version, default=None)


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of the newest table by sample.

    Raises
    ------
    FileNotFoundError
        If there is no table.
    """
    path = find_table(folder)
    if path is None:
        raise FileNotFoundError(f"{str(folder)!r} has no {TABLE}: pass --yes to download it.")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def read_samples(folder: Path, patients: Mapping[str, str]) -> tuple[ad.AnnData, dict[str, float]]:
    """Read samples one below the other, and the micrometres per pixel of each.

    Parameters
    ----------
    folder
        With the layout of the repository.
    patients
        Patient of each sample, by its name.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If the table says that a sample is another patient's, or counts and coordinates can't be read from a sample.
    """
    table = read_table(folder)
    parts, scales = {}, {}
    for sample, patient in patients.items():
        _check_patient(sample, patient, table)
        part, scales[sample] = _read(folder, sample, table[sample])
        part.obs["library_id"], part.obs["patient"] = sample, patient
        parts[sample] = part
    adata = ad.concat(parts, join="outer", fill_value=0)
    for column in ("library_id", "patient"):
        adata.obs[column] = pd.Categorical(adata.obs[column])
    adata.uns["spatial"] = {sample: part.uns["spatial"][sample] for sample, part in parts.items()}
    return adata, scales


def _check_patient(sample: str, patient: str, table: Mapping[str, Mapping[str, str]]) -> None:
    if sample not in table:
        raise ValueError(f"The table of HEST-1k has no sample {sample!r}; download a newer one.")
    listed = re.sub(r"^Patient ", "P", table[sample].get("patient", "").strip())
    if listed and listed != patient:
        raise ValueError(
            f"{sample!r} is of patient {listed!r} by the table of HEST-1k, of {patient!r} by ours: the folds would mix "
            "patients. Look it up before you go on."
        )


def _read(folder: Path, sample: str, row: Mapping[str, str]) -> tuple[ad.AnnData, float]:
    counts, image = (folder / path for path in files_of([sample]))
    for path in (counts, image):
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}: pass --yes to download it.")
    found = ad.read_h5ad(counts)
    if "spatial" not in found.obsm:
        raise ValueError(f"{str(counts)!r} has no obsm['spatial']: it is no sample of HEST-1k.")
    if "in_tissue" in found.obs:
        found = found[found.obs["in_tissue"].to_numpy().astype(bool)]
    obs = found.obs[[c for c in ("array_row", "array_col") if c in found.obs]].copy()
    obs.index = found.obs_names.astype(str) + f"-{sample}"
    xy = np.asarray(found.obsm["spatial"], np.float64)
    part = ad.AnnData(found.X, obs=obs, var=pd.DataFrame(index=found.var_names.astype(str)), obsm={"spatial": xy})
    part.var_names_make_unique()
    pitch = _pitch(row)
    metadata = {"source_image_path": str(image.resolve()), "spot_pitch_um": pitch}
    part.uns["spatial"] = {sample: {"images": {}, "scalefactors": {}, "metadata": metadata}}
    return part, _scale(sample, part, pitch, row)


def _pitch(row: Mapping[str, str]) -> float:
    # The table has the two swapped for GSE144240: spots 150 um wide and 110 um apart would overlap.
    return max(float(row["inter_spot_dist"]), float(row["spot_diameter"]))


def _scale(sample: str, part: ad.AnnData, pitch: float, row: Mapping[str, str]) -> float:
    """Micrometres per pixel: HEST's own, unless the pitch of the spots says otherwise."""
    listed, xy = float(row["pixel_size_um_estimated"]), part.obsm["spatial"]
    try:
        measured = um_per_px_from_grid(xy, part.obs["array_row"], part.obs["array_col"], pitch)
    except (KeyError, ValueError):  # no grid, or not that of these coordinates
        measured = um_per_px_from_neighbors(xy, pitch)
    if abs(listed / measured - 1) <= _AGREE:
        return listed
    print(
        f"{sample}: HEST-1k says {listed:.3f} um per px, its spots {measured:.3f} (pitch {pitch:g} um); theirs is taken."
    )
    return measured
