"""A datalist -> what breaks the contract and what is odd, from headers and one decoded frame of each sequence."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np
from tqdm import tqdm

from scripts.datalists.datalist import Task, datalist_digest
from scripts.datalists.findings import (
    Exam,
    Finding,
    Reading,
    label_findings,
    named_twice,
    patient_findings,
    read_content,
    read_entries,
    same_pixels,
)
from scripts.datalists.scan import NUM_THREADS
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader
from scripts.errors import SequenceError, bad_value, printable
from scripts.keys import FRAME_TIMES, FRAMES, IMAGE, MODALITY, SYNTHETIC
from scripts.sequences.frames import check_indices, check_times
from scripts.sequences.reader import read_frames, read_header

LARGE_FRAME_BYTES = 2**26  # decoded: 8192 x 8192 of 8 bits
LARGE = 0.5  # of max_sequence_bytes; float32 values of 8-bit frames take four times the stored ones
_LARGE_FRAME = Lock()


@dataclass(frozen=True)
class Checked:
    """A datalist after the check."""

    name: str
    digest: str  # SHA-256 of the file
    task: Task | None
    synthetic: bool
    exams: list[Exam]
    findings: list[Finding]


def check_datalist(
    path: str | Path,
    dataset_dir: str | Path,
    max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES,
    progress: bool = True,
) -> Checked:
    """Everything that is wrong or odd in a datalist; of each sequence one frame is decoded.

    Args:
        path: the JSON file.
        dataset_dir: what its paths are relative to.
        max_sequence_bytes: largest decoded size accepted.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the file is no datalist at all.
    """
    path, root = Path(path), Path(dataset_dir).absolute()
    content = read_content(path, root)
    task, exams, findings = read_entries(path, content, root)
    findings += [*named_twice(exams), *patient_findings(exams)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(
            lambda exam: read_exam(exam, root, max_sequence_bytes) if exam.item and IMAGE in exam.item else (exam, []),
            exams,
        )
        read = list(tqdm(results, total=len(exams), desc="checking", unit="sequence", disable=not progress))
    exams = [exam for exam, _ in read]
    findings += [finding for _, found in read for finding in found]
    findings += [*same_pixels(exams), *label_findings(exams, task)]
    return Checked(path.name, datalist_digest(path), task, content.get(SYNTHETIC) is True, exams, findings)


def read_exam(exam: Exam, root: Path, max_sequence_bytes: int) -> tuple[Exam, list[Finding]]:
    """The entry with what its header and middle frame say, and what is wrong or odd in them."""
    kind = "unreadable"
    try:
        header = read_header(exam.item[IMAGE], max_sequence_bytes)
        with one_large(header):
            digest = pixel_digest(read_frames(header, [header.num_frames // 2])[0], header.num_frames)
        if digest is None and header.num_frames == 1:
            raise SequenceError(bad_value(exam.source, "pixel values", "all alike", "at least two different values"))
        kind = "frames"
        used, times, modality = as_listed(exam, header)
    except Exception as error:  # whatever it is: one exam must not cost the others their check
        return exam, [Finding(kind, exam.where, exam.source, reason(error, exam, root))]
    odd = [("times", text) for text in _odd_times(times)]
    if digest is None:
        odd.append(("constant", "all pixels of the middle frame are alike"))
    if len(used) == 1:
        odd.append(("single_frame", "one frame: nothing moves in it"))
    if (decoded := decoded_bytes(header)) > LARGE * max_sequence_bytes:
        odd.append(("size", f"decodes to {decoded} bytes, {decoded / max_sequence_bytes:.0%} of max_sequence_bytes"))
    if exam.item.get(MODALITY) not in (None, modality):
        odd.append(("header", f"{MODALITY} is {exam.item[MODALITY]} in the list, {modality} in the exam, which counts"))
    odd += [("header", text) for text in header.warnings]
    reading = _reading(header, modality, times, digest)
    return replace(exam, reading=reading), [Finding(k, exam.where, exam.source, printable(text)) for k, text in odd]


def one_large(header: SequenceHeader) -> AbstractContextManager:
    """What to hold while a frame is: threads side by side hold one large frame together, and many small ones."""
    large = decoded_bytes(header) > LARGE_FRAME_BYTES * header.num_frames
    return _LARGE_FRAME if large else nullcontext()


def as_listed(exam: Exam, header: SequenceHeader) -> tuple[np.ndarray, np.ndarray, str]:
    """Indices and times (ms) of the frames to choose from, and the modality, as `LoadSequenced` takes them.

    Raises:
        SequenceError: what the list says does not fit the exam.
    """
    used, times, item = np.arange(header.num_frames), header.frame_times_ms, exam.item
    if item.get(FRAME_TIMES) is not None:
        times = check_times(exam.source, item[FRAME_TIMES], header.num_frames)
    if item.get(FRAMES) is not None:
        used = check_indices(exam.source, item[FRAMES], header.num_frames)
    return used, times[used], header.modality or item.get(MODALITY) or ""


def reason(error: Exception, exam: Exam, root: Path) -> str:
    """The error's text with paths as the list has them; of an error that is not ours only its type."""
    if isinstance(error, SequenceError | FileNotFoundError | ImportError):
        text = str(error).replace(f"{root}/", "").replace(f"{root}: ", "")
        return printable(text.removeprefix(f"{exam.source}: "))
    return f"unreadable ({type(error).__name__})"


