"""A NIfTI file is the original pictures in their order with their times, or one SequenceError; never a person."""

import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.errors import SequenceError
from scripts.sequences.nifti import read_frames, read_header
from tests.conftest import PERSON, assert_message, assert_no_person, ramp

UPWARDS = np.diag([-1.0, 1.0, 1.0, 1.0])  # the second axis runs to the front: what dcm2niix leaves of an axial picture
DOWNWARDS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOX_OFFSET, DATATYPE, DIM = 108, 70, 40  # positions in the header, nifti1.h


def save_nifti(
    path: Path,
    frames: np.ndarray,
    affine: np.ndarray | None = None,
    step: float = 0.25,
    unit: str | None = "sec",
    axes: int = 4,
    nifti2: bool = False,
    **fields: Any,
) -> Path:
    """Write frames (T, H, W) as X, Y, 1, T or X, Y, T: columns first, rows as they are."""
    data = np.moveaxis(frames, 0, -1).swapaxes(0, 1)  # (W, H, T)
    image = (nibabel.Nifti2Image if nifti2 else nibabel.Nifti1Image)(data[:, :, None] if axes == 4 else data, affine)
    image.header["pixdim"][4] = step
    if unit:
        image.header.set_xyzt_units("mm", unit)
    for name, value in fields.items():
        if name == "scaling":
            image.header.set_slope_inter(*value)
        else:
            image.header[name] = value
    nibabel.save(image, path)
    return path


def patched(path: Path, position: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[position : position + len(value)] = value
    path.write_bytes(data)
    return path


# --- values and their order ---


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">u2"])
def test_values_come_back_in_their_type_and_floats_as_float32(tmp_path, name, dtype):
    frames = ramp(5).astype(dtype)
    header = read_header(save_nifti(tmp_path / name, frames))
    stored = read_frames(header, range(5))
    np.testing.assert_array_equal(stored, frames)
    kind = np.dtype(dtype).newbyteorder("=")
    assert stored.dtype == (np.float32 if kind.kind == "f" else kind)
    assert (header.container, header.num_frames, header.rows, header.columns) == ("nifti", 5, 12, 10)
    assert header.bits_stored == (32 if kind.kind == "f" else kind.itemsize * 8)
    assert header.signed == (kind.kind != "u")
    assert header.photometric == "MONOCHROME2" and header.warnings == ()


@pytest.mark.parametrize("nifti2", [False, True])
@pytest.mark.parametrize("axes", [3, 4])
def test_time_is_the_fourth_axis_or_the_third_of_three(tmp_path, axes, nifti2):
    frames = ramp(7)
    header = read_header(save_nifti(tmp_path / "run.nii", frames, axes=axes, nifti2=nifti2))
    assert header.num_frames == 7
    np.testing.assert_array_equal(read_frames(header, [0, 3, 6]), frames[[0, 3, 6]])
    assert header.warnings == (() if axes == 4 else ("dim: 3 axes, the third read as time",))


def test_one_picture_is_a_sequence_of_one_frame(tmp_path):
    path = tmp_path / "still.nii"
    nibabel.save(nibabel.Nifti1Image(ramp(1)[0].T, None), path)
    header = read_header(path)
    assert header.num_frames == 1 and header.frame_times_ms.tolist() == [0.0] and header.warnings == ()
    np.testing.assert_array_equal(read_frames(header, [0]), ramp(1))


