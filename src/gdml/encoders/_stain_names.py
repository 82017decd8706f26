"""Names of the features of the stain encoder, by group, in the order of the columns.

Sizes are px of the tile image of 224 px: 0.5 um in the default tile of 112 um.
"""

_DETAIL = (1, 2, 4, 8, 16)

GROUPS: dict[str, tuple[str, ...]] = {
    "stain": (
        "haematoxylin_eosin_ratio",
        "tissue_haematoxylin",
        "tissue_eosin",
        "spread_haematoxylin",
        "spread_eosin",
    ),
    "texture": (
        *(f"texture_haematoxylin_{px}px" for px in _DETAIL),
        *(f"texture_eosin_{px}px" for px in _DETAIL),
        *(f"texture_correlation_{px}px" for px in _DETAIL),
    ),
    "quantiles": (
        *(f"haematoxylin_p{q}" for q in (75, 90, 98)),
        *(f"eosin_p{q}" for q in (75, 90, 98)),
        *(f"stain_angle_p{q}" for q in (10, 25, 50, 75, 90, 98)),
    ),
    "lumen": tuple(f"white_{px}px" for px in (1, 4, 16)),
    "nuclei": (
        "nuclear_area",
        "nuclear_haematoxylin",
        "nuclear_eosin",
        "haematoxylin_peaks",
        "haematoxylin_peak_contrast",
        "haematoxylin_peak_height",
        "dense_area",
        *(f"dense_core_{px}px" for px in (4, 8, 12)),
    ),
    "edges": tuple(f"gradient_{px}px" for px in (1, 2, 4)),
    "residual": ("residual",),
    "patterns": tuple(f"pattern_{n}_of_8_{px}px" for px in (4, 8) for n in range(9)),
    "nuclei by size": (
        "nuclei_number",
        "nuclei_small",
        "nuclei_medium",
        "nuclei_large",
        "nuclei_very_large",
    ),
}
NAMES = tuple(name for group in GROUPS.values() for name in group)
