"""Which spots make a batch, in one process or dealt to several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

#: A spot is drawn at most so often in an epoch, however small its group is.
MOST_DRAWS = 2


def balanced_counts(slide: Tensor, rows: Tensor, groups: Sequence[str]) -> Tensor:
    """Spots to draw of each slide in an epoch, so that all groups have about as many, and an epoch as many as before.

    Parameters
    ----------
    slide
        (n,) int64 number of the slide of every spot of the run.
    rows
        (m,) rows of the run to draw from.
    groups
        Group of each slide.

    Returns
    -------
    (n_slides,) int64. Of a small group each spot is drawn ``MOST_DRAWS`` times at most; the slides of a group keep their
    proportion.
    """
    spots = torch.bincount(slide[rows], minlength=len(groups))
    names = sorted(set(groups))
    group = torch.tensor([names.index(name) for name in groups])
    of_group = torch.zeros(len(names)).index_add(0, group, spots.float())
    rate = (len(rows) / (of_group > 0).sum() / of_group.clamp(min=1)).clamp(max=MOST_DRAWS)
    return (spots * rate[group]).round().long().clamp(min=1) * (spots > 0)


@dataclass(eq=False)
class SlideSampler(Sampler[Tensor]):
    """Batches of spots from few slides each, in random order: one iteration is one epoch.

    In each epoch the slides are dealt anew into sets of about equal number, and the spots of a set are divided evenly,
    so that no batch is much smaller than the others. Of several processes, each gets an equal share of every batch,
    cut so that it reads as few slides as possible; the batches themselves do not depend on the number of processes.

    Parameters
    ----------
    slide
        (n,) int64 number of the slide of every spot of the run.
    rows
        (m,) rows of the run to draw from.
    size
        Spots of a batch, approximately.
    n_slides
        Slides of a batch, at most.
    generator
        Source of the random numbers, the same in all processes.
    rank, world_size
        Number of this process, and of all processes.
    counts
        (n_slides,) int64 spots to draw of each slide in an epoch, as of :func:`balanced_counts`: a slide with fewer
        spots gives some of them twice, one with more leaves some out. None: every spot once.
    """

    slide: Tensor
    rows: Tensor
    size: int
    n_slides: int
    generator: Generator
    rank: int = 0
    world_size: int = 1
    counts: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches(self.generator):
            yield self._share(batch)

    def batches(self, generator: Generator) -> Iterator[Tensor]:
        """Whole batches of one epoch, (N,) int64 rows each."""
        of = self.slide[self.rows]
        present = of.unique()
        present = present[torch.randperm(len(present), generator=generator)]
        found: list[Tensor] = []
        for some in present.tensor_split(-(-len(present) // self.n_slides)):
            here = self.rows[torch.isin(of, some)] if self.counts is None else self._drawn(of, some, generator)
            here = here[torch.randperm(len(here), generator=generator)]
            found += here.tensor_split(max(1, round(len(here) / self.size)))
        for i in torch.randperm(len(found), generator=generator).tolist():
            yield found[i]

    def _drawn(self, of: Tensor, slides: Tensor, generator: Generator) -> Tensor:
        """Rows that are drawn of some slides; ``of`` (m,) is the slide of each of the rows."""
        found = []
        for number in slides.tolist():
            rows = self.rows[of == number]
            times, rest = divmod(int(self.counts[number]), len(rows))  # type: ignore[index]
            found += [rows] * times
            if rest:
                found.append(rows[torch.randperm(len(rows), generator=generator)[:rest]])
        return torch.cat(found)

    def _share(self, batch: Tensor) -> Tensor:
        """Spots of this process, slides kept together; at least one spot."""
        if self.world_size == 1:
            return batch
        by_slide = batch[self.slide[batch].argsort(stable=True)]
        share = by_slide.tensor_split(self.world_size)[self.rank]
        return share if len(share) else by_slide[:1]

    def n_batches(self) -> int:
        """Batches of an epoch; where slides differ in size, of a typical one."""
        return sum(1 for _ in self.batches(Generator()))

    def smallest(self) -> int:
        """Least number of spots that a batch can have, however the slides are dealt."""
        lengths = torch.bincount(self.slide[self.rows]) if self.counts is None else self.counts
        lengths = lengths[lengths > 0].sort().values
        n_sets = -(-len(lengths) // self.n_slides)
        fewest = int(lengths[: len(lengths) // n_sets].sum())  # the smallest slides meet in one set
        most = int(lengths[-len(lengths) // n_sets :].sum())  # the largest
        return min(n // max(1, round(n / self.size)) for n in range(fewest, most + 1)) // self.world_size
