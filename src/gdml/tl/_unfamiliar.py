"""Say which slides and spots are unlike those that a model learnt from."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count, some
from gdml.spots.resolve import Spots

if TYPE_CHECKING:
    from gdml.training.data import SpotData
    from gdml.training.familiarity import Familiarity, SlideFamiliarity

OOD = "ood"  # part of the record of predictions
UNLIKE, LIKE = "unlike the training slides", "like the training slides"
_N_FEATURES = 3
#: Share of unusual spots from which on they are said: twice that of held-out training spots.
_MANY = 0.1


@dataclass(frozen=True)
class Judged:
    """How unusual spots and slides are.

    Parameters
    ----------
    spots
        (n_obs,) float32, in the order of the AnnData.
    slides
        A row for each slide, as :func:`gdml.tl.predict` describes it.
    """

    spots: NDArray[np.float32]
    slides: pd.DataFrame


def judge(spots: Spots, data: "SpotData", familiarity: "Familiarity | None") -> Judged | None:
    """Compare spots and slides with those that a model learnt from.

    Parameters
    ----------
    spots
        Embedded spots.
    data
        Their features.
    familiarity
        Of the model.

    Returns
    -------
    None where the model was saved without a description of its training features.
    """
    if familiarity is None:
        return None
    names = (spots.record(_keys.FEATURES) or {}).get("names")
    values, rows = np.empty(len(spots), np.float32), {}
    for (slide, at), found in zip(spots.slides.items(), familiarity.score(data), strict=True):
        values[at] = found.spots
        rows[slide] = {
            "shift": found.shift,
            "limit": found.limit,
            "unusual_spots": found.unusual,
            "features": _most(found, names),
            "verdict": UNLIKE if found.unlike else LIKE,
        }
    return Judged(values, pd.DataFrame.from_dict(rows, orient="index"))


def _most(found: "SlideFamiliarity", names: Any) -> str:
    """Name the features that deviate most, with their difference in standard deviations."""
    most = np.abs(found.deviation).argsort(kind="stable")[::-1][:_N_FEATURES]
    name = lambda i: f"feature {i}" if names is None else str(names[i])
    return ", ".join(f"{name(i)} {found.deviation[i]:+.1f} SD" for i in most)


def write_judged(adata: AnnData, judged: Judged | None, key: str) -> None:
    """Write the scores of spots to ``obs``; those of an earlier model do not stay."""
    column = _keys.unfamiliar(key)
    if judged is not None:
        adata.obs[column] = judged.spots
    elif column in adata.obs:
        del adata.obs[column]


def unlike(judged: pd.DataFrame | None) -> dict[str, str]:
    """Why slides are unlike the training slides, by slide; from the table of :func:`judge`."""
    if judged is None:
        return {}
    found = judged[judged["verdict"] == UNLIKE]
    return {
        str(
            slide
        ): f"shift {row['shift']:.1f}, usual up to {row['limit']:.1f}; {row['unusual_spots']:.0%} unusual spots; "
        f"most different: {row['features']}"
        for slide, row in found.iterrows()
    }


def say_unusual(judged: pd.DataFrame | None, key: str) -> str:
    """Say on which slides, of those that are like the training slides, many spots are unusual: for the log."""
    if judged is None:
        return f"; the model cannot tell unusual slides: fit it again for obs[{_keys.unfamiliar(key)!r}]"
    found = judged[(judged["verdict"] == LIKE) & (judged["unusual_spots"] >= _MANY)]
    if found.empty:
        return ""
    said = some([f"{share:.0%} of {str(slide)!r}" for slide, share in found["unusual_spots"].items()], 3)
    return f"; unusual spots (pen, folds, another tissue?): {said}, see obs[{_keys.unfamiliar(key)!r}]"


def say_of_many(table: pd.DataFrame) -> str:
    """Say how many slides of a corpus are unlike the training slides, or have many unusual spots: for the log.

    Parameters
    ----------
    table
        With ``verdict`` (empty where it is not known) and ``unusual_spots``.
    """
    known = table[table["verdict"] != ""]
    if known.empty:
        return ""
    n_unlike = int((known["verdict"] == UNLIKE).sum())
    n_many = int(((known["verdict"] == LIKE) & (known["unusual_spots"] >= _MANY)).sum())
    said = f"; {n_many} with many unusual spots (pen, folds, another tissue?)" if n_many else ""
    return f"{said}; {n_unlike} unlike the training slides"


def warn_of_unlike(reasons: dict[str, str], *, stacklevel: int) -> None:
    """Warn of slides that are unlike anything that the model has seen; ``reasons`` as :func:`unlike` gives them."""
    if reasons:
        said = some([f"{slide!r} ({reason})" for slide, reason in reasons.items()], 3)
        what = count(len(reasons), "slide")
        warnings.warn(
            f"{what} {'is' if len(reasons) == 1 else 'are'} unlike anything that the model has learnt from: {said}. "
            "Another stain, scanner, tissue or scale, or blur: do not trust the predictions there without measured spots "
            "to check them.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
