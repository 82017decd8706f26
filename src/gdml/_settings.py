"""Settings of the whole package; scanpy's ``sc.settings.verbosity`` governs what is logged."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def _user_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gdml"


@dataclass
class Settings:
    """Where gdml keeps what it computed, and the limits it respects.

    Parameters
    ----------
    cache_dir
        Folder of feature stores, downloads and saved models. ``GDML_CACHE_DIR`` sets it from outside.
    max_layer_gb
        A prediction layer on all ``var_names`` that would take more than this many gigabytes is not
        written; the predictions then live in ``obsm`` alone.
    """

    cache_dir: Path = field(default_factory=lambda: Path(os.environ.get("GDML_CACHE_DIR") or _user_cache()))
    max_layer_gb: float = 4.0

    def __setattr__(self, name: str, value: object) -> None:
        if name == "cache_dir":
            value = Path(str(value)).expanduser()
        super().__setattr__(name, value)

    def list_cache(self) -> "pd.DataFrame":
        """List what gdml keeps in ``cache_dir``.

        Returns
        -------
        One row for each feature store, trained model, and set of downloaded or synthetic slides: ``kind``
        (``"features"``, ``"models"``, ``"runs"``, ``"her2st"``, ``"synthetic"``), ``name``, ``encoder``, ``image`` (fingerprint) and
        ``tiles`` of feature stores, ``size`` for reading, ``bytes``, ``modified`` (UTC) and ``path``. The total is logged.

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
        """Remove what gdml keeps in ``cache_dir``, or some of it; what others put there stays.

        Features are computed again by the next :func:`gdml.pp.embed`, downloads are fetched again; trained models
        and finished runs of comparisons took hours, so they are removed only by ``kind="models"`` and
        ``kind="runs"``.

        Parameters
        ----------
        kind
            ``"features"``, ``"models"``, ``"runs"``, ``"her2st"`` or ``"synthetic"``. None: all but models and runs.
        encoder
            Only features of encoders whose identity begins so, such as ``"stain"``.
        older_than_days
            Only what was last written to longer ago.

        Returns
        -------
        What was removed, as :meth:`list_cache` has it. Its size is logged.

        Raises
        ------
        ValueError
            If there is no such kind, or an argument doesn't go with it.
        """
        from scanpy import logging as logg

        from . import _cache
        from ._errors import did_you_mean

        if kind is not None and kind not in _cache.KINDS:
            raise ValueError(f"`kind` is {kind!r}. {did_you_mean(kind, _cache.KINDS)}")
        if encoder is not None and kind not in (None, "features"):
            raise ValueError(f"`encoder` chooses among features, but `kind` is {kind!r}; leave one of them out.")
        if not older_than_days >= 0:
            raise ValueError(f"`older_than_days` must be a number of days, found {older_than_days!r}.")
        going = [
            entry
            for entry in _cache.older_than(_cache.entries(self.cache_dir), older_than_days)
            if (entry.kind == kind or (kind is None and entry.kind not in ("models", "runs")))
            and (encoder is None or str(entry.about.get("encoder", "")).startswith(encoder))
        ]
        removed = _cache.table(going)
        for entry in going:
            entry.remove()
        logg.info(f"cache: {_cache.shown(removed['bytes'].sum())} freed in {str(self.cache_dir)!r}")
        return removed

    @property
    def data_dir(self) -> Path | None:
        """Folder with data at hand (``GDML_DATA_DIR``), or None."""
        found = os.environ.get("GDML_DATA_DIR")
        return Path(found).expanduser() if found else None


settings = Settings()
