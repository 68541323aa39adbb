"""Shutters, borders and panels against truth that is worked out apart from the code; runs are synthetic or public."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from scripts.dicom.header import SequenceHeader, Shutter
from scripts.errors import SequenceError
from scripts.sequences.geometry import (
    BORDERS,
    PANELS,
    check_geometry,
    find_border,
    show_region,
    shutter_region,
    split_panel,
)
from scripts.sequences.phantom_ffa import ffa_sequence
from scripts.sequences.phantom_xa import collimator, xa_sequence
from scripts.sequences.reader import read_frames, read_header
from tests.conftest import assert_message

SIZE = 160
OCTAGON = ((40, 4), (120, 4), (155, 40), (155, 120), (120, 155), (40, 155), (4, 120), (4, 40))
PENTAGRAM = ((0, 30), (58, 48), (22, 0), (22, 60), (58, 12))  # crosses itself


def header_of(shape: tuple[int, ...], **known) -> SequenceHeader:
    times = np.arange(shape[0]) * 66.0
    return SequenceHeader("dicom", (Path("run.dcm"),), shape[0], shape[1], shape[2], times, **known)


def region_of(*shutters: Shutter, rows: int = 60, columns: int = 70) -> np.ndarray:
    region = shutter_region(header_of((1, rows, columns), shutters=shutters))
    assert region is not None and region.dtype == torch.bool and region.shape == (rows, columns)
    return region.numpy()


def field(kind: str) -> np.ndarray:
    """The truth: pixels inside the picture, bool (SIZE, SIZE)."""
    y, x = np.indices((SIZE, SIZE))
    if kind == "blades":
        return (y >= 9) & (y < 150) & (x >= 13) & (x < 153)
    if kind == "one blade":
        return x < 140
    if kind == "circle":
        return np.hypot(y - 79.5, x - 79.5) < 79
    if kind == "cut circle":
        return (np.hypot(y - 79.5, x - 79.5) < 85) & (y < 140)
    if kind == "two circles":
        return np.minimum(np.hypot(y - 79.5, x - 39.5), np.hypot(y - 79.5, x - 119.5)) < 40
    drawing = Image.new("1", (SIZE, SIZE))
    turned = ((10, 20), (140, 8), (152, 139), (22, 151))
    ImageDraw.Draw(drawing).polygon(OCTAGON if kind == "octagon" else turned, fill=1)
    return np.asarray(drawing)


FIELDS = ("blades", "one blade", "circle", "cut circle", "octagon", "turned blades")  # each cuts at least 8 %


def run_in(inside: np.ndarray, num_frames: int, level: float = 0.0, blur: float = 0.0, seed: int = 0) -> np.ndarray:
    """A synthetic run: tissue that moves, dark vessels that fill, a noisy bright first frame, float32 (T, H, W)."""
    rng = np.random.default_rng(seed)
    tissue = 120 + 25 * _standardised(ndimage.gaussian_filter(rng.normal(size=(SIZE + 40, SIZE + 40)), 20))
    y, x = np.indices((SIZE, SIZE))
    vessel = np.exp(-(((y - 70 - 20 * np.sin(x / 25)) / 3) ** 2))
    lets_pass = ndimage.gaussian_filter(inside.astype(float), blur) if blur else inside
    frames = np.empty((num_frames, SIZE, SIZE), np.float32)
    for t in range(num_frames):
        shift = round(20 * t / num_frames)
        scene = tissue[shift : shift + SIZE, 10 : 10 + SIZE] * (1 - 0.6 * vessel * (t % 5 > 1))
        first = t == 0 and num_frames > 1
        scene = level + lets_pass * np.clip(scene * (1.1 if first else 1), 40, None)
        frames[t] = scene + rng.normal(size=scene.shape) * np.sqrt(scene) * (1.5 if first else 0.5)
    return frames.clip(0)


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def inside_of(frames: np.ndarray, **known) -> np.ndarray:
    before = torch.from_numpy(np.ascontiguousarray(frames, np.float32))
    values = before.clone()
    inside = find_border(values, header_of(frames.shape, **known))
    assert inside.dtype == torch.bool and inside.shape == values.shape[1:]
    assert torch.equal(values, before)
    return inside.numpy()


# --- shutters ---


def test_shutter_region_without_shutters_is_none():
    assert shutter_region(header_of((1, 4, 4))) is None


def test_shutter_region_of_a_rectangle_holds_its_edges():
    truth = np.zeros((60, 70), bool)
    truth[5:41, 7:66] = True
    np.testing.assert_array_equal(region_of(Shutter(rectangle=(5, 40, 7, 65))), truth)


def test_shutter_region_of_a_rectangle_larger_than_the_image_is_the_image():
    assert region_of(Shutter(rectangle=(-3, 99, -1, 200))).all()


@pytest.mark.parametrize("circle", [(30.0, 35.0, 25.0), (0.0, 0.0, 40.0), (29.5, 34.5, 10.5), (-20.0, 30.0, 35.0)])
def test_shutter_region_of_a_circle_holds_pixels_at_most_its_radius_away(circle):
    row, column, radius = circle
    truth = np.array([[(y - row) ** 2 + (x - column) ** 2 <= radius**2 for x in range(70)] for y in range(60)])
    assert 0 < truth.sum() < truth.size
    np.testing.assert_array_equal(region_of(Shutter(circle=circle)), truth)


def winding(vertices: tuple, y: float, x: float) -> tuple[bool, float]:
    """Whether a point is inside by the even-odd rule, and how far it is from the nearest edge."""
    inside, nearest = False, np.inf
    for (y0, x0), (y1, x1) in zip(vertices, (*vertices[1:], vertices[0]), strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            inside = not inside
        along = np.clip(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / ((y1 - y0) ** 2 + (x1 - x0) ** 2), 0, 1)
        nearest = min(nearest, np.hypot(y - y0 - along * (y1 - y0), x - x0 - along * (x1 - x0)))
    return inside, nearest


POLYGONS = {
    "triangle": ((5, 30), (50, 5), (40, 60)),
    "hexagon": ((5, 20), (5, 50), (30, 65), (55, 50), (55, 20), (30, 5)),
    "concave": ((5, 5), (55, 5), (30, 30), (55, 60), (5, 60)),
    "beyond the image": ((-40, 35), (30, 120), (90, 35), (30, -50)),
    "far beyond the image": ((-1e9, 35.0), (59.0, 35.0), (59.0, -1e9), (-1e9, -1e9)),
    "pentagram": PENTAGRAM,
}


@pytest.mark.parametrize("name", POLYGONS)
def test_shutter_region_of_a_polygon_agrees_with_the_even_odd_rule_up_to_its_edge(name):
    region = region_of(Shutter(polygon=POLYGONS[name]))
    compared = 0
    for y, x in np.ndindex(region.shape):
        inside, distance = winding(POLYGONS[name], y, x)
        if distance > 0.75:  # Pillow draws the edge one pixel wide
            assert region[y, x] == inside, (y, x)
            compared += 1
        elif distance < 1e-9:
            assert region[y, x], f"edge pixel {y}, {x}"
    assert compared > 0.8 * region.size


def test_shutter_region_of_several_shapes_and_shutters_is_their_intersection():
    rectangle, circle = Shutter(rectangle=(5, 40, 7, 65)), Shutter(circle=(30.0, 35.0, 25.0))
    polygon = Shutter(polygon=POLYGONS["hexagon"])
    each = [region_of(shutter) for shutter in (rectangle, circle, polygon)]
    truth = each[0] & each[1] & each[2]
    together = Shutter(rectangle.rectangle, circle.circle, polygon.polygon)
    assert 0 < truth.sum() < min(region.sum() for region in each)
    np.testing.assert_array_equal(region_of(together), truth)
    np.testing.assert_array_equal(region_of(rectangle, circle, polygon), truth)


# --- borders ---


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize(("num_frames", "level", "blur"), [(1, 0, 0), (1, 15, 1), (2, 0, 1), (12, 15, 0), (30, 0, 1.5)])
def test_find_border_finds_the_field(kind, num_frames, level, blur):
    truth = field(kind)
    assert truth.mean() < 0.925  # finding nothing would not do
    assert iou(inside_of(run_in(truth, num_frames, level, blur)), truth) >= 0.97


@pytest.mark.parametrize("num_frames", range(1, 51))
def test_find_border_works_for_any_number_of_frames(num_frames):
    truth = field("cut circle")
    assert iou(inside_of(run_in(truth, num_frames, 10, seed=num_frames)), truth) >= 0.97


def test_find_border_keeps_both_of_two_panels():
    truth = field("two circles")
    frames = run_in(truth, 8)[:, 40:120]  # twice as wide as high
    assert iou(inside_of(frames), truth[40:120]) >= 0.97


def test_find_border_of_a_round_picture_as_high_as_a_wide_frame_is_found():
    y, x = np.indices((SIZE, SIZE))
    truth = np.hypot(y - 79.5, x - 79.5) < 45
    frames = run_in(truth, 8)[:, 35:125]  # 16:9
    assert iou(inside_of(frames), truth[35:125]) >= 0.97


def test_find_border_of_monochrome1_is_that_of_the_same_picture_in_monochrome2():
    for kind in FIELDS:
        frames = run_in(field(kind), 5, level=10)
        inverted = inside_of(4095 - frames, photometric="MONOCHROME1", bits_stored=12)
        np.testing.assert_array_equal(inverted, inside_of(frames))
        assert not inverted.all()


def test_find_border_looks_through_text_burned_into_it():
    truth = field("circle")
    frames = run_in(truth, 6)
    clean = inside_of(frames)
    for place in ((2, 2), (110, 148)):
        picture = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(picture).text(place, "L 12 kV", fill=255)
        text = np.asarray(picture) > 0
        assert (text & ~truth).sum() > 50
        frames[:, text] = 255
    assert iou(inside_of(frames), truth) >= 0.97
    assert (inside_of(frames) != clean).mean() < 0.01


def test_find_border_does_not_follow_a_dark_catheter_into_the_picture():
    truth = field("blades")
    frames = run_in(truth, 6)
    frames[:, 9:90, 70:73] = 0  # three pixels wide, from the upper blade to the middle of the picture
    inside = inside_of(frames)
    assert iou(inside, truth) >= 0.97
    assert inside[15:90, 70:73].all()


def test_find_border_is_not_misled_by_a_frame_without_exposure():
    truth = field("blades")
    frames = run_in(truth, 12)
    frames[4] = 0
    assert iou(inside_of(frames), truth) >= 0.97


def test_find_border_of_a_picture_that_fills_the_frame_is_all_inside():
    for seed in range(10):
        assert inside_of(run_in(np.ones((SIZE, SIZE), bool), 1 + 3 * seed, seed=seed)).all()


def test_find_border_leaves_dark_tissue_at_the_side_of_a_frame():
    frames = run_in(np.ones((SIZE, SIZE), bool), 8)
    x = np.arange(SIZE)
    y = np.arange(SIZE)[:, None]
    edge = 90 + 8 * np.sin(y / 9)  # vertebrae: wavy, and soft
    frames *= 1 - 0.75 / (1 + np.exp(-(x - edge) / 3))
    assert inside_of(frames).all()


@pytest.mark.parametrize("cut", [0.0031, 0.65])
def test_find_border_that_is_tiny_or_most_of_the_frame_is_none(cut):
    y, x = np.indices((SIZE, SIZE))
    inside = (x > 0) | (y < 80) if cut < 0.5 else np.hypot(y - 79.5, x - 79.5) < 53.4
    assert 1 - inside.mean() == pytest.approx(cut, rel=0.01)
    assert inside_of(run_in(inside, 4)).all()


def test_find_border_is_found_where_a_single_frame_lights_it_up():
    truth = field("circle")
    frames = run_in(truth, 12)
    frames[5] = 200
    assert iou(inside_of(frames), truth) >= 0.97


def test_find_border_is_found_under_stray_bright_pixels():
    truth = field("blades")
    frames = run_in(truth, 1)
    frames[:, np.random.default_rng(0).random((SIZE, SIZE)) < 0.05] = 255
    assert iou(inside_of(frames), truth) >= 0.97


def test_find_border_of_a_subtracted_run_is_all_inside():
    frames = run_in(field("blades"), 4)
    assert not inside_of(frames).all()
    assert inside_of(frames, subtracted=True).all()


def test_find_border_of_equal_pixels_is_all_inside():
    assert inside_of(np.full((3, 20, 30), 7.0)).all()


@pytest.mark.parametrize("seed", range(4))
def test_find_border_of_the_x_ray_phantom_is_its_collimator(seed, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "scripts.sequences.phantom_xa.collimator", lambda rng, rows: drawn.append(collimator(rng, rows)) or drawn[-1]
    )
    frames, _ = xa_sequence(np.random.default_rng(seed), seed, 96)
    assert len(drawn) == 1
    assert iou(inside_of(frames), drawn[0] > 0) >= 0.97


def test_find_border_of_the_retinal_phantom_is_a_disc():
    frames, _ = ffa_sequence(np.random.default_rng(0), 1, 128)
    inside = inside_of(frames)
    rows, columns = np.nonzero(inside)
    diameters = np.ptp(rows) + 1, np.ptp(columns) + 1
    y, x = np.indices(inside.shape)
    disc = np.hypot(y - rows.mean(), x - columns.mean()) <= max(diameters) / 2
    assert iou(inside, disc) >= 0.97


REAL = {  # rows and columns, and share outside, seen by eye in the pictures
    "xa_siemens_rubo0002_96f_jpegbaseline.dcm": (0.20, 0.225),  # image intensifier: corners, sides, bottom
    "xa_ge_innova_phantom_IM8_jpegll.dcm": (0.035, 0.055),  # four blades
    "xa_nema_wg04_XA1_UNC.dcm": (1 - np.pi / 4 - 0.01, 1 - np.pi / 4 + 0.01),  # inscribed circle
    "thirdparty_op_octconverter_series": (0.16, 0.2),  # retinal camera: four corners
    "derived_xa_singleframe_series": (0.03, 0.06),  # blades at the right and at the bottom
    "xa_philips_cath_75f_jpegbaseline.dcm": (0.015, 0.05),  # four corners, some of the blades
}


@pytest.mark.parametrize("name", REAL)
def test_find_border_of_real_runs_cuts_the_border_and_not_the_picture(shared_data, name):
    source = shared_data / "real_xa" / name
    header = read_header(source)
    indices = np.unique(np.linspace(0, header.num_frames - 1, 8).round().astype(int))
    frames = read_frames(header, indices)
    inside = inside_of(frames.mean(-1) if frames.ndim == 4 else frames, photometric=header.photometric)
    least, most = REAL[name]
    assert least <= 1 - inside.mean() <= most
    rows, columns = inside.shape
    assert inside[rows // 5 : -rows // 5, columns // 5 : -columns // 5].all()


@pytest.mark.parametrize("name", REAL)
def test_find_border_of_real_runs_cropped_inside_their_border_is_hardly_any(shared_data, name):
    header = read_header(shared_data / "real_xa" / name)
    frames = read_frames(header, np.unique([0, header.num_frames // 2, header.num_frames - 1]))
    frames = frames.mean(-1) if frames.ndim == 4 else frames
    rng = np.random.default_rng(0)
    rows, columns = frames.shape[1:]
    for _ in range(10):
        size = rng.integers(rows // 3, int(0.6 * rows))
        top, left = (rng.integers(int(0.18 * n), int(0.82 * n) - size + 1) for n in (rows, columns))
        crop = frames[:, top : top + size, left : left + size]
        assert inside_of(crop, photometric=header.photometric).mean() > 0.98


# --- keep, fill, crop ---


def test_show_region_keep_is_the_same_tensor():
    values = torch.from_numpy(run_in(field("blades"), 3))
    assert show_region(values, header_of(values.shape), "keep") is values


@pytest.mark.parametrize(("photometric", "extreme"), [("MONOCHROME2", np.min), ("MONOCHROME1", np.max)])
def test_show_region_fill_gives_the_outside_the_darkest_value_of_the_region(photometric, extreme):
    values = np.random.default_rng(0).uniform(50, 90, (4, 30, 40)).astype(np.float32)
    values[:, :, :6], values[:, :, 34:] = 0, 255  # both would be wrong as filling
    header = header_of(values.shape, photometric=photometric, shutters=(Shutter(rectangle=(2, 27, 6, 33)),))
    filled = show_region(torch.from_numpy(values.copy()), header, "fill").numpy()
    truth = np.full_like(values, extreme(values[:, 2:28, 6:34]))
    truth[:, 2:28, 6:34] = values[:, 2:28, 6:34]
    np.testing.assert_array_equal(filled, truth)


def test_show_region_fills_a_subtracted_run_with_0():
    values = np.random.default_rng(0).normal(size=(4, 30, 40)).astype(np.float32)
    header = header_of(values.shape, subtracted=True, shutters=(Shutter(circle=(15.0, 20.0, 12.0)),))
    filled = show_region(torch.from_numpy(values), header, "fill").numpy()
    region = shutter_region(header).numpy()
    np.testing.assert_array_equal(filled, np.where(region, values, 0))


def test_show_region_crop_is_the_bounding_box_with_its_outside_filled():
    values = np.random.default_rng(0).uniform(50, 90, (2, 40, 50)).astype(np.float32)
    header = header_of(values.shape, shutters=(Shutter(circle=(15.0, 20.0, 10.0)),))
    cropped = show_region(torch.from_numpy(values), header, "crop").numpy()
    filled = show_region(torch.from_numpy(values), header, "fill").numpy()
    assert cropped.shape == (2, 21, 21)
    np.testing.assert_array_equal(cropped, filled[:, 5:26, 10:31])
    assert (cropped[:, 0, 0] == values[:, shutter_region(header).numpy()].min()).all()


def test_show_region_takes_shutter_and_border_together():
    truth = field("blades")
    values = torch.from_numpy(run_in(truth, 3, level=10))
    header = header_of(values.shape, shutters=(Shutter(rectangle=(0, 99, 0, 159)),))
    cropped = show_region(values, header, "crop")
    assert cropped.shape[1] == pytest.approx(91, abs=2) and cropped.shape[2] == pytest.approx(140, abs=2)


@pytest.mark.parametrize("border", ["fill", "crop"])
def test_show_region_with_nothing_left_is_unchanged(border):
    values = torch.from_numpy(run_in(field("one blade"), 3))
    apart = Shutter(rectangle=(0, 20, 0, 20)), Shutter(rectangle=(50, 60, 50, 60))
    only_blade = (Shutter(rectangle=(0, 159, 150, 159)),)
    for shutters in (apart, only_blade):
        assert show_region(values, header_of(values.shape, shutters=shutters), border) is values


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 3, 256]),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    subtracted=st.booleans(),
    border=st.sampled_from(BORDERS),
    shutters=st.lists(
        st.builds(
            Shutter,
            rectangle=st.none() | st.tuples(*[st.integers(-5, 30)] * 4),
            circle=st.none() | st.tuples(st.floats(-50, 50), st.floats(-50, 50), st.floats(0.1, 60)),
            polygon=st.none() | st.lists(st.tuples(*[st.floats(-1e12, 1e12)] * 2), min_size=3, max_size=6).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
)
def test_show_region_is_never_empty_and_makes_no_new_values(
    shape, seed, levels, photometric, subtracted, border, shutters
):
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32))
    before = values.clone()
    header = header_of(shape, photometric=photometric, subtracted=subtracted, shutters=shutters)
    shown = show_region(values, header, border)
    assert torch.equal(values, before)
    assert shown.dtype == torch.float32 and shown.ndim == 3 and shown.numel() > 0
    assert len(shown) == len(values) and shown.shape[1] <= shape[1] and shown.shape[2] <= shape[2]
    assert set(shown.unique().tolist()) <= {*values.unique().tolist(), *([0.0] if subtracted else [])}
    if border != "crop":
        assert shown.shape == values.shape


# --- panels ---


@pytest.mark.parametrize(("width", "half"), [(2, 1), (3, 1), (8, 4), (9, 4)])
def test_split_panel_halves_share_no_column(width, half):
    values = torch.arange(2 * 3 * width, dtype=torch.float32).view(2, 3, width)
    assert torch.equal(split_panel(values, "left"), values[:, :, :half])
    assert torch.equal(split_panel(values, "right"), values[:, :, width - half :])
    assert split_panel(values, "whole") is values


@pytest.mark.parametrize("panel", ["left", "right"])
def test_split_panel_of_one_column_is_refused(panel):
    values = torch.zeros(2, 3, 1)
    with pytest.raises(SequenceError) as error:
        split_panel(values, panel)
    assert_message(error.value, "frame width is 1", "at least 2", "Use whole")
    assert split_panel(values, "whole") is values


def test_check_geometry_accepts_the_known_words_only():
    for border in BORDERS:
        for panel in PANELS:
            check_geometry(border, panel)
    for border, panel, field_name in (("cut", "whole", "border"), ("keep", "middle", "panel")):
        with pytest.raises(ValueError) as error:
            check_geometry(border, panel)
        assert_message(error.value, "configuration", field_name, "one of")
    with pytest.raises(ValueError):
        show_region(torch.zeros(1, 2, 2), header_of((1, 2, 2)), "cut")
    with pytest.raises(ValueError):
        split_panel(torch.zeros(1, 2, 2), "middle")


@pytest.mark.parametrize("brighter", [1.5, 3.0, 10.0])
def test_region_of_a_panel_is_found_in_that_panel_alone(brighter):
    """A dim disc on the left, a picture that fills the right: 10 times brighter, the left would pass for border."""
    rows, columns = np.mgrid[:200, :400]
    frames = np.where((rows - 100) ** 2 + (columns - 110) ** 2 <= 80**2, 60.0, 0.0)
    frames[:, 200:] = 60.0 * brighter
    frames = frames + np.random.default_rng(0).normal(0, 1, (3, 200, 400))
    values = torch.from_numpy(frames.astype(np.float32))
    header = header_of(values.shape)
    assert abs(show_region(values, header, "crop", "left").shape[2] - 161) <= 4
    assert show_region(values, header, "crop", "right").shape == (3, 200, 200)
    assert torch.equal(show_region(values, header, "keep", "left"), values[..., :200])
