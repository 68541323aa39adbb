"""Windows, tables, shutters, masks and padding come out of a header as stored, or are named as not used."""

import numpy as np
import pytest
from pydicom import DataElement, Dataset, Sequence, config, uid
from pydicom.datadict import dictionary_VR
from pydicom.tag import Tag

from scripts.dicom.display import display_shutters, display_voi, mask_steps, padding
from scripts.dicom.header import MaskStep, Shutter, Voi
from scripts.dicom.sequence import read_header
from tests.conftest import PERSON, assert_no_person, ramp


def header(**attributes: object) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        vr = dictionary_VR(keyword).split(" or ")[-1]
        ds.add(DataElement(Tag(keyword), vr, value, validation_mode=config.IGNORE))
    return ds


def sequence(**attributes: object) -> Sequence:
    return Sequence([header(**attributes)])


# --- values of interest ---


@pytest.mark.parametrize(
    ("attributes", "voi"),
    [
        ({"WindowCenter": "127", "WindowWidth": "255"}, Voi(127, 255, "LINEAR")),
        ({"WindowCenter": ["40", "300"], "WindowWidth": ["80", "900"]}, Voi(40, 80, "LINEAR")),
        ({"WindowCenter": "0.5", "WindowWidth": "1"}, Voi(0.5, 1, "LINEAR")),
        (
            {"WindowCenter": "-20", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"},
            Voi(-20, 0.5, "LINEAR_EXACT"),
        ),
        ({"WindowCenter": "2048", "WindowWidth": "4096", "VOILUTFunction": "SIGMOID"}, Voi(2048, 4096, "SIGMOID")),
        ({"WindowCenter": "9", "WindowWidth": "2", "VOILUTFunction": "LINEAR"}, Voi(9, 2, "LINEAR")),
        ({}, None),
    ],
)
def test_voi_is_the_first_window_with_its_function(attributes, voi):
    assert display_voi(header(**attributes), x_ray=True, signed=False) == (voi, [])


@pytest.mark.parametrize(
    ("attributes", "parts"),
    [
        ({"WindowCenter": "5", "WindowWidth": "0"}, ("WindowWidth is 5 and 0",)),
        ({"WindowCenter": "5", "WindowWidth": "0.5"}, ("5 and 0.5", "no window of LINEAR")),
        ({"WindowCenter": "5", "WindowWidth": "-3", "VOILUTFunction": "SIGMOID"}, ("5 and -3", "SIGMOID")),
        ({"WindowCenter": "5"}, ("5 and absent",)),
        ({"WindowWidth": "5"}, ("absent and 5",)),
    ],
)
def test_voi_of_an_impossible_window_is_left_out_and_named(attributes, parts):
    voi, (warning,) = display_voi(header(**attributes), x_ray=True, signed=False)
    assert voi is None
    assert all(part in warning for part in ("(0028,1050) WindowCenter", *parts))


def test_voi_of_an_unknown_function_is_linear_and_its_name_is_not_quoted():
    ds = header(WindowCenter="5", WindowWidth="3", VOILUTFunction="QUARZEL")
    voi, (warning,) = display_voi(ds, x_ray=True, signed=False)
    assert voi == Voi(5, 3, "LINEAR")
    assert "VOILUTFunction is another value" in warning and "QUARZEL" not in warning


def test_voi_of_x_ray_passes_over_every_modality_transform():
    window = {"WindowCenter": "127", "WindowWidth": "255"}
    lut = sequence(LUTDescriptor=[256, 0, 8], LUTData=[4022] * 256)  # entries beyond their bits, as in one real file
    for transform in ({"ModalityLUTSequence": lut}, {"RescaleSlope": "2", "RescaleIntercept": "-7"}):
        assert display_voi(header(**window, **transform), True, False) == (Voi(127, 255), [])


def shown_as(voi: Voi, x: np.ndarray) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, for output 0 to 1."""
    if voi.function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (x - voi.center) / voi.width))
    if voi.function == "LINEAR_EXACT":
        return np.clip((x - voi.center) / voi.width + 0.5, 0, 1)
    return np.clip((x - (voi.center - 0.5)) / (voi.width - 1) + 0.5, 0, 1)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.5, 3.25), (4, 100)])
def test_voi_of_other_modalities_shows_stored_values_as_the_window_shows_rescaled_ones(function, slope, intercept):
    stored = np.arange(0, 2000, 7.0)
    window = {"WindowCenter": "300", "WindowWidth": "640", "VOILUTFunction": function}
    ds = header(**window, RescaleSlope=str(slope), RescaleIntercept=str(intercept))
    voi, warnings = display_voi(ds, x_ray=False, signed=False)
    expected = shown_as(Voi(300, 640, function), stored * slope + intercept)
    np.testing.assert_allclose(shown_as(voi, stored), expected, atol=1e-12)
    assert warnings == [] and np.ptp(expected) > 0


@pytest.mark.parametrize(
    "transform",
    [
        {"RescaleSlope": "0", "RescaleIntercept": "1"},
        {"RescaleSlope": "-1", "RescaleIntercept": "0"},
        {"ModalityLUTSequence": sequence(LUTDescriptor=[2, 0, 8], LUTData=[0, 1])},
    ],
)
def test_voi_after_a_transform_that_is_no_rising_line_is_left_out_with_a_warning(transform):
    voi, warnings = display_voi(header(WindowCenter="5", WindowWidth="9", **transform), False, False)
    assert voi is None
    assert [next(iter(transform)) in warning for warning in warnings] == [True]


TABLE = np.arange(0, 1024, 4, dtype=np.uint16)


@pytest.mark.parametrize(
    ("descriptor", "data", "signed", "lut", "lut_first"),
    [
        ([256, 0, 10], TABLE.tolist(), False, TABLE, 0),
        ([256, 100, 10], TABLE.astype("<u2").tobytes(), False, TABLE, 100),
        ([256, 65436, 10], TABLE.tolist(), True, TABLE, -100),  # US that means SS
        ([256, -100, 10], TABLE.tolist(), True, TABLE, -100),
        ([256, -1, 10], TABLE.tolist(), False, TABLE, 65535),  # SS that means US
        ([256, 0, 8], bytes(range(256)), False, np.arange(256), 0),  # 8 bits packed as bytes
        ([3, 0, 8], bytes([7, 8, 9, 0]), False, [7, 8, 9], 0),  # padded to even length
        ([4, 0, 8], [0x0201, 0x0403], False, [1, 2, 3, 4], 0),  # packed in words
        ([3, 0, 8], [0x0201, 0x0003], False, [1, 2, 3], 0),
        ([0, 0, 16], np.arange(65536, dtype="<u2").tobytes(), False, np.arange(65536), 0),  # 0 means 65536
        ([0, 32768, 16], np.arange(65536, dtype="<u2").tobytes(), True, np.arange(65536), -32768),
    ],
)
def test_voi_table_holds_its_entries_and_where_they_begin(descriptor, data, signed, lut, lut_first):
    tables = sequence(LUTDescriptor=descriptor, LUTData=data)
    ds = header(VOILUTSequence=tables, WindowCenter="5", WindowWidth="9")
    voi, warnings = display_voi(ds, x_ray=True, signed=signed)
    assert voi.lut.dtype == np.uint16 and (voi.lut_first, voi.lut_bits) == (lut_first, descriptor[2])
    np.testing.assert_array_equal(voi.lut, lut)
    assert warnings == []


@pytest.mark.parametrize(
    ("descriptor", "data", "found"),
    [
        ([256, 0, 10], [1, 2, 3], "LUTData has 3 entries but LUTDescriptor 256"),
        ([4, 0, 10], None, "LUTData has 0 entries but LUTDescriptor 4"),
        ([4, 0], [1, 2, 3, 4], "LUTDescriptor is 4, 0"),
        ([4, 0, 32], [1, 2, 3, 4], "LUTDescriptor is 4, 0, 32"),
        (None, [1, 2, 3, 4], "LUTDescriptor is absent"),
    ],
)
def test_voi_table_that_is_not_what_it_says_gives_way_to_the_window(descriptor, data, found):
    tables = sequence(LUTDescriptor=descriptor, LUTData=data)
    voi, (warning,) = display_voi(header(VOILUTSequence=tables, WindowCenter="5", WindowWidth="9"), True, False)
    assert voi == Voi(5, 9)
    assert found in warning


def test_voi_table_of_another_modality_is_moved_by_its_intercept_and_not_stretched():
    tables = sequence(LUTDescriptor=[256, 0, 10], LUTData=TABLE.tolist())
    moved, warnings = display_voi(header(VOILUTSequence=tables, RescaleSlope="1", RescaleIntercept="-50"), False, True)
    assert moved.lut_first == 50 and warnings == []
    voi, (warning,) = display_voi(header(VOILUTSequence=tables, RescaleSlope="2", RescaleIntercept="0"), False, True)
    assert voi is None and "RescaleSlope is 2" in warning


@pytest.mark.parametrize(
    "syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless]
)
def test_voi_table_read_from_a_file_is_the_one_written(save, syntax):
    data = TABLE.astype(">u2" if syntax == uid.ExplicitVRBigEndian else "<u2").tobytes()
    item = header(LUTDescriptor=[256, 3, 10])
    item.add_new("LUTData", "OW", data)
    found = read_header(save(syntax=syntax, VOILUTSequence=Sequence([item]))).voi
    np.testing.assert_array_equal(found.lut, TABLE)
    assert (found.lut_first, found.lut_bits) == (3, 10)


# --- shutters: DICOM counts rows and columns from 1 ---

RECTANGLE = {
    "{0}UpperHorizontalEdge": "3",
    "{0}LowerHorizontalEdge": "10",
    "{0}LeftVerticalEdge": "2",
    "{0}RightVerticalEdge": "8",
}
CIRCLE = {"CenterOfCircular{0}": ["6", "5"], "RadiusOfCircular{0}": "4"}
POLYGON = {"VerticesOfThePolygonal{0}": ["1", "1", "1", "9", "9", "5"]}
REGIONS = {"rectangle": (2, 9, 1, 7), "circle": (5.0, 4.0, 4.0), "polygon": ((0, 0), (0, 8), (8, 4))}
SHAPES = {"RECTANGULAR": (RECTANGLE, "rectangle"), "CIRCULAR": (CIRCLE, "circle"), "POLYGONAL": (POLYGON, "polygon")}


def shape(kind: str, shapes: list[str], **changed: object) -> dict:
    values = {key.format(kind): value for name in shapes for key, value in SHAPES[name][0].items()}
    return {f"{kind}Shape": shapes, **values, **changed}


@pytest.mark.parametrize("kind", ["Shutter", "Collimator"])
@pytest.mark.parametrize(
    "shapes",
    [
        ["RECTANGULAR"],
        ["CIRCULAR"],
        ["POLYGONAL"],
        ["RECTANGULAR", "CIRCULAR"],
        ["POLYGONAL", "RECTANGULAR"],
        [*SHAPES],
    ],
)
def test_shutter_of_one_or_several_shapes_counts_from_zero(kind, shapes):
    shutters, warnings = display_shutters(header(**shape(kind, shapes)), rows=12, columns=10)
    assert shutters == (Shutter(**{SHAPES[name][1]: REGIONS[SHAPES[name][1]] for name in shapes}),)
    assert warnings == []


def test_shutter_and_collimator_stand_in_this_order():
    ds = header(**shape("Collimator", ["CIRCULAR"]), **shape("Shutter", ["RECTANGULAR"]))
    assert display_shutters(ds, 12, 10)[0] == (Shutter(rectangle=(2, 9, 1, 7)), Shutter(circle=(5.0, 4.0, 4.0)))


def test_shutter_values_without_a_shape_are_no_shutter():
    ds = header(**{**shape("Shutter", ["RECTANGULAR"]), "ShutterShape": None})
    assert display_shutters(ds, 12, 10) == ((), [])


def test_shutter_edges_outside_the_image_are_clipped():
    edges = {"CollimatorUpperHorizontalEdge": "-20", "CollimatorRightVerticalEdge": "4000"}
    shutters, warnings = display_shutters(header(**shape("Collimator", ["RECTANGULAR"], **edges)), 12, 10)
    assert shutters == (Shutter(rectangle=(0, 9, 1, 9)),)
    assert warnings == []


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("RECTANGULAR", {"ShutterUpperHorizontalEdge": "11"}),  # below its lower edge
        ("RECTANGULAR", {"ShutterLeftVerticalEdge": "11"}),
        ("RECTANGULAR", {"ShutterLowerHorizontalEdge": "0"}),
        ("RECTANGULAR", {"ShutterLowerHorizontalEdge": None}),
        ("RECTANGULAR", {"ShutterLowerHorizontalEdge": ["5", "6"]}),
        ("CIRCULAR", {"RadiusOfCircularShutter": "0"}),
        ("CIRCULAR", {"RadiusOfCircularShutter": "-2"}),
        ("CIRCULAR", {"CenterOfCircularShutter": ["40", "40"]}),
        ("CIRCULAR", {"CenterOfCircularShutter": "6"}),
        ("POLYGONAL", {"VerticesOfThePolygonalShutter": ["1", "1", "9", "9"]}),
        ("POLYGONAL", {"VerticesOfThePolygonalShutter": ["1", "1", "5", "5", "9", "9"]}),  # no area
        ("POLYGONAL", {"VerticesOfThePolygonalShutter": ["1", "1", "1", "9", "9", "5", "4"]}),
        ("POLYGONAL", {"VerticesOfThePolygonalShutter": ["31", "1", "31", "9", "39", "5"]}),
    ],
)
def test_shutter_that_shows_nothing_is_left_out_with_a_warning(name, changed):
    shutters, (warning,) = display_shutters(header(**shape("Shutter", [name], **changed)), rows=12, columns=10)
    assert shutters == ()
    assert warning.startswith(f"(0018,1600) ShutterShape is {name} ")


def test_shutter_of_an_unknown_shape_leaves_the_other_and_is_not_quoted():
    ds = header(**{**shape("Shutter", ["CIRCULAR"]), "ShutterShape": ["CIRCULAR", "QUARZEL"]})
    shutters, (warning,) = display_shutters(ds, 12, 10)
    assert shutters == (Shutter(circle=(5.0, 4.0, 4.0)),)
    assert "ShutterShape is another value" in warning and "QUARZEL" not in warning


# --- masks: DICOM counts frames from 1 ---


@pytest.mark.parametrize(
    ("attributes", "step"),
    [
        ({"MaskOperation": "AVG_SUB", "MaskFrameNumbers": 1}, MaskStep("AVG_SUB", (0,))),
        (
            {"MaskOperation": "AVG_SUB", "MaskFrameNumbers": [2, 3, 8], "ApplicableFrameRange": [4, 5, 7, 8]},
            MaskStep("AVG_SUB", (1, 2, 7), ((3, 4), (6, 7))),
        ),
        (
            {"MaskOperation": "AVG_SUB", "MaskFrameNumbers": [1], "MaskSubPixelShift": [1.5, -0.25]},
            MaskStep("AVG_SUB", (0,), shift=(1.5, -0.25)),
        ),
        ({"MaskOperation": "TID"}, MaskStep("TID", tid_offset=1)),
        (
            {"MaskOperation": "TID", "TIDOffset": 3, "ApplicableFrameRange": [4, 8]},
            MaskStep("TID", (), ((3, 7),), tid_offset=3),
        ),
        ({"MaskOperation": "TID", "TIDOffset": -2}, MaskStep("TID", tid_offset=-2)),
    ],
)
def test_mask_step_is_that_of_the_sequence_with_frames_from_zero(attributes, step):
    assert mask_steps(header(MaskSubtractionSequence=sequence(**attributes)), num_frames=8) == ((step,), [])


@pytest.mark.parametrize("attributes", [{}, {"MaskSubtractionSequence": sequence(MaskOperation="NONE")}])
def test_mask_operation_none_asks_for_no_step(attributes):
    assert mask_steps(header(**attributes), 8) == ((), [])


AVG = {"MaskOperation": "AVG_SUB", "MaskFrameNumbers": [1]}


@pytest.mark.parametrize(
    ("attributes", "found"),
    [
        ({"MaskOperation": "REV_TID"}, "(0028,6101) MaskOperation is REV_TID"),
        ({"MaskOperation": "QUARZEL"}, "(0028,6101) MaskOperation is another value"),
        ({}, "(0028,6101) MaskOperation is absent"),
        ({**AVG, "MaskFrameNumbers": None}, "(0028,6110) MaskFrameNumbers is absent of 8 frames"),
        ({**AVG, "MaskFrameNumbers": 0}, "MaskFrameNumbers is 0 of 8 frames"),
        ({**AVG, "MaskFrameNumbers": [1, 9]}, "MaskFrameNumbers is 1, 9 of 8 frames"),
        ({**AVG, "ApplicableFrameRange": [1, 9]}, "(0028,6102) ApplicableFrameRange is 1, 9 of 8 frames"),
        ({**AVG, "ApplicableFrameRange": [0, 4]}, "ApplicableFrameRange is 0, 4"),
        ({**AVG, "ApplicableFrameRange": [5, 4]}, "ApplicableFrameRange is 5, 4"),
        ({**AVG, "ApplicableFrameRange": [1, 4, 6]}, "ApplicableFrameRange is 1, 4, 6"),
        ({**AVG, "MaskSubPixelShift": [1.0]}, "(0028,6114) MaskSubPixelShift is 1"),
        ({**AVG, "MaskSubPixelShift": [1.0, float("nan")]}, "(0028,6114) MaskSubPixelShift is another value"),
        ({"MaskOperation": "TID", "TIDOffset": 0}, "(0028,6120) TIDOffset is 0 of 8 frames"),
        ({"MaskOperation": "TID", "TIDOffset": 8}, "(0028,6120) TIDOffset is 8 of 8 frames"),
    ],
)
def test_mask_step_that_cannot_be_done_is_left_out_with_a_warning_and_the_others_stay(attributes, found):
    ds = header(MaskSubtractionSequence=Sequence([header(**attributes), header(MaskOperation="TID")]))
    steps, (warning,) = mask_steps(ds, 8)
    assert steps == (MaskStep("TID"),)
    assert found in warning and "QUARZEL" not in warning


def test_mask_over_averaged_contrast_frames_is_kept_and_warned_of():
    ds = header(MaskSubtractionSequence=sequence(**AVG, ContrastFrameAveraging=3))
    steps, (warning,) = mask_steps(ds, 8)
    assert steps == (MaskStep("AVG_SUB", (0,)),)
    assert "(0028,6112) ContrastFrameAveraging is 3" in warning


# --- padding ---


@pytest.mark.parametrize(
    ("value", "limit", "bits", "signed", "found"),
    [
        (0, None, 8, False, (0, 0)),
        (255, 250, 8, False, (250, 255)),
        (10, 20, 16, False, (10, 20)),
        (63536, None, 16, True, (-2000, -2000)),  # US that means SS
        (-2000, -1900, 16, True, (-2000, -1900)),
        (-2000, None, 16, False, (63536, 63536)),
        (-1, None, 8, True, (-1, -1)),
        (None, 7, 16, False, None),
    ],
)
def test_padding_is_read_as_the_pixels_are_signed(value, limit, bits, signed, found):
    ds = Dataset()
    for keyword, stated in (("PixelPaddingValue", value), ("PixelPaddingRangeLimit", limit)):
        if stated is not None:
            ds.add_new(keyword, "SS" if stated < 0 else "US", stated)
    assert padding(ds, bits, signed) == (found, [])


@pytest.mark.parametrize(("value", "signed"), [(256, False), (-129, True), ([1, 2], False)])
def test_padding_that_is_no_stored_value_is_left_out_with_a_warning(value, signed):
    found, (warning,) = padding(header(PixelPaddingValue=value), 8, signed)
    assert found is None
    assert warning.startswith("(0028,0120) PixelPaddingValue is ")


# --- whole files ---


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_read_header_tells_all_of_display_that_a_file_holds(save, syntax):
    path = save(
        frames=ramp(bits=12),
        bits=12,
        syntax=syntax,
        PixelRepresentation=1,
        PixelPaddingValue=-2000,
        PixelPaddingRangeLimit=-1990,
        WindowCenter="100",
        WindowWidth="50",
        **shape("Shutter", ["RECTANGULAR", "CIRCULAR"]),
        **shape("Collimator", ["POLYGONAL"]),
        MaskSubtractionSequence=sequence(MaskOperation="AVG_SUB", MaskFrameNumbers=[1, 2], MaskSubPixelShift=[0.5, 2]),
    )
    found = read_header(path)
    assert found.signed and found.padding == (-2000, -1990)
    assert found.voi == Voi(100, 50)
    assert found.shutters == (
        Shutter(rectangle=(2, 9, 1, 7), circle=(5.0, 4.0, 4.0)),
        Shutter(polygon=((0, 0), (0, 8), (8, 4))),
    )
    assert found.mask_steps == (MaskStep("AVG_SUB", (0, 1), shift=(0.5, 2.0)),)
    assert found.warnings == ()


def test_read_header_of_colour_has_no_window(save):
    frames = np.zeros((2, 12, 10, 3), np.uint8)
    assert read_header(save(frames=frames, WindowCenter="1", WindowWidth="2")).voi is None


def test_damaged_display_attributes_name_no_planted_person(save):
    mask = sequence(MaskOperation="Quarzel^Ottilde", TIDOffset=0)
    mask[0].PatientName = PERSON["PatientName"]
    found = read_header(
        save(**PERSON, ShutterShape="Quarzel", MaskSubtractionSequence=mask, VOILUTFunction="QZL-4711-X")
    )
    assert len(found.warnings) == 2
    assert_no_person(found, found.warnings)
