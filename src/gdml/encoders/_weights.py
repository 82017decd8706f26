"""Weights in files: reading them without running code, and their content hash."""

import hashlib
import pickle
import re
from pathlib import Path

import torch

from ._layouts import layout_of, to_timm
from ._recognize import differences, recognized, without_head
from .published import Published


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors`` file, or of a torch file (``.bin``, ``.pt``, ``.pth``), on the CPU.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If it is damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`weights`: no file {str(path)!r}.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"`weights`: {str(path)!r} is damaged or holds more than tensors ({str(error).splitlines()[0]}). "
            "Save the model's state_dict() with safetensors."
        ) from error
    for wrapped in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(wrapped), dict):
            state = state[wrapped]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"`weights`: {str(path)!r} holds no state_dict; save model.state_dict().")
    return state


def load_weights(model: torch.nn.Module, path: Path, wanted: str | Published) -> None:
    """Load a file into ``model``, without a classifier head in the file.

    Parameters
    ----------
    model
        Module to load into; its tensors may be on the meta device.
    path
        File of weights.
    wanted
        What the model is: a published encoder, or the name of an architecture.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_state_dict`, and if the file belongs to another architecture, which is named if it is known.
    """
    file, own = read_state_dict(path), model.state_dict()
    state = without_head(to_timm(file, own), own)
    differs = differences(state, own)
    # of the same architecture, the weights of another model may still be told by the names of their tensors
    other = isinstance(wanted, Published) and wanted.layout != layout_of(file)
    if differs or other:
        known = recognized(file)
        why = _named(known) if known and wanted not in known.values() else differs
        why = why or "its tensors are not named as in the published file"
        raise ValueError(f"`weights`: {str(path)!r} does not fit {wanted}: {why}.")
    # a model without memory takes the tensors of the file, in its own precision
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    model.load_state_dict(state, strict=False, assign=any(tensor.is_meta for tensor in own.values()))


def _named(known: dict[str, Published]) -> str:
    titles = " or ".join(str(published) for published in known.values())
    calls = " or ".join(f"encoder={name!r}" for name in known)
    return f"these are the weights of {titles}; pass {calls} with this file"


def content_id(path: Path) -> str:
    """First 16 digits of the SHA-256 of a file, which the hub's cache has in the file's name.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"`weights`: no file {str(path)!r}.")
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name):
        return blob.name[:16]
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
