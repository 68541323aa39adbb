"""Feature extraction: each frame once, each exam by its content, each setting in the fingerprint."""

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from monai.transforms import Compose
from PIL import Image
from torch import nn

from scripts.errors import RunFailedError
from scripts.features.entries import entry_key, pass_key
from scripts.features.exams import read_ahead
from scripts.features.extract import cache_features
from scripts.features.fingerprint import make_fingerprint
from scripts.keys import FRAME_INDICES, FRAME_TIMES, FRAMES, IMAGE, MODALITY, SOURCE
from scripts.networks.encoder import FrameEncoder
from scripts.networks.weights import load_into
from scripts.sequences.augmentation import make_augmentation
from scripts.sequences.transforms import (
    LoadSequenced,
    ResizeFramesd,
    ShowRegiond,
    ToEncoderInputd,
    WindowSequenced,
)
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.exams import item_of, write_exam


class CountingEncoder(nn.Module):
    """Mean and spread of each channel, (N, 6); keeps the number of frames of every call."""

    name, pooling, layers = "counting", "avg", 1

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(frames))
        return torch.cat([frames.mean(dim=(2, 3)), frames.std(dim=(2, 3))], dim=1)


def preprocessing_of(image_size: int = 32, max_frames: int = 16) -> Compose:
    return Compose(
        [
            LoadSequenced(max_frames=max_frames),
            ShowRegiond(),
            WindowSequenced(),
            ResizeFramesd(image_size=image_size),
            ToEncoderInputd(),
        ]
    )


def run(
    items: list[dict],
    folder: Path,
    image_size: int = 32,
    encoder: CountingEncoder | None = None,
    augmentation: Compose | None = None,
    seed: int = 0,
    **options: object,
) -> list[int]:
    """Cache the features of the items; returns the frames of each encoder call."""
    encoder, preprocessing = encoder or CountingEncoder(), preprocessing_of(image_size)
    fingerprint = make_fingerprint(encoder, "0", preprocessing, "float32", "torch", augmentation, seed)
    options = {"batch_frames": 16, "progress": False, "augmentation": augmentation, **options}
    cache_features(items, preprocessing, encoder, folder, fingerprint, "cpu", **options)
    return encoder.calls


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def items(tmp_path) -> list[dict]:
    """Three exams of 3, 4 and 5 frames."""
    return [item_of(write_exam(tmp_path / f"{n}.dcm", num_frames=3 + n, seed=n)) for n in range(3)]


# --- each frame once ---


def test_first_run_computes_every_frame_and_the_second_none(items, folder):
    assert sum(run(items, folder)) == 3 + 4 + 5
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(items, folder) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_moved_and_renamed_exam_is_found_again(items, folder, tmp_path):
    run(items, folder)
    moved = tmp_path / "elsewhere" / "other.dcm"
    moved.parent.mkdir()
    items[1][IMAGE].rename(moved)
    items[1] = item_of(moved)
    assert run(items, folder) == []
    assert entry_key(items[1]) in FeatureStore.open(folder)


def test_exam_whose_bytes_changed_is_the_only_one_computed_again(items, folder):
    run(items, folder)
    write_exam(items[1][IMAGE], num_frames=4, seed=77)
    assert run(items, folder) == [4]
    assert len(FeatureStore.open(folder)) == 4  # what was there before stays


@pytest.mark.parametrize("change", [{FRAMES: [0, 2]}, {FRAME_TIMES: [0, 5, 9, 20]}])
def test_exam_with_another_frame_choice_or_times_is_another_entry(items, folder, change):
    run(items, folder)
    items[1] |= change
    assert run(items, folder) == [len(change.get(FRAMES, range(4)))]


def test_same_content_listed_twice_is_encoded_once_and_found_under_both_names(items, folder, tmp_path):
    copied = tmp_path / "copy.dcm"
    copied.write_bytes(items[0][IMAGE].read_bytes())
    items.append(item_of(copied))
    assert sum(run(items, folder)) == 3 + 4 + 5
    assert entry_key(items[0]) == entry_key(items[3]) in FeatureStore.open(folder)


def test_key_of_a_folder_is_that_of_its_files_whatever_their_names_and_of_a_list_their_order(tmp_path):
    first, second = (write_exam(tmp_path / "run" / f"{n}.dcm", num_frames=1, seed=n) for n in range(2))
    by_folder = entry_key({IMAGE: tmp_path / "run"})
    assert entry_key({IMAGE: [first, second]}) != entry_key({IMAGE: [second, first]})
    first.rename(tmp_path / "run" / "z.dcm")
    assert entry_key({IMAGE: tmp_path / "run"}) == by_folder
    (tmp_path / "run" / "notes.txt").write_text("no DICOM")
    assert entry_key({IMAGE: tmp_path / "run"}) == by_folder
    write_exam(second, num_frames=1, seed=9)
    assert entry_key({IMAGE: tmp_path / "run"}) != by_folder


