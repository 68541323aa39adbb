"""A folder and a CSV become a datalist: runs found, patients renamed and kept apart, labels checked."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from scripts.datalists.collect import (
    SYNTHETIC_MANUFACTURER,
    attach_labels,
    find_inputs,
    find_sequences,
    make_datalist,
    read_labels,
    split_by_patient,
    write_datalist,
)
from scripts.datalists.datalist import all_items, labelled_split, read_datalist, read_task
from scripts.dicom.sequence import read_header
from scripts.keys import CLASSES, IMAGE, LABEL, PATIENT, SEQUENCE, SOURCE, SPLITS, SYNTHETIC, TASK, TYPE
from tests.conftest import OP, PERSON, SC, assert_message, assert_no_person, ramp


def images(root: Path) -> list:
    return [item[IMAGE] for item in find_sequences(root, progress=False)[0]]


# --- runs ---


def test_find_sequences_of_real_files_finds_every_run(shared_data):
    root = shared_data / "real_xa"
    items, left_out, synthetic = find_sequences(root, progress=False)
    index = json.loads((root / "INDEX.json").read_text())
    single = set(index["series_order"])
    expected = single | {entry["file"] for entry in index["files"] if "/" not in entry["file"]}
    assert {item[IMAGE] for item in items} == expected
    assert len(items) == 10
    assert not left_out and not synthetic
    frames = sum(read_header(root / item[IMAGE]).num_frames for item in items)
    assert frames == sum(int(entry["number_of_frames"] or 1) for entry in index["files"])


def test_find_sequences_of_several_runs_in_one_series_keeps_them_separate(save, tmp_path):
    for n in range(5):  # as Siemens writes them: one series, every InstanceNumber 1
        save(f"exam/run{n}.dcm", PatientID="A", SeriesInstanceUID="1.2.3", InstanceNumber=1)
    assert images(tmp_path) == [f"exam/run{n}.dcm" for n in range(5)]


def test_find_sequences_of_single_frame_files_of_a_series_makes_one_of_their_folder(save_series, tmp_path):
    save_series("a", [{"InstanceNumber": n} for n in (3, 1, 2)])
    save_series("deep/er", [{"InstanceNumber": n} for n in (2, 1)])
    assert images(tmp_path) == ["a", "deep/er"]


def test_find_sequences_of_two_series_in_one_folder_lists_the_files_of_each_in_order(save, tmp_path):
    for series in (1, 2):
        for number in (2, 1, 3):
            save(
                f"exam/s{series}_{9 - number}.dcm",
                ramp(1),
                SeriesInstanceUID=f"1.2.{series}",
                InstanceNumber=number,
            )
    assert images(tmp_path) == [[f"exam/s{s}_{9 - n}.dcm" for n in (1, 2, 3)] for s in (1, 2)]


def test_find_sequences_of_a_series_and_a_run_in_one_folder_separates_them(save, tmp_path):
    for number in (1, 2):
        save(f"exam/{number}.dcm", ramp(1), InstanceNumber=number)
    save("exam/run.dcm", InstanceNumber=3)
    assert images(tmp_path) == [["exam/1.dcm", "exam/2.dcm"], "exam/run.dcm"]


def test_find_sequences_of_an_ophthalmic_export_joins_files_that_are_each_a_series(save_series, tmp_path):
    each = [
        {
            "AcquisitionDateTime": f"202001011{minute:02d}{i:02d}",
            "SeriesInstanceUID": f"1.2.3.{i}",
            "StudyInstanceUID": f"1.2.4.{i}",
        }
        for i, minute in enumerate((5, 0, 1, 20))
    ]
    options = {"SOPClassUID": OP, "Modality": "OP", "PatientID": "A", "ImageLaterality": "L"}
    folder = save_series("exam", each, **options)
    assert images(tmp_path) == ["exam"]
    assert read_header(folder).num_frames == 4


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("AcquisitionDateTime", "20200102100500"), ("ImageLaterality", "R"), ("PatientID", "B")],
)
def test_find_sequences_of_an_ophthalmic_export_separates_days_eyes_and_patients(save_series, tmp_path, keyword, value):
    each = [
        {
            "AcquisitionDateTime": f"2020010110{minute:02d}00",
            "SeriesInstanceUID": f"1.2.3.{minute}",
            "ImageLaterality": "L",
            "PatientID": "A",
        }
        for minute in (0, 1, 5, 6)
    ]
    each[3] |= {keyword: value}
    if keyword == "AcquisitionDateTime":
        each[2] |= {keyword: "20200102100400"}
    else:
        each[2] |= {keyword: value}
    save_series("exam", each, SOPClassUID=OP, Modality="OP")
    found = images(tmp_path)
    assert [len(image) for image in found] == [2, 2]
    assert sorted(path for image in found for path in image) == sorted(
        path.relative_to(tmp_path).as_posix() for path in (tmp_path / "exam").iterdir()
    )


def test_find_sequences_of_single_frames_that_nothing_orders_lists_each(save_series, tmp_path):
    save_series("exam", [{"InstanceNumber": 1}] * 3)
    assert images(tmp_path) == ["exam/03.dcm", "exam/10.dcm", "exam/17.dcm"]


def test_find_sequences_of_secondary_captures_never_joins_them(save_series, tmp_path):
    save_series("exam", [{"InstanceNumber": n} for n in (1, 2)], SOPClassUID=SC)
    assert images(tmp_path) == ["exam/03.dcm", "exam/10.dcm"]


def test_find_sequences_with_one_file_stored_twice_joins_no_image_with_itself(save, tmp_path):
    path = save("exam/1.dcm", ramp(1), InstanceNumber=1)
    shutil.copy(path, path.with_name("copy.dcm"))
    assert images(tmp_path) == ["exam/1.dcm"]


def test_find_sequences_of_a_series_with_one_file_stored_twice_still_finds_the_series(save_series, tmp_path):
    folder = save_series("exam", [{"InstanceNumber": n} for n in range(1, 6)])
    shutil.copy(folder / "03.dcm", folder / "copy.dcm")
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert len(items) == 1
    assert len(items[0][IMAGE]) == 5
    assert len(left_out) == 1


def test_find_sequences_with_a_run_stored_twice_lists_it_once_and_says_so(save, tmp_path):
    path = save("a/run.dcm", PatientID="A")
    (tmp_path / "b").mkdir()
    shutil.copy(path, tmp_path / "b" / "again.dcm")
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["a/run.dcm"]
    assert len(left_out) == 1 and "again.dcm" in left_out[0]


def test_find_sequences_leaves_out_what_is_no_image_and_says_why(save, tmp_path):
    save("run.dcm")
    save("report.dcm", Rows=None, PixelData=None, **PERSON)
    for name in ("DICOMDIR", "._run.dcm", "readme.txt"):
        (tmp_path / name).write_bytes(b"x" * 300)
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["run.dcm"]
    assert left_out == ["report.dcm: no image in it"]


def test_find_sequences_of_a_missing_folder_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        find_sequences(tmp_path / "no", progress=False)
    assert_message(refused.value, tmp_path / "no", "folder", "absent")


def test_find_sequences_of_an_empty_folder_finds_none(tmp_path):
    assert find_sequences(tmp_path, progress=False) == ([], [], False)


def test_find_sequences_is_synthetic_only_if_every_file_is(save, tmp_path):
    save("a.dcm", Manufacturer=SYNTHETIC_MANUFACTURER)
    assert find_sequences(tmp_path, progress=False)[2] is True
    save("b.dcm", Manufacturer="Another")
    assert find_sequences(tmp_path, progress=False)[2] is False


# --- patients ---


def test_find_sequences_renames_patients_in_the_order_of_paths(save, tmp_path):
    for name, patient in (("1.dcm", "B"), ("2.dcm", "A"), ("3.dcm", "B"), ("4.dcm", "C")):
        save(name, PatientID=patient)
    items = find_sequences(tmp_path, progress=False)[0]
    assert [item[PATIENT] for item in items] == ["P0001", "P0002", "P0001", "P0003"]
    assert [item[SEQUENCE] for item in items] == ["P0001-01", "P0002-01", "P0001-02", "P0003-01"]


def test_find_sequences_without_patient_id_takes_the_first_folder_for_the_patient(save, tmp_path):
    for name in ("a/x/1.dcm", "a/y/2.dcm", "b/3.dcm"):
        save(name)
    assert [i[PATIENT] for i in find_sequences(tmp_path, progress=False)[0]] == ["P0001", "P0001", "P0002"]


@pytest.mark.parametrize("patient", [None, ""])
def test_find_sequences_without_patient_id_still_joins_a_series_lying_in_the_folder_itself(
    save_series, tmp_path, patient
):
    folder = save_series("exam", [{"InstanceNumber": n} for n in (2, 1, 3)], PatientID=patient)
    assert images(folder) == [["10.dcm", "03.dcm", "17.dcm"]]


def test_find_sequences_and_datalist_of_a_planted_person_hold_nothing_of_it(
    save, save_series, tmp_path, caplog, capsys
):
    save("exams/1.dcm", **PERSON)
    save("exams/2.dcm", Rows=None, **PERSON)
    save_series("exams/3", [{"InstanceNumber": n} for n in (1, 2)], **PERSON)
    broken = save("exams/4.dcm", **PERSON)
    broken.write_bytes(broken.read_bytes()[:300])
    said = make_datalist(tmp_path / "exams", output=tmp_path / "list.json")
    text = (tmp_path / "list.json").read_text()
    assert_no_person(find_sequences(tmp_path / "exams", progress=False), said, text, *capsys.readouterr())
    assert_no_person(caplog.text or "silent")
    assert len(json.loads(text)["test"]) >= 2


# --- labels ---


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_read_labels_gives_rows_stripped_whatever_else_stands_in_the_table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffid,label,image\n1, slow ,a.dcm\n2,fast,exams/b/\n".encode())
    assert read_labels(path) == [("a.dcm", "slow"), ("exams/b", "fast")]


@pytest.mark.parametrize("header", ["image,class", "label", "image;label", "Image,Label", ""])
def test_read_labels_without_a_column_is_refused(tmp_path, header):
    path = write_csv(tmp_path / "labels.csv", f"{header}\na.dcm,slow\n" if header else "")
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path, "columns", "image and label")


@pytest.mark.parametrize("row", ["b.dcm,", ",slow", "b.dcm", " , "])
def test_read_labels_with_an_empty_value_names_the_row(tmp_path, row):
    path = write_csv(tmp_path / "labels.csv", f"image,label\na.dcm,slow\n{row}\n")
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path, "row 3", "image, label", "both filled")


def test_read_labels_of_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        read_labels(tmp_path / "no.csv")
    assert_message(refused.value, tmp_path / "no.csv", "labels", "absent", "CSV")


def test_read_labels_of_another_encoding_is_refused(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("image,label\na.dcm,l\u00e4sion\n".encode("latin-1"))
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path)


def items_of(*names: object) -> list[dict]:
    return [{IMAGE: name, PATIENT: f"P{i}"} for i, name in enumerate(names)]


def test_attach_labels_of_two_names_is_binary_and_sorted():
    items, task, without = attach_labels(items_of("a", "b", "c"), [("a", "yes"), ("b", "no"), ("c", "yes")], None)
    assert task == {TYPE: "binary", CLASSES: ["no", "yes"]}
    assert [item[LABEL] for item in items] == [1, 0, 1]
    assert without == []


def test_attach_labels_follows_the_order_of_given_classes():
    rows = [("a", "slow"), ("b", "none")]
    items, task, _ = attach_labels(items_of("a", "b"), rows, ["none", "fast", "slow"])
    assert task == {TYPE: "multiclass", CLASSES: ["none", "fast", "slow"]}
    assert [item[LABEL] for item in items] == [2, 0]


def test_attach_labels_of_a_folder_serve_all_below_and_the_longest_path_wins():
    items = items_of("x/1.dcm", "x/deep/2.dcm", "x/3.dcm", ["y/1.dcm", "y/2.dcm"], "xx/1.dcm")
    rows = [("x", "a"), ("x/3.dcm", "b"), ("y", "b"), ("xx/1.dcm", "c")]
    labelled, task, _ = attach_labels(items, rows, None)
    assert [task[CLASSES][item[LABEL]] for item in labelled] == ["a", "a", "b", "b", "c"]


def test_attach_labels_joined_by_a_bar_are_multilabel():
    rows = [("a", "leak|pool"), ("b", "stain"), ("c", "none")]
    items, task, _ = attach_labels(items_of("a", "b", "c"), rows, ["leak", "none", "pool", "stain"])
    assert task[TYPE] == "multilabel"
    assert [item[LABEL] for item in items] == [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]]


@pytest.mark.parametrize("label", ["leak|", "|leak", "leak||pool"])
def test_attach_labels_with_nothing_beside_a_bar_makes_no_nameless_class(label):
    try:
        task = attach_labels(items_of("a", "b"), [("a", label), ("b", "pool")], None)[1]
    except ValueError as error:
        assert_message(error)
    else:
        assert "" not in task[CLASSES]


def test_attach_labels_tells_the_items_that_no_row_names():
    labelled, _, without = attach_labels(items_of("a", "b", ["c/1", "c/2"]), [("a", "x")], ["x", "y"])
    assert [item[IMAGE] for item in labelled] == ["a"]
    assert without == ["b", "c/1"]


def test_attach_labels_with_an_unknown_class_is_refused():
    with pytest.raises(ValueError) as refused:
        attach_labels(items_of("a"), [("a", "slwo")], ["none", "slow"])
    assert_message(refused.value, LABEL, "slwo", "none, slow")


@pytest.mark.parametrize("row", ["gone.dcm", "a", "a.dcm/b"])
def test_attach_labels_with_a_row_of_no_sequence_is_refused(row):
    with pytest.raises(ValueError) as refused:
        attach_labels(items_of("a.dcm"), [("a.dcm", "x"), (row, "x")], ["x", "y"])
    assert_message(refused.value, row, IMAGE, "no sequence", "a path of a sequence")


def test_attach_labels_with_two_labels_for_a_path_is_refused():
    with pytest.raises(ValueError) as refused:
        attach_labels(items_of("a"), [("a", "x"), ("a", "y")], None)
    assert_message(refused.value, "a", LABEL, "x and y", "one label")


# --- splits ---


def exams(patients: int = 60, classes: int = 3, per_patient: int = 3) -> list[dict]:
    return [
        {IMAGE: f"{p}/{n}.dcm", PATIENT: f"P{p}", LABEL: p % classes}
        for p in range(patients)
        for n in range(1 + p % per_patient)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_folds", [3, 5, 10])
def test_split_by_patient_keeps_patients_whole_and_classes_balanced(seed, num_folds):
    items = exams()
    splits = split_by_patient(items, num_folds, seed)
    assert list(splits) == list(SPLITS)
    assert sorted(i[IMAGE] for s in SPLITS for i in splits[s]) == sorted(i[IMAGE] for i in items)
    patients = [{item[PATIENT] for item in splits[split]} for split in SPLITS]
    assert sum(map(len, patients)) == len(set().union(*patients)) == 60
    for split, share in zip(SPLITS, (num_folds - 2, 1, 1), strict=True):
        assert len(splits[split]) == pytest.approx(len(items) * share / num_folds, rel=0.25)
        counts = Counter(item[LABEL] for item in splits[split])
        every = Counter(item[LABEL] for item in items)
        for label in range(3):
            expected = every[label] * share / num_folds
            assert abs(counts[label] - expected) <= max(3, 0.25 * expected)


def test_split_by_patient_is_the_same_for_one_seed_and_another_for_another():
    first, again, other = (split_by_patient(exams(), 5, seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_split_by_patient_of_multilabel_items_keeps_patients_whole():
    items = [{**item, LABEL: [item[LABEL] % 2, 1]} for item in exams()]
    splits = split_by_patient(items, 5, 0)
    patients = [{item[PATIENT] for item in splits[split]} for split in SPLITS]
    assert all(patients)
    assert sum(map(len, patients)) == 60


@pytest.mark.parametrize("num_folds", [2, 0, -1, 5])
def test_split_by_patient_into_more_folds_than_patients_or_fewer_than_three_is_refused(num_folds):
    with pytest.raises(ValueError) as refused:
        split_by_patient(exams(patients=4), num_folds, 0)
    assert_message(refused.value, "num_folds", num_folds, "3 to 4")


def test_split_by_patient_with_a_rare_class_splits_without_a_warning():
    items = [{IMAGE: str(p), PATIENT: f"P{p}", LABEL: int(p < 2)} for p in range(20)]
    assert sum(map(len, split_by_patient(items, 5, 0).values())) == 20


def test_split_by_patient_with_only_rare_classes_is_refused_in_one_message():
    items = [{IMAGE: str(p), PATIENT: f"P{p}", LABEL: p} for p in range(6)]
    with pytest.raises(ValueError) as refused:
        split_by_patient(items, 5, 0)
    assert_message(refused.value, "num_folds")


# --- the list ---


@pytest.fixture
def labelled_folder(save, tmp_path) -> Path:
    """15 patients with one or two runs, three classes, and labels.csv beside them."""
    rows = ["image,label"]
    for p in range(15):
        for n in range(1 + p % 2):
            save(f"exams/{p:02d}/run{n}.dcm", ramp(2), PatientID=f"secret-{p}")
        rows.append(f"{p:02d},{('none', 'slow', 'fast')[p % 3]}")
    write_csv(tmp_path / "labels.csv", "\n".join(rows))
    return tmp_path / "exams"


def test_make_datalist_writes_a_list_that_reads_back_with_labels_and_splits(labelled_folder):
    said = make_datalist(labelled_folder, labels=labelled_folder.parent / "labels.csv", num_folds=5)
    path = labelled_folder / "datalist.json"
    assert said.splitlines()[-1] == str(path)
    assert read_task(path, labelled_folder).classes == ("fast", "none", "slow")
    content = read_datalist(path, labelled_folder)
    assert all(content[split] for split in SPLITS)
    assert len(all_items(path, labelled_folder)) == 22
    assert all(i[IMAGE].is_file() for i in labelled_split(path, labelled_folder, "test"))
    names = ("none", "slow", "fast")
    for item in all_items(path, labelled_folder):
        assert ("fast", "none", "slow")[item[LABEL]] == names[int(item[SOURCE][:2]) % 3]
    assert "secret" not in path.read_text() + said
    assert json.loads(path.read_text())[SYNTHETIC] is False


def test_make_datalist_twice_writes_the_same_bytes_and_another_seed_other_splits(labelled_folder, tmp_path):
    written = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = tmp_path / "lists" / f"{name}.json"
        make_datalist(labelled_folder, tmp_path / "labels.csv", output, num_folds=3, seed=seed)
        written.append(output.read_bytes())
    assert written[0] == written[1] != written[2]
    assert sorted(p.name for p in (tmp_path / "lists").iterdir()) == ["a.json", "b.json", "c.json"]


def test_make_datalist_without_labels_puts_all_in_test_without_a_task(labelled_folder):
    make_datalist(labelled_folder)
    content = read_datalist(labelled_folder / "datalist.json", labelled_folder)
    assert [len(content[split]) for split in SPLITS] == [0, 0, 22]
    assert TASK not in content


def test_make_datalist_of_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError) as refused:
        make_datalist(tmp_path)
    assert_message(refused.value, tmp_path, "folder", "without DICOM images")
    assert list(tmp_path.iterdir()) == []


def test_make_datalist_of_one_class_is_refused_before_it_is_written(labelled_folder, tmp_path):
    write_csv(tmp_path / "one.csv", "image,label\n.,same\n")
    with pytest.raises(ValueError) as refused:
        make_datalist(labelled_folder, tmp_path / "one.csv")
    assert_message(refused.value)


def test_make_datalist_of_a_folder_of_links_is_refused_or_writes_a_list_that_reads_back(save, tmp_path):
    archived = save("archive/run.dcm")
    (tmp_path / "exams").mkdir()
    (tmp_path / "exams" / "run.dcm").symlink_to(archived)
    try:
        make_datalist(tmp_path / "exams")
    except ValueError as error:
        assert_message(error)
    else:
        read_datalist(tmp_path / "exams" / "datalist.json", tmp_path / "exams")


def test_write_datalist_replaces_the_old_one_whole(tmp_path):
    path = tmp_path / "new" / "list.json"
    for content in ({"test": list(range(1000))}, {"test": []}):
        write_datalist(path, content)
        assert json.loads(path.read_text()) == content
    assert [p.name for p in path.parent.iterdir()] == ["list.json"]


# --- what to predict ---


def test_find_inputs_takes_a_file_a_folder_and_a_datalist_alike(save, tmp_path):
    path = save("exams/run.dcm")
    write_datalist(tmp_path / "list.json", {"test": [{IMAGE: "run.dcm"}]})
    expected = (path, "run.dcm")
    asked = [path, path.parent, tmp_path / "list.json", str(path)]
    for source in asked:
        (item,) = find_inputs(source, path.parent)
        assert (item[IMAGE], item[SOURCE]) == expected
    assert len(asked) == 4


def test_find_inputs_of_a_folder_gives_lists_as_lists(save, tmp_path):
    for series in (1, 2):
        for number in (1, 2):
            name, uid = f"e/{series}{number}.dcm", f"1.{series}"
            save(name, ramp(1), SeriesInstanceUID=uid, InstanceNumber=number, PatientID="A")
    items = find_inputs(tmp_path / "e", tmp_path)
    assert [item[IMAGE] for item in items] == [
        [tmp_path / "e" / f"{series}{number}.dcm" for number in (1, 2)] for series in (1, 2)
    ]
    assert [item[SOURCE] for item in items] == ["11.dcm (+1 files)", "21.dcm (+1 files)"]


def test_find_inputs_of_nothing_usable_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    write_datalist(tmp_path / "list.json", {"test": []})
    for source, parts in (
        (tmp_path / "empty", ("folder", "without DICOM images")),
        (tmp_path / "list.json", ("datalist", "empty", "at least one item")),
    ):
        with pytest.raises(ValueError) as refused:
            find_inputs(source, tmp_path)
        assert_message(refused.value, source, *parts)
    for source in (tmp_path / "no", tmp_path / "no.json"):
        with pytest.raises(FileNotFoundError) as refused:
            find_inputs(source, tmp_path)
        assert_message(refused.value, source, "absent")
