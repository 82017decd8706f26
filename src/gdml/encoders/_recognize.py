"""Whether weights fit a model, and whose they are, by names and shapes of their tensors."""

from collections.abc import Mapping
from functools import cache

import torch

from gdml._errors import count

from ._build import build
from ._layouts import State, layout_of, to_timm
from .published import PUBLISHED, Published

_HEADS = ("head", "fc", "classifier")


def without_head(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> State:
    """Tensors of a file without those of a classifier that the model does not have."""
    return {key: value for key, value in state.items() if key in own or key.split(".")[0] not in _HEADS}


def differences(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> str:
    """Say how the tensors of a file differ from those of a model; empty where they fit."""
    # counters of batches matter for training only, and some files do not have them
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    reshaped = [key for key in own if key in state and own[key].shape != state[key].shape]
    parts = []
    if missing:
        parts.append(f"lacks {count(len(missing), 'tensor')}, such as {missing[0]!r}")
    if unknown:
        parts.append(f"has {count(len(unknown), 'tensor')} that the model has not, such as {unknown[0]!r}")
    if reshaped:
        key = reshaped[0]
        shapes = f"{tuple(state[key].shape)} in place of {tuple(own[key].shape)}"
        parts.append(f"has {count(len(reshaped), 'tensor')} of another shape, such as {key!r}: {shapes}")
    return f"the file {'; '.join(parts)}" if parts else ""


def recognized(file: Mapping[str, torch.Tensor]) -> dict[str, Published]:
    """Find the published models that the tensors of a file fit, by name."""
    layout, found = layout_of(file), {}
    shapes = {key: torch.empty_like(value, device="meta") for key, value in file.items()}
    for name, published in PUBLISHED.items():
        if published.layout == layout:
            own = _shapes(name)
            if not differences(without_head(to_timm(shapes, own), own), own):
                found[name] = published
    return found


@cache
def _shapes(name: str) -> State:
    """Tensors of a published model without their memory."""
    with torch.device("meta"):
        return build(PUBLISHED[name]).state_dict()
