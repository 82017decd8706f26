"""How tiles are to be encoded: what makes an extractor, in this process or in another."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gdml._errors import check_count, did_you_mean

from ._extract import Extractor
from ._tokens import Tokens

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision


@dataclass(frozen=True)
class Plan:
    """The arguments of :func:`gdml.pp.embed` that make an extractor.

    Parameters
    ----------
    encoder, tokens, weights, encoder_name, batch_size, device, precision, compile
        As in :func:`gdml.pp.embed`.

    Raises
    ------
    ValueError, TypeError
        If ``tokens`` or ``batch_size`` is not valid.
    """

    encoder: Any
    tokens: Tokens = "grid7"
    weights: str | Path | None = None
    encoder_name: str | None = None
    batch_size: int | None = None
    device: "str | torch.device" = "auto"
    precision: "Precision" = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.tokens not in get_args(Tokens):
            raise ValueError(f"`tokens` is {self.tokens!r}. {did_you_mean(self.tokens, get_args(Tokens))}")
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)

    @property
    def by_name(self) -> bool:
        """Whether the encoder can be made from its name alone, on any machine that has its weights."""
        return isinstance(self.encoder, str | PathLike)

    def make(self) -> Extractor:
        """Make the encoder, and what feeds it.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, PermissionError, ConnectionError
            As :func:`gdml.encoders.get_encoder`; a device or precision that is not known, or an encoder that cannot be
            compiled.
        """
        from gdml.encoders import get_encoder
        from gdml.encoders.device import resolve_device, use_bf16

        target = resolve_device(self.device)
        bf16 = use_bf16(target, self.precision)
        options = {} if self.weights is None else {"weights": self.weights}
        made = get_encoder(self.encoder, name=self.encoder_name, **options).to(target)
        if self.compile:
            if not hasattr(made, "compile"):
                raise ValueError(
                    f"`compile`: the encoder {made.name!r} has nothing that torch could compile; leave it out."
                )
            made.compile()
        return Extractor(
            encoder=made,
            tokens=self.tokens,
            device=target,
            bf16=bf16 and not getattr(made, "full_precision", False),
            compiled=bool(getattr(made, "compiled", self.compile)),
            batch_size=int(self.batch_size or 0),
        )
