"""The data of a run: an index over the tile banks of its slides. A batch reads what its model needs, and nothing else."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from gdml.features import MemoryBank
from gdml.models.base import Shape
from gdml.models.batch import Batch, Nearest, Slides, Visitors

from .context import MAX_CONTEXT, N_NEAREST, even_subset, nearest_spots
from .frame import Frame, depth_weights
from .slide import SlideSpots
from .units import SlideUnits

_PARTS = ("tokens", "neighbors")
_CACHE_BYTES = 1 << 25


@dataclass
class _Context:
    """The context of one slide, read once: as :class:`gdml.models.Slides`, with what visitors need to find it."""

    slides: Slides
    place: Tensor  # (n,) int64 row of each spot in the context, -1 for the others
    tree: KDTree | None

    @classmethod
    @torch.inference_mode(False)  # what prediction reads first, training may use later
    def of(cls, slide: SlideSpots, rows: NDArray[np.int64]) -> Self:
        whole = len(rows) == len(slide)
        xy = slide.xy[rows]
        place = torch.full((len(slide),), -1, dtype=torch.int64)
        place[rows] = torch.arange(len(rows))
        slides = Slides(
            features=torch.from_numpy(slide.bank.pooled(slide.own[rows])).float(),
            grid=torch.from_numpy(slide.grid[rows]),
            lengths=(len(rows),),
            nearest=torch.from_numpy((slide.nearest if whole else nearest_spots(xy)).astype(np.int64)),
            extent=torch.from_numpy(slide.grid.max(0) + 1)[None],
        )
        return cls(slides, place, None if whole else KDTree(xy.astype(np.float64)))

    @property
    def nbytes(self) -> int:
        return 4 * self.slides.features.numel() + 8 * (len(self.place) + self.slides.nearest.numel())  # type: ignore[union-attr]


class _Contexts:
    """Contexts of the slides used last, of a bounded total size; all views of a data set share one."""

    def __init__(self, most_bytes: int = _CACHE_BYTES) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[tuple[SlideSpots, int], _Context] = OrderedDict()
        self._rows: dict[tuple[SlideSpots, int], NDArray[np.int64]] = {}  # small, and slow to find on large slides

    def get(self, slide: SlideSpots, most: int) -> _Context:
        key = (slide, most)
        if key not in self._rows:
            self._rows[key] = even_subset(slide.xy, most)
        found = self._held.pop(key, None) or _Context.of(slide, self._rows[key])
        self._held[key] = found
        while len(self._held) > 1 and sum(context.nbytes for context in self._held.values()) > self.most_bytes:
            self._held.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"most_bytes": self.most_bytes, "_held": OrderedDict(), "_rows": {}}


@dataclass(eq=False)
class SpotData:
    """All spots of some slides, the rows of a slide next to each other.

    Views of it (``select``, ``learning_from``) share its banks and targets.

    Parameters
    ----------
    slides
        The slides.
    expression
        (n, M) float32 expression of the panel genes; None at prediction.
    counts
        (n, M) float32 raw counts of the panel genes, for the models that learn from them.
    seen
        (n,) bool, the spots that are learnt from: the expression of the others is not shown to their neighbours.
        None: all.
    depth
        (n,) float32 total count of each spot, over all genes; for the frames that weigh spots by it.
    units
        Units that batches are in, see ``in_frame``; None: as the data are.
    max_context
        Spots of a slide that slide attention reads; on larger slides they are a spatially even subset, and the other
        spots attend to them.
    """

    slides: Sequence[SlideSpots]
    expression: Tensor | None = None
    counts: Tensor | None = None
    seen: Tensor | None = None
    depth: Tensor | None = None
    units: SlideUnits | None = None
    max_context: int = MAX_CONTEXT
    _contexts: _Contexts = field(default_factory=_Contexts, repr=False)

    def __post_init__(self) -> None:
        self._lengths = torch.tensor([len(slide) for slide in self.slides], dtype=torch.int64)
        self._starts = self._lengths.cumsum(0) - self._lengths

    @classmethod
    def in_memory(
        cls,
        *,
        tokens: Tensor,
        pooled: Tensor,
        neighbors: Tensor,
        neighbor_mask: Tensor,
        grid: Tensor,
        xy: Tensor,
        slide: Tensor,
        names: Sequence[str],
        groups: Sequence[str],
        **targets: Any,
    ) -> Self:
        """Make a data set of features that are held in memory.

        Parameters
        ----------
        tokens, pooled, neighbors, neighbor_mask
            (n, T, D), (n, D), (n, K, D) float16 and (n, K) bool, as :class:`gdml.models.Batch` has them.
        grid, xy
            (n, 2) int64 and float32, as :class:`SlideSpots` has them.
        slide
            (n,) int64 number of each spot's slide, ascending.
        names, groups
            Of the slides.
        **targets
            ``expression``, ``counts``, ``seen`` and ``max_context``.
        """
        slides = []
        for i, (name, group) in enumerate(zip(names, groups, strict=True)):
            here = slide == i
            mask = neighbor_mask[here].numpy()
            around = np.full(mask.shape, -1, np.int32)
            n = int(here.sum())
            around[mask] = n + np.arange(mask.sum())
            own = pooled[here].half().numpy()
            bank: Any = MemoryBank(
                tokens[here].half().numpy(), np.concatenate([own, neighbors[here].half().numpy()[mask]])
            )
            places = (grid[here].numpy(), xy[here].float().numpy())
            slides.append(SlideSpots(name, group, bank, np.arange(n, dtype=np.int32), around, *places))
        return cls(slides, **targets)

    def __len__(self) -> int:
        return int(self._lengths.sum())

    @property
    def names(self) -> list[str]:
        """Names of the slides."""
        return [slide.name for slide in self.slides]

    @property
    def groups(self) -> list[str]:
        """Group of each slide."""
        return [slide.group for slide in self.slides]

    @cached_property
    def slide(self) -> Tensor:
        """(n,) int64 number of each spot's slide."""
        return torch.repeat_interleave(torch.arange(len(self.slides)), self._lengths)

    def shape(self) -> Shape:
        """Sizes that the data give a model."""
        first = self.slides[0]
        n_rows, n_cols = np.max([slide.grid.max(0) + 1 for slide in self.slides if len(slide)], axis=0)
        return Shape(
            dim=first.bank.dim,
            n_tokens=first.bank.n_tokens,
            n_side=round(first.neighbors.shape[1] ** 0.5),
            n_genes=0 if self.expression is None else self.expression.shape[1],
            n_rows=int(n_rows),
            n_cols=int(n_cols),
        )

    def rows_of(self, slide: int) -> Tensor:
        """Rows of a slide, (n_slide,) int64."""
        start = int(self._starts[slide])
        return torch.arange(start, start + int(self._lengths[slide]))

    def learning_from(self, rows: Tensor) -> Self:
        """Give a view of the same spots, of which ``rows`` are learnt from."""
        return replace(self, seen=torch.zeros(len(self), dtype=torch.bool).index_fill_(0, rows, True))

    def fit_frame(self, frame: Frame, needs: Collection[str] = _PARTS) -> Self:
        """Fit a frame to the spots that are learnt from, and give a view of all spots in its units.

        Parameters
        ----------
        frame
            To be fitted.
        needs
            Parts that the model reads.

        Raises
        ------
        ValueError
            If spots are to be weighed by their depth, which is not known.
        """
        if self.expression is None:
            raise ValueError("A frame is fitted to spots with expression.")
        if frame.config.weights == "depth" and self.depth is None:
            raise ValueError(
                "The frame weighs spots by their total counts, which are absent: pass frame={'weights': 'equal'}."
            )
        rows = torch.arange(len(self)) if self.seen is None else self.seen.nonzero()[:, 0]
        by_slide = {self.slides[i]: rows[self.slide[rows] == i] for i in self.slide[rows].unique().tolist()}
        if frame.config.features == "slide":
            for part in _feature_parts(needs):
                frame.fit_features(part, [slide.moments(part) for slide in by_slide])
        medians, weights = {}, [torch.ones(len(rows))]
        if frame.config.weights == "depth":
            depths = [self.depth[own] for own in by_slide.values()]  # type: ignore[index]
            medians = {slide: max(float(depth.median()), 1.0) for slide, depth in zip(by_slide, depths, strict=True)}
            weights = [depth_weights(depth, medians[slide]) for slide, depth in zip(by_slide, depths, strict=True)]
        targets = frame.fit_targets([self.expression[own] for own in by_slide.values()], torch.cat(weights))
        return replace(self, units=SlideUnits(frame, dict(zip(by_slide, targets, strict=True)), medians))

    def in_frame(self, frame: Frame | None) -> Self:
        """Give a view of the same spots in the units of a fitted frame; None: as they are."""
        return replace(self, units=None if frame is None else SlideUnits(frame))

    def select(self, slides: Sequence[int]) -> Self:
        """Give a view of some slides, in the order given."""
        slides = list(slides)
        if slides == list(range(slides[0], slides[0] + len(slides))):  # side by side: targets need not be copied
            start = int(self._starts[slides[0]])
            rows: Any = slice(start, start + int(self._lengths[slides].sum()))
        else:
            rows = torch.cat([self.rows_of(slide) for slide in slides])
        targets = {name: getattr(self, name) for name in ("expression", "counts", "seen", "depth")}
        cut: Any = {name: None if part is None else part[rows] for name, part in targets.items()}
        return replace(self, slides=[self.slides[i] for i in slides], **cut)

    def batch(self, rows: Tensor, needs: Collection[str] = _PARTS) -> Batch:
        """Read a batch: the spots of ``rows`` (N,).

        ``needs`` are the parts that a model names, see :class:`gdml.models.Batch`; no others are read.
        """
        parts = self._parts(rows)
        read = lambda part: self._gather(parts, len(rows), lambda slide, at: self._features(slide, at, part))
        tokens = read("tokens") if "tokens" in needs else None
        pooled = read("pooled")
        neighbors, mask = self._neighbors(parts, len(rows), "neighbors" in needs)
        return Batch(
            tokens=pooled.new_empty(len(rows), 0, pooled.shape[1]) if tokens is None else tokens,
            pooled=pooled,
            neighbors=neighbors,
            neighbor_mask=mask,
            slide=self.slide[rows],
            spot=rows,
            summary=read("summary") if "summary" in needs else None,
            stripe=self._gather(parts, len(rows), lambda slide, at: torch.from_numpy(slide.stripe[at])).long(),
            **(self._context(parts, len(rows)) if "slides" in needs else {}),
            expression=self.targets(rows),
            weight=self._weights(rows),
            counts=None if self.counts is None or "counts" not in needs else self.counts[rows],
            nearest=self._nearest(parts, rows) if "nearest" in needs else None,
        )

    def in_order(self, rows: Tensor, size: int, needs: Collection[str] = _PARTS, device: Any = None) -> Iterator[Batch]:
        """Batches over ``rows``, slide by slide.

        Parameters
        ----------
        rows
            (n,) rows of the run.
        size
            Spots of a batch, at most.
        needs
            As in :meth:`batch`.
        device
            Move the batches there, those of a slide with one context and one memo; see ``memo`` of
            :class:`gdml.models.Slides`. None: batches on the CPU, without a memo.
        """
        of = self.slide[rows]
        for slide in of.unique():
            context = None
            for cut in rows[of == slide].split(size):
                batch = self.batch(cut, needs)
                if device is not None:
                    if batch.slides is not None:
                        context = context or replace(batch.slides, memo={}).to(device)
                        batch.slides = context
                    batch = batch.to(device)
                yield batch

    def _parts(self, rows: Tensor) -> list[tuple[SlideSpots, Tensor, NDArray[np.int64]]]:
        """Slides that rows touch, in order; the places of their spots among the rows; their rows on the slide."""
        of = self.slide[rows]
        found = []
        for slide in of.unique().tolist():
            here = (of == slide).nonzero()[:, 0]
            found.append((self.slides[slide], here, (rows[here] - self._starts[slide]).numpy()))
        return found

    def _features(self, slide: SlideSpots, at: NDArray[np.integer], part: str) -> Tensor:
        """Read a part of the features of some spots of a slide, float32, in the units of the data set."""
        found = slide.part(part, at)
        return found if self.units is None else self.units.features(slide, part, found)

    def _pooled(self, slide: SlideSpots, tiles: NDArray[np.integer]) -> Tensor:
        """Pooled features of tiles (n,) of the bank, (n, D) float32, in the units of the data set."""
        found = torch.from_numpy(slide.bank.pooled(tiles)).float()
        return found if self.units is None else self.units.features(slide, "pooled", found)

    def targets(self, rows: Tensor) -> Tensor | None:
        """Expression of some spots on the scale that is learnt, rows (...) to (..., M)."""
        if self.expression is None or self.units is None:
            return None if self.expression is None else self.expression[rows]
        found = torch.empty(*rows.shape, self.expression.shape[1])
        of = self.slide[rows]
        for slide in of.unique().tolist():
            here = of == slide
            found[here] = self.units.expression(self.slides[slide], self.expression[rows[here]])
        return found

    def _weights(self, rows: Tensor) -> Tensor | None:
        """Weight of some spots, (N,); None where all weigh the same."""
        if self.units is None or not self.units.median_depth:
            return None
        found, of = torch.empty(len(rows)), self.slide[rows]
        for slide in of.unique().tolist():
            here = of == slide
            found[here] = self.units.weights(self.slides[slide], self.depth[rows[here]])  # type: ignore[index]
        return found

    @staticmethod
    def _gather(
        parts: Sequence[tuple[SlideSpots, Tensor, NDArray[np.int64]]],
        n: int,
        read: Callable[[SlideSpots, NDArray[np.int64]], Tensor],
    ) -> Tensor:
        """Read rows slide by slide, and put them in the order of the batch."""
        values = [read(slide, at) for slide, _, at in parts]
        if len(parts) == 1:
            return values[0]
        out = values[0].new_empty(n, *values[0].shape[1:])
        for value, (_, here, _) in zip(values, parts, strict=True):
            out[here] = value
        return out

    def _neighbors(self, parts: Any, n: int, wanted: bool) -> tuple[Tensor, Tensor]:
        """Read each distinct neighbour tile once: (N, K, D) float32 and (N, K) bool."""
        dim = self.slides[0].bank.dim
        if not wanted:
            return torch.empty(n, 0, dim), torch.empty(n, 0, dtype=torch.bool)
        tiles, total = [torch.zeros(1, dim)], 1  # the first row stands for what is outside the image

        def places(slide: SlideSpots, at: NDArray[np.int64]) -> Tensor:
            nonlocal total
            around = slide.neighbors[at]
            inside = around >= 0
            distinct, place = np.unique(around[inside], return_inverse=True)
            found = np.zeros(around.shape, np.int64)
            found[inside] = place + total
            tiles.append(self._pooled(slide, distinct))
            total += len(distinct)
            return torch.from_numpy(found)

        index = self._gather(parts, n, places)
        return torch.cat(tiles)[index], index > 0

    def _context(self, parts: Any, n: int) -> dict[str, Any]:
        """Slides of a batch, its visitors, and the row of each spot among them."""
        contexts = [self._contexts.get(slide, self.max_context) for slide, _, _ in parts]
        held = [context.slides for context in contexts]
        if self.units is not None:
            held = [
                replace(one, features=self.units.features(slide, "pooled", one.features))
                for one, (slide, _, _) in zip(held, parts, strict=True)
            ]
        starts = np.cumsum([0, *(len(slides.grid) for slides in held)]).tolist()
        if len(held) == 1:
            slides = held[0]
        else:
            slides = Slides(
                features=torch.cat([one.features for one in held]),
                grid=torch.cat([one.grid for one in held]),
                lengths=tuple(length for one in held for length in one.lengths),
                nearest=torch.cat([one.nearest + start for one, start in zip(held, starts, strict=False)]),  # type: ignore[operator]
                extent=torch.cat([one.extent for one in held]),  # type: ignore[misc]
            )
        index = torch.empty(n, dtype=torch.int64)
        visitors: list[Visitors] = []
        n_rows = starts[-1]
        for i, (context, (slide, here, at), start) in enumerate(zip(contexts, parts, starts, strict=False)):
            index[here] = context.place[at] + start
            outside = context.place[at] < 0
            if context.tree is not None and outside.any():
                found = self._visitors(slide, i, at[outside.numpy()], context.tree, start, n_rows)
                index[here[outside]] = found.nearest[:, 0]  # type: ignore[index]
                visitors.append(found)
                n_rows += len(found.grid)
        joined = None
        if visitors:
            joined = Visitors(*(torch.cat([getattr(v, name) for v in visitors]) for name in _VISITOR_PARTS))
        return {"slides": slides, "visitors": joined, "index": index}

    def _visitors(
        self, slide: SlideSpots, number: int, at: NDArray[np.int64], tree: KDTree, start: int, first: int
    ) -> Visitors:
        """Spots of a large slide outside its context; their rows count from ``first``, those of the context from ``start``."""
        itself = first + torch.arange(len(at))
        k = min(N_NEAREST - 1, tree.n)
        around = tree.query(slide.xy[at].astype(np.float64), k=range(1, k + 1))[1]
        return Visitors(
            features=self._features(slide, at, "pooled"),
            grid=torch.from_numpy(slide.grid[at]),
            slide=torch.full((len(at),), number),
            nearest=torch.cat([itself[:, None], torch.from_numpy(around) + start], 1),
        )

    def _nearest(self, parts: Any, rows: Tensor) -> Nearest:
        """Read the spots around each spot: their tokens, and their expression where it is learnt from."""
        around = self._gather(parts, len(rows), lambda slide, at: torch.from_numpy(slide.nearest[at])).long()
        around += self._starts[self.slide[rows]][:, None]
        distinct, place = around.unique(return_inverse=True)
        of_tokens = lambda slide, at: self._features(slide, at, "tokens")
        tokens = self._gather(self._parts(distinct), len(distinct), of_tokens)[place]
        expression = self.targets(around)
        if expression is not None and self.seen is not None:
            expression = expression.masked_fill(~self.seen[around][..., None], torch.nan)
        return Nearest(tokens, expression)


_VISITOR_PARTS = ("features", "grid", "slide", "nearest")


def _feature_parts(needs: Collection[str]) -> list[str]:
    """Features that are read where a model names ``needs``, by the names of :class:`Frame`; pooled ones always are."""
    tokens = ["tokens"] if set(needs) & {"tokens", "nearest"} else []
    return ["pooled", *tokens, *(["summary"] if "summary" in needs else [])]


@dataclass(frozen=True)
class Batches:
    """Batches over ``rows`` (n,) of a data set, slide by slide; each iteration reads them anew.

    ``size`` and ``needs`` are those of :meth:`SpotData.in_order`.
    """

    data: SpotData
    rows: Tensor
    size: int
    needs: Collection[str] = _PARTS

    def __iter__(self) -> Iterator[Batch]:
        return self.data.in_order(self.rows, self.size, self.needs)
