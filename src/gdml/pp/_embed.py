"""Encode tiles with a frozen encoder, and store the features on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from gdml import _keys
from gdml.slides.neighbors import Neighbors
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._tokens import Tokens
from .embedding import embed_spots

if TYPE_CHECKING:
    import distributed
    import torch

    from gdml.encoders import Encoder
    from gdml.encoders.device import Precision


def embed(
    adata: AnnData,
    encoder: "str | Path | torch.nn.Module | Callable[[torch.Tensor], torch.Tensor] | Encoder" = "stain",
    *,
    tokens: Tokens = "grid7",
    neighbors: Neighbors = "exact",
    image: Any = None,
    weights: str | Path | None = None,
    encoder_name: str | None = None,
    batch_size: int | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    compile: bool = False,
    cache_dir: str | Path | None = None,
    client: "distributed.Client | None" = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Encode the tile of each spot and the tiles of its neighbour region with a frozen encoder.

    Features are kept on disk, in stores keyed by the content of the image, the encoder and the geometry of the
    tiles. Tiles that are stored already are not encoded again, and a call that was interrupted, even killed, is
    resumed by the next one. Tiles are read in threads, a few batches ahead of the encoder.

    Parameters
    ----------
    adata
        Spots with tiles; :func:`gdml.pp.tile` is called with its defaults if they have none. A SpatialData with one
        table works as well.
    encoder
        Name of an encoder ("stain", statistics without weights; "uni", "virchow2" and other published ones; "box",
        a small network for weights of your own; any timm model), a module or a function, see
        :func:`gdml.encoders.get_encoder`.
    tokens
        Tokens that are kept of the spot's own tile: ``"grid7"``, the class token and the patches averaged to
        7 x 7; ``"all"``; or ``"pooled"``, one. Of neighbour tiles the pooled embedding is kept.
    neighbors
        Tiles of the neighbour region: ``"exact"``, centred on the spot, as in the paper (up to 25 tiles to encode
        per spot); ``"lattice"``, from one lattice on the slide, up to half a tile off, which neighbouring spots
        share (3.2 tiles to encode per spot of legacy ST, 0.7 on Visium, beside its own).
    image
        Full-resolution images in place of those recorded by :func:`gdml.pp.tile`: one, or a dict by slide.
        Needed again where they were given in memory.
    weights
        Local file of weights, for encoders that have some.
    encoder_name
        Name of the embedding, in place of the encoder's own.
    batch_size
        Tiles encoded at once; by default what fits the free memory, at most 64 (256 on CUDA). It is halved, with a
        warning in the log, when memory runs out.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"``, bfloat16 where the hardware supports it natively; ``"bf16"``; or ``"fp32"``. Features of each are
        kept apart.
    compile
        Compile the encoder with ``torch.compile`` first, which pays on many slides. Features are kept apart.
    cache_dir
        Folder of the stores; by default ``gdml.settings.cache_dir``.
    client
        A ``distributed.Client``: slides are encoded by the workers of its cluster, a slide a task and one
        slide at a time on each worker, whatever its threads. Images and ``cache_dir`` must be on a file system that
        all machines share. The encoder must be named: each worker makes its own, from the hub's cache or ``weights``.
        A slide whose worker dies is resumed by another.
    key_added
        ``key_added`` of the tiles; the record of the features is stored beside theirs.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``obsm["X_{encoder}"]`` : float32, (n_obs, D)
        Pooled embedding of the spot's tile.
    ``uns["gdml"]["features"]``
        ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens`` (T), ``dim`` (D), ``neighbors``, ``obsm``;
        ``names``, those of the D features, where the encoder declares ``feature_names``; ``keys``, the provenance key of each slide's features; and ``stores``, the path of each slide's store of the
        spots' ``"own"`` tiles, with tokens (T, D) and pooled (D), float16, and of the ``"neighbors"``, pooled alone.
    ``uns["gdml"]["tiles"]["slides"][slide]["fingerprint"]``
        Hash of the content of the image.

    Raises
    ------
    KeyError
        If coordinates are missing, or a slide was not tiled.
    FileNotFoundError
        If an image or a file of weights does not exist.
    ValueError
        If an argument is not valid, an image can't be read, the tiles do not match the encoder, or features
        exceed the range of float16; with ``client``, if an image is in memory.
    TypeError
        If ``client`` is given with an encoder that is a module or function.
    OSError
        If the cache folder cannot be written to; nothing was encoded then.
    PermissionError, ConnectionError
        If weights are gated or can't be downloaded; if the scheduler of ``client`` went away.
    RuntimeError
        If the workers died that encoded a slide.

    See Also
    --------
    gdml.pp.tile : Geometry of the tiles.
    gdml.encoders.list_encoders : Names of encoders.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> gdml.pp.embed(adata, encoder="stain")
    >>> adata.obsm["X_stain"].shape[0] == adata.n_obs
    True
    """
    spots = Spots.resolve(adata, key=key_added, copy=copy)
    with all_or_nothing(spots.adata, key_added):
        embed_spots(
            spots,
            encoder,
            tokens=tokens,
            neighbors=neighbors,
            image=image,
            weights=weights,
            encoder_name=encoder_name,
            batch_size=batch_size,
            device=device,
            precision=precision,
            compile=compile,
            cache_dir=cache_dir,
            client=client,
        )
    return spots.adata if copy else None
