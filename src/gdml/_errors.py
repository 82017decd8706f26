"""Small helpers that make error messages say what was found and what would mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Sentence with the names nearest to ``name``, or all known ones where none is near."""
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.5)]
    if near:
        return "Did you mean " + " or ".join(repr(k) for k in near) + "?"
    return "Known names: " + ", ".join(repr(k) for k in known) + "."


def some(names: Iterable[object], most: int = 5) -> str:
    """Give the first few of ``names`` as text, with the count of those left out."""
    texts = [str(name) for name in names]
    shown = ", ".join(texts[:most])
    return shown if len(texts) <= most else f"{shown} and {len(texts) - most} more"


def count(n: int, what: str) -> str:
    """Give a number with its noun, in the plural where it is not one: ``"1 slide"``, ``"3 slides"``."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
