"""Predict expression on a slide that has only an image."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from gdml.slides import Slide
from gdml.slides.lattice import Layout
from gdml.spots.lattice import lattice_spots
from gdml.spots.resolve import Spots

from ._features import model_encoder
from ._model import as_model

if TYPE_CHECKING:
    from gdml.training import TrainedModel

PREDICT = "gdml.tl.predict"
#: Arguments of :func:`gdml.tl.predict` that lay the tiles on an image, and those that say something of spots.
OF_IMAGES = ("library_id", "spacing_um", "layout", "tissue", "min_tissue", "region")
_OF_SPOTS = {
    "image": "the first argument is the image",
    "spot_pitch_um": "an image has no spots; spacing_um= sets the distance between tiles",
    "spatial_key": "the centres of the tiles are written to obsm['spatial']",
    "gene_key": "an image has no measured genes",
    "calibrate_on": "no spot of an image was measured",
    "copy": "a new AnnData is returned in any case",
}
_READERS = {".h5ad": "anndata.read_h5ad", ".zarr": "anndata.read_zarr"}


def is_image(source: Any) -> bool:
    """Whether the first argument of :func:`gdml.tl.predict` is an image: a path, a slide or what one is made of."""
    package = type(source).__module__.split(".")[0]
    return (
        isinstance(source, str | os.PathLike | np.ndarray | Slide)
        or package == "xarray"
        or (package == "squidpy" and hasattr(source, "data"))
    )


def refuse_arguments_of_images(given: dict[str, Any]) -> None:
    """Refuse arguments that lay tiles on an image, where there are spots.

    Raises
    ------
    TypeError
        If one of them is not None.
    """
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"`{name}` lays tiles on an image, but `adata` is an AnnData, whose spots are predicted as they are: "
                f"leave it out, or pass the image of the slide instead of `adata`."
            )


def image_spots(
    source: Any,
    model: Any,
    *,
    encoder: Any = None,
    um_per_px: Any = None,
    library_key: str | None = None,
    key: str,
    library_id: str | None = None,
    spacing_um: float | None = None,
    layout: Layout | None = None,
    tissue: Any = None,
    min_tissue: float | None = None,
    region: Any = None,
    call: str = PREDICT,
    stacklevel: int = 3,
    **of_spots: Any,
) -> tuple[Spots, "TrainedModel", Any]:
    """Lay the tiles of a model on an image; nothing is read from it before the model and its encoder are known to fit.

    Parameters
    ----------
    source
        The image.
    model
        A trained model or the folder of one; its ``tiles`` say how large a tile is.
    encoder, um_per_px, library_key, library_id, spacing_um, layout, tissue, min_tissue, region
        As in :func:`gdml.tl.predict`.
    key
        Name under which the tiles are recorded.
    call
        The function that the user called, for messages.
    stacklevel
        Of the warnings.
    **of_spots
        Further arguments of :func:`gdml.tl.predict`, which are refused.

    Returns
    -------
    The tiles as the spots of a new AnnData, the model, and its encoder.
    """
    for name, value in of_spots.items():
        if value is not None and value is not False:
            raise TypeError(f"`{name}` cannot be used with an image: {_OF_SPOTS[name]}.")
    if um_per_px is not None and hasattr(um_per_px, "keys"):
        raise TypeError("`um_per_px` must be a number where the first argument is an image, found a dict.")
    _refuse_other_files(source)
    if model is None:
        raise TypeError("`model` is missing: pass a model or the folder of a saved one to predict an image.")
    trained = as_model(model)
    made = model_encoder(trained, encoder)
    chosen = {"layout": layout, "tissue": tissue, "min_tissue": min_tissue, "library_key": library_key}
    spots = lattice_spots(
        source,
        trained.tiles["tile_um"],
        tile_px=trained.tiles["tile_px"],
        n_side=trained.tiles["n_side"],
        spacing_um=spacing_um,
        region=region,
        um_per_px=um_per_px,
        library_id=library_id,
        key=key,
        call=call,
        stacklevel=stacklevel + 1,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return spots, trained, made


def _refuse_other_files(source: Any) -> None:
    """Refuse a path that does not exist, or that is of an AnnData."""
    if not isinstance(source, str | os.PathLike):
        return
    path = os.path.expanduser(source)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"There is no file {os.path.abspath(path)!r}: `adata` must be an AnnData, or the path of the "
            "full-resolution image of a slide."
        )
    reader = _READERS.get(os.path.splitext(path.rstrip(os.sep))[1].lower())
    if reader is not None:
        raise ValueError(
            f"{str(source)!r} holds an AnnData, not an image: read it first, "
            f"gdml.tl.predict({reader}({str(source)!r}), model)."
        )
