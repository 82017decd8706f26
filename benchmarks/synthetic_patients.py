"""Coverage and width of prediction intervals on synthetic patients, whose slides differ in level and noise.

    python benchmarks/synthetic_patients.py
    python benchmarks/synthetic_patients.py --draws 2 --seed 1

40 patients with three slides of 81 spots, 20 genes, log1p of Poisson counts. Known to the model is an image signal;
unknown to it are the level of the patient and of the slide, a smooth pattern on the slide, and noise whose size differs
between patients. Everything is drawn again ``--draws`` times; only the genes' parameters stay. Coverage is the share of
spots whose measured value is within the interval, width its full width in log counts; both are means over spots, genes
and patients. The columns beside it say how coverage varies: the range that holds the middle four fifths of patients (or
slides), the lowest and the highest gene, and the middle four fifths of single genes on single patients (or slides).
"""

import argparse
from dataclasses import dataclass

import numpy as np

from gdml.conformal import calibrate, calibrate_within_slide, fit_error_spread, interval_width

PATIENTS, SLIDES, SIDE, BLOCK, GENES = 40, 3, 9, 3, 20
LEVELS = (0.8, 0.9)
GENE, REPEATS = np.random.default_rng(0), 20
RATE, SIGNAL, SHIFT = GENE.uniform(-1.5, 2.0, GENES), GENE.uniform(0.3, 0.8, GENES), GENE.uniform(0.8, 1.6, GENES)
SLIDE_SHIFT, PATTERN, NOISE, NOISE_OF_PATIENT = 0.2, 0.3, 0.3, 0.3  # standard deviations of the log rate

ROW, COLUMN = np.divmod(np.arange(SIDE * SIDE), SIDE)
BLOCKS = ROW // BLOCK * (SIDE // BLOCK) + COLUMN // BLOCK


def smooth(rng, shape):
    """Patterns on a slide of standard deviation 1 that are alike within about three spots, (*shape, spots)."""
    distance = np.hypot(ROW[:, None] - ROW, COLUMN[:, None] - COLUMN)
    mix = np.exp(-((distance / 3) ** 2))
    return rng.normal(size=(*shape, len(ROW))) @ (mix / np.linalg.norm(mix, axis=0))


def mean_log_counts(rng):
    """Mean of log1p of the counts at each log rate of a grid, which a perfect model of the signal would predict."""
    grid = np.linspace(-6, 6, 121)
    unknown = np.sqrt(PATTERN**2 + NOISE**2 + SLIDE_SHIFT**2 + SHIFT.mean() ** 2)
    return grid, np.log1p(rng.poisson(np.exp(grid + unknown * rng.normal(size=(20000, 1))))).mean(0)


@dataclass
class Data:
    """Spots of all patients: predicted and measured (spots, genes); patient, slide and block of each spot."""

    predicted: np.ndarray
    measured: np.ndarray
    patient: np.ndarray
    slide: np.ndarray
    block: np.ndarray

    def take(self, rows):
        """Select spots."""
        return Data(*(values[rows] for values in vars(self).values()))

    @property
    def residuals(self):
        """Measured minus predicted."""
        return self.measured - self.predicted


def draw(rng, grid, mean):
    """Draw the patients."""
    shape = (PATIENTS, SLIDES, GENES)
    signal = RATE[:, None] + SIGNAL[:, None] * smooth(rng, shape)
    level = SHIFT[:, None] * rng.normal(size=(PATIENTS, 1, GENES, 1)) + SLIDE_SHIFT * rng.normal(size=(*shape, 1))
    noise = NOISE * np.exp(NOISE_OF_PATIENT * rng.normal(size=(PATIENTS, 1, 1, 1))) * rng.normal(size=signal.shape)
    counts = rng.poisson(np.exp(signal + level + PATTERN * smooth(rng, shape) + noise))
    spots = lambda x: x.swapaxes(2, 3).reshape(-1, GENES)
    slide = np.repeat(np.arange(PATIENTS * SLIDES), len(ROW))
    return Data(
        spots(np.interp(signal, grid, mean)),
        spots(np.log1p(counts)),
        slide // SLIDES,
        slide,
        np.tile(BLOCKS, slide.max() + 1),
    )


class Table:
    """Collects coverage and width of each patient (or slide) and gene, and prints a row per setting."""

    def __init__(self, *titles, by="patients"):
        self.by = by
        self.found: dict[tuple, list] = {}
        print(
            "\n| "
            + " | ".join([*titles, "level", "coverage", self.by, "genes", "gene and " + self.by[:-1], "width"])
            + " |"
        )
        print("|" + "---|" * (len(titles) + 6))

    def add(self, names, level, test, width, spread=1.0, shift=0.0):
        """Score the intervals of ``width`` (genes,) on spots; None where there are none."""
        of_level = self.found.setdefault((*names, level), [])
        if width is None:
            return
        half = np.broadcast_to(width * spread, test.measured.shape)
        inside = np.abs(test.residuals - shift) <= half + 1e-9
        of = np.unique(getattr(test, self.by[:-1]), return_inverse=True)[1]
        mean = lambda x: np.stack([x[of == i].mean(0) for i in range(of.max() + 1)])
        of_level.append((mean(inside), mean(2 * half)))

    def print(self):
        """Print the rows."""
        for (*names, level), rows in self.found.items():
            if not rows:
                print("| " + " | ".join([*names, f"{level:.0%}", "refused", "", "", "", ""]) + " |")
                continue
            covered, width = (np.concatenate(part) for part in zip(*rows, strict=True))
            genes = covered.mean(0)
            cells = [middle(covered.mean(1)), f"{genes.min():.1%} to {genes.max():.1%}", middle(covered)]
            print(
                "| "
                + " | ".join([*names, f"{level:.0%}", f"{covered.mean():.1%}", *cells, f"{width.mean():.2f}"])
                + " |"
            )


