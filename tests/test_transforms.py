"""The MONAI transforms read a datalist item, keep its other keys, and end in what the encoder takes."""

import random

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from pydicom import uid

from scripts.errors import SequenceError
from scripts.keys import FRAME_INDICES, FRAME_TIMES, FRAMES, HEADER, IMAGE, LABEL, SOURCE
from scripts.sequences.transforms import (
    LoadSequenced,
    ResizeFramesd,
    ShowRegiond,
    ToEncoderInputd,
    WindowSequenced,
)
from tests.conftest import PERSON, assert_message, assert_no_person, ramp


def pipeline(**options: object) -> Compose:
    steps = [
        LoadSequenced(**options),
        ShowRegiond(),
        WindowSequenced(),
        ResizeFramesd(image_size=28),
        ToEncoderInputd(),
    ]
    return Compose(steps)


def test_load_sequence_gives_frames_times_indices_and_facts(save):
    item = {IMAGE: save(FrameTime="40", **PERSON), LABEL: 1, SOURCE: "run.dcm"}
    out = LoadSequenced()(item)
    assert out[IMAGE].dtype == torch.float32
    assert out[IMAGE].numpy().tolist() == ramp().tolist()
    torch.testing.assert_close(out[FRAME_TIMES], torch.tensor([0.0, 40, 80, 120]))
    torch.testing.assert_close(out[FRAME_INDICES], torch.arange(4))
    assert out[HEADER].modality == "XA"
    assert (out[LABEL], out[SOURCE]) == (1, "run.dcm")
    assert_no_person(out)


def test_load_sequence_leaves_the_item_as_it_was(save):
    item = {IMAGE: save(), FRAMES: [0, 2], FRAME_TIMES: [0, 1, 2, 3]}
    before = dict(item)
    LoadSequenced()(item)
    assert item == before


@pytest.mark.parametrize("kind", ["file", "folder", "list", "text"])
def test_load_sequence_reads_a_file_a_folder_and_a_list_alike(save, save_series, kind):
    folder = save_series("exam", [{"InstanceNumber": n, "FrameTime": "40"} for n in (1, 2, 3, 4)])
    sources = {
        "file": save(FrameTime="40"),
        "folder": folder,
        "list": [str(path) for path in sorted(folder.iterdir())],
        "text": str(folder),
    }
    out = LoadSequenced()({IMAGE: sources[kind]})
    assert out[IMAGE].numpy().tolist() == ramp().tolist()
    torch.testing.assert_close(out[FRAME_TIMES], torch.tensor([0.0, 40, 80, 120]))


def test_encoder_input_of_monochrome1_equals_its_monochrome2_twin(save):
    frames = ramp(3, bits=12)
    light = pipeline()({IMAGE: save("m2.dcm", frames, bits=12)})[IMAGE]
    dark = save("m1.dcm", (4095 - frames).astype(np.uint16), bits=12, PhotometricInterpretation="MONOCHROME1")
    torch.testing.assert_close(pipeline()({IMAGE: dark})[IMAGE], light, rtol=0, atol=1e-5)


def test_load_sequence_uniform_keeps_times_and_indices_of_the_frames_kept(save):
    path = save(frames=ramp(9), FrameTimeVector=[0, 5, 1, 1, 10, 1, 1, 1, 100])
    out = LoadSequenced(max_frames=3)({IMAGE: path})
    assert out[FRAME_INDICES].tolist() == [0, 4, 8]
    torch.testing.assert_close(out[FRAME_TIMES], torch.tensor([0.0, 17, 120]))
    assert out[IMAGE].numpy().tolist() == ramp(9)[[0, 4, 8]].tolist()


def test_load_sequence_all_ignores_max_frames(save):
    out = LoadSequenced(frame_choice="all", max_frames=2)({IMAGE: save(frames=ramp(30))})
    assert out[IMAGE].shape[0] == 30


def test_load_sequence_takes_the_frames_of_the_item_before_its_own_choice(save):
    path = save(frames=ramp(9), FrameTime="10")
    out = LoadSequenced(max_frames=2)({IMAGE: path, FRAMES: [1, 2, 7]})
    assert out[FRAME_INDICES].tolist() == [1, 2, 7]
    torch.testing.assert_close(out[FRAME_TIMES], torch.tensor([10.0, 20, 70]))
    assert out[IMAGE].numpy().tolist() == ramp(9)[[1, 2, 7]].tolist()


