"""Whether the spots of a slide lie on the tissue of its image."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from .images import HIRES_SCALE
from .resolve import Spots

if TYPE_CHECKING:
    from gdml.slides import Slide

IN_TISSUE = "in_tissue"  # obs: 1 where Space Ranger sees tissue


def doubt(spots: Spots, library: str, slide: "Slide", xy: NDArray[np.float64], inside: NDArray[np.bool_]) -> str:
    """Compare the spots of a slide with the tissue on a thumbnail of its image.

    Spots that ``obs["in_tissue"]`` says are beside the tissue are left out.

    Parameters
    ----------
    spots, library
        The spots, and the slide.
    slide
        Its image.
    xy
        (n, 2) spot centres relative to the image's corner.
    inside
        (n,) spots whose centre lies inside the image.

    Returns
    -------
    What is wrong, with the share of spots over glass; empty where nothing is, or where it cannot be told.
    """
    from gdml.slides.glass import coverage
    from gdml.slides.thumbnail import thumbnail

    small = thumbnail(slide)
    if small is None:
        logg.info(
            f"tile: slide {library} is too large and has no overview: its spots were not compared with the tissue"
        )
        return ""
    judged = inside
    if IN_TISSUE in spots.adata.obs:
        judged = inside & (spots.adata.obs[IN_TISSUE].to_numpy()[spots.slides[library]] != 0)
    factor = spots.entry(library).get("scalefactors", {}).get(HIRES_SCALE)
    scales = {"divided by the scale factor of the hires image": 1 / float(factor)} if factor else {}
    found = coverage(small, xy[judged], slide.size, scales)
    if found is None or not found.suspicious:
        return ""
    better = f" ({found.best_over_glass:.0%} when {found.best})" if found.better else ""
    return f"{found.over_glass:.0%} on slide {library!r}{better}"
