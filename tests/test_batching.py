"""Batches of cached features: padding, labels, shuffling, dropout, and sequences that are not there."""

import logging
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from scripts.features.batching import FeatureDataset, collate_sequences, feature_scale
from scripts.features.entries import entry_key, pass_key
from scripts.keys import ENTRY, ERROR, FEATURES, FRAME_TIMES, IMAGE, LABEL, LENGTHS, PATIENT, SEQUENCE, SOURCE
from scripts.store.store import FeatureStore, StoredSequence
from tests.exams import item_of

LENGTHS_STORED = (6, 1, 4)


@pytest.fixture
def fill(tmp_path) -> Callable[..., tuple[list[dict], FeatureStore]]:
    """Items, which are any files, and a store that holds features of their content."""

    def make(
        lengths: tuple[int, ...] = LENGTHS_STORED, width: int | tuple[int, int] = 5, dtype: torch.dtype = torch.float16
    ) -> tuple[list[dict], FeatureStore]:
        store = FeatureStore.create(tmp_path / "features", {"test": "batching"})
        items = []
        with store.writer() as writer:
            for n, length in enumerate(lengths):
                path: Path = tmp_path / f"{n}.dcm"
                path.write_text(f"content {n}")
                items.append(item_of(path, **{LABEL: n % 3}))
                generator = torch.Generator().manual_seed(n)
                features = torch.randn(length, *np.atleast_1d(width), generator=generator).to(dtype)
                times = torch.arange(length, dtype=torch.float32) * 100
                writer.add(entry_key(items[-1]), StoredSequence(features, times, torch.arange(length)))
        return items, store

    return make


# --- items ---


def test_items_are_the_stored_features_in_single_precision_with_label_and_names(fill):
    items, store = fill()
    dataset = FeatureDataset(items, store)
    assert len(dataset) == 3
    for n, item in enumerate(items):
        stored, found = store.read(entry_key(item)), dataset[n]
        assert found[FEATURES].dtype == torch.float32
        torch.testing.assert_close(found[FEATURES], stored.features.float(), rtol=0, atol=0)
        torch.testing.assert_close(found[FRAME_TIMES], stored.frame_times_ms, rtol=0, atol=0)
        assert {key: found[key] for key in (LABEL, SOURCE, SEQUENCE, PATIENT)} == {
            LABEL: n,
            SOURCE: f"{n}.dcm",
            SEQUENCE: f"{n}",
            PATIENT: f"of {n}",
        }


def test_shuffled_frames_are_the_same_frames_in_another_order_with_times_in_place(fill):
    items, store = fill((40, 1))
    plain, shuffled = (
        FeatureDataset(items, store)[0],
        FeatureDataset(items, store, frames_shown="shuffled")[0],
    )
    torch.testing.assert_close(shuffled[FRAME_TIMES], plain[FRAME_TIMES], rtol=0, atol=0)
    assert not torch.equal(shuffled[FEATURES], plain[FEATURES])
    assert sorted(shuffled[FEATURES].tolist()) == sorted(plain[FEATURES].tolist())


def test_dropout_leaves_whole_frames_in_order_with_their_own_times_and_drops_its_share(fill):
    items, store = fill((60,))
    plain, dataset = FeatureDataset(items, store)[0], FeatureDataset(items, store, frame_dropout=0.5)
    rows = {tuple(row): n for n, row in enumerate(plain[FEATURES].tolist())}
    kept = 0
    for _ in range(50):
        found = dataset[0]
        indices = [rows[tuple(row)] for row in found[FEATURES].tolist()]
        assert indices == sorted(set(indices))
        assert found[FRAME_TIMES].tolist() == [100.0 * index for index in indices]
        kept += len(indices)
    assert 0.45 < kept / (50 * 60) < 0.55


def test_dropout_keeps_at_least_one_frame(fill):
    items, store = fill((3, 1))
    dataset = FeatureDataset(items, store, frame_dropout=0.99)
    lengths = [len(dataset[n][FEATURES]) for _ in range(200) for n in range(2)]
    assert len(lengths) == 400
    assert min(lengths) == 1


