"""Where Space Ranger put things: the layouts of versions 1 to 4."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from gdml._errors import check_number, some

POSITIONS = (
    "tissue_positions.parquet",
    "tissue_positions.csv",
    "tissue_positions_list.csv",
    "tissue_positions_list.csv.gz",
)
SCALE_FACTORS = "scalefactors_json.json"
_BIN_FOLDER = re.compile(r"square_(\d{3,})um")


@dataclass(frozen=True)
class Bins:
    """Bins of Visium HD to read.

    Parameters
    ----------
    um
        Side of the bins asked for, um.
    factor
        How many of the bins in the folder make one of them, along each side.
    """

    um: int
    factor: int

    @property
    def stored_um(self) -> int:
        """Side of the bins in the folder, um."""
        return self.um // self.factor


@dataclass(frozen=True)
class Layout:
    """Files of one run.

    Parameters
    ----------
    run
        The output folder of the run, ``outs``; for Visium HD the one that ``binned_outputs`` lies in.
    matrix
        Counts: an HDF5 file, or a folder with ``matrix.mtx.gz``.
    positions, scale_factors
        Tables of the spots, and the JSON of the scale factors.
    spatial
        Folders in which the downscaled images are searched, in this order.
    bins
        None where the slide has spots.
    """

    run: Path
    matrix: Path
    positions: Path
    scale_factors: Path
    spatial: tuple[Path, ...]
    bins: Bins | None

    @property
    def name(self) -> str:
        """Name of the run's folder, for runs without a library id."""
        return self.run.parent.name if self.run.name == "outs" else self.run.name


def find_layout(folder: str | PathLike[str], bin_um: float | None, matrix: Literal["filtered", "raw"]) -> Layout:
    """Find the files of a run.

    Parameters
    ----------
    folder
        ``outs``, the folder around it, ``binned_outputs``, or the folder of one bin size.
    bin_um
        Side of the bins of Visium HD, um; None for spots.
    matrix
        Which of Space Ranger's two matrices.

    Returns
    -------
    The files, all of which exist.

    Raises
    ------
    FileNotFoundError
        If the folder, the matrix, the positions or the scale factors don't exist.
    ValueError
        If ``bin_um`` is given for spots, is missing for bins, or is no multiple of a bin size in the folder.
    """
    if bin_um is not None:
        check_number("bin_um", bin_um, above=0, hint="the side of the bins in um, such as 8")
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"folder: {str(folder)!r} {what}; give the folder that Space Ranger wrote (outs).")
    for base in (folder, folder / "outs"):
        bins = _bin_folders(base)
        if bins:
            run = _run_of(next(iter(bins.values())))
            chosen = _choose(bins, bin_um, folder)
            return _layout(run, bins[chosen.stored_um], matrix, chosen)
        if _is_run(base):
            if bin_um is not None:
                raise ValueError(
                    f"`bin_um` is {bin_um:g}, but {str(base)!r} has spots, not bins (there is no "
                    "binned_outputs/square_*um): leave it out."
                )
            return _layout(base, base, matrix, None)
    if folder.name == "segmented_outputs" or (folder / "segmented_outputs").is_dir():
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has the segmented cells of Space Ranger 4 and no bins. Cells are not read; give "
            "the folder that binned_outputs lies in, and bin_um=8."
        )
    raise FileNotFoundError(
        f"folder: {str(folder)!r} is not a Space Ranger folder. Looked for spatial/tissue_positions.parquet, "
        "spatial/tissue_positions.csv, spatial/tissue_positions_list.csv, filtered_feature_bc_matrix(.h5) and "
        "binned_outputs/square_*um, here and in outs/; found: "
        f"{some(sorted(entry.name for entry in folder.iterdir())) or 'nothing'}."
    )


def _is_run(folder: Path) -> bool:
    """Whether any part of a run is here, so that what is missing can be named."""
    spatial = folder / "spatial"
    return any((spatial / name).is_file() for name in (*POSITIONS, SCALE_FACTORS)) or any(
        _matrices(folder, kind) for kind in ("filtered", "raw")
    )


def _matrices(folder: Path, kind: str) -> list[Path]:
    """Matrices in a folder, the best first: HDF5, HDF5 with the prefix of 10x's public data, matrix market."""
    name = f"{kind}_feature_bc_matrix"
    exact, market = folder / f"{name}.h5", folder / name
    prefixed = sorted(folder.glob(f"*_{name}.h5"))
    return [path for path in (exact,) if path.is_file()] or prefixed or [path for path in (market,) if path.is_dir()]


def _layout(run: Path, folder: Path, matrix: str, bins: Bins | None) -> Layout:
    matrices = _matrices(folder, matrix)
    if not matrices:
        other = "raw" if matrix == "filtered" else "filtered"
        hint = f' There is the {other} one: matrix="{other}".' if _matrices(folder, other) else " Copy it there."
        raise FileNotFoundError(
            f"folder: {str(folder)!r} has no {matrix}_feature_bc_matrix.h5 and no folder {matrix}_feature_bc_matrix.{hint}"
        )
    if len(matrices) > 1:
        raise ValueError(
            f"folder: {str(folder)!r} has several matrices ({some(path.name for path in matrices)}); keep those of one "
            "sample in a folder, with its spatial/."
        )
    spatial = folder / "spatial"
    positions = [spatial / name for name in POSITIONS if (spatial / name).is_file()]
    if not positions:
        raise FileNotFoundError(f"folder: {str(spatial)!r} has no positions; looked for {', '.join(POSITIONS)}.")
    if not (spatial / SCALE_FACTORS).is_file():
        raise FileNotFoundError(f"folder: {str(spatial)!r} has no {SCALE_FACTORS}; copy it there from the run.")
    return Layout(run, matrices[0], positions[0], spatial / SCALE_FACTORS, (spatial, run / "spatial"), bins)


def _bin_folders(folder: Path) -> dict[int, Path]:
    """Folder of each bin size, um."""
    candidates = [folder]
    for parent in (folder, folder / "binned_outputs"):
        candidates += sorted(parent.iterdir()) if parent.is_dir() else []
    named = ((_BIN_FOLDER.fullmatch(path.name), path) for path in candidates)
    return {int(match[1]): path for match, path in named if match and path.is_dir()}


def _run_of(bin_folder: Path) -> Path:
    parent = bin_folder.parent
    return parent.parent if parent.name == "binned_outputs" else parent


def _choose(bins: dict[int, Path], bin_um: float | None, folder: Path) -> Bins:
    """Bins to read, made of the largest stored ones that divide them."""
    if bin_um is None:
        if list(bins.values()) == [folder]:
            return Bins(next(iter(bins)), 1)
        raise ValueError(
            f"{str(folder)!r} is a Visium HD run: choose its bins with bin_um=. It has bins of "
            f"{_listed(bins)} um; a multiple of these, such as {3 * max(bins)}, is put together from them."
        )
    fitting = [um for um in bins if float(bin_um) % um == 0]
    if not fitting:
        raise ValueError(
            f"`bin_um` is {bin_um:g}, which is no multiple of a bin size in {str(folder)!r} ({_listed(bins)} um); "
            f"choose one of them or a multiple, such as bin_um={3 * max(bins)}."
        )
    return Bins(int(bin_um), int(bin_um) // max(fitting))


def _listed(bins: dict[int, Path]) -> str:
    return ", ".join(map(str, sorted(bins)))
