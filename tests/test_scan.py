"""Every run below a folder or in a DICOMDIR is found from headers: joined, kept apart, or left out with a reason."""

import gc
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.fileset import FileSet

from scripts.datalists.grouping import SYNTHETIC_MANUFACTURER
from scripts.datalists.scan import find_sequences
from scripts.dicom.sequence import read_header
from scripts.keys import IMAGE, PATIENT, SEQUENCE
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
            "AcquisitionDateTime": f"2020010110{minute:02d}{i:02d}",
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


# --- what tells runs apart ---


def runs(root: Path) -> list[list[str]]:
    """Names of the files of each run, folders taken apart."""
    found = []
    for image in images(root):
        paths = [root / name for name in ([image] if isinstance(image, str) else image)]
        found.append([p.name for path in paths for p in (sorted(path.iterdir()) if path.is_dir() else [path])])
    return found


def test_find_sequences_of_a_biplane_run_gives_one_sequence_a_plane(save, tmp_path):
    for plane in "AB":
        for number in (1, 2, 3):
            save(
                f"exam/{plane}{number}.dcm",
                ramp(1),
                InstanceNumber=number,
                ImageType=["ORIGINAL", "PRIMARY", f"BIPLANE {plane}"],
            )
    assert runs(tmp_path) == [["A1.dcm", "A2.dcm", "A3.dcm"], ["B1.dcm", "B2.dcm", "B3.dcm"]]


def test_find_sequences_of_two_acquisitions_in_one_series_keeps_them_separate(save, tmp_path):
    for number, acquisition in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 2)):
        save(f"exam/{number}.dcm", ramp(1), InstanceNumber=number, AcquisitionNumber=acquisition)
    assert runs(tmp_path) == [["1.dcm", "2.dcm"], ["3.dcm", "4.dcm", "5.dcm"]]


def test_find_sequences_of_a_series_whose_acquisition_number_counts_frames_stays_one(save, tmp_path):
    for number in (1, 2, 3):
        save(f"exam/{number}.dcm", ramp(1), InstanceNumber=number, AcquisitionNumber=number)
    assert images(tmp_path) == ["exam"]


def test_find_sequences_of_a_series_with_frames_of_another_size_keeps_these_apart(save, tmp_path):
    for number, side in ((1, 12), (2, 12), (3, 20), (4, 20)):
        save(f"exam/{number}.dcm", ramp(1, side, side), InstanceNumber=number)
    assert runs(tmp_path) == [["1.dcm", "2.dcm"], ["3.dcm", "4.dcm"]]


def test_find_sequences_of_an_ophthalmic_exam_with_two_dyes_keeps_them_apart(save, tmp_path):
    for minute in range(4):
        dye = ("FLUORESCEIN", "INDOCYANINE GREEN")[minute % 2]
        options = {"SOPClassUID": OP, "Modality": "OP", "PatientID": "A", "ContrastBolusAgent": dye}
        save(f"e/{minute}.dcm", ramp(1), AcquisitionDateTime=f"202001011{minute:03d}00", **options)
    assert runs(tmp_path) == [["0.dcm", "2.dcm"], ["1.dcm", "3.dcm"]]


def test_find_sequences_of_a_series_spread_over_folders_makes_one_list_in_order(save, tmp_path):
    names = {3: "A/IM000001.dcm", 1: "A/IM000002.dcm", 2: "B/IM000001.dcm", 4: "C/IM000001.dcm"}
    for number, name in names.items():
        save(f"DICOM/{name}", ramp(1), InstanceNumber=number, PatientID="A")
    assert images(tmp_path) == [[f"DICOM/{names[number]}" for number in (1, 2, 3, 4)]]


def test_find_sequences_of_folders_that_each_count_from_one_are_runs_of_their_own(save, tmp_path):
    for folder in "AB":
        for number in (1, 2):
            save(f"{folder}/{number}.dcm", ramp(1), InstanceNumber=number, PatientID="A")
    assert images(tmp_path) == ["A", "B"]


def test_find_sequences_of_ophthalmic_files_in_a_folder_each_makes_one_list_by_time(save, tmp_path):
    for folder, second in (("a", 20), ("b", 5), ("c", 41)):
        save(
            f"{folder}/1.dcm",
            ramp(1),
            SOPClassUID=OP,
            Modality="OP",
            PatientID="A",
            AcquisitionDateTime=f"202001011000{second:02d}",
            SeriesInstanceUID=f"1.2.{second}",
        )
    assert images(tmp_path) == [["b/1.dcm", "a/1.dcm", "c/1.dcm"]]


XRAY = "1.2.840.10008.5.1.4.1.1."


