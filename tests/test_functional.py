"""Functional groups of enhanced objects give the same header as a plain object that says the same."""

import time

import numpy as np
import pytest
from pydicom import Dataset, Sequence, dcmread, uid

from scripts.dicom.functional import lift_groups
from scripts.dicom.header import Shutter, Voi
from scripts.dicom.sequence import HEADER_TAGS, read_header
from scripts.errors import SequenceError
from tests.conftest import PERSON, assert_message, assert_no_person, ramp

DATE_TIMES = ["20200101100008.0", "20200101100008.1", "20200101100008.35", "20200101100009.0"]
TIMES_MS = [0, 100, 350, 1000]


def dataset(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def group(keyword: str, **attributes: object) -> Dataset:
    """A functional group item that holds one macro."""
    return dataset(**{keyword: Sequence([dataset(**attributes)])})


def contents(keyword: str, values: list) -> Sequence:
    return Sequence([group("FrameContentSequence", **({} if v is None else {keyword: v})) for v in values])


@pytest.mark.parametrize(
    ("keyword", "values", "times_ms"),
    [
        ("FrameReferenceDateTime", DATE_TIMES, TIMES_MS),
        ("FrameAcquisitionDateTime", DATE_TIMES, TIMES_MS),
        ("FrameAcquisitionDateTime", ["20191231235959.9", "20200101000000.1"], [0, 200]),
        ("FrameReferenceDateTime", ["20201025025959+0200", "20201025020001+0100"], [0, 2000]),
        ("FrameReferenceDateTime", ["20200101100008", None, "20200101100010"], [0, np.nan, 2000]),
        ("FrameReferenceDateTime", [None, "20200101100008", "20200101100010"], [0, np.nan, np.nan]),
        ("TemporalPositionTimeOffset", [3.0, 3.5, 5.25], [0, 500, 2250]),  # seconds
    ],
)
def test_frames_of_an_enhanced_object_have_the_times_of_their_content(save, keyword, values, times_ms):
    path = save(
        frames=ramp(len(values)),
        SOPClassUID=uid.EnhancedXAImageStorage,
        PerFrameFunctionalGroupsSequence=contents(keyword, values),
    )
    header = read_header(path)
    np.testing.assert_allclose(header.frame_times_ms, times_ms, atol=1e-3)
    assert header.warnings == ()


def test_reference_time_is_preferred_to_the_start_of_acquisition_and_both_to_an_offset(save):
    frames = [
        group(
            "FrameContentSequence", FrameReferenceDateTime=d, FrameAcquisitionDateTime=a, TemporalPositionTimeOffset=o
        )
        for d, a, o in zip(DATE_TIMES, ["20200101100008", *DATE_TIMES[:3]], [0.0, 7, 8, 9], strict=True)
    ]
    read = []
    for keyword in ("", "FrameReferenceDateTime", "FrameAcquisitionDateTime"):
        for frame in frames if keyword else []:
            del frame.FrameContentSequence[0][keyword]
        read.append(read_header(save(PerFrameFunctionalGroupsSequence=Sequence(frames))).frame_times_ms)
    np.testing.assert_allclose(read, [TIMES_MS, [0, 0, 100, 350], [0, 7000, 8000, 9000]], atol=1e-3)


def test_frames_have_the_times_of_their_temporal_positions(save):
    frames = [
        group("TemporalPositionSequence", TemporalPositionTimeOffset=seconds) for seconds in (1.0, 1.25, 4.0, 4.5)
    ]
    header = read_header(save(PerFrameFunctionalGroupsSequence=Sequence(frames)))
    np.testing.assert_allclose(header.frame_times_ms, [0, 250, 3000, 3500])


def test_times_that_run_back_or_stand_still_are_held_and_counted(save):
    values = [DATE_TIMES[0], DATE_TIMES[2], DATE_TIMES[1], DATE_TIMES[1]]
    header = read_header(save(PerFrameFunctionalGroupsSequence=contents("FrameReferenceDateTime", values)))
    np.testing.assert_allclose(header.frame_times_ms, [0, 350, 350, 350], atol=1e-3)
    field = "(0018,9151) FrameReferenceDateTime"
    assert header.warnings == (f"{field} has 1 zero gaps", f"{field} has 1 negative gaps")


def test_frame_time_pointed_at_is_followed_and_its_disagreement_with_measured_times_is_warned_of(save):
    header = read_header(
        save(
            FrameTime="100",
            FrameIncrementPointer=0x00181063,
            PerFrameFunctionalGroupsSequence=contents("FrameReferenceDateTime", DATE_TIMES),
        )
    )
    np.testing.assert_allclose(header.frame_times_ms, [0, 100, 200, 300])
    (warning,) = header.warnings
    assert "FrameTime gives 100 ms" in warning and "FrameReferenceDateTime 333.333 ms" in warning


MACROS = {
    "FrameVOILUTSequence": {"WindowCenter": "100", "WindowWidth": "50", "VOILUTFunction": "LINEAR_EXACT"},
    "FrameDisplayShutterSequence": {
        "ShutterShape": "CIRCULAR",
        "CenterOfCircularShutter": [6, 5],
        "RadiusOfCircularShutter": 4,
    },
    "CollimatorShapeSequence": {
        "CollimatorShape": "RECTANGULAR",
        "CollimatorUpperHorizontalEdge": 3,
        "CollimatorLowerHorizontalEdge": 10,
        "CollimatorLeftVerticalEdge": 2,
        "CollimatorRightVerticalEdge": 8,
    },
    "PositionerPositionSequence": {"PositionerPrimaryAngle": "-30.5", "PositionerSecondaryAngle": "12"},
    "FrameAnatomySequence": {"FrameLaterality": "R"},
}


def all_macros() -> Dataset:
    return dataset(**{keyword: Sequence([dataset(**values)]) for keyword, values in MACROS.items()})


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("shared", [True, False])
def test_values_of_shared_and_per_frame_groups_are_those_of_the_header(save, syntax, shared):
    frames = [Dataset() if shared else all_macros() for _ in range(4)]
    header = read_header(
        save(
            syntax=syntax,
            SOPClassUID=uid.EnhancedXAImageStorage,
            SharedFunctionalGroupsSequence=Sequence([all_macros() if shared else Dataset()]),
            PerFrameFunctionalGroupsSequence=Sequence(frames),
        )
    )
    assert header.voi == Voi(100, 50, "LINEAR_EXACT")
    assert header.shutters == (Shutter(circle=(5, 4, 4)), Shutter(rectangle=(2, 9, 1, 7)))
    facts = {"PositionerPrimaryAngle": -30.5, "PositionerSecondaryAngle": 12.0, "ImageLaterality": "R"}
    assert header.facts.items() >= facts.items()
    assert header.warnings == ()


def test_values_of_the_header_itself_are_kept_before_those_of_groups(save):
    header = read_header(
        save(WindowCenter="7", WindowWidth="9", SharedFunctionalGroupsSequence=Sequence([all_macros()]))
    )
    assert (header.voi.center, header.voi.width) == (7, 9)


@pytest.mark.parametrize("keyword", list(MACROS)[:3])
def test_groups_that_differ_between_frames_are_warned_of_and_the_first_is_used(save, keyword):
    frames = [all_macros() for _ in range(4)]
    inner = frames[2][keyword].value[0]
    inner[list(MACROS[keyword])[-1]].value = "SIGMOID" if keyword == "FrameVOILUTSequence" else 1
    header = read_header(save(PerFrameFunctionalGroupsSequence=Sequence(frames)))
    assert header.voi == Voi(100, 50, "LINEAR_EXACT")
    assert [keyword in w and "differs between frames" in w for w in header.warnings] == [True]


def test_a_relationship_table_is_for_analysis_and_changes_nothing(save):
    table = group("PixelIntensityRelationshipLUTSequence", LUTDescriptor=[2, 0, 16], LUTFunction="TO_LINEAR")
    header = read_header(save(SharedFunctionalGroupsSequence=Sequence([table])))
    assert header.voi is None and header.warnings == ()


@pytest.mark.parametrize("groups", [0, 1, 3, 5])
def test_per_frame_groups_of_another_number_than_the_frames_are_refused(save, groups):
    path = save(PerFrameFunctionalGroupsSequence=Sequence([Dataset() for _ in range(groups)]))
    with pytest.raises(SequenceError) as refused:
        read_header(path)
    assert_message(refused.value, path, "(5200,9230) PerFrameFunctionalGroupsSequence", groups, "4, one a frame")


def test_persons_in_functional_groups_stay_there(save):
    frames = [all_macros() for _ in range(4)]
    for frame in frames:
        for keyword, value in PERSON.items():
            setattr(frame, keyword, value)
        frame.FrameAnatomySequence[0].FrameLaterality = "Quarzel"
        frame.FrameVOILUTSequence[0].VOILUTFunction = "Zwirnagl"
        frame.FrameContentSequence = Sequence([dataset(FrameComments="Quarzel^Ottilde", FrameLabel="QZL-4711-X")])
    header = read_header(save(PerFrameFunctionalGroupsSequence=Sequence(frames)))
    assert len(header.warnings) == 1
    assert_no_person(header, header.warnings, header.facts)


def test_a_thousand_frames_of_groups_are_read_in_a_few_seconds(save):
    start = np.datetime64("2020-01-01T10:00:00", "us")
    frames = []
    for i in range(1000):
        frame = all_macros()
        text = str(start + np.timedelta64(i * 66_667, "us")).replace("-", "").replace(":", "").replace("T", "")
        frame.FrameContentSequence = Sequence([dataset(FrameReferenceDateTime=text, FrameAcquisitionNumber=i)])
        frames.append(frame)
    path = save(frames=ramp(1000, 8, 8), PerFrameFunctionalGroupsSequence=Sequence(frames))
    begin = time.perf_counter()
    header = read_header(path)
    duration_s = time.perf_counter() - begin
    np.testing.assert_allclose(header.frame_times_ms, np.arange(1000) * 66.667, atol=1e-3)
    assert duration_s < 4


def test_lift_groups_of_a_plain_header_changes_nothing(save):
    path = save()
    header = dcmread(path, specific_tags=list(HEADER_TAGS))
    before = header.to_json()
    assert lift_groups(path, header, 4) == (None, [])
    assert header.to_json() == before
