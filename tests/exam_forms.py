"""One small synthetic angiography run, and writers that put it into every form an exam comes in.

A writer takes an empty folder and returns what `image` of a datalist item would name: a file, a folder or a list.
"""

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, uid
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import get_encoder
from scipy import ndimage

from scripts.sequences.phantom_ffa import ffa_sequence
from scripts.sequences.phantom_xa import xa_sequence
from tests.conftest import jpeg, save_dicom
from tests.encodings import extended_jpeg, save_encoded, save_streams

Source = Path | list[Path]
Writer = Callable[[Path], Source]
T, ROWS, COLUMNS = 5, 48, 40
FILE_NAMES = ("30.dcm", "4.dcm", "11.dcm", "2.dcm", "7.dcm")  # of a series: in the order of time, sorted in no way
EXPLICIT = uid.ExplicitVRLittleEndian


@cache
def run(kind: str = "xa") -> np.ndarray:
    """Brightness of T frames that all differ, (T, ROWS, COLUMNS) in [0, 1], both ends of it met."""
    draw = xa_sequence if kind == "xa" else ffa_sequence
    frames = draw(np.random.default_rng(11), 3, 64)[0].astype(float)
    frames = frames[np.linspace(0, len(frames) - 1, T).round().astype(int), 8 : 8 + ROWS, 12 : 12 + COLUMNS]
    return (frames - frames.min()) / (frames.max() - frames.min())


def stored(bits: int, signed: bool = False, inverted: bool = False, kind: str = "xa") -> np.ndarray:
    """The run in all values of `bits`, (T, ROWS, COLUMNS); `inverted`: white is the least, as in MONOCHROME1."""
    values = np.round((1 - run(kind) if inverted else run(kind)) * (2**bits - 1)).astype(np.int64)
    values -= 2 ** (bits - 1) if signed else 0
    return values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def smooth(bits: int) -> np.ndarray:
    """The run without its noise, for codecs that lose some of it."""
    return np.round(ndimage.gaussian_filter(run(), (0, 2, 2)) * (2**bits - 1)).astype("u1" if bits <= 8 else "u2")


def colour() -> np.ndarray:
    """A retinal run in three channels that differ, (T, ROWS, COLUMNS, 3) uint8."""
    grey = ndimage.gaussian_filter(run("ffa"), (0, 3, 3))
    return np.round(np.stack([grey, 0.7 * grey + 0.1, 0.9 - 0.8 * grey], -1) * 255).astype(np.uint8)


def rgb_of(ybr: np.ndarray) -> np.ndarray:
    """PS3.3 C.7.6.3.1.2, uint8."""
    y, cb, cr = (ybr[..., i].astype(float) - (128 if i else 0) for i in range(3))
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
    return rgb.round().clip(0, 255).astype(np.uint8)


def items(*each: dict[str, Any]) -> pydicom.Sequence:
    """A sequence attribute of these items."""
    datasets = [Dataset() for _ in each]
    for dataset, attributes in zip(datasets, each, strict=True):
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
    return pydicom.Sequence(datasets)


# --- DICOM ---


def dicom(
    frames: np.ndarray,
    bits: int,
    syntax: str = EXPLICIT,
    photometric: str | None = None,
    by_plane: bool = False,
    **attributes: Any,
) -> Writer:
    """One multi-frame file in any lossless transfer syntax, 40 ms between frames unless `attributes` say otherwise."""
    attributes = _stated(photometric) | attributes
    return lambda folder: save_encoded(folder / "run.dcm", frames, syntax, bits, by_plane, **attributes)


def _stated(photometric: str | None) -> dict[str, Any]:
    return {"FrameTime": "40"} | ({} if photometric is None else {"PhotometricInterpretation": photometric})


def coded(
    streams: Callable[[], Sequence[bytes]],
    frames: np.ndarray,
    bits: int,
    syntax: str,
    photometric: str | None = None,
    **attributes: Any,
) -> Writer:
    """One file of compressed frames made elsewhere; `frames` give the header its size."""
    attributes = _stated(photometric) | attributes
    return lambda folder: save_streams(folder / "run.dcm", streams(), frames, syntax, bits, **attributes)


