"""Files that are written whole, or not at all."""

import os
import uuid
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; a file that is there is replaced at once, also on a disk that fills.

    Parameters
    ----------
    path
        Its path; the folder exists.
    text
        Its content.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is left.
    """
    unfinished = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        unfinished.write_text(text, encoding="utf-8", newline="")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
