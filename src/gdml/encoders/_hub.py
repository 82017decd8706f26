"""Weights on the Hugging Face hub, from the local cache where possible."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALTERNATIVES = (
    'or use weights that you have: weights="path/to/pytorch_model.bin", another timm model '
    '(encoder="timm:vit_base_patch16_224"), or encoder="stain", which needs none'
)


@contextmanager
def hub_errors(name: str, repository: str | None = None) -> Iterator[None]:
    """Turn errors of the hub into one that names the page, the token and the alternatives.

    Raises
    ------
    PermissionError
        If the repository is gated and access was not granted.
    ConnectionError
        If the hub cannot be reached, or has no such weights.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repository}" if repository else "https://huggingface.co"
    try:
        yield
    # without a token, a gated repository may be reported as one that does not exist
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise PermissionError(
            f"The weights of {name!r} are gated: ask for access at {page}, then set the token of your account in "
            f"HF_TOKEN or run `hf auth login`; {ALTERNATIVES}."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"The weights of {name!r} are not in the local cache and cannot be downloaded ({str(error).splitlines()[0]}). "
            f"On a machine with a connection, get them once from {page} (HF_HOME is the cache's folder, HF_TOKEN the "
            f"token for gated weights) and copy the cache here; {ALTERNATIVES}."
        ) from error


def hub_file(repository: str, filename: str, name: str) -> Path:
    """Path of a file of the hub in the local cache, downloaded where it is absent.

    A cached file is used without a request to the hub, so that gated weights load offline.

    Raises
    ------
    PermissionError, ConnectionError
        As :func:`hub_errors`.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    with hub_errors(name, repository):
        return Path(huggingface_hub.hf_hub_download(repository, filename))
