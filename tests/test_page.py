"""The report: strict JSON, a page that stands alone, honest words, nothing about single patients."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts.keys import BINARY, MULTICLASS, MULTILABEL
from scripts.reports.metrics import score
from scripts.reports.page import SYNTHETIC_BANNER, findings, summary_table, weakest, write_report
from tests.chromium import CHROMIUM, Chromium
from tests.results import NAMES, full_results, results

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects headings, visible text and references, and checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.text = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name.split(":")[-1] in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def words(self):
        """The visible text with single spaces."""
        return " ".join(" ".join(self.text).split())


def written(folder, given):
    path = write_report(folder, given)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of everything: its folder, the results, the page as text and read."""
    folder, given = tmp_path_factory.mktemp("report"), full_results()
    given["subgroups"][1]["groups"][0]["few"] = True
    before = copy.deepcopy(given)
    text, page = written(folder, given)
    assert list(given) == list(before)
    assert all(given[key] == before[key] for key in given if key not in ("labels", "probabilities")), "left as it came"
    return folder, given, text, page


def stands_alone(text, page):
    assert page.open == []
    assert page.references
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert "url(http" not in text
    assert "@import" not in text
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert "width=device-width" in text
    assert "@media print" in text


@pytest.mark.parametrize(("task_type", "num_pictures"), [(BINARY, 10), (MULTILABEL, 9)])
def test_page_stands_alone_and_closes_its_tags(tmp_path, task_type, num_pictures):
    text, page = written(tmp_path / "new", full_results(task_type))
    stands_alone(text, page)
    assert page.tags.count("svg") == num_pictures


def test_page_of_a_multiclass_task_stands_alone_too(report):
    _, _, text, page = report
    stands_alone(text, page)
    assert page.tags.count("svg") == 10


def test_page_escapes_what_comes_from_outside(report):
    _, _, text, page = report
    assert "<b>bold</b>" not in text
    assert "<evaluation>" not in text
    assert "<exams>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt;" in text
    assert any(NAMES[1] in data for data in page.text)
    assert any("About <shuffled order>." in data for data in page.text)


def test_report_json_is_strict_and_holds_everything_but_the_raw_arrays(report):
    folder, given, _, _ = report
    text = (folder / "report.json").read_text(encoding="utf-8")
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    assert set(found) == set(given) - {"labels", "probabilities", "patients"} | {"reliability"}
    assert found["model"]["balanced_accuracy"] == given["model"]["balanced_accuracy"]
    assert found["provenance"]["seed"] == 3
    assert found["history"]["25"]["training_loss"] == pytest.approx(given["history"][25]["training_loss"])
    assert found["history"]["7"]["validation_likelihood"] is None
    assert sum(entry["num"] for entry in found["reliability"]["bins"]) == 90
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_report_written_again_is_the_same_bytes(tmp_path):
    given = results()
    both = []
    for _ in range(2):
        write_report(tmp_path, given)
        both.append([(tmp_path / name).read_bytes() for name in ("report.json", "report.html")])
    assert both[0] == both[1]
    found = json.loads(both[0][0])
    assert set(found) == set(given) - {"labels", "probabilities", "patients"} | {"reliability"}


def test_everything_given_is_on_the_page(report):
    _, given, _, page = report
    words = page.words()
    temperature = given["temperature"]["temperature"]
    for expected in (
        "Does the pretrained encoder help? Not measured. No store of an untrained encoder was given. Make one: python",
        f"calibrated: logits are divided by {temperature:.3f}, fitted on split “validation”",
        "At chosen thresholds Best sum of sensitivity and specificity Chosen on split “validation” (90 sequences), "
        "judged on split “held out”.",
        "Specificity of at least 0.9",
        "By num_frames, in thirds",
        "By site Group",
        "few patients",
        "gru and mean compared",
        "DeLong's test takes for independent",
        "Training",
        "Two <exams> could not be read.",
        "Sensitivity at 90 % specificity",
    ):
        assert expected in words, expected
    entry = given["thresholds"][0]["per_class"]["pooling"]
    assert f"{entry['threshold']:.3f}" in words
    assert f"{entry['npv']['value']:.3f} [{entry['npv']['low']:.3f}, {entry['npv']['high']:.3f}]" in words
    p_value = given["comparison"]["per_class"]["pooling"]["delong"]["p_value"]
    assert f"] {p_value:.3f}" in words or p_value < 0.001
    assert words.count("few patients") == sum(g["few"] for found in given["subgroups"] for g in found["groups"])


def test_no_patient_is_named_only_counted(report):
    folder, given, text, _ = report
    assert "secret" not in text
    assert "secret" not in (folder / "report.json").read_text(encoding="utf-8")
    assert f"90 sequences of {len(set(given['patients']))} patients" in text


