"""A NIfTI file (.nii, .nii.gz) -> the header of one sequence, and the values of the frames chosen from it.

Axes are (X, Y, 1, T), or (X, Y, T) as dcm2niix writes a multi-frame XA file; of volumes (X, Y, Z, T) or (X, Y, Z). Of
the header only sizes, type, scaling, orientation and time are read: descrip, aux_file, db_name, intent_name and
extensions may hold names, and toffset says when the first frame was taken, which is 0 here.
"""

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from scripts.dicom.header import DEFAULT_MAX_SEQUENCE_BYTES, MAX_FRAME_BYTES, SequenceHeader, check_decoded_size
from scripts.errors import SequenceError, bad_value, reading

VALID = "a complete, valid NIfTI file"
NIBABEL_ERRORS = (HeaderDataError, WrapStructError)
FORMATS = ((nibabel.Nifti1Header, 348, b"n+1\0", 344), (nibabel.Nifti2Header, 540, b"n+2\0\r\n\x1a\n", 4))
GZIP_MARK = b"\x1f\x8b"
MIN_VOLUME = 1e-3  # of the box between three directions of length 1
MAX_VALUE = 1e30  # of a pixel: sums over a frame stay within float32
GREY = [np.dtype(kind) for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")]
RGB24 = 128  # nifti1.h DT_RGB24
MS_PER_UNIT = {8: 1000.0, 16: 1.0, 24: 0.001}  # nifti1.h NIFTI_UNITS_SEC, _MSEC, _USEC, in bits 3 to 5 of xyzt_units
TIME_BITS = 0x38


@dataclass(frozen=True)
class _Layout:
    """Where the frames of one file lie and what their values mean."""

    columns: int
    rows: int
    slices: int  # more than 1: frames are volumes
    num_frames: int
    axes: int  # 3 where the third axis is time
    offset: int  # of the first frame, bytes
    dtype: np.dtype
    colour: bool
    slope: float
    inter: float
    rows_upwards: bool
    affine: np.ndarray  # (4, 4) voxel -> mm, +x right, +y front, +z up
    step_ms: float  # NaN = unknown
    time_found: str  # pixdim[4] and its unit, for a message

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one frame."""
        depth = (self.slices,) if self.slices > 1 else ()
        return (*depth, self.rows, self.columns, *((3,) if self.colour else ()))

    @property
    def scaled(self) -> bool:
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def floating(self) -> bool:
        """True where the values that leave are float32."""
        return self.scaled or self.dtype.kind == "f"

    @property
    def frame_bytes(self) -> int:
        return self.slices * self.rows * self.columns * self.dtype.itemsize * (3 if self.colour else 1)


def read_header(
    path: Path, max_sequence_bytes: int = DEFAULT_MAX_SEQUENCE_BYTES, volumes: bool = False
) -> SequenceHeader:
    """The header of a sequence in one NIfTI-1 or NIfTI-2 file, compressed or not.

    Args:
        path: of the file.
        max_sequence_bytes: largest decoded size accepted, checked before anything is allocated.
        volumes: frames must be volumes, instead of pictures.

    Raises:
        FileNotFoundError: nothing at the path.
        SequenceError: volumes where pictures are asked for, or the reverse, a type of pixel that is no grey or RGB,
            damaged, incomplete or too large.
    """
    if not path.is_file():
        raise FileNotFoundError(bad_value(path, "path", "absent", "an existing file"))
    layout = _layout(path, volumes)
    values = layout.slices * layout.rows * layout.columns
    decoded_bytes = max(layout.frame_bytes, values * 4 if layout.floating else 0)
    size = f"{layout.rows} x {layout.columns}" + (f" x {layout.slices}" if volumes else "")
    largest = max_sequence_bytes if volumes else MAX_FRAME_BYTES
    check_decoded_size(path, layout.num_frames, decoded_bytes, size, max_sequence_bytes, largest)
    _check_file_size(path, layout)
    warnings = []
    times = np.arange(layout.num_frames) * layout.step_ms
    times[0] = 0.0
    if layout.num_frames > 1 and layout.axes == 3 and not volumes:
        warnings.append("dim: 3 axes, the third read as time")
    if layout.num_frames > 1 and math.isnan(layout.step_ms):
        warnings.append(f"{layout.time_found}: frame times unknown")
    return SequenceHeader(
        container="nifti",
        files=(path,),
        num_frames=layout.num_frames,
        rows=layout.rows,
        columns=layout.columns,
        slices=layout.slices,
        frame_times_ms=times,
        photometric="RGB" if layout.colour else "MONOCHROME2",
        bits_stored=32 if layout.floating else layout.dtype.itemsize * 8,  # floats have no range of their own
        signed=layout.floating or layout.dtype.kind == "i",
        warnings=tuple(warnings),
    )


def read_frames(header: SequenceHeader, indices: Sequence[int]) -> np.ndarray:
    """Values of chosen frames: (T, H, W), or (T, H, W, 3) RGB, rows from top to bottom; of volumes (T, Z, Y, X).

    The stored integer type, or float32 where the file holds floats or scales its values (scl_slope, scl_inter).

    Args:
        header: of `read_header`.
        indices: 0-based, ascending: a compressed file is read once, forward, a frame at a time.

    Raises:
        SequenceError: the pixels cannot be read, or a value is not finite.
    """
    layout = _layout(header.files[0], header.slices > 1)
    frames = np.empty((len(indices), *layout.shape), np.float32 if layout.floating else layout.dtype.newbyteorder("="))
    for position, frame in enumerate(each_frame(header, indices)):
        frames[position] = frame
    return frames


def each_frame(header: SequenceHeader, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """The same one by one; errors as of `read_frames`."""
    path = header.files[0]
    layout = _layout(path, header.slices > 1)
    with reading(path, "pixels", VALID), _opened(path) as file:
        for index in indices:
            yield _frame(file, path, layout, index)
        if indices[-1] == layout.num_frames - 1:
            file.read(1)  # gzip compares its check sum when it meets the end


def _frame(file: BinaryIO, path: Path, layout: _Layout, index: int) -> np.ndarray:
    file.seek(layout.offset + index * layout.frame_bytes)
    data = file.read(layout.frame_bytes)
    if len(data) < layout.frame_bytes:
        raise SequenceError(
            bad_value(path, f"frame {index}", f"{len(data)} bytes", f"{layout.frame_bytes}, as its header says")
        )
    frame = np.frombuffer(data, layout.dtype).reshape(layout.shape)
    if layout.floating:
        with np.errstate(over="ignore"):  # of a scale beyond float32: refused below
            frame = (frame * layout.slope + layout.inter if layout.scaled else frame).astype(np.float32)
        if not (np.abs(frame) <= MAX_VALUE).all():
            needs = f"finite values up to {MAX_VALUE:g} in every frame"
            raise SequenceError(bad_value(path, "pixels", "not a number or infinite", needs))
    return frame[::-1] if layout.rows_upwards else frame


def _opened(path: Path) -> BinaryIO:
    """The file's content, unpacked as it is read; told by its first bytes."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MARK
    return cast(BinaryIO, gzip.open(path, "rb")) if packed else path.open("rb")


def read_affine(path: Path) -> np.ndarray:
    """Voxel (X, Y, Z) -> mm of a file of volumes, (4, 4) float64: +x is right, +y front, +z up.

    Raises:
        SequenceError: it says no place, not that of a volume, or the file is damaged.
    """
    affine = _layout(path, volumes=True).affine
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not np.isfinite(affine).all()
        or not (sides > 0).all()
        or abs(np.linalg.det(affine[:3, :3] / sides)) < MIN_VOLUME
    ):
        found = f"columns {affine[:3, :3].T.round(3).tolist()}"
        raise SequenceError(bad_value(path, "affine", found, "three directions of finite length, not in one plane"))
    return affine


