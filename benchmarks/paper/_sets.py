"""Data sets of the paper: slides, patients, and folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sklearn.model_selection import KFold

Folds = dict[str, tuple[list[str], list[str]]]


@dataclass(frozen=True)
class PaperSet:
    """A data set.

    Parameters
    ----------
    name
        As the presets of the models have it.
    title
        As the paper has it.
    patients
        Patient of each slide; the slides as their source names them.
    folds
        Patients that are scored together, by the name of the fold; none for a set that is not learnt from.
    n_spots
        Number of spots in the source's tables, before anything is dropped.
    hest
        Whether the source is HEST-1k; else the repository of HER2ST.
    note
        Caveat printed with its scores.
    """

    name: str
    title: str
    patients: Mapping[str, str]
    n_spots: int
    hest: bool
    folds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    def choose(self, slides: Sequence[str] | None) -> dict[str, str]:
        """Patients of the selected slides, or of all.

        Raises
        ------
        ValueError
            If there is no such slide.
        """
        unknown = [slide for slide in slides or () if slide not in self.patients]
        if unknown:
            known = ", ".join(self.patients)
            raise ValueError(f"--sections: {self.title} has no {', '.join(unknown)}; it has {known}.")
        return {slide: self.patients[slide] for slide in slides or self.patients}

    def splits(self, slides: Sequence[str]) -> Folds:
        """Training and test slides by fold, without folds that have no patient of the slides.

        Raises
        ------
        ValueError
            If the slides are of one fold alone, so that there is nothing to learn from.
        """
        parts = {fold: [s for s in slides if self.patients[s] in scored] for fold, scored in self.folds.items()}
        parts = {fold: test for fold, test in parts.items() if test}
        if len(parts) < 2:
            raise ValueError(f"--sections: {', '.join(slides)} are of one fold; name slides of two patients at least.")
        return {fold: ([s for s in slides if s not in test], test) for fold, test in parts.items()}


#: Ordered as the authors' folds were drawn.
STNET_PATIENTS = tuple(
    "BC23209 BC23270 BC23803 BC24105 BC24220 BC23268 BC23269 BC23272 BC23277 BC23287 BC23288 BC23377 "
    "BC23450 BC23506 BC23508 BC23567 BC23810 BC23895 BC23901 BC23903 BC23944 BC24044 BC24223".split()
)


def stnet_folds() -> dict[str, tuple[str, ...]]:
    """Assign the 23 patients of STNet to the eight folds of the authors."""
    dealt = KFold(8, shuffle=True, random_state=2021).split(STNET_PATIENTS)
    return {str(i): tuple(STNET_PATIENTS[j] for j in test) for i, (_, test) in enumerate(dealt)}


def _numbered(prefix: str, first: int, owners: str, each: int = 3) -> dict[str, str]:
    """Patients of samples with numbers that count down from ``first``, so many a patient (``BC1*2``: two)."""
    found = {}
    for owner in owners.split():
        patient, _, number = owner.partition("*")
        for _ in range(int(number or each)):
            found[f"{prefix}{first}"] = patient
            first -= 1
    return found


HER2ST = PaperSet(
    "her2st",
    "HER2ST",
    {f"{p}{i}": p for p in "ABCDEFGH" for i in range(1, 7 if p in "ABCD" else 4)},
    n_spots=13_620,  # the paper's count
    hest=False,
    folds={p: (p,) for p in "ABCDEFGH"},
)

# Samples, patients and numbers of spots under tissue: HEST-1k's table, version 1.1.0.
STNET = PaperSet(
    "stnet",
    "STNet",
    _numbered(
        "SPA",
        118,
        "BC23287 BC23450 BC23901*2 BC23944 BC24220 BC23567 BC23810 BC23903 BC24044 BC24105 BC23268 BC23269 "
        "BC23272 BC24223 BC23270 BC23277 BC23506 BC23508 BC23895 BC23209 BC23288 BC23377 BC23803",
    ),
    n_spots=30_655,
    hest=True,
    folds=stnet_folds(),
    note="HEST-1k has 30,655 spots under tissue of the 68,050 that the paper counts.",
)
SKINST = PaperSet(
    "skinst",
    "skinST",
    _numbered("NCBI", 770, "P2 P5 P9 P10"),
    n_spots=8_671,
    hest=True,
    folds={p: (p,) for p in ("P2", "P5", "P9", "P10")},
    note="HEST-1k has 8,671 spots under tissue of the 23,205 that the paper counts.",
)
VISIUM = PaperSet(
    "visium",
    "10x Visium",
    {"TENX13": "Block A", "TENX24": "lobular", "TENX53": "2022"},
    n_spots=3_813 + 4_325 + 4_898,
    hest=True,
    note=(
        "The paper does not name its three slides; the authors' folders say fresh-frozen breast. These are three of "
        "them, of different donors (Block A section 1; whole transcriptome, lobular; fresh frozen 2022), in no known "
        "order: --slides takes others."
    ),
)
SETS = {s.name: s for s in (HER2ST, STNET, SKINST)}
