"""DICOM files -> the header of one sequence, and the stored values of the frames chosen from it.

Only attributes in `HEADER_TAGS` and the Image Pixel module's are ever read, and `values` shows no text of them, so
nothing about a person can leave this module.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import Dataset, uid
from pydicom.tag import Tag

from scripts.dicom.display import (
    COLLIMATOR_TAGS,
    DISPLAY_TAGS,
    PADDING_TAGS,
    RESCALE_TAGS,
    SHUTTER_TAGS,
    VOI_TAGS,
    display_shutters,
    display_voi,
    mask_steps,
    padding,
)
from scripts.dicom.facts import (
    FACT_TAGS,
    check_class,
    facts,
    intensity_warnings,
    is_x_ray,
    privacy_warnings,
)
from scripts.dicom.files import sequence_files
from scripts.dicom.functional import FUNCTIONAL_TAGS, lift_groups
from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, SequenceHeader, check_decoded_size
from scripts.dicom.layout import PixelLayout
from scripts.dicom.part10 import open_part10, reading
from scripts.dicom.pixels import PALETTE, check_pixel_data, read_layout, read_stored, stored_bits
from scripts.dicom.streams import Part10
from scripts.dicom.times import TIMING_TAGS, Clock, acquisition_clock, frame_times, series_times, temporal_order
from scripts.dicom.values import field_name, integers, shown, value_of
from scripts.errors import SequenceError, bad_value

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
MAX_FRAMES = 100_000  # of one sequence: an hour at 30 frames/s
HEADER_TAGS = [
    *(*FACT_TAGS, *TIMING_TAGS, *FUNCTIONAL_TAGS, *DISPLAY_TAGS, "InstanceNumber"),
    "PixelRepresentation",  # pydicom needs it to tell US from SS
]
_TAGS = [Tag(keyword) for keyword in HEADER_TAGS]  # looked up once: for every file it took a fifth of the time
ONE_A_SEQUENCE = (*VOI_TAGS[:3], *RESCALE_TAGS, *SHUTTER_TAGS, *COLLIMATOR_TAGS, *PADDING_TAGS)
FORMAT = {  # fields of PixelLayout in which all files of a sequence agree
    "rows": "Rows",
    "columns": "Columns",
    "samples": "SamplesPerPixel",
    "photometric": "PhotometricInterpretation",
    "allocated": "BitsAllocated",
    "stored": "BitsStored",
    "signed": "PixelRepresentation",
    "by_plane": "PlanarConfiguration",
}


class _File(NamedTuple):
    """One file of a sequence."""

    path: Path
    header: Dataset
    layout: PixelLayout
    bits: int  # that its values range over
    syntax: str
    num_frames: int
    clock: Clock | None  # of its frames, of an enhanced object
    warnings: list[str]


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
    if len(files) == 1:
        times, odd = frame_times(files[0].header, files[0].num_frames, files[0].clock)
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
        odd += _differences(files)
    return _sequence_header(files, times, [warning for file in files for warning in file.warnings] + odd)


def _sequence_header(files: list[_File], times: np.ndarray, warnings: list[str]) -> SequenceHeader:
    path, header, layout, bits, *_ = files[0]
    with reading(path, "display attributes"):
        monochrome = layout.photometric in MONOCHROME
        voi, odd_voi = display_voi(header, is_x_ray(header), layout.signed) if monochrome else (None, [])
        shutters, odd_shutters = display_shutters(header, layout.rows, layout.columns)
        masks, odd_masks = mask_steps(header, len(times)) if len(files) == 1 else ((), [])
        padded, odd_padding = padding(header, layout.allocated, layout.signed)
    warnings = [*warnings, *odd_voi, *odd_shutters, *odd_masks, *odd_padding]
    return SequenceHeader(
        container="dicom",
        files=tuple(file.path for file in files),
        num_frames=len(times),
        rows=layout.rows,
        columns=layout.columns,
        frame_times_ms=times,
        photometric=layout.photometric,
        bits_stored=bits,
        signed=layout.signed and layout.photometric != PALETTE,
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
    shape = (header.rows, header.columns, 3) if colour else (header.rows, header.columns)
    frames, done = np.empty(0), 0
    for position, wanted in chosen:
        path = header.files[position]
        with reading(path, "(7FE0,0010) PixelData"):
            for frame in read_stored(path, wanted, header.transfer_syntax[position], colour):
                if frame.shape != shape or (done and frame.dtype != frames.dtype):
                    found = f"{frame.shape} of {frame.dtype}"
                    raise SequenceError(bad_value(path, "decoded frame", found, f"{shape}, alike in all files"))
                frames = frames if done else np.empty((len(indices), *shape), frame.dtype)
                frames[done] = frame  # at once: a list of frames beside the array would hold them twice
                done += 1
    return frames


def _read_file(path: Path, max_bytes: int) -> _File:
    if not path.exists():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    with open_part10(path, max_bytes) as file, reading(path, "header"):
        layout, frames = read_layout(path, file), _number_of_frames(path, file)
        bits = stored_bits(path, file, layout)
        values = layout.rows * layout.columns * (3 if layout.photometric == PALETTE else layout.samples)
        frame_bytes = values * (2 if bits > 8 else layout.allocated // 8)
        check_decoded_size(path, frames, frame_bytes, f"{layout.rows} x {layout.columns}", max_bytes)
        file.seek(0)
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
        if value_of(header, "SOPClassUID") is None and file.sop_class:
            header.SOPClassUID = uid.UID(file.sop_class)
        odd_pixels = check_pixel_data(path, file, layout, frames)
        warnings = [*odd_pixels, *check_class(path, header), *privacy_warnings(header), *intensity_warnings(header)]
        clock, odd = lift_groups(path, header, frames)
        return _File(path, header, layout, bits, file.syntax, frames, clock, warnings + odd)


def _number_of_frames(path: Path, file: Part10) -> int:
    text = file.text(Tag("NumberOfFrames")) or "1"
    text = text.removeprefix("+")  # PS3.5 6.2 lets an integer string have it
    if not re.fullmatch("0*[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text[-6:]) <= MAX_FRAMES:
        raise SequenceError(
            bad_value(path, field_name("NumberOfFrames"), shown(text), f"an integer from 1 to {MAX_FRAMES}")
        )
    return int(text[-6:])


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


def _differences(files: list[_File]) -> list[str]:
    """Attributes of display in which the files differ: the scale of intensities is one for a sequence."""
    return [
        f"{field_name(keyword)} differs between files: that of the first is used for all"
        for keyword in ONE_A_SEQUENCE
        if len({str(value_of(file.header, keyword)) for file in files}) > 1
    ]


def _check_alike(name: Path, files: list[_File]) -> None:
    for field, keyword in FORMAT.items():
        stated = [getattr(file.layout, field) for file in files]
        odd = next((i for i, value in enumerate(stated) if value != stated[0]), None)
        if odd is not None:
            found, first = (int(v) if isinstance(v, bool) else v for v in (stated[odd], stated[0]))
            allowed = f"{first}, as in {files[0].path.name}: one sequence has one format"
            raise SequenceError(bad_value(name, f"{keyword} of {files[odd].path.name}", found, allowed))
