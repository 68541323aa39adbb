"""The page of a memory plan: its pictures hold what its table says, nothing is asked of a network, names are text."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from torch import nn

from scripts.memory.plan import Plan, make_plan
from scripts.memory.search import Workload, search, whole_batch
from scripts.memory.storages import BACKWARD, FORWARD, OPTIMIZER
from scripts.memory.subjects import Subject
from scripts.reports.plan_page import MAX_POINTS, over_the_step, write_page
from tests.chromium import CHROMIUM, Chromium
from tests.test_plots import texts

HOSTILE = "<script>alert(1)</script> $x_"


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Of eight small layers, with too little memory for all their activations at once."""
    network = nn.Sequential(*[nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(8)])
    workload = Workload(lambda: network, (512, 64), 8, splittable=False, amp=False, device_type="cpu")
    plain = whole_batch(workload, {"kind": "none"})
    free = int(0.8 * plain.peak_bytes)
    return Plan(Subject(HOSTILE, workload), 2 * free, free, *search(workload, free, everything=True), plain)


@pytest.fixture(scope="module")
def page(plan, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("plan") / "new" / "plan.html", plan)


def pictures(page) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page.read_text(), re.S)


def test_page_holds_every_candidate_the_plan_and_what_applies_it(plan, page):
    text = page.read_text()
    assert plan.best is not None
    rows = re.findall(r'<tr[^>]*><th scope="row">[^<]*</th>((?:<td>[^<]*</td>)+)</tr>', text)
    cells = [re.findall(r"<td>([^<]*)</td>", row) for row in rows]
    assert [row[1:] for row in plan.rows] == cells[: len(plan.rows)]
    assert len(plan.rows) >= 6
    assert plan.code.replace("'", "&#39;") in text
    assert "finetune.yaml" not in text and plan.use in text  # which trains no such network
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    assert not list(page.parent.glob("*.tmp"))


def test_pictures_show_the_limit_the_causes_and_both_courses(plan, page):
    frontier, causes, course = pictures(page)
    assert f"limit, {plan.free_bytes / 1e9:.2f} GB" in texts(frontier)
    assert {"chosen", "segments", "selective"} <= set(texts(frontier))
    assert {"weights", "activations", "transient"} <= set(texts(causes))
    assert sum(text.endswith("(the plan)") for text in texts(causes)) == 1
    assert texts(course).count("backward") == 2
    for picture in (frontier, causes, course):
        ET.fromstring(picture)


def test_course_of_a_step_keeps_its_highest_moment(plan):
    across, alive, phases = over_the_step(plan.plain.measurement)
    assert alive.max() == plan.plain.peak_bytes / 1e9
    assert len(across) == len(alive) <= MAX_POINTS
    assert [name for _, _, name in phases] == [FORWARD, BACKWARD, OPTIMIZER]
    assert (phases[0][0], phases[-1][1]) == (0, 100)


def test_a_plan_in_which_nothing_fits_has_a_page_too(plan, tmp_path):
    refused = make_plan(Subject("layers", plan.workload), "1MB")
    text = write_page(tmp_path / "plan.html", refused).read_text()
    assert "Nothing fits" in text
    assert "<pre>" not in text
    assert len(pictures(tmp_path / "plan.html")) == 3


def test_a_plan_whose_steps_were_read_off_a_line_has_a_page_without_their_course(plan, tmp_path):
    plain, best = (replace(found, measurement=None) for found in (plan.plain, plan.best))
    others = [found for found in plan.candidates if found not in (plan.plain, plan.best)]
    page = write_page(tmp_path / "plan.html", replace(plan, plain=plain, best=best, candidates=[best, *others]))
    assert len(pictures(page)) == 2
    assert f"{plain.peak_bytes / 1e9:.2f} GB at its peak" in page.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_page_asks_for_nothing_and_no_label_covers_another(page, tmp_path):
    covered = """(() => {
      const found = [];
      for (const svg of document.querySelectorAll('svg')) {
        const outer = svg.getBoundingClientRect();
        const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent.trim(), t.getBoundingClientRect()]);
        for (const [name, a] of boxes) {
          const across = a.right > outer.right + 1 || a.left < outer.left - 1;
          if (across || a.bottom > outer.bottom + 1 || a.top < outer.top - 1)
            found.push('clipped: ' + name);
          for (const [other, b] of boxes)
            if (a !== b && a.left + 1 < b.right && b.left + 1 < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)
              found.push(name + ' on ' + other);
        }
      }
      return found;
    })()"""
    with Chromium(tmp_path / "profile") as browser:
        for width in (390, 1200):
            browser.open(page, width)
            assert browser.value("document.querySelectorAll('svg').length") == 3
            assert browser.value(covered) == []
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.requests() == [page.as_uri()]
            assert browser.complaints() == []
        assert browser.pdf().startswith(b"%PDF")