@pytest.mark.parametrize(
    ("sop_class", "modality"),
    [
        (XRAY + "12.1", "XA"),
        (XRAY + "12.1.1", "XA"),
        (XRAY + "12.2", "RF"),
        (XRAY + "12.2.1", "RF"),
        (XRAY + "12.1", "DSA"),
        (XRAY + "77.1.5.1", "OP"),
        (XRAY + "77.1.5.2", "OP"),
        (XRAY + "77.1.5.4", "OPT"),
        (XRAY + "7.2", "XA"),
        (XRAY + "12.1", None),
    ],
)
def test_find_sequences_takes_every_class_of_angiography(save, tmp_path, sop_class, modality):
    save("run.dcm", SOPClassUID=sop_class, Modality=modality)
    assert images(tmp_path) == ["run.dcm"]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"SOPClassUID": XRAY + "2", "Modality": "CT"}, "modality CT, not angiography"),
        ({"SOPClassUID": XRAY + "4", "Modality": "MR"}, "modality MR, not angiography"),
        ({"SOPClassUID": XRAY + "3.1", "Modality": "US"}, "modality US, not angiography"),
        ({"SOPClassUID": XRAY + "14.1", "Modality": "IVOCT"}, "modality IVOCT, not angiography"),
        ({"SOPClassUID": XRAY + "13.1.1", "Modality": "XA"}, "a reconstructed volume"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"Rows": None, "PixelData": None}, "no image in it"),
    ],
)
def test_find_sequences_leaves_out_what_is_no_run_and_says_why(save, tmp_path, attributes, reason):
    save("a/run.dcm")
    save("a/other.dcm", **attributes, **PERSON)
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["a/run.dcm"]
    assert left_out == [f"a/other.dcm: {reason}"]


