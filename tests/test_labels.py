"""Tables of labels, in every form people save them, become rows, tasks and splits; patients stay whole and unnamed."""

from collections import Counter
from pathlib import Path

import pytest

from scripts.datalists.labels import (
    LabelRow,
    given_splits,
    label_items,
    match_rows,
    number_patients,
    read_labels,
    read_table,
    split_by_patient,
)
from scripts.keys import CLASSES, IMAGE, LABEL, PATIENT, SEQUENCE, SPLITS, TYPE
from tests.conftest import PERSON, assert_message, assert_no_person


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def items_of(*names: object) -> list[dict]:
    return [{IMAGE: name, PATIENT: f"P{i}"} for i, name in enumerate(names)]


# --- the table ---


def test_read_labels_gives_rows_stripped_whatever_else_stands_in_the_table(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffid,label,image\n1, slow ,a.dcm\n2,fast,exams/b/\n".encode())
    assert read_labels(path) == [LabelRow("a.dcm", ("slow",)), LabelRow("exams/b", ("fast",))]


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.dcm,slow\nb/c,leak|pool\n",
        "image;label\na.dcm;slow\nb/c;leak|pool\n",
        "image\tlabel\na.dcm\tslow\nb/c\tleak|pool\n",
        'image,label\r\n"a.dcm","slow"\r\n"b/c/"," leak | pool "\r\n\r\n',
        " image , label \n./a.dcm,slow\n\nb\\c,leak|pool\n",
        'label,note,image\nslow,"two\nlines",a.dcm\nleak|pool,"one, and another",b//c\n',
    ],
)
def test_read_labels_of_any_way_to_save_a_table_gives_the_same_rows(tmp_path, text):
    rows = read_labels(write_csv(tmp_path / "labels.csv", text))
    assert rows == [LabelRow("a.dcm", ("slow",)), LabelRow("b/c", ("leak", "pool"))]


def test_read_labels_with_patients_and_splits_gives_both(tmp_path):
    text = "image,label,patient,split\na.dcm,slow,Anna,train\nb.dcm,fast,Berta,VAL\nc.dcm,fast,Carla,test\n"
    rows = read_labels(write_csv(tmp_path / "labels.csv", text))
    assert [(row.patient, row.split) for row in rows] == [
        ("Anna", "training"),
        ("Berta", "validation"),
        ("Carla", "test"),
    ]


def test_read_labels_of_another_column_reads_that(tmp_path):
    path = write_csv(tmp_path / "labels.csv", "image,label,grade\na.dcm,x,2\nb.dcm,y,3\n")
    assert [row.labels for row in read_labels(path, "grade")] == [("2",), ("3",)]


@pytest.mark.parametrize("header", ["image,class", "label", "Image,Label", "image,label,label", ""])
def test_read_labels_without_a_column_is_refused(tmp_path, header):
    path = write_csv(tmp_path / "labels.csv", f"{header}\na.dcm\n" if header else "")
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path, "columns", "image and label")


@pytest.mark.parametrize("row", ["b.dcm,", ",slow", "b.dcm", " , "])
def test_read_labels_with_an_empty_value_names_the_row(tmp_path, row):
    path = write_csv(tmp_path / "labels.csv", f"image,label\na.dcm,slow\n{row}\n")
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path, "row 3", "image, label", "both filled")


@pytest.mark.parametrize(
    ("header", "row", "parts"),
    [
        ("image,label", "b.dcm,leak, pool", ("cells", 3, "2", "double quotes")),
        ("image,label", "b.dcm,leak|", ("label", "leak|", "joined by |")),
        ("image,label", "b.dcm,|leak", ("label", "|leak", "joined by |")),
        ("image,label", "b.dcm,leak||pool", ("label", "leak||pool", "joined by |")),
        ("image,label,split", "b.dcm,leak,held out", ("split", "held out", "training, validation, test")),
        ("image,label,split", "b.dcm,leak,", ("split", "empty", "leave the column out")),
        ("image,label,patient", "b.dcm,leak, ", ("patient", "empty", "leave the column out")),
    ],
)
def test_read_labels_with_a_row_that_does_not_fit_names_row_and_way_out(tmp_path, header, row, parts):
    good = ",".join(["a.dcm", "pool", "test"][: header.count(",") + 1])
    path = write_csv(tmp_path / "labels.csv", f"{header}\n{good}\n\n{row}\n")
    with pytest.raises(ValueError) as refused:
        read_labels(path)
    assert_message(refused.value, path, "row 4", *parts)


def test_read_labels_of_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        read_labels(tmp_path / "no.csv")
    assert_message(refused.value, tmp_path / "no.csv", "labels", "absent", "CSV")


