"""What a comparison of models found: scores of every run, and the tables made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import metrics
from gdml._errors import did_you_mean

#: Scores in the order of the tables.
METRICS = ("pcc_a", "pcc_h", "pcc_h_best", "spearman", "mse", "mae")
_ERRORS = ("mse", "mae")  # means over spots, where the others are means over slides
_UNIT = ["fold", "slide"]
N_HIGH = 50
_N_BOOTSTRAP = 2000


@dataclass(repr=False)
class Comparison:
    """Result of :func:`gdml.tl.cross_validate` and :func:`gdml.tl.ablate`.

    Parameters
    ----------
    scores
        A row for each model, fold, seed, slide and gene: ``pcc``, ``spearman`` (NaN where the gene is constant),
        ``mse``, ``mae``, ``n_spots`` of the slide, and ``high``, whether the run's validation split found the gene
        among its 50 best.
    runs
        A row for each model, fold and seed: ``status`` (``"done"`` or ``"failed"``), ``error``, ``epoch``,
        ``seconds``, ``parameters``, ``n_train``, ``n_test``, ``n_genes``, ``n_constant`` (genes without variance in a
        test slide, left out of correlations).
    protocol
        ``"nested"``, ``"paper"`` or ``"hest-bench"``.
    note
        What has to be said wherever a score stands; empty where there is nothing.
    optimistic
        Whether the test slides had a part in a choice.
    variants
        Of an ablation: the values of the varied fields by model.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    protocol: str
    note: str = ""
    optimistic: bool = False
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        done = int((self.runs["status"] == "done").sum())
        head = f"Comparison: {self.runs['model'].nunique()} models, {done} of {len(self.runs)} runs, protocol {self.protocol!r}"
        text = head + (f"\n{self.note}" if self.note else "")
        return text + (f"\n{self.summary().to_string()}" if done else "")

    def _repr_html_(self) -> str:
        done = int((self.runs["status"] == "done").sum())
        note = f"<p><b>{self.note}</b></p>" if self.note else ""
        table = self.summary().to_html() if done else ""
        return f"<p>{self.runs['model'].nunique()} models, {done} of {len(self.runs)} runs, protocol {self.protocol!r}</p>{note}{table}"

    @property
    def models(self) -> list[str]:
        """Labels of the models that have scores, in the order they were asked for."""
        return list(dict.fromkeys(self.scores["model"]))

    def slides(self) -> pd.DataFrame:
        """Scores of each slide, averaged over seeds.

        Returns
        -------
        A row for each model, fold and slide: ``n_spots`` and

        ``pcc_a``, ``spearman``, ``mse``, ``mae``
            Means over genes.
        ``pcc_h``
            Mean correlation of the 50 genes that the run's validation split found best.
        ``pcc_h_best``
            Mean correlation of the 50 genes with the best rank, averaged over the folds' test slides. They are chosen by
            the score itself: **optimistic**, and what is published as PCC(H).
        """
        keys = ["model", *_UNIT]
        found = self._by_seed.groupby(keys, sort=False).mean(numeric_only=True).drop(columns="seed")
        return found.astype({"n_spots": int}).reset_index()

    def intervals(
        self, *, by_fold: bool = False, level: float = 0.95, n_bootstrap: int = _N_BOOTSTRAP, seed: int = 0
    ) -> pd.DataFrame:
        """Means of the scores with bootstrap intervals over slides.

        Slides are drawn with replacement (percentile bootstrap, Efron 1979); the same draws serve all models.

        Parameters
        ----------
        by_fold
            For each fold, instead of all slides together.
        level
            Of the interval.
        n_bootstrap
            Number of draws.
        seed
            Of the draws.

        Returns
        -------
        A row for each model and metric (and fold): ``mean``, over slides (errors: over spots); ``low`` and ``high``,
        NaN where there is one slide; ``sd_folds``, standard deviation of the folds' means; ``sd_seeds``, standard
        deviation over seeds of the mean.
        """
        slides, by_seed = self.slides(), self._by_seed
        keys = ["fold", "model"] if by_fold else ["model"]
        rows = []
        for key, part in slides.groupby(keys, sort=False):
            here = by_seed[(by_seed[keys] == list(key)).all(axis=1)]
            for metric in METRICS:
                mean = _mean(part, metric)
                drawn = _bootstrap(part, metric, n_bootstrap, seed)
                rows.append(
                    {
                        **dict(zip(keys, key, strict=True)),
                        "metric": metric,
                        "mean": mean,
                        **_interval(drawn, level),
                        "sd_folds": _sd([_mean(p, metric) for _, p in part.groupby("fold")]),
                        "sd_seeds": _sd([_mean(p, metric) for _, p in here.groupby("seed")]),
                    }
                )
        return pd.DataFrame(rows)

    def compare(
        self,
        reference: str,
        *,
        metric: str = "pcc_a",
        level: float = 0.95,
        n_bootstrap: int = _N_BOOTSTRAP,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Differences of all other models from one, slide by slide.

        Parameters
        ----------
        reference
            Label of the model that is subtracted.
        metric
            One of ``pcc_a``, ``pcc_h``, ``pcc_h_best``, ``spearman``, ``mse``, ``mae``.
        level, n_bootstrap, seed
            As in :meth:`intervals`.

        Returns
        -------
        A row for each other model: mean ``difference`` with ``low`` and ``high``, and ``n_better``, the number of
        slides (of ``n_slides`` that both predicted) on which it scores better.

        Raises
        ------
        ValueError
            If there is no such model or metric.
        """
        for name, value, known in (("reference", reference, self.models), ("metric", metric, METRICS)):
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(value, known)}")
        slides = self.slides().set_index(_UNIT)
        base = slides.loc[slides["model"] == reference]
        rows = []
        for model in self.models:
            other = slides.loc[slides["model"] == model]
            if model == reference:
                continue
            both = other[["n_spots"]].join((other[metric] - base[metric]).rename(metric)).dropna().reset_index()
            better = both[metric] < 0 if metric in _ERRORS else both[metric] > 0
            rows.append(
                {
                    "model": model,
                    "reference": reference,
                    "metric": metric,
                    "difference": _mean(both, metric),
                    **_interval(_bootstrap(both, metric, n_bootstrap, seed), level),
                    "n_better": int(better.sum()),
                    "n_slides": len(both),
                }
            )
        return pd.DataFrame(rows)

    def summary(self, metrics: Sequence[str] = METRICS, *, by_fold: bool = False) -> pd.DataFrame:
        """Tabulate means with their intervals, for reading.

        Parameters
        ----------
        metrics
            Columns.
        by_fold
            A row for each fold and model, instead of all slides together.

        Returns
        -------
        Text ``mean [low, high]``, a row a model, with ``seconds`` (of all its runs there) and ``failed`` runs; best
        PCC(A) first. Under an optimistic protocol the name of the index says so.
        """
        keys = ["fold", "model"] if by_fold else ["model"]
        found = self.intervals(by_fold=by_fold)
        found["text"] = [_text(*row) for row in found[["mean", "low", "high"]].to_numpy()]
        table = found.pivot(index=keys, columns="metric", values="text")[list(metrics)]
        order = found[found["metric"] == "pcc_a"].set_index(keys)["mean"]
        if by_fold:
            order = -order.groupby("fold", sort=False).rank()
            places = {fold: i for i, fold in enumerate(dict.fromkeys(self.runs["fold"]))}
            table = table.loc[sorted(order.index, key=lambda key: (places[key[0]], order[key]))]
        else:
            table = table.loc[order.sort_values(ascending=False, kind="stable").index]
        runs = self.runs.groupby(keys)
        table["seconds"] = runs["seconds"].sum().round().astype(int)
        table["failed"] = self.runs["status"].eq("failed").groupby([self.runs[k] for k in keys]).sum()
        table.columns.name = None
        if self.optimistic:
            table.index.names = [
                *table.index.names[:-1],
                f"{table.index.names[-1]} (OPTIMISTIC: {self.protocol} protocol)",
            ]
        return table

    @cached_property
    def _by_seed(self) -> pd.DataFrame:
        """Scores of each model, fold, slide and seed."""
        keys = ["model", "seed", *_UNIT]
        scores = self.scores.merge(self._best_genes, on=["model", "seed", "gene"], how="left")
        scores["best"] = scores["best"].eq(True)
        found = scores.groupby(keys, sort=False).agg(
            n_spots=("n_spots", "first"),
            pcc_a=("pcc", "mean"),
            spearman=("spearman", "mean"),
            mse=("mse", "mean"),
            mae=("mae", "mean"),
        )
        for name, chosen in (("pcc_h", "high"), ("pcc_h_best", "best")):
            found[name] = scores[scores[chosen]].groupby(keys)["pcc"].mean()
        return found.reset_index()[[*keys, "n_spots", *METRICS]]

    @property
    def _best_genes(self) -> pd.DataFrame:
        """The 50 genes of each model and seed by their rank in every fold, averaged over folds."""
        parts = []
        for (model, seed), part in self.scores.groupby(["model", "seed"], sort=False):
            by_fold = part.pivot_table(index="fold", columns="gene", values="pcc", aggfunc="mean", dropna=False)
            best = by_fold.columns[metrics.top_genes(by_fold.to_numpy(np.float64), N_HIGH)]
            parts.append(pd.DataFrame({"model": model, "seed": seed, "gene": best, "best": True}))
        return pd.concat(parts) if parts else pd.DataFrame(columns=["model", "seed", "gene", "best"])


def _weights(part: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """Weight of each slide: its spots for errors, else one; none where it has no score."""
    weight = part["n_spots"].to_numpy(np.float64) if metric in _ERRORS else np.ones(len(part))
    return np.where(part[metric].isna(), 0.0, weight)


def _mean(part: pd.DataFrame, metric: str) -> float:
    weight, value = _weights(part, metric), np.nan_to_num(part[metric].to_numpy(np.float64))
    return float(weight @ value / weight.sum()) if weight.sum() else np.nan


def _bootstrap(part: pd.DataFrame, metric: str, n: int, seed: int) -> NDArray[np.float64]:
    """Means over slides that are drawn with replacement; empty where there are fewer than two."""
    weight, value = _weights(part, metric), np.nan_to_num(part[metric].to_numpy(np.float64))
    if (weight > 0).sum() < 2:
        return np.empty(0)
    drawn = np.random.default_rng(seed).integers(len(part), size=(n, len(part)))
    total = weight[drawn].sum(1)
    means = (weight * value)[drawn].sum(1) / np.where(total > 0, total, np.nan)
    return means[~np.isnan(means)]


def _interval(drawn: NDArray[np.float64], level: float) -> dict[str, float]:
    if not len(drawn):
        return {"low": np.nan, "high": np.nan}
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}


def _sd(values: Sequence[Any]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _text(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
