"""Which spots make a batch, in one process or dealt to several."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler


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
    """

    slide: Tensor
    rows: Tensor
    size: int
    n_slides: int
    generator: Generator
    rank: int = 0
    world_size: int = 1

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
            here = self.rows[torch.isin(of, some)]
            here = here[torch.randperm(len(here), generator=generator)]
            found += here.tensor_split(max(1, round(len(here) / self.size)))
        for i in torch.randperm(len(found), generator=generator).tolist():
            yield found[i]

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
        lengths = torch.bincount(self.slide[self.rows])
        lengths = lengths[lengths > 0].sort().values
        n_sets = -(-len(lengths) // self.n_slides)
        fewest = int(lengths[: len(lengths) // n_sets].sum())  # the smallest slides meet in one set
        most = int(lengths[-len(lengths) // n_sets :].sum())  # the largest
        return min(n // max(1, round(n / self.size)) for n in range(fewest, most + 1)) // self.world_size
