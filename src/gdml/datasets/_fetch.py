"""Files of a git repository at a pinned commit, verified by their git blob hashes."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import pooch

from gdml._marker import mark


def read_blobs(name: str) -> dict[str, str]:
    """Read the registry file ``name`` (hash, tab, path) of the package: blob hashes by path in the repository."""
    lines = files(__package__).joinpath(name).read_text().splitlines()
    return {path: blob for blob, path in (line.split("\t") for line in lines)}


def git_blob_hash(path: Path) -> str:
    """Compute the git hash of a file: SHA-1 of ``blob {size}``, a zero byte and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class GitRepository:
    """Local copies of the files of a repository, downloaded by pooch when they are missing or damaged.

    Pooch verifies plain hashes only, while git hashes a header with the size before the content; the registry
    therefore has no hashes, and the downloader checks the file before pooch moves it to its place.

    Parameters
    ----------
    name
        Name of the data set; the folder is marked with it.
    blobs
        Git blob hash of each file, by its path in the repository.
    base_url
        Address of the repository's files; paths are appended to it.
    folder
        Where the copies are kept, under the same paths. It may hold other files.
    """

    def __init__(self, name: str, blobs: Mapping[str, str], *, base_url: str, folder: Path) -> None:
        self._name, self._blobs, self._folder = name, blobs, folder
        self._pooch = pooch.create(
            path=folder,
            base_url=f"{base_url.rstrip('/')}/",
            registry=dict.fromkeys(blobs),
            retry_if_failed=1,
            allow_updates=False,
        )

    def fetch(self, path: str) -> Path:
        """Return the local copy of ``path``.

        Raises
        ------
        ConnectionError
            If the download fails. Nothing is kept.
        ValueError
            If the downloaded file has another hash. Nothing is kept.
        """
        local = self._folder / path
        if local.is_file() and git_blob_hash(local) != self._blobs[path]:
            local.unlink()
        try:
            self._pooch.fetch(path, downloader=self._download)
        except OSError as error:
            if error.errno is not None:  # an error of the disk: those of requests have no number
                raise
            raise ConnectionError(
                f"{self._pooch.get_url(path)} could not be downloaded ({error}). Nothing was kept; check the connection "
                "and call again, or place the file in the folder that GDML_DATA_DIR names."
            ) from error
        mark(self._folder, self._name, name=self._name, files=sorted(self._blobs))
        return local

    def _download(self, url: str, output_file: str, shop: pooch.Pooch) -> None:
        """Download to a temporary file, which pooch moves to its place if this returns, and check its hash."""
        pooch.HTTPDownloader(timeout=60)(url, output_file, shop)
        found, expected = git_blob_hash(Path(output_file)), self._blobs[url.removeprefix(shop.base_url)]
        if found != expected:
            raise ValueError(
                f"{url} is corrupt: its git blob hash is {found}, expected {expected}. Nothing was kept; call again, "
                "or place the file in the folder that GDML_DATA_DIR names."
            )
