"""Share of spots over glass for right and wrong pairs of image and coordinates, on the real sections.

    GDML_DATA_DIR=../shared/data python benchmarks/glass.py

A cell is the share of spots over glass, in per cent; ``*`` marks pairs that ``gdml.pp.tile`` warns about.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from gdml.slides import open_slide
from gdml.slides.glass import ORIENTATIONS, coverage
from gdml.slides.thumbnail import thumbnail

SECTIONS = {"B4": ("C2", "C3"), "C2": ("B4", "C3"), "C3": ("B4", "C4"), "C4": ("B4", "C6"), "C6": ("B4", "C2")}
REPLICATES = {"01": ("02", "11"), "02": ("01", "11"), "11": ("01", "02")}
HIRES_PX = 2000  # longer side of Space Ranger's hires image


def main() -> None:
    """Print the table."""
    data = Path(os.environ["GDML_DATA_DIR"])
    images, spots, others = {}, {}, {}
    for name, other in SECTIONS.items():
        images[name] = next((data / "her2st" / "ST-imgs" / name[0] / name).glob("*.jpg"))
        table = pd.read_csv(data / "her2st" / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t")
        spots[name], others[name] = table[["pixel_x", "pixel_y"]].to_numpy(float), other
    for name, other in REPLICATES.items():
        images[f"mob{name}"] = data / "st_mob" / f"rep{name}_he.jpg"
        table = pd.read_csv(data / "st_mob" / f"rep{name}_spots.csv")
        spots[f"mob{name}"] = table[["pixel_x", "pixel_y"]].to_numpy(float)
        others[f"mob{name}"] = tuple(f"mob{o}" for o in other)
    images["colon"], images["d14"] = (data / "visium_colon" / f"colon_{day}_HE.jpg" for day in ("d0", "d14"))
    table = pd.read_csv(data / "visium_colon" / "spatial" / "tissue_positions_list.csv", header=None)
    spots["colon"], others["colon"] = table[[5, 4]].to_numpy(float), ("d14",)

    slides = {name: open_slide(path) for name, path in images.items()}
    small = {name: thumbnail(slide) for name, slide in slides.items()}
    print(
        "section  right  "
        + "  ".join(f"{name.replace(' degrees', '')[:16]:>16}" for name in ORIENTATIONS)
        + "  hires  other slides"
    )
    missed, alarms, wrong = [], 0, 0
    for name, xy in spots.items():
        width, height = size = slides[name].size

        def judge(where: np.ndarray, image: str = name) -> str:
            found = coverage(small[image], where, slides[image].size)
            return "none" if found is None else f"{100 * found.over_glass:.1f}{'*' if found.suspicious else ''}"

        right = judge(xy)
        alarms += "*" in right
        cells = {key: judge(np.column_stack(turn(*xy.T, width, height))) for key, turn in ORIENTATIONS.items()}
        cells["hires"] = judge(xy * HIRES_PX / max(size))
        cells |= {f"image of {other}": judge(xy, other) for other in others[name]}
        wrong += len(cells)
        missed += [f"{name} {key} ({cell})" for key, cell in cells.items() if "*" not in cell]
        *first, hires = list(cells.values())[: len(ORIENTATIONS) + 1]
        rest = "  ".join(f"{key.removeprefix('image of ')} {cell}" for key, cell in cells.items() if "image" in key)
        print(f"{name:7}  {right:>5}  " + "  ".join(f"{cell:>16}" for cell in first) + f"  {hires:>6}  {rest}")
    print(f"{alarms} of {len(spots)} right pairs and {wrong - len(missed)} of {wrong} wrong ones are warned about")
    print("not warned about: " + (", ".join(missed) or "none"))


if __name__ == "__main__":
    main()
