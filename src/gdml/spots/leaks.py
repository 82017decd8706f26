"""Slides of different groups that are not independent: copies, sections of one block, groups that contradict names."""

import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform

from gdml._errors import some
from gdml._provenance import row_digests

from .provenance import fingerprint
from .resolve import Spots

if TYPE_CHECKING:
    from gdml.training.data import SpotData

#: Share of the spots of the smaller of two slides whose counts the other has, too, from which one is a copy.
COPIED = 0.5
_SMALL = 1e-6
_N_GENES = 1000  # whose profile is compared: those with the most counts
_LEAST_SPOTS = 100  # of a slide whose halves are compared: those of fewer differ by chance
#: Words that slides of different patients share.
_WORDS = frozenset(
    "case control ctl ctrl disease donor healthy id image img ko lib library mouse normal patient rep replicate sample "
    "section slide spot st subject treated tumor tumour untreated visium wt".split()
)
#: What is said of pairs of slides.
_IMAGE, _COPY = "show the same image", "have the same counts"
_ALIKE = "are as alike as two halves of one slide, in counts and image, as sections of one block are"

Pairs = list[tuple[str, str]]


def warn_of_leaks(
    spots: Spots,
    data: "SpotData",
    groups: Mapping[str, str],
    *,
    group_key: str | None,
    layer: str | None,
    stacklevel: int,
) -> None:
    """Warn, once, of slides of different groups that are not independent.

    Parameters
    ----------
    spots
        Tiled and embedded.
    data
        Their features.
    groups
        Group of each slide.
    group_key
        The column of the groups; None: each slide is its own.
    layer
        Layer of the raw counts. Where there are none, counts are not compared.
    stacklevel
        Of the warning.
    """
    try:
        counts = spots.counts(layer)
    except (KeyError, ValueError):
        counts = None
    found = {_IMAGE: same_image(spots)}
    if counts is not None:
        found[_COPY] = same_counts(counts, spots.slides)
        found[_ALIKE] = likeness(counts, data, spots).pairs()
    told: set[frozenset[str]] = set()
    for what, pairs in found.items():  # of several reasons the strongest, which is the first
        found[what] = [pair for pair in pairs if groups[pair[0]] != groups[pair[1]] and frozenset(pair) not in told]
        told |= {frozenset(pair) for pair in found[what]}
    said = [f"{some([f'{a!r} and {b!r}' for a, b in pairs])} {what}" for what, pairs in found.items() if pairs]
    if said:
        column = group_key or spots.library_key
        merged = _merged([(groups[a], groups[b]) for pairs in found.values() for a, b in pairs])
        said = [
            f"{'; '.join(said)}. In different groups they let a model be scored on what it has learnt from. If they are of one "
            f'{group_key or "patient"}: adata.obs["block"] = adata.obs[{column!r}].astype(str).replace({merged}), and group_key="block".'
        ]
    if group_key is not None:
        strange = contradicted(groups)
        if strange:
            said.append(
                f"obs[{group_key!r}] puts slides in different groups whose names suggest one ("
                + some([f"{a!r} in {groups[a]!r}, {b!r} in {groups[b]!r}" for a, b in strange])
                + "): check it."
            )
    if said:
        warnings.warn("Slides " + " ".join(said), UserWarning, stacklevel=stacklevel + 1)


def same_image(spots: Spots) -> Pairs:
    """Find pairs of slides with the same image, by its fingerprint."""
    by_image = defaultdict(list)
    for slide in spots.slides:
        by_image[fingerprint(spots, slide)].append(slide)
    return [pair for slides in by_image.values() for pair in combinations(slides, 2)]


def same_counts(counts: Any, slides: Mapping[str, NDArray[np.intp]]) -> Pairs:
    """Find pairs of slides of which one has the counts of at least half of the spots of the other.

    Parameters
    ----------
    counts
        (n_obs, n_vars) raw counts.
    slides
        Rows of each slide.
    """
    digests, present = row_digests(counts), np.asarray(counts.sum(1)).reshape(-1) > 0
    holders: dict[bytes, set[str]] = defaultdict(set)
    for slide, rows in slides.items():
        for row in rows[present[rows]]:
            holders[digests[row]].add(slide)
    shared = Counter(pair for held in holders.values() for pair in combinations(sorted(held), 2))
    return [(a, b) for (a, b), n in shared.items() if n >= COPIED * min(len(slides[a]), len(slides[b]))]


