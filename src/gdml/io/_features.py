"""Features of TRIDENT or LazySlide, as if :func:`gdml.pp.embed` had computed them."""

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from anndata import AnnData

from gdml import _keys
from gdml._errors import check_count, count, did_you_mean, some
from gdml._marker import CACHE_DIR, check_writable
from gdml._progress import tell
from gdml._settings import settings
from gdml.spots.resolve import Spots
from gdml.spots.scale import check_scale_arguments
from gdml.spots.undo import all_or_nothing

from ._feature_inputs import check_alike, check_sizes, image_of, open_file, paths_of
from ._feature_spots import new_spots, place, tile_entry, tiles_of_spots
from ._feature_store import plan_store, store_features, write_features
from ._feature_tiles import tiles_of


def read_features(
    path: str | PathLike[str] | Mapping[str, str | PathLike[str]],
    slide: Any = None,
    *,
    adata: AnnData | None = None,
    encoder: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    n_side: int = 5,
    unmatched: Literal["error", "drop"] = "error",
    library_id: str | None = None,
    library_key: str | None = None,
    tile_key: str = "tiles",
    key_added: str = _keys.KEY,
    cache_dir: str | PathLike[str] | None = None,
) -> AnnData:
    """Read tile features that TRIDENT :cite:p:`Zhang2025` or LazySlide (https://lazyslide.readthedocs.io) computed.

    The features take the place of :func:`gdml.pp.tile` and :func:`gdml.pp.embed`: models are trained and used on them,
    and no tile is encoded again. They are one vector per tile (``tokens="pooled"``).

    Parameters
    ----------
    path
        HDF5 file of TRIDENT (``features_{encoder}/{slide}.h5``), or zarr store of wsidata, which LazySlide writes; or a
        dict of these by slide.
    slide
        Image that the features were computed on, as :func:`gdml.slides.open_slide` takes it, or a dict by slide. With
        ``adata``, the image that it names, if the file exists. Not needed: without it, um per px are those of the
        feature file, and there is no thumbnail to draw on.
    adata
        Measured spots to which features are assigned. None makes an AnnData of the tiles, without genes.
    encoder
        Name of the encoder, needed where a store has features of several, or a file does not state it.
    um_per_px
        Micrometres per full-resolution px, for all slides or by slide. By default those of the scale factors in
        ``adata``, the image, the feature file or the spot pitch, in this order; at last TRIDENT's magnification
        (10 / magnification).
    n_side
        Tiles along a side of the neighbour region, odd.
    unmatched
        Spots of ``adata`` without a tile: ``"error"``, or ``"drop"`` to remove them.
    library_id
        Name of the slide, if ``path`` is one file; by default the name of the file.
    library_key
        Column of ``obs`` with the slide of each spot; by default ``library_id``.
    tile_key
        Name of the tiles in a store of wsidata.
    key_added
        Replaces ``gdml`` in the names below.
    cache_dir
        Folder of gdml's feature stores, to which features are copied as float16; by default
        ``gdml.settings.cache_dir``.

    Returns
    -------
    ``adata``, which is written to, or a new AnnData of n tiles x 0 genes with ``obs[library_key]``,
    ``obsm["spatial"]`` (tile centres, full-resolution px) and ``uns["spatial"]``. Sets:

    ``obsm["X_{encoder}"]`` : float32, (n_obs, D)
        Features of the spot's tile.
    ``obsm["gdml_neighbor_mask"]`` : bool, (n_obs, n_side**2)
        True where the file has a tile exactly at that place of the neighbour region, row-major from the top left. Models
        that read neighbours see the others as they see tiles outside the image.
    ``uns["gdml"]["tiles"]``
        As :func:`gdml.pp.tile` records it. ``tile_um`` is the size that the program states if it is within 10 % of
        the true one, ``tile_px`` the side of the image that was encoded.
    ``uns["gdml"]["features"]``
        As :func:`gdml.pp.embed` records it, and ``source``, the program. ``identity`` is the program and its name of the
        encoder, all that the files say of the weights.

    Spots are assigned to tiles by names, where the file has ``barcodes``, else by place: tiles whose centre lies within
    1 px of the spot.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    KeyError
        If ``path`` lacks a slide of ``adata``.
    ValueError
        If a file is truncated or of another program; lacks the size of its tiles; is of another image; has NaN or values
        beyond float16; if encoders or tiles differ between slides; or spots have no tile.
    ImportError
        If spatialdata, which reads stores of wsidata, is not installed.

    Warns
    -----
    UserWarning
        If sources of the scale differ by more than 10 %, or the true size of the tiles differs by that much from what
        the program states.

    See Also
    --------
    gdml.pp.embed : Compute features with gdml's encoders.

    Notes
    -----
    Features of different programs, or of a program and gdml, are not exchanged for one another, even of the same encoder:
    images are read and scaled differently. :func:`gdml.tl.predict` refuses a model that was trained on others, and
    tiles of another size, with the reason.

    Examples
    --------
    >>> import gdml
    >>> slide = gdml.io.read_features("20x_256px_0px_overlap/features_uni_v1/a.h5", "a.svs")  # doctest: +SKIP
    >>> gdml.tl.predict(slide, "my-model")  # doctest: +SKIP
    """
    check_count("n_side", n_side, hint="the paper has 5")
    if n_side % 2 == 0:
        raise ValueError(f"`n_side` must be an odd whole number, found {n_side!r}; the paper has 5.")
    if unmatched not in ("error", "drop"):
        raise ValueError(f"`unmatched` is {unmatched!r}. {did_you_mean(str(unmatched), ['error', 'drop'])}")
    spots = None if adata is None else Spots.resolve(adata, key=key_added, library_key=library_key)
    paths = paths_of(path, spots, library_id)
    given = check_scale_arguments(list(paths), um_per_px, None)
    folder = Path(cache_dir or settings.cache_dir).expanduser() / "features"
    check_writable(folder, "Features", CACHE_DIR if cache_dir is None else "`cache_dir`")
    files = {name: open_file(found, encoder, tile_key) for name, found in paths.items()}
    check_alike(files)
    made = spots or new_spots(files, library_key or _keys.LIBRARY, key_added)
    tiles, fingerprints, entries = {}, {}, {}
    for name, file in files.items():
        with image_of(slide, name, len(files), spots) as image:
            tiles[name] = tiles_of(file, made, name, image, given.get(name))
            fingerprints[name] = None if image.slide is None else image.slide.fingerprint()
            entries[name] = tile_entry(image, tiles[name]) if spots is None else {}
    check_sizes(tiles)
    if spots is None:
        made = place(made, tiles, entries)
    kept, rows = tiles_of_spots(files, tiles, made, drop=unmatched == "drop")
    plans = {
        name: plan_store(file, tiles[name], made.xy[made.slides[name]], rows[name], fingerprints[name])
        for name, file in files.items()
    }
    stores = {name: store_features(folder, plan) for name, plan in plans.items()}
    doubts = [found.doubt for found in tiles.values() if found.doubt]
    if doubts:
        warnings.warn(
            f"Sources of the scale disagree by more than 10 %: {some(doubts)}. Pass um_per_px= to decide.",
            UserWarning,
            stacklevel=2,
        )
    if not kept.all():
        made.adata._inplace_subset_obs(kept)
        made = Spots.resolve(made.adata, key=key_added, library_key=library_key)
    with all_or_nothing(made.adata, key_added):
        share = write_features(made, files, tiles, plans, stores, n_side)
    first = next(iter(files.values()))
    dropped = f"; dropped {count(int((~kept).sum()), 'spot')} without a tile" if not kept.all() else ""
    tell(
        f"read_features: {first.encoder} by {first.program} (D = {first.dim}) of {count(len(made), 'spot')} on "
        f"{count(len(files), 'slide')}; {share:.0%} of the neighbour tiles are in the files{dropped}"
    )
    return made.adata