def _layout(path: Path, volumes: bool) -> _Layout:
    with reading(path, "header", VALID, NIBABEL_ERRORS):
        with _opened(path) as file:
            block = file.read(540)
        for format_class, size, mark, position in FORMATS:
            if block[position : position + len(mark)] == mark and len(block) >= size:
                # From these bytes alone: nibabel's own readers go on into extensions of any length.
                header = format_class(block[:size], check=False)
                return _checked_layout(path, header, size, volumes)
    found = "NIfTI of two files" if block[344:348] == b"ni1\0" else "not NIfTI"
    raise SequenceError(bad_value(path, "content", found, "the mark n+1 at byte 344 or n+2 at byte 4"))


def _checked_layout(path: Path, header: nibabel.Nifti1Header, header_size: int, volumes: bool) -> _Layout:
    dim = [int(size) for size in header["dim"]]
    axes = dim[0]
    if not 2 <= axes <= 7 or min(dim[1 : axes + 1]) < 1:
        raise SequenceError(bad_value(path, "dim", dim, "2 to 7 axes, each of at least 1"))
    sizes = (dim[1 : axes + 1] + [1] * 5)[:7]
    found = " x ".join(map(str, sizes[:axes]))
    if volumes and (sizes[2] == 1 or max(sizes[4:]) > 1):
        raise SequenceError(bad_value(path, "dim", found, "X x Y x Z x T, or X x Y x Z, of more than one slice"))
    if not volumes and axes > 3 and (sizes[2] > 1 or max(sizes[4:]) > 1):
        way_out = "A volume has no one picture for each time: give configs/volumes.yaml too, or save a slice of it."
        raise SequenceError(bad_value(path, "dim", found, "X x Y x 1 x T, or X x Y x T", way_out))
    datatype = int(header["datatype"])
    dtype = np.dtype("u1") if datatype == RGB24 else header.get_data_dtype()
    if dtype.newbyteorder("=") not in GREY or (volumes and datatype == RGB24):
        known = "an integer or float of at most 64 bits" + ("" if volumes else ", or RGB24")
        raise SequenceError(bad_value(path, "datatype", datatype, known, "Save magnitude or grey values."))
    offset = float(header["vox_offset"])
    if not (header_size <= offset < 2**63) or offset != int(offset):
        raise SequenceError(bad_value(path, "vox_offset", offset, f"a whole number of at least {header_size}"))
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not math.isfinite(slope) or slope == 0 or datatype == RGB24:  # nifti1.h: 0 means no scaling; RGB has none
        slope, inter = 1.0, 0.0
    affine, sides = _affine(header), header["pixdim"][1:4].tolist()
    step, unit = float(header["pixdim"][4]), int(header["xyzt_units"]) & TIME_BITS
    known_step = math.isfinite(step) and step > 0 and unit in MS_PER_UNIT
    return _Layout(
        columns=sizes[0],
        rows=sizes[1],
        slices=sizes[2] if volumes else 1,
        num_frames=sizes[3] if volumes or axes > 3 else sizes[2],
        axes=axes,
        offset=int(offset),
        dtype=dtype,
        colour=datatype == RGB24,
        slope=slope,
        inter=inter if math.isfinite(inter) else 0.0,
        rows_upwards=not volumes and _rows_upwards(header),
        affine=affine if affine[:3, :3].any() else np.diag([*sides, 1.0]),  # nifti1.h, method 1
        step_ms=step * MS_PER_UNIT[unit] if known_step else math.nan,
        time_found=f"pixdim[4] {step:g} with unit code {unit}",
    )


