"""The AngioReport layout becomes a datalist: frames in time however dirty, both eyes one patient, labels told."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.datalists.collect import make_datalist
from scripts.datalists.datalist import read_datalist, read_task
from scripts.datalists.exam_rows import exam_name
from scripts.datalists.layouts import elapsed_seconds, in_time_order, is_angioreport, read_angioreport
from scripts.keys import FRAME_TIMES, IMAGE, LABEL, MODALITY, PATIENT, SOURCE, SPLITS, SYNTHETIC
from scripts.sequences.images import read_header
from tests.angioreport import CLASSES, SECONDS, write_angioreport
from tests.conftest import assert_message

BASE = "Train/Train"


@pytest.fixture
def exams(tmp_path):
    """`exams("12_L", "12_R", frames=3)` writes frames 0.jpg, ... of each exam; returns the root."""

    def write(*names: str, frames: int = 3, base: str = BASE) -> Path:
        for name in names:
            for n in range(frames):
                save_frame(tmp_path / "data" / base / name / f"{n}.jpg")
        return tmp_path / "data"

    return write


def save_frame(path: Path, rows: int = 8, columns: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((rows, columns), np.uint8)).save(path)


def write_json(root: Path, content: object) -> Path:
    path = root / "split.json"
    path.write_text(json.dumps(content))
    return path


def write_csv(root: Path, text: str, name: str = "labels.csv") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def read(root: Path, table: Path | None = None, column: str | None = None) -> tuple[dict, dict, list[str]]:
    """Items and rows by exam, and lines."""
    items, rows, lines, _ = read_angioreport(root, table, column, progress=False)
    names = [Path(item[IMAGE][0]).parent.name for item in items]
    return dict(zip(names, items, strict=True)), dict(zip(names, rows, strict=True)), lines


# --- the whole way ---


@pytest.mark.parametrize("which", ["found", "csv", "json"])
def test_make_datalist_of_angioreport_writes_a_list_that_reads_back(tmp_path, which):
    table, split_file = write_angioreport(tmp_path, num_patients=15)
    labels = {"found": None, "csv": table, "json": split_file}[which]
    said = make_datalist(tmp_path, labels)
    content = read_datalist(tmp_path / "datalist.json", tmp_path)
    assert read_task(tmp_path / "datalist.json", tmp_path).classes == CLASSES
    assert sum(len(content[split]) for split in SPLITS) == 30
    patients = [{item[PATIENT] for item in content[split]} for split in SPLITS]
    assert all(patients) and sum(map(len, patients)) == len(set().union(*patients)) == 15
    exam_of = {item[SOURCE].split("/")[2]: item for split in SPLITS for item in content[split]}
    for number, (exam, item) in enumerate(sorted(exam_of.items(), key=lambda pair: int(pair[0].split("_")[0]))):
        assert item[PATIENT] == exam_of[exam.replace("R", "L")][PATIENT]
        assert len(item[IMAGE]) == len(set(item[IMAGE])) == len(SECONDS)
        assert read_header(item[IMAGE]).num_frames == len(SECONDS)
        if which == "json":
            known = [time for time in item[FRAME_TIMES] if time is not None]
            assert known == sorted(known) and known[0] == 0 and len(known) >= len(SECONDS) - 1
            assert number < 30
        else:
            assert FRAME_TIMES not in item
            assert [path.name for path in item[IMAGE]] == [f"{n}.jpg" for n in range(len(SECONDS))]
    assert json.loads((tmp_path / "datalist.json").read_text())[SYNTHETIC] is (which == "json")
    assert ("frames: " in said) is (which == "json")


def test_make_datalist_of_angioreport_orders_frames_by_time_and_counts_what_is_odd(tmp_path):
    _, split_file = write_angioreport(tmp_path, num_patients=6)
    said = make_datalist(tmp_path, split_file, num_folds=3)
    content = json.loads((tmp_path / "datalist.json").read_text())
    items = [item for split in SPLITS for item in content[split]]
    listed = {
        row["exam"]: row["frames"]
        for rows in json.loads(split_file.read_text()).values()
        if isinstance(rows, list)
        for row in rows
    }
    assert len(items) == len(listed) == 12
    for item in items:
        exam = item[IMAGE][0].split("/")[2]
        seconds = {entry["file"]: elapsed_seconds(entry["elapsed_seconds"]) for entry in listed[exam]}
        told = [seconds[path] for path in item[IMAGE]]
        start = min(time for time in told if isinstance(time, float))
        expected = [None if isinstance(time, str) else pytest.approx(1000 * (time - start)) for time in told]
        assert item[FRAME_TIMES] == expected
    counts = Counter()
    for frames in listed.values():
        for entry in {entry["file"]: entry for entry in frames if "99.jpg" not in entry["file"]}.values():
            seconds = elapsed_seconds(entry["elapsed_seconds"])
            counts[seconds if isinstance(seconds, str) else "time known"] += 1
    line = next(line for line in said.splitlines() if line.startswith("frames: "))
    for what, count in counts.items():
        assert f"{what} {count}" in line
    assert {"time absent", "time negative", "time not a number", "time known"} == set(counts)
    for what in ("file absent 3", "file listed twice 3", "time before that of the frame listed before"):
        assert what in line


def test_make_datalist_of_angioreport_with_a_split_that_parts_two_eyes_is_refused(exams):
    root = exams("12_L", "12_R", "3_L")
    rows = {
        "train": [{"exam": "12_L", "label": "a"}, {"exam": "3_L", "label": "b"}],
        "test": [{"exam": "12_R", "label": "b"}],
    }
    with pytest.raises(ValueError) as refused:
        make_datalist(root, write_json(root, rows))
    assert_message(refused.value, "12_R", "split", "12_L", "training", "one split only", "leave the splits out")
    assert not (root / "datalist.json").exists()


def test_make_datalist_of_angioreport_without_labels_puts_all_in_test(exams):
    root = exams("12_L", "12_R", "3_L")
    make_datalist(root)
    content = read_datalist(root / "datalist.json", root)
    assert [len(content[split]) for split in SPLITS] == [0, 0, 3]
    assert [item[PATIENT] for item in content["test"]] == ["P0001", "P0002", "P0002"]
    assert all(LABEL not in item for item in content["test"])


def test_make_datalist_tells_exams_without_a_label_and_labels_without_an_exam(exams):
    root = exams(*(f"{n}_L" for n in range(8)))
    write_csv(
        root,
        "Folder,Impression\n" + "\n".join(f"{n}_L,{'ab'[n % 2]}" for n in range(6)) + "\n6_L,\n99_R,a\n",
        "Train/Train.csv",
    )
    lines = make_datalist(root, num_folds=3).splitlines()
    assert "labels: column Impression of Train.csv" in lines
    assert "left out: 99_R: none of its frames is there" in lines
    assert [line for line in lines if line.startswith("no label")] == [f"no label: {BASE}/{n}_L/0.jpg" for n in (6, 7)]


# --- what is recognised ---


@pytest.mark.parametrize("base", ["Train/Train", "Train", "."])
def test_is_angioreport_of_its_folders_at_any_depth(exams, base):
    root = exams("12_L", "3_R", base=base)
    assert is_angioreport(root)
    items, _, _ = read(root)
    assert list(items) == ["3_R", "12_L"]


def test_is_angioreport_is_false_for_other_folders(exams, save, tmp_path):
    assert not is_angioreport(exams("left", "12"))
    save("dicom/12_L/run.dcm")
    assert not is_angioreport(tmp_path / "dicom")
    (tmp_path / "none").mkdir()
    assert not is_angioreport(tmp_path / "none")


def test_make_datalist_of_files_on_request_takes_the_folders_as_they_are(exams):
    root = exams("12_L", "12_R")
    make_datalist(root, layout="files")
    items = read_datalist(root / "datalist.json", root)["test"]
    assert [item[SOURCE] for item in items] == [f"{BASE}/12_L", f"{BASE}/12_R"]


def test_read_angioreport_with_one_exam_in_two_folders_is_refused(exams):
    exams("12_L")
    root = exams("12_L", base="Test/Test")
    with pytest.raises(ValueError) as refused:
        read(root)
    assert_message(refused.value, "12_L", "exam", "12_L", "each exam in one folder", "one of them")


def test_read_angioreport_leaves_out_frames_that_do_not_fit_their_exam_and_counts_them(exams):
    root = exams("1_L", frames=4)
    save_frame(root / BASE / "1_L" / "9.jpg", columns=8)
    (root / BASE / "1_L" / "10.jpg").write_bytes(b"no image")
    (root / BASE / "1_L" / "notes.txt").write_text("x")
    items, _, lines = read(root)
    assert items["1_L"][IMAGE] == [f"{BASE}/1_L/{n}.jpg" for n in range(4)]
    assert lines == ["frames: file unreadable 1, of another size than most of its exam 1"]


def test_read_angioreport_orders_frames_by_number_where_no_time_is_told(exams):
    items, _, _ = read(exams("1_L", frames=12))
    assert [Path(name).stem for name in items["1_L"][IMAGE]] == [str(n) for n in range(12)]


@pytest.mark.parametrize(
    "spelling",
    ["12_L", "12_l", " 12_L ", "12-L", "12 L", "Train/Train/12_L", "Train/Train/12_L/", "Train\\Train\\12_L"],
)
def test_exam_name_has_one_spelling(spelling):
    assert exam_name(spelling) == "12_L"


# --- times ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (12.5, 12.5),
        (0, 0.0),
        ("12.5", 12.5),
        (" 12.5 s", 12.5),
        ("12 sec", 12.0),
        ("1:23", 83.0),
        ("01:23.5", 83.5),
        ("1:00:02", 3602.0),
        ("1e2", 100.0),
        (None, "time absent"),
        ("", "time absent"),
        (" ", "time absent"),
        ("n/a", "time not a number"),
        ("nan", "time not a number"),
        (float("nan"), "time not a number"),
        (float("inf"), "time not a number"),
        (True, "time not a number"),
        ([3], "time not a number"),
        ("12:75:1:2", "time not a number"),
        (-1, "time negative"),
        ("-0:03", "time not a number"),
    ],
)
def test_elapsed_seconds_reads_a_time_or_tells_what_is_wrong(value, seconds):
    assert elapsed_seconds(value) == seconds


@pytest.mark.parametrize(
    ("times", "order", "times_ms"),
    [
        ([9, 14, 22], [0, 1, 2], [0, 5000, 13000]),
        ([22, 9, 14], [1, 2, 0], [0, 5000, 13000]),
        ([9, 9, 14, 9], [0, 1, 3, 2], [0, 0, 0, 5000]),
        ([9, None, 14], [0, 1, 2], [0, None, 5000]),
        ([14, None, 9], [2, 0, 1], [0, 5000, None]),
        ([None, 9, 14], [0, 1, 2], [None, 0, 5000]),
        ([None, None], [0, 1], [None, None]),
        ([], [], []),
    ],
)
def test_in_time_order_of_known_times_gives_known_places(times, order, times_ms):
    assert in_time_order(times) == (order, times_ms)


@given(st.lists(st.none() | st.floats(0, 1e4)))
def test_in_time_order_never_decreases_starts_at_zero_and_loses_nothing(times):
    order, times_ms = in_time_order(times)
    assert sorted(order) == list(range(len(times)))
    known = [time for time in times_ms if time is not None]
    assert known == sorted(known) and (not known or known[0] == 0)
    assert [times[i] is None for i in order] == [time is None for time in times_ms]


@pytest.mark.parametrize(
    "file", ["Train/Train/1_L/{}.jpg", "1_L/{}.jpg", "{}.jpg", "/data/old/{}.jpg", "Train\\Train\\1_L\\{}.jpg"]
)
def test_read_angioreport_finds_frames_however_the_split_spells_them(exams, file):
    root = exams("1_L")
    frames = [{"file": file.format(n), "elapsed_seconds": 9 - n} for n in range(3)]
    items, _, _ = read(root, write_json(root, [{"exam": "1_L", "frames": frames}]))
    if file.startswith("/"):
        assert items == {}
    else:
        assert items["1_L"] == {
            IMAGE: [f"{BASE}/1_L/{n}.jpg" for n in (2, 1, 0)],
            MODALITY: "OP",
            FRAME_TIMES: [0, 1000, 2000],
        }


@pytest.mark.parametrize("file", ["../../../../secret.jpg", "../secret.jpg", "", None, 5])
def test_read_angioreport_takes_no_frame_outside_its_folders(exams, tmp_path, file):
    root = exams("1_L")
    save_frame(tmp_path / "secret.jpg")
    frames = [{"file": f"{BASE}/1_L/0.jpg", "elapsed_seconds": 1}, {"file": file, "elapsed_seconds": 2}]
    items, _, lines = read(root, write_json(root, [{"exam": "1_L", "frames": frames}]))
    assert items["1_L"][IMAGE] == [f"{BASE}/1_L/0.jpg"]
    assert "file absent 1" in lines[-1]


# --- labels ---


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("Folder,Impression\n1_L,leak\n2_R,none\n", None),
        ("Impression,ID,Folder\n leak ,0,1_L\nnone,1, 2_R \n", None),
        ("ID;IMPRESSION \n1_l;leak,\n2_r;none\n", None),
        ("exam id,label,Impression\nTrain/Train/1_L,leak,x\nTrain/Train/2_R/,none,y\n", None),
        ("Folder,Impression,CNV\n1_L,x,leak\n2_R,x,none\n", "cnv"),
        ("Folder,Impression,Vascular abnormality (DR)\n1_L,x,leak\n2_R,,none\n", " vascular  abnormality (DR)"),
        ("Folder,Impression\n1_L,leak\n1_L,leak\n,\nnan,leak\n2_R,none\n", None),
    ],
)
def test_read_angioreport_of_dirty_tables_gives_the_same_labels(exams, text, column):
    root = exams("1_L", "2_R")
    _, rows, lines = read(root, write_csv(root, text), column)
    assert {exam: (row.labels, row.patient) for exam, row in rows.items()} == {
        "1_L": (("leak",), "1"),
        "2_R": (("none",), "2"),
    }
    assert not [line for line in lines if line.startswith("left out")]


def test_read_angioreport_of_several_labels_in_a_cell_or_in_rows_joins_them(exams):
    root = exams("1_L", "2_R", "3_L", "4_L")
    text = 'Folder,Impression\n1_L,"leak, pool,"\n2_R,Leak\n2_R,stain\n3_L,leak|pool;leak\n4_L,nan\n'
    _, rows, _ = read(root, write_csv(root, text))
    assert {exam: row.labels for exam, row in rows.items()} == {
        "1_L": ("leak", "pool"),
        "2_R": ("leak", "stain"),
        "3_L": ("leak", "pool"),
        "4_L": None,
    }


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("leak", ("leak",)),
        ("leak, pool", ("leak", "pool")),
        (["leak", " pool "], ("leak", "pool")),
        ([], ()),
        ({"leak": 1, "pool": 0}, ("leak",)),
        ({"leak": 0}, ()),
        (1, ("1",)),
        (0.0, ("0",)),
        (True, ("1",)),
        (None, None),
        ("", None),
        (float("nan"), None),
    ],
)
def test_read_angioreport_of_labels_of_any_json_form(exams, value, labels):
    root = exams("1_L")
    for row in ({"exam": "1_L", "labels": value}, [f"{BASE}/1_L/2.jpg", value], [[f"{BASE}/1_L/0.jpg"], value]):
        _, rows, _ = read(root, write_json(root, {"train": [row]}))
        assert (rows["1_L"].labels, rows["1_L"].split) == (labels, "training")


def test_read_angioreport_of_a_pair_with_a_path_takes_all_frames_of_its_folder(exams):
    root = exams("1_L", frames=5)
    items, _, _ = read(root, write_json(root, {"train": [[f"{BASE}/1_L/4.jpg", 1]]}))
    assert items["1_L"] == {IMAGE: [f"{BASE}/1_L/{n}.jpg" for n in range(5)], MODALITY: "OP"}


@pytest.mark.parametrize("key", ["exam", "Exam ID", "folder", "id"])
def test_read_angioreport_finds_the_exam_of_a_row_by_its_keys_or_frames(exams, key):
    root = exams("1_L")
    frames = [{"file": f"{BASE}/1_L/0.jpg", "elapsed_seconds": 1}]
    for row in ({key: "1_L"}, {key: 7, "frames": frames}, {"frames": frames}):
        items, rows, _ = read(root, write_json(root, [row]))
        assert list(items) == ["1_L"] and rows["1_L"].patient == "1"


def test_read_angioreport_tells_how_many_exams_a_split_does_not_list(exams):
    root = exams("1_L", "2_L", "3_L")
    items, _, lines = read(root, write_json(root, {"train": [{"exam": "1_L"}]}))
    assert list(items) == ["1_L"]
    assert lines == ["left out: 2 exams that split.json does not list"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ("content", "not JSON", "exam rows")),
        ("{}", ("content", "another object", "exam rows")),
        ("5", ("content", "another object", "exam rows")),
        ('{"held out": [{"exam": "1_L"}]}', ("split", "held out", "training, validation, test")),
        ('{"train": ["1_L"]}', ("train[0]", "exam row", "str", "frames")),
        ('{"train": [{"label": "x"}]}', ("train[0]", "exam", "absent", "exam, exam_id")),
        ('{"train": [{"exam": "1_L", "frames": 5}]}', ("train[0]", "frames", "int", "elapsed_seconds")),
        ('{"train": [{"exam": "1_L", "label": [0, 1]}]}', ("train[0]", "label", "[0, 1]", "names of classes")),
        ('{"train": [{"exam": "1_L"}], "test": [{"exam": "1_L"}]}', ("split", "two for exam 1_L", "one an exam")),
    ],
)
def test_read_angioreport_of_a_split_of_another_form_is_refused(exams, content, parts):
    root = exams("1_L")
    path = root / "split.json"
    path.write_text(content)
    with pytest.raises(ValueError) as refused:
        read(root, path)
    assert_message(refused.value, path, *parts)


@pytest.mark.parametrize(
    ("text", "column", "parts"),
    [
        ("Folder,Impression\n7_L,x\n", None, ("columns", "Folder", "names the exams")),
        ("Folder,Finding\n1_L,x\n", None, ("columns", "Finding", "a column of labels", "--label_column")),
        ("Folder,Impression\n1_L,x\n", "cnv", ("columns", "Impression", "cnv", "--label_column")),
        ("Folder,Label,label \n1_L,x,y\n", None, ("columns", "Label", "a column of labels")),
    ],
)
def test_read_angioreport_of_a_table_without_a_column_is_refused(exams, text, column, parts):
    root = exams("1_L")
    path = write_csv(root, text)
    with pytest.raises(ValueError) as refused:
        read(root, path, column)
    assert_message(refused.value, path, *parts)


def test_read_angioreport_of_an_absent_table_is_file_not_found(exams):
    root = exams("1_L")
    for name in ("no.csv", "no.json"):
        with pytest.raises(FileNotFoundError) as refused:
            read(root, root / name)
        assert_message(refused.value, root / name, "labels", "absent")
