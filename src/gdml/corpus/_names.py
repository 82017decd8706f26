"""Names of slides that are safe as names of files, on every file system that results are copied to."""

import re

_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows
_MOST_BYTES = 200  # file systems allow 255, suffixes included


def name_problems(name: str) -> list[str]:
    """Reasons why a name cannot be that of a file.

    Parameters
    ----------
    name
        Name of a slide.

    Returns
    -------
    One sentence each; empty where the name will do.
    """
    reasons = []
    if found := sorted(set(_FORBIDDEN.findall(name))):
        reasons.append(f"the characters {' '.join(map(repr, found))}")
    if name.startswith("."):
        reasons.append("a dot in front")
    if name != name.strip() or name.endswith("."):
        reasons.append("a space at an end, or a dot behind")
    if _RESERVED.fullmatch(name):
        reasons.append("a name that Windows reserves")
    if len(name.encode("utf-8", "surrogateescape")) > _MOST_BYTES:
        reasons.append(f"more than {_MOST_BYTES} bytes")
    return (
        [f"the name {name!r} cannot be that of a file ({'; '.join(reasons)}); give another in a column 'name'"]
        if reasons
        else []
    )