def test_summary_says_whether_order_time_and_more_frames_help(report):
    _, given, text, _ = report
    by_question = {finding["question"]: finding for finding in findings(given)}
    for question, control in (
        ("Does the order of frames help?", "shuffled order"),
        ("Does elapsed time help?", "time removed"),
        ("Does more than one frame help?", "single best frame"),
    ):
        difference = given["controls"][control]["difference"]
        assert by_question[question]["verdict"] == ("Yes" if difference["low"] > 0 else "Not shown")
        assert f"paired 95 % interval {difference['low']:+.3f} to {difference['high']:+.3f}" in text
    assert by_question["Does the order of frames help?"]["verdict"] == "Yes"


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_page_in_a_browser_fits_a_phone_prints_and_asks_for_nothing(tmp_path):
    names = [*NAMES, "a class with a name that is far longer than most", "x" * 60]
    path = write_report(tmp_path / "report", full_results(MULTICLASS, names=names))
    with Chromium(tmp_path / "profile") as browser:
        for width in (390, 320, 1200):
            browser.open(path, width)
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.requests() == [path.as_uri()]
            assert browser.complaints() == []
            assert browser.value("document.querySelectorAll('figure svg').length") == 10
            assert browser.value("Math.min(...[...document.querySelectorAll('svg')].map(s => s.clientWidth))") > 250
            sizes = "[...document.querySelectorAll('td, .limits')].map(e => parseFloat(getComputedStyle(e).fontSize))"
            assert browser.value(f"Math.min(...{sizes})") >= 11
            cut = "[...document.querySelectorAll('figure')].filter(f => f.scrollWidth > f.clientWidth + 1).length"
            assert browser.value(cut) == 0
        printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 5 <= len(re.findall(rb"/Type /Page\b", printed)) <= 20
    assert b"/URI" not in printed


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_browser_would_tell_of_requests_complaints_and_overflow(tmp_path):
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><p style='width:999px'>wide</p>"
        "<img src='http://127.0.0.1:9/absent.png'><script>console.error('complaint')</script>"
    )
    with Chromium(tmp_path / "profile") as browser:
        browser.open(path, 390)
        assert browser.value("document.documentElement.scrollWidth") > 900
        assert "http://127.0.0.1:9/absent.png" in browser.requests()
        assert any("complaint" in text for text in browser.complaints())


def test_thousand_classes_make_a_page_of_the_weakest(tmp_path):
    names = [f"class {k}" for k in range(1000)]
    given = results(names=names, num_resamples=20, controls=())
    del given["model"]["confusion"]  # a million numbers, tested with fewer classes
    text, page = written(tmp_path, given)
    assert page.open == []
    assert "The 60 classes with the lowest AUROC of 1000" in page.words()
    assert len(text) < 600_000


def test_weakest_classes_keep_their_order_and_leave_out_those_without_an_area_first():
    per_class = {name: {"auroc": {"value": value}} for name, value in zip("abcd", (0.9, None, 0.7, 0.8), strict=True)}
    assert weakest(per_class, list("abcd"), 4) == list("abcd")
    assert weakest(per_class, list("abcd"), 2) == ["c", "d"]
    assert weakest(per_class, list("abcd"), 3) == ["a", "c", "d"]


def test_page_of_real_data_has_no_banner(tmp_path, report):
    text, _ = written(tmp_path, results(synthetic=False, controls=()))
    assert SYNTHETIC_BANNER not in text
    assert SYNTHETIC_BANNER in report[2]


def test_summary_table_is_aligned_and_holds_every_number():
    given = results()
    lines = summary_table(given).splitlines()
    assert len(lines) == 2 + 1 + 3 + 2
    assert lines[0].endswith(" (synthetic)")
    column = lines[2].index("macro AUROC")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[2:6])
    assert lines[6:] == ["Does the order of frames help? Yes.", "Does more than one frame help? Yes."]
    assert f"{given['model']['balanced_accuracy']['value']:.3f} [" in lines[3]
    assert f"{given['controls']['shuffled order']['difference']['value']:+.3f} [" in lines[4]
    assert "synthetic" not in summary_table(given | {"synthetic": False})


def test_summary_table_names_the_controls_that_are_absent(report):
    lines = summary_table(report[1]).splitlines()
    question = "Does the pretrained encoder help? Not measured."
    assert lines[-1].startswith(f"{question} No store of an untrained encoder was given. Make one: python -m")


def test_subgroups_of_one_group_are_left_out_of_the_page(tmp_path, report):
    given = report[1]
    first, second = given["subgroups"]
    _, page = written(tmp_path, given | {"subgroups": [first | {"groups": first["groups"][:1]}, second]})
    assert f"By {first['column']}" not in page.words()
    assert f"By {second['column']}" in page.words()


def test_split_of_one_sequence_and_no_controls_is_reported_with_its_gaps(tmp_path):
    given = results(BINARY)
    given |= {
        "labels": np.array([1]),
        "probabilities": np.array([[0.3, 0.7]]),
        "patients": ["x"],
        "controls": {},
    }
    given["model"] = score([1], [[0.3, 0.7]], BINARY, NAMES[:2], ["x"])
    text, page = written(tmp_path, given)
    assert page.open == []
    assert "not defined" in text
    assert "One patient only" in text
    assert "1 sequence of 1 patient," in text
    assert "nan" not in page.words().lower().split()
    assert "1.000 (no interval)" in summary_table(given)


def test_missing_entry_is_named(tmp_path):
    given = results()
    del given["provenance"]
    with pytest.raises(ValueError, match=r"missing entries of the results is .?provenance"):
        write_report(tmp_path, given)
