"""Requirements of a table, checked before anything is downloaded: files, access, disk, time."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _hest import files_of, find_table
from _hub import sizes, weights_to_fetch
from _measure import Encoding
from _sets import PaperSet

import gdml
from gdml.datasets._fetch import read_blobs
from gdml.datasets._her2st import _files_of

#: Bytes of a file of HER2ST by its folder: means of the sections B4, C2, C3, C4, C6.
HER2ST_BYTES = {"ST-cnts": 802_000, "ST-spotfiles": 8_000, "ST-imgs": 3_946_000}
_TILES_A_SPOT = {"exact": 25, "lattice": 4}  # docs/guide/encoders.md: about 4 on legacy ST, 2 on Visium


@dataclass
class Needs:
    """Missing files, and estimates of disk and time.

    Parameters
    ----------
    files
        Files to download, by the name of their set.
    download, weights, features
        Bytes of those files, of encoder weights, of features.
    spots
        Number of spots.
    tiles
        Number of tiles to encode.
    tiles_per_s
        Rate of the encoder.
    training
        Seconds at most by model.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    download: int = 0
    weights: int = 0
    features: int = 0
    spots: int = 0
    tiles: int = 0
    tiles_per_s: float = float("nan")
    training: dict[str, float] = field(default_factory=dict)

    @property
    def nothing_to_fetch(self) -> bool:
        """Whether nothing needs to be downloaded."""
        return not self.weights and not any(self.files.values())


def find_needs(wanted: Mapping[str, tuple[PaperSet, Sequence[str]]], folder: Path, encoder: str) -> Needs:
    """Find missing files, and query the hub for their sizes.

    Parameters
    ----------
    wanted
        Sets with their slides, by name.
    folder
        Of downloads.
    encoder
        As in :func:`gdml.pp.embed`.

    Raises
    ------
    PermissionError
        If the hub grants no access to a gated repository.
    ConnectionError
        If the hub cannot be reached.
    """
    needs = Needs(weights=weights_to_fetch(encoder))
    for name, (paper_set, slides) in wanted.items():
        missing = missing_files(paper_set, slides, folder)
        needs.files[name] = missing
        if missing and paper_set.hest:
            needs.download += sum(sizes(missing).values())
        else:
            needs.download += sum(HER2ST_BYTES[path.split("/")[0]] for path in missing)
        needs.spots += round(paper_set.n_spots * len(slides) / len(paper_set.patients))
    return needs


def add_features(needs: Needs, encoding: Encoding, neighbors: str) -> None:
    """Count tiles and the bytes of their features."""
    needs.tiles, needs.tiles_per_s = needs.spots * _TILES_A_SPOT[neighbors], encoding.tiles_per_s
    # float16: the spot's tokens and its pooled vector, and one vector for each further tile
    needs.features = 2 * encoding.dim * (needs.spots * encoding.n_tokens + needs.tiles)


def missing_files(paper_set: PaperSet, slides: Sequence[str], folder: Path) -> list[str]:
    """Missing files of the slides, as paths in their repository."""
    if paper_set.hest:
        absent = [path for path in files_of(slides) if not (folder / "hest" / path).is_file()]
        # the table alone is missing: asking for a small file of the set brings it
        return absent or ([] if find_table(folder / "hest") else files_of(slides)[:1])
    blobs = read_blobs("git_blobs.tsv")
    places = [folder / "her2st", *([gdml.settings.data_dir / "her2st"] if gdml.settings.data_dir else [])]
    paths = [path for slide in slides for path in _files_of(slide, blobs)]
    return [path for path in paths if not any((place / path).is_file() for place in places)]


def check_disk(needs: Needs, folder: Path) -> None:
    """Raise an error if a disk is too small.

    Raises
    ------
    OSError
        If less is free than is needed.
    """
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    amounts = [(folder, needs.download), (gdml.settings.cache_dir, needs.features), (hub, needs.weights)]
    asked: dict[int, int] = {}
    for path, amount in amounts:
        existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        disk = existing.stat().st_dev
        asked[disk] = asked.get(disk, 0) + amount
        free = shutil.disk_usage(existing).free
        if asked[disk] > free:
            raise OSError(
                f"The disk of {str(path)!r} has {free / 1e9:.1f} GB free; {asked[disk] / 1e9:.1f} GB are needed. Name "
                "another with --folder (GDML_CACHE_DIR for features, HF_HOME for weights), or take fewer --sections."
            )


def report_needs(needs: Needs, *, mbit_s: float | None) -> None:
    """Print the requirements, and how they were estimated."""
    size = lambda n: f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"
    n_files = sum(map(len, needs.files.values()))
    print("What this run needs:")
    print(f"- download: {n_files} files, {size(needs.download)}; encoder weights {size(needs.weights)}")
    if not needs.nothing_to_fetch:
        total = needs.download + needs.weights
        print(f"  time: {clock(total * 8 / mbit_s / 1e6) if mbit_s else 'pass --mbit-s, the rate of your connection'}")
    print(f"- features: {needs.spots} spots, {needs.tiles} tiles, {size(needs.features)} (less what is stored already)")
    print(f"  time: {clock(needs.tiles / needs.tiles_per_s)} at {needs.tiles_per_s:.3g} tiles/s, without reading them")
    if needs.training:
        print(
            f"- training: {clock(sum(needs.training.values()))} at most, all epochs, without the runs finished already"
        )
        print("  " + ", ".join(f"{label} {clock(seconds)}" for label, seconds in needs.training.items()))


def clock(seconds: float) -> str:
    """Format a duration."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (float("inf"), 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return "unknown"
