"""Which files of a folder or DICOMDIR are images, told by what they hold and inside the folder only."""

import os
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, uid
from pydicom.sequence import Sequence

from scripts.dicom.files import dicomdir_files, is_dicom, sequence_files
from scripts.errors import SequenceError
from tests.conftest import PERSON, assert_message, assert_no_person, ramp, save_dicom
from tests.test_part10 import without_mark, without_meta

DICOMDIR = "1.2.840.10008.1.3.10"


def record(kind: str, name: str | list[str] | None = None, in_use: int = 0xFFFF) -> Dataset:
    entry = Dataset()
    entry.DirectoryRecordType, entry.RecordInUseFlag = kind, in_use
    if name is not None:
        entry.ReferencedFileID = name
    if kind == "PATIENT":
        entry.PatientName = PERSON["PatientName"]
    return entry


def save_dicomdir(path: Path, records: list[Dataset]) -> Path:
    directory = Dataset()
    directory.file_meta = pydicom.dataset.FileMetaDataset()
    directory.file_meta.MediaStorageSOPClassUID = DICOMDIR
    directory.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["dicomdir"])
    directory.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    directory.FileSetID = "QUARZEL"
    directory.DirectoryRecordSequence = Sequence(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    directory.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_is_dicom_takes_headless_files_that_prove_it(save, syntax):
    path: Path = save(syntax=syntax)
    assert is_dicom(path)
    data = path.read_bytes()
    for form in (without_mark, without_meta):
        path.write_bytes(form(data))
        assert is_dicom(path)
    path.write_bytes(without_meta(data).replace(b"1.2.840.10008.5.1.4.1.1.12.1", b"9.9.999.99999.9.9.9.9.9.99.9"))
    assert not is_dicom(path)


def test_is_dicom_of_what_cannot_be_a_dicom_file_is_false_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("DICOM" * 100)
    (tmp_path / "almost").write_bytes(b"\x08\x00\x16\x00UI" + bytes(300))
    names = [*sorted(p.name for p in tmp_path.iterdir()), "absent"]
    assert len(names) == 5
    assert not any(is_dicom(tmp_path / name) for name in names)


def test_sequence_files_of_a_folder_leave_out_objects_without_pixels(save, tmp_path):
    kept = [save("exam/1.dcm"), save("exam/2.dcm")]
    for number, root in enumerate(("104.1", "9.1.1", "11.1", "88.11", "66")):
        save(f"exam/other{number}.dcm", SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{root}", PixelData=None)
    save_dicomdir(tmp_path / "exam" / "index", [record("PATIENT")])
    os.mkfifo(tmp_path / "exam" / "pipe")
    assert sequence_files(tmp_path / "exam") == kept


def test_sequence_files_keep_a_damaged_file_so_that_reading_it_reports_it(save, tmp_path):
    path: Path = save("exam/1.dcm")
    path.write_bytes(path.read_bytes()[:300])
    assert sequence_files(tmp_path / "exam") == [path]


def test_sequence_files_of_a_source_without_dicom_are_refused(tmp_path):
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "1.dcm").write_text("no image")
    for source in (tmp_path / "exam", []):
        with pytest.raises(SequenceError) as error:
            sequence_files(source)
        assert_message(error.value, "needs", "at least one")
    with pytest.raises(FileNotFoundError):
        sequence_files(tmp_path / "absent")


def test_dicomdir_files_are_the_images_in_use_in_their_order(tmp_path):
    names = [["IMAGES", "B2"], ["IMAGES", "A1"], ["TOP"]]
    for name in names:
        save_dicom(tmp_path.joinpath(*name), ramp())
    records = [record("PATIENT"), record("STUDY"), record("SERIES"), *(record("IMAGE", name) for name in names)]
    records += [record("SR DOCUMENT", ["REPORT"]), record("IMAGE", ["OLD"], in_use=0), record("IMAGE", names[0])]
    records += [record("IMAGE")]
    path = save_dicomdir(tmp_path / "DICOMDIR", records)
    assert dicomdir_files(path) == [tmp_path.joinpath(*name) for name in names]


def test_dicomdir_files_are_found_in_the_case_a_copy_has_them(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "im000001").touch()
    path = save_dicomdir(tmp_path / "dicomdir", [record("IMAGE", ["IMAGES", "IM000001"])])
    assert dicomdir_files(path) == [tmp_path / "images" / "im000001"]


def test_dicomdir_files_keep_an_absent_file_so_that_reading_it_reports_it(tmp_path):
    path = save_dicomdir(tmp_path / "DICOMDIR", [record("IMAGE", ["IMAGES", "GONE"])])
    assert dicomdir_files(path) == [tmp_path / "IMAGES" / "GONE"]


@pytest.mark.parametrize("name", [["..", "OTHER"], ["A", "..", "..", "B"], ["A/../../B"], ["/etc/passwd"], ["C:\\B"]])
def test_dicomdir_files_outside_its_folder_are_refused(tmp_path, name):
    path = save_dicomdir(tmp_path / "disc" / "DICOMDIR", [record("PATIENT"), record("IMAGE", "X")])
    dataset = pydicom.dcmread(path)
    dataset.DirectoryRecordSequence[1].ReferencedFileID = name if len(name) > 1 else name[0]
    dataset.save_as(path)
    with pytest.raises(SequenceError) as error:
        dicomdir_files(path)
    assert_message(error.value, path, "(0004,1500) ReferencedFileID", "names in its folder")
    assert_no_person(str(error.value).replace(str(path), ""))


def test_dicomdir_files_behind_a_link_out_of_its_folder_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "IM1").touch()
    path = save_dicomdir(tmp_path / "disc" / "DICOMDIR", [record("IMAGE", ["LINK", "IM1"])])
    (tmp_path / "disc" / "LINK").symlink_to(tmp_path / "other")
    with pytest.raises(SequenceError) as error:
        dicomdir_files(path)
    assert_message(error.value, path, "ReferencedFileID", "outside its folder")


def test_dicomdir_files_of_what_lists_no_image_are_refused(save, tmp_path):
    empty = save_dicomdir(tmp_path / "DICOMDIR", [record("PATIENT")])
    for path in (empty, save()):
        with pytest.raises(SequenceError) as error:
            dicomdir_files(path)
        assert_message(error.value, path)


def test_dicomdir_files_of_a_real_directory_are_all_its_images(shared_data):
    path = shared_data / "malformed" / "fodicom_DICOMDIR"
    files = dicomdir_files(path)
    kinds = [r.DirectoryRecordType for r in pydicom.dcmread(path).DirectoryRecordSequence]
    assert 0 < len(files) <= kinds.count("IMAGE")
    assert all(file.is_relative_to(path.parent) for file in files)


@pytest.mark.parametrize("content", [b"", bytes(5000), b"x" * 100])
@pytest.mark.parametrize("names", [["1.dcm", "2.dcm", "3.dcm"], ["IM_0001", "IM_0002", "IM_0010"]])
def test_a_folder_with_a_frame_that_was_lost_is_refused(tmp_path, names, content):
    for number, name in enumerate(names):
        save_dicom(tmp_path / "run" / name, ramp(1), InstanceNumber=number + 1)
    (tmp_path / "run" / "notes.txt").write_text("no frame")
    (tmp_path / "run" / "README").write_text("no frame")
    assert len(sequence_files(tmp_path / "run")) == 3
    (tmp_path / "run" / names[1]).write_bytes(content)
    with pytest.raises(SequenceError) as error:
        sequence_files(tmp_path / "run")
    assert_message(error.value, names[1], "content", "not DICOM", "named like it")