def test_tasks_of_a_job_array_share_the_exams_and_each_reports_its_own_failures(items, folder, tmp_path):
    items.insert(1, item_of(tmp_path / "absent.dcm"))  # 0 and 2 of task 0, 1 and 3 of task 1
    with pytest.raises(RunFailedError, match=r"1 of 4 exams could not be used(.|\n)*absent"):
        run(items, folder, rank=1, world_size=2)
    assert sum(run(items, folder, rank=0, world_size=2)) == 3 + 4
    assert {path.name for path in folder.glob("rank*")} == {"rank0-0.safetensors", "rank1-0.safetensors"}
    assert len(FeatureStore.open(folder)) == 3


@pytest.mark.parametrize("wanted", [0, -1, 1.5, True, "many", 1000])
def test_number_of_readers_that_cannot_be_is_refused(items, folder, wanted):
    with pytest.raises(ValueError) as error:
        run(items, folder, num_readers=wanted)
    assert_message(error.value, "configuration", "num_readers", wanted, "auto")


# --- what is in the store is used only if it is whole ---


def test_reading_ahead_that_is_given_up_waits_for_no_exam_and_begins_no_other():
    begun, go_on = [], threading.Event()

    def read(position: int) -> int:
        begun.append(position)
        return position if position == 0 else go_on.wait(60)

    exams = read_ahead(read, range(100), readers=2)
    assert next(exams) == 0
    exams.close()  # the readers of two others stand still
    go_on.set()
    assert max(begun) <= 2


def test_threads_that_read_leave_the_cores_to_the_encoder():
    before = torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def read(_: int) -> tuple[int, int]:
        return torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    for threads, niceness in read_ahead(read, range(4), readers=2):
        assert threads == 1
        assert niceness >= 10 or sys.platform != "linux"
    assert (torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == before


def test_run_on_a_damaged_store_names_the_shard_and_the_way_to_repair_it(items, folder):
    run(items, folder)
    (shard,) = folder.glob("rank*")
    content = bytearray(shard.read_bytes())
    content[-20] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="python -m scripts store prune") as error:
        run(items, folder)
    assert shard.name in str(error.value)


# --- augmented passes ---


def entries_of(folder: Path) -> dict[str, torch.Tensor]:
    store = FeatureStore.open(folder)
    return {key: store.read(key).features for key in list(store.keys())}


def test_augmented_passes_are_stored_beside_the_plain_one_each_another(items, folder, tmp_path):
    assert sum(run(items, folder, augmentation=make_augmentation(), augmented_passes=2)) == 3 * (3 + 4 + 5)
    found = entries_of(folder)
    assert len(found) == 9
    run(items, tmp_path / "plain")
    for key, plain in entries_of(tmp_path / "plain").items():
        passes = [found[pass_key(key, number)] for number in range(3)]
        assert torch.equal(passes[0], plain)
        assert not torch.equal(passes[1], plain) and not torch.equal(passes[1], passes[2])


def test_augmented_passes_are_the_same_whatever_the_order_of_the_exams_and_differ_by_seed(items, folder, tmp_path):
    options = {"augmentation": make_augmentation(), "augmented_passes": 1}
    run(items, folder, **options)
    run(items[::-1], tmp_path / "reversed", num_readers=1, **options)
    run(items, tmp_path / "seeded", seed=1, **options)
    found, turned, seeded = (entries_of(path) for path in (folder, tmp_path / "reversed", tmp_path / "seeded"))
    assert found.keys() == turned.keys() == seeded.keys() and len(found) == 6
    assert all(torch.equal(found[key], turned[key]) for key in found)
    assert sum(torch.equal(found[key], seeded[key]) for key in found) == 3  # the plain ones


def test_passes_added_later_compute_the_new_ones_alone(items, folder):
    augmentation = make_augmentation()
    run(items, folder, augmentation=augmentation)
    assert sum(run(items, folder, augmentation=augmentation, augmented_passes=1)) == 3 + 4 + 5
    assert run(items, folder, augmentation=augmentation, augmented_passes=1) == []


def test_passes_that_no_memory_would_hold_are_refused_before_anything_is_made(items, folder):
    with pytest.raises(ValueError) as error:
        run(items, folder, augmentation=make_augmentation(), augmented_passes=10**9)
    assert_message(error.value, "augmented_passes is 1000000000, needs 0 to 64")
    assert not folder.exists()


def test_global_random_state_is_left_alone_by_augmented_passes(items, folder):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(items, folder, augmentation=make_augmentation(), augmented_passes=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("batch_frames", "sizes"), [(1, [1] * 12), (5, [5, 5, 2]), (16, [12])])
def test_encoder_sees_batches_filled_from_several_exams_and_the_features_stay_the_same(
    items, folder, tmp_path, batch_frames, sizes
):
    assert run(items, folder, batch_frames=batch_frames) == sizes
    run(items, tmp_path / "whole")
    for item in items:
        found, whole = (FeatureStore.open(path).read(entry_key(item)) for path in (folder, tmp_path / "whole"))
        torch.testing.assert_close(found.features, whole.features)


# --- values ---


