"""Reading tiles from a slide: pixels, decoded and resampled."""

import time
from pathlib import Path

import numpy as np
import pyvips

from gdml.slides import open_slide

from ._slide import image, scratch, tiled

TILE_PX = 224


class ReadTiles:
    """Tiles one beside the other, row by row from the top, shrunk by 1.5."""

    params = ["flat JPEG", "pyramidal TIFF", "array"]
    param_names = ("slide",)

    def setup(self, slide: str) -> None:
        """Have the same pixels in three forms."""
        self.folder = scratch()
        jpeg = image(tiled(self.folder.name, grid=12))
        picture = pyvips.Image.new_from_file(str(jpeg))
        self.source, self.size = jpeg, (picture.width, picture.height)
        if slide == "pyramidal TIFF":
            self.source = Path(self.folder.name) / "slide.tiff"
            picture.tiffsave(str(self.source), tile=True, pyramid=True, compression="jpeg", Q=90)
        if slide == "array":
            self.source = picture.numpy()

    def teardown(self, slide: str) -> None:
        """Remove the files."""
        self.folder.cleanup()

    def track_ms_per_tile(self, slide: str) -> float:
        """Time to open the slide and read all tiles, over tiles: median of five."""
        return float(np.median([self._read() for _ in range(5)]))

    track_ms_per_tile.unit = "ms"

    def _read(self) -> float:
        side, n = 1.5 * TILE_PX, 0
        start = time.perf_counter()
        slide = open_slide(self.source)
        for y in np.arange(0, self.size[1] - side, side):
            for x in np.arange(0, self.size[0] - side, side):
                slide.read_region(x, y, side, side, (TILE_PX, TILE_PX))
                n += 1
        slide.close()
        return 1000 * (time.perf_counter() - start) / n
