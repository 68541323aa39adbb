"""Synthetic angiography exams as DICOM files, for the demo and the tests: seed -> the same bytes every time."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileMetaDataset, uid
from pydicom.encaps import encapsulate
from tqdm import tqdm

from scripts.errors import bad_value
from scripts.keys import IMAGE, LABEL
from scripts.sequences.phantom_ffa import FFA_CLASSES, ffa_sequence
from scripts.sequences.phantom_xa import XA_CLASSES, xa_sequence
from scripts.writing import write_file

KINDS = ("ffa_leak", "xa_flow")
CLASSES = {"ffa_leak": FFA_CLASSES, "xa_flow": XA_CLASSES}
MANUFACTURER = "angiography_sequence_classification phantom"  # how `datalist` knows that exams are synthetic
MIN_ROWS = 64
RECIPE_FILE = "phantom.json"
JPEG_QUALITY = 92
FIRST_ACQUISITION = datetime(2000, 1, 1, 9)
SYNTAXES = (uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit)
OP_8_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
OP_16_BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.2"


def write_exams(
    output_dir: str | Path,
    kind: str = "ffa_leak",
    num_patients: int = 120,
    seed: int = 0,
    rows: int = 256,
    progress: bool = True,
) -> Path:
    """Write exams of synthetic patients, one to three runs each, and return the path of labels.csv.

    Args:
        output_dir: gets exams/PATIENT/RUN.dcm (or a folder of single-frame files) and labels.csv.
        kind: of `KINDS`.
        num_patients: at least 1.
        seed: the same arguments give the same bytes.
        rows: H and W.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, or the folder holds exams of other arguments.
    """
    if kind not in KINDS:
        raise ValueError(bad_value("phantom", "kind", kind, f"one of {', '.join(KINDS)}"))
    for name, value, least in (
        ("num_patients", num_patients, 1),
        ("seed", seed, 0),
        ("rows", rows, MIN_ROWS),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(bad_value("phantom", name, value, f"a whole number of at least {least}"))
    root = Path(output_dir)
    _claim(root, {"kind": kind, "num_patients": num_patients, "seed": seed, "rows": rows})
    labels = []
    runs = list(_runs(kind, num_patients, seed))
    for patient, run, label in tqdm(runs, desc="synthetic exams", unit="run", mininterval=1, disable=not progress):
        rng = np.random.default_rng([seed, KINDS.index(kind), patient, run])
        image = _write_run(root, rng, kind, (seed, patient, run), label, rows)
        labels.append((image, CLASSES[kind][label]))
    path = root / "labels.csv"
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([(IMAGE, LABEL), *labels])
    write_file(path, text.getvalue())
    return path


def _claim(root: Path, recipe: dict[str, object]) -> None:
    path = root / RECIPE_FILE
    found = json.loads(path.read_text()) if path.is_file() else None
    if found != recipe and (found is not None or (root / "exams").exists()):
        raise ValueError(
            bad_value(root, "content", f"exams of {found}", f"none, or those of {recipe}", "Name another folder.")
        )
    root.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(recipe) + "\n")


def _runs(kind: str, num_patients: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """Patient, run and class of every run, classes balanced over the whole set."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    deck: list[int] = []
    for patient in range(1, num_patients + 1):
        for run in range(1, int(rng.integers(1, 4)) + 1):
            deck = deck or rng.permutation(len(CLASSES[kind])).tolist()
            yield patient, run, deck.pop()


def _write_run(
    root: Path, rng: np.random.Generator, kind: str, source: tuple[int, int, int], label: int, rows: int
) -> str:
    """Write one run; returns its path relative to `root`: a file, or the folder of single-frame files."""
    frames, times_ms = (ffa_sequence if kind == "ffa_leak" else xa_sequence)(rng, label, rows)
    syntax = SYNTAXES[int(rng.integers(len(SYNTAXES)))]
    bits = int(rng.integers(8, 13)) if kind == "xa_flow" else int(rng.choice([8, 12]))
    bits = 8 if syntax == uid.JPEGBaseline8Bit else bits
    photometric = str(rng.choice(["MONOCHROME1", "MONOCHROME2"]))
    stored = quantise(frames, bits, photometric)
    _, patient, run = source
    folder = f"exams/P{patient:04d}"
    base = _header(kind, source, bits, photometric)
    injection = FIRST_ACQUISITION + timedelta(minutes=30 * run)
    base.AcquisitionDateTime = _moment(injection, times_ms[0])
    if kind == "xa_flow" or rng.random() < 0.5:
        if kind == "xa_flow":
            base.FrameIncrementPointer = 0x00181063  # FrameTime
            base.FrameTime = f"{times_ms[1] - times_ms[0]:.6f}"
            base.CineRate = round(1000 / (times_ms[1] - times_ms[0]))
        else:
            base.FrameIncrementPointer = 0x00181065  # FrameTimeVector
            base.FrameTimeVector = [f"{step:.3f}" for step in np.diff(times_ms, prepend=times_ms[0])]
        base.NumberOfFrames = len(stored)
        name = f"{folder}/run{run}.dcm"
        _save(root / name, base, stored, syntax, (*source, 0))
        return name
    name = f"{folder}/run{run}"
    own_series = rng.random() < 0.5  # ophthalmic exports: every file is a series, only the clock orders them
    order = rng.permutation(len(stored))
    if (np.diff(order) > 0).all():
        order = order[::-1]  # names are never in order of time
    for i, frame in enumerate(stored):
        single = Dataset(base)
        single.AcquisitionDateTime = _moment(injection, times_ms[i])
        single.InstanceNumber = 1 if own_series else i + 1
        if own_series:
            single.SeriesInstanceUID = _uid(*source, "series", i)
        _save(root / name / f"{order[i]:02d}.dcm", single, frame[None], syntax, (*source, i))
    return name


