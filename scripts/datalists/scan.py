"""A folder or DICOMDIR -> its sequences, from headers and names alone, and what was left out."""

import filecmp
import os
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scripts.datalists.grouping import RunFile, as_sequences, read_run_file, top_folder
from scripts.datalists.labels import number_patients
from scripts.dicom.files import dicomdir_files, is_dicom
from scripts.errors import SequenceError, bad_value
from scripts.keys import IMAGE
from scripts.sequences import images
from scripts.sequences.reader import CONTAINERS, DICOM, IMAGES, sequence_container

DICOMDIR = "DICOMDIR"
BESIDE = (".csv", ".json", ".txt", ".md", ".xml", ".html", ".log")  # lies beside exams and claims to be none
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
TIFF_SUFFIXES = (".tif", ".tiff")
STACK = "stack"  # an image of several frames
NUM_THREADS = 4  # for disks far away; on a near one it is the interpreter that limits


@dataclass(frozen=True)
class _Look:
    """One file looked at: its container (empty: none), its place if DICOM, why it is left out (empty: it is not)."""

    path: Path
    name: str
    container: str
    file: RunFile | None = None
    reason: str = ""


def find_sequences(source: Path, progress: bool = True) -> tuple[list[dict[str, Any]], list[str], bool]:
    """Every angiographic run below a folder, from headers alone.

    A multi-frame file is one sequence, and so are a NIfTI file, a video, and the images of one folder. Single-frame
    DICOM files are joined as `grouping` tells.

    Args:
        source: a folder, searched with all folders below; or a DICOMDIR, whose files are taken.
        progress: show a progress bar.

    Returns:
        Items with `image` relative to the folder (a file, a folder, or a list of files), `patient` (P0001, ... in the
        order of paths: the real identifier never leaves this function) and `sequence`; what was left out and why; and
        whether all of it was made by scripts/sequences/phantom.py.
    """
    root, paths, left_out = _candidates(source)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        looks = pool.map(lambda path: _look_at(path, root), paths)
        found = list(tqdm(looks, total=len(paths), unit="file", disable=not progress))
    files, copies = _without_copies([look.file for look in found if look.file])
    # A folder that holds more than a media's directory lists cannot stand for its run.
    in_folder = Counter(look.path.parent for look in found if look.container == DICOM and source == root)
    runs = as_sequences(files, root, in_folder)
    others, previews = _other_containers(found, root)
    runs = sorted(runs + others, key=lambda run: run[0] if isinstance(run[0], str) else run[0][0])
    items = [{IMAGE: image} for image, _ in runs]
    number_patients(items, [patient for _, patient in runs])
    left_out += [f"{look.name}: {look.reason}" for look in found if look.reason] + copies + previews
    return items, sorted(left_out), bool(files) and not others and all(file.synthetic for file in files)


def _candidates(source: Path) -> tuple[Path, list[Path], list[str]]:
    """The folder that paths are relative to, the files to look at in the order of paths, and what is not followed."""
    if source.is_file() and source.name.upper() == DICOMDIR:
        return source.parent, sorted(dicomdir_files(source)), []
    if not source.is_dir():
        raise FileNotFoundError(bad_value(source, "folder", "absent", "an existing folder, or a DICOMDIR"))
    paths, left_out = [], []
    for parent, folders, files in os.walk(source):
        here = Path(parent)
        for name in folders:
            if (here / name).is_symlink():
                left_out.append(f"{(here / name).relative_to(source).as_posix()}: a link to a folder, not followed")
        paths += [here / name for name in files if not name.startswith(".") and name.upper() != DICOMDIR]
    return source, sorted(paths), left_out


def _look_at(path: Path, root: Path) -> _Look:
    name = path.relative_to(root).as_posix()
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root.resolve()):
            return _Look(path, name, DICOM, reason="leads out of the folder")
        if not path.is_file():  # opening a pipe would wait for ever
            return _Look(path, name, "", reason="absent or no regular file")
        container = DICOM if is_dicom(path) else sequence_container(path)
    except (OSError, RuntimeError) as error:  # the latter of links in a circle
        return _Look(path, name, "", reason=f"unreadable ({type(error).__name__})")
    if container == DICOM:
        found = read_run_file(path, name)
        return _Look(path, name, DICOM, None, found) if isinstance(found, str) else _Look(path, name, DICOM, found)
    if container:
        return _Look(path, name, STACK if container == IMAGES and _is_stack(path) else container)
    if path.suffix.lower() in BESIDE:
        return _Look(path, name, "")
    suffixes = DICOM_SUFFIXES + sum((container.suffixes for container in CONTAINERS.values()), ())
    claims = path.name.lower().endswith(suffixes)
    return _Look(path, name, "", reason="not what its suffix says" if claims else "no file that holds a sequence")


def _is_stack(path: Path) -> bool:
    """True for a TIFF of several pages, which is a sequence by itself."""
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return False
    try:
        return images.read_header(path).num_frames > 1
    except SequenceError:  # whoever reads it next says what is wrong with it
        return False


def _without_copies(files: list[RunFile]) -> tuple[list[RunFile], list[str]]:
    """Files without second copies, and a line for each copy.

    Bytes are compared only of files that claim to be one image, since some exports repeat their UIDs.
    """
    first_of: dict[str, RunFile] = {}
    kept, copies = [], []
    for file in files:
        first = first_of.setdefault(file.instance, file)
        if first is not file and filecmp.cmp(first.path, file.path, shallow=False):
            copies.append(f"{file.name}: a copy of {first.name}")
        else:
            kept.append(file)
    return kept, copies


def _other_containers(found: list[_Look], root: Path) -> tuple[list[tuple[Any, Hashable]], list[str]]:
    """Sequences that are not DICOM, each with what stands for its patient, and the images left out."""
    with_dicom = {look.path.parent for look in found if look.container == DICOM}
    pictures = Counter(look.path.parent for look in found if look.container == IMAGES)
    out: list[tuple[Any, Hashable]] = [
        (look.name, top_folder(look.name)) for look in found if look.container not in ("", DICOM, IMAGES)
    ]
    previews = []
    for folder, count in pictures.items():
        name = folder.relative_to(root).as_posix()
        if folder in with_dicom:
            previews.append(f"{name}: {count} images beside DICOM files, taken for previews of them")
        else:
            out.append((name, top_folder(f"{name}/" if folder != root else "")))
    return out, previews
