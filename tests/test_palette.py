"""PALETTE COLOR becomes the RGB of its tables, in all their bits; a table that is not sound is refused."""

from typing import Any

import numpy as np
import pytest
from pydicom import uid

from scripts.dicom.part10 import open_part10
from scripts.dicom.pixels import read_layout, stored_bits
from scripts.dicom.sequence import read_frames, read_header
from scripts.errors import SequenceError
from tests.conftest import assert_message
from tests.encodings import noise, save_encoded

TABLE = np.random.default_rng(3).integers(0, 65536, (3, 256)).astype(np.uint16)
COLOURS = ("Red", "Green", "Blue")


def palette(tables: np.ndarray, first: int = 0, bits: int = 16, words: bool = True) -> dict[str, Any]:
    """Attributes of three tables (3, entries)."""
    found: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, table in zip(COLOURS, tables, strict=True):
        data = table.astype("<u2" if words else "u1").tobytes()
        found[f"{colour}PaletteColorLookupTableDescriptor"] = [table.size % 65536, first, bits]
        found[f"{colour}PaletteColorLookupTableData"] = data + b"\0" * (len(data) % 2)
    return found


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.RLELossless, uid.JPEG2000Lossless]
)
def test_palette_color_becomes_rgb_of_all_16_bits(tmp_path, syntax):
    frames = noise((2, 35, 33), np.uint8, 8)
    path = save_encoded(tmp_path / "a", frames, syntax, 8, **palette(TABLE))
    with open_part10(path) as file:
        assert stored_bits(path, file, read_layout(path, file)) == 16
    stored = read_frames(read_header(path), [0, 1])
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, np.moveaxis(TABLE[:, frames], 0, -1))


@pytest.mark.parametrize("words", [False, True], ids=["in bytes", "in words"])
@pytest.mark.parametrize("entries", [256, 7])
def test_palette_of_8_bits_is_read_in_bytes_and_in_words(tmp_path, entries, words):
    table = (TABLE[:, :entries] >> 8).astype(np.uint8)
    frames = noise((1, 9, 8), np.uint8, 8)
    path = save_encoded(tmp_path / "a", frames, uid.ExplicitVRLittleEndian, 8, **palette(table, bits=8, words=words))
    with open_part10(path) as file:
        assert stored_bits(path, file, read_layout(path, file)) == 8
    stored = read_frames(read_header(path), [0])
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, np.moveaxis(table[:, frames.clip(0, entries - 1)], 0, -1))


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("first", [0, 100, -100])
def test_values_outside_a_palette_take_its_first_or_last_entry(tmp_path, first, dtype):
    frames = noise((1, 9, 8), dtype, 12)
    signed = dtype is np.int16
    if first < 0 and not signed:
        first += 2000
    described = palette(TABLE, first)
    path = save_encoded(tmp_path / "a", frames, uid.ExplicitVRLittleEndian, 12, **described)
    index = (frames.astype(int) - first).clip(0, 255)
    np.testing.assert_array_equal(read_frames(read_header(path), [0]), np.moveaxis(TABLE[:, index], 0, -1))


def test_a_palette_of_65536_entries_states_zero(tmp_path):
    table = np.random.default_rng(0).integers(0, 65536, (3, 65536)).astype(np.uint16)
    frames = noise((1, 9, 8), np.uint16, 16)
    path = save_encoded(tmp_path / "a", frames, uid.ImplicitVRLittleEndian, 16, **palette(table))
    np.testing.assert_array_equal(read_frames(read_header(path), [0]), np.moveaxis(table[:, frames], 0, -1))


def test_a_segmented_palette_is_expanded(tmp_path):
    discrete, linear = [0, 4, 10, 20, 40, 30], [1, 6, 90]
    segments = [*discrete, *linear, 2, 2, 0, 0, *discrete]  # the third one repeats the first two
    table = [10, 20, 40, 30, 40, 50, 60, 70, 80, 90]
    table = table * 2 + [10, 20, 40, 30]
    described = palette(np.array([table] * 3))
    for colour in COLOURS:
        del described[f"{colour}PaletteColorLookupTableData"]
        described[f"Segmented{colour}PaletteColorLookupTableData"] = np.array(segments, "<u2").tobytes()
    frames = noise((1, 9, 8), np.uint8, 5)
    path = save_encoded(tmp_path / "a", frames, uid.ExplicitVRLittleEndian, 8, **described)
    stored = read_frames(read_header(path), [0])
    np.testing.assert_array_equal(stored[..., 1], np.array(table)[frames.clip(0, len(table) - 1)])


BAD_PALETTES: dict[str, tuple[dict[str, Any], str]] = {
    "no descriptor": ({"GreenPaletteColorLookupTableDescriptor": None}, "(0028,1102) Green"),
    "no table": ({"BluePaletteColorLookupTableData": None}, "(0028,1223) Blue"),
    "short table": ({"RedPaletteColorLookupTableData": bytes(510)}, "(0028,1201) Red"),
    "long table": ({"RedPaletteColorLookupTableData": bytes(1024)}, "(0028,1201) Red"),
    "other entries": ({"GreenPaletteColorLookupTableDescriptor": [255, 0, 16]}, "(0028,1102) Green"),
    "other bits": (
        {f"{colour}PaletteColorLookupTableDescriptor": [256, 0, 12] for colour in COLOURS},
        "(0028,1101) Red",
    ),
    "two numbers": ({f"{colour}PaletteColorLookupTableDescriptor": [256, 0] for colour in COLOURS}, "(0028,1101) Red"),
    "too much": ({"RedPaletteColorLookupTableData": bytes(400_000)}, "(0028,1201)"),
}


@pytest.mark.parametrize(
    "segments",
    [
        [2, 9, 0, 0],
        [1, 4, 7],
        [0, 300],
        [9, 9, 9],
        [0, 1, 5, 1, 65535, 9],
        [2, 1, 0, 0],
        [],
        [1, 0, 3],
        [0, 1, 5, 1, 0, 3],
    ],
)
def test_a_bad_segmented_palette_is_refused(tmp_path, segments):
    described = palette(TABLE) | {"RedPaletteColorLookupTableData": None}
    described["SegmentedRedPaletteColorLookupTableData"] = np.array(segments, "<u2").tobytes()
    frames = noise((1, 9, 8), np.uint8, 8)
    path = save_encoded(tmp_path / "a", frames, uid.ExplicitVRLittleEndian, 8, **described)
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, "(0028,1221) Red Palette Color Lookup Table", "256 entries of 16 bits")


@pytest.mark.parametrize("fault", BAD_PALETTES)
def test_a_bad_palette_is_refused(tmp_path, fault):
    changes, field = BAD_PALETTES[fault]
    frames = noise((1, 9, 8), np.uint8, 8)
    path = save_encoded(tmp_path / "a", frames, uid.ExplicitVRLittleEndian, 8, **(palette(TABLE) | changes))
    with pytest.raises(SequenceError) as error:
        read_header(path)
    assert_message(error.value, path, field)
