"""DICOM files -> the header of one sequence, and the stored values of the frames chosen from it.

Only attributes in `HEADER_TAGS` are ever read, so nothing about a person can leave this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import Dataset, uid

from scripts.dicom.display import DISPLAY_TAGS, display_shutters, display_voi, mask_steps, padding
from scripts.dicom.facts import (
    CODES,
    COLOUR,
    FACT_TAGS,
    MONOCHROME,
    PALETTE,
    check_class,
    facts,
    intensity_warnings,
    is_x_ray,
    privacy_warnings,
)
from scripts.dicom.files import sequence_files
from scripts.dicom.functional import FUNCTIONAL_TAGS, lift_groups
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader, check_decoded_size
from scripts.dicom.part10 import open_part10, reading
from scripts.dicom.pixels import check_pixel_data, read_stored
from scripts.dicom.times import TIMING_TAGS, acquisition_clock, frame_times, series_times, temporal_order
from scripts.dicom.values import field_name, integers, shown, value_of
from scripts.errors import SequenceError, bad_value

MAX_FRAMES = 100_000  # of one sequence: an hour at 30 frames/s
PIXEL_TAGS = (
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "PixelRepresentation",
    "PlanarConfiguration",
)
HEADER_TAGS = [
    *dict.fromkeys(
        (*FACT_TAGS, *PIXEL_TAGS, "HighBit", *TIMING_TAGS, *FUNCTIONAL_TAGS, *DISPLAY_TAGS, "NumberOfFrames"),
    ),
    "InstanceNumber",
]


class _File(NamedTuple):
    """One file of a sequence."""

    path: Path
    header: Dataset
    syntax: str
    num_frames: int


def read_header(source: Path | Sequence[Path], max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES) -> SequenceHeader:
    """The header of a sequence: a multi-frame file, or a folder or list of single-frame files.

    Args:
        source: file, folder or list of files.
        max_sequence_bytes: largest decoded size accepted, checked before anything is allocated.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: not an image run, damaged, inconsistent or too large.
    """
    paths = sequence_files(source)
    name = source if isinstance(source, Path) else paths[0].parent
    files = [_read_file(path, max_sequence_bytes // len(paths)) for path in paths]
    num_frames = sum(file.num_frames for file in files)
    first = files[0]
    if len(files) == 1:
        with reading(first.path, "functional groups"):
            clock, warnings = lift_groups(first.path, first.header, num_frames)
        times, odd = frame_times(first.header, num_frames, clock)
    else:
        many = next((file for file in files if file.num_frames > 1), None)
        if many is not None:
            raise SequenceError(
                bad_value(
                    name,
                    "folder",
                    f"{len(files)} files, {many.path.name} with {many.num_frames} frames",
                    "one multi-frame file, or single-frame files of one sequence",
                    "List the multi-frame files one by one.",
                )
            )
        files, times, odd = _in_order(name, files, listed=not isinstance(source, Path))
        _check_alike(name, files)
        first, warnings = files[0], []
    for file in files:
        warnings += [*check_class(file.path, file.header), *privacy_warnings(file.header)]
    return _sequence_header(files, times, [*warnings, *intensity_warnings(first.header), *odd])


def _sequence_header(files: list[_File], times: np.ndarray, warnings: list[str]) -> SequenceHeader:
    path, header, _, num_frames = files[0]
    rows, columns = int(header.Rows), int(header.Columns)
    signed = value_of(header, "PixelRepresentation") == 1
    with reading(path, "display attributes"):
        monochrome = header.PhotometricInterpretation in MONOCHROME
        voi, odd_voi = display_voi(header, is_x_ray(header), signed) if monochrome else (None, [])
        shutters, odd_shutters = display_shutters(header, rows, columns)
        masks, odd_masks = mask_steps(header, num_frames) if len(files) == 1 else ((), [])
        padded, odd_padding = padding(header, int(header.BitsAllocated), signed)
    warnings = [*warnings, *odd_voi, *odd_shutters, *odd_masks, *odd_padding]
    high, stored = integers(value_of(header, "HighBit")), int(header.BitsStored)
    if high and high != [stored - 1]:  # PS3.5 8.1.1
        found = f"{high[0]} with {field_name('BitsStored')} {stored}"
        warnings.append(f"{field_name('HighBit')} is {found}: read as if it were {stored - 1}")
    return SequenceHeader(
        container="dicom",
        files=tuple(file.path for file in files),
        num_frames=len(times),
        rows=rows,
        columns=columns,
        frame_times_ms=times,
        photometric=str(header.PhotometricInterpretation),
        bits_stored=stored,
        signed=signed,
        transfer_syntax=tuple(file.syntax for file in files),
        facts=facts(header),
        warnings=tuple(dict.fromkeys(warnings)),
        voi=voi,
        shutters=shutters,
        mask_steps=masks,
        padding=padded,
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


def _read_file(path: Path, max_bytes: int) -> _File:
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    with open_part10(path, max_bytes) as file, reading(path, "header"):
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER_TAGS))
        if value_of(header, "SOPClassUID") is None and uid.UID(file.sop_class).is_valid and file.sop_class:
            header.SOPClassUID = file.sop_class
        frames = _count(path, header, "NumberOfFrames", MAX_FRAMES, 1)
        rows, columns = _count(path, header, "Rows", 65535), _count(path, header, "Columns", 65535)
        allocated = _count(path, header, "BitsAllocated", 65535)
        samples = _count(path, header, "SamplesPerPixel", 65535, 1)
        _check_pixel_header(path, header, allocated, samples)
        frame_bytes = rows * columns * samples * allocated // 8
        check_decoded_size(path, frames, frame_bytes, f"{rows} x {columns}", max_bytes)
        check_pixel_data(path, file, header, frame_bytes, frames)
        return _File(path, header, str(header.file_meta.TransferSyntaxUID), frames)


def _count(path: Path, header: Dataset, keyword: str, most: int, default: int | None = None) -> int:
    value = value_of(header, keyword)
    found = integers(default if value is None else value)
    if not found or len(found) != 1 or not 1 <= found[0] <= most:
        raise SequenceError(bad_value(path, field_name(keyword), shown(value), f"an integer from 1 to {most}"))
    return found[0]


def _check_pixel_header(path: Path, header: Dataset, allocated: int, samples: int) -> None:
    photometric = value_of(header, "PhotometricInterpretation")
    if photometric not in {1: (*MONOCHROME, PALETTE), 3: COLOUR}.get(samples, ()):
        raise SequenceError(
            bad_value(
                path,
                "(0028,0004) PhotometricInterpretation with SamplesPerPixel",
                f"{shown(photometric, CODES['PhotometricInterpretation'])} with {samples}",
                f"{', '.join((*MONOCHROME, PALETTE))} with 1, or {', '.join(COLOUR)} with 3",
            )
        )
    if allocated not in (8, 16):
        raise SequenceError(bad_value(path, field_name("BitsAllocated"), allocated, "8 or 16"))
    stored = _count(path, header, "BitsStored", 65535)
    if stored > allocated:
        raise SequenceError(bad_value(path, field_name("BitsStored"), stored, f"at most BitsAllocated, {allocated}"))
    sign = value_of(header, "PixelRepresentation")
    if sign not in (None, 0, 1):
        raise SequenceError(bad_value(path, field_name("PixelRepresentation"), shown(sign), "0 or 1"))


def _in_order(name: Path, files: list[_File], listed: bool) -> tuple[list[_File], np.ndarray, list[str]]:
    clock = acquisition_clock([file.header for file in files])
    numbers = [integers(value_of(file.header, "InstanceNumber")) for file in files]
    order = temporal_order(clock.moments_ms, [n[0] if n and len(n) == 1 else None for n in numbers])
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
    clock = clock._replace(moments_ms=[clock.moments_ms[i] for i in order])
    files = [files[i] for i in order]
    return files, *series_times(files[0].header, len(files), clock)


def _check_alike(name: Path, files: list[_File]) -> None:
    """One sequence has one format; `read_header` has checked that all these values are codes or numbers."""
    for keyword in ("PhotometricInterpretation", *PIXEL_TAGS, "BitsStored"):
        stated = [value_of(file.header, keyword) for file in files]
        odd = next((i for i, value in enumerate(stated) if value != stated[0]), None)
        if odd is not None:
            codes = CODES["PhotometricInterpretation"]
            raise SequenceError(
                bad_value(
                    name,
                    f"{keyword} of {files[odd].path.name}",
                    shown(stated[odd], codes),
                    f"{shown(stated[0], codes)}, as in {files[0].path.name}: one sequence has one format",
                )
            )
