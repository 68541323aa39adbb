"""Pixels of chosen frames through one decoder, in this process or in a child that may break down.

GDCM, the one permissive decoder of JPEG lossless, ends the whole process on some damaged streams (3.2.6: SIGABRT and
SIGSEGV), which no exception handler sees. So it runs in a child; if that dies, one exam is lost and not a run.
"""

import atexit
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydicom.pixels import iter_pixels

from scripts.errors import SequenceError, bad_value

BUNDLE_ROOT = Path(__file__).resolve().parents[2]


def decode(path: Path, indices: list[int], raw: bool, plugin: str) -> list[np.ndarray]:
    """Frames (H, W) or (H, W, 3) at the 0-based indices.

    Raises:
        Exception: whatever pydicom and the decoder raise.
    """
    return list(iter_pixels(path, indices=indices, raw=raw, decoding_plugin=plugin))


class _Child:
    """One child process that decodes for this one, started when first needed."""

    def __init__(self) -> None:
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
            try:
                pickle.dump(request, self.process.stdin)  # type: ignore[arg-type]
                self.process.stdin.flush()  # type: ignore[union-attr]
                return pickle.load(self.process.stdout)  # type: ignore[arg-type]  # our own child, no file
            except (EOFError, OSError, pickle.UnpicklingError):
                self.close()
                return "died", None


_CHILD = _Child()
atexit.register(_CHILD.close)


def decode_apart(path: Path, indices: list[int], raw: bool, plugin: str) -> list[np.ndarray]:
    """As `decode`, in the child process.

    Raises:
        SequenceError: the decoder refused the stream or broke down on it.
    """
    outcome, content = _CHILD.ask((str(Path(path).resolve()), indices, raw, plugin))
    if outcome == "frames":
        return content  # type: ignore[return-value]
    found = "more than the decoder survives" if outcome == "died" else f"unreadable ({content})"
    raise SequenceError(bad_value(path, "(7FE0,0010) PixelData", found, "a complete, valid stream"))


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The child's work: requests in, frames or the name of an exception out, until the parent goes."""
    while True:
        try:
            path, indices, raw, plugin = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: tuple[str, object] = ("frames", decode(Path(path), indices, raw, plugin))
        except Exception as error:  # whatever it is, the parent is told
            answer = ("error", type(error).__name__)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    answers_file = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not stand between the answers
    serve(sys.stdin.buffer, answers_file)
