"""Processes and devices of a run, by Lightning Fabric."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric

from gdml._errors import check_count
from gdml.encoders.device import Precision, resolve_device, use_bf16


def make_fabric(
    device: "str | torch.device" = "auto",
    *,
    precision: Precision = "auto",
    devices: "int | list[int] | str" = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
) -> Fabric:
    """Set up the devices of a run.

    Strategies that start the script again in each process (``"ddp"``) start them here: whatever follows runs in all of
    them, and only the one with ``fabric.is_global_zero`` writes results. Strategies that start processes for one
    function (``"ddp_spawn"``, ``"ddp_fork"``, ``"ddp_notebook"``) start them in :func:`launch`.

    Parameters
    ----------
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the hardware does natively; ``"bf16"``, ``"fp32"``.
    devices
        Number of devices (on the CPU: of processes), their indices, or ``"auto"`` for all. Of one device alone, the
        index in ``device`` holds.
    strategy, num_nodes
        As in ``lightning_fabric.Fabric``.

    Raises
    ------
    ValueError
        If the device is absent or the precision unknown.
    TypeError
        If ``devices`` or ``num_nodes`` is no number.
    """
    check_count("num_nodes", num_nodes)
    if isinstance(devices, bool) or not (isinstance(devices, int | list) or devices == "auto"):
        raise TypeError(f"`devices` must be a number of devices, a list of their indices or 'auto', found {devices!r}.")
    # Fabric announces mixed precision at every call; the record of the fit has it
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    on = resolve_device(device)
    fabric = Fabric(
        accelerator=on.type,
        devices=[on.index] if devices == 1 and on.index is not None else devices,
        strategy=strategy,
        num_nodes=num_nodes,
        precision="bf16-mixed" if use_bf16(on, precision) else "32-true",
    )
    if not _starts_processes_for_functions(fabric):
        fabric.launch()
    return fabric


def launch(fabric: Fabric, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function(fabric, *arguments)`` in the processes of a run, and return what the first of them returns.

    Where processes are started for the call, what is returned must be small: it comes back through a pipe.
    """
    if _starts_processes_for_functions(fabric):
        return fabric.launch(_Call(function, arguments))
    return function(fabric, *arguments)


@dataclass(frozen=True)
class _Call:
    """A function with its arguments, which Fabric would otherwise look into for modules."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __call__(self, fabric: Fabric) -> Any:
        return self.function(fabric, *self.arguments)


def _starts_processes_for_functions(fabric: Fabric) -> bool:
    from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

    return isinstance(fabric.strategy.launcher, _MultiProcessingLauncher)
