"""Every entry that breaks the contract of the datalist is one error naming item, field, found and allowed."""

import hashlib
import json
from pathlib import Path

import pytest

from scripts.datalists.datalist import (
    Task,
    all_items,
    class_counts,
    datalist_digest,
    is_synthetic,
    labelled_split,
    read_datalist,
    read_task,
)
from scripts.keys import CLASSES, ENTRY, IMAGE, LABEL, PATIENT, SEQUENCE, SOURCE, SYNTHETIC, TASK, TYPE
from tests.conftest import assert_message

MULTICLASS = {TYPE: "multiclass", CLASSES: ["none", "slow", "fast"]}
MULTILABEL = {TYPE: "multilabel", CLASSES: ["leak", "pool", "stain"]}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "exams" / "sub").mkdir(parents=True)
    return tmp_path / "exams"


@pytest.fixture
def write(tmp_path):
    def to_file(content: object) -> Path:
        path = tmp_path / "list.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def item(name: str = "a.dcm", **entries: object) -> dict:
    return {IMAGE: name, LABEL: 0, PATIENT: f"P-{name}", SEQUENCE: f"S-{name}", **entries}


def test_datalist_of_three_splits_comes_back_with_paths_task_and_sources(write, root):
    content = {
        TASK: MULTICLASS,
        "training": [item("a.dcm"), item("sub", label=2)],
        "validation": [item("b.dcm", **{IMAGE: ["b1.dcm", "b2.dcm"]})],
        "test": [],
    }
    read = read_datalist(write(content), root)
    assert read[TASK] == Task("multiclass", ("none", "slow", "fast"))
    assert [i[IMAGE] for i in read["training"]] == [root / "a.dcm", root / "sub"]
    assert [i[SOURCE] for i in read["training"]] == ["a.dcm", "sub"]
    assert [i[LABEL] for i in read["training"]] == [0, 2]
    assert read["validation"][0][IMAGE] == [root / "b1.dcm", root / "b2.dcm"]
    assert read["validation"][0][SOURCE] == "b1.dcm (+1 files)"
    assert read["test"] == []


def test_datalist_without_labels_and_task_is_read_for_inference(write, root):
    path = write({"test": [{IMAGE: "a.dcm"}, {IMAGE: "b.dcm"}]})
    assert [i[SOURCE] for i in all_items(path, root)] == ["a.dcm", "b.dcm"]
    assert TASK not in read_datalist(path, root)


def test_datalist_keeps_other_entries_of_an_item(write, root):
    path = write({"test": [{IMAGE: "a.dcm", "frames": [0, 3], "frame_times_ms": [0, 9.5], "site": "x"}]})
    (read,) = all_items(path, root)
    assert (read["frames"], read["frame_times_ms"], read["site"]) == ([0, 3], [0, 9.5], "x")


@pytest.mark.parametrize("outside", ["../x.dcm", "sub/../../x.dcm", "/etc/hostname", "link/x.dcm", "link"])
@pytest.mark.parametrize("as_list", [False, True])
def test_datalist_path_that_leaves_dataset_dir_is_refused(write, root, tmp_path, outside, as_list):
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    image = ["a.dcm", outside] if as_list else outside
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: "a.dcm"}, {IMAGE: image}]}), root)
    assert_message(refused.value, "training[1]", IMAGE, outside, "inside dataset_dir")


def test_datalist_absolute_path_inside_dataset_dir_is_the_same_file(write, root):
    (read,) = all_items(write({"test": [{IMAGE: str(root / "a.dcm")}]}), root)
    assert read[IMAGE] == root / "a.dcm"


@pytest.mark.parametrize("label", [3, -1, "slow", 1.0, True, None, [0], [0, 1, 0]])
def test_datalist_label_that_is_no_class_index_is_refused(write, root, label):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({TASK: MULTICLASS, "test": [item(), item("b.dcm", label=label)]}), root)
    assert_message(refused.value, "test[1]", LABEL, label, "0 none, 1 slow, 2 fast")


@pytest.mark.parametrize("label", [[0, 1], [0, 1, 0, 1], [0, 1, 2], [0, 1, -1], [None] * 3, 1, "leak", [[0], 1, 0]])
def test_datalist_multilabel_of_a_wrong_count_or_value_is_refused(write, root, label):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({TASK: MULTILABEL, "test": [item(label=label)]}), root)
    assert_message(refused.value, "test[0]", LABEL, label, "3 values of 0, 1 or null", "leak")


