"""Two processes on the CPU learn what one does, and the same on devices where there are any."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gdml.training.fabric import make_fabric
from gdml.training.sampler import SlideSampler

SCRIPT = Path(__file__).with_name("fit_in_processes.py")


@pytest.fixture(scope="module")
def fits():
    """The same fit in one process; in two that start the script again; and in two that are started for the call."""
    environment = dict(os.environ)
    single = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(SCRIPT), "2", "ddp"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    try:
        # importing torch takes most of the time: both pairs of processes start at once
        with subprocess.Popen(command, env={**environment, **single}, **pipes) as script:
            os.environ.update(single)
            fit = runpy.run_path(str(SCRIPT))["fit"]
            found = {"alone": fit(1), "ddp_spawn": fit(2, "ddp_spawn")}
            output, errors = script.communicate(timeout=300)
        assert script.returncode == 0, errors
        (line,) = [line for line in output.splitlines() if line.startswith("RESULT")]
        return {**found, "ddp": json.loads(line.removeprefix("RESULT"))}
    finally:
        os.environ.clear()
        os.environ.update(environment)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes_with_half_a_batch_each_learn_what_one_does(fits, strategy):
    # a loss that is a mean over spots, no dropout: losses, scores and weights agree but for the order of additions
    alone, both = fits["alone"], fits[strategy]
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
        module, run, _ = fit_model(STNet, STNetConfig(), data, [], loop, fabric, 0)
        assert next(module.parameters()).device.type == "cpu"
        losses[device] = run.history["loss"]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-4 if precision == "fp32" else 0.05)


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_are_set_up():
    fabric = make_fabric("cuda", devices=2, strategy="ddp_spawn")
    assert fabric.world_size == 2