def test_shuffling_and_dropout_leave_the_global_random_states_alone(fill):
    def states() -> tuple:
        return random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()  # noqa: NPY002

    items, store = fill((30,))
    before = states()
    dataset = FeatureDataset(items, store, frames_shown="shuffled", frame_dropout=0.5)
    drawn = [dataset[0][FEATURES] for _ in range(3)]
    assert states() == before
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_draws_repeat_with_the_seed_and_differ_without(fill):
    items, store = fill((30,))
    drawn = [
        FeatureDataset(items, store, frames_shown="shuffled", frame_dropout=0.3, seed=seed)[0][FEATURES]
        for seed in (1, 1, 2)
    ]
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert drawn[0].shape != drawn[2].shape or not torch.equal(drawn[0], drawn[2])


def test_draws_follow_from_the_epoch_and_the_sequence_whatever_is_read_before_it(fill):
    def read(order: list[int], epoch: int) -> dict[int, list]:
        dataset = FeatureDataset(*fill((30, 20, 10)), frame_dropout=0.5, time_jitter=0.5)
        dataset.set_epoch(epoch)
        return {n: dataset[n][FEATURES].tolist() for n in order}

    first = read([0, 1, 2], epoch=1)
    assert read([2, 0, 1], epoch=1) == first
    assert all(read([n], epoch=1)[n] == first[n] for n in range(3))
    other = read([0, 1, 2], epoch=2)
    assert all(other[n] != first[n] for n in range(3))


def test_a_sequence_read_again_in_an_epoch_is_drawn_anew_and_the_epoch_repeats(fill):
    dataset = FeatureDataset(*fill((30,)), frame_dropout=0.5)
    drawn = []
    for _ in range(2):
        dataset.set_epoch(7)
        drawn.append([dataset[0][FRAME_TIMES].tolist() for _ in range(3)])
    assert drawn[0] == drawn[1]
    assert len({tuple(times) for times in drawn[0]}) == 3


def test_jitter_moves_every_frame_part_of_the_way_to_one_beside_it(fill):
    items, store = fill((40, 1))
    plain, dataset = FeatureDataset(items, store), FeatureDataset(items, store, time_jitter=0.3)
    before, moved = plain[0], dataset[0]
    steps = moved[FRAME_TIMES] / 100.0 - torch.arange(40)  # frames are 100 ms apart
    assert 0.2 < float(steps.abs().max()) <= 0.3001
    assert (steps < 0).any() and (steps > 0).any()
    for t in range(1, 39):
        beside = t + (1 if steps[t] > 0 else -1)
        mixed = torch.lerp(before[FEATURES][t], before[FEATURES][beside], steps[t].abs())
        torch.testing.assert_close(moved[FEATURES][t], mixed, rtol=1e-3, atol=1e-4)
    assert moved[FRAME_TIMES].tolist() == sorted(moved[FRAME_TIMES].tolist())
    assert moved[FEATURES].dtype == torch.float32
    torch.testing.assert_close(dataset[1][FEATURES], plain[1][FEATURES], rtol=0, atol=0)  # there is none beside it


def test_jitter_knows_no_time_beside_a_frame_without_one(tmp_path):
    store = FeatureStore.create(tmp_path / "features", {"test": "batching"})
    (tmp_path / "a.dcm").write_text("a")
    item = item_of(tmp_path / "a.dcm")
    times = torch.tensor([0.0, 100.0, torch.nan, 300.0, 400.0])
    with store.writer() as writer:
        writer.add(entry_key(item), StoredSequence(torch.randn(5, 3), times, torch.arange(5)))
    moved = FeatureDataset([item], store, time_jitter=0.5)[0]
    assert torch.isfinite(moved[FEATURES]).all()
    assert torch.isnan(moved[FRAME_TIMES][2])
    assert torch.isfinite(moved[FRAME_TIMES][[0, 4]]).all()


def test_labels_that_are_not_known_are_minus_one_in_the_batch(fill):
    items, store = fill()
    items = [item | {LABEL: label} for item, label in zip(items, ([1, -1], [0, 1], [-1, 0]), strict=True)]
    batch = collate_sequences(FeatureDataset(items, store).__getitems__(range(3)))
    assert batch[LABEL].tolist() == [[1.0, -1.0], [0.0, 1.0], [-1.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_shown": "last"}, "frames_shown is last, needs one of .'all', 'shuffled'"),
        ({"frame_dropout": 1.0}, "frame_dropout is 1.0, needs 0.0 up to below 1.0"),
        ({"frame_dropout": -0.1}, "frame_dropout is -0.1"),
        ({"time_jitter": 0.6}, "time_jitter is 0.6, needs 0.0 to 0.5"),
    ],
)
def test_unknown_options_are_refused(fill, options, message):
    with pytest.raises(ValueError, match=message):
        FeatureDataset(*fill(), **options)