def test_datalist_label_without_a_task_is_refused(write, root):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [item(label=1)]}), root)
    assert_message(refused.value, "training[0]", LABEL, 1, TASK)


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ({TYPE: "regression", CLASSES: ["a", "b"]}, TYPE),
        ({CLASSES: ["a", "b"]}, TYPE),
        ("multiclass", TYPE),
        ({TYPE: "multiclass"}, CLASSES),
        ({TYPE: "multiclass", CLASSES: ["a"]}, CLASSES),
        ({TYPE: "multiclass", CLASSES: ["a", "a"]}, CLASSES),
        ({TYPE: "multiclass", CLASSES: ["a", ""]}, CLASSES),
        ({TYPE: "multiclass", CLASSES: ["a", 1]}, CLASSES),
        ({TYPE: "multiclass", CLASSES: "ab"}, CLASSES),
        ({TYPE: "binary", CLASSES: ["a", "b", "c"]}, CLASSES),
    ],
)
def test_datalist_with_an_impossible_task_is_refused(write, root, task, field):
    path = write({TASK: task, "training": []})
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, f"{TASK}.{field}")


@pytest.mark.parametrize("splits", [("training", "test"), ("training", "validation"), ("validation", "test")])
def test_datalist_with_a_patient_in_two_splits_is_refused(write, root, splits):
    content = {splits[0]: [{IMAGE: "a.dcm", PATIENT: "P1"}], splits[1]: [{IMAGE: "b.dcm", PATIENT: "P1"}]}
    with pytest.raises(ValueError) as refused:
        read_datalist(write(content), root)
    assert_message(refused.value, f"{splits[1]}[0]", "b.dcm", PATIENT, splits[0], "one split only")


def test_datalist_patient_in_two_splits_is_told_without_the_patients_identifier(write, root):
    content = {"training": [item(patient="Quarzel")], "test": [item("b.dcm", patient="Quarzel")]}
    with pytest.raises(ValueError) as refused:
        read_datalist(write({TASK: MULTICLASS, **content}), root)
    assert "Quarzel" not in str(refused.value)


def test_datalist_with_a_patient_twice_in_one_split_is_read(write, root):
    path = write({"training": [{IMAGE: "a.dcm", PATIENT: "P1"}, {IMAGE: "b.dcm", PATIENT: "P1"}]})
    assert len(all_items(path, root)) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.dcm", "a.dcm"),
        ("a.dcm", "./a.dcm"),
        ("sub", "sub/"),
        ("a.dcm", ["a.dcm"]),
        (["a.dcm", "b.dcm"], ["a.dcm", "b.dcm"]),
        ("a.dcm", "sub/../a.dcm"),
        ("a.dcm", "link.dcm"),
        (["a.dcm", "b.dcm"], ["b.dcm", "a.dcm"]),
    ],
)
def test_datalist_with_a_duplicate_image_is_refused(write, root, first, second):
    (root / "a.dcm").write_bytes(b"")
    (root / "link.dcm").symlink_to(root / "a.dcm")
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: first}], "test": [{IMAGE: second}]}), root)
    assert_message(refused.value, "test[0]", IMAGE, "duplicate", "training[0]", "once")


def test_datalist_with_a_duplicate_sequence_name_is_refused(write, root):
    content = {"training": [{IMAGE: "a.dcm", SEQUENCE: "S1"}, {IMAGE: "b.dcm", SEQUENCE: "S1"}]}
    with pytest.raises(ValueError) as refused:
        read_datalist(write(content), root)
    assert_message(refused.value, "training[1]", SEQUENCE, "duplicate", "training[0]", "once")


@pytest.mark.parametrize("content", ["", "{", "image,label", '{"training": [}', "\x00"])
def test_datalist_that_is_not_json_is_refused(write, root, content):
    path = write(content)
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "content", "not JSON", "JSON object")


def test_datalist_that_is_binary_is_refused(tmp_path, root):
    path = tmp_path / "list.json"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "content", "not JSON")


@pytest.mark.parametrize("content", [[], {}, "text", 5, None, {"train": []}])
def test_datalist_without_splits_is_refused(write, root, content):
    path = write(json.dumps(content))
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "content", "training")


@pytest.mark.parametrize(
    ("content", "found"),
    [([], "a list"), ({"train": []}, "an object with train"), (5, "a number"), (None, "null"), ("x", "a text")],
)
def test_datalist_without_splits_tells_what_it_is(write, root, content, found):
    path = write(json.dumps(content))
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "content", found, "training")


def test_datalist_with_a_split_of_another_name_is_refused_before_its_items_are_lost(write, root):
    path = write({"training": [{IMAGE: "a.dcm"}], "val": [{IMAGE: "b.dcm"}]})
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "split", "val", "training, validation, test", "Rename it")


def test_datalist_with_other_lists_is_read(write, root):
    path = write({"training": [{IMAGE: "a.dcm"}], "modalities": ["XA"], "numTest": 0, "reference": [{"doi": 1}]})
    assert len(all_items(path, root)) == 1


