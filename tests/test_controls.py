"""Controls beside a trained head: what one frame can tell; and what a head makes of a dataset."""

import numpy as np
import pytest
import torch

from scripts.features.batching import FeatureDataset
from scripts.features.entries import entry_key
from scripts.keys import FEATURES, FRAME_TIMES, LABEL, MULTICLASS, MULTILABEL
from scripts.networks.heads import make_head
from scripts.store.store import FeatureStore, StoredSequence
from scripts.training.classes import labels_of
from scripts.training.controls import single_best_frame
from scripts.training.outputs import explained, logits_of
from tests.exams import item_of

K, D = 3, 4
SPLITS = {"training": 30, "validation": 15, "test": 15}


@pytest.fixture
def splits(tmp_path):
    """Datasets whose class is in the frame at one `position` of noisy sequences alone, if anywhere."""

    def make(position: float | None, labels=lambda n: n % K) -> dict[str, FeatureDataset]:
        generator = torch.Generator().manual_seed(0)
        store = FeatureStore.create(tmp_path / "features", {"test": "controls"})
        out = {}
        for split, count in SPLITS.items():
            items = []
            with store.writer() as writer:
                for n in range(count):
                    path = tmp_path / f"{split}-{n}.dcm"
                    path.write_text(path.name)
                    items.append(item_of(path, **{LABEL: labels(n)}))
                    length = 9 + 4 * (n % 4)
                    features = torch.randn(length, D, generator=generator)
                    if position is not None:
                        signal = torch.zeros(D)
                        signal[:K] = torch.eye(K)[labels(n)] if isinstance(labels(n), int) else torch.tensor(labels(n))
                        features[round(position * (length - 1))] = 10 * signal
                    stored = StoredSequence(features, torch.arange(length) * 100.0, torch.arange(length))
                    writer.add(entry_key(items[-1]), stored)
            out[split] = FeatureDataset(items, store)
        return out

    return make


@pytest.mark.parametrize("position", [0.0, 0.25, 0.5, 1.0])
def test_single_best_frame_finds_the_only_position_that_carries_the_class(splits, position):
    data = splits(position)
    probabilities, found = single_best_frame(*data.values(), K, MULTICLASS)
    assert found == position
    assert probabilities.shape == (SPLITS["test"], K)
    assert (probabilities.argmax(axis=1) == labels_of(data["test"])).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_single_best_frame_of_noise_stays_near_chance(splits):
    data = splits(None)
    probabilities, _ = single_best_frame(*data.values(), K, MULTICLASS)
    assert (probabilities.argmax(axis=1) == labels_of(data["test"])).mean() < 0.7


def test_single_best_frame_of_several_labels_gives_a_probability_each(splits):
    data = splits(0.5, labels=lambda n: [n % 2, (n // 2) % 2, (n // 3) % 2])
    probabilities, found = single_best_frame(*data.values(), K, MULTILABEL)
    assert found == 0.5
    assert ((probabilities > 0.5) == labels_of(data["test"])).all()


def test_single_best_frame_gives_a_class_absent_from_training_probability_zero(splits):
    data = splits(0.5, labels=lambda n: 2 * (n % 2))  # classes 0 and 2 of three
    probabilities, _ = single_best_frame(*data.values(), K, MULTICLASS)
    assert (probabilities[:, 1] == 0).all()
    assert (probabilities.argmax(axis=1) == labels_of(data["test"])).all()


def test_single_best_frame_takes_a_validation_split_that_lacks_a_class(splits):
    data = splits(0.5, labels=lambda n: 2 if n >= SPLITS["validation"] else n % 2)
    assert set(labels_of(data["training"])) == {0, 1, 2}
    assert set(labels_of(data["validation"])) == {0, 1}
    assert single_best_frame(*data.values(), K, MULTICLASS)[1] == 0.5


def test_single_best_frame_gives_the_same_answer_twice(splits):
    data = splits(0.25)
    first, again = (single_best_frame(*data.values(), K, MULTICLASS)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("several", [False, True])
def test_single_best_frame_of_a_training_split_with_one_class_is_always_that_class(splits, several):
    data = splits(None, labels=lambda n: [1, 0, 0] if several else 1)
    found, _ = single_best_frame(*data.values(), K, MULTILABEL if several else MULTICLASS)
    np.testing.assert_array_equal(found, np.tile([1, 0, 0] if several else [0, 1, 0], (len(found), 1)))


def test_single_best_frame_learns_each_label_from_the_exams_where_it_is_known(splits):
    data = splits(0.5, labels=lambda n: [n % 2, -1 if n % 3 else (n // 2) % 2, -1])
    found, _ = single_best_frame(*data.values(), K, MULTILABEL)
    labels = labels_of(data["test"])
    known = labels >= 0
    assert ((found > 0.5) == labels)[known].all()
    assert np.isfinite(found).all()


def test_logits_are_the_heads_own_whatever_the_batch_size_and_are_explained_alike(splits):
    dataset, head = splits(None)["test"], make_head("gru", D, K, hidden_size=4)
    head.train()
    found = logits_of(head, dataset, "cpu")
    assert found.shape == (SPLITS["test"], K)
    assert found.dtype == np.float64
    np.testing.assert_allclose(logits_of(head, dataset, "cpu", batch_size=2), found, rtol=1e-5, atol=1e-6)
    logits, weights, after_frames = explained(head, dataset, "cpu", batch_size=4)
    np.testing.assert_allclose(logits, found, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        for n in (0, 7):
            item = dataset[n]
            alone = head(item[FEATURES][None], None, item[FRAME_TIMES][None])[0]
            np.testing.assert_allclose(found[n], alone.numpy(), rtol=1e-5, atol=1e-6)
            assert len(weights[n]) == len(after_frames[n]) == len(item[FEATURES])
            assert weights[n].sum() == pytest.approx(1.0, abs=1e-5)
            np.testing.assert_allclose(after_frames[n][-1], found[n], rtol=1e-5, atol=1e-6)


def test_sequence_whose_logits_are_not_finite_is_named(splits):
    dataset, head = splits(None)["test"], make_head("mean", D, K, hidden_size=4)
    head.fit_scale(torch.full((D,), float("nan")), torch.ones(D))
    with pytest.raises(ValueError, match=r"^test-0\.dcm: logits is not finite for 15 of 15 sequences"):
        logits_of(head, dataset, "cpu")


def test_labels_are_indices_or_zeros_and_ones_in_the_datasets_order(splits):
    assert labels_of(splits(None)["test"]).tolist() == [n % K for n in range(SPLITS["test"])]