@pytest.mark.parametrize(
    "content", ["image,label\na.dcm,l\u00e4sion\n".encode("latin-1"), b"image,label\n" + b"x" * 200_000]
)
def test_read_table_of_another_encoding_or_kind_is_refused(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_table(path)
    assert_message(refused.value, path, "needs a CSV file")


# --- rows and items ---


def test_match_rows_of_a_folder_serve_all_below_and_the_longest_path_wins():
    items = items_of("x/1.dcm", "x/deep/2.dcm", "x/3.dcm", ["y/1.dcm", "y/2.dcm"], "xx/1.dcm", "z")
    rows = [LabelRow(image, (image,)) for image in ("x", "x/3.dcm", "y", "xx/1.dcm", "gone", "x/3.dcm/b")]
    matched, unused = match_rows(items, rows)
    assert [row and row.image for row in matched] == ["x", "x", "x/3.dcm", "y", "xx/1.dcm", None]
    assert [row.image for row in unused] == ["gone", "x/3.dcm/b"]


def test_match_rows_of_the_folder_itself_serve_everything():
    matched, unused = match_rows(items_of("a.dcm", "b/c.dcm"), [LabelRow(".", ("x",))])
    assert [row and row.image for row in matched] == [".", "."] and not unused


@pytest.mark.parametrize(
    ("second", "parts"),
    [
        (LabelRow("a", ("y",), "Quarzel"), ("label", "x and y", "one label a path")),
        (LabelRow("a", ("x",), "QZL-4711-X"), ("patient or split", "one a path")),
        (LabelRow("a", ("x",), "Quarzel", "test"), ("patient or split", "one a path")),
    ],
)
def test_match_rows_with_two_rows_of_a_path_is_refused_without_naming_the_patient(second, parts):
    with pytest.raises(ValueError) as refused:
        match_rows(items_of("a"), [LabelRow("a", ("x",), "Quarzel"), second])
    assert_message(refused.value, "a", *parts)
    assert_no_person(refused.value)


def test_match_rows_with_one_row_twice_takes_it_once():
    matched, unused = match_rows(items_of("a"), [LabelRow("a", ("x",))] * 2)
    assert len(matched) == 1 and not unused


def test_label_items_of_two_names_is_binary_and_sorted():
    items = items_of("a", "b", "c")
    assert label_items(items, [("yes",), ("no",), ("yes",)], None) == {TYPE: "binary", CLASSES: ["no", "yes"]}
    assert [item[LABEL] for item in items] == [1, 0, 1]


def test_label_items_follows_the_order_of_given_classes():
    items = items_of("a", "b")
    task = label_items(items, [("slow",), ("none",)], ["none", "fast", "slow"])
    assert task == {TYPE: "multiclass", CLASSES: ["none", "fast", "slow"]}
    assert [item[LABEL] for item in items] == [2, 0]


@pytest.mark.parametrize("several", [("leak", "pool"), ()])
def test_label_items_with_several_names_or_none_is_multilabel(several):
    items = items_of("a", "b", "c")
    task = label_items(items, [several, ("stain",), ("none",)], ["leak", "none", "pool", "stain"])
    assert task[TYPE] == "multilabel"
    assert [item[LABEL] for item in items] == [
        [1, 0, 1, 0] if several else [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 1, 0, 0],
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "parts"),
    [
        ([("slwo",)], ["none", "slow"], (LABEL, "slwo", "none, slow")),
        ([("slow",)], None, ("classes", "slow", "at least two")),
        ([()], None, ("classes", "empty", "at least two")),
    ],
)
def test_label_items_with_an_unknown_class_or_too_few_is_refused(labels, classes, parts):
    with pytest.raises(ValueError) as refused:
        label_items(items_of("a"), labels, classes)
    assert_message(refused.value, "labels", *parts)


def test_number_patients_counts_in_the_order_of_items_and_keeps_no_name():
    items = items_of("1", "2", "3", "4")
    number_patients(items, [PERSON["PatientID"], "other", PERSON["PatientID"], ("folder", "x")])
    assert [item[PATIENT] for item in items] == ["P0001", "P0002", "P0001", "P0003"]
    assert [item[SEQUENCE] for item in items] == ["P0001-01", "P0002-01", "P0001-02", "P0003-01"]
    assert_no_person(items)


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
    assert_message(refused.value, "num_folds", num_folds, "patients labelled, 4")


def test_split_by_patient_with_a_rare_class_splits_without_a_warning():
    items = [{IMAGE: str(p), PATIENT: f"P{p}", LABEL: int(p < 2)} for p in range(20)]
    assert sum(map(len, split_by_patient(items, 5, 0).values())) == 20


def test_split_by_patient_with_too_few_of_a_class_says_how_many_folds_there_can_be():
    items = [{IMAGE: str(p), PATIENT: f"P{p}", LABEL: p % 2} for p in range(6)]
    with pytest.raises(ValueError) as refused:
        split_by_patient(items, 5, 0)
    assert_message(
        refused.value, "num_folds is 5, needs at most the sequences of the largest class, 3. Pass --num_folds 3."
    )


def test_split_by_patient_with_only_rare_classes_is_refused_in_one_message():
    items = [{IMAGE: str(p), PATIENT: f"P{p}", LABEL: p} for p in range(6)]
    with pytest.raises(ValueError) as refused:
        split_by_patient(items, 5, 0)
    assert_message(refused.value, "num_folds")


def test_given_splits_are_kept_and_may_be_empty():
    items = [{IMAGE: name, PATIENT: patient} for name, patient in (("a", "P1"), ("b", "P1"), ("c", "P2"))]
    splits = given_splits(items, ["test", "test", "training"])
    assert {split: [item[IMAGE] for item in chosen] for split, chosen in splits.items()} == {
        "training": ["c"],
        "validation": [],
        "test": ["a", "b"],
    }


def test_given_splits_with_a_patient_in_two_name_both_exams_and_the_way_out():
    items = [{IMAGE: name, PATIENT: "P1"} for name in ("one/12_L", ["two/12_R/0.jpg", "two/12_R/1.jpg"])]
    with pytest.raises(ValueError) as refused:
        given_splits(items, ["training", "test"])
    assert_message(
        refused.value, "two/12_R/0.jpg", "split", "one/12_L", "training", "one split only", "leave the splits"
    )


def test_given_splits_that_leave_an_exam_out_are_refused():
    with pytest.raises(ValueError) as refused:
        given_splits(items_of("a", "b"), ["training", ""])
    assert_message(refused.value, "b", "split", "absent", "training, validation, test")
