"""The check's page, JSON and terminal text say what the list holds; the page needs nothing but itself."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.__main__ import Commands
from scripts.datalists import check as check_module
from scripts.datalists import sheet as sheet_module
from scripts.datalists.datalist import Task
from scripts.datalists.findings import Exam, Reading
from scripts.datalists.sheet import choose_sample, label_text, pictures_of, run_check, thumbnail
from scripts.errors import SequenceError
from scripts.keys import CLASSES, FRAME_TIMES, IMAGE, LABEL, PATIENT, SOURCE, SPLITS, SYNTHETIC, TASK, TYPE
from tests.conftest import PERSON, assert_no_person, save_dicom
from tests.exams import write_exam

BUNDLE_ROOT = Path(__file__).parents[1]
VOID_ELEMENTS = ("meta", "br", "img", "hr", "link", "input")
TIMED = {"FrameIncrementPointer": 0x00181063, "FrameTime": 500.0}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in its turn; keeps its pictures, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[Image.Image]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
        return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources]


@pytest.fixture
def listed(tmp_path) -> Path:
    """A list of six sequences of six patients, two in each split, and their files."""
    content: dict[str, Any] = {TASK: {TYPE: "binary", CLASSES: ["slow", "fast"]}}
    for split in SPLITS:
        content[split] = []
        for label in (0, 1):
            name = f"{split}/{label}.dcm"
            write_exam(tmp_path / name, 6 + label, seed=2 * SPLITS.index(split) + label, frame_time_ms=500.0)
            content[split].append({IMAGE: name, LABEL: label, PATIENT: name})
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    return path


def change(path: Path, **entries: Any) -> None:
    """Change the first entry of the test split, or, by `synthetic`, the list."""
    content = json.loads(path.read_text())
    if SYNTHETIC in entries:
        content[SYNTHETIC] = entries.pop(SYNTHETIC)
    content["test"][0] |= entries
    path.write_text(json.dumps(content))


def page_of(path: Path, **settings: Any) -> Page:
    run_check(path, progress=False, **settings)
    return Page((path.parent / "check.html").read_text(encoding="utf-8"))


def test_page_is_one_file_without_network_or_script(listed):
    page = page_of(listed)
    text = (listed.parent / "check.html").read_text()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:", re.sub(r"base64,[^\"]+", "", text))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert any(attributes.get("name") == "viewport" for _, attributes in page.elements)


def test_page_shows_five_pictures_of_each_sequence_with_path_label_duration_and_times(listed):
    page = page_of(listed)
    assert len(page.pictures) == 6 * 5
    assert all(picture.mode == "L" and picture.format == "JPEG" for picture in page.pictures)
    for split in SPLITS:
        assert f"{split}/0.dcm{split}, slow, 6 frames, 2.5 s" in page.text
        assert f"{split}/1.dcm{split}, fast, 7 frames, 3.0 s" in page.text
    captions = re.findall(r"frame \d+, [\d.]+ s", page.text)
    assert captions[5:10] == [f"frame {1 + t}, {t / 2} s" for t in (0, 2, 3, 5, 6)]  # 7 frames: 0, 1.5, 3, 4.5, 6
    assert "Pass: 0 problems, 0 suspicious items." in page.text


def test_page_names_every_problem_under_its_heading(listed):
    change(listed, frame_times_ms=[0, 1])
    (listed.parent / "training/1.dcm").unlink()
    page = page_of(listed)
    assert "Fail: 2 problems, 0 suspicious items." in page.text
    problems, _, suspicious = page.text.partition("Suspicious items")
    assert re.search(r"Cannot be read \(1\)\s*training/1.dcm training\[1\]", problems)
    assert re.search(r"do not fit the exam \(1\)\s*test/0.dcm test\[0\]", problems)
    assert len(page.pictures) == 4 * 5 and "None." in suspicious


def test_page_says_that_data_are_synthetic_only_where_the_list_does(listed):
    assert "Synthetic" not in page_of(listed).text
    change(listed, synthetic=True)
    assert "Synthetic data: these numbers say nothing about patients." in page_of(listed).text


def test_names_of_the_list_are_text_and_never_markup(listed):
    name = '<b onload="x">&amp;.dcm'
    (listed.parent / "test/0.dcm").rename(listed.parent / name)
    change(listed, image=name)
    page = page_of(listed)
    assert name in page.text
    assert {tag for tag, _ in page.elements}.isdisjoint({"b"})
    assert any(attributes.get("alt", "").startswith(name) for tag, attributes in page.elements if tag == "img")


def test_long_lists_of_findings_end_in_their_number(listed):
    content = json.loads(listed.read_text())
    content["test"] += [{IMAGE: f"absent/{i}.dcm", PATIENT: f"p{i}"} for i in range(30)]
    listed.write_text(json.dumps(content))
    text, passed = run_check(listed, progress=False)
    page = Page((listed.parent / "check.html").read_text())
    assert not passed and "PROBLEM: Cannot be read (30)" in text and "... and 25 more in check.json" in text
    assert "and 10 more in check.json" in page.text
    assert len(json.loads((listed.parent / "check.json").read_text())["problems"]) == 30


# --- pictures ---


def item_exam(path: Path, **item: Any) -> Exam:
    return Exam("test", 0, {IMAGE: path, SOURCE: path.name, **item})


def values_of(pictures: list[tuple[str, str]]) -> np.ndarray:
    """Grey values (T, h, w) of pictures as JPEG has kept them."""
    decoded = [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source, _ in pictures]
    return np.stack([np.asarray(picture, dtype=np.float32) for picture in decoded])


def wash_in(num_frames: int = 9, rows: int = 40, columns: int = 80) -> np.ndarray:
    """Frames (T, H, W) uint8: dark, with a right half that gets brighter from frame to frame."""
    frames = np.full((num_frames, rows, columns), 20, np.uint8)
    frames[:, :, columns // 2 :] = np.linspace(20, 220, num_frames).astype(np.uint8)[:, None, None]
    return frames


def test_pictures_share_one_grey_scale_so_that_contrast_is_seen_to_come(tmp_path):
    path = save_dicom(tmp_path / "run.dcm", wash_in())
    values = values_of(pictures_of(item_exam(path), 2**30))
    assert values.shape == (5, 40, 80)
    assert values[:, :, :32].max() < 12  # the left half stays dark in all
    np.testing.assert_allclose(values[:, 20, 60], [0, 64, 128, 191, 255], atol=6)


def test_pictures_of_monochrome1_are_those_of_the_same_scene_in_monochrome2(tmp_path):
    plain = save_dicom(tmp_path / "plain.dcm", wash_in())
    inverted = save_dicom(tmp_path / "inverted.dcm", 255 - wash_in(), PhotometricInterpretation="MONOCHROME1")
    plain_values, inverted_values = (values_of(pictures_of(item_exam(path), 2**30)) for path in (plain, inverted))
    np.testing.assert_allclose(plain_values, inverted_values, atol=3)
    assert plain_values.max() > 240


def test_pictures_keep_to_the_frames_and_times_of_the_list(tmp_path):
    path = save_dicom(tmp_path / "run.dcm", wash_in(), **TIMED)
    times = [None if t == 4 else 1000.0 * t for t in range(9)]
    pictures = pictures_of(item_exam(path, frames=[2, 4, 6], **{FRAME_TIMES: times}), 2**30)
    assert [caption for _, caption in pictures] == ["frame 3, 2.0 s", "frame 5", "frame 7, 6.0 s"]


def test_sequence_of_one_frame_gives_one_picture(tmp_path):
    path = save_dicom(tmp_path / "run.dcm", wash_in()[4:5])
    assert [caption for _, caption in pictures_of(item_exam(path), 2**30)] == ["frame 1, 0.0 s"]


@pytest.mark.parametrize("shape, expected", [((1024, 512), (160, 80)), ((300, 600), (80, 160)), ((30, 20), (30, 20))])
def test_thumbnail_is_small_and_keeps_its_aspect(shape, expected):
    small = thumbnail(torch.arange(shape[0] * shape[1], dtype=torch.float32).reshape(shape))
    assert tuple(small.shape) == expected and small.dtype == torch.float32


def test_frame_that_cannot_be_decoded_after_all_is_a_problem(listed, monkeypatch):
    read_frames = sheet_module.read_frames

    def fail_at_the_end(header, indices):
        if header.files[0] == listed.parent / "test/0.dcm" and list(indices) == [5]:
            raise SequenceError(f"{header.files[0]}: frame is broken, needs a whole one.")
        return read_frames(header, indices)

    monkeypatch.setattr(sheet_module, "read_frames", fail_at_the_end)
    text, passed = run_check(listed, progress=False)
    assert not passed and "test[0] test/0.dcm: frame is broken, needs a whole one." in text
    assert len(Page((listed.parent / "check.html").read_text()).pictures) == 5 * 5


def test_pictures_decode_no_more_than_their_frames(listed, monkeypatch):
    decoded: list[int] = []
    read_frames = check_module.read_frames

    def count(header, indices):
        decoded.extend(indices)
        return read_frames(header, indices)

    monkeypatch.setattr(check_module, "read_frames", count)
    monkeypatch.setattr(sheet_module, "read_frames", count)
    run_check(listed, sample=2, progress=False)
    assert len(decoded) == 6 + 2 * 5


# --- the sample ---


def read_exam(split: str, position: int, label: int, warning: str = "", digest: str | None = "d") -> Exam:
    reading = Reading("dicom", "XA", (), "MONOCHROME2", 8, 5, 8, 8, 0, 1.0, 250.0, digest, (warning,) * bool(warning))
    return Exam(split, position, {LABEL: label}, reading)


def test_sample_draws_every_split_and_class_before_any_a_second_time():
    exams = [read_exam("training", i, 0) for i in range(200)] + [read_exam("training", 200, 1)]
    exams += [read_exam("test", i, i % 2) for i in range(50)]
    for seed in range(5):
        chosen = choose_sample(exams, 4, seed)
        assert {(exam.split, exam.item[LABEL]) for exam in chosen} == {(s, k) for s in SPLITS[::2] for k in (0, 1)}
    assert [exam.where for exam in chosen] == [exam.where for exam in exams if exam in chosen]


def test_sample_is_drawn_by_its_seed_alone():
    exams = [read_exam("test", i, 0) for i in range(100)]
    np.random.seed(1)  # noqa: NPY002  # the state that must stay as it is
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert choose_sample(exams, 10, 3) == choose_sample(exams, 10, 3) != choose_sample(exams, 10, 4)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize("size, expected", [(0, 0), (3, 3), (99, 5)])
def test_sample_has_its_size_or_all(size, expected):
    assert len(choose_sample([read_exam("test", i, 0) for i in range(5)], size, 0)) == expected


def test_sample_leaves_out_pixels_that_may_name_a_person_or_show_nothing():
    shown = read_exam("test", 0, 0)
    burned = read_exam("test", 1, 0, warning="(0028,0301) BurnedInAnnotation is YES: the pixels may show a name")
    empty, unread = read_exam("test", 2, 0, digest=None), Exam("test", 3, {LABEL: 0})
    assert choose_sample([shown, burned, empty, unread], 9, 0) == [shown]


def test_exam_with_burned_in_annotation_has_no_picture_on_the_page(listed):
    save_dicom(listed.parent / "test/0.dcm", wash_in(), **TIMED, BurnedInAnnotation="YES")
    page = page_of(listed)
    assert len(page.pictures) == 5 * 5
    assert "BurnedInAnnotation is YES" in page.text and "may show a person's data are left out" in page.text


@pytest.mark.parametrize(
    "label, kind, text",
    [(1, "binary", "fast"), ([1, 1], "multilabel", "slow | fast"), ([0, 0], "multilabel", "none of the classes")],
)
def test_label_text_names_the_classes(label, kind, text):
    assert label_text({LABEL: label}, Task(kind, ("slow", "fast"))) == text
    assert label_text({}, Task(kind, ("slow", "fast"))) == label_text({LABEL: label}, None) == "no label"


# --- numbers, files, command ---


def test_json_holds_every_sequence_and_the_numbers_of_every_split(listed):
    run_check(listed, progress=False)
    found = json.loads((listed.parent / "check.json").read_text())
    assert found["passed"] is True and found["problems"] == found["suspicious"] == []
    assert [sequence["where"] for sequence in found["sequences"]] == [f"{s}[{i}]" for s in SPLITS for i in (0, 1)]
    second = found["sequences"][1]
    assert {key: second[key] for key in ("source", "label", "container", "num_frames", "rows", "duration_s")} == {
        "source": "training/1.dcm",
        "label": 1,
        "container": "dicom",
        "num_frames": 7,
        "rows": 24,
        "duration_s": 3.0,
    }
    assert list(found["splits"]) == [*SPLITS, "all"]
    total = found["splits"]["all"]
    assert (total["sequences"], total["readable"], total["patients"], total["times_unknown"]) == (6, 6, 6, 0)
    assert total["frames"] == {"min": 6, "median": 6.5, "max": 7}
    assert total["duration_s"] == {"min": 2.5, "median": 2.75, "max": 3.0}
    assert total["classes"] == {"slow": 3, "fast": 3}
    assert found["formats"]["transfer syntax"] == {"Explicit VR Little Endian": 6}


def test_json_has_null_where_a_number_is_not_known(listed):
    save_dicom(listed.parent / "test/0.dcm", wash_in())
    (listed.parent / "test/1.dcm").unlink()
    run_check(listed, progress=False)
    text = (listed.parent / "check.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = json.loads(text)
    untimed, absent = found["sequences"][4:]
    assert (untimed["readable"], untimed["duration_s"], untimed["unknown_times"]) == (True, None, 8)
    assert absent == {"source": "test/1.dcm", "where": "test[1]", "label": 1, "readable": False}
    assert found["splits"]["test"]["times_unknown"] == 1 and found["splits"]["test"]["duration_s"] is None


def test_terminal_text_shows_splits_side_by_side_and_ends_in_the_verdict(listed):
    change(listed, frame_times_ms=[0, 10, 10, 20, 30, 40])
    text, passed = run_check(listed, progress=False)
    rows = {line[:20].strip(): re.split(r" {2,}", line[20:].strip()) for line in text.splitlines() if line}
    assert rows["sequences"] == ["2", "2", "2", "6"]
    assert rows["class fast"] == ["1 (50%)", "1 (50%)", "1 (50%)", "3 (50%)"]
    assert "suspicious: Times (1)\n  test[0] test/0.dcm: 1 of 5 gaps are 0 ms" in text
    assert passed and text.splitlines()[-1] == "pass: 0 problems, 1 suspicious item"


def test_same_list_gives_the_same_files_and_leaves_no_others(listed):
    before = set(listed.parent.rglob("*"))
    written = []
    for _ in range(2):
        run_check(listed, progress=False)
        written.append([(listed.parent / name).read_bytes() for name in ("check.json", "check.html")])
    assert written[0] == written[1]
    new = set(listed.parent.rglob("*")) - before
    assert {path.name for path in new} == {"check.json", "check.html"}


def test_output_dir_gets_the_files_and_dataset_dir_says_where_exams_are(listed, tmp_path):
    elsewhere = tmp_path / "lists/here.json"
    elsewhere.parent.mkdir()
    elsewhere.write_text(listed.read_text())
    _, passed = run_check(elsewhere, listed.parent, tmp_path / "new/output", progress=False)
    assert passed
    assert sorted(path.name for path in (tmp_path / "new/output").iterdir()) == ["check.html", "check.json"]
    assert [path.name for path in elsewhere.parent.iterdir()] == ["here.json"]


def test_a_list_that_the_check_would_overwrite_is_refused_and_kept(listed):
    text = listed.read_text()
    (listed.parent / "check.json").write_text(text)
    with pytest.raises(ValueError, match=r"check\.json"):
        run_check(listed.parent / "check.json", progress=False)
    assert (listed.parent / "check.json").read_text() == text


@pytest.mark.parametrize("setting", [{"sample": -1}, {"sample": "many"}, {"max_sequence_bytes": 0}, {"sample": True}])
def test_settings_out_of_range_are_refused_by_name(listed, setting):
    with pytest.raises(ValueError, match=f"check: {next(iter(setting))} is .*, needs a whole number of at least"):
        run_check(listed, progress=False, **setting)


def test_empty_list_is_shown_without_pictures(tmp_path):
    (tmp_path / "list.json").write_text('{"test": []}')
    text, passed = run_check(tmp_path / "list.json", progress=False)
    assert passed and "0 sequences" in text
    page = Page((tmp_path / "check.html").read_text())
    assert page.pictures == [] and "No pictures." in page.text


def test_command_line_ends_in_the_verdict_and_its_status(listed):
    def run(*options: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "scripts", "check", str(listed), *options]
        done = subprocess.run(command, cwd=BUNDLE_ROOT, capture_output=True, text=True)
        assert "Traceback" not in done.stderr and "checking: 100%" in done.stderr
        return done.returncode, done.stdout.splitlines()[-1]

    assert run() == (0, "pass: 0 problems, 0 suspicious items")
    (listed.parent / "test/0.dcm").unlink()
    assert run("--sample=0") == (1, "fail: 1 problem, 0 suspicious items")
    page = Page((listed.parent / "check.html").read_text())
    assert page.pictures == [] and "test/0.dcm" in page.text and "No pictures." in page.text


def test_command_prints_the_table_and_fails_with_status_one(listed, capsys):
    Commands().check(str(listed))
    assert capsys.readouterr().out.splitlines()[-1] == "pass: 0 problems, 0 suspicious items"
    (listed.parent / "test/0.dcm").write_bytes(b"")
    with pytest.raises(SystemExit) as ended:
        Commands().check(str(listed))
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == "fail: 1 problem, 0 suspicious items"


def test_nothing_of_a_person_is_in_page_json_or_text(listed, capsys, caplog):
    save_dicom(listed.parent / "training/0.dcm", wash_in(), **TIMED, **PERSON)
    save_dicom(listed.parent / "test/0.dcm", wash_in(), **PERSON, Rows=9)
    text, passed = run_check(listed)
    files = [(listed.parent / name).read_text() for name in ("check.json", "check.html")]
    assert not passed and "training/0.dcm" in files[0] and "training/0.dcm" in files[1]
    assert_no_person(text, *files, *capsys.readouterr(), caplog.text)
