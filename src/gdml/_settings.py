"""Settings of the package; the verbosity is scanpy's, ``sc.settings.verbosity``."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ._errors import check_number, did_you_mean

if TYPE_CHECKING:
    import pandas as pd


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gdml"


@dataclass
class Settings:
    """Where gdml keeps its files, and limits on what it writes.

    Parameters
    ----------
    cache_dir
        Folder of feature stores, downloads, trained models and finished runs. The environment variable
        ``GDML_CACHE_DIR`` sets it at import.
    max_layer_gb
        Predictions are not written to ``layers`` if the layer would take more than this many gigabytes; they are then
        in ``obsm`` only.
    """

    cache_dir: Path = field(default_factory=lambda: Path(os.environ.get("GDML_CACHE_DIR") or _user_cache()))
    max_layer_gb: float = 4.0

    def __setattr__(self, name: str, value: object) -> None:
        known = [f.name for f in fields(self)]
        if name not in known:
            raise AttributeError(f"gdml.settings has no setting {name!r}. {did_you_mean(name, known)}")
        if name == "cache_dir":
            if not isinstance(value, str | os.PathLike) or not str(value):
                raise TypeError(f"gdml.settings.cache_dir must be a path, found {value!r}.")
            value = Path(value).expanduser()
        if name == "max_layer_gb":
            check_number("gdml.settings.max_layer_gb", value, at_least=0)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(["clear_cache", "data_dir", "list_cache", *(f.name for f in fields(self))])

    def list_cache(self) -> "pd.DataFrame":
        """List the folders in ``cache_dir`` that gdml made.

        Only folders with gdml's marker, a file ``gdml.json``, are listed. Folders written by gdml 0.1 and 0.2 have no
        marker and must be deleted by hand.

        Returns
        -------
        A row per folder with the columns ``kind`` (``"features"``, ``"models"``, ``"runs"``, ``"her2st"``,
        ``"synthetic"``), ``name``, ``encoder`` and ``image`` (fingerprint) of feature stores, ``size`` (text),
        ``bytes``, ``modified`` (UTC) and ``path``. The total size is logged.

        Examples
        --------
        >>> list(gdml.settings.list_cache().columns)[:2]
        ['kind', 'name']
        """
        from scanpy import logging as logg

        from . import _cache

        found = _cache.table(_cache.entries(self.cache_dir))
        logg.info(f"cache: {_cache.shown(found['bytes'].sum())} in {str(self.cache_dir)!r}")
        return found

    def clear_cache(
        self, kind: str | None = None, *, encoder: str | None = None, older_than_days: float = 0.0
    ) -> "pd.DataFrame":
        """Delete folders in ``cache_dir`` that gdml made.

        Only folders with gdml's marker, a file ``gdml.json``, are deleted. Symbolic links are not followed. Features
        are computed again by the next :func:`gdml.pp.embed`, and data sets are downloaded again. Trained models and
        finished runs may have taken hours: they are deleted only with ``kind="models"`` and ``kind="runs"``.

        Parameters
        ----------
        kind
            ``"features"``, ``"models"``, ``"runs"``, ``"her2st"`` or ``"synthetic"``. By default all except models and
            runs.
        encoder
            Only features of encoders whose identity starts with this text, such as ``"stain"``.
        older_than_days
            Only folders that were last changed more than this many days ago.

        Returns
        -------
        The deleted folders, with the columns of :meth:`list_cache`. Their total size is logged.

        Raises
        ------
        ValueError
            If the kind is unknown, ``encoder`` is combined with another kind than features, or ``older_than_days`` is
            negative.
        TypeError
            If ``older_than_days`` is not a number.
        """
        from scanpy import logging as logg

        from . import _cache

        if kind is not None and kind not in _cache.KINDS:
            raise ValueError(f"`kind` is {kind!r}. {did_you_mean(kind, _cache.KINDS)}")
        if encoder is not None and kind not in (None, "features"):
            raise ValueError(f"`encoder` selects features, but `kind` is {kind!r}; leave one of them out.")
        check_number("older_than_days", older_than_days, at_least=0)
        kinds = _cache.REPLACEABLE if kind is None else (kind,)
        selected = [
            entry
            for entry in _cache.older_than(_cache.entries(self.cache_dir), older_than_days)
            if entry.kind in kinds and (encoder is None or str(entry.marker.get("encoder", "")).startswith(encoder))
        ]
        removed = _cache.table(selected)
        for entry in selected:
            entry.remove()
        logg.info(f"cache: {_cache.shown(removed['bytes'].sum())} freed in {str(self.cache_dir)!r}")
        return removed

    @property
    def data_dir(self) -> Path | None:
        """Folder with local copies of data sets (``GDML_DATA_DIR``), or None."""
        found = os.environ.get("GDML_DATA_DIR")
        return Path(found).expanduser() if found else None


settings = Settings()