def encoder(frames: np.ndarray, bits: int, syntax: str, plugin: str, **options: Any) -> Callable[[], list[bytes]]:
    """Streams of pydicom's encoder for the syntax, one a frame."""
    samples = 1 if frames.ndim == 3 else 3
    stated = {
        "rows": frames.shape[1],
        "columns": frames.shape[2],
        "number_of_frames": 1,
        "samples_per_pixel": samples,
        "bits_allocated": frames.itemsize * 8,
        "bits_stored": bits,
        "pixel_representation": 0,
        "photometric_interpretation": "MONOCHROME2" if samples == 1 else "RGB",
        "planar_configuration": 0,
    } | options
    return lambda: [get_encoder(syntax).encode(frame, encoding_plugin=plugin, **stated) for frame in frames]


def extended_blocks() -> np.ndarray:
    """The run in blocks of 8 x 8 equal pixels of 12 bits, which `extended_jpeg` keeps exactly."""
    blocks = stored(12)[:, ::8, ::8]
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def extended_streams() -> list[bytes]:
    return [extended_jpeg(frame[::8, ::8]) for frame in extended_blocks()]


def jpegs(frames: np.ndarray) -> Callable[[], list[bytes]]:
    return lambda: [jpeg(frame) for frame in frames]


def fragmented(
    streams: Callable[[], Sequence[bytes]],
    frames: np.ndarray,
    bits: int,
    syntax: str,
    table: str,
    fragments_a_frame: int = 1,
) -> Writer:
    """Frames in several fragments, with a `basic`, an `extended`, a `wrong` or an `empty` offset table."""

    def write(folder: Path) -> Path:
        parts = [stream + b"\0" * (len(stream) % 2) for stream in streams()]
        attributes: dict[str, Any] = {}
        if table == "extended":
            data, attributes["ExtendedOffsetTable"], attributes["ExtendedOffsetTableLengths"] = encapsulate_extended(
                parts
            )
        else:
            data = encapsulate(parts, fragments_a_frame, has_bot=table != "empty")
        if table == "wrong":
            data = data[:8] + b"\x02\0\0\0" * len(parts) + data[8 + 4 * len(parts) :]
        return coded(lambda: [], frames, bits, syntax, PixelData=data, **attributes)(folder)

    return write


def headless(write: Writer, meta: bool) -> Writer:
    """The file without preamble and mark, and without file meta group if not `meta`."""

    def cut(folder: Path) -> Path:
        path = write(folder)
        assert isinstance(path, Path)
        data = path.read_bytes()
        group_bytes = int.from_bytes(data[140:144], "little")  # value of (0002,0000)
        path.write_bytes(data[132:] if meta else data[144 + group_bytes :])
        return path

    return cut


