import pytest
import torch

from gdml.encoders.device import resolve_device, use_bf16


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(ValueError, match="Did you mean 'cuda'"):
        resolve_device("cudda")
    with pytest.raises(ValueError, match="Known names|Did you mean"):
        resolve_device("cuda:x")
    with pytest.raises(ValueError, match="torch sees"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")


def test_precision():
    cpu = torch.device("cpu")
    assert use_bf16(cpu, "bf16") and not use_bf16(cpu, "fp32")
    assert isinstance(use_bf16(cpu), bool)
    with pytest.raises(ValueError, match="Did you mean 'fp32'"):
        use_bf16(cpu, "fp23")
