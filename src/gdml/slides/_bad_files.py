"""What to say of files that are no slides."""

from pathlib import Path

import pyvips

_NO_SCANS = ("csv", "mat", "pdf", "svg")  # libvips loaders of tables and drawings
_OTHERS = {b"%PDF": "a PDF document", b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "a gzip archive"}


def unreadable(path: Path, error: Exception) -> ValueError:
    """Error for a file that no reader opens, with what it seems to be."""
    with path.open("rb") as file:
        start = file.read(1024)
    known = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
    if not start:
        known = "empty"
    elif known is None and start.isascii() and b"\0" not in start:
        known = "text"
    reason = f"it is {known}" if known else " ".join(str(error).split())
    return ValueError(
        f"The image {str(path)!r} cannot be opened ({reason}). Check that it is a complete image file, "
        "or convert it to a tiled TIFF."
    )


def refuse_drawings(image: pyvips.Image, path: Path) -> None:
    """Refuse what libvips draws rather than decodes, with a ValueError."""
    loader = image.get("vips-loader") if "vips-loader" in image.get_fields() else ""
    if loader.startswith(_NO_SCANS):
        kind = loader.removesuffix("_buffer").removesuffix("load").upper()
        raise ValueError(f"{str(path)!r} is a {kind} file, not the scan of a slide; pass the path of the image itself.")
