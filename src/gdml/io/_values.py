"""Values in the metadata of other programs' files."""

import math
from typing import Any


def positive(value: Any) -> float | None:
    """Positive number, or None where ``value`` is none: absent, text without a number, NaN or infinite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