def test_load_sequence_takes_the_times_of_the_item_before_those_of_the_header(save):
    item = {IMAGE: save(FrameTime="10"), FRAME_TIMES: [100, 150, None, 400], FRAMES: [0, 2, 3]}
    times = LoadSequenced()(item)[FRAME_TIMES]
    np.testing.assert_array_equal(times.numpy(), [0, np.nan, 300])
    assert times.dtype == torch.float32


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        (FRAMES, [4], "[4]"),
        (FRAMES, [], "[]"),
        (FRAMES, [2, 1], "[2, 1]"),
        (FRAME_TIMES, [0, 1], "2 values"),
        (FRAME_TIMES, [0, 2, 1, 3], "4 values"),
    ],
)
def test_load_sequence_of_frames_or_times_that_do_not_fit_is_refused(save, key, value, found):
    path = save()
    with pytest.raises(SequenceError) as refused:
        LoadSequenced()({IMAGE: path, key: value})
    assert_message(refused.value, path, key, found, "4")


@pytest.mark.parametrize("options", [{"max_frames": 0}, {"frame_choice": "random"}, {"max_frames": "20"}])
def test_load_sequence_with_a_wrong_knob_fails_before_the_first_exam(options):
    with pytest.raises(ValueError) as refused:
        LoadSequenced(**options)
    ((name, value),) = options.items()
    assert_message(refused.value, name, value)


def test_load_sequence_over_the_size_limit_is_refused(save):
    path = save()
    with pytest.raises(SequenceError) as refused:
        LoadSequenced(max_sequence_bytes=479)({IMAGE: path})
    assert_message(refused.value, path, "decoded size", 480, 479)


def test_load_sequence_of_a_missing_path_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        LoadSequenced()({IMAGE: tmp_path / "no.dcm"})
    assert_message(refused.value, tmp_path / "no.dcm", "path", "absent")


@pytest.mark.parametrize("num_frames", [1, 2, 21, 200])
@pytest.mark.parametrize("size", [(12, 10), (7, 31), (2, 2)])
def test_encoder_input_of_any_sequence_has_its_shape_and_range(save, num_frames, size):
    out = pipeline(frame_choice="all")({IMAGE: save(frames=ramp(num_frames, *size))})
    assert out[IMAGE].shape == (num_frames, 3, 28, 28)
    assert out[IMAGE].dtype == torch.float32
    assert out[IMAGE].min() >= -1 and out[IMAGE].max() <= 1
    assert out[FRAME_TIMES].shape == out[FRAME_INDICES].shape == (num_frames,)


def test_encoder_input_keeps_the_change_between_frames(save):
    path = save(frames=np.stack([ramp(1)[0] // 8 + gain for gain in (0, 20, 60)]).astype(np.uint8))
    out = pipeline()({IMAGE: path})[IMAGE]
    means = out[:, 0, 4:24, 6:22].mean(dim=(1, 2))
    rise = means.diff()
    assert rise[0] > 0.3
    assert rise[1] / rise[0] == pytest.approx(2.0, rel=0.02)


def test_encoder_input_does_not_depend_on_the_number_of_bits(save):
    frames = ramp(3)
    images = []
    for bits in (8, 12, 16):
        scaled = frames if bits == 8 else (frames.astype(np.uint16) * 2 ** (bits - 8)).astype(np.uint16)
        images.append(pipeline()({IMAGE: save(f"{bits}.dcm", scaled, bits=bits)})[IMAGE])
    assert len(images) == 3
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], rtol=0, atol=1e-5)


def test_encoder_input_has_the_mean_and_deviation_asked_for(save):
    path = save()
    plain = pipeline()({IMAGE: path})[IMAGE]
    brightness = plain * 0.5 + 0.5
    steps = pipeline().transforms[:-1]
    asked = Compose([*steps, ToEncoderInputd(pixel_mean=[0.485, 0.456, 0.406], pixel_std=0.25)])({IMAGE: path})[IMAGE]
    shift = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    torch.testing.assert_close(asked, (brightness - shift) / 0.25)


@pytest.mark.parametrize("options", [{"pixel_mean": "grey"}, {"pixel_mean": [0.1, 0.2]}, {"pixel_std": 0.0}])
def test_mean_or_deviation_that_is_none_fails_before_the_first_exam(options):
    with pytest.raises(ValueError) as refused:
        ToEncoderInputd(**options)
    ((name, value),) = options.items()
    assert_message(refused.value, "configuration", name, value)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit])
def test_encoder_input_is_the_same_twice_and_leaves_the_global_random_state_alone(save, syntax):
    path = save(syntax=syntax)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, second = pipeline()({IMAGE: path}), pipeline()({IMAGE: path})
    torch.testing.assert_close(first[IMAGE], second[IMAGE], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
