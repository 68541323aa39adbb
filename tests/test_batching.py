"""Batches of cached features: padding, labels, shuffling, dropout, and sequences that are not there."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.features.batching import FeatureDataset, collate_sequences, feature_scale
from scripts.features.extract import entry_key
from scripts.features.store import FeatureStore, StoredSequence
from scripts.keys import ERROR, FEATURES, FRAME_TIMES, IMAGE, LABEL, LENGTHS, PATIENT, SEQUENCE, SOURCE
from tests.exams import item_of

LENGTHS_STORED = (6, 1, 4)


@pytest.fixture
def fill(tmp_path) -> Callable[..., tuple[list[dict], FeatureStore]]:
    """Items, which are any files, and a store that holds features of their content."""

    def make(lengths: tuple[int, ...] = LENGTHS_STORED, width: int = 5) -> tuple[list[dict], FeatureStore]:
        store = FeatureStore.create(tmp_path / "features", {"test": "batching"})
        items = []
        with store.writer() as writer:
            for n, length in enumerate(lengths):
                path: Path = tmp_path / f"{n}.dcm"
                path.write_text(f"content {n}")
                items.append(item_of(path, **{LABEL: n % 3}))
                generator = torch.Generator().manual_seed(n)
                features = torch.randn(length, width, generator=generator).half()
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames_shown": "last"}, "frames_shown is last, needs one of .'all', 'shuffled'"),
        ({"frame_dropout": 1.0}, "frame_dropout is 1.0, needs 0.0 up to below 1.0"),
        ({"frame_dropout": -0.1}, "frame_dropout is -0.1"),
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


# --- batches ---


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
    items, store = fill()
    frames = torch.cat([store.read(entry_key(item)).features.double() for item in items])
    assert len(frames) == sum(LENGTHS_STORED)
    mean, std = feature_scale(FeatureDataset(items, store, frames_shown="shuffled", frame_dropout=0.5))
    torch.testing.assert_close(mean, frames.mean(dim=0).float())
    torch.testing.assert_close(std, frames.std(dim=0, correction=0).float())
