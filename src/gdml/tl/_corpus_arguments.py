"""Arguments of verbs on many slides, checked before anything is started."""

from typing import Any, get_args

import torch

from gdml._errors import check_number, did_you_mean
from gdml.encoders.device import resolve_device, use_bf16
from gdml.slides.lattice import Layout


def check_tiles(spacing_um: Any, layout: Any, min_tissue: Any, precision: Any) -> None:
    """Refuse what no slide could be predicted with.

    Parameters
    ----------
    spacing_um, layout, min_tissue, precision
        As in :func:`gdml.tl.predict_slides`.

    Raises
    ------
    TypeError, ValueError
        If one is of another kind, or out of its range.
    """
    if spacing_um is not None:
        check_number("spacing_um", spacing_um, above=0)
    if layout not in get_args(Layout):
        raise ValueError(f"`layout` is {layout!r}. {did_you_mean(str(layout), get_args(Layout))}")
    check_number("min_tissue", min_tissue, at_least=0)
    if min_tissue > 1:
        raise ValueError(f"`min_tissue` must be at most 1, found {min_tissue!r}; give a share from 0 to 1.")
    use_bf16(torch.device("cpu"), precision)


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
