"""Weights on the Hugging Face hub, from the local cache where possible."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .published import Published

_HUB = "https://huggingface.co"
_INSTEAD = (
    'or use weights that you have, weights="path/to/{filename}"; another timm model, '
    'encoder="timm:vit_base_patch16_224"; or encoder="stain", which needs none'
)


@contextmanager
def hub_errors(name: str, published: Published | None = None) -> Iterator[None]:
    """Turn errors of the hub into one that names the licence, the page, the token and the alternatives.

    Raises
    ------
    PermissionError
        If access to the repository is refused.
    ConnectionError
        If the hub cannot be reached, or has no such weights.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    page = published.page if published else _HUB
    instead = _INSTEAD.format(filename=published.filenames[-1] if published else "model.safetensors")
    try:
        yield
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        # without a token, a gated repository may be reported as one that does not exist
        refused = isinstance(error, GatedRepoError | RepositoryNotFoundError)
        if refused or getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise PermissionError(_refused(name, page, published, instead)) from error
        raise ConnectionError(
            f"The weights of {name!r} are not in the local cache and cannot be downloaded "
            f"({(str(error).splitlines() or [type(error).__name__])[0]}). On a machine with a connection, get them once "
            f"from {page} (HF_HOME is the cache's folder, HF_TOKEN the token for gated weights) and copy the cache "
            f"here; {instead}."
        ) from error


def _refused(name: str, page: str, published: Published | None, instead: str) -> str:
    what = f"{name!r} ({published.title}, licence {published.license})" if published else repr(name)
    terms = f" ({published.terms})" if published and published.terms else ""
    return (
        f"Access to the weights of {what} is refused: ask for it at {page}, signed in{terms}, then set a token of that "
        "account in HF_TOKEN or run `hf auth login`. Once downloaded, they load from the cache without a connection; "
        f"{instead}."
    )


def cached_file(repository: str, filenames: Sequence[str]) -> Path | None:
    """Path in the local cache of the first of some files that is there, or None.

    The cache keeps repositories apart by the case of their names, which the hub ignores: ``MahmoodLab/UNI`` may have been
    downloaded as ``MahmoodLab/uni``.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    prefix = "models--"
    wanted = repository.replace("/", "--").lower()
    try:
        folders = sorted(path.name for path in Path(constants.HF_HUB_CACHE).iterdir())
    except OSError:  # no cache yet
        return None
    spellings = [
        folder.removeprefix(prefix).replace("--", "/", 1)
        for folder in folders
        if folder.startswith(prefix) and folder.removeprefix(prefix).lower() == wanted
    ]
    for filename in filenames:
        for spelling in sorted(spellings, key=lambda found: found != repository):
            found = try_to_load_from_cache(spelling, filename, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(found, str):
                return Path(found)
    return None


def hub_file(name: str, published: Published) -> Path:
    """Path of the weights of a published encoder in the local cache, downloaded where they are absent.

    A cached file is used without a request to the hub, so that gated weights load offline.

    Raises
    ------
    PermissionError, ConnectionError
        As :func:`hub_errors`.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = cached_file(published.repository, published.filenames)
    if cached is not None:
        return cached
    *others, last = published.filenames
    with hub_errors(name, published):
        for filename in others:
            try:
                return Path(huggingface_hub.hf_hub_download(published.repository, filename))
            except LocalEntryNotFoundError:  # no connection
                raise
            except EntryNotFoundError:
                continue
        return Path(huggingface_hub.hf_hub_download(published.repository, last))