def test_rgb24_comes_back_as_rgb(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    packed = np.ascontiguousarray(frames).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    header = read_header(save_nifti(tmp_path / "run.nii.gz", packed))
    assert header.photometric == "RGB" and header.bits_stored == 8
    np.testing.assert_array_equal(read_frames(header, [0, 2]), frames[[0, 2]])


@pytest.mark.parametrize("stored_type", [np.uint8, np.int16, np.float32])
def test_scaling_of_the_header_is_applied(tmp_path, stored_type):
    path = tmp_path / "run.nii"
    stored = ramp(3).astype(stored_type)
    save_nifti(path, stored)
    patched(path, 112, struct.pack("<ff", 0.5, -7.0))  # scl_slope, scl_inter
    header = read_header(path)
    values = read_frames(header, [0, 1, 2])
    np.testing.assert_array_equal(values, stored * 0.5 - 7.0)
    assert values.dtype == np.float32 and (header.bits_stored, header.signed) == (32, True)
    np.testing.assert_allclose(values.transpose(2, 1, 0), nibabel.load(path).get_fdata()[:, :, 0])


@pytest.mark.parametrize(("slope", "inter"), [(0.0, 5.0), (np.nan, np.nan), (np.inf, 1.0), (1.0, 0.0)])
def test_a_slope_that_says_nothing_leaves_the_stored_values(tmp_path, slope, inter):
    path = patched(save_nifti(tmp_path / "run.nii", ramp(3)), 112, struct.pack("<ff", slope, inter))
    stored = read_frames(read_header(path), [0, 1, 2])
    np.testing.assert_array_equal(stored, ramp(3))
    assert stored.dtype == np.uint8


# --- orientation ---


@pytest.mark.parametrize(
    ("affine", "upwards"),
    [
        (UPWARDS, True),
        (DOWNWARDS, False),
        (np.array([[-1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]), True),  # coronal: +y of it is up
        (np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]), False),
        (np.array([[-1, 0.1, 0, 0], [0.1, 0.9, 0.3, 0], [0, 0.3, 1, 0], [0, 0, 0, 1.0]]), True),  # oblique
        (None, False),  # both codes 0 and no affine: nothing is known, nothing is turned
    ],
)
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_rows_run_from_top_to_bottom_whatever_the_affine_says(tmp_path, affine, upwards, form):
    frames = ramp(3)
    path = save_nifti(tmp_path / "run.nii", frames[:, ::-1] if upwards else frames, affine)
    if affine is not None and form == "qform":
        image = nibabel.load(path)
        image.set_sform(None, code=0)
        image.set_qform(affine, code=1)
        path = tmp_path / "qform.nii"
        nibabel.save(image, path)
        assert nibabel.load(path).header["sform_code"] == 0
    np.testing.assert_array_equal(read_frames(read_header(path), range(3)), frames)


def test_a_run_as_dcm2niix_writes_xa_has_its_rows_put_back(tmp_path):
    """The header that dcm2niix v1.0.20260724 wrote for each XA run of ../shared/data, which state no orientation."""
    frames = ramp(6)
    path = save_nifti(
        tmp_path / "run.nii",
        frames[:, ::-1],
        axes=3,
        step=0.0,
        srow_x=[1, 0, 0, 0],
        srow_y=[0, 1, 0, -11],
        srow_z=[0, 0, 1, 0],
        descrip=b"Time=150116.000",
    )
    written = nibabel.load(path).header
    assert (written["sform_code"], written["qform_code"], written["xyzt_units"]) == (0, 0, 10)
    header = read_header(path)
    np.testing.assert_array_equal(read_frames(header, range(6)), frames)
    assert header.warnings == (
        "dim: 3 axes, the third read as time",
        "pixdim[4] 0 with unit code 8: frame times unknown",
    )


# --- time ---


@pytest.mark.parametrize(("unit", "step"), [("sec", 0.125), ("msec", 125.0), ("usec", 125000.0)])
def test_times_are_milliseconds_by_the_unit_of_the_header(tmp_path, unit, step):
    header = read_header(save_nifti(tmp_path / "run.nii", ramp(4), step=step, unit=unit, toffset=3.0))
    np.testing.assert_allclose(header.frame_times_ms, [0, 125, 250, 375])
    assert header.warnings == ()


@pytest.mark.parametrize(
    ("unit", "step"),
    [("hz", 8.0), ("ppm", 1.0), ("rads", 1.0), (None, 1.0), ("sec", 0.0), ("sec", -1.0), ("sec", np.nan)],
)
def test_times_are_unknown_where_the_header_states_no_step_of_time(tmp_path, unit, step):
    header = read_header(save_nifti(tmp_path / "run.nii", ramp(4), step=step, unit=unit))
    np.testing.assert_array_equal(header.frame_times_ms, [0, np.nan, np.nan, np.nan])
    assert len(header.warnings) == 1
    assert header.warnings[0].startswith(f"pixdim[4] {step:g} with unit code ")


