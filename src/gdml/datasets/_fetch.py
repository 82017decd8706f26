"""Files of a git repository at a pinned commit, verified against its blob hashes."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pooch
import requests


def read_blobs(name: str) -> dict[str, str]:
    """Blob hashes by path, from the table ``name`` (hash, tab, path) that the package carries."""
    lines = files(__package__).joinpath(name).read_text().splitlines()
    return {path: blob for blob, path in (line.split("\t") for line in lines)}


def git_blob_hash(path: Path) -> str:
    """Hash under which git knows the content of a file: SHA-1 of ``blob {size}``, a zero byte, the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fetch(path: str, blob: str, *, base_url: str, folder: Path) -> Path:
    """Local copy of a file, downloaded where ``folder`` doesn't hold it intact.

    The transfer goes to a temporary name; the file takes its place only when its hash is the known one, so that
    neither a broken nor a falsified transfer leaves anything behind.

    Parameters
    ----------
    path
        Path in the repository; the local copy has the same below ``folder``.
    blob
        Hash of its content as git computes it.
    base_url
        Address that ``path`` is appended to.
    folder
        Where copies are kept.

    Raises
    ------
    ConnectionError
        The address can't be reached, doesn't have the file, or the transfer broke off.
    ValueError
        What arrived isn't the file with this hash.
    """
    local = folder / path
    if local.is_file() and git_blob_hash(local) != blob:
        local.unlink()
    base_url = base_url if base_url.endswith("/") else base_url + "/"

    def download(url: str, output_file: str, shop: pooch.Pooch) -> None:
        pooch.HTTPDownloader(timeout=60)(url, output_file, shop)
        found = git_blob_hash(Path(output_file))
        if found != blob:
            raise ValueError(
                f"{url} is corrupt: its git blob hash is {found}, expected {blob}. Nothing was kept; call again, "
                "or place the file in the folder that GDML_DATA_DIR names."
            )

    shop = pooch.create(path=folder, base_url=base_url, registry={path: None}, retry_if_failed=1)
    try:
        shop.fetch(path, downloader=download)
    except requests.RequestException as err:
        raise ConnectionError(
            f"{base_url}{path} could not be downloaded ({err}). Nothing was kept; check the connection and call again, "
            "or place the file in the folder that GDML_DATA_DIR names."
        ) from err
    return local