def segmented_palette(tables: np.ndarray) -> dict[str, Any]:
    """Attributes of three ramps (3, 256) of 16 bits, each a first value and a line to the last (PS3.3 C.7.9.2)."""
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        found[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        words = np.array([0, 1, table[0], 1, 255, table[-1]], "<u2")
        found[f"Segmented{name}PaletteColorLookupTableData"] = words.tobytes()
    return found


def palette(tables: np.ndarray, bits: int) -> dict[str, Any]:
    """Attributes of three tables (3, 256) of 8 or 16 bits."""
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        found[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        found[f"{name}PaletteColorLookupTableData"] = table.astype("<u2" if bits == 16 else "u1").tobytes()
    return found


def halved_colour(ybr: np.ndarray) -> Writer:
    """Uncompressed YBR_FULL_422 of frames (T, H, W, 3) whose pixels share Cb and Cr in pairs: Y1 Y2 Cb Cr."""
    left, right = ybr[:, :, ::2], ybr[:, :, 1::2]
    data = np.stack([left[..., 0], right[..., 0], left[..., 1], left[..., 2]], axis=-1).tobytes()

    def write(folder: Path) -> Path:
        attributes = _stated("YBR_FULL_422") | {"PixelData": data}
        return save_dicom(folder / "run.dcm", ybr, 8, **attributes)

    return write


def series(frames: np.ndarray, each: Sequence[dict[str, Any]], bits: int = 12, **attributes: Any) -> Writer:
    """A folder of single-frame files, `each` the attributes of one in the order of time."""
    assert len(each) == len(frames) == len(FILE_NAMES)

    def write(folder: Path) -> Path:
        for i, (name, own) in enumerate(zip(FILE_NAMES, each, strict=True)):
            save_dicom(folder / "run" / name, frames[i : i + 1], bits, NumberOfFrames=None, **{**attributes, **own})
        return folder / "run"

    return write


def enhanced(**times: Sequence[object]) -> dict[str, Any]:
    """Attributes of an Enhanced XA object whose frames state these of their content; None: not stated."""
    groups = [
        {"FrameContentSequence": items({k: v[t] for k, v in times.items() if v[t] is not None})} for t in range(T)
    ]
    return {
        "SOPClassUID": uid.EnhancedXAImageStorage,
        "PerFrameFunctionalGroupsSequence": items(*groups),
        "FrameTime": None,
    }


# --- other containers ---


def nifti(
    frames: np.ndarray, name: str, upwards: bool = False, axes: int = 4, unit: str = "sec", **more: Any
) -> Writer:
    """One NIfTI file of axes X, Y, 1, T or X, Y, T; `upwards`: its first row is the lowest, and its affine says so."""

    def write(folder: Path) -> Path:
        rows = frames[:, ::-1] if upwards else frames
        data = rows.transpose(2, 1, 0) if rows.ndim == 3 else _rgb24(rows).transpose(2, 1, 0)  # (W, H, T)
        affine = np.diag([-1.0, 1.0 if upwards else -1.0, 1.0, 1.0])
        image = nibabel.Nifti1Image(data[:, :, None] if axes == 4 else data, affine)
        image.header["pixdim"][4] = {"sec": 0.04, "msec": 40}[unit]
        image.header.set_xyzt_units("mm", unit)
        if "scaling" in more:
            image.header.set_slope_inter(*more["scaling"])
        nibabel.save(image, folder / name)
        return folder / name

    return write


def _rgb24(frames: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(frames).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]


def pictures(
    frames: np.ndarray, names: Sequence[str], times: str | None = None, listed: bool = False, **save: Any
) -> Writer:
    """A folder of images with these names, in the order of time, or a list of them; `times`: content of times.csv."""

    def write(folder: Path) -> Source:
        paths = [folder / name for name in names]
        for path, frame in zip(paths, frames, strict=True):
            Image.fromarray(frame).save(path, **save)
        if times is not None:
            (folder / "times.csv").write_text(times)
        return paths if listed else folder

    return write


def jpeg_files(frames: np.ndarray, names: Sequence[str]) -> Writer:
    return pictures(frames, names, quality=95)


def pages(frames: np.ndarray, **save: Any) -> Writer:
    """One TIFF of several pages."""

    def write(folder: Path) -> Path:
        first, *others = (Image.fromarray(frame) for frame in frames)
        first.save(folder / "run.tif", save_all=True, append_images=others, **save)
        return folder / "run.tif"

    return write


def video(frames: np.ndarray, name: str, codec: str, times_ms: Sequence[int] | None = None, **options: str) -> Writer:
    """A lossless video of grey or RGB frames, at times or at 25 frames/s."""

    def write(folder: Path) -> Path:
        av = pytest.importorskip("av")
        kind = "rgb24" if frames.ndim == 4 else "gray" if frames.dtype == np.uint8 else "gray16le"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = COLUMNS, ROWS, kind
            unit = Fraction(1, 25 if times_ms is None else 1000)
            stream.codec_context.time_base = unit
            for t, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(frame, kind)
                picture.pts, picture.time_base = t if times_ms is None else times_ms[t], unit
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return folder / name

    return write


def png_bytes(frame: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(frame).save(data, "PNG")
    return data.getvalue()