def _rows_upwards(header: nibabel.Nifti1Header) -> bool:
    """True where the second axis runs to the front or the head, so that the first row is the lowest of the picture.

    +x is right, +y front, +z up (nifti1.h). dcm2niix reverses the rows of DICOM and says so in the affine; where the
    DICOM file had no orientation, as XA has none, it fills in the sform and leaves its code 0 (v1.0.20260724, on the
    public XA files). A file without any affine keeps its rows. Columns stay: DICOM's order says no left and right.
    """
    axis = _affine(header)[:3, 1]
    return bool(axis[np.argmax(np.abs(axis))] > 0)


def _affine(header: nibabel.Nifti1Header) -> np.ndarray:
    """Voxel -> mm, (4, 4): of the qform where only that has a code, else of the sform; nothing of it checked."""
    if header["sform_code"] <= 0 < header["qform_code"]:
        return header.get_qform()
    return np.array([*(header[row] for row in ("srow_x", "srow_y", "srow_z")), (0.0, 0.0, 0.0, 1.0)], np.float64)


def _check_file_size(path: Path, layout: _Layout) -> None:
    """Refuse a file with other than the bytes its header asks for; a gzip file states its size in its last 4 bytes."""
    expected = layout.offset + layout.num_frames * layout.frame_bytes
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MARK
        if packed:
            file.seek(max(size - 4, 0))
            size = int.from_bytes(file.read(4), "little")
            expected %= 2**32  # RFC 1952 2.3.1, ISIZE
    if size != expected:  # also where it is more: a dimension one too small would shear every frame
        needs = f"{expected}, as dim, datatype and vox_offset say"
        raise SequenceError(bad_value(path, "unpacked size" if packed else "file size", f"{size} bytes", needs))
