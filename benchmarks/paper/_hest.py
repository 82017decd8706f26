"""Samples of HEST-1k that the paper's sets consist of: their files, patients and scale."""

import csv
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import anndata as ad
import pandas as pd

import gdml
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


def read_patients(folder: Path) -> dict[str, str]:
    """Patient of each sample by the newest table; empty where it names none.

    Raises
    ------
    FileNotFoundError
        If there is no table.
    """
    path = find_table(folder)
    if path is None:
        raise FileNotFoundError(f"{str(folder)!r} has no {TABLE}: pass --yes to download it.")
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return {row["id"]: row.get("patient", "").strip() for row in csv.DictReader(file)}


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
    listed = read_patients(folder)
    parts, scales = {}, {}
    for sample, patient in patients.items():
        _check_patient(sample, patient, listed)
        for path in files_of([sample]):
            if not (folder / path).is_file():
                raise FileNotFoundError(f"There is no file {str(folder / path)!r}: pass --yes to download it.")
        parts[sample] = gdml.io.read_hest(folder, sample)
        parts[sample].obs["patient"] = patient
        scales[sample] = _scale(sample, parts[sample])
    adata = ad.concat(parts, join="outer", fill_value=0, index_unique="-")
    adata.obs = adata.obs[[c for c in ("library_id", "patient", "array_row", "array_col") if c in adata.obs]].copy()
    for column in ("library_id", "patient"):
        adata.obs[column] = pd.Categorical(adata.obs[column])
    adata.uns["spatial"] = {sample: part.uns["spatial"][sample] for sample, part in parts.items()}
    return adata, scales


def _check_patient(sample: str, patient: str, listed: Mapping[str, str]) -> None:
    if sample not in listed:
        raise ValueError(f"The table of HEST-1k has no sample {sample!r}; download a newer one.")
    theirs = re.sub(r"^Patient ", "P", listed[sample])
    if theirs and theirs != patient:
        raise ValueError(
            f"{sample!r} is of patient {theirs!r} by the table of HEST-1k, of {patient!r} by ours: the folds would mix "
            "patients. Look it up before you go on."
        )


def _scale(sample: str, part: ad.AnnData) -> float:
    """Micrometres per pixel: HEST's own, unless the pitch of the spots says otherwise."""
    entry, xy = part.uns["spatial"][sample], part.obsm["spatial"]
    listed, pitch = entry["scalefactors"]["microns_per_pixel"], entry["metadata"]["spot_pitch_um"]
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