@dataclass(frozen=True)
class Likeness:
    """How alike slides are, beside the halves of each.

    Parameters
    ----------
    names
        The slides, of 100 spots or more.
    counts, features
        (n, n) correlation of the profiles of expression of two slides, and difference of their features.
    least, most
        (n,) the same of two halves of each slide: of two cuts the smaller correlation and the larger difference.
    """

    names: list[str]
    counts: NDArray[np.float64]
    features: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]

    def pairs(self) -> Pairs:
        """Pairs of slides that are as alike as the halves of each of them, in both ways."""
        counts = self.counts >= np.maximum.outer(self.least, self.least)
        features = self.features <= np.minimum.outer(self.most, self.most)
        return [(self.names[i], self.names[j]) for i, j in zip(*np.nonzero(np.triu(counts & features, 1)), strict=True)]


def likeness(counts: Any, data: "SpotData", spots: Spots) -> Likeness:
    """Compare slides with each other, and the halves of each.

    A slide is cut in two, across and along. Profiles of expression are the logarithm of the counts per 10,000 of the
    1,000 genes with the most counts; features are compared by the root mean square difference of their means, in
    standard deviations between spots. Slides are compared by every second spot, so that they have as many counts as halves.

    Parameters
    ----------
    counts
        (n_obs, n_vars) raw counts.
    data
        Features of the spots.
    spots
        The spots.
    """
    total = lambda rows: np.asarray(counts[rows].sum(0), np.float64).reshape(-1)
    share = {name: total(rows) for name, rows in spots.slides.items() if len(rows) >= _LEAST_SPOTS}
    share = {name: one / one.sum() for name, one in share.items() if one.sum() > 0}
    if len(share) < 2:
        return Likeness([], np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0), np.zeros(0))
    top = np.argsort(-np.sum(list(share.values()), 0), kind="stable")[:_N_GENES]
    slides = {slide.name: slide for slide in data.slides}
    scale = np.sqrt(np.mean([slides[name].moments("pooled").std.numpy() ** 2 for name in share], 0))
    scale[scale < _SMALL] = 1.0

    def profile(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        found = total(rows)
        found = np.log1p(1e4 * found[top] / max(found.sum(), 1.0))
        return (found - found.mean()) / max(float(found.std()), _SMALL)

    profiles, means, least, most = [], [], [], []
    for name in share:
        rows, xy = spots.slides[name], spots.xy[spots.slides[name]]
        own = slides[name].part("pooled", np.arange(len(rows))).numpy() / scale
        cuts = [np.argsort(xy[:, k], kind="stable") for k in (0, 1)]
        halves = [np.array_split(cut, 2) for cut in cuts]
        least.append(min(float((profile(rows[a]) * profile(rows[b])).mean()) for a, b in halves))
        most.append(max(float(np.sqrt(np.square(own[a].mean(0) - own[b].mean(0)).mean())) for a, b in halves))
        second = np.sort(cuts[1][::2])
        profiles.append(profile(rows[second]))
        means.append(own[second].mean(0))
    alike = np.stack(profiles) @ np.stack(profiles).T / len(top)
    apart = squareform(pdist(np.stack(means))) / len(scale) ** 0.5
    return Likeness(list(share), alike, apart, np.array(least), np.array(most))


def contradicted(groups: Mapping[str, str]) -> Pairs:
    """Find pairs of slides in different groups whose names differ in their last number only, such as C2 and C3.

    Names are believed only where they say something: there are several stems, which are not words such as "tumor"; and the
    groups follow them elsewhere, by a group that is named as a stem, or by two slides that share stem and group.

    Parameters
    ----------
    groups
        Group of each slide.
    """
    stems = {slide: _stem(slide) for slide in groups}
    by_stem = defaultdict(list)
    for slide, stem in stems.items():
        if stem and stem not in _WORDS:
            by_stem[stem].append(slide)
    if len(by_stem) < 2:
        return []
    pairs = [pair for slides in by_stem.values() for pair in combinations(slides, 2)]
    named = any(groups[slide].lower() == stems[slide] for slide in groups)
    follows = named or any(groups[a] == groups[b] for a, b in pairs)
    return [(a, b) for a, b in pairs if groups[a] != groups[b]] if follows else []


def _stem(name: str) -> str:
    """Name of a slide without its last number, or the letter that follows its last number: ``"c"`` of ``"C2"``."""
    return re.sub(r"[\s_.-]*\d+$|(?<=\d)[a-z]$", "", name.lower()).strip(" _.-")


def _merged(pairs: Pairs) -> dict[str, str]:
    """Name that each group gets where the groups of each pair become one."""
    first: dict[str, str] = {}

    def root(group: str) -> str:
        while first.get(group, group) != group:
            group = first[group]
        return group

    for a, b in pairs:
        one, other = sorted((root(a), root(b)))
        first[other] = one
    return {group: root(group) for group in sorted(first) if root(group) != group}
