import os
import platform
import subprocess
import sys

import pytest
import torch

from gdml.training.memory import kept_memory

COUNT = """
import resource, torch
from contextlib import nullcontext
from gdml.training.memory import kept_memory

def faults(block):
    with block:
        for repeat in range(6):
            if repeat == 2:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            pieces = [torch.zeros(16 << 20, dtype=torch.uint8) for _ in range(8)]
            del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1])

plain, start = faults(nullcontext()), resident()
kept = faults(kept_memory(torch.device("cpu")))
print(plain, kept, resident() - start)
"""


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory of another allocator is left alone")


@glibc
def test_freed_memory_is_kept_inside_and_given_back_after():
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name and name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", COUNT]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    plain, kept, left = map(int, answer.stdout.split())
    assert kept < plain / 10
    assert left < 1000  # pages


@glibc
@pytest.mark.parametrize(
    ("device", "name"), [("meta", "OTHER"), ("cpu", "MALLOC_ARENA_MAX"), ("cpu", "GLIBC_TUNABLES")]
)
def test_other_devices_and_the_users_own_settings_are_left_alone(device, name, monkeypatch):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr("gdml.training.memory.ctypes.CDLL", lambda _: pytest.fail("changed the allocator"))
    with kept_memory(torch.device(device)):
        pass
