"""Models of timm, with published weights, a file of weights, or random ones."""

from pathlib import Path
from typing import Any, Self

import torch

from gdml._errors import did_you_mean

from ._hub import hub_errors
from ._weights import content_id, load_weights
from .published import Published


class TimmEncoder:
    """A frozen timm model.

    The tokens are the model's final feature map, the class or pooled token first. The pooled embedding is the class
    token, or the model's own pooling where it has none.

    Parameters
    ----------
    architecture
        Name of a timm model, such as ``"vit_base_patch16_224"`` or ``"resnet50.a1_in1k"``.
    name
        Name of the embedding; by default the architecture.
    pretrained
        Load the published weights; False leaves them random.
    weights
        File of weights to load instead: safetensors, or a torch file of tensors, named as timm or transformers'
        ``Dinov2Model`` name them.
    seed
        Seed of random weights.
    mean, std
        By channel, of pixels in [0, 1]; by default those that timm has for the architecture.
    **kwargs
        Arguments of ``timm.create_model``, such as ``img_size=448``.

    Raises
    ------
    ValueError
        If timm has no such model, or the weights do not fit.
    FileNotFoundError
        If ``weights`` does not exist.
    ConnectionError
        If published weights are not in the cache and cannot be downloaded.
    """

    def __init__(
        self,
        architecture: str,
        *,
        name: str | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        seed: int = 0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        import timm

        if not timm.is_model(architecture):
            raise ValueError(f"timm has no model {architecture!r}. {did_you_mean(architecture, timm.list_models())}")
        self.architecture = architecture
        self.name = name or architecture
        self._kwargs = {"num_classes": 0, **kwargs}
        self._weights = None if weights is None else Path(weights).expanduser()
        self._pretrained = pretrained and weights is None
        self._seed = seed
        self._device = torch.device("cpu")
        self._loaded: Any = None
        self.compiled = False
        with torch.device("meta"):  # shapes only: stored features are read without loading weights
            model = self._create()
        config = timm.data.resolve_model_data_config(model)
        size = self._kwargs.get("img_size") or config["input_size"][-1]  # timm's configuration ignores the argument
        self.tile_px = int(size if isinstance(size, int) else size[-1])
        self.dim = int(model.num_features)
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        self._has_class = prefix > 0 and bool(getattr(model, "has_class_token", True))
        self.n_prefix = prefix if self._has_class else prefix + 1
        self._mean, self._std = tuple(mean or config["mean"]), tuple(std or config["std"])
        self.identity = self._identify(getattr(model, "pretrained_cfg", None) or {})

    def _identify(self, published: dict[str, Any]) -> str:
        if self._weights is not None:
            origin = content_id(self._weights)
        elif self._pretrained:
            origin = str(published.get("hf_hub_id") or published.get("url") or "") + f" {published.get('tag', '')}"
        else:
            origin = f"random seed {self._seed} torch {torch.__version__}"
        options = " ".join(f"{k}={_shown(v)}" for k, v in sorted(self._kwargs.items()))
        return f"timm {self.architecture} {options} mean={self._mean} std={self._std} {origin.strip()}"

    @property
    def model(self) -> Any:
        """The model with its weights, loaded on first use."""
        if self._loaded is None:
            with torch.random.fork_rng(devices=[]), hub_errors(self.architecture):
                torch.manual_seed(self._seed)
                model = self._create(pretrained=self._pretrained)
            if self._weights is not None:
                load_weights(model, self._weights, self._wanted)
            # channels last: fastest for convolutions on AMX and on tensor cores
            model = (
                self._prepared(model.eval())
                .requires_grad_(False)
                .to(memory_format=torch.channels_last)
                .to(self._device)
            )
            if self.compiled:
                model.forward_features = torch.compile(model.forward_features)
            self._loaded = model
        return self._loaded

    def _create(self, pretrained: bool = False) -> Any:
        """Make the model; for subclasses."""
        import timm

        return timm.create_model(self.architecture, pretrained=pretrained, **self._kwargs)

    @property
    def _wanted(self) -> str | Published:
        """What the weights should be those of."""
        return repr(self.architecture)

    def _prepared(self, model: Any) -> Any:
        """Prepare the model for inference; for subclasses."""
        return model

    def compile(self) -> None:
        """Compile the model with ``torch.compile``, when it is next loaded."""
        if not self.compiled:
            self.compiled, self._loaded = True, None

    @torch.inference_mode()
    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and pooled (B, D), float32, of tiles (B, tile_px, tile_px, 3) uint8."""
        features = self.model.forward_features(normalize(tiles, self._mean, self._std))
        tokens = features
        if tokens.ndim == 4:  # a map: channels first in CNNs, last in Swin transformers
            if tokens.shape[-1] != self.dim:
                tokens = tokens.movedim(1, -1)
            tokens = tokens.flatten(1, 2)
        if self._has_class:
            return tokens.float(), tokens[:, 0].float()
        pooled = self.model.forward_head(features, pre_logits=True)
        if pooled.shape[1:] != (self.dim,):  # a head with a hidden layer
            pooled = tokens.mean(1)
        return torch.cat([pooled[:, None], tokens], 1).float(), pooled.float()

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to ``device``."""
        self._device = torch.device(device)
        if self._loaded is not None:
            self._loaded.to(self._device)
        return self


def normalize(tiles: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Tiles (B, H, W, 3) uint8 as (B, 3, H, W) float32 in channels-last memory, centred and scaled by channel."""
    offset, scale = (torch.tensor(v, dtype=torch.float32, device=tiles.device) for v in (mean, std))
    # one pass over the pixels after their cast: (x / 255 - mean) / std
    return torch.addcmul(-offset / scale, tiles.float(), 1 / (255 * scale)).permute(0, 3, 1, 2)


def _shown(option: object) -> object:
    """Option as text, the same in every run: functions, also partial ones, by name."""
    function = getattr(option, "func", option)
    return getattr(function, "__name__", option)
