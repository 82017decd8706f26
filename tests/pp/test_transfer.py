"""Copies to a CUDA device and back: with stand-ins for its streams, and on the device where there is one."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from gdml.pp._transfer import Pending, Transfer


class LateStream:
    """Copies nothing before it is waited for, as a device may that is busy."""

    def __init__(self, device=None):
        self.waiting = []

    def synchronize(self):
        while self.waiting:
            self.waiting.pop(0)()


class Tiles:
    """Stands for a tensor in page-locked memory."""

    def __init__(self, buffer, stream):
        self.buffer, self.stream = buffer, stream

    def to(self, device, *, non_blocking):
        assert non_blocking and self.stream.current
        copy = OnDevice(torch.zeros_like(self.buffer))
        self.stream.waiting.append(lambda: copy.values.copy_(self.buffer))
        return copy


class OnDevice:
    def __init__(self, values):
        self.values, self.recorded = values, []

    def record_stream(self, stream):
        self.recorded.append(stream)


@pytest.fixture
def transfer(monkeypatch):
    @contextmanager
    def current(stream):
        stream.current = True
        yield
        stream.current = False

    monkeypatch.setattr(torch.cuda, "Stream", LateStream)
    monkeypatch.setattr(torch.cuda, "stream", current)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "current")
    return Transfer(torch.device("cuda"))


def test_a_buffer_is_copied_before_it_may_be_overwritten(transfer):
    buffer = torch.arange(12, dtype=torch.uint8)
    copy = transfer.to_device(Tiles(buffer, transfer._stream))
    buffer.fill_(255)  # the next batch is read into it
    transfer._stream.synchronize()
    assert copy.values.tolist() == list(range(12))
    assert copy.recorded == ["current"]  # its memory is not given to another tensor while it is computed with


def test_features_are_waited_for():
    class Event:
        def synchronize(self):
            features.fill_(3)

    features = torch.zeros(4, dtype=torch.float16)
    assert Pending((features,), Event()).get()[0].tolist() == [3, 3, 3, 3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_every_batch_arrives():
    """Small copies race with a long computation and with the overwriting of their buffer."""
    transfer = Transfer(torch.device("cuda"))
    buffer = transfer.buffer(64, 224)
    assert buffer.is_pinned()
    busy = torch.randn(4096, 4096, device="cuda")
    pending = []
    for number in range(20):
        buffer.fill_(number)
        for _ in range(5):
            busy = torch.tanh(busy @ busy)
        pending.append(transfer.to_host(transfer.to_device(buffer).float().amax((1, 2, 3))))
        buffer.fill_(255)
    for number, features in enumerate(pending):
        np.testing.assert_array_equal(features.get()[0], np.full(64, number, np.float16))


def test_elsewhere_copies_are_plain():
    transfer = Transfer(torch.device("cpu"))
    tiles = transfer.buffer(2, 4).fill_(7)
    assert transfer.to_device(tiles) is tiles
    (halves,) = transfer.to_host(torch.tensor([1.5, 1e6])).get()
    assert halves.dtype == np.float16 and halves[0] == 1.5 and np.isinf(halves[1])
