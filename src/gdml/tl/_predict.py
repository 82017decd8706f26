"""Predict expression from tiles."""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from anndata import AnnData

from gdml import _keys
from gdml._errors import count, some
from gdml._progress import tell
from gdml.spots.genes import warn_of_few
from gdml.spots.resolve import Spots

from ._bounds import ask_model, say
from ._model import as_model
from ._predict_image import image_spots, is_image, refuse_arguments_of_images
from ._predict_spots import make_ready, predict_spots
from ._unfamiliar import OOD, say_unusual, unlike, warn_of_unlike

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from gdml.encoders.device import Precision
    from gdml.slides import Slide
    from gdml.slides.lattice import Layout
    from gdml.training import TrainedModel


def predict(
    adata: "AnnData | str | PathLike[str] | NDArray[Any] | Slide | Any",
    model: "TrainedModel | str | PathLike[str] | None" = None,
    *,
    image: Any = None,
    encoder: Any = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    library_key: str | None = None,
    spatial_key: str | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    batch_size: int = 512,
    gene_key: str | None = None,
    clip: bool = True,
    interval: float | None = None,
    interval_for: str | None = None,
    calibrate_on: "str | NDArray[np.bool_] | pd.Series | None" = None,
    library_id: str | None = None,
    spacing_um: float | None = None,
    layout: "Layout | None" = None,
    tissue: Any = None,
    min_tissue: float | None = None,
    region: tuple[float, float, float, float] | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Predict the expression of a model's panel genes at every spot, or on the tissue of an image.

    Genes need not have been measured. Tiles and features that are missing, or that differ from the model's geometry
    and encoder, are made first. Where the first argument is the image of a slide, its tissue is covered with tiles
    as by :func:`gdml.pp.grid`, of the size that the model was trained on, and a new AnnData is returned.

    Parameters
    ----------
    adata
        Spots of one or more slides; or the full-resolution H&E image of one, anything that
        :func:`gdml.slides.open_slide` takes, such as its path. A SpatialData with one table works as well. Every model
        can predict an image.
    model
        A model from :func:`gdml.tl.fit`, or the folder of a saved model. None: the model that was fitted on
        this ``adata``. An image needs one.
    image
        Full-resolution images, as in :func:`gdml.pp.tile`, if tiles or features are missing.
    encoder
        The encoder of the model, if it was a module or function of your own.
    um_per_px, spot_pitch_um
        Micrometres per px of the images, or between spots, as in :func:`gdml.pp.tile`. Tiles are made again with them.
    library_key, spatial_key
        Column of ``adata.obs`` with the slide of each spot, and place of the spot centres in ``adata.obsm``. By default
        those that :func:`gdml.pp.tile` recorded, else ``'library_id'`` and ``'spatial'``.
    device, precision
        As in :func:`gdml.tl.fit`.
    batch_size
        Number of spots per batch.
    gene_key
        Column of ``adata.var`` with the names by which measured genes are matched to the panel, such as
        ``"gene_ids"``, or ``"var_names"``. None: ``var_names`` or a column of text, whichever matches more panel genes.
        Versions of Ensembl ids are ignored; genes with ambiguous names are not matched.
    clip
        Set predictions below 0 to 0. Expression is never negative on any scale of
        :class:`gdml.expression.Normalization`, but models are not bound to it. False: as the model gave them. Scores of
        :func:`gdml.tl.cross_validate` and of the validation in :func:`gdml.tl.fit` are of values that are not clipped.
    interval
        Level of prediction intervals, such as 0.9: the share of **measured** values, with their counting noise, that an
        interval is to cover, for each gene by itself. None: no intervals. See the guide on intervals for what holds.
    interval_for
        What the intervals are for: ``"unseen patient"`` (or the name of the ``group_key`` of the fit, ``"unseen donor"``),
        ``"unseen slide"`` or ``"unseen part of a known slide"``. None: what was held out when the model was fitted,
        ``model.warrant.unseen``; an easier one is narrower and promises less.
    calibrate_on
        Spots of each slide that were measured: a boolean column of ``adata.obs``, or a boolean mask (n_obs,). Intervals of
        the other spots of the slide are then made from the errors at these, and their mean error moves both ends, but
        not the predictions, which may so lie outside. They must be scattered over the slide. Needs raw counts of these spots
        alone, in ``adata.X`` or the layer that :func:`gdml.pp.normalize` recorded.
    library_id, spacing_um, layout, tissue, min_tissue, region
        For images alone, as in :func:`gdml.pp.grid`; its defaults where None.
    key_added
        Name under which tiles, features and results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``; for an image the AnnData of its tiles, see :func:`gdml.pp.grid`. Writes:

    ``.obsm['gdml']`` : DataFrame, float32, n_obs x panel
        Predicted expression of all panel genes, on the scale in ``.uns['gdml']['predict']['normalization']``.
    ``.layers['gdml']`` : float32, n_obs x n_vars
        The same for panel genes that ``adata`` has, NaN elsewhere. Not written (with a warning) if it would exceed
        ``gdml.settings.max_layer_gb``, or if no gene matches.
    ``.obsm['X_gdml']`` : float32, (n_obs, d)
        Embedding in the model's shared space, rows of unit length, for models that have one.
    ``.obs['gdml_ood']`` : float32
        How unusual the tile of each spot is: the share of the model's training spots that are less unusual, when they
        are held out, 0 to 1; see :doc:`/guide/unfamiliar`. Not written if the model was saved without it.
    ``.obsm['gdml_low']``, ``.obsm['gdml_high']`` : DataFrame, float32, n_obs x panel
        With ``interval``: both ends of the interval of each prediction, at least 0 with ``clip``. NaN at the spots of
        ``calibrate_on``, whose values are known, and for genes that were not measured there. Those of an earlier
        prediction are removed.
    ``.layers['gdml_low']``, ``.layers['gdml_high']`` : float32, n_obs x n_vars
        The same, under the rules of ``.layers['gdml']``.
    ``.uns['gdml']['predict']`` : dict
        ``model``, ``name``, ``weights`` (hash), ``panel``, ``normalization``, ``high_genes``, ``clip``, ``n_matched`` genes,
        ``gene_key`` that they were matched by, ``in_training`` (slides that the model was trained on; absent where its
        training slides are unknown), ``provenance`` (key of what the predictions depend on) and ``versions``. Of a
        model in the frame ``"slide"`` also ``level_sd``, (panel,) float32: the standard deviation of the level of each
        gene between the training slides, by which the level of a new slide is uncertain; NaN after one training slide.
        ``ood`` is a DataFrame with a row for each slide: ``shift`` of its features from the nearest training slide,
        ``limit`` beyond which it is unlike the training slides, ``unusual_spots`` (share of the spots with ``gdml_ood``
        above 0.95), the ``features`` that deviate most, and the ``verdict``.
        With ``interval`` also ``interval``, a dict: ``level``, ``for`` what, ``n_units`` that were held out (with
        ``calibrate_on``: fewest spots of a slide), ``highest_level`` that these allow, and ``width``, (panel,) float32, the
        median full width by gene; with ``calibrate_on`` also ``libraries``, ``calibrated_on`` (number of spots), (slides,),
        and ``shift``, (slides, panel) float32, by which both ends were moved.

    Raises
    ------
    KeyError
        If coordinates are missing, no model is given and none was fitted, or a column that is named does not exist.
    ValueError
        If ``adata`` is a view or backed, or the encoder is not the model's; for an image as :func:`gdml.pp.grid`. If no
        finite interval of this level exists (K patients allow no more than K / (K + 1)), ``interval_for`` is harder than
        what was held out, or the model keeps no errors of held-out spots. If ``calibrate_on`` marks no spots of a slide,
        too few for the level, or all; or its counts are missing or cannot be brought to the scale of the model.
    TypeError
        If ``model`` is not a model, ``clip`` or ``calibrate_on`` is not boolean, or a number is expected and something else was
        passed; if an argument for images is passed with an AnnData, or the other way round (``image``,
        ``spot_pitch_um``, ``spatial_key``, ``gene_key``, ``calibrate_on``, ``copy``).
    FileNotFoundError
        If the model, an image or a feature store does not exist.

    Warns
    -----
    UserWarning
        If a slide is unlike anything that the model has learnt from. If slides are among the model's training slides: their predictions say nothing about new slides. If fewer than
        half of the panel genes match the genes of ``adata``.

    See Also
    --------
    gdml.tl.evaluate : Score the predictions against measured counts.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(adata, "her2st-gdml")  # doctest: +SKIP
    >>> slide = gdml.tl.predict("biopsy.svs", "her2st-gdml")  # doctest: +SKIP
    """
    of_images = {
        "library_id": library_id,
        "spacing_um": spacing_um,
        "layout": layout,
        "tissue": tissue,
        "min_tissue": min_tissue,
        "region": region,
    }
    from_image = is_image(adata)
    if from_image:
        make_ready(device, precision, batch_size)  # bad arguments are refused before the slide is read
        if interval is not None and model is not None:
            model = as_model(model)
            ask_model(model, interval, interval_for)
        spots, model, encoder = image_spots(
            adata,
            model,
            encoder=encoder,
            um_per_px=um_per_px,
            library_key=library_key,
            key=key_added,
            **of_images,
            image=image,
            spot_pitch_um=spot_pitch_um,
            spatial_key=spatial_key,
            gene_key=gene_key,
            calibrate_on=calibrate_on,
            copy=copy,
        )
        # the tiles have their scale; an image in memory is needed again
        um_per_px, image = None, None if isinstance(adata, str | os.PathLike) else adata
    else:
        refuse_arguments_of_images(of_images)
        spots = Spots.resolve(adata, key=key_added, library_key=library_key, spatial_key=spatial_key, copy=copy)
    steps, match, seen, asked = predict_spots(
        spots,
        model,
        image=image,
        encoder=encoder,
        um_per_px=um_per_px,
        spot_pitch_um=spot_pitch_um,
        device=device,
        precision=precision,
        batch_size=batch_size,
        gene_key=gene_key,
        clip=clip,
        interval=interval,
        interval_for=interval_for,
        calibrate_on=calibrate_on,
    )
    if seen:
        warnings.warn(
            f"The model was trained on {count(len(seen), 'slide')} of `adata` ({some(seen)}): its scores there "
            "say nothing about new slides. Predict other slides, or compare models with gdml.tl.cross_validate.",
            UserWarning,
            stacklevel=2,
        )
    judged = (spots.record(_keys.PREDICT) or {}).get(OOD)
    warn_of_unlike(unlike(judged), stacklevel=2)
    warn_of_few(spots.adata, list(spots.adata.obsm[key_added]), match, gene_key, stacklevel=2)
    made = f"; {_scales(spots)}" if "tile" in steps else ""
    matched = f"; {match}" if spots.adata.n_vars else ""
    unusual = say_unusual(judged, key_added)
    tell(
        f"predict: {len(match.columns)} genes at {count(len(spots), 'spot')} in obsm[{key_added!r}]{matched}{say(asked)}{made}{unusual}"
    )
    return spots.adata if copy or from_image else None


def _scales(spots: Spots) -> str:
    """Micrometres per px of the slides, and their source."""
    slides = (spots.record(_keys.TILES) or {})["slides"]
    values = {f"{float(one['um_per_px']):.4g} um/px ({one['um_per_px_source']})" for one in slides.values()}
    return f"tiled at {some(sorted(values), 2)}"
