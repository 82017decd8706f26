"""How far a slide and its spots are from the features that a model learnt from."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from .context import even_subset
from .data import SpotData
from .distance import Known, Sample

#: A spot is unusual where fewer than one in twenty held-out training spots is more so.
UNUSUAL = 0.95
#: A slide is unlike the training slides where its shift exceeds 1 and this times the largest of a held-out training slide,
LEAST_SHIFT, MARGIN = 1.0, 1.5
#: or where more than this share of its spots is unusual.
MOST_UNUSUAL = 0.75
#: Fewer training spots than this are not described.
LEAST_SPOTS = 12
#: Training spots that the covariance is estimated from, and means of slides that are kept, at most.
MAX_SPOTS, MAX_SLIDES = 4096, 256
_PARTS, _BLOCKS = 5, 3  # parts that are held out in turn: of groups or slides at most, and of a single slide
_PIECE = 4096
_KNOWN = ("means", "mean", "scale", "whiten")
_OWN = ("limits", "spots", "shifts")


@dataclass(frozen=True)
class SlideFamiliarity:
    """What a model says of a slide; see :meth:`Familiarity.score`.

    Parameters
    ----------
    spots
        (n,) float32 share of the held-out training spots that are less unusual than each spot, 0 to 1.
    shift
        Distance of the mean of the slide from that of the nearest training slide.
    limit
        Shift beyond which a slide is unlike the training slides.
    deviation
        (D,) float32 difference of each feature from that training slide, in standard deviations between its spots.
    """

    spots: NDArray[np.float32]
    shift: float
    limit: float
    deviation: NDArray[np.float32]

    @property
    def unusual(self) -> float:
        """Share of the spots that are more unusual than 95 % of held-out training spots."""
        return float((self.spots > UNUSUAL).mean()) if len(self.spots) else 0.0

    @property
    def unlike(self) -> bool:
        """Whether the slide is unlike anything that the model has seen."""
        return self.shift > self.limit or self.unusual > MOST_UNUSUAL


@dataclass(frozen=True, eq=False)
class Familiarity:
    """A small description of the features that a model learnt from.

    Pooled features of a spot's own tile, in units of their slide (see :class:`gdml.training.FrameConfig`), have a covariance
    between spots, which is shrunk as :cite:t:`LedoitWolf2004` say. Mahalanobis distances in it, over the square root of the number of
    features, say how unusual a spot is :cite:p:`Lee2018`, in two ways: in units of its slide from the mean of the slide,
    which another tissue changes; and as the encoder gave it from the mean of the nearest training slide, which another
    stain, scanner or scale changes as well. Both are divided by their 95 % quantile over training spots that were held
    out of the description, and the larger one is compared with that of these spots.

    Parameters
    ----------
    known
        Means and covariance.
    limits
        (2,) float32: the 95 % quantiles.
    spots
        (1001,) float32: quantiles of the score of held-out training spots.
    shifts
        (k,) float32: shift of each training slide, or part of one, that was held out.
    held_out
        What was held out: ``"group"``, ``"slide"`` or ``"block"`` (of a single slide).
    """

    known: Known
    limits: Tensor
    spots: Tensor
    shifts: Tensor
    held_out: str

    @classmethod
    def fit(cls, data: SpotData) -> Self | None:
        """Describe the features of a data set.

        Parameters
        ----------
        data
            The training spots. Groups are held out in turn, in five parts at most; of a single group its slides, of a
            single slide three blocks.

        Returns
        -------
        The description; None for fewer than twelve spots.
        """
        slides = [slide for slide in data.slides if len(slide)]
        if sum(map(len, slides)) < LEAST_SPOTS:
            return None
        each = max(1, MAX_SPOTS // len(slides))
        samples = [
            Sample(slide.part("pooled", even_subset(slide.xy, each)), slide.moments("pooled"), len(slide))
            for slide in slides
        ]
        held_out, parts = _parts([slide.group for slide in slides])
        judged, of = samples, np.array(parts)
        if held_out == "block":
            xy = slides[0].xy[even_subset(slides[0].xy, each)]
            along = xy[:, int(np.ptp(xy[:, 1]) > np.ptp(xy[:, 0]))]
            cuts = np.array_split(along.argsort(kind="stable"), _BLOCKS)
            judged, of = [Sample.of(samples[0].rows[np.sort(cut)]) for cut in cuts], np.arange(_BLOCKS)
        found, shifts = [], []
        for part in np.unique(of):
            known = Known.of([one for one, k in zip(judged, of, strict=True) if k != part])
            for one in (one for one, k in zip(judged, of, strict=True) if k == part):
                found.append(known.spots(one.rows, one.moments, one.n_spots))
                shifts.append(known.shift(one.moments, one.n_spots)[0])
        scores = torch.cat(found)
        limits = scores.quantile(UNUSUAL, 0)
        spots = (scores / limits).amax(1).quantile(torch.linspace(0, 1, 1001))
        kept = Known.of(samples)
        if len(samples) > MAX_SLIDES:
            at = torch.linspace(0, len(samples) - 1, MAX_SLIDES).round().long()
            kept = Known(kept.means[at], kept.mean, kept.scale, kept.whiten)
        return cls(kept, limits, spots, torch.tensor(shifts), held_out)

    @property
    def limit(self) -> float:
        """Shift beyond which a slide is unlike the training slides."""
        return max(LEAST_SHIFT, MARGIN * float(self.shifts.max()))

    def score(self, data: SpotData) -> Iterator[SlideFamiliarity]:
        """Say of each slide of a data set, in their order, how unusual it and its spots are."""
        for slide in data.slides:
            moments, found = slide.moments("pooled"), []
            for at in np.split(np.arange(len(slide)), range(_PIECE, len(slide), _PIECE)):
                far = self.known.spots(slide.part("pooled", at), moments, len(slide))
                found.append((far / self.limits).amax(1))
            # the middle of equal values: a spot at the median of the training spots has 0.5
            score, spots = torch.cat(found), self.spots.contiguous()
            rank = torch.searchsorted(spots, score) + torch.searchsorted(spots, score, right=True)
            shift, deviation = self.known.shift(moments, len(slide))
            yield SlideFamiliarity(
                (rank / (2 * len(spots))).float().numpy(), shift, self.limit, deviation.float().numpy()
            )

    def save(self) -> tuple[bytes, dict[str, str]]:
        """Give the content of a safetensors file, and what the JSON of the model says of it."""
        tensors = {name: getattr(self.known, name) for name in _KNOWN} | {name: getattr(self, name) for name in _OWN}
        raw = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        return raw, {"held_out": self.held_out, "sha256": hashlib.sha256(raw).hexdigest()}

    @classmethod
    def load(cls, raw: bytes, record: Mapping[str, Any], dim: int) -> Self:
        """Read what :meth:`save` gave.

        Parameters
        ----------
        raw, record
            As :meth:`save` returned them.
        dim
            Width of a token of the model.

        Raises
        ------
        ValueError
            If the file is damaged, or of another model.
        """
        if hashlib.sha256(raw).hexdigest() != record.get("sha256"):
            raise ValueError("is truncated or damaged (its checksum differs)")
        tensors = load_tensors(raw)
        if set(tensors) != {*_KNOWN, *_OWN} or tensors["whiten"].shape != (dim, dim):
            raise ValueError(f"does not describe features of {dim} columns")
        known = Known(*(tensors[name] for name in _KNOWN))
        return cls(known, tensors["limits"], tensors["spots"], tensors["shifts"], str(record["held_out"]))


def _parts(groups: Sequence[str]) -> tuple[str, list[int]]:
    """Say what is held out in turn, and give the number of the part that each slide belongs to."""
    if len(groups) == 1:
        return "block", [0]
    names = sorted(set(groups))
    if len(names) == 1:
        return "slide", [i % _PARTS for i in range(len(groups))]
    kind = "slide" if len(names) == len(groups) else "group"
    return kind, [names.index(group) % _PARTS for group in groups]