@pytest.mark.parametrize("text", ['{"test": [], "test": []}', '{"test": [{"image": "a.dcm", "image": "b.dcm"}]}'])
def test_datalist_with_a_key_twice_is_refused_before_the_first_is_lost(write, root, text):
    path = write(text)
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "content", "twice in one object", "JSON object")


def test_datalist_with_a_byte_order_mark_is_the_same_list(tmp_path, root):
    path = tmp_path / "list.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"test": [{IMAGE: "a.dcm"}], SYNTHETIC: True}).encode())
    assert [i[SOURCE] for i in all_items(path, root)] == ["a.dcm"]
    assert is_synthetic(path)


@pytest.mark.parametrize("times", [[0], [0, 1, 2]])
def test_datalist_times_of_another_number_than_files_are_refused(write, root, times):
    item = {IMAGE: ["a.dcm", "b.dcm"], "frame_times_ms": times}
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"test": [item]}), root)
    assert_message(refused.value, "test[0]", "frame_times_ms", f"{len(times)} times", "2, one for each file")


def test_datalist_times_of_one_file_can_be_many(write, root):
    path = write({"test": [{IMAGE: ["a.dcm"], "frame_times_ms": [0, None, 5]}]})
    assert len(all_items(path, root)[0]["frame_times_ms"]) == 3


def test_datalist_of_links_is_followed_to_the_files_they_mean(write, root):
    (root / "sub" / "a.dcm").write_bytes(b"")
    (root / "also").symlink_to(root / "sub")
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: "sub/a.dcm"}], "test": [{IMAGE: "also/a.dcm"}]}), root)
    assert_message(refused.value, "test[0]", IMAGE, "duplicate of training[0]")


@pytest.mark.parametrize(
    ("items", "kind"),
    [({}, "an object"), ("a.dcm", "a text"), (None, "null"), (3, "a number"), (1.5, "a number"), (True, "true")],
)
def test_datalist_split_that_is_no_list_is_refused_in_words_of_json(write, root, items, kind):
    path = write({"training": items})
    with pytest.raises(ValueError) as refused:
        read_datalist(path, root)
    assert_message(refused.value, path, "training", kind, "a list of items")


@pytest.mark.parametrize("entry", ["a.dcm", {}, {IMAGE: ""}, {IMAGE: None}, {IMAGE: []}, {IMAGE: 5}, {IMAGE: [5]}])
def test_datalist_item_without_a_path_is_refused(write, root, entry):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [entry]}), root)
    assert_message(refused.value, "training[0]", IMAGE, "a path, a list of paths or a folder")


@pytest.mark.parametrize("frames", [5, "012", [0, [1]], [1.5], [], [-1, 0], [1, 0], [0] * 5000])
def test_datalist_frames_that_are_no_indices_are_refused(write, root, frames):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: "a.dcm", "frames": frames}]}), root)
    assert_message(refused.value, "training[0]", "frames", "ascending")


@pytest.mark.parametrize("times", [5, "012", ["a"], [0, [1]]])
def test_datalist_frame_times_that_are_no_numbers_are_refused(write, root, times):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: "a.dcm", "frame_times_ms": times}]}), root)
    assert_message(refused.value, "training[0]", "frame_times_ms")


def test_datalist_path_with_a_null_byte_is_refused(write, root):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{IMAGE: "a\0.dcm"}]}), root)
    assert_message(refused.value, "training[0]", IMAGE)


def test_datalist_or_dataset_dir_that_is_absent_is_file_not_found(write, root, tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        read_datalist(tmp_path / "no.json", root)
    assert_message(refused.value, tmp_path / "no.json", "datalist", "absent", "python -m scripts datalist")
    with pytest.raises(FileNotFoundError) as refused:
        read_datalist(write({"test": []}), tmp_path / "nowhere")
    assert_message(refused.value, "dataset_dir", tmp_path / "nowhere", "existing folder")


# --- lists exported with a feature store ---

KEYS = [f"{n:x}" * 64 for n in range(10, 16)]


def test_datalist_of_entries_needs_no_file_and_names_them_by_sequence_or_by_digits(write, root):
    entries = [{ENTRY: KEYS[0], LABEL: 1, SEQUENCE: "S1", PATIENT: "P1"}, {ENTRY: KEYS[1], LABEL: 0, "modality": "XA"}]
    read = labelled_split(write({TASK: MULTICLASS, "training": entries}), root, "training")
    assert [i[ENTRY] for i in read] == KEYS[:2]
    assert [i[SOURCE] for i in read] == ["S1", KEYS[1][:16]]
    assert [i[LABEL] for i in read] == [1, 0]
    assert not any(IMAGE in i for i in read)


@pytest.mark.parametrize("entry", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", 5, None, ["a" * 64]])
def test_datalist_entry_that_is_no_key_is_refused(write, root, entry):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{ENTRY: KEYS[0]}, {ENTRY: entry}]}), root)
    assert_message(refused.value, "training[1]", ENTRY, "64 lower-case hex digits")


