"""Features of other programs in gdml's stores, and their record in an AnnData."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml import _keys
from gdml._progress import bar
from gdml.features import FeatureSpec, open_store
from gdml.spots.external import SOURCE
from gdml.spots.features import bank_rows
from gdml.spots.resolve import Spots

from ._feature_file import FeatureFile
from ._feature_tiles import Tiles


@dataclass(frozen=True)
class StorePlan:
    """Features of a slide, checked and ready to be stored.

    Parameters
    ----------
    file
        The file that holds them.
    centers
        (n, 2) float64, the places that they are stored under.
    spec
        What they depend on.
    fingerprint
        Of the image; of tiles and features where the image is not known.
    """

    file: FeatureFile
    centers: NDArray[np.float64]
    spec: FeatureSpec
    fingerprint: str


def plan_store(
    file: FeatureFile, tiles: Tiles, xy: NDArray[np.float64], rows: NDArray[np.intp], fingerprint: str | None
) -> StorePlan:
    """Check the features of a file; nothing is written.

    Parameters
    ----------
    file, tiles
        The file, and its tiles.
    xy, rows
        (m, 2) spots, and (m,) the tile of each, -1 for none; their tiles are found by the centre of the spot, which may
        differ from that of the tile by a fraction of a px.
    fingerprint
        Of the image; None where it is not known.

    Raises
    ------
    ValueError
        If a feature is NaN or beyond the range of float16.
    """
    centers = tiles.centers.copy()
    centers[rows[rows >= 0]] = xy[rows >= 0]
    content = file.digest(centers)
    fingerprint = fingerprint or f"features {content}"
    spec = FeatureSpec(
        image=f"{fingerprint} {content}",
        encoder=f"{file.identity} {file.dtype}",
        um_per_px=float(tiles.record["um_per_px"]),
        side_px=file.side_px,
        tile_px=file.tile_px,
        tokens="pooled",
    )
    return StorePlan(file, centers, spec, fingerprint)


def store_features(folder: Path, plan: StorePlan) -> Path:
    """Copy features into a store under ``folder``, unless they are there, and return its path."""
    file, centers = plan.file, plan.centers
    store = open_store(folder, plan.spec, n_tokens=1, dim=file.dim)
    absent = store.missing(centers, verify=True)
    start = 0
    with bar(int(absent.sum()), desc=f"copy {file.path.name}", unit="tile") as progress:
        for chunk in file.chunks() if absent.any() else ():
            take = absent[start : start + len(chunk)]
            if take.any():
                store.append(centers[start : start + len(chunk)][take], None, chunk[take])
                progress.update(int(take.sum()))
            start += len(chunk)
    return store.path


def write_features(
    spots: Spots,
    files: Mapping[str, FeatureFile],
    tiles: Mapping[str, Tiles],
    plans: Mapping[str, StorePlan],
    stores: Mapping[str, Path],
    n_side: int,
) -> float:
    """Write tiles, features and their record as pp.tile and pp.embed do.

    Returns
    -------
    Share of the neighbour tiles that are in the files.
    """
    adata, first = spots.adata, next(iter(files.values()))
    paths = {name: str(store) for name, store in stores.items()}
    obsm = _keys.embedding(first.encoder)
    record: dict[str, Any] = {
        _keys.TILES: {
            "tile_um": next(iter(tiles.values())).tile_um,
            "tile_px": first.tile_px,
            "n_side": int(n_side),
            "library_key": spots.library_key,
            "spatial_key": spots.spatial_key,
            "slides": {name: {**found.record, "fingerprint": plans[name].fingerprint} for name, found in tiles.items()},
        },
        _keys.FEATURES: {
            "encoder": first.encoder,
            "identity": first.identity,
            SOURCE: first.program,
            "precision": first.dtype,
            "tokens": "pooled",
            "n_tokens": 1,
            "dim": first.dim,
            "neighbors": "exact",
            "obsm": obsm,
            "keys": {name: plan.spec.key() for name, plan in plans.items()},
            "stores": {"own": paths, "neighbors": paths},
        },
    }
    adata.uns[spots.key] = {**adata.uns.get(spots.key, {}), **record}
    pooled = np.zeros((len(spots), first.dim), np.float32)
    mask = np.zeros((len(spots), n_side**2), bool)
    for name, rows in spots.slides.items():
        bank, own, neighbors = bank_rows(spots, name)
        pooled[rows], mask[rows] = bank.pooled(own), neighbors >= 0
    adata.obsm[obsm] = pooled
    adata.obsm[_keys.neighbor_mask(spots.key)] = mask
    others = n_side**2 - 1
    return (mask.sum() - len(mask)) / (len(mask) * others) if others else 1.0