# --- what is refused ---


def test_a_volume_is_refused_with_its_size(tmp_path):
    path = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 7), np.uint8), None), path)
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "dim is 4 x 5 x 6 x 7", "X x Y x 1 x T", "volume")


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_values_are_refused(tmp_path, dtype):
    path = save_nifti(tmp_path / "run.nii", ramp(3).astype(dtype))
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "datatype is", "needs an integer or float")


@pytest.mark.parametrize(
    ("position", "value", "field"),
    [
        (DIM, struct.pack("<hhhhh", 4, 10, -12, 1, 5), "dim"),
        (DIM, struct.pack("<hhhhh", 4, 10, 12, 1, 0), "dim"),
        (DIM, struct.pack("<hhhhh", 4, 10, 12, 1, 6), "file size"),  # more frames than there are
        (DIM, struct.pack("<hhhhh", 4, 10, 12, 1, 4), "file size"),  # fewer
        (DIM, struct.pack("<hhhhh", 4, 32767, 32767, 1, 32767), "decoded size"),
        (DIM, struct.pack("<hhhhhhh", 5, 10, 12, 1, 1, 5, 1), "dim"),
        (DATATYPE, struct.pack("<h", 1), "datatype"),  # DT_BINARY
        (DATATYPE, struct.pack("<h", 1536), "datatype"),  # DT_FLOAT128
        (DATATYPE, struct.pack("<h", 999), "header"),
        (DATATYPE, struct.pack("<h", 64), "file size"),
        (VOX_OFFSET, struct.pack("<f", 1e30), "vox_offset"),
        (VOX_OFFSET, struct.pack("<f", 1e12), "file size"),
        (VOX_OFFSET, struct.pack("<f", -352.0), "vox_offset"),
        (VOX_OFFSET, struct.pack("<f", np.nan), "vox_offset"),
        (344, b"ni1\0", "content"),
        (344, b"xyz\0", "content"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_lies_is_refused_without_allocating(tmp_path, position, value, field, packed):
    path = patched(save_nifti(tmp_path / "run.nii", ramp(5)), position, value)
    if packed:
        path = tmp_path / "run.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "run.nii").read_bytes()))
    tracemalloc.start()
    with pytest.raises(SequenceError) as error:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_message(error.value, path, f"{'unpacked size' if packed and field == 'file size' else field} is")
    assert peak < 2**22


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
def test_a_file_cut_short_is_refused_wherever_it_ends(tmp_path, name):
    whole = save_nifti(
        tmp_path / name, np.random.default_rng(0).integers(0, 256, (5, 12, 10), dtype=np.uint8)
    ).read_bytes()
    path = tmp_path / f"cut_{name}"
    ends = [0, 1, 2, 20, 200, len(whole) // 2, len(whole) - 9, len(whole) - 1]
    for end in ends:
        path.write_bytes(whole[:end])
        with pytest.raises(SequenceError) as error:
            read_header(path)
        assert_message(error.value, path, "needs")
    assert len(ends) == 8


@pytest.mark.parametrize("damage", [b"\xff" * 200, None])
def test_damaged_compressed_pixels_are_refused_when_they_are_read(tmp_path, damage):
    frames = np.random.default_rng(0).integers(0, 256, (5, 128, 128), dtype=np.uint8)
    path = save_nifti(tmp_path / "run.nii.gz", frames)
    data = path.read_bytes()
    middle = len(data) // 2  # one bit of stored, incompressible pixels: only the check sum shows it
    damage = damage or bytes([data[middle] ^ 1])
    patched(path, middle, damage)
    header = read_header(path)
    with pytest.raises(SequenceError) as error:
        read_frames(header, range(5))
    assert_message(error.value, path, "pixels is unreadable", "needs a complete, valid NIfTI file")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    frames = ramp(3).astype(np.float32)
    frames[1, 2, 3] = value
    path = save_nifti(tmp_path / "run.nii", frames)
    header = read_header(path)
    with pytest.raises(SequenceError) as error:
        read_frames(header, [0, 1])
    assert_message(error.value, path, "pixels is not a number or infinite", "finite")
    np.testing.assert_array_equal(read_frames(header, [0, 2]), frames[[0, 2]])


def test_a_sequence_over_the_limit_is_refused_by_its_decoded_size(tmp_path):
    path = save_nifti(tmp_path / "run.nii", ramp(5))
    assert read_header(path, 5 * 12 * 10).num_frames == 5
    with pytest.raises(SequenceError) as error:
        read_header(path, 5 * 12 * 10 - 1)
    assert_message(error.value, path, "decoded size is 600 bytes", "at most 599", "max_sequence_bytes")


def test_an_absent_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        read_header(tmp_path / "none.nii")
    assert_message(error.value, tmp_path / "none.nii", "path is absent")


# --- frames apart, privacy, damage ---


@pytest.mark.parametrize("name", ["run.nii", "run.nii.gz"])
def test_reading_two_frames_holds_two_frames(tmp_path, name):
    frames = np.random.default_rng(0).integers(0, 256, (60, 128, 128), dtype=np.uint8)
    path = save_nifti(tmp_path / name, frames)
    header = read_header(path)
    tracemalloc.start()
    stored = read_frames(header, [3, 57])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(stored, frames[[3, 57]])
    assert peak < frames.nbytes / 5  # three frames, and the buffers of gzip


def test_no_name_in_the_header_leaves_it(tmp_path):
    names = {
        "descrip": PERSON["PatientName"].encode(),
        "aux_file": PERSON["InstitutionName"].encode(),
        "db_name": PERSON["PatientID"].encode(),
        "intent_name": b"Quarzel",
    }
    path = save_nifti(tmp_path / "run.nii", ramp(3), **names)
    assert b"Quarzel" in path.read_bytes()
    header = read_header(path)
    assert_no_person(header, header.warnings, header.facts)
    for position, value in ((344, b"xyz\0"), (DATATYPE, struct.pack("<h", 999)), (VOX_OFFSET, b"\xff\xff\xff\xff")):
        broken = tmp_path / "broken.nii"
        broken.write_bytes(path.read_bytes())
        with pytest.raises(SequenceError) as error:
            read_header(patched(broken, position, value))
        assert_no_person(error.value, error.value.__cause__ or "no cause")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 351), value=st.binary(min_size=1, max_size=8), packed=st.booleans())
def test_any_damage_to_the_header_is_one_error_or_frames_of_the_stated_number(tmp_path, position, value, packed):
    frames = ramp(5)
    data = bytearray(save_nifti(tmp_path / "run.nii", frames).read_bytes())
    data[position : position + len(value)] = value
    path = tmp_path / "damaged.nii.gz"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    try:
        header = read_header(path)
        stored = read_frames(header, range(header.num_frames))
    except SequenceError as error:
        assert_message(error, path, "needs")
        return
    assert stored.shape[:3] == (header.num_frames, header.rows, header.columns)
    assert len(header.frame_times_ms) == header.num_frames
    total = stored.size * (1 if header.bits_stored == 32 else stored.itemsize)
    assert total <= frames.size  # never more pixels than the file has bytes


@pytest.mark.parametrize("surplus", [1, 11, 500])
def test_bytes_after_the_last_frame_are_refused(tmp_path, surplus):
    """A dimension one too small leaves a few: every frame after the first would be sheared."""
    path = save_nifti(tmp_path / "run.nii", ramp(3))
    path.write_bytes(path.read_bytes() + bytes(surplus))
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "file size", "dim, datatype and vox_offset")


def test_a_scale_beyond_what_pixels_can_hold_is_refused(tmp_path):
    path = save_nifti(tmp_path / "run.nii", ramp(3))
    data = path.read_bytes()
    path.write_bytes(data[:112] + struct.pack("<ff", 3e38, 0.0) + data[120:])  # scl_slope, scl_inter
    header = read_header(path)
    with pytest.raises(SequenceError) as error:
        read_frames(header, [0, 1, 2])
    assert_message(error.value, path, "pixels is not a number or infinite", "finite values up to 1e+30")
