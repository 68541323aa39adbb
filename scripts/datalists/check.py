"""A datalist -> what breaks the contract and what is odd, from headers and one decoded frame of each sequence."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from scripts.datalists.datalist import Task, datalist_digest
from scripts.datalists.findings import (
    Exam,
    Finding,
    Reading,
    keep_apart,
    label_findings,
    patient_findings,
    printable,
    read_content,
    read_entries,
    same_pixels,
)
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader
from scripts.errors import SequenceError
from scripts.keys import FRAME_TIMES, FRAMES, IMAGE, SYNTHETIC
from scripts.sequences.frames import check_indices, check_times
from scripts.sequences.reader import read_frames, read_header

LARGE = 0.5  # of max_sequence_bytes; float32 values of 8-bit frames take four times the stored ones
NUM_THREADS = 8  # header reading waits for the disk more than for the interpreter


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
    findings += patient_findings(exams)
    readable, repeated = keep_apart(exams)
    findings += repeated
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(lambda exam: read_exam(exam, root, max_sequence_bytes), readable)
        bar = tqdm(results, total=len(readable), desc="checking", unit="sequence", disable=not progress)
        read = list(bar)
    done = {exam.where: exam for exam, _ in read}
    exams = [done.get(exam.where, exam) for exam in exams]
    findings += [finding for _, found in read for finding in found]
    findings += same_pixels(exams)
    findings += label_findings(exams, task)
    return Checked(path.name, datalist_digest(path), task, content.get(SYNTHETIC) is True, exams, findings)


def read_exam(exam: Exam, root: Path, max_sequence_bytes: int) -> tuple[Exam, list[Finding]]:
    """The entry with what its header and middle frame say, and what is wrong or odd in them."""
    findings: list[Finding] = []

    def add(kind: str, text: str) -> None:
        findings.append(Finding(kind, exam.where, exam.source, printable(text)))

    try:
        header = read_header(exam.item[IMAGE], max_sequence_bytes)
        frame = read_frames(header, [header.num_frames // 2])[0]
    except Exception as error:  # whatever it is: one exam must not cost the others their check
        add("unreadable", reason(error, exam, root))
        return exam, findings
    times = header.frame_times_ms
    for key, check in ((FRAMES, check_indices), (FRAME_TIMES, check_times)):
        if exam.item.get(key) is not None:
            try:
                fitting = check(exam.source, exam.item[key], header.num_frames)
                times = fitting if key == FRAME_TIMES else times
            except SequenceError as error:
                add("frames", reason(error, exam, root))
    digest = pixel_digest(frame, header.num_frames)
    if digest is None:
        add("constant", f"every pixel of the middle frame is {frame.flat[0]:g}")
    if header.num_frames == 1:
        add("single_frame", "one frame: nothing moves in it")
    for text in _odd_times(times):
        add("times", text)
    decoded = decoded_bytes(header)
    if decoded > LARGE * max_sequence_bytes:
        add("size", f"decodes to {decoded} bytes, {decoded / max_sequence_bytes:.0%} of max_sequence_bytes")
    for text in header.warnings:
        add("header", text)
    return replace(exam, reading=_reading(header, times, digest)), findings


def reason(error: Exception, exam: Exam, root: Path) -> str:
    """The error's text with paths as the list has them; of an error that is not ours only its type."""
    if isinstance(error, SequenceError | FileNotFoundError):
        return printable(str(error).replace(f"{root}/", "").removeprefix(f"{exam.source}: "))
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


def _reading(header: SequenceHeader, times: np.ndarray, digest: str | None) -> Reading:
    unknown = int((~np.isfinite(times)).sum())
    timed = header.num_frames > 1 and not unknown
    return Reading(
        container=header.container,
        modality=header.modality,
        transfer_syntaxes=tuple(sorted(set(header.transfer_syntax))),
        photometric=header.photometric,
        bits_stored=header.bits_stored,
        num_frames=header.num_frames,
        rows=header.rows,
        columns=header.columns,
        unknown_times=unknown,
        duration_s=float(times[-1] - times[0]) / 1000 if timed else None,
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
    if (frame == frame.flat[0]).all():
        return None
    digest = hashlib.sha256(f"{frame.shape} {num_frames} ".encode())
    digest.update(np.ascontiguousarray(frame, dtype="<f4").tobytes())
    return digest.hexdigest()
