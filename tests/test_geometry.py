"""Shutters, borders and panels against truth that is worked out apart from the code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.dicom.header import SequenceHeader, Shutter
from scripts.errors import SequenceError
from scripts.sequences.geometry import check_geometry, find_border, show_region, shutter_region, split_panel
from tests.conftest import assert_message


def header_of(shape: tuple[int, ...], **known) -> SequenceHeader:
    times = np.arange(shape[0]) * 66.0
    return SequenceHeader("dicom", (Path("run.dcm"),), shape[0], shape[1], shape[2], times, **known)


def test_shutter_region_without_shutters_is_none():
    assert shutter_region(header_of((1, 4, 4))) is None
