"""Devices of a verb on many slides, checked before anything is started."""

from typing import Any

import torch

from gdml.encoders.device import resolve_device


def device_names(devices: Any, client: Any) -> list[str]:
    """Name the devices, one for each process.

    Parameters
    ----------
    devices, client
        As in :func:`gdml.tl.predict_slides`.

    Returns
    -------
    At least one.

    Raises
    ------
    ValueError
        If a device does not exist here, or there are several with a client.
    """
    if devices is None:
        n = 0 if client is not None else torch.cuda.device_count()  # with a client the workers' devices count
        return [f"cuda:{i}" for i in range(n)] if n > 1 else ["auto"]
    named = [devices] if isinstance(devices, str) else list(devices)
    if not named:
        raise ValueError("`devices` is empty; leave it out for the best device.")
    if client is not None:
        if len(named) > 1:
            raise ValueError(
                f"`devices` names {len(named)} devices, but with `client` each worker has one; start a worker for each GPU."
            )
        return named  # the workers' devices, which this machine need not have
    for one in named:
        resolve_device(one)
    return named
