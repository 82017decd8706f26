"""A slide that is made, gridded, encoded and predicted, to see whether all parts work together."""

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .doctor import Check

_LEAST_PCC = 0.5  # of genes that the image drives, on the slide that the model was trained on


def check() -> Check:
    """Run the test slide in a temporary folder.

    Returns
    -------
    ``"fail"`` with the step that failed and its error.
    """
    import scanpy

    import gdml

    start, step = time.monotonic(), ["begin"]
    cache_dir, verbosity = gdml.settings.cache_dir, scanpy.settings.verbosity
    try:
        with tempfile.TemporaryDirectory(prefix="gdml-doctor-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gdml.settings.cache_dir, scanpy.settings.verbosity = Path(folder), 0
            n_tiles = _run(Path(folder), step)
    except (ValueError, TypeError, LookupError, OSError, RuntimeError, ImportError, ArithmeticError) as error:
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())
        return Check("fail", f"the test slide failed: {step[0]}: {reason}", _mend(error))
    finally:
        gdml.settings.cache_dir, scanpy.settings.verbosity = cache_dir, verbosity
    return Check("ok", f"a test slide passes: {n_tiles} tiles, {time.monotonic() - start:.1f} s")


def _run(folder: Path, step: list[str]) -> int:
    """Make a slide, fit a model on it, predict it from its image alone, twice."""
    import gdml

    step[0] = "make a slide"
    adata = gdml.datasets.synthetic(2, 2, grid=4, n_genes=8, learnable=0.5, path=folder)
    image = _pyramid(adata, folder / "slide.tif")
    step[0] = "encode the training slides"
    gdml.pp.tile(adata)
    gdml.pp.embed(adata, "stain")
    step[0] = "fit a ridge regression"
    gdml.pp.normalize(adata, n_genes=8)
    model = gdml.tl.fit(adata, "ridge", save_to=folder / "model")
    step[0] = "check its predictions"
    _check_learned(adata, model)
    first, second = (_predict(image, model, folder / str(i), step) for i in range(2))
    step[0] = "compare two predictions of the slide"
    values = first.obsm["gdml"].to_numpy()
    if not np.isfinite(values).all():
        raise ValueError("predictions are not finite")
    if not np.array_equal(values, second.obsm["gdml"].to_numpy()):
        raise ValueError("two predictions of one slide differ")
    return first.n_obs


def _pyramid(adata: Any, path: Path) -> Path:
    """First slide as a tiled, pyramidal TIFF that says its scale."""
    import pyvips

    jpeg = adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    image = pyvips.Image.new_from_file(str(jpeg)).copy(xres=1000.0, yres=1000.0)  # px per mm: 1 um per px
    image.tiffsave(str(path), tile=True, pyramid=True, compression="jpeg", Q=90)
    return path


def _check_learned(adata: Any, model: Any) -> None:
    import gdml

    gdml.tl.predict(adata, model)
    gdml.tl.evaluate(adata)
    learnable = adata.var["learnable"].to_numpy(bool)
    pcc = float(adata.var["gdml_pcc"].to_numpy()[learnable].mean())
    if not pcc > _LEAST_PCC:
        raise ValueError(f"the model did not learn its own slides: PCC {pcc:.2f}, expected more than {_LEAST_PCC}")


def _predict(image: Path, model: Any, cache_dir: Path, step: list[str]) -> Any:
    """Prediction of the image alone, with a cache of its own, so that it is encoded again."""
    import gdml

    gdml.settings.cache_dir = cache_dir
    step[0] = "grid, encode and predict an image alone"
    return gdml.tl.predict(image, model)


def _mend(error: BaseException) -> str:
    if isinstance(error, OSError):
        return "set TMPDIR to a folder with free space that you can write to"
    return "gdml doctor's lines above may say why; else report it with the output of `pip list`"
