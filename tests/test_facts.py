"""Any image class is read and judged, and nothing of a person leaves whatever attribute it was written into."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, Sequence, dcmread, uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from scripts.dicom.display import COLLIMATOR_TAGS, MASK_TAGS, SHUTTER_TAGS, VOI_TAGS
from scripts.dicom.facts import CODES, NUMBERS, OPHTHALMIC, X_RAY
from scripts.dicom.sequence import FORMAT, HEADER_TAGS, read_header
from scripts.errors import SequenceError
from tests.conftest import PERSON, assert_message, assert_no_person, ramp, save_dicom

CAPTURES = [uid.UID(f"1.2.840.10008.5.1.4.1.1.7{end}") for end in ("", ".2", ".3", ".4")]


@pytest.mark.parametrize("sop_class", [*X_RAY, *OPHTHALMIC], ids=lambda c: c.name)
def test_image_of_an_angiography_class_is_read_without_a_warning(save, sop_class):
    header = read_header(save(SOPClassUID=sop_class))
    assert header.num_frames == 4 and header.warnings == ()


@pytest.mark.parametrize("sop_class", CAPTURES, ids=lambda c: c.name)
@pytest.mark.parametrize("burned_in", [None, "NO", "YES"])
def test_secondary_capture_is_read_with_a_warning_of_its_class_and_of_what_may_be_burned_in(save, sop_class, burned_in):
    warnings = read_header(save(SOPClassUID=sop_class, BurnedInAnnotation=burned_in)).warnings
    assert (
        warnings[0] == f"(0008,0016) SOPClassUID is {sop_class.name}: a secondary capture, whose pixels can be anything"
    )
    found = {None: "absent", "YES": "YES"}.get(burned_in)
    field = "(0028,0301) BurnedInAnnotation"
    assert warnings[1:] == (() if found is None else (f"{field} is {found}: the pixels may show a person's data",))


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [
        (uid.CTImageStorage, "CT Image Storage"),
        (uid.UltrasoundMultiFrameImageStorage, "Ultrasound Multi-frame Image Storage"),
        (uid.XRay3DAngiographicImageStorage, "X-Ray 3D Angiographic Image Storage"),
        (uid.UID("1.3.46.670589.2.5.1.1"), "another value"),  # a maker's own
    ],
)
def test_image_of_another_class_is_read_with_a_warning(save, sop_class, name):
    (warning,) = read_header(save(SOPClassUID=sop_class)).warnings
    assert warning == f"(0008,0016) SOPClassUID is {name}: not an angiography class"


def test_image_without_a_class_is_judged_by_its_file_meta(save):
    path = save()
    ds = dcmread(path)
    del ds.SOPClassUID
    ds.save_as(path)
    assert read_header(path).warnings == ()


@pytest.mark.parametrize(
    "sop_class",
    [
        uid.EncapsulatedPDFStorage,
        uid.TwelveLeadECGWaveformStorage,
        uid.ComprehensiveSRStorage,
        uid.GrayscaleSoftcopyPresentationStateStorage,
        uid.SegmentationStorage,
        uid.MediaStorageDirectoryStorage,
    ],
    ids=lambda c: c.name,
)
def test_object_of_a_class_that_holds_no_images_is_refused(save, sop_class):
    path = save(SOPClassUID=sop_class)
    with pytest.raises(SequenceError) as refused:
        read_header(path)
    assert_message(refused.value, path, "SOPClassUID", sop_class.name, "an image storage class")


@pytest.mark.parametrize(("stated", "warned"), [("YES", True), ("NO", False), (None, False), ("QUARZEL", True)])
def test_burned_in_annotation_is_warned_of_unless_it_is_denied(save, stated, warned):
    warnings = read_header(save(BurnedInAnnotation=stated)).warnings
    assert ["BurnedInAnnotation" in w for w in warnings] == ([True] if warned else [])
    assert_no_person(warnings)


# --- facts ---

KNOWN = [(key, code) for key, codes in CODES.items() for code in codes if key != "PhotometricInterpretation"]


def test_facts_hold_every_known_code(save):
    path = save()
    for keyword, code in KNOWN:
        assert read_header(save_dicom(path, ramp(1), **{keyword: code})).facts[keyword] == code
    assert len(KNOWN) > 25


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("Modality", "QUARZEL"),
        ("ImageLaterality", "RL"),
        ("PositionerPrimaryAngle", "19410203"),  # a date of birth is no angle
        ("PositionerPrimaryAngle", ["1", "2"]),
        ("PositionerSecondaryAngle", "-91"),
    ],
)
def test_facts_leave_out_other_values(save, keyword, value):
    assert keyword not in read_header(save(**{keyword: value})).facts


def test_intensity_relationship_of_no_standard_term_is_warned_of(save):
    (warning,) = read_header(save(PixelIntensityRelationship="DRM")).warnings
    assert warning == "(0028,1040) PixelIntensityRelationship is another value: taken as unknown"


# --- a person's data written anywhere ---

NESTED = {
    "MaskSubtractionSequence": (*MASK_TAGS, "ContrastFrameAveraging"),
    "VOILUTSequence": ("LUTDescriptor", "LUTData"),
    "SharedFunctionalGroupsSequence": (),
}
GROUPS = {
    "FrameVOILUTSequence": VOI_TAGS[:3],
    "FrameDisplayShutterSequence": SHUTTER_TAGS,
    "CollimatorShapeSequence": COLLIMATOR_TAGS,
    "PositionerPositionSequence": ("PositionerPrimaryAngle", "PositionerSecondaryAngle"),
    "FrameAnatomySequence": ("FrameLaterality",),
    "FrameContentSequence": ("FrameReferenceDateTime", "FrameAcquisitionDateTime", "TemporalPositionTimeOffset"),
}
FORMAT_TAGS = (*FORMAT.values(), "HighBit", "NumberOfFrames")
PLACES = [
    *[(keyword,) for keyword in (*HEADER_TAGS, *FORMAT_TAGS)],
    *[(outer, keyword) for outer, keywords in NESTED.items() for keyword in keywords],
    *[
        ("PerFrameFunctionalGroupsSequence", group, keyword)
        for group, keywords in GROUPS.items()
        for keyword in keywords
    ],
]


def causes(error: BaseException) -> list[BaseException]:
    """What an error came from: a traceback in a log shows these too."""
    found: list[BaseException] = []
    cause = error.__cause__ or error.__context__
    while cause is not None:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def plant(ds: Dataset, place: tuple[str, ...], text: str, several: bool) -> None:
    """Write text where it does not belong, as a careless or damaged file has it."""
    *outer, keyword = place
    for name in outer:
        if name not in ds:
            setattr(ds, name, Sequence([Dataset() for _ in range(4 if name.startswith("PerFrame") else 1)]))
        ds = ds[name].value[0]
    vr = dictionary_VR(keyword).split(" or ")[0]
    raw = (f"1\\{text}" if several else text).encode()
    raw += b" " * (len(raw) % 2)
    if vr in ("US", "SS", "FL", "FD", "AT", "SQ", "OW"):
        raw = raw[: len(raw) // 8 * 8] if vr != "SQ" else raw
    ds[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(raw), raw, 0, False, True)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("value", ["Quarzel^Ottilde", "QZL-4711-X", "19410203"])
def test_a_persons_data_in_any_attribute_that_is_read_comes_back_nowhere(tmp_path, value, several, caplog, capsys):
    path = save_dicom(tmp_path / "valid.dcm", ramp(), FrameTime="40", ShutterShape="RECTANGULAR", **PERSON)
    valid, read, refused = dcmread(path), 0, 0
    for place in PLACES:
        ds = copy.deepcopy(valid)
        if place[0] == "VOILUTSequence" and len(place) == 2:
            ds.VOILUTSequence = Sequence([Dataset()])
            ds.VOILUTSequence[0].LUTDescriptor, ds.VOILUTSequence[0].LUTData = [2, 0, 16], [0, 1]
        plant(ds, place, value, several)
        planted = tmp_path / "planted.dcm"
        try:
            ds.save_as(planted)
        except Exception:  # some text cannot stand in a sequence: no file, no leak
            continue
        try:
            header = read_header(planted)
        except SequenceError as error:
            refused += 1
            assert_message(error, planted)
            assert_no_person(error)
            if place[-1] in ("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel"):
                assert error.__cause__ is None
        else:
            read += 1
            assert_no_person(header, header.facts, header.warnings, json.dumps(header.facts))
    assert read > 50 and refused >= 8 and read + refused > 0.9 * len(PLACES)
    assert_no_person(caplog.text or "silent", *capsys.readouterr())


def test_a_persons_data_in_files_of_a_series_comes_back_nowhere(save_series):
    places = ["AcquisitionDateTime", "AcquisitionTime", "TimezoneOffsetFromUTC", "FrameTime", "InstanceNumber"]
    for keyword in places:
        folder = save_series(keyword, [{"AcquisitionDateTime": f"2020010110000{i}"} for i in range(3)], **PERSON)
        path = sorted(folder.iterdir())[1]
        ds = dcmread(path)
        plant(ds, (keyword,), "Quarzel^Ottilde", several=False)
        ds.save_as(path)
        try:
            header = read_header(folder)
        except SequenceError as error:
            assert_message(error, folder)
            assert_no_person(error)
        else:
            assert_no_person(header, header.warnings)
            assert np.isfinite(header.frame_times_ms[0])


def test_a_persons_data_in_a_file_meta_group_comes_back_nowhere(tmp_path):
    path = save_dicom(tmp_path / "valid.dcm", ramp())
    data = path.read_bytes()
    known, planted = uid.ExplicitVRLittleEndian.encode(), b"Quarzel^Ottilde.QZL"
    assert len(known) == len(planted) and data.count(known) == 1
    for old, new in ((known, planted), (X_RAY[0].encode(), b"Quarzel^Ottilde".ljust(len(X_RAY[0]), b"Q"))):
        path.write_bytes(data.replace(old, new))
        try:
            assert_no_person(read_header(path))
        except SequenceError as error:
            assert_message(error, path)
            assert_no_person(error)


def test_facts_are_codes_and_numbers_of_the_allow_list_only(shared_data):
    allowed, read = {*CODES, *NUMBERS}, 0
    for path in sorted(Path(shared_data / "real_xa").glob("*.dcm")):
        found = read_header(path).facts
        assert set(found) <= allowed
        assert all(isinstance(v, float) or v in CODES[key] for key, v in found.items())
        read += 1
    assert read == 8
