"""Where features of tiles are kept, and whether there are any."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdml import _keys
from gdml._settings import settings
from gdml.features.store import store_path
from gdml.spots.provenance import fingerprint
from gdml.spots.resolve import Spots

from ._embed_slide import spec_of
from ._plan import Plan
from ._tokens import Tokens

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision


def stores_folder(cache_dir: str | Path | None = None) -> Path:
    """Folder of all stores of features.

    Parameters
    ----------
    cache_dir
        As in :func:`gdml.pp.embed`.
    """
    return Path(cache_dir or settings.cache_dir).expanduser().absolute() / "features"


def has_features(
    spots: Spots,
    encoder: Any,
    *,
    tokens: Tokens = "grid7",
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    cache_dir: str | Path | None = None,
) -> bool:
    """Whether a cache has features of all slides, which :func:`gdml.pp.embed` would use and complete.

    Parameters
    ----------
    spots
        Tiled spots.
    encoder, tokens, device, precision, cache_dir
        As in :func:`gdml.pp.embed`.
    """
    folder = stores_folder(cache_dir)
    if not folder.is_dir():
        return False
    extractor = Plan(encoder, tokens, device=device, precision=precision).make()
    records = spots.adata.uns[spots.key][_keys.TILES]["slides"]
    specs = (spec_of(records[name], fingerprint(spots, name), extractor) for name in spots.slides)
    return all(store_path(folder, spec).is_dir() for spec in specs)
