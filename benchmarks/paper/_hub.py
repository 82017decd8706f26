"""Access, sizes and downloads of repositories on the Hugging Face hub."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from _hest import REPOSITORY, TABLE

#: Repositories of encoders with gated weights, and the file of the weights.
GATED = {"uni": "MahmoodLab/UNI", "uni2-h": "MahmoodLab/UNI2-h"}
WEIGHTS = "pytorch_model.bin"


@contextmanager
def hub_errors(repository: str, *, dataset: bool) -> Iterator[None]:
    """Turn errors of the hub into one that says what to do.

    Raises
    ------
    PermissionError
        If the repository is gated and access was not granted.
    ConnectionError
        If the hub cannot be reached.
    """
    import requests
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # the base is that of whichever HTTP library the hub's client has, and of its failed connections
    network = (HfHubHTTPError.__mro__[1], requests.RequestException, LocalEntryNotFoundError, OfflineModeIsEnabled)
    page = f"https://huggingface.co/{'datasets/' if dataset else ''}{repository}"
    try:
        yield
    # A gated repository looks like one that does not exist to those without a token.
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise PermissionError(
            f"{repository} is gated: ask for access at {page}, then set the token of your account in HF_TOKEN or run "
            "`hf auth login`, and call again."
        ) from error
    except (HfHubHTTPError, ConnectionError, TimeoutError, *network) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConnectionError(
            f"The hub could not be asked for {repository} ({reason}). On a machine with a connection, fetch it from {page}."
        ) from error


def sizes(files: Sequence[str]) -> dict[str, int]:
    """Bytes of files of HEST-1k, and of its newest table; asks the hub after checking access.

    Raises
    ------
    PermissionError, ConnectionError
        As :func:`hub_errors`.
    FileNotFoundError
        If the repository has no such file.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(REPOSITORY, dataset=True):
        api.auth_check(REPOSITORY, repo_type="dataset")
        top = api.list_repo_tree(REPOSITORY, repo_type="dataset", recursive=False)
        tables = [entry.path for entry in top if fnmatch(entry.path, TABLE)]
        found = api.get_paths_info(REPOSITORY, [*tables, *files], repo_type="dataset")
        known = {entry.path: int(entry.size) for entry in found}
    gone = [path for path in files if path not in known]
    if gone:
        raise FileNotFoundError(f"{REPOSITORY} has no {', '.join(gone[:3])} ({len(gone)} files are missing).")
    return known


def download(files: Sequence[str], folder: Path) -> None:
    """Fetch files of HEST-1k, and its tables, into ``folder``; interrupted downloads resume.

    Raises
    ------
    PermissionError, ConnectionError
        As :func:`hub_errors`.
    """
    import huggingface_hub

    with hub_errors(REPOSITORY, dataset=True):
        huggingface_hub.snapshot_download(
            REPOSITORY, repo_type="dataset", local_dir=folder, allow_patterns=[TABLE, *files]
        )


def weights_to_fetch(encoder: str) -> int:
    """Bytes of gated weights that are not in the hub's cache; 0 if the encoder needs none.

    Raises
    ------
    PermissionError, ConnectionError
        As :func:`hub_errors`.
    """
    if encoder not in GATED:
        return 0
    import huggingface_hub

    repository = GATED[encoder]
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, WEIGHTS), str):
        return 0
    with hub_errors(repository, dataset=False):
        api = huggingface_hub.HfApi()
        api.auth_check(repository)
        return sum(int(entry.size) for entry in api.get_paths_info(repository, [WEIGHTS]))
