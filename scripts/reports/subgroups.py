"""A value per sequence, from any column of the datalist -> the scores of each group it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scripts.errors import bad_value
from scripts.keys import IMAGE, PATIENT, SEQUENCE, SOURCE
from scripts.reports.metrics import score
from scripts.reports.resampling import ACCURACY, BALANCED_ACCURACY, MACRO_AUROC

FEW_PATIENTS = 10  # below it a score says more about these patients than about their group
MAX_GROUPS = 12
MAX_NUMBERS = 3  # that stay apart; more are cut
UNKNOWN, OTHERS = "not known", "others"
SUBGROUP_METRICS = (BALANCED_ACCURACY, MACRO_AUROC, ACCURACY)


def subgroup_scores(
    column: str,
    values: Sequence[object],
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: Sequence[object],
    *,
    task_type: str,
    classes: Sequence[str],
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of the sequences that share a value, group by group.

    Args:
        column: what the values are, as the report names it; one that names a patient or a file is refused.
        values: one a sequence, N; None, empty text and numbers that are not finite are not known. Numbers of more
            than three kinds are cut into tertiles, more than 12 kinds of text leave the rarest together.
        labels, probabilities, patients, task_type, classes, num_resamples, seed: as `metrics.score` takes them.

    Returns:
        `column`; `cut`, whether into `tertiles` or by `value`; `groups`, each with `name`, `num_sequences`,
        `num_patients`, `few` (fewer than 10 patients), balanced accuracy, macro AUROC, accuracy and `notes`.
    """
    if column in (PATIENT, SEQUENCE, IMAGE, SOURCE):
        raise ValueError(bad_value("subgroups", "column", column, "one that names no patient and no file"))
    if len(values) != len(patients):
        raise ValueError(bad_value(f"subgroups by {column}", "number of values", len(values), str(len(patients))))
    given, scores = np.asarray(labels), np.asarray(probabilities)
    name_of_each, cut = groups_of(values)
    groups = []
    for name in in_order(name_of_each):
        rows = [row for row, own in enumerate(name_of_each) if own == name]
        found = score(
            given[rows], scores[rows], task_type, classes, [patients[row] for row in rows], num_resamples, seed
        )
        counts = {key: found[key] for key in ("num_sequences", "num_patients")}
        few = found["num_patients"] < FEW_PATIENTS
        metrics = {metric: found[metric] for metric in SUBGROUP_METRICS}
        groups.append({"name": name, **counts, "few": few, **metrics, "notes": found["notes"]})
    return {"column": column, "cut": cut, "groups": groups}


def groups_of(values: Sequence[object]) -> tuple[list[str], str]:
    """Name of the group of each value, and how they were cut."""
    plain = [value if is_number(value) or is_unknown(value) else str(value) for value in values]
    known: list[Any] = [value for value in plain if not is_unknown(value)]
    kinds = set(known)
    if len(kinds) > MAX_NUMBERS and all(map(is_number, kinds)):
        place = dict(zip(kinds, np.searchsorted(np.quantile(known, [1 / 3, 2 / 3]), list(kinds)), strict=True))
        members = {third: sorted(kind for kind in kinds if place[kind] == third) for third in set(place.values())}
        name_of = {kind: _span(members[place[kind]]) for kind in kinds}
        cut = "tertiles"
    else:
        common = [kind for kind, _ in sorted(Counter(known).items(), key=lambda item: (-item[1], str(item[0])))]
        kept = common if len(common) <= MAX_GROUPS else common[: MAX_GROUPS - 1]
        name_of = {kind: str(kind) if kind in kept else OTHERS for kind in kinds}
        cut = "value"
    return [UNKNOWN if is_unknown(value) else name_of[value] for value in plain], cut


def _span(numbers: Sequence[float]) -> str:
    """The first and the last of sorted numbers."""
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g} to {numbers[-1]:g}"


def in_order(names: Sequence[str]) -> list[str]:
    """Names of groups once each: numbers by size, then texts, then what stands for the rest."""

    def key(name: str) -> tuple[int, float, str]:
        try:
            return 0, float(name.split(" to ")[0]), name
        except ValueError:
            return 1 + (name == OTHERS) + 2 * (name == UNKNOWN), 0.0, name

    return sorted(set(names), key=key)


def is_number(value: object) -> bool:
    """Whether it is a number, as opposed to a text, a switch or nothing."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_unknown(value: object) -> bool:
    """Whether nothing is said: None, empty text, a number that is not finite."""
    return value is None or value == "" or (isinstance(value, float | np.floating) and not np.isfinite(value))
