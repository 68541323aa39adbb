"""Small DICOM files for the tests: made with pydicom in tmp_path, or the public ones of ../shared/data."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
XA, OP, SC = (
    "1.2.840.10008.5.1.4.1.1.12.1",
    "1.2.840.10008.5.1.4.1.1.77.1.5.1",
    "1.2.840.10008.5.1.4.1.1.7",
)
PERSON = {  # planted in files; none of it may come back
    "PatientName": "Quarzel^Ottilde",
    "PatientID": "QZL-4711-X",
    "PatientBirthDate": "19410203",
    "InstitutionName": "Krombholz Hospital",
    "ReferringPhysicianName": "Zwirnagl^Doctor",
    "StudyDescription": "zwirnagl study text",
}
MESSAGE = re.compile(r"(?P<item>.+?): (?P<field>.+?) is (?P<found>.+), needs (?P<allowed>.+?)\.( [A-Z].*)?")


def ramp(num_frames: int = 4, rows: int = 12, columns: int = 10, bits: int = 8) -> np.ndarray:
    """Frames (T, H, W) that all differ, the later the brighter, up to half of what `bits` can hold."""
    base = np.arange(rows * columns).reshape(rows, columns) % 2 ** (bits - 2)
    step = max(2 ** (bits - 2) // num_frames, 1)
    return np.stack([base + t * step for t in range(num_frames)]).astype(np.uint8 if bits <= 8 else np.uint16)


def jpeg(frame: np.ndarray) -> bytes:
    """Baseline JPEG of one frame (H, W) or (H, W, 3), an even number of bytes."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=95)
    data = stream.getvalue()
    return data + b"\x00" * (len(data) % 2)


def save_dicom(
    path: Path,
    frames: np.ndarray,
    bits: int | None = None,
    syntax: str = uid.ExplicitVRLittleEndian,
    offset_table: str = "basic",
    **attributes: Any,
) -> Path:
    """Write frames (T, H, W) or (T, H, W, 3) as one DICOM file.

    Args:
        path: of the file; its folders are made.
        frames: uint8 or uint16.
        bits: BitsStored, by default those of the type.
        syntax: native, RLELossless or JPEGBaseline8Bit.
        offset_table: `basic`, `empty` or `extended`, where the syntax has one.
        attributes: DICOM keywords; None leaves an attribute out.
    """
    allocated = frames.dtype.itemsize * 8
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = attributes.get("SOPClassUID") or XA
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=[str(path)])
    meta.TransferSyntaxUID = uid.UID(syntax)
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = uid.generate_uid(entropy_srcs=["study"])
    ds.SeriesInstanceUID = uid.generate_uid(entropy_srcs=["series"])
    ds.Modality, ds.InstanceNumber = "XA", 1
    ds.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if frames.ndim == 4 else "MONOCHROME2"
    if frames.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.NumberOfFrames, ds.Rows, ds.Columns = frames.shape[:3]
    ds.BitsAllocated, ds.BitsStored = allocated, bits or allocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    if uid.UID(syntax).is_encapsulated:
        if syntax == uid.RLELossless:
            ds.PixelData = frames.tobytes()
            ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            ds.compress(uid.RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        elif offset_table == "extended":
            data, offsets, lengths = encapsulate_extended([jpeg(frame) for frame in frames])
            ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = data, offsets, lengths
        else:
            ds.PixelData = encapsulate([jpeg(frame) for frame in frames], has_bot=offset_table == "basic")
        ds["PixelData"].is_undefined_length = True
    else:
        little = syntax != uid.ExplicitVRBigEndian
        data = frames.astype(frames.dtype.newbyteorder("<" if little else ">")).tobytes()
        ds.PixelData = data + b"\x00" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if allocated == 8 or uid.UID(syntax).is_encapsulated else "OW"
    for keyword, value in attributes.items():
        if value is None:
            if keyword in ds:
                delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def patch(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes that occur once by as many others."""
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def assert_message(error: BaseException, *parts: object) -> None:
    """The text is one line of item, field, value found, values allowed, with these parts in this order."""
    text = str(error)
    assert "\n" not in text
    assert MESSAGE.fullmatch(text), text
    position = 0
    for part in parts:
        assert str(part) in text[position:], f"{part!r} not after position {position} in: {text}"
        position = text.index(str(part), position)


def assert_no_person(*things: object) -> None:
    """Nothing of PERSON stands in the text or repr of these things, or of what an error came from."""
    assert things
    for thing in things:
        for text in (str(thing), repr(thing)):
            for value in (*PERSON.values(), "Quarzel", "Ottilde", "QZL", "Krombholz", "Zwirnagl"):
                assert value.lower() not in text.lower()


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("../shared/data is absent: public DICOM samples are not part of the repository")
    return SHARED_DATA


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """`save_dicom` with a name inside tmp_path."""

    def write(name: str = "run.dcm", frames: np.ndarray | None = None, **options: Any) -> Path:
        return save_dicom(tmp_path / name, ramp() if frames is None else frames, **options)

    return write


@pytest.fixture
def save_series(tmp_path: Path) -> Callable[..., Path]:
    """A folder of single-frame files, one for each entry of `each` (attributes); names hide the order."""

    def write(folder: str, each: Sequence[dict[str, Any]], frames: np.ndarray | None = None, **options: Any) -> Path:
        frames = ramp(len(each)) if frames is None else frames
        names = [f"{(i * 7 + 3) % 97:02d}.dcm" for i in range(len(each))]
        assert len(set(names)) == len(each)
        for i, (name, attributes) in enumerate(zip(names, each, strict=True)):
            save_dicom(
                tmp_path / folder / name,
                frames[i : i + 1],
                **{"NumberOfFrames": None, **options, **attributes},
            )
        return tmp_path / folder

    return write
