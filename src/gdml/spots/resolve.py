"""An AnnData, resolved once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some

from .coordinates import check_adata, check_column, libraries, spot_coordinates
from .counts import raw_counts
from .grid import grid_positions


@dataclass
class Spots:
    """The spots of an AnnData, checked and resolved once; code behind the verbs asks this object.

    Parameters
    ----------
    adata
        The AnnData that results are written to.
    key
        Name under which gdml's results are stored in it.
    library_key, spatial_key
        Column of ``obs`` with the slide of each spot; place of the coordinates in ``obsm``.
    slides
        Rows of each slide, slides in order of appearance.
    """

    adata: AnnData
    key: str
    library_key: str
    spatial_key: str
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
        coordinates: bool = True,
        copy: bool = False,
        name: str = "adata",
    ) -> "Spots":
        """Check an AnnData and resolve its slides and coordinates.

        Parameters
        ----------
        adata
            What the user passed.
        key
            Name under which gdml's results are stored.
        library_key, spatial_key
            None: those recorded by :func:`gdml.pp.tile`, else ``"library_id"`` and ``"spatial"``.
        coordinates
            Whether spot centres are required.
        copy
            Work on a copy, so that a view is accepted.
        name
            Name of the argument, for messages.

        Raises
        ------
        TypeError, ValueError
            If ``adata`` is not usable, or a spot has no slide or finite position.
        KeyError
            If a column that was named, or the coordinates, are absent.
        """
        check_adata(adata, copy=copy, name=name)
        if not isinstance(key, str) or not key:
            raise TypeError(f"`key_added` must be a name such as 'gdml', found {key!r}.")
        if library_key is not None:
            check_column(adata, "library_key", library_key)
        tiles = _record(adata, key, _keys.TILES) or {}
        library_key = library_key or str(tiles.get("library_key", _keys.LIBRARY))
        spatial_key = spatial_key or str(tiles.get("spatial_key", _keys.SPATIAL))
        slides = libraries(adata, library_key, spatial_key=spatial_key)
        spots = cls(adata.copy() if copy else adata, key, library_key, spatial_key, slides)
        if coordinates:
            spots.xy  # noqa: B018 checks them
        return spots

    def __len__(self) -> int:
        return self.adata.n_obs

    @cached_property
    def xy(self) -> NDArray[np.float64]:
        """(n_obs, 2) spot centres (x, y), full-resolution px."""
        return spot_coordinates(self.adata, self.spatial_key)

    @cached_property
    def library(self) -> NDArray[np.str_]:
        """(n_obs,) slide of each spot."""
        library = np.empty(len(self), dtype=object)
        for name, rows in self.slides.items():
            library[rows] = name
        return library.astype(str)

    def record(self, part: str) -> dict[str, Any] | None:
        """Part of ``uns[key]``, such as ``"tiles"``; None where absent.

        Predictions of compared models, ``"gdml_ridge"``, share the tiles, features and normalisation of ``"gdml"``.
        """
        return _record(self.adata, self.key, part)

    def write_record(self, part: str, record: Mapping[str, Any]) -> None:
        """Write a part of ``uns[key]``."""
        self.adata.uns[self.key] = {**self.adata.uns.get(self.key, {}), part: dict(record)}

    def counts(self, layer: str | None = None) -> Any:
        """Raw counts, spots x genes, dense or sparse, checked once; see :func:`gdml.spots.counts.raw_counts`."""
        if layer not in self._counts:
            self._counts[layer] = raw_counts(self.adata, layer)
        return self._counts[layer]

    def groups(self, group_key: str | None) -> dict[str, str]:
        """Group of each slide; without a column each slide is its own group.

        Raises
        ------
        KeyError
            If there is no such column.
        ValueError
            If a slide has spots of several groups, or of none.
        """
        if group_key is None:
            return {name: name for name in self.slides}
        check_column(self.adata, "group_key", group_key)
        found = {}
        for name, rows in self.slides.items():
            values = self.adata.obs[group_key].iloc[rows]
            if values.isna().any():
                raise ValueError(
                    f"obs[{group_key!r}] is missing for {int(values.isna().sum())} spots of slide {name!r}."
                )
            if values.nunique() > 1:
                raise ValueError(
                    f"Slide {name!r} has spots of several groups in obs[{group_key!r}] ({some(values.unique())}): "
                    "a slide must belong to one group."
                )
            found[name] = str(values.iloc[0])
        return found

    def grid(self, slide: str) -> NDArray[np.int64]:
        """(n, 2) row and column of a slide's spots on its grid, from 0."""
        rows = self.slides[slide]
        return grid_positions(self.adata, rows, self.xy[rows], slide)


def _record(adata: AnnData, key: str, part: str) -> dict[str, Any] | None:
    """Part of ``uns[key]``, else of the key that the tiles of a compared model were recorded under."""
    own = adata.uns.get(key, {})
    if part in own or part not in (_keys.TISSUE, _keys.TILES, _keys.FEATURES, _keys.NORMALIZATION):
        return own.get(part)
    homes = (k for k, stored in adata.uns.items() if key.startswith(f"{k}_") and isinstance(stored, Mapping))
    return next((adata.uns[home][part] for home in homes if part in adata.uns[home]), None)