def test_stored_features_are_the_encoders_output_to_half_precision(items, folder):
    encoder, preprocessing = FrameEncoder("test_vit"), preprocessing_of(max_frames=3)
    encoder_digest = load_into(encoder, "random:0", "models")
    fingerprint = make_fingerprint(encoder, encoder_digest, preprocessing, "float32", "torch")
    cache_features(items, preprocessing, encoder, folder, fingerprint, "cpu", batch_frames=2, progress=False)
    store = FeatureStore.open(folder, fingerprint)
    with torch.inference_mode():
        for n, item in enumerate(items):
            read = preprocessing(item)
            wanted = encoder(read[IMAGE])
            found = store.read(entry_key(item))
            assert found.features.dtype == torch.float16
            torch.testing.assert_close(found.features.float(), wanted, rtol=2**-10, atol=1e-4)
            torch.testing.assert_close(found.frame_times_ms, read[FRAME_TIMES])
            assert found.frame_indices.tolist() == read[FRAME_INDICES].tolist()
            assert found.frame_indices.tolist() == np.linspace(0, 2 + n, 3).round().tolist()


# --- bad exams ---


def test_bad_exams_are_listed_by_their_list_path_and_the_others_are_stored(items, folder, tmp_path):
    (tmp_path / "broken.dcm").write_bytes(b"not DICOM at all" * 20)
    cut = write_exam(tmp_path / "cut.dcm", seed=8)
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    bad = [item_of(tmp_path / name) for name in ("broken.dcm", "absent.dcm", "cut.dcm", "empty")]
    listed = [items[0], bad[0], items[1], *bad[1:], items[2]]
    with pytest.raises(RunFailedError, match="4 of 7 exams could not be used; the others are done") as error:
        run(listed, folder)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 4
    for item in bad:
        assert sum(item[SOURCE] in line for line in lines) == 1
    assert str(tmp_path) not in str(error.value)
    store = FeatureStore.open(folder)
    assert set(store.keys()) == {entry_key(item) for item in items}


def test_run_after_the_bad_exam_was_mended_computes_that_one_alone(items, folder):
    whole = items[1][IMAGE].read_bytes()
    items[1][IMAGE].write_bytes(whole[:-100])
    with pytest.raises(RunFailedError, match=r"1 of 3"):
        run(items, folder)
    items[1][IMAGE].write_bytes(whole)
    assert run(items, folder) == [4]


def test_exam_whose_features_are_not_finite_is_reported_and_the_others_are_stored(items, folder):
    class Overflowing(CountingEncoder):
        def forward(self, frames):
            factors = torch.ones(len(frames), 1)
            factors[5] = 1e6  # of the second exam, past float16
            return super().forward(frames) * factors

    with pytest.raises(RunFailedError, match=r"1 of 3 exams(.|\n)*1\.dcm"):
        run(items, folder, encoder=Overflowing())
    assert len(FeatureStore.open(folder)) == 2


def test_two_copies_of_a_bad_exam_are_both_reported(items, folder, tmp_path):
    cut = items[1][IMAGE]
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "copy.dcm").write_bytes(cut.read_bytes())
    with pytest.raises(RunFailedError, match="2 of 4"):
        run([*items, item_of(tmp_path / "copy.dcm")], folder)


def test_folder_of_images_is_cached_by_its_pictures_and_their_times(tmp_path, folder):
    frames = np.random.default_rng(0).integers(0, 256, (3, 24, 24), dtype=np.uint8)
    (tmp_path / "run").mkdir()
    for n, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "run" / f"{n}.png")
    item = item_of(tmp_path / "run")
    assert run([item], folder) == [3]
    assert run([item], folder) == []
    (tmp_path / "run" / "notes.txt").write_text("no picture")
    assert run([item], folder) == []
    assert entry_key(item) != entry_key({**item, MODALITY: "OP"})
    (tmp_path / "run" / "times.csv").write_text("file,time_ms\n0.png,0\n1.png,40\n2.png,80\n")
    assert run([item], folder) == [3]


def test_odd_exams_are_counted_for_the_log(tmp_path, folder, caplog):
    odd = write_exam(tmp_path / "odd.dcm", seed=1)
    exam = pydicom.dcmread(odd)
    exam.CineRate = 7  # beside a FrameTime of 100 ms
    exam.save_as(odd)
    with caplog.at_level("WARNING", logger="angiography"):
        run([item_of(odd), item_of(write_exam(tmp_path / "even.dcm", seed=2))], folder)
    assert [record.message for record in caplog.records] == [
        "1 exams are odd but usable; python -m scripts check DATALIST tells what is odd in each"
    ]


def test_runs_that_came_down_to_one_frame_are_counted_for_the_log(tmp_path, folder, caplog):
    item = item_of(write_exam(tmp_path / "run.dcm", seed=1), **{FRAMES: [2]})
    with caplog.at_level("WARNING", logger="angiography"):
        run([item], folder)
    assert [record.message for record in caplog.records] == [
        "1 runs came down to one frame, in which nothing moves; frame_choice does not suit them"
    ]
