"""Compressed frame -> samples, through one decoder a transfer syntax; one that may break down runs in a child.

GDCM, the one permissive decoder of JPEG lossless, ends the whole process on some damaged streams (3.2.6: SIGABRT and
SIGSEGV), which no exception handler sees. So it runs in a child; if that dies, one exam is lost and not a run.
The child imports neither torch nor pydicom and starts in a tenth of a second.
"""

import atexit
import io
import os
import pickle
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from scripts.dicom.layout import PIXEL_DATA_NAME, PixelLayout, pixels_of
from scripts.errors import SequenceError, bad_value

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
FRAME_TIMEOUT_S = 60.0  # 2048 x 2048 of 16 bits take GDCM 0.2 s; a loop in a decoder would stop a run for ever


def _pillow(stream: bytes, layout: PixelLayout, _: int) -> np.ndarray:
    """JPEG of 8 bits as grey or RGB. Colour is what the stream says it is, else what the header says (PS3.5 8.2.1)."""
    from PIL import Image

    image = Image.open(io.BytesIO(stream), formats=("JPEG",))
    if layout.samples == 3:
        says = "jfif" in image.info or "adobe_transform" in image.info or [c[0] for c in image.layer] == [82, 71, 66]  # type: ignore[attr-defined]
        if layout.photometric == "RGB" and not says:
            image.draft("YCbCr", image.size)  # as they are: libjpeg would take them for YCbCr
    return np.asarray(image)


