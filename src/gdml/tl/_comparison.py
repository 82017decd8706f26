"""What a comparison of models found: scores of every run, and the tables made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import metrics
from gdml._errors import count, did_you_mean

#: Scores in the order of the tables.
METRICS = ("pcc_a", "pcc_h", "pcc_h_best", "spearman", "mse", "mae")
_ERRORS = ("mse", "mae")  # means over spots, where the others are means over slides
_UNIT = ["fold", "slide"]
_OVER = ["interval_over", "n_groups", "n_slides"]
N_HIGH = 50
#: Groups that an interval over groups needs at least: fewer say next to nothing about the next patient.
MIN_GROUPS = 5
_N_BOOTSTRAP = 2000


@dataclass(repr=False)
class Comparison:
    """Result of :func:`gdml.tl.cross_validate` and :func:`gdml.tl.ablate`.

    Parameters
    ----------
    scores
        A row for each model, fold, seed, slide and gene: ``group`` of the slide, ``pcc``, ``spearman`` (NaN where the
        gene is constant), ``mse``, ``mae``, ``n_spots`` of the slide, and ``high``, whether the gene is among the 50
        best on the run's validation split.
    runs
        A row for each model, fold and seed: ``status`` (``"done"`` or ``"failed"``), ``error``, ``epoch``,
        ``seconds``, ``parameters``, ``n_train``, ``n_test``, ``n_genes``, ``n_constant`` (genes without variance in a
        test slide, left out of correlations).
    protocol
        ``"nested"``, ``"paper"`` or ``"hest-bench"``.
    note
        Caveat shown with every score; may be empty.
    optimistic
        Whether the test slides had a part in a choice.
    variants
        Of an ablation: the values of the varied fields by model.
    group_key
        Column that the groups come from; None where each slide is its own group.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    protocol: str
    note: str = ""
    optimistic: bool = False
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)
    group_key: str | None = None

    def __repr__(self) -> str:
        parts = [f"Comparison: {self.line()}", self.note, self._about_intervals()]
        if self.models:
            parts.append(self._as_text().to_string())
        return "\n".join(filter(None, parts))

    def _repr_html_(self) -> str:
        note = f"<p><b>{self.note}</b></p>" if self.note else ""
        table = self._as_text().to_html() if self.models else ""
        return f"<p>{self.line()}</p>{note}<p>{self._about_intervals()}</p>{table}"

    def line(self) -> str:
        """Describe the comparison in one line: models, runs, failures and protocol."""
        done = int((self.runs["status"] == "done").sum())
        failed = f", {len(self.runs) - done} FAILED, see .runs" if done < len(self.runs) else ""
        models = count(self.runs["model"].nunique(), "model")
        return f"{models}, {done} of {len(self.runs)} runs{failed}, protocol {self.protocol!r}"

    def _about_intervals(self) -> str:
        """Say what the intervals are over."""
        slides = self._of_slides
        if slides["slide"].nunique() < 2:
            return ""
        over = _over(slides, self.group_key)
        text = f"Intervals over {over['interval_over']}: {count(over['n_slides'], 'slide')}"
        if self.group_key is None:
            return f"{text}, each taken for its own group."
        text += f" of {count(over['n_groups'], 'group')} ({self.group_key})"
        if over["interval_over"] == "slides":
            text += f"; with fewer than {MIN_GROUPS} groups there is no interval over groups"
        return f"{text}."

    @property
    def models(self) -> list[str]:
        """Labels of the models that have scores, in the order they were asked for."""
        return list(dict.fromkeys(self.scores["model"]))

    def slides(self) -> pd.DataFrame:
        """Scores of each slide, averaged over seeds.

        Returns
        -------
        A row for each model, fold and slide: ``group``, ``n_spots`` and

        ``pcc_a``, ``spearman``, ``mse``, ``mae``
            Means over genes.
        ``pcc_h``
            Mean correlation of the 50 genes that the run's validation split found best.
        ``pcc_h_best``
            Mean correlation of the 50 genes with the best rank, averaged over the folds' test slides. They are chosen by
            the score itself: **optimistic**, and what is published as PCC(H).
        """
        keys = ["model", *_UNIT]
        by_slide = self._by_seed.groupby(keys, sort=False)
        found = by_slide.mean(numeric_only=True).drop(columns="seed").astype({"n_spots": int})
        found.insert(0, "group", by_slide["group"].first())
        return found.reset_index()

    def intervals(
        self, *, by_fold: bool = False, level: float = 0.95, n_bootstrap: int = _N_BOOTSTRAP, seed: int = 0
    ) -> pd.DataFrame:
        """Means of the scores with bootstrap intervals.

        Slides of one group resemble each other, so whole groups are drawn with replacement (cluster bootstrap,
        percentile intervals; Efron 1979, Field and Welsh 2007). Where there are fewer than five groups, or none were
        named, there is no interval over groups, and slides are drawn: such an interval says nothing about other
        patients. A slide that is scored in several folds is drawn with all of its scores. The same draws serve
        all models.

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
        NaN where there is one slide; ``interval_over``, ``"groups"`` or ``"slides"`` (``""`` without an interval);
        ``n_groups`` and ``n_slides`` that the mean is over; ``sd_folds``, standard deviation of the folds' means;
        ``sd_seeds``, standard deviation over seeds of the mean.
        """
        slides, by_seed = self.slides(), self._by_seed
        keys = ["fold", "model"] if by_fold else ["model"]
        rows = []
        for key, part in slides.groupby(keys, sort=False):
            here = by_seed[(by_seed[keys] == list(key)).all(axis=1)]
            for metric in METRICS:
                scored = part.dropna(subset=metric)
                rows.append(
                    {
                        **dict(zip(keys, key, strict=True)),
                        "metric": metric,
                        "mean": _mean(scored, metric),
                        **_interval(scored, metric, self.group_key, level, n_bootstrap, seed),
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
        A row for each other model: mean ``difference`` with ``low``, ``high``, ``interval_over``, ``n_groups`` and
        ``n_slides`` as in :meth:`intervals`, over the slides that both models predicted, and ``n_better``, the number of
        these slides on which it scores better.

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
            if model == reference:
                continue
            other = slides.loc[slides["model"] == model]
            both = other[["group", "n_spots"]].join((other[metric] - base[metric]).rename(metric))
            both = both.dropna().reset_index()
            by_slide = both.groupby("slide")[metric].mean()
            better = by_slide < 0 if metric in _ERRORS else by_slide > 0
            rows.append(
                {
                    "model": model,
                    "reference": reference,
                    "metric": metric,
                    "difference": _mean(both, metric),
                    **_interval(both, metric, self.group_key, level, n_bootstrap, seed),
                    "n_better": int(better.sum()),
                }
            )
        return pd.DataFrame(rows)

    def summary(self, metrics: Sequence[str] = METRICS, *, by_fold: bool = False) -> pd.DataFrame:
        """Tabulate means with their intervals.

        Parameters
        ----------
        metrics
            Scores to tabulate.
        by_fold
            A row for each fold and model, instead of all slides together.

        Returns
        -------
        A row for each model, best PCC(A) first. For each metric three columns of numbers: ``pcc_a``, its mean,
        ``pcc_a_low`` and ``pcc_a_high``, as in :meth:`intervals`; then ``interval_over``, ``n_groups`` and ``n_slides``,
        ``seconds`` (of all runs of the model) and ``failed`` runs. Under an optimistic protocol the name of the index
        says so.
        """
        keys = ["fold", "model"] if by_fold else ["model"]
        found = self.intervals(by_fold=by_fold)
        wide = found.pivot(index=keys, columns="metric", values=["mean", "low", "high"]).astype(np.float64)
        columns = {
            metric + suffix: wide[value, metric]
            for metric in metrics
            for value, suffix in (("mean", ""), ("low", "_low"), ("high", "_high"))
        }
        table = pd.DataFrame(columns, index=wide.index)
        over = found[found["metric"] == "pcc_a"].set_index(keys)
        table[_OVER] = over[_OVER]
        order = over["mean"]
        if by_fold:
            order = -order.groupby("fold", sort=False).rank()
            places = {fold: i for i, fold in enumerate(dict.fromkeys(self.runs["fold"]))}
            table = table.loc[sorted(order.index, key=lambda key: (places[key[0]], order[key]))]
        else:
            table = table.loc[order.sort_values(ascending=False, kind="stable").index]
        runs = self.runs.groupby(keys)
        table["seconds"] = runs["seconds"].sum()
        table["failed"] = self.runs["status"].eq("failed").groupby([self.runs[k] for k in keys]).sum()
        if self.optimistic:
            *others, last = table.index.names
            table.index.names = [*others, f"{last} (OPTIMISTIC: {self.protocol} protocol)"]
        return table

    def _as_text(self) -> pd.DataFrame:
        """Format the summary as it is printed: ``mean [low, high]``."""
        table = self.summary()
        text = {
            metric: [_text(*row) for row in table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy()]
            for metric in METRICS
        }
        found = pd.DataFrame(text, index=table.index)
        return found.assign(seconds=table["seconds"].round().astype(int), failed=table["failed"])

    @cached_property
    def _by_seed(self) -> pd.DataFrame:
        """Scores of each model, fold, slide and seed."""
        keys = ["model", "seed", *_UNIT]
        scores = self._of_slides.merge(self._best_genes, on=["model", "seed", "gene"], how="left")
        scores["best"] = scores["best"].eq(True)
        found = scores.groupby(keys, sort=False).agg(
            group=("group", "first"),
            n_spots=("n_spots", "first"),
            pcc_a=("pcc", "mean"),
            spearman=("spearman", "mean"),
            mse=("mse", "mean"),
            mae=("mae", "mean"),
        )
        for name, chosen in (("pcc_h", "high"), ("pcc_h_best", "best")):
            found[name] = scores[scores[chosen]].groupby(keys)["pcc"].mean()
        return found.reset_index()[[*keys, "group", "n_spots", *METRICS]]

    @property
    def _of_slides(self) -> pd.DataFrame:
        """Scores with the group of each slide; under "hest-bench" all test spots of a fold stand for one slide."""
        scores = self.scores
        if "group" not in scores:
            scores = scores.assign(group=scores["slide"])
        if self.protocol == "hest-bench":
            scores = scores.assign(slide=scores["fold"])
        return scores

    @property
    def _best_genes(self) -> pd.DataFrame:
        """The 50 genes of each model and seed by their rank in every fold, averaged over folds."""
        parts = []
        for (model, seed), part in self.scores.groupby(["model", "seed"], sort=False):
            by_fold = part.pivot_table(index="fold", columns="gene", values="pcc", aggfunc="mean", dropna=False)
            best = by_fold.columns[metrics.top_genes(by_fold.to_numpy(np.float64), N_HIGH)]
            parts.append(pd.DataFrame({"model": model, "seed": seed, "gene": best, "best": True}))
        return pd.concat(parts) if parts else pd.DataFrame(columns=["model", "seed", "gene", "best"])


def _over(slides: pd.DataFrame, group_key: str | None) -> dict[str, Any]:
    """Decide what an interval is over, and count groups and slides."""
    n_groups, n_slides = slides["group"].nunique(), slides["slide"].nunique()
    over = "groups" if group_key is not None and n_groups >= MIN_GROUPS else "slides"
    return {"interval_over": over if n_slides > 1 else "", "n_groups": n_groups, "n_slides": n_slides}


def _weights(part: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """Weight of each slide: its spots for errors, else one."""
    weight = part["n_spots"].to_numpy(np.float64) if metric in _ERRORS else np.ones(len(part))
    return np.where(part[metric].isna(), 0.0, weight)


def _mean(part: pd.DataFrame, metric: str) -> float:
    weight, value = _weights(part, metric), np.nan_to_num(part[metric].to_numpy(np.float64))
    return float(weight @ value / weight.sum()) if weight.sum() else np.nan


def _interval(
    slides: pd.DataFrame, metric: str, group_key: str | None, level: float, n: int, seed: int
) -> dict[str, Any]:
    """Percentiles of the mean over groups, or slides, that are drawn with replacement.

    Parameters
    ----------
    slides
        A row for each fold and slide, all with a score.
    metric, group_key, level, n, seed
        As in :meth:`Comparison.intervals`.
    """
    over = _over(slides, group_key)
    low = high = np.nan
    if over["interval_over"]:
        unit = pd.factorize(slides[over["interval_over"][:-1]])[0]
        weight = _weights(slides, metric)
        total = np.bincount(unit, weight)
        value = np.bincount(unit, weight * slides[metric].to_numpy(np.float64))
        drawn = np.random.default_rng(seed).integers(len(total), size=(n, len(total)))
        low, high = np.quantile(value[drawn].sum(1) / total[drawn].sum(1), [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high), **over}


def _sd(values: Sequence[Any]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan


def _text(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
