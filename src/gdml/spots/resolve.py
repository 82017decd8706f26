"""An AnnData, resolved once."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some

from .coordinates import check_adata, libraries, spot_coordinates
from .counts import raw_counts
from .grid import grid_positions
from .groups import slide_groups


@dataclass
class Spots:
    """The spots of an AnnData: what every verb asks of it, checked and resolved once.

    Parameters
    ----------
    adata
        What the user gave. Verbs write to it; nobody else reads it again.
    key
        Name under which gdml's results are stored in it.
    library_key, spatial_key
        Column with the slide of each spot; place of the coordinates.
    xy
        (n_obs, 2) float64 spot centres, full-resolution px.
    slides
        Rows of each slide, slides in order of appearance.
    """

    adata: AnnData
    key: str
    library_key: str
    spatial_key: str
    xy: NDArray[np.float64]
    slides: dict[str, NDArray[np.intp]]
    _counts: dict[str | None, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def resolve(
        cls,
        adata: AnnData,
        *,
        key: str = _keys.KEY,
        library_key: str | None = None,
        spatial_key: str | None = None,
        copy: bool = False,
        name: str = "adata",
    ) -> "Spots":
        """Check an AnnData and resolve its coordinates and slides; raises as the functions of ``spots.coordinates`` do.

        Parameters
        ----------
        adata
            What the user gave.
        key
            Name under which gdml's results are stored in it.
        library_key, spatial_key
            By default those that :func:`gdml.pp.tile` recorded, else gdml's own.
        copy
            Work on a copy, which a view allows too.
        name
            Of the argument, for messages.
        """
        check_adata(adata, copy=copy, name=name)
        if library_key is not None and library_key not in adata.obs:
            raise KeyError(
                f"`library_key` is {library_key!r}, which is no column of obs (it has: {some(adata.obs.columns, 10)})."
            )
        tiles = adata.uns.get(key, {}).get(_keys.TILES, {})
        library_key = library_key or str(tiles.get("library_key", _keys.LIBRARY))
        spatial_key = spatial_key or str(tiles.get("spatial_key", _keys.SPATIAL))
        xy = spot_coordinates(adata, spatial_key)
        slides = libraries(adata, library_key, spatial_key=spatial_key)
        return cls(adata.copy() if copy else adata, key, library_key, spatial_key, xy, slides)

    def record(self, part: str) -> dict[str, Any] | None:
        """Part of ``uns[key]``, such as ``"tiles"``; None where no verb wrote it."""
        return self.adata.uns.get(self.key, {}).get(part)

    @cached_property
    def library(self) -> NDArray[np.str_]:
        """(n_obs,) slide of each spot."""
        library = np.empty(len(self.xy), dtype=object)
        for name, rows in self.slides.items():
            library[rows] = name
        return library.astype(str)

    def counts(self, layer: str | None = None) -> Any:
        """Raw counts, spots x genes, dense or sparse, checked once; see :func:`gdml.spots.counts.raw_counts`."""
        if layer not in self._counts:
            self._counts[layer] = raw_counts(self.adata, layer)
        return self._counts[layer]

    def groups(self, group_key: str | None) -> dict[str, str]:
        """Group of each slide; without a column each slide is its own."""
        return slide_groups(self.adata, group_key, key=self.key) or {name: name for name in self.slides}

    def grid(self, slide: str) -> NDArray[np.int64]:
        """(n, 2) row and column of a slide's spots on its grid, from 0."""
        rows = self.slides[slide]
        return grid_positions(self.adata, rows, self.xy[rows], slide)
