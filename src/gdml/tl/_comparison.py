"""What a comparison of models found: scores of every run, and the tables made of them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from gdml import metrics
from gdml._errors import count, did_you_mean
from gdml._progress import tell

from ._intervals import ERRORS, MIN_GROUPS, PART, deviation, interval, over_what, weighted_mean
from ._load_comparison import save_comparison
from ._paired import group_totals, least_p, sign_flip_test

#: Scores in the order of the tables.
METRICS = ("pcc_a", "pcc_h", "pcc_h_best", "spearman", "mse", "mae")
_UNIT = ["fold", "slide"]
_OVER = ["interval_over", "n_groups", "n_slides"]
N_HIGH = 50
_N_BOOTSTRAP = 2000


@dataclass(repr=False)
class Comparison:
    """Result of :func:`gdml.tl.cross_validate` and :func:`gdml.tl.ablate`.

    Parameters
    ----------
    scores
        A row for each model, fold, seed, slide and gene: ``repeat`` of the fold, ``group`` of the slide, ``pcc``, ``spearman`` (NaN where the
        gene is constant), ``mse``, ``mae``, ``n_spots`` of the slide, and ``high``, whether the gene is among the 50
        best on the run's validation split.
    runs
        A row for each model, fold and seed: ``status`` (``"done"`` or ``"failed"``), ``error``, ``saved`` (folder of the
        model where it was kept, else empty), ``epoch``, ``seconds``, ``parameters``, ``n_train``, ``n_test``,
        ``n_genes``, ``n_constant`` (genes without variance in a test slide, left out of correlations).
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
    held_out
        What the scores are of: ``"unseen patient"`` (the name of ``group_key``), ``"unseen slide"``, or
        ``"unseen part of a known slide"``.
    genes
        A row for each model and gene, which :meth:`warrants` reads; empty of an optimistic comparison.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    protocol: str
    note: str = ""
    optimistic: bool = False
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)
    group_key: str | None = None
    held_out: str = ""
    genes: pd.DataFrame = field(default_factory=pd.DataFrame)

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
        """Describe the comparison in one line: models, runs, failures, protocol, and what was held out."""
        done = int((self.runs["status"] == "done").sum())
        failed = f", {len(self.runs) - done} FAILED, see .runs" if done < len(self.runs) else ""
        models = count(self.runs["model"].nunique(), "model")
        of = f", scored on {'an' if self.held_out[:1] in 'aeiou' else 'a'} {self.held_out}" if self.held_out else ""
        return f"{models}, {done} of {len(self.runs)} runs{failed}, protocol {self.protocol!r}{of}"

    def _about_intervals(self) -> str:
        """Say what the intervals are over."""
        slides = self._of_slides.drop_duplicates(["fold", "slide"])
        over = over_what(slides, self.group_key, blocks=self.held_out == PART)
        if not over["interval_over"]:
            return ""
        if over["interval_over"] == "blocks":
            return (
                f"Intervals over blocks: {count(len(slides), 'block')} of {count(over['n_slides'], 'slide')}. They say how "
                "much a score depends on the part of the slide, and nothing about another slide."
            )
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
        if "repeat" in found:
            found["repeat"] = found["repeat"].astype(int)
        return found.reset_index()

    def intervals(
        self, *, by_fold: bool = False, level: float = 0.95, n_bootstrap: int = _N_BOOTSTRAP, seed: int = 0
    ) -> pd.DataFrame:
        """Means of the scores with bootstrap intervals.

        Slides of one group resemble each other, so whole groups are drawn with replacement (cluster bootstrap,
        percentile intervals; Efron 1979, Field and Welsh 2007). Where there are fewer than five groups, or none were
        named, there is no interval over groups, and slides are drawn: such an interval says nothing about other
        patients. A slide that is scored in several folds is drawn with all of its scores. Where blocks of fewer than
        five slides were held out, blocks are drawn: such an interval says nothing about other slides. The same draws
        serve all models.

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
        NaN where there is one slide; ``interval_over``, ``"groups"``, ``"slides"`` or ``"blocks"`` (``""`` without an
        interval); ``n_groups`` and ``n_slides`` that the mean is over; ``sd_folds``, standard deviation of the folds'
        means; ``sd_seeds``, standard deviation of the mean over seeds, which are those of the repeats where there are
        several.
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
                        "mean": weighted_mean(scored, metric),
                        **self._interval(scored, metric, level, n_bootstrap, seed),
                        "sd_folds": deviation([weighted_mean(p, metric) for _, p in part.groupby("fold")]),
                        "sd_seeds": deviation([weighted_mean(p, metric) for _, p in here.groupby("seed")]),
                    }
                )
        return pd.DataFrame(rows)

    def compare(
        self,
        reference: str,
        *,
        metric: str | Sequence[str] = "pcc_a",
        level: float = 0.95,
        n_bootstrap: int = _N_BOOTSTRAP,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Differences of all other models from one, slide by slide, with a test over groups.

        The p-value is that of all sign flips of the groups' differences (:math:`2^K` for K groups; where ``group_key`` is
        None, each slide is a group): two-sided, and never below :math:`2 / 2^K`. With fewer than six groups no
        p-value below 0.05 exists, whatever the models: a line says so. Slides and blocks of one group are not tested
        against each other, since they are not independent.

        Parameters
        ----------
        reference
            Label of the model that is subtracted.
        metric
            One or several of ``pcc_a``, ``pcc_h``, ``pcc_h_best``, ``spearman``, ``mse``, ``mae``.
        level, n_bootstrap, seed
            As in :meth:`intervals`; the seed is that of the flips too, which are drawn for more than 16 groups.

        Returns
        -------
        A row for each metric and other model: mean ``difference`` with ``low``, ``high``, ``interval_over``, ``n_groups`` and
        ``n_slides`` as in :meth:`intervals`, over the slides that both models predicted; ``p_value``, NaN for one group,
        and ``p_least``, the smallest one that so many groups can give; and ``n_better``, the number of these slides on
        which it scores better.

        Raises
        ------
        ValueError
            If there is no such model or metric.
        """
        metrics_asked = [metric] if isinstance(metric, str) else list(metric)
        rows = [
            self._compare_pair(model, part, reference, name, level, n_bootstrap, seed)
            for name in metrics_asked
            for model, part in self.differences(reference, metric=name).groupby("model", sort=False)
        ]
        table = pd.DataFrame(rows)
        if len(table) and table["p_least"].min() > 0.05:
            tell(f"compare: {self._about_test(int(table['n_groups'].max()))}")
        return table

    def warrants(self, model: str | None = None) -> pd.DataFrame:
        """How far to trust each gene of a model that is applied to what ``held_out`` names.

        The predictions are those that :func:`gdml.tl.cross_validate` writes, of the first seed. No spot that they are of
        had a part in choosing the epoch, so that networks are judged as fairly as models in closed form.

        Parameters
        ----------
        model
            Label of the model; None: the only one.

        Returns
        -------
        A row for each gene that was in the panel of a fold, with the columns of :class:`gdml.training.Warrant`
        (``warrant``, ``pcc_expected``, ``pcc_low``, ``pcc_high``, ``pcc_attainable``, ``pcc_reached``) and ``n_folds``, the
        number of folds that it was predicted in. The interval is a jackknife over the groups, slides or parts of slides
        that have predictions of the gene; with one of them the gene is ``"not shown"``.

        Raises
        ------
        ValueError
            If there is no such model, or several and none was named; if test slides had a part in a choice
            (``protocol="paper"``), or the comparison was saved by an earlier gdml.
        """
        if self.optimistic:
            raise ValueError(
                f"There are no warrants under the protocol {self.protocol!r}: the epoch was chosen on the test slides, so that "
                "these predictions say too much. Use gdml.tl.cross_validate(adata, protocol='nested')."
            )
        if self.genes.empty:
            raise ValueError(
                "This comparison has no warrants: no run was finished, or an earlier gdml made it. "
                "Call gdml.tl.cross_validate again; finished runs are not repeated."
            )
        known = list(dict.fromkeys(self.genes["model"]))
        if model is None and len(known) > 1:
            raise ValueError(f"`model` must name one of {', '.join(map(repr, known))}: found.warrants({known[0]!r}).")
        if model is not None and model not in known:
            raise ValueError(f"`model` is {model!r}. {did_you_mean(str(model), known)}")
        table = self.genes[self.genes["model"] == (known[0] if model is None else model)]
        return table.drop(columns="model").set_index("gene")

    def _compare_pair(
        self, model: Any, part: pd.DataFrame, reference: str, metric: str, level: float, n: int, seed: int
    ) -> dict[str, Any]:
        """Row of the table of :meth:`compare`."""
        both = part.rename(columns={"difference": metric})
        by_slide = both.groupby("slide")[metric].mean()
        better = by_slide < 0 if metric in ERRORS else by_slide > 0
        totals = group_totals(both, metric)
        return {
            "model": model,
            "reference": reference,
            "metric": metric,
            "difference": weighted_mean(both, metric),
            **self._interval(both, metric, level, n, seed),
            "p_value": sign_flip_test(totals, seed=seed),
            "p_least": least_p(len(totals)),
            "n_better": int(better.sum()),
        }

    def differences(self, reference: str, *, metric: str = "pcc_a") -> pd.DataFrame:
        """Differences of all other models from one on every slide that both predicted.

        Parameters
        ----------
        reference
            As in :meth:`compare`.
        metric
            One of those that :meth:`compare` has.

        Returns
        -------
        A row for each other model, fold and slide: ``group``, ``n_spots`` and ``difference``.

        Raises
        ------
        ValueError
            If there is no such model or metric.
        """
        for name, value, known in (("reference", reference, self.models), ("metric", metric, METRICS)):
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(value, known)}")
        slides = self.slides()
        base = slides[slides["model"] == reference].set_index(_UNIT)[metric].rename("base")
        found = slides[slides["model"] != reference].join(base, on=_UNIT)
        found["difference"] = found[metric] - found["base"]
        kept = [name for name in ("model", *_UNIT, "repeat", "group", "n_spots") if name in found]  # earlier: no repeat
        return found[[*kept, "difference"]].dropna(subset="difference").reset_index(drop=True)

    def _about_test(self, n_groups: int) -> str:
        """Say what a paired test over so few groups can show."""
        groups = count(n_groups, self.group_key or "slide")
        if n_groups < 2:
            return f"of {groups}, nothing can be tested."
        return (
            f"{groups} allow {2**n_groups} sign flips, so that no p-value is below {least_p(n_groups):.2g}, whatever the "
            "models; six are needed for one below 0.05."
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the comparison to a folder: tables as Parquet, everything else as JSON.

        The folder is written completely or not at all; :func:`gdml.tl.load_comparison` reads it.

        Parameters
        ----------
        path
            Folder to create.
        overwrite
            Replace a comparison that is saved there.

        Raises
        ------
        FileExistsError
            If ``path`` exists, and is not a saved comparison or ``overwrite`` is False.
        OSError
            If the folder cannot be written.
        """
        save_comparison(self, path, overwrite=overwrite)

    def _interval(self, slides: pd.DataFrame, metric: str, level: float, n: int, seed: int) -> dict[str, Any]:
        return interval(slides, metric, self.group_key, level, n, seed, blocks=self.held_out == PART)

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
        repeat = {"repeat": ("repeat", "first")} if "repeat" in scores else {}
        found = scores.groupby(keys, sort=False).agg(
            **repeat,
            group=("group", "first"),
            n_spots=("n_spots", "first"),
            pcc_a=("pcc", "mean"),
            spearman=("spearman", "mean"),
            mse=("mse", "mean"),
            mae=("mae", "mean"),
        )
        for name, chosen in (("pcc_h", "high"), ("pcc_h_best", "best")):
            found[name] = scores[scores[chosen]].groupby(keys)["pcc"].mean()
        return found.reset_index()[[*keys, *repeat, "group", "n_spots", *METRICS]]

    @property
    def _of_slides(self) -> pd.DataFrame:
        """Scores with the group of each slide; under "hest-bench" the test slides of a fold stand for one."""
        scores = self.scores
        if "group" not in scores:
            scores = scores.assign(group=scores["slide"])
        if self.protocol == "hest-bench" and self.held_out != PART:
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


def _text(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return "-"
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
