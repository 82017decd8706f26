"""Arguments of fit, checked before anything is run."""

import os
from pathlib import Path


def check_target(save_to: str | os.PathLike[str] | None) -> None:
    """Refuse a folder that is no saved model before hours are spent, not after."""
    if save_to is not None and Path(save_to).expanduser().exists():
        if not (Path(save_to).expanduser() / "model.json").is_file():
            raise FileExistsError(f"`save_to` {str(save_to)!r} exists and is no saved model; choose another folder.")
