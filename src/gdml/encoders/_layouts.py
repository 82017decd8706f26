"""Names of tensors in files of weights, as timm has them."""

import re
from collections.abc import Mapping

import torch
from torch.nn.functional import interpolate

from .published import Layout

State = dict[str, torch.Tensor]

# Tensors of transformers' Dinov2Model, as it writes them to files
_DINOV2 = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^layernorm\.": "norm.",
    r"^encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.fc1.",
    r"\.mlp\.weights_out\.": ".mlp.fc2.",
}
_PARTS = ("query", "key", "value")


def layout_of(state: Mapping[str, torch.Tensor]) -> Layout:
    """How the tensors of a file are named."""
    if "embeddings.position_embeddings" in state:
        return "dinov2"
    return "conch" if "visual.trunk.pos_embed" in state else "timm"


def to_timm(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> State:
    """Rename the tensors of a file to what timm calls them.

    The position embedding of transformers' ``Dinov2Model`` is resampled to the grid of the model in the same way as there.
    Of CONCH, the image tower up to its embedding is kept.

    Parameters
    ----------
    state
        Tensors by name, as in the file.
    own
        Tensors of the model, whose shapes are those to reach.

    Returns
    -------
    Tensors by timm's names.
    """
    layout = layout_of(state)
    if layout == "dinov2":
        return _from_dinov2(state, own)
    if layout == "conch":
        kept = ("visual.trunk.", "visual.attn_pool_contrast.", "visual.ln_contrast.")
        return {key.removeprefix("visual."): value for key, value in state.items() if key.startswith(kept)}
    return dict(state)


def _from_dinov2(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> State:
    out: State = {}
    for key, value in state.items():
        if key == "embeddings.mask_token":  # matters in training only
            continue
        split = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key)
        if split:
            block, part, kind = split.groups()
            if part == _PARTS[0]:
                names = [key.replace(f".{part}.", f".{name}.") for name in _PARTS]
                out[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([state[name] for name in names if name in state])
            continue
        for pattern, name in _DINOV2.items():
            key = re.sub(pattern, name, key)
        out[key] = value
    target = own.get("pos_embed")
    if target is not None:
        out["pos_embed"] = _resampled(out["pos_embed"], target.shape[1])
    return out


def _resampled(positions: torch.Tensor, n: int) -> torch.Tensor:
    """Position embedding (1, 1 + s², D) for ``n`` tokens: bicubic without antialiasing, as transformers does."""
    if positions.ndim != 3:  # refused later, by its shape
        return positions
    first, grid = positions[:, :1], positions[:, 1:]
    old, new = (round(count**0.5) for count in (grid.shape[1], n - 1))
    if old == new or old**2 != grid.shape[1] or new**2 != n - 1:
        return positions
    image = grid.unflatten(1, (old, old)).movedim(-1, 1).float()
    image = interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([first, image.flatten(2).transpose(1, 2).to(first.dtype)], 1)
