"""Weights in files: reading them without running code, and their content hash."""

import hashlib
import pickle
import re
from pathlib import Path

import torch


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


def load_weights(model: torch.nn.Module, path: Path, architecture: str) -> None:
    """Load a file into ``model``, without a classifier head in the file.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`read_state_dict`, and if the file belongs to another architecture.
    """
    state = read_state_dict(path)
    own = model.state_dict()
    state = {k: v for k, v in state.items() if k in own or k.split(".")[0] not in ("head", "fc", "classifier")}
    # counters of batches matter for training only, and some files do not have them
    counters = {k for k in own if k.endswith("num_batches_tracked")}
    wrong = (set(own) ^ set(state)) - counters | {k for k in own if k in state and own[k].shape != state[k].shape}
    if wrong:
        raise ValueError(
            f"`weights`: {str(path)!r} does not fit {architecture!r}: {len(wrong)} tensors are missing, unknown or of "
            f"another shape, such as {min(wrong)!r}. Name the architecture these weights were trained with."
        )
    model.load_state_dict(state, strict=False)


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
