"""What the workers of a Dask cluster must have in common, so that all compute alike."""

from typing import TYPE_CHECKING, Any, Literal

from scanpy import logging as logg

from gdml._errors import some

if TYPE_CHECKING:
    from gdml.encoders.device import Precision


def settled_precision(client: Any, device: str, precision: "Precision") -> Literal["bf16", "fp32"]:
    """Settle the precision, which ``"auto"`` leaves to each machine.

    Parameters
    ----------
    client
        The cluster; at least one worker is waited for.
    device
        Name of the device of each worker.
    precision
        What the user asked for.

    Returns
    -------
    The precision of the workers.

    Raises
    ------
    ValueError
        If a worker lacks the device, or they differ in precision or in their version of gdml.
    """
    logg.info(f"waiting for workers of {client.scheduler.address}")
    client.wait_for_workers(1)
    versions, precisions = set(), set()
    for worker, found in client.run(_about, device, precision, on_error="return").items():
        if isinstance(found, BaseException):
            found.add_note(f"Raised on the worker {worker}.")
            raise found
        versions.add(found[0])
        precisions.add(found[1])
    if len(versions) > 1:
        raise ValueError(f"The workers have gdml {some(sorted(versions))}; install one version on all machines.")
    if len(precisions) > 1:
        raise ValueError(
            "`precision='auto'` is fp32 on some workers and bf16 on others, so that results would differ; pass "
            "precision='fp32' or precision='bf16'."
        )
    return precisions.pop()


def _about(device: str, precision: "Precision") -> tuple[str, Literal["bf16", "fp32"]]:
    """Version and precision of a worker."""
    from gdml import __version__
    from gdml.encoders.device import resolve_device, use_bf16

    return __version__, "bf16" if use_bf16(resolve_device(device), precision) else "fp32"
