"""Timing attributes give one answer: milliseconds since the first frame, NaN where nobody knows."""

import math

import numpy as np
import pytest
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

from scripts.dicom.times import acquisition_ms, frame_times, temporal_order


def header(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():  # unvalidated, as values read from a file are
        vr = dictionary_VR(keyword)
        ds.add(DataElement(Tag(keyword), vr, value, validation_mode=config.IGNORE))
    return ds


ALL = {
    "FrameTime": "100",
    "FrameTimeVector": [0, 10, 20, 40],
    "CineRate": "20",
    "RecommendedDisplayFrameRate": "25",
}
EXPECTED = {
    "FrameTime": [0, 100, 200, 300],
    "FrameTimeVector": [0, 10, 30, 70],
    "CineRate": [0, 50, 100, 150],
    "RecommendedDisplayFrameRate": [0, 40, 80, 120],
}


@pytest.mark.parametrize("keyword", EXPECTED)
def test_frame_times_from_one_attribute_are_milliseconds_since_the_first_frame(keyword):
    np.testing.assert_allclose(frame_times(header(**{keyword: ALL[keyword]}), 4), EXPECTED[keyword])


@pytest.mark.parametrize("keyword", EXPECTED)
def test_frame_times_follow_the_pointer_where_attributes_disagree(keyword):
    ds = header(**ALL, FrameIncrementPointer=Tag(keyword))
    np.testing.assert_allclose(frame_times(ds, 4), EXPECTED[keyword])


def test_frame_times_follow_the_first_usable_of_several_pointers():
    ds = header(**ALL, FrameIncrementPointer=[Tag("RadialPosition"), Tag("FrameTimeVector")])
    np.testing.assert_allclose(frame_times(ds, 4), EXPECTED["FrameTimeVector"])


@pytest.mark.parametrize("pointer", [None, Tag("RadialPosition")])
def test_frame_times_without_a_usable_pointer_come_from_the_attributes_in_their_order(pointer):
    left, compared = dict(ALL), 0
    for keyword in EXPECTED:
        ds = header(**left, **({} if pointer is None else {"FrameIncrementPointer": pointer}))
        np.testing.assert_allclose(frame_times(ds, 4), EXPECTED[keyword])
        del left[keyword]
        compared += 1
    assert compared == 4


@pytest.mark.parametrize("pointed", ["FrameTime", "CineRate", "RecommendedDisplayFrameRate"])
@pytest.mark.parametrize("value", [0, -5, None])
def test_frame_times_pointing_at_a_value_that_is_no_interval_come_from_the_next_attribute(pointed, value):
    ds = header(FrameIncrementPointer=Tag(pointed), FrameTimeVector=[0, 10, 20, 40], **{pointed: value})
    np.testing.assert_allclose(frame_times(ds, 4), EXPECTED["FrameTimeVector"])


@pytest.mark.parametrize("vector", [[0, 10, 20], [0, 10, 20, 40, 50], [0, 10, -20, 40]])
def test_frame_times_of_a_vector_that_cannot_be_right_come_from_the_next_attribute(vector):
    ds = header(FrameIncrementPointer=Tag("FrameTimeVector"), FrameTimeVector=vector, CineRate="20")
    np.testing.assert_allclose(frame_times(ds, 4), EXPECTED["CineRate"])


def test_frame_times_of_a_vector_with_equal_moments_are_kept():
    np.testing.assert_allclose(frame_times(header(FrameTimeVector=[0, 0, 5, 0]), 4), [0, 0, 5, 5])


def test_frame_times_of_a_vector_whose_first_increment_is_not_zero_still_start_at_zero():
    np.testing.assert_allclose(frame_times(header(FrameTimeVector=[33, 33, 33]), 3), [0, 33, 66])


@pytest.mark.parametrize("num_frames", [1, 2, 50])
def test_frame_times_that_nobody_states_are_nan_after_the_first(num_frames):
    times = frame_times(header(), num_frames)
    assert times.shape == (num_frames,) and times.dtype == np.float64
    assert times[0] == 0
    assert np.isnan(times[1:]).all()


@pytest.mark.parametrize("keyword", EXPECTED)
def test_frame_times_of_one_frame_are_zero(keyword):
    value = [0] if keyword == "FrameTimeVector" else ALL[keyword]
    np.testing.assert_array_equal(frame_times(header(**{keyword: value}), 1), [0.0])


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("20200101100008", 0),
        ("20200101100008.5", 500),
        ("20200101100008.500000", 500),
        ("20200101100008.000250", 0.25),
        ("20200101100008.25+0100", 250),
        ("20200101100008-0500", 0),
        ("20200101100109", 61_000),
        ("20200102100008", 86_400_000),
        ("20200101100008.7000000", 7000),  # seven digits: microseconds, as octconverter writes them
    ],
)
def test_acquisition_ms_reads_date_times_as_exporters_write_them(text, milliseconds):
    start = acquisition_ms(header(AcquisitionDateTime="20200101100008"))
    assert acquisition_ms(header(AcquisitionDateTime=text)) - start == pytest.approx(milliseconds, abs=1e-3)