def _moment(start: datetime, time_ms: float) -> str:
    return (start + timedelta(milliseconds=float(time_ms))).strftime("%Y%m%d%H%M%S.%f")


def quantise(frames: NDArray[np.floating], bits: int, photometric: str) -> NDArray[np.unsignedinteger]:
    """Stored values of brightness in [0, 1], (T, H, W) uint8 or uint16; MONOCHROME1 stores white as 0."""
    largest = 2**bits - 1
    values = np.round(np.clip(frames, 0.0, 1.0) * largest)
    values = largest - values if photometric == "MONOCHROME1" else values
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def _header(kind: str, source: tuple[int, int, int], bits: int, photometric: str) -> Dataset:
    """Everything but pixels, frames and times."""
    _, patient, run = source
    header = Dataset()
    header.SOPClassUID = uid.XRayAngiographicImageStorage if kind == "xa_flow" else OP_8_BIT if bits == 8 else OP_16_BIT
    header.Modality = "XA" if kind == "xa_flow" else "OP"
    header.Manufacturer = MANUFACTURER
    header.InstitutionName = "Synthetic Institution"
    header.PatientName = f"Phantom^Patient {patient:04d}"
    header.PatientID = f"PHANTOM-{patient:04d}"
    header.PatientBirthDate = "19000101"
    header.PatientSex = "O"
    header.StudyDate = header.SeriesDate = FIRST_ACQUISITION.strftime("%Y%m%d")
    header.StudyTime = FIRST_ACQUISITION.strftime("%H%M%S")
    header.StudyInstanceUID = _uid(*source[:2], "study")
    header.SeriesInstanceUID = _uid(*source, "series")
    header.StudyID, header.SeriesNumber, header.InstanceNumber = str(patient), run, 1
    header.AccessionNumber = header.ReferringPhysicianName = ""
    header.ImageType = ["ORIGINAL", "PRIMARY"] + ["SINGLE PLANE"] * (kind == "xa_flow")
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = photometric
    header.BitsAllocated = 8 if bits == 8 else 16
    header.BitsStored, header.HighBit, header.PixelRepresentation = bits, bits - 1, 0
    header.BurnedInAnnotation = "NO"
    if kind == "xa_flow":
        header.ContrastBolusAgent = "synthetic contrast"
        header.PixelIntensityRelationship = "LIN"
        header.RadiationSetting, header.KVP = "GR", "80"
        header.BodyPartExamined = "HEART"
    else:
        header.ImageLaterality = "R" if patient % 2 else "L"
        header.ContrastBolusAgent = "synthetic fluorescein"
    return header


def _uid(*source: object) -> str:
    return uid.generate_uid(entropy_srcs=["angiography phantom " + "/".join(map(str, source))])


def _save(path: Path, header: Dataset, stored: NDArray, syntax: str, source: Sequence[object]) -> None:
    """Write one Part 10 file of frames (T, H, W) under a temporary name, then rename."""
    data = Dataset(header)
    data.SOPInstanceUID = _uid(*source, "instance")
    data.Rows, data.Columns = stored.shape[1:]
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    if syntax == uid.JPEGBaseline8Bit:
        data.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
        coded = [_jpeg(frame) for frame in stored]
        data.PixelData = encapsulate(coded)
        data["PixelData"].VR = "OB"
        data.LossyImageCompression = "01"
        data.LossyImageCompressionMethod = "ISO_10918_1"
        data.LossyImageCompressionRatio = f"{stored.nbytes / sum(map(len, coded)):.2f}"
    else:
        content = stored.tobytes()
        data.PixelData = content + b"\0" * (len(content) % 2)
        data["PixelData"].VR = "OB" if stored.dtype == np.uint8 else "OW"
        if syntax == uid.RLELossless:
            data.compress(uid.RLELossless, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    write_file(path, buffer.getvalue())


def _jpeg(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
