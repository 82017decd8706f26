from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from gdml.encoders import get_encoder
from gdml.encoders.pathology import PUBLISHED, find_weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def refuse(cache, monkeypatch):
    """Let downloads end with an error; returns the files that were asked for."""

    def choose(*errors):
        import huggingface_hub

        asked = []

        def download(repository, filename):
            asked.append((repository, filename))
            raise errors[min(len(asked), len(errors)) - 1]

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return asked

    return choose


def put(cache, repository, filename="pytorch_model.bin", source=None):
    """Put a file into the cache as the hub does: a snapshot that links to a blob named by its content."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs").mkdir()
    blob = folder / "blobs" / ("0" * 64)
    blob.write_bytes(b"weights" if source is None else source.read_bytes())
    (snapshot / filename).symlink_to(blob)
    return snapshot / filename


def error_of(kind, status):
    error = kind.__new__(kind)  # its arguments differ between versions
    error.args = (f"{status} Client Error",)
    error.response = SimpleNamespace(status_code=status)
    return error


REFUSED = [(GatedRepoError, 403), (GatedRepoError, 401), (RepositoryNotFoundError, 401), (HfHubHTTPError, 403)]


@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize(("kind", "status"), REFUSED)
def test_refused_access_names_licence_page_token_and_alternatives(name, kind, status, refuse):
    refuse(error_of(kind, status))
    with pytest.raises(PermissionError) as caught:
        get_encoder(name)
    card, found = PUBLISHED[name], str(caught.value)
    for part in (name, card.title, card.license, card.terms, card.page, "HF_TOKEN", "hf auth login", "cache", "stain"):
        assert part in found
    assert f'weights="path/to/{card.filenames[-1]}"' in found


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no connection"), ConnectionError(), TimeoutError("slow")])
def test_no_connection_names_cache_and_alternatives(error, refuse):
    refuse(error)
    with pytest.raises(ConnectionError) as caught:
        get_encoder("virchow2")
    for part in ("virchow2", PUBLISHED["virchow2"].page, "HF_HOME", "HF_TOKEN", "weights=", "stain", "timm:"):
        assert part in str(caught.value)


def test_the_other_file_is_tried_where_the_first_is_not_published(refuse):
    asked = refuse(error_of(EntryNotFoundError, 404), LocalEntryNotFoundError("no connection"))
    with pytest.raises(ConnectionError):
        get_encoder("virchow2")
    assert [filename for _, filename in asked] == ["model.safetensors", "pytorch_model.bin"]
    asked = refuse(LocalEntryNotFoundError("no connection"))
    with pytest.raises(ConnectionError):
        get_encoder("virchow2")
    assert len(asked) == 1


def test_cached_weights_load_without_a_connection(cache, refuse, stand_in):
    refuse(error_of(GatedRepoError, 403))
    path = put(cache, "bioptimus/H0-mini", source=stand_in("h0-mini"))
    encoder = get_encoder("h0-mini")
    assert encoder.identity.endswith(f"{'0' * 16} pooling=class+mean")
    assert not encoder.model.pos_embed.is_meta
    assert find_weights("h0-mini") == path


def test_weights_are_found_in_the_cache_alone(cache, refuse):
    asked = refuse(error_of(GatedRepoError, 403))
    assert all(find_weights(name) is None for name in PUBLISHED)
    # other tools write the name in lower case, which the hub takes for the same
    conch = put(cache, "MahmoodLab/conch")
    assert find_weights("conch") == conch
    assert find_weights("uni") is None
    exact = put(cache, "MahmoodLab/CONCH")
    assert find_weights("conch") == exact
    either = put(cache, "paige-ai/Virchow2", "pytorch_model.bin")
    assert find_weights("virchow2") == either
    assert not asked
    with pytest.raises(ValueError, match="Did you mean 'virchow2'"):
        find_weights("virchow")


def test_no_cache_folder(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "none"))
    assert find_weights("uni") is None


def test_shapes_are_known_without_loading_weights(cache, monkeypatch):
    put(cache, "prov-gigapath/prov-gigapath")  # not weights at all
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("weights were read"))
    encoder = get_encoder("gigapath")
    assert (encoder.dim, encoder.tile_px) == (1536, 224)
