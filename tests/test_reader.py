"""Every container is read by its own reader, told by content and suffix."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from scripts.errors import SequenceError
from scripts.sequences.reader import CONTAINERS, read_frames, read_header, sequence_container
from tests.conftest import assert_message, ramp, save_dicom


def save_nifti(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(ramp().transpose(2, 1, 0)[:, :, None], None), path)
    return path


def save_images(folder: Path) -> Path:
    folder.mkdir()
    for i, frame in enumerate(ramp()):
        Image.fromarray(frame).save(folder / f"{i}.png")
    return folder


def save_pages(path: Path) -> Path:
    images = [Image.fromarray(frame) for frame in ramp()]
    images[0].save(path, save_all=True, append_images=images[1:])
    return path


def save_video(path: Path) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 10, 12, "gray"
        for frame in ramp():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "gray")))
        container.mux(stream.encode())
    return path


SOURCES = [
    ("dicom", lambda folder: save_dicom(folder / "run.dcm", ramp())),
    ("dicom", lambda folder: save_dicom(folder / "no_suffix", ramp())),
    ("dicom", lambda folder: save_dicom(folder / "named.png", ramp())),  # content goes before suffix
    ("nifti", lambda folder: save_nifti(folder / "run.nii")),
    ("nifti", lambda folder: save_nifti(folder / "RUN.nii.gz")),
    ("images", lambda folder: save_images(folder / "frames")),
    ("images", lambda folder: sorted(save_images(folder / "frames").iterdir())),
    ("images", lambda folder: save_pages(folder / "run.TIF")),
    ("images", lambda folder: [save_pages(folder / "run.tiff")]),
    ("video", lambda folder: save_video(folder / "run.avi")),
    ("video", lambda folder: [save_video(folder / "run.mkv")]),
]


@pytest.mark.parametrize(("container", "save"), SOURCES)
def test_every_container_gives_the_same_frames(tmp_path, container, save):
    source = save(tmp_path)
    header = read_header(source)
    assert (header.container, header.num_frames) == (container, 4)
    np.testing.assert_array_equal(read_frames(header, [1, 3]), ramp()[[1, 3]])


@pytest.mark.parametrize(("container", "save"), SOURCES)
def test_the_limit_reaches_every_reader(tmp_path, container, save):
    source = save(tmp_path)
    with pytest.raises(SequenceError) as error:
        read_header(source, max_sequence_bytes=4 * 12 * 10 - 1)
    assert_message(error.value, "decoded size is 480 bytes" if container != "dicom" else "decoded size is")


def test_a_folder_with_dicom_and_images_is_read_as_dicom(tmp_path):
    folder = save_images(tmp_path / "frames")
    save_dicom(folder / "z", ramp(6))
    header = read_header(folder)
    assert (header.container, header.num_frames) == ("dicom", 6)


def test_a_directory_file_beside_images_is_no_exam(tmp_path):
    folder = save_images(tmp_path / "frames")
    save_dicom(folder / "DICOMDIR", ramp(6))
    assert read_header(folder).container == "images"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["run.nii", "0.png"], "2 of images and nifti"),
        (["run.nii", "run2.nii"], "2 of nifti"),
        (["run.dcm", "0.png", "1.png"], "3 of dicom and images"),
    ],
)
def test_a_list_of_several_containers_or_runs_is_refused(tmp_path, names, found):
    folder = save_images(tmp_path / "frames")
    shutil.copy(save_nifti(folder / "run.nii"), folder / "run2.nii")
    save_dicom(folder / "run.dcm", ramp())
    with pytest.raises(SequenceError) as error:
        read_header([folder / name for name in names])
    assert_message(error.value, folder, f"list of files is {found}", "one container")


def test_a_file_of_a_known_suffix_and_other_content_is_refused_by_that_reader(tmp_path):
    contents = {"a.nii": "n+1", "a.nii.gz": "n+2", "a.png": "PNG", "a.mp4": "video", "a.dcm": "DICM", "a.txt": "DICM"}
    for name, needs in contents.items():
        (tmp_path / name).write_bytes(b"nothing of an image " * 20)
        with pytest.raises(SequenceError) as error:
            read_header(tmp_path / name)
        assert_message(error.value, tmp_path / name, "needs", needs)
    assert len(contents) == 6


def test_absent_and_empty_sources_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError) as absent:
        read_header(tmp_path / "none.png")
    assert_message(absent.value, tmp_path / "none.png", "path is absent")
    for source in (tmp_path, []):
        with pytest.raises(SequenceError):
            read_header(source)


@pytest.mark.parametrize(("container", "save"), [pair for pair in SOURCES if pair[0] != "images"])
def test_a_file_names_its_container_by_content_and_suffix(tmp_path, container, save):
    source = save(tmp_path)
    path = source if isinstance(source, Path) else source[0]
    assert sequence_container(path) == container
    shutil.copy(path, tmp_path / "other.bin")
    assert sequence_container(tmp_path / "other.bin") == ("dicom" if container == "dicom" else None)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_an_image_names_its_container_and_text_names_none(tmp_path, suffix):
    Image.fromarray(ramp(1)[0]).save(tmp_path / f"a.{suffix}")
    assert sequence_container(tmp_path / f"a.{suffix}") == "images"
    (tmp_path / f"b.{suffix}").write_text("text")
    (tmp_path / "c.csv").write_text("")
    assert sequence_container(tmp_path / f"b.{suffix}") is None
    assert sequence_container(tmp_path / "c.csv") is None


def test_every_container_has_a_reader_and_a_mark():
    assert sorted(CONTAINERS) == ["dicom", "images", "nifti", "video"]
    assert all(container.marks for container in CONTAINERS.values())