def test_acquisition_ms_is_the_same_from_a_date_time_and_from_date_and_time():
    wanted = acquisition_ms(header(AcquisitionDateTime="20200101100008.5"))
    assert wanted == acquisition_ms(header(AcquisitionDate="20200101", AcquisitionTime="100008.5"))
    assert wanted == acquisition_ms(header(ContentDate="20200101", ContentTime="100008.5"))


def test_acquisition_ms_prefers_acquisition_to_content():
    both = header(AcquisitionDate="20200101", AcquisitionTime="100008", ContentDate="20200101", ContentTime="170000")
    assert acquisition_ms(both) == acquisition_ms(header(AcquisitionDateTime="20200101100008"))


def test_acquisition_ms_without_a_date_still_gives_the_differences():
    early, late = header(AcquisitionTime="100008.000"), header(AcquisitionTime="100010.250")
    assert acquisition_ms(late) - acquisition_ms(early) == 2250


@pytest.mark.parametrize(
    "attributes", [{}, {"AcquisitionDate": "20200101"}, {"AcquisitionTime": ""}, {"AcquisitionDateTime": ""}]
)
def test_acquisition_ms_without_a_time_is_none(attributes):
    assert acquisition_ms(header(**attributes)) is None


@pytest.mark.parametrize(
    ("acquired", "numbers", "order"),
    [
        ([3.0, 1.0, 2.0], [1, 2, 3], [1, 2, 0]),  # time before number
        ([3.0, 1.0, 2.0], [1, 1, 1], [1, 2, 0]),
        ([3.0, 1.0, 2.0], [None, None, None], [1, 2, 0]),
        ([5.0, 5.0, 4.0], [2, 1, 3], [2, 1, 0]),  # a tie, by number
        ([5.0, 5.0, 5.0], [3, 1, 2], [1, 2, 0]),
        ([None, 1.0, 2.0], [3, 1, 2], [1, 2, 0]),
        ([None, None], [20, 3], [1, 0]),
        ([None], [None], [0]),
        ([5.0, 5.0], [1, 1], None),
        ([5.0, 5.0, 6.0], [1, 1, 2], None),
        ([None, 1.0], [1, None], None),
        ([None, None], [None, None], None),
    ],
)
def test_temporal_order_is_by_time_then_number_or_unknown(acquired, numbers, order):
    assert temporal_order(acquired, numbers) == order


def test_temporal_order_orders_whatever_the_files_are_called():
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(50)
    order = temporal_order([float(v) for v in shuffled], [None] * 50)
    assert [int(shuffled[i]) for i in order] == list(range(50))
    assert not any(math.isnan(v) for v in order)


@pytest.mark.parametrize(("keyword", "value"), [("FrameTime", "1e308"), ("CineRate", 1e-320)])
def test_frame_times_of_an_interval_too_large_to_count_are_unknown(keyword, value):
    ds = {keyword: value}  # `get` is all that frame_times asks of a header
    times = frame_times(ds, 4)
    assert times[0] == 0 and np.isnan(times[1:]).all()
