"""A file, folder or list -> the DICOM files in it, told by their mark alone."""

from collections.abc import Sequence
from pathlib import Path

from scripts.errors import SequenceError, bad_value


def is_dicom(path: Path) -> bool:
    """True for a file with the DICM mark of PS3.10 7.1 at byte 128."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def sequence_files(source: Path | Sequence[Path]) -> list[Path]:
    """The DICOM files of a source; files of a folder that are not DICOM at all are left out."""
    if not isinstance(source, Path):
        if not source:
            raise SequenceError(bad_value("list of files", "image", "empty", "at least one path"))
        return list(source)
    if not source.exists():
        raise FileNotFoundError(bad_value(source, "path", "absent", "an existing file or folder"))
    if source.is_file():
        return [source]
    files = sorted(p for p in source.iterdir() if p.is_file() and not p.name.startswith(".") and p.name != "DICOMDIR")
    found = [path for path in files if is_dicom(path)]
    if not found:
        raise SequenceError(bad_value(source, "folder", f"{len(files)} files, none DICOM", "at least one DICOM file"))
    return found
