"""How a comparison is run: what is selected where, and what has to be said of the scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gdml._errors import did_you_mean


@dataclass(frozen=True)
class Protocol:
    """Rules of a comparison.

    Parameters
    ----------
    name
        As the user gives it.
    normalize
        Arguments of :func:`gdml.pp.normalize` and :func:`gdml.pp.select_genes` in which it differs from what the data
        were normalised with.
    select_on_test
        The epoch is chosen by the scores on the test slides.
    pooled
        Correlations are taken over all test spots of a fold together, not slide by slide.
    presets
        Preset of a model that the protocol names, unless the user says otherwise.
    note
        What has to be said wherever a score stands.
    """

    name: str
    normalize: Mapping[str, Any] = field(default_factory=dict)
    select_on_test: bool = False
    pooled: bool = False
    presets: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


PROTOCOLS = {
    "nested": Protocol("nested"),
    "paper": Protocol(
        "paper",
        normalize={"normalization": "paper"},
        select_on_test=True,
        note="OPTIMISTIC: the epoch is selected on the test fold (protocol 'paper').",
    ),
    "hest-bench": Protocol(
        "hest-bench",
        normalize={"n_genes": 50, "method": "hvg", "normalization": "scanpy"},
        pooled=True,
        presets={"ridge": "hest"},
        note="Correlations are over all test spots of a fold (protocol 'hest-bench').",
    ),
}


def get_protocol(name: str) -> Protocol:
    """Find a protocol.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"`protocol` is {name!r}. {did_you_mean(str(name), PROTOCOLS)}")
    return PROTOCOLS[name]
