"""Known frames written in every transfer syntax: by an encoder where one is installed, by hand where none is."""

import base64
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_encoder

from scripts.dicom.fragments import DEFLATED_FRAMES, ENCAPSULATED_UNCOMPRESSED
from tests.conftest import save_dicom

NATIVE = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
CODED = {
    "rle": uid.RLELossless,
    "jpeg lossless": uid.JPEGLossless,
    "jpeg lossless sv1": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg 2000": uid.JPEG2000Lossless,
    "encapsulated uncompressed": ENCAPSULATED_UNCOMPRESSED,
    "deflated frames": DEFLATED_FRAMES,
}
LOSSLESS = NATIVE | CODED
PLUGINS = {uid.RLELossless: "pylibjpeg", uid.JPEGLSLossless: "pyjpegls", uid.JPEG2000Lossless: "pylibjpeg"}
# 32 x 32 of 12 bits, row * 60 + column * 64, by OpenJPH (no encoder of HTJ2K is among our packages)
HTJ2K_STREAM = base64.b85decode(
    r"|4;u>04YEK0000W0000W000000000000062000620000000000009pH0sl|{2mk^A000dCQUDA90ssL31q1{@0smY86CjY7n4p-L"
    r"pqQATn3$N5keL5u02crOPjF>!N>E53R%LP^FfK7PE-)_tkN^q*00000&Hw@blfVEI03-JW2Xp|y012P~1i&Ks0|#^fkoW@!bO68r"
    r"3E%((;E+J_0)lh^NJQcQqf`LE01Bu80apM35r9UF7%}pyasqV#B8m_p;=n=y?6v^#0|3AP3qk+@T3{X?9v&VZ9v<h)dU|n!cmNC;"
    r"7#J8B7#RNjj9`2AF@fy50Kfni%m4vzfWGhhzVG|K@B6;*`}zM0dU|?#dU|kzeE@dbwr$(CZQHhO+qVCBU_uAKVF(`mgdltN5P|Ho"
    r"0sq+"
)
HTJ2K_FRAME = np.add.outer(np.arange(32) * 60, np.arange(32) * 64).astype(np.uint16)


def save_encoded(
    path: Path, frames: np.ndarray, syntax: str, bits: int, by_plane: bool = False, **attributes: Any
) -> Path:
    """Write frames (T, H, W) or (T, H, W, 3), signed or not, of `bits` stored, in any lossless transfer syntax."""
    signed = frames.dtype.kind == "i"
    unsigned = frames.astype(f"u{frames.itemsize}") & ((1 << bits) - 1)  # bits above those stored are no value
    planes = unsigned.transpose(0, 3, 1, 2) if by_plane else unsigned
    attributes = {"PixelRepresentation": int(signed)} | attributes
    if frames.ndim == 4:
        attributes = {"PlanarConfiguration": int(by_plane)} | attributes
    if syntax in NATIVE.values():
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        data = planes.astype(planes.dtype.newbyteorder(order)).tobytes()
        attributes["PixelData"] = data + b"\0" * (len(data) % 2)
        return save_dicom(path, unsigned, bits, syntax, **attributes)
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        streams = _by_gdcm(path, unsigned, syntax, bits, int(signed))
    elif syntax == ENCAPSULATED_UNCOMPRESSED:
        streams = [frame.tobytes() for frame in planes]
    elif syntax == DEFLATED_FRAMES:
        streams = [_deflated(frame.tobytes()) for frame in planes]
    else:
        streams = [_by_pydicom(frame, syntax, bits, signed) for frame in frames]
    return save_streams(path, streams, unsigned, syntax, bits, **attributes)


def save_streams(
    path: Path, streams: Sequence[bytes], frames: np.ndarray, syntax: str, bits: int, **attributes: Any
) -> Path:
    """Write code streams, one a frame, or the bytes of all items as `PixelData`, under the header of `frames`."""
    even = [stream + b"\0" * (len(stream) % 2) for stream in streams]
    attributes = {"PixelData": encapsulate(even)} | attributes
    save_dicom(path, frames, bits, **attributes)
    dataset = pydicom.dcmread(path)
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    known = uid.JPEGBaseline8Bit if syntax == DEFLATED_FRAMES else uid.UID(syntax)
    dataset.file_meta.TransferSyntaxUID = known
    dataset.save_as(path)
    if syntax == DEFLATED_FRAMES:  # pydicom 3.0.2 does not know it
        data = path.read_bytes()
        path.write_bytes(data.replace(known.encode(), syntax.encode() + b"\0", 1))
    return path


def noise(shape: tuple[int, ...], dtype: type, bits: int) -> np.ndarray:
    """Every value of `bits` is as likely, the least and the greatest are there."""
    low = -(1 << bits - 1) if np.dtype(dtype).kind == "i" else 0
    values = np.random.default_rng(bits).integers(low, low + (1 << bits), shape)
    values.flat[:2] = low, low + (1 << bits) - 1
    return values.astype(dtype)


def _deflated(data: bytes) -> bytes:
    compress = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compress.compress(data) + compress.flush()


def _by_pydicom(frame: np.ndarray, syntax: str, bits: int, signed: bool) -> bytes:
    samples = 1 if frame.ndim == 2 else 3
    return get_encoder(syntax).encode(
        frame,
        encoding_plugin=PLUGINS[uid.UID(syntax)],
        rows=frame.shape[0],
        columns=frame.shape[1],
        number_of_frames=1,
        samples_per_pixel=samples,
        bits_allocated=frame.itemsize * 8,
        bits_stored=bits,
        pixel_representation=int(signed),
        photometric_interpretation="MONOCHROME2" if samples == 1 else "RGB",
        planar_configuration=0,
    )


def _by_gdcm(path: Path, frames: np.ndarray, syntax: str, bits: int, signed: int) -> list[bytes]:
    import gdcm

    source = save_dicom(path.with_suffix(".raw"), frames, bits, PixelRepresentation=signed)
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(source))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    streams = list(generate_frames(pydicom.dcmread(source).PixelData, number_of_frames=len(frames)))
    source.unlink()
    return streams


def extended_jpeg(blocks: np.ndarray) -> bytes:
    """JPEG extended (T.81, process 4) of 12 bits, by hand: each value of `blocks` fills 8 x 8 pixels exactly."""
    rows, columns = (8 * n for n in blocks.shape)
    codes = bytes([0, 0, 0, 0, 16]) + bytes(11)  # DC: 16 categories, all of 5 bits
    segments = [
        (0xDB, b"\0" + b"\1" * 64),
        (0xC1, bytes([12]) + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + b"\1\1\x11\0"),
        (0xC4, b"\0" + codes + bytes(range(16))),
        (0xC4, b"\x10" + b"\1" + bytes(15) + b"\0"),  # AC: end of block alone, the bit 0
        (0xDA, b"\1\1\0\0\x3f\0"),
    ]
    head = b"".join(bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2, "big") + body for kind, body in segments)
    bits, last = "", 0
    for value in (blocks.astype(int).ravel() - 2048) * 8:  # DC of the DCT: 8 times the level-shifted mean
        step, last = int(value) - last, int(value)
        size = abs(step).bit_length()
        bits += f"{size:05b}" + (f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else "") + "0"
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + head + data + b"\xff\xd9"
