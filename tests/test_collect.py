"""A folder and a table of labels become a datalist: patients renamed and kept apart, labels checked, all told."""

import json
import os
from pathlib import Path

import pytest

from scripts.datalists.collect import find_inputs, make_datalist, write_datalist
from scripts.datalists.datalist import all_items, labelled_split, read_datalist, read_task
from scripts.datalists.scan import find_sequences
from scripts.keys import IMAGE, LABEL, PATIENT, SOURCE, SPLITS, SYNTHETIC, TASK
from tests.angioreport import write_angioreport
from tests.conftest import PERSON, assert_message, assert_no_person, ramp


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


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
    assert_message(refused.value, tmp_path, "folder", "without exams")
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
        (tmp_path / "empty", ("folder", "without exams")),
        (tmp_path / "list.json", ("datalist", "empty", "at least one item")),
    ):
        with pytest.raises(ValueError) as refused:
            find_inputs(source, tmp_path)
        assert_message(refused.value, source, *parts)
    for source in (tmp_path / "no", tmp_path / "no.json"):
        with pytest.raises(FileNotFoundError) as refused:
            find_inputs(source, tmp_path)
        assert_message(refused.value, source, "absent")


def test_make_datalist_of_a_name_that_is_no_utf8_lists_it_and_can_be_printed(save, tmp_path):
    save("exams/run.dcm").rename(tmp_path / "exams" / os.fsdecode(b"l\xe4sion.dcm"))
    (tmp_path / "exams" / "two\nlines.bin").write_bytes(b"x")
    said = make_datalist(tmp_path / "exams")
    assert said.encode("utf-8").decode() == said
    assert said.splitlines()[0] == "left out: two?lines.bin: no file that holds a sequence"
    (item,) = all_items(tmp_path / "exams" / "datalist.json", tmp_path / "exams")
    assert item[IMAGE].is_file()


# --- tables with patients and splits ---


def test_make_datalist_with_a_column_of_patients_joins_and_parts_by_it(save, tmp_path):
    for name in ("a", "b", "c", "d"):
        save(f"exams/{name}/run.dcm", PatientID=PERSON["PatientID"])
    rows = [f"{name},{label},{patient},test" for name, label, patient in zip("abcd", "xyxy", "QqQr", strict=True)]
    table = write_csv(tmp_path / "labels.csv", "\n".join(["image,label,patient,split", *rows]))
    said = make_datalist(tmp_path / "exams", table)
    items = all_items(tmp_path / "exams" / "datalist.json", tmp_path / "exams")
    assert [item[PATIENT] for item in items] == ["P0001", "P0002", "P0001", "P0003"]
    assert "test: 4 sequences, 3 patients, x 2, y 2" in said
    assert_no_person(said, (tmp_path / "exams" / "datalist.json").read_text())


def test_make_datalist_writes_no_name_of_a_column_of_patients(labelled_folder, tmp_path):
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    table = [f"{lines[0]},patient", *(f"{line},{PERSON['PatientName']} {n}" for n, line in enumerate(lines[1:]))]
    said = make_datalist(labelled_folder, write_csv(tmp_path / "named.csv", "\n".join(table)))
    assert_no_person(said, (labelled_folder / "datalist.json").read_text())


def test_make_datalist_with_a_column_of_splits_keeps_them(labelled_folder, tmp_path):
    lines = (tmp_path / "labels.csv").read_text().splitlines()
    splits = [("train", "val", "test")[int(line[:2]) // 6] for line in lines[1:]]
    table = [f"{lines[0]},split", *(f"{line},{split}" for line, split in zip(lines[1:], splits, strict=True))]
    make_datalist(labelled_folder, write_csv(tmp_path / "split.csv", "\n".join(table)))
    content = read_datalist(labelled_folder / "datalist.json", labelled_folder)
    for number, split in enumerate(SPLITS):
        assert {int(item[SOURCE][:2]) // 6 for item in content[split]} == {number}


def test_make_datalist_with_a_patient_in_two_given_splits_is_refused_and_writes_nothing(save, tmp_path):
    for name in ("a", "b"):
        save(f"exams/{name}.dcm", **PERSON)
    table = write_csv(tmp_path / "labels.csv", "image,label,split\na.dcm,x,training\nb.dcm,y,test\n")
    with pytest.raises(ValueError) as refused:
        make_datalist(tmp_path / "exams", table)
    assert_message(refused.value, "b.dcm", "split", "a.dcm", "training", "one split only")
    assert_no_person(refused.value)
    assert not (tmp_path / "exams" / "datalist.json").exists()


def test_make_datalist_with_a_row_of_no_sequence_is_refused(labelled_folder, tmp_path):
    table = write_csv(tmp_path / "more.csv", (tmp_path / "labels.csv").read_text() + "\ngone.dcm,slow\n")
    with pytest.raises(ValueError) as refused:
        make_datalist(labelled_folder, table)
    assert_message(refused.value, "labels row gone.dcm", IMAGE, "no sequence (1 rows)", "a path of a sequence")


def test_make_datalist_with_a_row_of_a_file_left_out_goes_on_and_tells_it(labelled_folder, save, tmp_path):
    save("exams/report.dcm", Rows=None, PixelData=None)
    table = write_csv(tmp_path / "more.csv", (tmp_path / "labels.csv").read_text() + "\nreport.dcm,slow\n")
    assert "left out: report.dcm: no image in it" in make_datalist(labelled_folder, table).splitlines()


def test_make_datalist_leaves_out_what_has_no_label_and_says_so(labelled_folder, save):
    save("exams/unlabelled.dcm")
    said = make_datalist(labelled_folder, labelled_folder.parent / "labels.csv")
    assert "no label: unlabelled.dcm" in said.splitlines()
    assert len(all_items(labelled_folder / "datalist.json", labelled_folder)) == 22


def test_make_datalist_of_synthetic_exams_of_any_container_says_so(labelled_folder):
    make_datalist(labelled_folder, synthetic=True)
    assert json.loads((labelled_folder / "datalist.json").read_text())[SYNTHETIC] is True


def test_make_datalist_of_an_unknown_layout_is_refused(labelled_folder):
    with pytest.raises(ValueError) as refused:
        make_datalist(labelled_folder, layout="aptos")
    assert_message(refused.value, "configuration", "layout", "aptos", "auto, files, angioreport")


@pytest.mark.parametrize("table", [True, False])
def test_find_inputs_of_an_angioreport_folder_joins_both_eyes_of_a_patient(tmp_path, table):
    csv_path, split = write_angioreport(tmp_path, num_patients=3)
    split.unlink()
    if not table:
        csv_path.unlink()
    items = find_inputs(tmp_path, tmp_path)
    assert len(items) == 6
    assert len({item[PATIENT] for item in items}) == 3
    assert all(path.is_file() for item in items for path in item[IMAGE])


def test_find_inputs_of_a_list_whose_exams_lie_elsewhere_says_so(tmp_path):
    write_datalist(tmp_path / "list.json", {"test": [{IMAGE: "run.dcm"}]})
    (tmp_path / "other").mkdir()
    with pytest.raises(FileNotFoundError) as refused:
        find_inputs(tmp_path / "list.json", tmp_path / "other")
    assert_message(refused.value, "list.json", "dataset_dir", "other", "none of its 1 exams", "--dataset_dir")