def test_find_sequences_keeps_a_damaged_file_for_the_reader_to_refuse_and_goes_on(save, tmp_path):
    save("a.dcm")
    broken = save("b.dcm", **PERSON)
    broken.write_bytes(broken.read_bytes()[:400])
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["a.dcm", "b.dcm"]
    assert_no_person(items, left_out)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.dcm", b"no DICOM" * 50, "not what its suffix says"),
        ("a.nii", b"no NIfTI" * 50, "not what its suffix says"),
        ("a.mp4", b"no video" * 50, "not what its suffix says"),
        ("a.png", b"", "not what its suffix says"),
        ("a.zip", b"PK" * 200, "no file that holds a sequence"),
        ("a", b"", "no file that holds a sequence"),
    ],
)
def test_find_sequences_tells_files_of_no_known_kind(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    assert find_sequences(tmp_path, progress=False)[:2] == ([], [f"{name}: {reason}"])


def test_find_sequences_follows_no_link_out_of_the_folder_and_says_so(save, tmp_path):
    outside = save("outside/run.dcm")
    save("exams/a/run.dcm", InstanceNumber=2)
    (tmp_path / "exams" / "a" / "link.dcm").symlink_to(outside)
    (tmp_path / "exams" / "a" / "broken.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "exams" / "folder").symlink_to(outside.parent)
    items, left_out, _ = find_sequences(tmp_path / "exams", progress=False)
    assert [item[IMAGE] for item in items] == ["a/run.dcm"]
    assert left_out == [
        "a/broken.dcm: unreadable (FileNotFoundError)",
        "a/link.dcm: leads out of the folder",
        "folder: a link to a folder, not followed",
    ]


@pytest.mark.parametrize("circle", [("a", "a"), ("a", "b")])
def test_find_sequences_goes_on_past_links_in_a_circle(save, tmp_path, circle):
    save("run.dcm")
    (tmp_path / circle[0]).symlink_to(tmp_path / circle[1])
    (tmp_path / "b").symlink_to(tmp_path / "a")
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["run.dcm"]
    assert [line.split(":")[0] for line in left_out] == ["a", "b"]


def test_find_sequences_does_not_wait_for_a_pipe(save, tmp_path):
    save("run.dcm")
    os.mkfifo(tmp_path / "pipe.dcm")
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["run.dcm"]
    assert left_out == ["pipe.dcm: absent or no regular file"]


def test_find_sequences_goes_on_past_a_file_that_may_not_be_read(save, tmp_path, monkeypatch):
    save("a.dcm")
    refused = save("b.dcm")

    def deny(path: Path) -> bool:
        if path == refused:
            raise PermissionError(13, "denied", str(path))
        return True

    monkeypatch.setattr("scripts.datalists.scan.is_dicom", deny)
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["a.dcm"]
    assert left_out == ["b.dcm: unreadable (PermissionError)"]


def test_find_sequences_orders_files_as_the_reader_does(save, tmp_path):
    for number, (name, time) in enumerate({"a": "100000", "b": "095959", "c": "100001"}.items()):
        save(f"{name}/1.dcm", ramp(1), PatientID="A", ContentDate="20200101", ContentTime=time, InstanceNumber=number)
    (image,) = images(tmp_path)
    assert image == ["b/1.dcm", "a/1.dcm", "c/1.dcm"]
    assert [str(file.relative_to(tmp_path)) for file in read_header([tmp_path / name for name in image]).files] == image


# --- other containers ---


def test_find_sequences_takes_nifti_video_stacks_and_folders_of_images(save, tmp_path):
    import nibabel

    save("a/run.dcm")
    pixels = np.zeros((4, 4, 1, 3), dtype=np.int16)
    for name in ("b/run.nii", "b/run.nii.gz"):
        (tmp_path / "b").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), tmp_path / name)
    for name in ("c/left/1.png", "c/left/2.png", "c/right/1.jpg", "d/1.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ramp(1)[0]).save(tmp_path / name)
    pages = [Image.fromarray(frame) for frame in ramp(3)]
    for name in ("e/x.tif", "e/y.tiff"):
        (tmp_path / "e").mkdir(exist_ok=True)
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    (tmp_path / "c" / "left" / "times.csv").write_text("file,time_ms\n1.png,0\n2.png,9\n")
    items, left_out, synthetic = find_sequences(tmp_path, progress=False)
    assert [(item[IMAGE], item[PATIENT]) for item in items] == [
        ("a/run.dcm", "P0001"),
        ("b/run.nii", "P0002"),
        ("b/run.nii.gz", "P0002"),
        ("c/left", "P0003"),
        ("c/right", "P0003"),
        ("d", "P0004"),
        ("e/x.tif", "P0005"),
        ("e/y.tiff", "P0005"),
    ]
    assert left_out == [] and synthetic is False


def test_find_sequences_takes_a_video_by_suffix_and_mark(tmp_path):
    for name, mark in (("p/a.mp4", b"\0\0\0\x20ftypisom"), ("p/b.avi", b"RIFF\0\0\0\0AVI LIST")):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(mark + bytes(400))
    assert images(tmp_path) == ["p/a.mp4", "p/b.avi"]


def test_find_sequences_takes_images_beside_dicom_for_previews(save, tmp_path):
    save("a/run.dcm")
    for name in ("a/run.jpg", "a/again.jpg"):
        Image.fromarray(ramp(1)[0]).save(tmp_path / name)
    items, left_out, _ = find_sequences(tmp_path, progress=False)
    assert [item[IMAGE] for item in items] == ["a/run.dcm"]
    assert left_out == ["a: 2 images beside DICOM files, taken for previews of them"]


def test_find_sequences_of_images_in_the_folder_itself_is_that_folder(tmp_path):
    Image.fromarray(ramp(1)[0]).save(tmp_path / "1.png")
    assert images(tmp_path) == ["."]


# --- DICOMDIR ---


@pytest.fixture
def media(save_series, save, tmp_path) -> Path:
    """A DICOMDIR, as pydicom writes it, of a single-frame series and a run; names of eight characters, no suffix."""
    shared = {"StudyInstanceUID": "1.2.9", "StudyDate": "20200101", "StudyTime": "100000", "StudyID": "1", **PERSON}
    series = {**shared, "SeriesInstanceUID": "1.2.9.1", "SeriesNumber": 1}
    folder = save_series("src/series", [{"InstanceNumber": n} for n in (3, 1, 2)], **series)
    run = save("src/run.dcm", SeriesInstanceUID="1.2.9.2", SeriesNumber=2, InstanceNumber=9, **shared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pydicom 3.0.2 leaves its folders to the garbage collector
        files = FileSet()
        for path in [*sorted(folder.iterdir()), run]:
            files.add(dcmread(path))
        files.write(tmp_path / "media")
        del files
        gc.collect()
    return tmp_path / "media"


def test_find_sequences_of_a_dicomdir_and_of_its_folder_are_the_same_runs(media):
    (from_file, left_out, _), (from_folder, _, _) = (
        find_sequences(source, progress=False) for source in (media / "DICOMDIR", media)
    )
    assert not left_out
    assert [item[PATIENT] for item in from_file] == ["P0001", "P0001"]
    paths = []
    for items in (from_file, from_folder):
        read = []
        for item in items:
            names = item[IMAGE] if isinstance(item[IMAGE], list) else [item[IMAGE]]
            read.append(read_header(media / names[0] if len(names) == 1 else [media / name for name in names]).files)
        paths.append(sorted(read))
    assert paths[0] == paths[1]
    assert sorted(len(files) for files in paths[0]) == [1, 3]
    numbers = [[dcmread(file).InstanceNumber for file in files] for files in paths[0]]
    assert sorted(numbers) == [[1, 2, 3], [9]]
    assert_no_person(from_file, from_folder)


def test_find_sequences_of_a_dicomdir_takes_its_files_only(media, save):
    shutil.copy(save("else/other.dcm", SeriesInstanceUID="1.2.8"), media / "extra")
    assert len(find_sequences(media / "DICOMDIR", progress=False)[0]) == 2
    assert len(find_sequences(media, progress=False)[0]) == 3
