"""Settings of the whole package; scanpy's ``sc.settings.verbosity`` governs what is logged."""

import os
from dataclasses import dataclass, field
from pathlib import Path


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

    @property
    def data_dir(self) -> Path | None:
        """Folder with data at hand (``GDML_DATA_DIR``), or None."""
        found = os.environ.get("GDML_DATA_DIR")
        return Path(found).expanduser() if found else None


settings = Settings()
