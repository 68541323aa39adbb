"""A source of any container -> the header of its sequence -> chosen frames; DICOM, NIfTI, images or video.

dicom    the mark DICM of PS3.10, and whatever no other container claims
nifti    .nii, .nii.gz
images   PNG, JPEG, TIFF or BMP: one file, a multi-page TIFF, a list, or a folder without DICOM
video    .mp4, .m4v, .mov, .avi, .mkv
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.dicom import sequence as dicom
from scripts.dicom.files import is_dicom, sequence_files
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader
from scripts.errors import SequenceError, bad_value, reading
from scripts.sequences import images, nifti, video

DICOM, NIFTI, IMAGES, VIDEO = "dicom", "nifti", "images", "video"
MARK_BYTES = 352  # NIfTI-1 has its mark at byte 344


@dataclass(frozen=True)
class _Container:
    read_header: Callable[..., SequenceHeader]
    read_frames: Callable[[SequenceHeader, Sequence[int]], np.ndarray]
    suffixes: tuple[str, ...]
    marks: tuple[tuple[int, bytes], ...]  # position, bytes; one of them stands in every such file


CONTAINERS = {
    DICOM: _Container(dicom.read_header, dicom.read_frames, (), ((128, b"DICM"),)),
    NIFTI: _Container(
        nifti.read_header,
        nifti.read_frames,
        (".nii", ".nii.gz"),
        ((344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0"), (0, nifti.GZIP_MARK)),
    ),
    IMAGES: _Container(
        images.read_header,
        images.read_frames,
        images.SUFFIXES,
        (
            (0, b"\x89PNG\r\n\x1a\n"),
            (0, b"\xff\xd8\xff"),
            *((0, mark) for mark in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")),
        ),
    ),
    VIDEO: _Container(
        video.read_header,
        video.read_frames,
        video.SUFFIXES,
        tuple((at, mark) for at, marks in video.MARKS.values() for mark in marks),
    ),
}


def read_header(source: Path | Sequence[Path], max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> SequenceHeader:
    """The header of a sequence in any container.

    Args:
        source: file, folder, or list of files of one container. In a folder that holds both, DICOM goes before images.
        max_sequence_bytes: largest decoded size accepted, checked before anything is allocated.

    Raises:
        FileNotFoundError: nothing at the path.
        ImportError: a video, and PyAV is not installed.
        SequenceError: not an image run, damaged, inconsistent or too large.
    """
    return CONTAINERS[_container(source)].read_header(_alone(source), max_sequence_bytes)


def read_frames(header: SequenceHeader, indices: Sequence[int]) -> np.ndarray:
    """Stored values of chosen frames, only these decoded: (T, H, W), or (T, H, W, 3) RGB.

    Args:
        header: of `read_header`.
        indices: 0-based, ascending.

    Raises:
        SequenceError: the pixels cannot be decoded, or are not what the header says.
    """
    return CONTAINERS[header.container].read_frames(header, indices)


def source_files(source: Path | Sequence[Path]) -> list[Path]:
    """All files that decide what a sequence is, from their names alone but for DICOM's; none is checked.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: a folder or list without a file.
    """
    if isinstance(source, Path) and source.is_dir() and _container(source) == IMAGES:
        times = source / images.TIMES_FILE
        return [*images.folder_images(source), *([times] if times.is_file() else [])]
    return sequence_files(source)


def sequence_container(path: Path) -> str | None:
    """The container of a file by its first bytes, and its suffix where it is no DICOM; None for anything else.

    Both must agree, so that a picture or a compressed file of another kind is not taken for an exam.
    """
    with reading(path, "content", "a readable file"), path.open("rb") as file:
        start = file.read(MARK_BYTES)
    for name, container in CONTAINERS.items():
        suffix = not container.suffixes or path.name.lower().endswith(container.suffixes)
        if suffix and any(start[at:].startswith(mark) for at, mark in container.marks):
            return name
    return None


def _container(source: Path | Sequence[Path]) -> str:
    if not isinstance(source, Path):
        found = sorted({_container(path) for path in source})
        if len(found) > 1 or (len(source) > 1 and found[0] in (NIFTI, VIDEO)):
            needs = "files of one container; one file where it is NIfTI or video"
            raise SequenceError(
                bad_value(source[0].parent, "list of files", f"{len(source)} of {' and '.join(found)}", needs)
            )
        return found[0] if found else DICOM
    if source.is_dir():
        files = [path for path in source.iterdir() if path.is_file() and path.name != "DICOMDIR"]
        pictures = any(path.name.lower().endswith(images.SUFFIXES) for path in files)
        return IMAGES if pictures and not any(is_dicom(path) for path in files) else DICOM
    return _file_container(source) if source.is_file() else DICOM  # whose reader says that nothing is there


def _file_container(path: Path) -> str:
    """By its first bytes, else by its suffix alone: that container's reader then says what is wrong with it."""
    named = (
        name for name, container in CONTAINERS.items() if path.name.lower().endswith(container.suffixes or ("\0",))
    )
    return sequence_container(path) or next(named, DICOM)


def _alone(source: Path | Sequence[Path]) -> Path | Sequence[Path]:
    """The file of a list of one."""
    return source[0] if not isinstance(source, Path) and len(source) == 1 else source