@pytest.mark.parametrize("more", [{IMAGE: "a.dcm"}, {"frames": [0]}, {"frame_times_ms": [0.0]}])
def test_datalist_entry_beside_what_chooses_frames_is_refused(write, root, more):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [{ENTRY: KEYS[0], **more}]}), root)
    assert_message(refused.value, "training[0]", next(iter(more)), f"beside {ENTRY}")


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        ({}, {ENTRY: KEYS[0]}, (ENTRY, "a duplicate of training[0]")),
        ({SEQUENCE: "S1"}, {SEQUENCE: "S1"}, (SEQUENCE, "a duplicate of training[0]")),
        ({PATIENT: "P1"}, {PATIENT: "P1"}, (PATIENT, "also in training")),
    ],
)
def test_datalist_of_entries_that_leaks_is_refused(write, root, first, second, parts):
    content = {"training": [{ENTRY: KEYS[0]} | first], "test": [{ENTRY: KEYS[1]} | second]}
    with pytest.raises(ValueError) as refused:
        read_datalist(write(content), root)
    assert_message(refused.value, "test[0]", *parts)


def test_datalist_of_entries_has_no_images_to_read_and_says_so(write, root):
    path = write({"training": [{IMAGE: "a.dcm"}], "test": [{ENTRY: KEYS[0]}]})
    with pytest.raises(ValueError) as refused:
        all_items(path, root)
    assert_message(refused.value, path, IMAGE, f"1 of 2 items have an {ENTRY}", "train from it")


def test_datalist_split_of_entries_with_another_name_is_refused(write, root):
    with pytest.raises(ValueError) as refused:
        read_datalist(write({"training": [], "val": [{ENTRY: KEYS[0]}]}), root)
    assert_message(refused.value, "split", "val", "training, validation, test")


def test_labelled_split_gives_the_items_of_that_split_only(write, root):
    path = write({TASK: MULTICLASS, "training": [item()], "test": [item("b.dcm", label=2)]})
    assert [i[SOURCE] for i in labelled_split(path, root, "test")] == ["b.dcm"]


@pytest.mark.parametrize(
    ("content", "split", "parts"),
    [
        ({TASK: MULTICLASS, "training": [item()]}, "train", ("configuration", "split", "train", "training")),
        (
            {TASK: MULTICLASS, "training": [item()]},
            "test",
            ("list.json", "test", "empty", "at least one item"),
        ),
        ({"test": [{IMAGE: "a.dcm"}]}, "test", ("list.json", TASK, "absent", "multiclass")),
        ({TASK: MULTICLASS, "test": [item(), {IMAGE: "b.dcm"}]}, "test", ("b.dcm", LABEL, "1 items of test")),
    ],
)
def test_labelled_split_that_cannot_be_used_is_refused(write, root, content, split, parts):
    with pytest.raises(ValueError) as refused:
        labelled_split(write(content), root, split)
    assert_message(refused.value, *parts)


def test_read_task_without_a_task_is_refused(write, root):
    path = write({"test": []})
    with pytest.raises(ValueError) as refused:
        read_task(path, root)
    assert_message(refused.value, path, TASK, "absent", "multilabel")


def test_is_synthetic_is_true_only_where_the_list_says_so(write):
    said = [({SYNTHETIC: True}, True), ({SYNTHETIC: False}, False), ({}, False), ({SYNTHETIC: "yes"}, False)]
    for entry, expected in said:
        assert is_synthetic(write({"test": [], **entry})) is expected
    assert len(said) == 4


def test_datalist_digest_is_that_of_the_bytes(write):
    path = write({"test": []})
    assert datalist_digest(path) == hashlib.sha256(b'{"test": []}').hexdigest()


def test_a_label_that_is_not_known_is_null_in_the_list_and_minus_one_read(write, root):
    path = write({TASK: MULTILABEL, "test": [item(label=[1, None, 0])]})
    (found,) = read_datalist(path, root)["test"]
    assert found[LABEL] == [1, -1, 0]
    assert class_counts([found], Task("multilabel", ("leak", "pool", "stain"))).tolist() == [1, 0, 0]


def test_class_counts_count_every_class_even_the_absent(write, root):
    path = write({TASK: MULTICLASS, "training": [item("a.dcm", label=2), item("b.dcm", label=2), item("c.dcm")]})
    assert class_counts(all_items(path, root), read_task(path, root)).tolist() == [1, 0, 2]
    path = write({TASK: MULTILABEL, "training": [item(label=[1, 0, 1]), item("b.dcm", label=[0, 0, 1])]})
    assert class_counts(all_items(path, root), read_task(path, root)).tolist() == [1, 0, 2]
    assert class_counts([], Task("multilabel", ("a", "b"))).tolist() == [0, 0]
