"""The identity of a user's encoder follows its code and weights, and nothing else."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gdml.encoders import CustomEncoder, get_encoder
from gdml.encoders._identity import content_identity


class Patches(torch.nn.Module):
    def __init__(self, factor: float = 1.0, stride: int = 8):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 8, stride)
        self.factor = factor

    def forward(self, x):
        return self.factor * self.conv(x).flatten(2).transpose(1, 2)


def seeded(**kwargs) -> Patches:
    torch.manual_seed(0)
    return Patches(**kwargs)


def identity(function, **kwargs) -> str:
    return CustomEncoder(function, tile_px=32, **kwargs).identity


def test_weights_buffers_and_settings_count():
    base = identity(seeded())
    assert identity(seeded()) == base
    nudged, buffered, hooked = seeded(), seeded(), seeded()
    with torch.no_grad():
        nudged.conv.weight[0, 0, 0, 0] += 1e-6
    buffered.register_buffer("mean", torch.zeros(3), persistent=False)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    others = [nudged, buffered, hooked, seeded(factor=2.0), seeded(stride=4)]
    assert len({base, *map(identity, others)}) == 6
    assert identity(seeded(), mean=(0.5, 0.5, 0.5)) != base


def test_code_of_a_module_counts():
    class Other(Patches):
        def forward(self, x):
            return super().forward(x) + 1

    torch.manual_seed(0)
    assert identity(Other()) != identity(seeded())


def test_what_does_not_count():
    training, compiled, moved = seeded(), torch.compile(seeded()), seeded()
    training.train()
    moved.requires_grad_(False)
    compiled._orig_mod._compile_kwargs = {}  # torch leaves this, but not always
    assert identity(training) == identity(seeded())
    assert content_identity(moved) == content_identity(compiled) == content_identity(seeded())


def test_outputs_do_not_count():
    """Threads and bfloat16 change the last digits of the output, and never the identity."""
    draw = np.random.default_rng()

    class Noisy(Patches):
        def forward(self, x):
            out = super().forward(x)
            return out + 1e-2 * torch.randn(out.shape)

    made = []
    for _ in range(2):
        torch.manual_seed(0)
        module = Noisy()
        torch.manual_seed(int(draw.integers(1 << 31)))
        made.append(CustomEncoder(module, tile_px=32))
    tiles = torch.zeros((1, 32, 32, 3), dtype=torch.uint8)
    assert not torch.equal(made[0].encode(tiles)[0], made[1].encode(tiles)[0])
    assert made[0].identity == made[1].identity
    torch.set_num_threads(2)
    assert identity(seeded()) == identity(seeded().to(memory_format=torch.channels_last))
    torch.set_num_threads(1)


def test_functions_closures_defaults_and_globals():
    def make(shift, power=1.0):
        def encode(x, power=power):
            return x.mean((2, 3)) ** power + shift

        return encode

    base = identity(make(1.0))
    assert identity(make(1.0)) == base
    assert base not in {identity(make(2.0)), identity(make(1.0, power=2.0)), identity(make(torch.ones(3)))}
    assert identity(make(torch.ones(3))) != identity(make(torch.zeros(3)))
    assert identity(make(np.float32(1))) != identity(make(np.float32(2)))


def test_partials_lambdas_methods_and_objects():
    class Scaled:
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x):
            return self.encode(x)

        def encode(self, x):
            return self.factor * x.mean((2, 3))

    def scaled(x, factor):
        return factor * x.mean((2, 3))

    made = [
        *(identity(Scaled(f)) for f in (1, 2)),
        *(identity(Scaled(f).encode) for f in (1, 2)),
        *(identity(functools.partial(scaled, factor=f)) for f in (1, 2)),
        identity(lambda x: x.mean((2, 3))),
        identity(lambda x: x.amax((2, 3))),
    ]
    assert len(set(made)) == len(made)
    assert identity(Scaled(2)) == made[1] and identity(functools.partial(scaled, factor=2)) == made[5]


AT_THE_PROMPT = """
import torch
from gdml.encoders import CustomEncoder

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 8, 8)
    def forward(self, x):
        return self.conv(x).mean((2, 3))

torch.manual_seed(0)
net, colours = Net(), {"red", "green", "blue", "yellow"}
def helper(x):
    return net(x) if "red" in {"red", "green", "blue"} else x
def show():
    print(CustomEncoder(net, tile_px=32).identity, CustomEncoder(lambda x: helper(x) * len(colours), tile_px=32).identity)
show()
net.conv.bias.data += 1e-3  # the function reads the module by its global name
show()
"""


def test_same_code_in_another_process_has_the_same_identity():
    def run(**environment: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", AT_THE_PROMPT]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
        return done.stdout

    first = run(PYTHONHASHSEED="1", OMP_NUM_THREADS="1")
    assert run(PYTHONHASHSEED="2", OMP_NUM_THREADS="2") == first
    assert len(set(first.split()) - {"custom"}) == 4


def test_a_name_in_place_of_the_content():
    assert identity(seeded(), identity="mine-1") == identity(Patches(), identity="mine-1") == "custom named mine-1"
    assert get_encoder(seeded(), tile_px=32, identity="mine-2").identity != "custom named mine-1"
    assert identity(seeded(), name="embedding") == identity(seeded())  # the name of the embedding is no promise


def test_what_cannot_be_read_must_be_named(tmp_path):
    generator = (i for i in range(3))

    def encode(x):
        return x.mean((2, 3)) + len([generator])

    with pytest.raises(ValueError, match=r"refers to a generator.*identity="):
        identity(encode)
    assert identity(encode, identity="counted") == "custom named counted"


def test_timm_modules_are_read_whole():
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    before = content_identity(model)
    assert content_identity(model) == before
    with torch.no_grad():
        model.blocks[-1].mlp.fc2.bias[0] += 1
    assert content_identity(model) != before
