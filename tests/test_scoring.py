"""Scores of candidates: those of metrics on stacked predictions, the choice, and what choosing adds to a score."""

import numpy as np
import pytest

from scripts.datalists.items import Task
from scripts.reports.calibration import probabilities_of
from scripts.reports.metrics import checked, score
from scripts.reports.resampling import patient_draws, resampled
from scripts.selection.exams import Exams
from scripts.selection.scoring import SHOWN, corrected_for_choice, score_candidates, stacked
from scripts.selection.search import Candidate

GRADES = Task("multiclass", ("none", "mild", "severe"))


def exams_of(labels: np.ndarray, task: Task = GRADES, exams_each: int = 2) -> Exams:
    patients = [f"P{n // exams_each}" for n in range(len(labels))]
    return Exams([{}] * len(labels), labels, labels, patients, task, True, "")


def candidate_of(exams: Exams, skill: float, seed: int, repeats: int = 2) -> Candidate:
    """Logits that rise by `skill` for the true class, else noise."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(repeats, len(exams.labels), len(exams.task.classes)))
    truth = exams.labels == 1 if exams.labels.ndim == 2 else exams.labels[:, None] == np.arange(logits.shape[2])
    settings = {"head_name": f"head {seed}", "learning_rate": 0.001}
    return Candidate(settings, logits + skill * truth, best_epochs=[3, 9, 4])


@pytest.fixture
def exams() -> Exams:
    return exams_of(np.random.default_rng(0).integers(3, size=60))


def test_scores_are_those_of_all_predictions_with_patients_resampled(exams):
    candidate = candidate_of(exams, 1.0, 1)
    (entry,) = score_candidates([candidate], exams, num_resamples=200, seed=4)["candidates"]
    labels, patients = np.tile(exams.labels, 2), exams.patients * 2
    probabilities = probabilities_of(candidate.logits.reshape(120, 3), "multiclass")
    wanted = score(labels, probabilities, "multiclass", GRADES.classes, patients, 200, 4)
    assert entry["scores_all"] == wanted
    assert entry["scores"] == {name: wanted[name] for name in SHOWN}
    assert wanted["num_patients"] == 30
    assert entry["epochs"] == 4  # the median


def test_candidates_are_ordered_by_likelihood_and_say_how_far_below_the_first_they_are(exams):
    candidates = [candidate_of(exams, skill, n) for n, skill in enumerate((0.5, 2.0, 1.0))]
    found = score_candidates(candidates, exams, 200)
    likelihoods = [entry["scores"]["likelihood"]["value"] for entry in found["candidates"]]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert [entry["settings"]["head_name"] for entry in found["candidates"]] == ["head 1", "head 2", "head 0"]
    assert found["chosen"] == candidates[1].settings
    assert found["candidates"][0]["below_chosen"] is None
    for entry, likelihood in zip(found["candidates"][1:], likelihoods[1:], strict=True):
        below = entry["below_chosen"]
        assert below["value"] == pytest.approx(likelihoods[0] - likelihood)
        assert 0 < below["low"] < below["value"] < below["high"]
    assert found["temperature"]["split"] == "out of fold" and found["temperature"]["num_sequences"] == 120


def test_candidate_that_lacks_a_fold_is_scored_on_the_rest_and_never_chosen(exams):
    best, other = candidate_of(exams, 3.0, 0), candidate_of(exams, 0.5, 1)
    best.logits[1, :20] = np.nan
    best.failures.append("repeat 2, fold 1: no")
    found = score_candidates([best, other], exams, 100)
    assert found["chosen"] == other.settings and found["corrected"] is None
    assert found["candidates"][0]["settings"] == other.settings
    rest = found["candidates"][1]
    assert rest["below_chosen"] is None and rest["scores_all"]["num_sequences"] == 100
    labels, logits, patients = stacked(best, exams)
    assert labels.tolist() == [*exams.labels, *exams.labels[20:]] and len(logits) == 100
    assert patients == [*exams.patients, *exams.patients[20:]]


def test_search_in_which_everything_failed_has_no_choice_and_no_numbers(exams):
    nothing = Candidate({"head_name": "gru"}, np.full((1, 60, 3), np.nan), failures=["repeat 1, fold 1: no"])
    found = score_candidates([nothing], exams, 100)
    assert found["chosen"] is None and found["temperature"] is None
    assert all(estimate["value"] is None for estimate in found["candidates"][0]["scores"].values())
    assert found["candidates"][0]["epochs"] is None


def test_grades_have_a_quadratic_kappa(exams):
    for task in (GRADES, Task("multiclass", GRADES.classes, ordered=True)):
        graded = exams_of(exams.labels, task)
        (entry,) = score_candidates([candidate_of(graded, 1.0, 1)], graded, 100)["candidates"]
        assert ("quadratic_kappa" in entry["scores_all"]) == task.ordered


def test_unknown_labels_of_multilabel_count_nowhere():
    labels = np.random.default_rng(0).integers(-1, 2, size=(60, 3))
    exams = exams_of(labels, Task("multilabel", GRADES.classes))
    (entry,) = score_candidates([candidate_of(exams, 1.0, 1, repeats=1)], exams, 100)["candidates"]
    known = [entry["scores_all"]["per_class"][name]["num_known"] for name in GRADES.classes]
    assert known == (labels >= 0).sum(axis=0).tolist()


def test_corrected_score_is_that_of_the_choice_made_in_each_resample_by_the_patients_outside(exams):
    candidates = [candidate_of(exams, 0.3, n, repeats=1) for n in range(3)]
    probabilities = [probabilities_of(candidate.logits[0], "multiclass") for candidate in candidates]
    splits = [checked(exams.labels, p, "multiclass", GRADES.classes, exams.patients) for p in probabilities]
    found = corrected_for_choice(splits, 50, seed=3)
    values: dict[str, list[float]] = {name: [] for name in SHOWN}
    for draw in patient_draws(30, 50, 3)[1:51]:
        of = [resampled(split, draw[None])[0]["likelihood"][0] for split in splits]
        best = splits[int(np.argmax(of))]
        outside = (draw == 0)[best.group]
        named = np.array(exams.patients)[outside]
        rest = score(exams.labels[outside], best.scores[outside], "multiclass", GRADES.classes, named, 0)
        for name in SHOWN:
            values[name].append(rest[name]["value"])
    for name in SHOWN:
        wanted = [np.mean(values[name]), *np.quantile(values[name], [0.025, 0.975])]
        np.testing.assert_allclose([found[name][key] for key in ("value", "low", "high")], wanted, atol=1e-9)


def test_best_of_many_useless_candidates_looks_good_and_its_corrected_score_does_not():
    flattered, corrected = [], []
    for seed in range(12):
        labels = np.random.default_rng(seed).integers(3, size=60)
        exams = exams_of(labels)
        candidates = [candidate_of(exams, 0.0, 100 * seed + n, repeats=1) for n in range(30)]
        splits = [
            checked(labels, probabilities_of(c.logits[0], "multiclass"), "multiclass", GRADES.classes, exams.patients)
            for c in candidates
        ]
        apparent = [resampled(split, np.ones((1, 30)))[0] for split in splits]
        best = max(apparent, key=lambda scores: scores["likelihood"][0])
        flattered.append(best["macro_auroc"][0])
        corrected.append(corrected_for_choice(splits, 100, 0)["macro_auroc"]["value"])
    assert np.mean(flattered) > 0.58  # by choice alone: what there is to know is nothing, 0.5
    assert abs(np.mean(corrected) - 0.5) < 0.03