def _gdcm(stream: bytes, layout: PixelLayout, precision: int) -> np.ndarray:
    """JPEG extended of 8 or 12 bits, JPEG lossless; samples as in the stream, unsigned."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    photometric = "MONOCHROME2" if layout.samples == 1 else "RGB"  # no conversion
    kind = gdcm.PhotometricInterpretation.GetPIType(photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if layout.samples > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14))  # it goes by the stream
    container = 8 if precision <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(layout.samples, container, precision, precision - 1, 0))
    data = image.GetBuffer().encode("utf-8", "surrogateescape")
    return np.frombuffer(data, f"<u{container // 8}").reshape(layout.shape)


def _pyjpegls(stream: bytes, layout: PixelLayout, precision: int) -> np.ndarray:
    import jpeg_ls

    data, found = jpeg_ls.decode_pixel_data(stream)
    values = np.frombuffer(data, "<u1" if precision <= 8 else "<u2")
    if found["components"] > 1 and found["interleave_mode"] == 0:
        return values.reshape(layout.samples, layout.rows, layout.columns).transpose(1, 2, 0)
    return values.reshape(layout.shape)


def _openjpeg(stream: bytes, layout: PixelLayout, precision: int) -> np.ndarray:
    import openjpeg

    data = openjpeg.decode_pixel_data(stream, version=2)  # colour transforms of the stream (RCT, ICT) undone
    kind = f"<{'i' if layout.signed else 'u'}{1 if precision <= 8 else 2}"
    return np.frombuffer(data, kind).reshape(layout.shape)


def _rle(stream: bytes, layout: PixelLayout, _: int) -> np.ndarray:
    import rle

    size: dict[str, Any] = {"rows": layout.rows, "columns": layout.columns, "bits_allocated": layout.allocated}
    try:
        data = rle.decode_pixel_data(stream, version=2, **size)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError("segments of another size") from None  # Rust's own, which no `except Exception` catches
    planes = np.frombuffer(data, f"<u{layout.allocated // 8}").reshape(layout.samples, layout.rows, layout.columns)
    return planes.transpose(1, 2, 0).reshape(layout.shape)


def _deflated(stream: bytes, layout: PixelLayout, _: int) -> np.ndarray:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflate.decompress(stream, layout.native_bytes + 2)
    if len(data) not in (layout.native_bytes, layout.native_bytes + layout.native_bytes % 2):
        raise ValueError("a frame of another size")
    return pixels_of(data, layout)


def _uncompressed(stream: bytes, layout: PixelLayout, _: int) -> np.ndarray:
    return pixels_of(stream, layout)


DECODE: dict[str, Callable[[bytes, PixelLayout, int], np.ndarray]] = {
    "pillow": _pillow,
    "gdcm": _gdcm,
    "pyjpegls": _pyjpegls,
    "openjpeg": _openjpeg,
    "rle": _rle,
    "zlib": _deflated,
    "numpy": _uncompressed,
}
APART = ("gdcm",)
# libjpeg and its kin fill the rest of a frame whose scan ends early and say nothing: with mid grey after a cosine
# transform, with what stands before it where there is none. To a complete scan data before the end of the image adds
# nothing; in one that was cut it is taken for the rest, and other pixels come out.
MADE_UP: dict[str, int | None] = {"pillow": 128, "gdcm": None}
MORE_DATA = bytes(range(1, 200)) * 8


def decode(path: Path, decoder: str, stream: bytes, layout: PixelLayout, precision: int) -> np.ndarray:
    """Samples (H, W) or (H, W, 3) of one compressed frame.

    Args:
        path: for messages.
        decoder: of `DECODE`.
        stream: all fragments of the frame.
        layout: that the frame must have.
        precision: bits of a sample, as the stream says.

    Raises:
        SequenceError: the decoder broke down or took too long.
        Exception: whatever it raises; the caller translates.
    """
    samples = _decoded(path, decoder, stream, layout, precision)
    if decoder in MADE_UP and _ends_flat(samples, MADE_UP[decoder]):
        end = stream.rfind(b"\xff\xd9")  # end of image, T.81 B.1.1.3
        longer = stream[:end] + MORE_DATA + stream[end:]
        if not np.array_equal(samples, _decoded(path, decoder, longer, layout, precision)):
            raise SequenceError(bad_value(path, PIXEL_DATA_NAME, "cut off inside a frame", "a complete, valid stream"))
    return samples


def _decoded(path: Path, decoder: str, stream: bytes, layout: PixelLayout, precision: int) -> np.ndarray:
    if decoder not in APART:
        return DECODE[decoder](stream, layout, precision)
    outcome, content = _CHILD.ask((decoder, stream, layout, precision))
    if isinstance(content, np.ndarray):
        return content
    raise SequenceError(bad_value(path, PIXEL_DATA_NAME, outcome, "a complete, valid stream"))


def _ends_flat(samples: np.ndarray, value: int | None) -> bool:
    """True where the end of the frame may be made up: eight pixels of one value, of this one if it is known."""
    end = samples[-1, -8:]
    return bool((end == (end[-1] if value is None else value)).all())


class _Child:
    """One child process that decodes for this one, started when first needed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """In a process just forked: the child, and whoever holds the lock, are the parent's."""
        self.of_parent = getattr(self, "process", None)  # kept, or it would be reported as not waited for
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End the child, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, request: tuple) -> tuple[str, object]:
        with self.lock:
            if self.process is None or self.process.poll() is not None:
                command = [sys.executable, "-m", "scripts.dicom.decoding"]
                pipe, none = subprocess.PIPE, subprocess.DEVNULL
                self.process = subprocess.Popen(command, cwd=BUNDLE_ROOT, stdin=pipe, stdout=pipe, stderr=none)
            limit = threading.Timer(FRAME_TIMEOUT_S, self.process.kill)
            limit.start()
            started = time.monotonic()
            try:
                pickle.dump(request, self.process.stdin)  # type: ignore[arg-type]
                self.process.stdin.flush()  # type: ignore[union-attr]
                return pickle.load(self.process.stdout)  # type: ignore[arg-type]  # our own child, no file
            except (EOFError, OSError, pickle.UnpicklingError):
                late = time.monotonic() - started >= FRAME_TIMEOUT_S
                self.close()
                return f"over {FRAME_TIMEOUT_S:g} s of work" if late else "more than the decoder survives", None
            finally:
                limit.cancel()


_CHILD = _Child()
atexit.register(_CHILD.close)
os.register_at_fork(after_in_child=_CHILD.forget)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The child's work: requests in, samples or the name of an exception out, until the parent goes."""
    while True:
        try:
            decoder, stream, layout, precision = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: tuple[str, object] = ("decoded", DECODE[decoder](stream, layout, precision))
        except Exception as error:  # whatever it is, the parent is told
            answer = (f"unreadable ({type(error).__name__})", None)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    answers_file = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not stand between the answers
    serve(sys.stdin.buffer, answers_file)
