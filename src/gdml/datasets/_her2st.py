from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import anndata as ad
import pandas as pd
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import count, did_you_mean
from gdml._progress import bar
from gdml._settings import settings
from gdml.io import read_st

from ._fetch import GitRepository, git_blob_hash, read_blobs

URL = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/data/"


def her2st(
    sections: str | Sequence[str], *, cache_dir: str | PathLike[str] | None = None, base_url: str = URL
) -> ad.AnnData:
    """HER2-positive breast cancer, legacy Spatial Transcriptomics: 36 sections of eight patients.

    Files are taken from ``GDML_DATA_DIR/her2st`` if it has them, else from ``cache_dir``, else they are downloaded
    (about 4 MB per section). Every file, including local ones, is verified against its git hash in the public
    repository.

    Parameters
    ----------
    sections
        One or several names, ``"A1"`` to ``"H3"``; the letter is the patient.
    cache_dir
        Folder of downloads, by default ``her2st`` in ``gdml.settings.cache_dir``.
    base_url
        Where to download from; the public repository at a pinned commit by default.

    Returns
    -------
    AnnData as :func:`gdml.io.read_st` returns it, sections concatenated: ``obs`` has ``library_id`` (the section) and
    ``patient`` (both categorical), ``obs_names`` are ``{x}x{y}-{section}``, ``uns["spatial"]`` has an entry per
    section. Genes are the union over sections: the table of a section omits genes that were not detected on its array,
    so their counts are 0 there.

    Raises
    ------
    ValueError
        A section is unknown or named twice, or a file differs from the one in the public repository.
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
    repository = GitRepository("her2st", blobs, base_url=base_url, folder=folder)

    parts = {}
    with bar(len(files), desc="her2st", unit="section", leave=False) as progress:
        for name, paths in files.items():
            counts, spots, image = (_at_hand(p, blobs[p]) or repository.fetch(p) for p in paths)
            part = parts[name] = read_st(counts, spots, image, library_id=name)
            part.obs["patient"] = name[0]
            part.obs_names = part.obs_names + f"-{name}"
            progress.update()

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


def _at_hand(path: str, blob: str) -> Path | None:
    """Path of the file in ``GDML_DATA_DIR``, verified; None if it is not there."""
    local = settings.data_dir / "her2st" / path if settings.data_dir else None
    if local is None or not local.is_file():
        return None
    if git_blob_hash(local) != blob:
        raise ValueError(
            f"{str(local)!r} is not the file of the public repository: download it again, unset GDML_DATA_DIR to let "
            "gdml download it, or read your own files with gdml.io.read_st."
        )
    return local
