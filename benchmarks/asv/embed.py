"""From the image file to the store, and back."""

import tempfile

import torch

import gdml
from gdml.encoders import get_encoder
from gdml.spots.features import load_features

from ._slide import scratch, tiled


class Embed:
    """``pp.embed`` of a few spots into an empty store."""

    params = (["stain", "timm:resnet18"], ["exact", "lattice"])
    param_names = ("encoder", "neighbors")
    number, repeat, warmup_time = 1, 3, 0

    def setup(self, encoder: str, neighbors: str) -> None:
        """Warm up: kernels are compiled and weights made before the clock runs."""
        self.folder = scratch()
        self.adata = tiled(self.folder.name)
        self.encoder = get_encoder(encoder, **({"pretrained": False} if encoder.startswith("timm:") else {}))
        self.n_tiles, encode = 0, self.encoder.encode

        def counted(tiles: torch.Tensor):
            self.n_tiles += len(tiles)
            return encode(tiles)

        self.encoder.encode = counted
        self._embed(self.adata[:1].copy(), neighbors)

    def teardown(self, encoder: str, neighbors: str) -> None:
        """Remove image and stores."""
        self.folder.cleanup()

    def time_embed(self, encoder: str, neighbors: str) -> None:
        """Time of all spots."""
        self._embed(self.adata, neighbors)

    def peakmem_embed(self, encoder: str, neighbors: str) -> None:
        """Peak memory of the process, torch and all."""
        self._embed(self.adata, neighbors)

    def track_encoder_calls_per_spot(self, encoder: str, neighbors: str) -> float:
        """Tiles encoded, over spots."""
        self.n_tiles = -1  # a white one tells how many tokens there are
        self._embed(self.adata, neighbors)
        return self.n_tiles / self.adata.n_obs

    track_encoder_calls_per_spot.unit = "tiles"

    def _embed(self, adata, neighbors: str) -> None:
        folder = tempfile.mkdtemp(dir=self.folder.name)
        gdml.pp.embed(adata, self.encoder, neighbors=neighbors, device="cpu", cache_dir=folder)


class LoadFeatures:
    """Features from the stores, in the order of the spots."""

    params = ["exact", "lattice"]
    param_names = ("neighbors",)

    def setup(self, neighbors: str) -> None:
        """Embed once."""
        self.folder = scratch()
        self.adata = tiled(self.folder.name, grid=5)
        gdml.pp.embed(self.adata, "stain", neighbors=neighbors, cache_dir=self.folder.name)

    def teardown(self, neighbors: str) -> None:
        """Remove image and stores."""
        self.folder.cleanup()

    def time_load_features(self, neighbors: str) -> None:
        """Time of all spots."""
        load_features(self.adata)