# --- sequences the store does not hold ---


def test_missing_sequences_are_refused_with_their_number_the_first_and_the_way_out(fill, tmp_path):
    items, store = fill()
    for name in ("new.dcm", "newer.dcm"):
        (tmp_path / name).write_text(name)
        items.append(item_of(tmp_path / name))
    with pytest.raises(ValueError, match=r"without 2 of 5 sequences, first new\.dcm") as error:
        FeatureDataset(items, store)
    assert "cache_features.yaml" in str(error.value)
    assert "--skip_missing True" in str(error.value)


def test_skip_missing_leaves_them_out_with_a_warning(fill, tmp_path, caplog):
    items, store = fill()
    (tmp_path / "new.dcm").write_text("new")
    with caplog.at_level(logging.WARNING, logger="angiography"):
        dataset = FeatureDataset([item_of(tmp_path / "new.dcm"), *items], store, skip_missing=True)
    assert [dataset[n][SOURCE] for n in range(len(dataset))] == ["0.dcm", "1.dcm", "2.dcm"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without 1 of 4 sequences, first new.dcm" in caplog.text


def test_skip_missing_still_refuses_a_store_that_holds_none_of_them(fill, tmp_path):
    _, store = fill()
    (tmp_path / "new.dcm").write_text("new")
    with pytest.raises(ValueError, match="without 1 of 1 sequences"):
        FeatureDataset([item_of(tmp_path / "new.dcm")], store, skip_missing=True)


def test_skip_missing_leaves_out_an_exam_whose_file_is_gone(fill):
    items, store = fill()
    items[1][IMAGE].unlink()
    assert len(FeatureDataset(items, store, skip_missing=True)) == 2


def test_items_with_an_entry_are_found_without_reading_a_file(fill, monkeypatch):
    items, store = fill()
    keys = [entry_key(item) for item in items]
    monkeypatch.setattr("hashlib.file_digest", None)
    dataset = FeatureDataset([{ENTRY: key, SOURCE: key[:16]} for key in keys], store)
    assert dataset.keys == keys
    assert dataset.lengths.tolist() == list(LENGTHS_STORED)
    with pytest.raises(ValueError, match=f"without 1 of 2 sequences, first {'f' * 16}"):
        FeatureDataset([{ENTRY: key, SOURCE: key[:16]} for key in (keys[0], "f" * 64)], store)


def test_exams_are_hashed_in_several_threads_and_stay_in_order(fill, monkeypatch):
    items, store = fill((2,) * 8)
    together = threading.Barrier(2, timeout=10)

    def meeting(item: dict) -> str:
        together.wait()  # passes only where two threads hash at once
        return entry_key(item)

    monkeypatch.setattr("scripts.features.entries.entry_key", meeting)
    assert FeatureDataset(items, store).keys == [entry_key(item) for item in items]


# --- augmented passes ---


@pytest.fixture
def passes(fill):
    """Items, and a store with two augmented passes of each, whose features are the number of the pass."""
    items, store = fill((5, 3, 4))
    with store.writer() as writer:
        for item in items:
            stored = store.read(entry_key(item))
            for number in (1, 2):
                changed = stored._replace(features=torch.full_like(stored.features, number))
                writer.add(pass_key(entry_key(item), number), changed)
    return items, store


def pass_of(features: torch.Tensor) -> int:
    return int(features[0, 0]) if len(features.unique()) == 1 else 0


def test_augmented_reading_draws_every_pass_alike_and_keeps_lengths_and_label(passes):
    dataset = FeatureDataset(*passes, augmented=True)
    found = [pass_of(dataset[n][FEATURES]) for _ in range(100) for n in range(3)]
    assert len(found) == 300
    assert all(70 < found.count(number) < 130 for number in range(3))
    assert dataset.lengths.tolist() == [5, 3, 4]
    assert [dataset[n][LABEL] for n in range(3)] == [0, 1, 2]


def test_plain_reading_never_sees_a_pass(passes):
    dataset = FeatureDataset(*passes)
    assert {pass_of(dataset[n][FEATURES]) for _ in range(20) for n in range(3)} == {0}
    augmented = FeatureDataset(*passes, augmented=True)
    assert {pass_of(augmented.plain(n).features) for _ in range(20) for n in range(3)} == {0}
    for found, expected in zip(feature_scale(augmented), feature_scale(dataset), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_passes_drawn_repeat_with_the_seed_and_leave_dropout_as_it_is(passes):
    def drawn(seed: int, **options) -> list[dict]:
        dataset = FeatureDataset(*passes, frame_dropout=0.4, seed=seed, **options)
        return [dataset[n] for _ in range(10) for n in range(3)]

    first, again, other = (
        [pass_of(item[FEATURES]) for item in drawn(seed, augmented=True) if len(item[FEATURES]) > 1]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    plain, augmented = drawn(1), drawn(1, augmented=True)
    assert [i[FRAME_TIMES].tolist() for i in plain] == [i[FRAME_TIMES].tolist() for i in augmented]


def test_an_exam_without_a_pass_that_others_have_is_refused_like_a_missing_one(passes, tmp_path):
    items, store = passes
    (tmp_path / "late.dcm").write_text("late")
    items.append(item_of(tmp_path / "late.dcm"))
    with store.writer() as writer:
        writer.add(entry_key(items[-1]), store.read(entry_key(items[0])))
    assert len(FeatureDataset(items, store)) == 4
    with pytest.raises(ValueError, match=r"without 1 of 4 sequences, first late\.dcm"):
        FeatureDataset(items, store, augmented=True)
    assert len(FeatureDataset(items, store, augmented=True, skip_missing=True)) == 3


def test_augmented_reading_of_a_store_without_passes_is_plain_reading(fill):
    items, store = fill()
    plain, augmented = FeatureDataset(items, store), FeatureDataset(items, store, augmented=True)
    for n in range(3):
        torch.testing.assert_close(augmented[n][FEATURES], plain[n][FEATURES], rtol=0, atol=0)


# --- batches ---


@pytest.mark.parametrize("options", [{}, {"frames_shown": "shuffled", "frame_dropout": 0.3, "augmented": True}])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_of_a_loader_are_those_of_single_items(passes, options, batch_size):
    one_by_one, together = (FeatureDataset(*passes, **options) for _ in range(2))
    for batch in DataLoader(together, batch_size=batch_size, collate_fn=collate_sequences):
        items = [one_by_one[int(source[0])] for source in batch[SOURCE]]
        expected = collate_sequences(items)
        assert batch.keys() == expected.keys()
        assert batch[FEATURES].dtype == torch.float32
        for key in (FEATURES, FRAME_TIMES, LENGTHS, LABEL):
            torch.testing.assert_close(batch[key], expected[key], rtol=0, atol=0, equal_nan=True)


def test_a_batch_is_made_of_the_stores_own_memory_with_one_copy_of_it(fill, monkeypatch):
    items, store = fill()
    dataset = FeatureDataset(items, store)
    stored = [store.view(row).features.data_ptr() for row in store.find(dataset.keys).tolist()]
    assert [item[FEATURES].data_ptr() for item in dataset.__getitems__(range(3))] == stored
    monkeypatch.setattr(FeatureDataset, "__getitem__", None)  # which a loader would otherwise call, item by item
    (batch,) = DataLoader(dataset, batch_size=3, collate_fn=collate_sequences)
    assert batch[FEATURES].shape == (3, 6, 5)


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [2, 2]])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_changing_a_batch_or_an_item_in_place_changes_nothing_in_the_store(fill, indices, dtype):
    items, store = fill((4, 4, 4), dtype=dtype)
    dataset = FeatureDataset(items, store)
    before = [store.read(key) for key in dataset.keys]
    for changed in (collate_sequences(dataset.__getitems__(indices)), dataset[0]):
        changed[FEATURES].fill_(7)
        changed[FRAME_TIMES].fill_(7)
    for key, stored in zip(dataset.keys, before, strict=True):
        for found, expected in zip(store.read(key), stored, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_patch_tokens_are_averaged_on_reading(fill):
    items, store = fill((3, 2), width=(7, 5))
    dataset = FeatureDataset(items, store)
    assert store.read(dataset.keys[0]).features.shape == (3, 7, 5)
    expected = [store.read(key).features.float().mean(dim=1) for key in dataset.keys]
    torch.testing.assert_close(dataset[0][FEATURES], expected[0])
    batch = collate_sequences(dataset.__getitems__([0, 1]))[FEATURES]
    torch.testing.assert_close(batch[1, :2], expected[1])
    torch.testing.assert_close(feature_scale(dataset)[0], torch.cat(expected).mean(dim=0))


def test_dataset_in_another_process_reads_the_same_though_the_store_grew_meanwhile(fill, tmp_path):
    items, store = fill()
    dataset = FeatureDataset(items[1:], store)
    content = pickle.dumps(dataset)
    with FeatureStore.open(store.path).writer() as writer:
        for n in range(20):
            writer.add(f"{n:064x}", StoredSequence(torch.zeros(2, 5).half(), torch.zeros(2), torch.arange(2)))
    again = pickle.loads(content)
    for n in range(2):
        torch.testing.assert_close(again[n][FEATURES], dataset[n][FEATURES], rtol=0, atol=0)


def test_batch_pads_features_with_zeros_and_times_with_nan_up_to_the_longest(fill):
    dataset = FeatureDataset(*fill())
    items = [dataset[n] for n in range(3)]
    batch = collate_sequences(items)
    assert batch[FEATURES].shape == (3, 6, 5)
    assert batch[LENGTHS].tolist() == list(LENGTHS_STORED)
    assert batch[LENGTHS].dtype == torch.int64
    for n, length in enumerate(LENGTHS_STORED):
        torch.testing.assert_close(batch[FEATURES][n, :length], items[n][FEATURES], rtol=0, atol=0)
        torch.testing.assert_close(batch[FRAME_TIMES][n, :length], items[n][FRAME_TIMES], rtol=0, atol=0)
        assert bool((batch[FEATURES][n, length:] == 0).all())
        assert bool(batch[FRAME_TIMES][n, length:].isnan().all())
    assert batch[SOURCE] == ["0.dcm", "1.dcm", "2.dcm"]
    assert batch[PATIENT] == ["of 0", "of 1", "of 2"]


def test_batch_of_class_indices_is_int64_and_of_several_labels_float32(fill):
    dataset = FeatureDataset(*fill())
    items = [dataset[n] for n in range(3)]
    assert collate_sequences(items)[LABEL].tolist() == [0, 1, 2]
    assert collate_sequences(items)[LABEL].dtype == torch.int64
    several = collate_sequences([{**item, LABEL: [1, 0, n % 2]} for n, item in enumerate(items)])[LABEL]
    assert several.dtype == torch.float32
    assert several.tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]


def test_batch_without_labels_has_none(fill):
    items, store = fill()
    dataset = FeatureDataset([{k: v for k, v in item.items() if k != LABEL} for item in items], store)
    assert LABEL not in collate_sequences([dataset[n] for n in range(3)])


def test_batch_of_images_is_padded_the_same_way():
    items = [{IMAGE: torch.full((n, 3, 4, 4), float(n)), FRAME_TIMES: torch.zeros(n), SOURCE: f"{n}"} for n in (2, 3)]
    batch = collate_sequences(items)
    assert batch[IMAGE].shape == (2, 3, 3, 4, 4)
    assert batch[LENGTHS].tolist() == [2, 3]
    assert batch[IMAGE][0, :, 0, 0, 0].tolist() == [2, 2, 0]


def test_unreadable_exams_are_in_error_and_nowhere_else(fill):
    dataset, bad = FeatureDataset(*fill()), {SOURCE: "bad.dcm", ERROR: "bad.dcm: unreadable"}
    batch = collate_sequences([dataset[0], bad, dataset[1]])
    assert batch[ERROR] == [bad]
    assert batch[SOURCE] == ["0.dcm", "1.dcm"]
    assert batch[FEATURES].shape == (2, 6, 5)
    assert collate_sequences([bad, bad]) == {ERROR: [bad, bad]}
    assert ERROR not in collate_sequences([dataset[0]])


@pytest.mark.parametrize("optional", [PATIENT, SEQUENCE])
def test_batch_may_mix_items_with_and_without_an_optional_key(fill, optional):
    items, store = fill()
    del items[1][optional]
    dataset = FeatureDataset(items, store)
    assert len(collate_sequences([dataset[n] for n in range(3)])[LENGTHS]) == 3


def test_feature_scale_is_mean_and_deviation_over_every_frame(fill):
    items, store = fill((6, 1, 4) * 100)
    frames = torch.cat([store.read(entry_key(item)).features.double() for item in items])
    assert len(frames) == 1100
    mean, std = feature_scale(FeatureDataset(items, store, frames_shown="shuffled", frame_dropout=0.5))
    torch.testing.assert_close(mean, frames.mean(dim=0).float())
    torch.testing.assert_close(std, frames.std(dim=0, correction=0).float())
