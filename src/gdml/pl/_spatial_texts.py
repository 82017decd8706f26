"""What is written above and below maps: what they show, of how many spots, and what the predictions are worth."""

from collections.abc import Mapping

from gdml._errors import count

from ._common import two_digits
from ._page import TEXT_PT, wrapped
from ._spatial_groups import MEASURED, Group, Panel

OPTIMISTIC = "optimistic"


def of_spots(n: int, noun: str) -> str:
    """Give the number of spots, as ``"2,604 spots"``."""
    return count(n, noun).replace(str(n), f"{n:,}")


def panel_lines(panel: Panel, names: Mapping[str, str], noun: str) -> list[str]:
    """Lines above a map of one model."""
    if panel.kind == MEASURED:
        return [MEASURED, of_spots(panel.n, noun)]
    name = names[panel.kind]
    lines = [f"predicted by {name}" if name else "predicted"]
    if panel.pcc is not None:
        score = f"PCC {two_digits(panel.pcc)} over {of_spots(panel.n_pcc, noun)}"
        lines.append(f"{OPTIMISTIC} {score}" if panel.optimistic else score)
    else:
        lines[0] += f", {of_spots(panel.n, noun)}"
        lines += [panel.warrant] if panel.warrant else []
    if panel.stretched is not None:
        lines.append(f"spread as measured (×{panel.stretched:.1f})")
    return lines


def title_lines(
    groups: list[Group], names: Mapping[str, str], nouns: list[str], widths: list[list[float]]
) -> list[list[list[str]]]:
    """Lines above each map of each group, broken to fit its width in mm."""
    return [
        [
            [
                part
                for line in panel_lines(panel, names, noun)
                for part in wrapped(line, width, TEXT_PT, "bold" if panel.optimistic else "normal")
            ]
            for panel, width in zip(group.panels, row, strict=True)
        ]
        for group, noun, row in zip(groups, nouns, widths, strict=True)
    ]


def most_lines(lines: list[list[list[str]]]) -> int:
    """Lines of the map that has most of them."""
    return max(len(panel) for group in lines for panel in group)


def grid_note(groups: list[Group], noun: str, *, each: bool) -> str:
    """Note below the last map of a slide with several models: what correlations are over, and what was scaled."""
    over = sorted({panel.n_pcc for group in groups for panel in group.panels if panel.pcc is not None})
    parts = []
    if over:
        few = f"{over[0]:,} to " if len(over) > 1 else ""
        parts.append(f"PCC over {few}{of_spots(over[-1], noun)}")
    if any(panel.stretched is not None for group in groups for panel in group.panels):
        parts.append("predictions have the measured spread")
    if each:
        parts.append("each map on its own scale")
    return "; ".join(parts)
