from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import anndata as ad
import pandas as pd
from scanpy import logging as logg
from tqdm.auto import tqdm

from gdml import _keys
from gdml._errors import count, did_you_mean
from gdml._settings import settings
from gdml.io import read_st

from ._fetch import fetch, git_blob_hash, read_blobs

URL = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data/"


def her2st(
    sections: str | Sequence[str], *, cache_dir: str | PathLike[str] | None = None, base_url: str = URL
) -> ad.AnnData:
    """HER2-positive breast cancer, legacy Spatial Transcriptomics: 36 sections of eight patients.

    Files are taken from ``GDML_DATA_DIR/her2st`` where that is set and has them, else from ``cache_dir``, else they
    are downloaded (about 4 MB a section). Every file, local ones too, is verified against the hash that git has for
    it upstream.

    Parameters
    ----------
    sections
        Names of sections, ``"A1"`` to ``"H3"``; the letter is the patient. One name stands for one section.
    cache_dir
        Folder of downloads, by default ``her2st`` in ``gdml.settings.cache_dir``.
    base_url
        Where to download from; the public repository at a pinned commit by default.

    Returns
    -------
    AnnData as :func:`gdml.io.read_st` returns it, the sections one below the other: ``obs`` has ``library_id`` (the
    section) and ``patient`` (both categorical), ``obs_names`` are ``{x}x{y}-{section}``, ``uns["spatial"]`` has an
    entry a section. Genes are the union: a section's table leaves out what was detected nowhere on its array, so
    the counts of such a gene are 0 there.

    Raises
    ------
    ValueError
        A section is unknown or named twice, or a file is not what it is upstream.
    ConnectionError
        A download failed; no partial file is kept.

    References
    ----------
    Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions. Nature Communications 12, 6012 (2021).
    """
    blobs = read_blobs("git_blobs.tsv")
    names = [sections] if isinstance(sections, str) else list(sections)
    files = {name: _files_of(name, blobs) for name in names}
    if not files or len(files) < len(names):
        raise ValueError(f"sections is {names}; give one or more sections, each once.")
    folder = settings.cache_dir / "her2st" if cache_dir is None else Path(cache_dir).expanduser()

    parts = {}
    for name, paths in tqdm(files.items(), desc="her2st", unit="section", disable=None, leave=False):
        counts, spots, image = (_local(p, blobs[p], base_url, folder) for p in paths)
        part = parts[name] = read_st(counts, spots, image, library_id=name)
        part.obs["patient"] = name[0]
        part.obs_names = part.obs_names + f"-{name}"

    adata = ad.concat(parts, join="outer", fill_value=0)
    for column in (_keys.LIBRARY, "patient"):
        adata.obs[column] = pd.Categorical(adata.obs[column])
    adata.uns[_keys.SPATIAL] = {name: part.uns[_keys.SPATIAL][name] for name, part in parts.items()}
    everywhere = set.intersection(*(set(part.var_names) for part in parts.values()))
    logg.info(
        f"{count(len(parts), 'section')}, {adata.n_obs} spots, {adata.n_vars} genes ({len(everywhere)} in every section)"
    )
    return adata


def _files_of(section: str, blobs: dict[str, str]) -> list[str]:
    """List counts, spots and image of a section, as paths in the repository."""
    known = {Path(p).name.split(".")[0] for p in blobs if p.startswith("ST-cnts/")}
    if section not in known:
        raise ValueError(f"sections: there is no section {section!r}. {did_you_mean(section, known)}")
    folder = f"ST-imgs/{section[0]}/{section}/"
    image = next(p for p in blobs if p.startswith(folder))
    return [f"ST-cnts/{section}.tsv.gz", f"ST-spotfiles/{section}_selection.tsv", image]


def _local(path: str, blob: str, base_url: str, folder: Path) -> Path:
    at_hand = settings.data_dir / "her2st" / path if settings.data_dir else None
    if at_hand is None or not at_hand.is_file():
        return fetch(path, blob, base_url=base_url, folder=folder)
    if git_blob_hash(at_hand) != blob:
        raise ValueError(
            f"{str(at_hand)!r} is not the file of the public repository: fetch it again, unset GDML_DATA_DIR to "
            "download it, or read files of your own with gdml.io.read_st."
        )
    return at_hand
