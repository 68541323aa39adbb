"""Timing attributes give one answer: milliseconds since the first frame, NaN where unknown; and say what is odd."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import DataElement, Dataset, config
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from scripts.dicom.times import (
    Clock,
    acquisition_clock,
    comparable,
    frame_times,
    moment,
    series_times,
    temporal_order,
    without_negative_gaps,
)


def header(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():  # unvalidated, as values read from a file are
        vr = dictionary_VR(keyword)
        ds.add(DataElement(Tag(keyword), vr, value, validation_mode=config.IGNORE))
    return ds


def stored(**attributes: str) -> Dataset:
    """As bytes, for values that pydicom reads but does not write."""
    ds = Dataset()
    for keyword, text in attributes.items():
        tag, vr, value = Tag(keyword), dictionary_VR(keyword), text.encode()
        ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return ds


ALL = {
    "FrameTime": "100",
    "FrameTimeVector": [0, 10, 20, 40],
    "CineRate": "20",
    "RecommendedDisplayFrameRate": "25",
    "ActualFrameDuration": "70",
}
EXPECTED = {
    "FrameTime": [0, 100, 200, 300],
    "FrameTimeVector": [0, 10, 30, 70],
    "CineRate": [0, 50, 100, 150],
    "RecommendedDisplayFrameRate": [0, 40, 80, 120],
    "ActualFrameDuration": [0, 70, 140, 210],
}
MEASURED = Clock("FrameReferenceDateTime", [5000.0, 5011.0, 5033.0, 5044.0], [])


# --- one instance with several frames ---


@pytest.mark.parametrize("keyword", EXPECTED)
def test_frame_times_from_one_attribute_are_milliseconds_since_the_first_frame(keyword):
    times, warnings = frame_times(header(**{keyword: ALL[keyword]}), 4)
    np.testing.assert_allclose(times, EXPECTED[keyword])
    assert times.dtype == np.float64
    assert len(warnings) == (keyword == "ActualFrameDuration")


@pytest.mark.parametrize("keyword", EXPECTED)
@pytest.mark.parametrize("measured", [None, MEASURED])
def test_frame_times_follow_the_pointer_where_attributes_disagree(keyword, measured):
    ds = header(**ALL, FrameIncrementPointer=Tag(keyword))
    np.testing.assert_allclose(frame_times(ds, 4, measured)[0], EXPECTED[keyword])


def test_frame_times_follow_the_first_usable_of_several_pointers():
    ds = header(**ALL, FrameIncrementPointer=[Tag("RadialPosition"), Tag("FrameTimeVector")])
    np.testing.assert_allclose(frame_times(ds, 4)[0], EXPECTED["FrameTimeVector"])


@pytest.mark.parametrize("pointer", [None, Tag("RadialPosition"), Tag("FrameReferenceDateTime")])
def test_frame_times_without_a_usable_pointer_come_from_the_attributes_in_their_order(pointer):
    left, compared = dict(ALL), 0
    for keyword in EXPECTED:
        ds = header(**left, **({} if pointer is None else {"FrameIncrementPointer": pointer}))
        np.testing.assert_allclose(frame_times(ds, 4)[0], EXPECTED[keyword])
        np.testing.assert_allclose(frame_times(ds, 4, MEASURED)[0], [0, 11, 33, 44])
        del left[keyword]
        compared += 1
    assert compared == 5


@pytest.mark.parametrize("pointed", ["FrameTime", "CineRate", "RecommendedDisplayFrameRate"])
@pytest.mark.parametrize("value", [0, -5, None])
def test_frame_times_pointing_at_a_value_that_is_no_interval_come_from_the_next_attribute(pointed, value):
    ds = header(FrameIncrementPointer=Tag(pointed), FrameTimeVector=[0, 10, 20, 40], **{pointed: value})
    times, warnings = frame_times(ds, 4)
    np.testing.assert_allclose(times, EXPECTED["FrameTimeVector"])
    assert [pointed in w and f"is {value}" in w for w in warnings] == ([] if value is None else [True])


@pytest.mark.parametrize("vector", [[0, 10, 20], [0, 10, 20, 40, 50], [7]])
def test_frame_times_of_a_vector_of_another_length_come_from_the_next_attribute_with_a_warning(vector):
    ds = header(FrameIncrementPointer=Tag("FrameTimeVector"), FrameTimeVector=vector, CineRate="20")
    times, warnings = frame_times(ds, 4)
    np.testing.assert_allclose(times, EXPECTED["CineRate"])
    assert warnings == [
        f"(0018,1065) FrameTimeVector has {len(vector)} values but (0028,0008) NumberOfFrames is 4: not used"
    ]


def test_frame_times_of_a_vector_with_words_in_it_come_from_the_next_attribute_and_quote_none():
    times, warnings = frame_times(stored(FrameTimeVector="0\\Quarzel\\1\\2", CineRate="20"), 4)
    np.testing.assert_allclose(times, EXPECTED["CineRate"])
    assert len(warnings) == 1 and "FrameTimeVector is another value" in warnings[0] and "Quarzel" not in warnings[0]


@pytest.mark.parametrize(
    ("vector", "times_ms", "warnings"),
    [
        ([0, 0, 5, 0], [0, 0, 5, 5], ["2 zero gaps"]),
        ([0, 10, -20, 40], [0, 10, 10, 30], ["1 negative gaps"]),
        ([0, 10, -20, 0], [0, 10, 10, 10], ["1 zero gaps", "1 negative gaps"]),
        ([33, 33, 33, 33], [0, 33, 66, 99], []),  # the first increment has no frame before it
    ],
)
def test_frame_times_never_decrease_and_their_zero_and_negative_gaps_are_counted(vector, times_ms, warnings):
    times, found = frame_times(header(FrameTimeVector=vector), 4)
    np.testing.assert_allclose(times, times_ms)
    assert found == [f"(0018,1065) FrameTimeVector has {warning}" for warning in warnings]


@pytest.mark.parametrize(
    ("attributes", "warnings"),
    [
        (
            {"FrameTime": "133.333", "CineRate": "7", "RecommendedDisplayFrameRate": "8"},
            [
                ("(0018,1063) FrameTime", "133.333 ms", "(0018,0040) CineRate", "7 frames/s"),
                ("(0018,1063) FrameTime", "133.333 ms", "(0008,2144) RecommendedDisplayFrameRate", "8 frames/s"),
            ],
        ),
        ({"FrameTime": "66.6667", "CineRate": "15", "RecommendedDisplayFrameRate": "15"}, []),
        ({"FrameTime": "17", "CineRate": "60"}, []),  # 2 % off: FrameTime in whole milliseconds
        ({"FrameTime": "33", "FrameTimeVector": [0, 33, 33, 33.5]}, []),
        ({"FrameTime": "33", "ActualFrameDuration": "5"}, []),  # an exposure, not an interval
        (
            {"FrameTimeVector": [0, 10, 20, 30], "CineRate": "10"},
            [("(0018,1065) FrameTimeVector", "20 ms on average", "(0018,0040) CineRate", "10 frames/s")],
        ),
        (
            {"CineRate": "30", "RecommendedDisplayFrameRate": "15"},
            [("(0018,0040) CineRate", "30 frames/s", "(0008,2144) RecommendedDisplayFrameRate", "15 frames/s")],
        ),
    ],
)
def test_frame_times_that_attributes_disagree_about_are_warned_of_with_both_values(attributes, warnings):
    found = frame_times(header(**attributes), 4)[1]
    assert len(found) == len(warnings)
    for text, parts in zip(found, warnings, strict=True):
        positions = [text.index(part) for part in parts]
        assert positions == sorted(positions)


def test_measured_times_are_compared_with_the_stated_rate():
    assert frame_times(header(FrameTime="15"), 4, MEASURED)[1] == []
    (warning,) = frame_times(header(FrameTime="20"), 4, MEASURED)[1]
    assert "FrameReferenceDateTime gives 14.6667 ms" in warning and "FrameTime 20 ms" in warning


def test_measured_times_that_are_missing_for_some_frames_serve_only_where_no_rate_is_stated():
    holes = Clock("FrameReferenceDateTime", [5000.0, None, 5033.0, None], [])
    np.testing.assert_array_equal(frame_times(header(), 4, holes)[0], [0, np.nan, 33, np.nan])
    np.testing.assert_array_equal(frame_times(header(FrameTime="10"), 4, holes)[0], [0, 10, 20, 30])


@pytest.mark.parametrize("moments", [[None, 1.0, 2.0, 3.0], [1.0, None, None, None], [4.0] * 4, [None] * 4])
def test_measured_times_that_tell_nothing_are_unknown(moments):
    np.testing.assert_array_equal(frame_times(header(), 4, Clock("X", moments, []))[0], [0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("num_frames", [1, 2, 50])
def test_frame_times_that_nobody_states_are_nan_after_the_first(num_frames):
    times, warnings = frame_times(header(), num_frames)
    assert times.shape == (num_frames,) and times.dtype == np.float64
    assert times[0] == 0
    assert np.isnan(times[1:]).all() and not warnings


@pytest.mark.parametrize("keyword", EXPECTED)
def test_frame_times_of_one_frame_are_zero_and_nothing_is_odd_about_them(keyword):
    times, warnings = frame_times(header(**ALL), 1)
    np.testing.assert_array_equal(times, [0.0])
    assert warnings == []


@pytest.mark.parametrize(
    ("keyword", "value"), [("FrameTime", "1e308"), ("FrameTime", "1e-320"), ("FrameTime", "Quarzel")]
)
def test_frame_times_of_no_possible_interval_are_unknown(keyword, value):
    times, warnings = frame_times(stored(**{keyword: value}), 4)
    assert times[0] == 0 and np.isnan(times[1:]).all()
    assert len(warnings) == 1 and keyword in warnings[0] and "Quarzel" not in warnings[0]


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_times_without_negative_gaps_never_decrease_and_keep_what_is_unknown(values):
    times = np.array(values)
    fixed, _ = without_negative_gaps("clock", times)
    known = fixed[~np.isnan(fixed)]
    assert (np.diff(known) >= 0).all()
    np.testing.assert_array_equal(np.isnan(fixed), np.isnan(times))
    if (np.diff(times[~np.isnan(times)]) >= 0).all():
        np.testing.assert_array_equal(fixed, times)


# --- clocks ---


def acquired(*headers: Dataset) -> list[float | None]:
    """The moments of files read together, in ms."""
    return acquisition_clock(headers).moments_ms


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("20200101100008", 0),
        ("20200101100008.5", 500),
        ("20200101100008.500000", 500),
        ("20200101100008.", 0),
        ("20200101100008.000250", 0.25),
        (" 20200101100008.25 ", 250),
        ("20200101100109", 61_000),
        ("20200102100008", 86_400_000),
        ("20200101100060", 52_000),  # a leap second
        ("202001011001", 52_000),
        ("2020010111", 3_592_000),
        ("20200101100008.25+0100", 250 - 3_600_000),
        ("20200101100008-0530", 5.5 * 3_600_000),
        ("20200101100008.7000000", 7000),  # seven digits: microseconds, as octconverter writes them
    ],
)
def test_acquisition_clock_reads_date_times_as_exporters_write_them(text, milliseconds):
    zone = "+0000" if re.search(r"[+-]\d{4}$", text) else ""  # zones count where every file tells its own
    start, moment_ms = acquired(header(AcquisitionDateTime=f"20200101100008{zone}"), header(AcquisitionDateTime=text))
    assert moment_ms - start == pytest.approx(milliseconds, abs=1e-3)


@pytest.mark.parametrize(
    "text",
    [
        *("2020", "20200101", "20200101240000", "20200101106000", "20200101100061", "20201301100000", "20200230100000"),
        *(
            "Quarzel^Ottilde",
            "",
            "20200101100008.123456789012",
            "20200101100008+01",
            "2020-01-01 10:00:08",
            "٢٠٢٠٠١٠١١٠",
        ),
    ],
)
def test_moment_of_a_text_that_tells_no_time_is_none(text):
    assert moment(text) is None


def test_acquisition_clock_is_the_same_from_a_date_time_and_from_date_and_time():
    wanted = acquired(header(AcquisitionDateTime="20200101100008.5"))
    assert wanted == acquired(header(AcquisitionDate="20200101", AcquisitionTime="100008.5"))
    assert wanted == acquired(header(ContentDate="20200101", ContentTime="100008.5"))
    assert wanted == acquired(header(ContentDate="2020.01.01", ContentTime="10:00:08.5"))  # ACR-NEMA


def test_acquisition_clock_with_a_zone_of_the_file_is_that_of_the_offset():
    wanted = acquired(header(AcquisitionDateTime="20200101100008.5-0400"))
    stated = header(AcquisitionDate="20200101", AcquisitionTime="100008.5", TimezoneOffsetFromUTC="-0400")
    assert acquired(stated) == wanted
    own = header(AcquisitionDateTime="20200101100008.5-0400", TimezoneOffsetFromUTC="+0900")
    assert acquired(own) == wanted


def test_acquisition_clock_prefers_acquisition_to_content_and_a_time_to_a_date():
    wanted = acquired(header(AcquisitionDateTime="20200101100008"))
    clocks = {"AcquisitionDate": "20200101", "AcquisitionTime": "100008", "ContentDate": "20200101"}
    assert acquired(header(**clocks, ContentTime="170000")) == wanted
    assert acquired(header(**clocks, AcquisitionDateTime="20200101")) == wanted


def test_acquisition_clock_without_a_date_still_gives_the_differences():
    early, late = header(AcquisitionTime="100008.000"), header(AcquisitionTime="100010.250")
    first, second = acquired(early, late)
    assert second - first == 2250


@pytest.mark.parametrize(
    "attributes", [{}, {"AcquisitionDate": "20200101"}, {"AcquisitionTime": ""}, {"AcquisitionDateTime": ""}]
)
def test_acquisition_clock_without_a_time_is_none(attributes):
    assert acquired(header(**attributes)) == [None]


def differences(clock: Clock) -> list[float | None]:
    return [None if m is None else round(m - clock.moments_ms[0], 3) for m in clock.moments_ms]


@pytest.mark.parametrize(
    ("each", "keyword", "gaps_ms", "warned"),
    [
        ([{"AcquisitionDateTime": f"2020010110000{i}"} for i in (0, 2)], "AcquisitionDateTime", [0, 2000], ""),
        (  # over midnight, with dates
            [
                {"AcquisitionDate": "20191231", "AcquisitionTime": "235959.5"},
                {"AcquisitionDate": "20200101", "AcquisitionTime": "000001"},
            ],
            "AcquisitionTime",
            [0, 1500],
            "",
        ),
        (  # over midnight, without
            [{"AcquisitionTime": "235959.5"}, {"AcquisitionTime": "000001"}],
            "AcquisitionTime",
            [0, 1500],
            "passing midnight",
        ),
        (  # a clock set back in the run, both zones told
            [{"AcquisitionDateTime": "20201025025959+0200"}, {"AcquisitionDateTime": "20201025020001+0100"}],
            "AcquisitionDateTime",
            [0, 2000],
            "",
        ),
        (  # one zone told: local times are compared
            [{"AcquisitionDateTime": "20201025025959+0200"}, {"AcquisitionDateTime": "20201025030001"}],
            "AcquisitionDateTime",
            [0, 2000],
            "time zone 1 of 2",
        ),
        (  # one attribute for all, the one that all have
            [{"AcquisitionDateTime": "20200101100000", "AcquisitionTime": "100000"}, {"AcquisitionTime": "100003"}],
            "AcquisitionTime",
            [0, 3000],
            "",
        ),
        (  # the exam's start in each file, the frame's time beside it
            [{"AcquisitionDateTime": "20200101100000", "AcquisitionTime": f"10000{i}"} for i in (1, 4)],
            "AcquisitionTime",
            [0, 3000],
            "",
        ),
        (  # a content time is when the object was written
            [{"AcquisitionTime": "100000", "ContentTime": f"12000{i}"} for i in (1, 4)],
            "AcquisitionTime",
            [0, 0],
            "",
        ),
        ([{"ContentTime": "120001"}, {"ContentTime": "120004"}], "ContentTime", [0, 3000], ""),
        ([{"AcquisitionTime": "100000"}, {}], "AcquisitionTime", [0, None], ""),
        (  # all of seven digits: a fraction
            [{"AcquisitionTime": "100000.1000000"}, {"AcquisitionTime": "100000.3500000"}],
            "AcquisitionTime",
            [0, 250],
            "",
        ),
        (  # of several lengths: microseconds counted past the second
            [{"AcquisitionTime": "100000.900000"}, {"AcquisitionTime": "100000.1033333"}],
            "AcquisitionTime",
            [0, 133.333],
            "",
        ),
    ],
)
def test_acquisition_clock_reads_all_files_alike(each, keyword, gaps_ms, warned):
    clock = acquisition_clock([header(**attributes) for attributes in each])
    assert clock.keyword == keyword
    assert differences(clock) == gaps_ms
    assert [warned in w for w in clock.warnings] == ([True] if warned else [])


def test_acquisition_clock_of_files_without_any_time_is_unknown():
    assert acquisition_clock([header(), header(AcquisitionDate="20200101")]).moments_ms == [None, None]


def test_comparable_moments_of_nobody_are_unknown():
    assert comparable("AcquisitionTime", [None, None]) == Clock("AcquisitionTime", [None, None], [])


# --- single-frame files ---


@pytest.mark.parametrize(
    ("moments", "stated", "times_ms", "warned"),
    [
        ([7.0, 7.0, 9.0], {}, [0, 0, 2], ["AcquisitionTime has 1 zero gaps"]),
        ([7.0, 5.0, 9.0], {}, [0, 0, 2], ["AcquisitionTime has 1 negative gaps"]),
        ([0.0, 100.0, 210.0], {"FrameTime": "104"}, [0, 100, 210], []),
        ([0.0, 100.0, 210.0], {"FrameTime": "133"}, [0, 100, 210], ["105 ms on average but (0018,1063) FrameTime 133"]),
        ([0.0, 100.0, 210.0], {"FrameTime": "105", "FrameIncrementPointer": Tag("FrameTime")}, [0, 100, 210], []),
        ([7.0, 7.0, 7.0], {"FrameTime": "40"}, [0, 40, 80], []),
        ([7.0, 7.0, 7.0], {}, [0, np.nan, np.nan], []),
        ([7.0, None, 9.0], {"CineRate": "25"}, [0, 40, 80], ["CineRate gives 25 frames/s but"]),
        ([7.0, None, 9.0], {}, [0, np.nan, 2], []),
        ([None, None, None], {}, [0, np.nan, np.nan], []),
        ([0.0, 5.0, 9.0], {"FrameTimeVector": [0]}, [0, 5, 9], []),  # of one file, not of the sequence
    ],
)
def test_series_times_are_those_of_the_clock_else_of_a_stated_rate(moments, stated, times_ms, warned):
    times, warnings = series_times(header(**stated), 3, Clock("AcquisitionTime", moments, []))
    np.testing.assert_allclose(times, times_ms)
    assert len(warnings) == len(warned)
    assert all(part in warning for part, warning in zip(warned, warnings, strict=True))


@pytest.mark.parametrize(
    ("acquired", "numbers", "order"),
    [
        ([3.0, 1.0, 2.0], [1, 2, 3], [1, 2, 0]),  # time before number
        ([3.0, 1.0, 2.0], [1, 1, 1], [1, 2, 0]),
        ([3.0, 1.0, 2.0], [None, None, None], [1, 2, 0]),
        ([5.0, 5.0, 4.0], [2, 1, 3], [2, 1, 0]),  # a tie, by number
        ([5.0, 5.0, 6.0], [1, 1, 2], [0, 1, 2]),  # a tie, as they came
        ([6.0, 5.0, 5.0], [None, None, None], [1, 2, 0]),
        ([5.0, 5.0, 5.0], [3, 1, 2], [1, 2, 0]),
        ([None, 1.0, 2.0], [3, 1, 2], [1, 2, 0]),
        ([None, None], [20, 3], [1, 0]),
        ([None], [None], [0]),
        ([5.0, 5.0], [1, 1], None),
        ([None, 1.0], [1, None], None),
        ([None, None], [None, None], None),
    ],
)
def test_temporal_order_is_by_time_then_number_then_as_given_or_unknown(acquired, numbers, order):
    assert temporal_order(acquired, numbers) == order


def test_temporal_order_orders_whatever_the_files_are_called():
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(50)
    order = temporal_order([float(v) for v in shuffled], [None] * 50)
    assert [int(shuffled[i]) for i in order] == list(range(50))