def _odd_times(times: np.ndarray) -> Iterator[str]:
    """What is odd in frame times (T,) in ms."""
    known = times[np.isfinite(times)]
    if len(times) > 1 and len(known) <= 1:
        yield "unknown: nothing in the exam tells them"
    elif len(times) > 1 and (known == known[0]).all():
        yield f"all {len(known)} known times are the same"
    elif len(known) < len(times):
        yield f"unknown for {len(times) - len(known)} of {len(times)} frames"
    elif (gaps := np.diff(times)).size and (gaps == 0).any():
        yield f"{(gaps == 0).sum()} of {len(gaps)} gaps are 0 ms"


def _reading(header: SequenceHeader, modality: str, times: np.ndarray, digest: str | None) -> Reading:
    unknown = int((~np.isfinite(times)).sum())
    timed = len(times) > 1 and not unknown
    return Reading(
        container=header.container,
        modality=modality,
        transfer_syntaxes=tuple(sorted(set(header.transfer_syntax))),
        photometric=header.photometric,
        bits_stored=header.bits_stored,
        num_frames=len(times),
        rows=header.rows,
        columns=header.columns,
        unknown_times=unknown,
        duration_s=float(times[-1] - times[0]) / 1000 if timed else None,
        gap_ms=float(np.median(np.diff(times))) if timed else None,
        digest=digest,
        warnings=header.warnings,
    )


def decoded_bytes(header: SequenceHeader) -> int:
    """Bytes of all frames as stored values, (T, H, W) or (T, H, W, 3)."""
    samples = 1 if header.photometric.startswith("MONOCHROME") else 3
    return header.num_frames * header.rows * header.columns * samples * -(-header.bits_stored // 8)


def pixel_digest(frame: np.ndarray, num_frames: int) -> str | None:
    """SHA-256 (hex) of the decoded values of a frame, its shape and the number of frames; None if all are equal.

    The same for every lossless encoding, byte order, integer type and name of the same run: float32 holds all
    integers of 24 bits. A frame of one value would make strangers alike.

    Args:
        frame: (H, W) or (H, W, 3), stored values.
        num_frames: of its sequence.
    """
    if (frame.min(axis=(0, 1)) == frame.max(axis=(0, 1))).all():
        return None
    digest = hashlib.sha256(f"{frame.shape} {num_frames} ".encode())
    for row in frame:  # one by one: no float copy of a large frame is held
        digest.update(row.astype("<f4").tobytes())
    return digest.hexdigest()
