"""DICOM files -> the header of one sequence, and the stored values of the frames chosen from it.

Only attributes in `HEADER_TAGS` are ever read, so nothing about a person can leave this module.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset, uid

from scripts.dicom.files import is_dicom, sequence_files
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader, check_decoded_size
from scripts.dicom.part10 import reading
from scripts.dicom.pixels import check_pixel_data, read_stored
from scripts.dicom.times import TIMING_TAGS, acquisition_ms, frame_times, number, temporal_order
from scripts.errors import SequenceError, bad_value

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
# What leaves the reader beside pixels and times: known codes and numbers, so that free text in them stays behind.
CODES = {
    "Modality": ("XA", "RF", "OP", "OPT", "OT", "XC"),
    "PhotometricInterpretation": (
        "MONOCHROME1",
        "MONOCHROME2",
        "RGB",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_ICT",
        "YBR_RCT",
    ),
    "PixelIntensityRelationship": ("LIN", "LOG", "DISP"),
    "ImageLaterality": ("R", "L", "B"),
}
NUMBERS = ("BitsStored", "PositionerPrimaryAngle", "PositionerSecondaryAngle")
PIXEL_TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "PixelRepresentation",
    "PlanarConfiguration",
)
HEADER_TAGS = [*CODES, *NUMBERS, *PIXEL_TAGS, *TIMING_TAGS, "NumberOfFrames", "InstanceNumber"]


def read_header(source: Path | Sequence[Path], max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> SequenceHeader:
    """The header of a sequence: a multi-frame file, or a folder or list of single-frame files.

    Args:
        source: file, folder or list of files.
        max_sequence_bytes: largest decoded size accepted, checked before anything is allocated.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: not an image run, damaged, inconsistent or too large.
    """
    files = sequence_files(source)
    name = source if isinstance(source, Path) else files[0].parent
    headers = [_read_file_header(file, max_sequence_bytes // len(files)) for file in files]
    frames = [_integer(header, "NumberOfFrames", file, 1) for header, file in zip(headers, files, strict=True)]
    if len(files) == 1:
        with reading(files[0], "timing"):
            times = frame_times(headers[0], frames[0])
    else:
        if max(frames) > 1:
            where = files[frames.index(max(frames))].name
            raise SequenceError(
                bad_value(
                    name,
                    "folder",
                    f"{len(files)} files, {where} with {max(frames)} frames",
                    "one multi-frame file, or single-frame files of one sequence",
                    "List the multi-frame files one by one.",
                )
            )
        files, headers, times = _in_order(name, files, headers, listed=not isinstance(source, Path))
        _check_alike(name, files, headers)
    first = headers[0]
    with reading(files[0], "header"):
        facts = _facts(first)
    return SequenceHeader(
        container="dicom",
        files=tuple(files),
        num_frames=sum(frames),
        rows=int(first.Rows),
        columns=int(first.Columns),
        photometric=str(first.PhotometricInterpretation),
        bits_stored=int(first.BitsStored),
        transfer_syntax=tuple(_transfer_syntax(header) for header in headers),
        frame_times_ms=times,
        facts=facts,
    )


def read_frames(header: SequenceHeader, indices: Sequence[int]) -> np.ndarray:
    """Stored values of chosen frames: (T, H, W), or (T, H, W, 3) RGB, in the stored integer type.

    Args:
        header: of `read_header`.
        indices: 0-based, ascending.

    Raises:
        SequenceError: the pixels cannot be decoded, or are not what the header says.
    """
    colour = header.photometric not in MONOCHROME
    chosen = [(0, list(indices))] if len(header.files) == 1 else [(index, [0]) for index in indices]
    frames = []
    for position, wanted in chosen:
        path = header.files[position]
        with reading(path, "(7FE0,0010) PixelData"):
            frames += read_stored(path, wanted, header.transfer_syntax[position], colour)
    shape = (header.rows, header.columns, 3) if colour else (header.rows, header.columns)
    wrong = next((frame.shape for frame in frames if frame.shape != shape), None)
    if wrong is not None:
        raise SequenceError(bad_value(header.files[0], "decoded frame", wrong, f"{shape}, as the header says"))
    return np.stack(frames)


def _read_file_header(path: Path, max_bytes: int) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    if not is_dicom(path):
        raise SequenceError(bad_value(path, "content", "not DICOM", "the mark DICM at byte 128 (PS3.10 7.1)"))
    with reading(path, "header"), path.open("rb") as file:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        frames = _integer(header, "NumberOfFrames", path, 1)
        rows, columns = _integer(header, "Rows", path), _integer(header, "Columns", path)
        allocated = _integer(header, "BitsAllocated", path)
        samples = _integer(header, "SamplesPerPixel", path, 1)
        _check_pixel_header(path, header, allocated, samples)
        frame_bytes = rows * columns * samples * allocated // 8
        check_decoded_size(path, frames, frame_bytes, f"{rows} x {columns}", max_bytes)
        check_pixel_data(path, file, header, frame_bytes, frames)
    return header


def _integer(header: Dataset, keyword: str, path: Path, default: int | None = None) -> int:
    value = header.get(keyword)
    value = default if value is None else value
    number = int(value) if isinstance(value, (int, float, str)) and str(value).strip().isdigit() else 0
    if number < 1:
        tag = pydicom.tag.Tag(keyword)
        raise SequenceError(bad_value(path, f"{tag} {keyword}", "absent" if value is None else value, "at least 1"))
    return number


def _check_pixel_header(path: Path, header: Dataset, allocated: int, samples: int) -> None:
    photometric = header.get("PhotometricInterpretation")
    allowed = MONOCHROME if samples == 1 else COLOUR
    if samples not in (1, 3) or photometric not in allowed:
        raise SequenceError(
            bad_value(
                path,
                "(0028,0004) PhotometricInterpretation with SamplesPerPixel",
                f"{photometric} with {samples}",
                f"{', '.join(MONOCHROME)} with 1, or {', '.join(COLOUR)} with 3",
            )
        )
    if allocated not in (8, 16):
        raise SequenceError(bad_value(path, "(0028,0100) BitsAllocated", allocated, "8 or 16"))
    stored = _integer(header, "BitsStored", path)
    if stored > allocated:
        raise SequenceError(bad_value(path, "(0028,0101) BitsStored", stored, f"at most BitsAllocated, {allocated}"))


def _in_order(
    name: Path, files: list[Path], headers: list[Dataset], listed: bool
) -> tuple[list[Path], list[Dataset], np.ndarray]:
    with reading(name, "timing"):
        acquired = [acquisition_ms(header) for header in headers]
        numbers = [int(h.InstanceNumber) if h.get("InstanceNumber") is not None else None for h in headers]
    order = temporal_order(acquired, numbers)
    if order is None and listed:
        order = list(range(len(files)))
    if order is None:
        raise SequenceError(
            bad_value(
                name,
                "order of its files",
                "unknown",
                "different AcquisitionDateTime or InstanceNumber in each",
                "Give `image` as a list of files in the order of time.",
            )
        )
    moments = np.array([np.nan if acquired[i] is None else acquired[i] for i in order], dtype=np.float64)
    times = moments - moments[0]
    if np.isnan(times).any() or (times == 0).all():  # no usable clock: a constant rate, if one is stated
        times = frame_times(headers[order[0]], len(files))
    return [files[i] for i in order], [headers[i] for i in order], np.maximum.accumulate(times)


def _check_alike(name: Path, files: list[Path], headers: list[Dataset]) -> None:
    for keyword in ("PhotometricInterpretation", *PIXEL_TAGS, "BitsStored"):
        for file, header in zip(files, headers, strict=True):
            if header.get(keyword) != headers[0].get(keyword):
                raise SequenceError(
                    bad_value(
                        name,
                        f"{keyword} of {file.name}",
                        header.get(keyword),
                        f"{headers[0].get(keyword)}, as in {files[0].name}: one sequence has one format",
                    )
                )


def _transfer_syntax(header: Dataset) -> str:
    return str(header.file_meta.get("TransferSyntaxUID", uid.ImplicitVRLittleEndian))


def _facts(header: Dataset) -> dict[str, str | float]:
    """Attributes that hold one of the codes known for them, or a number; anything else is left out."""
    codes = {key: header.get(key) for key, known in CODES.items() if header.get(key) in known}
    numbers = {key: number(header.get(key)) for key in NUMBERS}
    return codes | {key: value for key, value in numbers.items() if value is not None}
