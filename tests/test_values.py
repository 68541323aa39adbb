"""Header values are numbers, codes or nothing: no value raises, and no text is shown."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.valuerep import DSfloat

from scripts.dicom.values import field_name, first, integers, items, number, numbers, shown, value_of


def raw(keyword: str, vr: str, value: bytes) -> Dataset:
    ds = Dataset()
    ds[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True)
    return ds


def test_field_name_is_tag_and_keyword():
    assert field_name("FrameTime") == "(0018,1063) FrameTime"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *((3, 3.0), ("2.5", 2.5), (DSfloat("40"), 40.0), (None, None), ("", None), ("nan", None), ("-inf", None)),
        *((10**400, None), ([1], None), ("Quarzel", None), (b"7", 7.0)),
    ],
)
def test_number_is_finite_or_none(value, found):
    assert number(value) == found


def test_values_are_read_alone_or_in_a_row():
    assert (numbers(None), numbers("4"), numbers(MultiValue(float, ["1", "2"]))) == ([], [4.0], [1.0, 2.0])
    assert (integers(["1", "2"]), integers("1.5"), integers(["1", "x"]), integers(None)) == ([1, 2], None, None, [])
    assert (first([7, 8]), first("XA"), first(None)) == (7, "XA", None)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "absent"),
        ("YES", "YES"),
        ("Quarzel^Ottilde", "another value"),
        (DSfloat("133.333"), "133.333"),
        ([1, 9], "1, 9"),
        (["1", "Quarzel"], "another value"),
        (["YES", "NO"], "another value"),
        (list(range(9)), "another value"),
        ("19410203", "1.94102e+07"),  # a date is not recognised in it
    ],
)
def test_shown_quotes_numbers_and_known_codes_only(value, text):
    assert shown(value, ("YES", "NO")) == text


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [("Rows", "US", b"abc"), ("MaskSubPixelShift", "FL", b"abcde"), ("VOILUTSequence", "SQ", b"abcdefgh")],
)
def test_value_of_a_form_its_type_does_not_have_is_no_number_and_no_code(keyword, vr, value):
    found = value_of(raw(keyword, vr, value), keyword)
    assert number(found) is None and shown(found) == "another value"


@given(
    st.sampled_from(["DS", "IS", "US", "SS", "FL", "FD", "AT", "CS", "DT", "TM", "DA", "UI"]), st.binary(max_size=24)
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_values_of_any_bytes_never_raise(vr, value):
    found = value_of(raw("FrameTime", vr, value), "FrameTime")
    assert "\n" not in shown(found)
    assert all(isinstance(v, float) or v is None for v in numbers(found))
    integers(found)


@pytest.mark.parametrize("vr", ["DS", "US", "AT", "CS"])
def test_value_of_a_million_bytes_is_not_converted(vr):
    ds = raw("FrameIncrementPointer", vr, b"1\\" * 2**19)
    begin = time.perf_counter()
    assert shown(value_of(ds, "FrameIncrementPointer")) == "another value"
    assert time.perf_counter() - begin < 0.05
    assert isinstance(ds.get_item("FrameIncrementPointer"), RawDataElement)


def test_items_of_what_is_no_sequence_are_none():
    assert items(raw("FrameTime", "DS", b"1\\2 "), "FrameTime") == []
    assert items(Dataset(), "VOILUTSequence") == []
    ds = Dataset()
    ds.VOILUTSequence = Sequence([Dataset(), Dataset()])
    assert len(items(ds, "VOILUTSequence")) == 2
