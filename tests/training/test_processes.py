"""Two processes on the CPU learn what one does, and the same on devices where there are any."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from gdml.training.fabric import make_fabric
from gdml.training.sampler import SlideSampler

SCRIPT = """
    import json
    import sys

    import numpy as np
    import torch

    from gdml.models import STNet, STNetConfig
    from gdml.training import TrainingConfig
    from gdml.training.data import SpotData
    from gdml.training.fabric import make_fabric
    from gdml.training.fitting import fit_model
    from gdml.training.split import make_split


    def data():
        g = torch.Generator().manual_seed(0)
        lengths, dim = (30, 21, 25, 17), 8
        n = sum(lengths)
        pooled = torch.randn(n, dim, generator=g).half()
        cells = torch.cat([torch.stack([torch.arange(k) // 6, torch.arange(k) % 6], 1) for k in lengths])
        return SpotData.in_memory(
            tokens=pooled[:, None], pooled=pooled, neighbors=torch.zeros(n, 1, dim),
            neighbor_mask=torch.zeros(n, 1, dtype=torch.bool), grid=cells, xy=cells.flip(1).float(),
            slide=torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)), names=list("abcd"), groups=list("abcd"),
            expression=pooled.float() @ torch.randn(dim, 300, generator=g) + torch.randn(n, 300, generator=g),
        )


    if __name__ == "__main__":
        n, strategy = int(sys.argv[1]), sys.argv[2]
        spots = data()
        loop = TrainingConfig(max_epochs=4, batch_size=24, slides_per_batch=2, optimizer="sgd", learning_rate=0.05,
                              clip=1.0, average=0.9, warmup_steps=2, refit=True)
        split = make_split(spots, "group", 0.3, None, 0)
        fabric = make_fabric("cpu", precision="fp32", devices=n, strategy=strategy)
        module, run, epochs = fit_model(STNet, STNetConfig(), spots, split, loop, fabric, 3)
        if fabric.is_global_zero:
            result = {k: v.tolist() for k, v in run.history.items()}
            result["weights"] = module.head.weight.flatten().tolist()
            result["epochs"] = epochs
            print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def fit_in(tmp_path_factory):
    """Fit the same model in a number of processes: history, weights and epochs."""
    path = tmp_path_factory.mktemp("processes") / "fit.py"
    path.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}

    def run(n, strategy="auto"):
        command = [sys.executable, str(path), str(n), strategy]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        return json.loads(line.removeprefix("RESULT"))

    return run


@pytest.fixture(scope="module")
def alone(fit_in):
    return fit_in(1)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_with_half_a_batch_each_learn_what_one_does(fit_in, alone, strategy):
    # a loss that is a mean over spots, no dropout: losses, scores and weights agree but for the order of additions
    both = fit_in(2, strategy)
    assert both["epochs"] == alone["epochs"]
    assert len(set(alone["loss"])) == len(alone["loss"]) > 1
    for name in alone.keys() - {"epochs"}:
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch_of_the_same_epoch(make_data, world_size):
    data = make_data((30, 20, 25, 16))
    rows = torch.arange(len(data))
    batches = lambda rank, n: list(
        SlideSampler(data.slide, rows, 24, 4, torch.Generator().manual_seed(5), rank=rank, world_size=n)
    )
    whole, shares = batches(0, 1), [batches(rank, world_size) for rank in range(world_size)]
    for i, batch in enumerate(whole):
        parts = [share[i] for share in shares]
        assert torch.cat(parts).sort().values.tolist() == batch.sort().values.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        # slides stay together: a process reads its own, and shares one with the next
        n_slides = len(data.slide[batch].unique())
        assert sum(len(data.slide[part].unique()) for part in parts) <= n_slides + world_size - 1


def test_a_process_is_never_without_spots(make_data):
    data = make_data((3, 2))
    rows = torch.arange(5)
    for rank in range(4):
        sampler = SlideSampler(data.slide, rows, 2, 1, torch.Generator().manual_seed(0), rank=rank, world_size=4)
        assert all(len(batch) for batch in sampler)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_learns_what_the_cpu_does(make_data, precision):
    from gdml.models import STNet, STNetConfig
    from gdml.training import TrainingConfig
    from gdml.training.fitting import fit_model

    data = make_data((60, 40))
    loop = TrainingConfig(max_epochs=10, batch_size=32, optimizer="sgd", learning_rate=0.05, refit=False)
    losses = {}
    for device in ("cpu", "cuda"):
        fabric = make_fabric(device, precision=precision)
        module, run, _ = fit_model(STNet, STNetConfig(), data, None, loop, fabric, 0)
        assert next(module.parameters()).device.type == "cpu"
        losses[device] = run.history["loss"]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-4 if precision == "fp32" else 0.05)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_are_set_up():
    fabric = make_fabric("cuda", devices=2, strategy="ddp_spawn")
    assert fabric.world_size == 2
