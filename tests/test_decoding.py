"""A decoder that can break down runs in a child: its end, its delay and a fork of its parent cost one exam at most."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
from tests.conftest import assert_message
from tests.encodings import noise, save_encoded

ROOT = Path(__file__).parents[1]


def test_a_decoder_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    frames = noise((1, 512, 512), np.uint16, 16)
    header = read_header(save_encoded(tmp_path / "a", frames, uid.JPEGLosslessSV1, 16))
    np.testing.assert_array_equal(read_frames(header, [0]), frames)
    monkeypatch.setattr("scripts.dicom.decoding.FRAME_TIMEOUT_S", 0.0)
    with pytest.raises(SequenceError) as error:
        read_frames(header, [0])
    assert_message(error.value, "PixelData", "over 0 s of work")
    monkeypatch.undo()
    np.testing.assert_array_equal(read_frames(header, [0]), frames)


def test_two_processes_that_fork_do_not_share_a_decoder(tmp_path):
    frames = noise((4, 64, 64), np.uint16, 16)
    header = read_header(save_encoded(tmp_path / "a", frames, uid.JPEGLosslessSV1, 16))
    read_frames(header, [0])
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            same = all((read_frames(header, [i % 4])[0] == frames[i % 4]).all() for i in range(12))
            os._exit(0 if same else 1)
        children.append(child)
    assert all((read_frames(header, [i % 4])[0] == frames[i % 4]).all() for i in range(12))
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_the_decoding_process_imports_neither_torch_nor_pydicom():
    code = "import sys, scripts.dicom.decoding; print([m for m in ('torch', 'pydicom') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
