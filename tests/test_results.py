"""Results of a choice on paper: page, CSV, JSON and table say the same, without a person or a script in them."""

import csv
import io
import json

import numpy as np
import pytest

from scripts.datalists.items import Task
from scripts.selection.exams import Exams
from scripts.selection.results import csv_of, html_of, table_of, write_results
from scripts.selection.scoring import score_candidates
from scripts.selection.search import Candidate
from tests.chromium import CHROMIUM, Chromium

SCRIPT = "<script>alert(1)</script>"


def results_of(num: int = 3, synthetic: bool = True, failing: bool = False, classes=("none", "mild", SCRIPT)) -> dict:
    """Scores of `num` candidates, the first the best, on 40 exams of 20 patients."""
    random = np.random.default_rng(0)
    labels = random.integers(3, size=40)
    exams = Exams(
        [{}] * 40, labels, labels, [f"Doe {n // 2}" for n in range(40)], Task("multiclass", classes), True, ""
    )
    candidates = []
    for n in range(num):
        logits = random.normal(size=(1, 40, 3)) + (num - n) * (labels[:, None] == np.arange(3))
        candidates.append(Candidate({"head_name": f"head{n}", "learning_rate": 0.001}, logits, best_epochs=[4 + n]))
    if failing:
        candidates[0].failures += [f"repeat 1, fold {n}: <b>loss</b> is nan" for n in range(1, 6)]
        candidates[0].logits[0, :9] = np.nan
    candidates[-1].warnings.append("validation: label is never mild")
    counts = {"num_exams": 40, "num_patients": 20, "num_folds": 5, "num_repeats": 1, "num_resamples": 100}
    scores = score_candidates(candidates, exams, 100)
    return {"title": "Recipes", "synthetic": synthetic, **counts, **scores, "provenance": {"torch": "2.15", "seed": 0}}


def test_table_has_a_row_for_each_candidate_best_first_and_says_what_was_chosen():
    lines = table_of(results_of()).splitlines()
    assert lines[0] == "Recipes (synthetic)"
    assert lines[1] == "40 exams of 20 patients in training and validation, 5 folds, 1 repeat, 95 % intervals"
    assert [line.split()[:2] for line in lines[3:6]] == [["1", "head0"], ["2", "head1"], ["3", "head2"]]
    assert lines[6].startswith("Chosen: head0, 0.001, the likeliest; clearly so beside ")
    assert "The best of 3 tends to look better than it is." in lines[7]
    assert "the test split was not looked at" in lines[8]


def test_single_candidate_was_not_chosen_among_others():
    text = table_of(results_of(1, synthetic=False))
    assert "Chosen" not in text and "best of" not in text and "synthetic" not in text


def test_failed_folds_are_counted_and_some_of_them_told():
    text = table_of(results_of(failing=True))
    assert "failed: head0, 0.001, 5 folds; not chosen" in text
    assert text.count("loss") == 3
    assert "Chosen: head1" in text
    assert "None is chosen" in table_of(results_of(1, failing=True))


def test_csv_holds_the_numbers_of_the_json():
    results = results_of(failing=True)
    rows = list(csv.DictReader(io.StringIO(csv_of(results))))
    assert len(rows) == 3
    for row, entry in zip(rows, results["candidates"], strict=True):
        assert row["head_name"] == entry["settings"]["head_name"]
        for name in ("likelihood", "balanced_accuracy", "macro_auroc"):
            assert float(row[name]) == entry["scores"][name]["value"]
            assert float(row[f"{name}_low"]) == entry["scores"][name]["low"]
        assert int(row["failed_folds"]) == len(entry["failures"])
    assert rows[0]["below_chosen"] == "" and float(rows[1]["below_chosen_high"]) > 0


def test_files_are_written_together_and_name_no_patient(tmp_path):
    page = write_results(tmp_path / "sweep", results_of())
    assert sorted(path.name for path in page.parent.iterdir()) == ["results.csv", "results.html", "results.json"]
    content = json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert content["chosen"] == {"head_name": "head0", "learning_rate": 0.001}
    assert len(content["candidates"]) == 3
    assert not any("Doe" in path.read_text() for path in page.parent.iterdir())


def test_page_is_labelled_synthetic_only_where_it_is():
    assert "Synthetic data" in html_of(results_of())
    assert "Synthetic" not in html_of(results_of(synthetic=False))


def test_page_escapes_what_it_shows_and_tells_warnings_and_failures():
    html = html_of(results_of(failing=True))
    assert "<b>loss" not in html and "&lt;b&gt;loss" in html
    assert "validation: label is never mild" in html
    assert "5 folds failed" in html and "<script" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_asks_for_nothing_and_fits_a_phone(tmp_path):
    path = write_results(tmp_path, results_of(12, failing=True))
    with Chromium(tmp_path / "profile") as browser:
        for width in (360, 1200):
            browser.open(path, width)
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.requests() == [path.as_uri()] and browser.complaints() == []
            assert browser.value("document.querySelectorAll('tbody')[0].rows.length") == 12
            assert browser.value("document.querySelector('figure svg').clientWidth") > 250