def middle(values):
    """Range that holds the middle four fifths."""
    return "{:.0%} to {:.0%}".format(*np.percentile(values, [10, 90]))


def width_or_none(calibration, level, target=None):
    """Half widths, None where they are refused."""
    return (
        interval_width(calibration, level, target=target) if level <= calibration.highest_level(target) + 1e-9 else None
    )


def new_patients(table, rng, data, n_known, scored, spreads=(True,)):
    """Calibrate on some patients, score others; beside it the same errors with patients ignored."""
    patients = rng.permutation(PATIENTS) if scored is None else np.roll(np.arange(PATIENTS), -scored - 1)
    known = data.take(np.isin(data.patient, patients[:n_known]))
    test = data.take(np.isin(data.patient, patients[n_known:][-10:]))
    for with_spread in spreads:
        fitted = fit_error_spread(known.predicted, known.residuals) if with_spread else lambda p: np.ones_like(p)
        spread, name = fitted(known.predicted), "" if with_spread else ", one width per gene"
        by_patient = calibrate(
            known.residuals, known.slide, group=known.patient, held_out="unseen patient", spread=spread
        )
        by_slide = calibrate(known.residuals, known.slide, held_out="unseen slide", spread=spread)
        for level in LEVELS:
            widths = {
                "patients": width_or_none(by_patient, level),
                "slides": width_or_none(by_slide, level),
                "spots": width_or_none(by_patient, level, "unseen part of a known slide"),
            }
            for unit, width in widths.items():
                if unit == "patients" or with_spread:
                    table.add((str(n_known), unit + name), level, test, width, fitted(test.predicted))


def known_slides(table, rng, data, n_slides):
    """Calibrate on half of the blocks of some slides, score the others."""
    slides = rng.permutation(PATIENTS * SLIDES)[:n_slides]
    some = data.take(np.isin(data.slide, slides))
    half = np.isin(some.block, rng.permutation(BLOCKS.max() + 1)[: BLOCKS.max() // 2 + 1])
    known, test = some.take(half), some.take(~half)
    fitted = fit_error_spread(known.predicted, known.residuals)
    for unit, block in (("blocks", known.block), ("spots", None)):
        found = calibrate(
            known.residuals,
            known.slide,
            held_out="unseen part of a known slide",
            block=block,
            spread=fitted(known.predicted),
        )
        for level in LEVELS:
            table.add((str(n_slides), unit), level, test, width_or_none(found, level), fitted(test.predicted))


def measured_spots(table, rng, data, n_spots):
    """Measure some spots of one slide of a new patient, score the others; the spread is that of the other patients."""
    slide = rng.integers(PATIENTS * SLIDES)
    others, new = data.take(data.patient != slide // SLIDES), data.take(data.slide == slide)
    fitted = fit_error_spread(others.predicted, others.residuals)
    rows = rng.permutation(len(ROW))
    known, test = new.take(rows[:n_spots]), new.take(rows[n_spots:])
    for corrected in (True, False):
        found, shift = calibrate_within_slide(known.residuals, spread=fitted(known.predicted), correct_level=corrected)
        for level in LEVELS:
            names = (str(n_spots), "corrected" if corrected else "as predicted")
            table.add(names, level, test, width_or_none(found, level), fitted(test.predicted), shift)


def main() -> None:
    """Print four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="times that all patients are drawn (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    truth = mean_log_counts(rng)
    sets = [draw(rng, *truth) for _ in range(args.draws)]
    errors = np.stack([data.residuals.reshape(PATIENTS, -1, GENES) for data in sets])
    share = (errors.mean(2) ** 2).mean() / (errors**2).mean()
    print(f"Of the squared error, {share:.0%} is the level of the patient.")

    table = Table("patients", "units")
    for data in sets:
        for patient in range(PATIENTS):
            new_patients(table, rng, data, PATIENTS - 1, patient, spreads=(True, False))
    table.print()
    table = Table("patients", "units")
    for n_known in (4, 9, 19):
        for data in sets:
            for _ in range(REPEATS):
                new_patients(table, rng, data, n_known, None)
    table.print()
    table = Table("known slides", "units", by="slides")
    for n_slides, repeats in ((1, 4 * REPEATS), (4, REPEATS), (PATIENTS * SLIDES, 1)):
        for data in sets:
            for _ in range(repeats):
                known_slides(table, rng, data, n_slides)
    table.print()
    table = Table("measured spots", "predictions", by="slides")
    for n_spots in (10, 20, 50):
        for data in sets:
            for _ in range(REPEATS):
                measured_spots(table, rng, data, n_spots)
    table.print()


if __name__ == "__main__":
    main()
