"""A file, folder, list or DICOMDIR -> the DICOM files in it, told by their content alone."""

import re
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom import Dataset

from scripts.dicom.part10 import PREAMBLE_BYTES, is_not_image, open_object, reading
from scripts.errors import SequenceError, bad_value

DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
DIRECTORY_TAGS = ("DirectoryRecordSequence", "DirectoryRecordType", "ReferencedFileID", "RecordInUseFlag")
MAX_DICOMDIR_BYTES = 64 * 2**20  # about 100,000 images; the elements are counted by the reader as well


def is_dicom(path: Path) -> bool:
    """True for a file with the DICM mark of PS3.10 7.1 at byte 128, or a data set without it that proves itself."""
    if not path.is_file():
        return False
    with reading(path, "content"), path.open("rb") as file:
        start = file.read(PREAMBLE_BYTES + 4)
    if start[PREAMBLE_BYTES:] == b"DICM":
        return True
    return start[:2] in (b"\2\0", b"\x08\0", b"\0\x08") and _is_object(path)


def _is_object(path: Path) -> bool:
    try:
        with open_object(path):
            return True
    except SequenceError:
        return False


def sequence_files(source: Path | Sequence[Path]) -> list[Path]:
    """The DICOM files of a source; files of a folder that are not DICOM, or known not to be images, are left out.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: no DICOM file in a folder, or a file that is none and is named like those that are: a frame
            that was lost would not be missed.
    """
    if not isinstance(source, Path):
        if not source:
            raise SequenceError(bad_value("list of files", "image", "empty", "at least one path"))
        return list(source)
    if not source.exists():
        raise FileNotFoundError(bad_value(source, "path", "absent", "an existing file or folder"))
    if not source.is_dir():
        return [source]
    files = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    found = [path for path in files if is_dicom(path) and not _is_no_image(path)]
    if not found:
        raise SequenceError(bad_value(source, "folder", f"{len(files)} files, none DICOM", "at least one DICOM file"))
    alike = {_kind_of_name(path) for path in found}
    lost = next((path for path in files if _kind_of_name(path) in alike and not is_dicom(path)), None)
    if lost is not None:
        raise SequenceError(bad_value(lost, "content", "not DICOM", "DICOM, as in the files named like it beside it"))
    return found


def _kind_of_name(path: Path) -> str:
    """The suffix of a file name; without one, the name with every number left open."""
    return path.suffix.lower() or re.sub(r"\d+", "#", path.name)


def _is_no_image(path: Path) -> bool:
    """True for a whole object of a class without pixels, such as a DICOMDIR or a report; a damaged one stays."""
    try:
        with open_object(path) as file:
            return is_not_image(file.sop_class)
    except SequenceError:
        return False


def dicomdir_files(path: Path) -> list[Path]:
    """The image files that a DICOMDIR lists (PS3.3 F.3), in its order, each once.

    A file that is listed but absent stays in, so that reading it reports it. Names are taken inside the DICOMDIR's
    folder only, in whatever case a copy of the disc has them.

    Raises:
        SequenceError: no DICOMDIR, damaged, a name that leaves the folder, or no image in it.
    """
    with open_object(path, MAX_DICOMDIR_BYTES) as file:
        if file.sop_class != DICOMDIR_CLASS or file.size > MAX_DICOMDIR_BYTES:
            found = f"{file.size} bytes of another kind" if file.sop_class != DICOMDIR_CLASS else f"{file.size} bytes"
            raise SequenceError(bad_value(path, "content", found, f"a DICOMDIR of at most {MAX_DICOMDIR_BYTES} bytes"))
        with reading(path, "directory records"):
            directory = pydicom.dcmread(file, specific_tags=list(DIRECTORY_TAGS))
            names = [_name(record) for record in directory.get("DirectoryRecordSequence") or []]
    folders: dict[Path, dict[str, Path]] = {}
    found_files = [_inside(path, name, folders) for name in names if name]
    if not found_files:
        raise SequenceError(bad_value(path, "directory records", f"{len(names)}, none of an image", "at least one"))
    return list(dict.fromkeys(found_files))


def _name(record: Dataset) -> list[str]:
    """The components of an image's file name, PS3.3 F.3.2.2; empty for another record or one no longer in use."""
    if record.get("DirectoryRecordType") != "IMAGE" or record.get("RecordInUseFlag") == 0:
        return []
    name = record.get("ReferencedFileID") or []
    return [name] if isinstance(name, str) else [str(part) for part in name]


def _inside(path: Path, name: list[str], folders: dict[Path, dict[str, Path]]) -> Path:
    """The file below the DICOMDIR's folder; `folders` keeps the names of those already listed."""
    if any(part in ("", ".", "..") or set(part) & set("/\\:") for part in name):
        raise SequenceError(bad_value(path, "(0004,1500) ReferencedFileID", "a path of its own", "names in its folder"))
    place = path.parent
    for part in name:
        if place not in folders:
            folders[place] = {p.name.upper(): p for p in place.iterdir()} if place.is_dir() else {}
        exact = place / part
        place = exact if exact.exists() else folders[place].get(part.upper(), exact)
    if not place.resolve().is_relative_to(path.parent.resolve()):  # through a link
        raise SequenceError(
            bad_value(path, "(0004,1500) ReferencedFileID", "outside its folder", "names in its folder")
        )
    return place
