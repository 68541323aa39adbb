"""A metric in the data and in every resample -> value, low, high, and the reasons for what cannot be given.

Intervals resample patients, not sequences: runs of one patient are alike, and counting them as independent
makes intervals too narrow. What cannot be computed is None with a reason, never NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special, stats

from scripts.reports.resampling import ECE

CONFIDENCE = 0.95
MAX_NAMED = 8  # in a note
EVERY_CLASS = "all classes"
ABBREVIATIONS = ("auroc", "auprc", "mcc", "npv", "ece", "f1")

Estimate = dict[str, float | None]


@dataclass
class Intervals:
    """Turns resampled values into value, low and high, and keeps account of what could not be given.

    Intervals are BCa (Efron 1987): percentiles moved for the bias and the skewness of a metric that has an end, as
    an AUROC near 1, where plain ones hold the true value too rarely. They are widened for the number of patients
    (Hesterberg 2015, section 4.4.2), as the variance of a resample divides by n, not n - 1. The ECE alone is
    reflected (basic bootstrap, Davison and Hinkley 1997, section 5.2.1): resampling adds to it, as few sequences did
    in the first place, so the percentiles of a model that is well calibrated hold no value near 0. Its interval is a
    rough one all the same.
    """

    num_patients: int
    num_resamples: int
    paired: bool = False  # the values are differences, which have no end and little bias
    notes: list[str] = field(default_factory=list)
    explained: tuple[str, ...] = ()  # classes whose missing values the notes explain already
    undefined: dict[str, list[str]] = field(default_factory=dict)  # metric: whose
    constant: dict[str, list[str]] = field(default_factory=dict)  # whose: which metrics
    partial: dict[str, int] = field(default_factory=dict)  # whose: resamples left

    def estimate(self, name: str, values: np.ndarray, whose: str = EVERY_CLASS) -> Estimate:
        """One metric, from what `resampling.patient_draws` made of it, (R,), NaN where it is not defined."""
        return self.estimates(name, values[:, None], [whose])[0]

    def estimates(self, name: str, values: np.ndarray, names: Sequence[str]) -> list[Estimate]:
        """One metric of several classes, (R, K)."""
        samples = values[1 : 1 + self.num_resamples]
        left = (~np.isnan(samples)).sum(axis=0)  # resamples that define it, (K,)
        ordered = np.sort(samples, axis=0)  # NaN last
        possible = self.num_resamples > 0 and self.num_patients > 1
        limits = self.limits(values, ordered, left, name == ECE and not self.paired) if possible else None
        found = []
        for k, whose in enumerate(names):
            value = values[0, k]
            estimate: Estimate = {"value": None if np.isnan(value) else float(value), "low": None, "high": None}
            found.append(estimate)
            if estimate["value"] is None:
                if whose not in self.explained:
                    self.undefined.setdefault(spoken(name), []).append(whose)
            elif limits is not None:
                if left[k] < len(samples):
                    self.partial[whose] = min(int(left[k]), self.partial.get(whose, len(samples)))
                low, high = min(limits[0][k], value), max(limits[1][k], value)
                if left[k] and high - low < 1e-12:
                    self.constant.setdefault(whose, []).append(spoken(name))
                elif 2 * left[k] >= len(samples):
                    estimate |= {"low": float(low), "high": float(high)}
        return found

    def limits(
        self, values: np.ndarray, ordered: np.ndarray, left: np.ndarray, reflect: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of each column's interval, (K,), from its values and its sorted resamples."""
        n, value = self.num_patients, values[0]
        tail = np.sqrt(n / (n - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, n - 1)  # of a normal deviate, below 0
        if reflect:
            low, high = (quantile(ordered, left, special.ndtr(np.full(len(left), z))) for z in (tail, -tail))
            return np.maximum(2 * value - high, 0), 2 * value - low
        some_left = np.maximum(left, 1)
        below = ((ordered < value).sum(axis=0) + (ordered == value).sum(axis=0) / 2) / some_left
        bias = special.ndtri(np.clip(below, 0.5 / some_left, 1 - 0.5 / some_left))
        without = values[1 + self.num_resamples :]  # the jackknife
        pull = np.nan_to_num(value - without)  # leaving a patient out may leave a metric undefined
        pull = pull - pull.mean(axis=0)
        skew = (pull**3).sum(axis=0) / np.maximum(6 * (pull**2).sum(axis=0) ** 1.5, 1e-30)
        low, high = (
            quantile(ordered, left, special.ndtr(bias + z / np.maximum(1 - skew * z, 0.1)))
            for z in (bias + tail, bias - tail)
        )
        return low, high

    def all_notes(self) -> list[str]:
        """What is null or weak and why, in sentences."""
        notes = list(self.notes)
        if self.num_patients == 1:
            notes.append("One patient only: there is nothing to resample, so no intervals.")
        if self.undefined:
            found = "; ".join(f"{name} of {some(whose)}" for name, whose in self.undefined.items())
            notes.append(f"Not defined on these sequences: {found}.")
        if self.constant:
            found = some([f"{whose}: {', '.join(names)}" for whose, names in self.constant.items()], "; ")
            notes.append(f"No interval, as resamples give the same value, which is no certainty: {found}.")
        if self.partial:
            counts = some([f"{whose} {count}" for whose, count in self.partial.items()])
            notes.append(
                f"Resamples where a score is not defined are left out; of {self.num_resamples} remain, "
                f"{counts}. Fewer than half give no interval."
            )
        return notes


def quantile(ordered: np.ndarray, defined: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A quantile, (K,), of each sorted column's first `defined` values, interpolated as numpy does."""
    last = np.maximum(defined - 1, 0)
    place = at * last
    below = np.floor(place).astype(int)
    columns = np.arange(ordered.shape[1])
    lower, upper = ordered[below, columns], ordered[np.minimum(below + 1, last), columns]
    return lower + (place - below) * (upper - lower)


def spoken(name: str) -> str:
    """A metric's name as a sentence has it."""
    return " ".join(word.upper() if word in ABBREVIATIONS else word for word in name.split("_"))


def some(names: Sequence[str], joint: str = ", ") -> str:
    """The first names and how many more there are."""
    rest = len(names) - MAX_NAMED
    return joint.join(names[:MAX_NAMED]) + (f"{joint}and {rest} more" if rest > 0 else "")
