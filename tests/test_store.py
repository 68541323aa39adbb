"""The feature store: what it promises of its entries, to whoever opens, reads, copies or changes it."""

import gc
import os
import pickle
import re
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.store import store as store_module
from scripts.store.index import EntryIndex
from scripts.store.shards import DamagedShardError, ShardIndex
from scripts.store.store import FeatureStore, StoredSequence
from tests.conftest import assert_message
from tests.stores import FINGERPRINT, assert_equal, assert_holds, fill, flip, key_of, sequence_of, shards


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features"


# --- entries ---


@pytest.mark.parametrize("in_memory", [False, True])
def test_entries_come_back_exactly_from_this_store_and_from_one_opened_again(folder, in_memory):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(20), per_shard=7)
    assert_holds(store, range(20))
    assert_holds(FeatureStore.open(folder, in_memory=in_memory), range(20))
    assert shards(folder) == [f"rank0-{n}.safetensors" for n in range(3)]


@pytest.mark.parametrize("strided", [False, True])
def test_float32_features_stay_float32_and_no_view_of_the_batch_is_kept(folder, strided):
    batch = torch.randn(6, 50, 4)
    view = batch[:, 3] if strided else batch[2]
    wanted = view.clone()
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        writer.add(key_of(0), StoredSequence(view, torch.zeros(len(view)), torch.arange(len(view))))
        batch.zero_()  # the encoder's next batch
    torch.testing.assert_close(store.read(key_of(0)).features, wanted, rtol=0, atol=0)


def test_patch_tokens_come_back_in_their_three_dimensions(folder):
    wanted = {i: torch.randn(2 + i, 5, 4) for i in range(3)}
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        for i, features in wanted.items():
            writer.add(key_of(i), StoredSequence(features, torch.zeros(2 + i), torch.arange(2 + i)))
    assert len(shards(folder)) == 1
    for i, features in wanted.items():
        torch.testing.assert_close(store.read(key_of(i)).features, features, rtol=0, atol=0)
        torch.testing.assert_close(store.view(i).features, features, rtol=0, atol=0)


def test_read_tensors_changed_in_place_leave_the_next_read_unchanged(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    for tensor in store.read(key_of(0)):
        tensor.zero_()
    assert_equal(store.read(key_of(0)), sequence_of(0))


def test_view_copies_nothing_and_what_is_done_to_it_never_reaches_the_store(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    first, second = store.view(1), store.view(1)
    for one, other in zip(first, second, strict=True):
        assert one.data_ptr() == other.data_ptr()
    for one, other in zip(first, store.read(key_of(1)), strict=True):
        assert one.data_ptr() != other.data_ptr()
    first.features.zero_()
    assert_equal(FeatureStore.open(folder).read(key_of(1)), sequence_of(1))


def test_missing_entry_raises_key_error_that_names_it_and_the_command(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    for _ in range(2):
        assert key_of(99) not in store
        for way in (store.read, store.check):
            with pytest.raises(KeyError, match=f"{key_of(99)}.*cache_features"):
                way(key_of(99))
        fill(store, range(3))


BAD_KEYS = ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n", " " + "a" * 63, "a" * 62 + "ä", None, 7]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_is_no_digest_is_refused_everywhere(folder, key):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    ways = [store.read, store.check, store.__contains__, lambda key: store.find([key_of(0), key])]
    with store.writer() as writer:
        for way in [*ways, writer.__contains__, lambda key: writer.add(key, sequence_of(0))]:
            with pytest.raises(ValueError, match="key is"):
                way(key)
    assert_holds(store, range(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3)}, "features"),
        ({"features": torch.zeros(3, 0)}, "features"),
        ({"features": torch.zeros(3, 2, 0)}, "features"),
        ({"features": torch.zeros(3, 2, 2, 2)}, "features"),
        ({"features": torch.zeros(0, 4)}, "features"),
        ({"features": torch.tensor(1.0)}, "features"),
        ({"features": torch.zeros(3, 4, dtype=torch.int64)}, "torch.int64.*float16 or torch.float32"),
        ({"features": torch.zeros(3, 4, dtype=torch.float64)}, "torch.float64"),
        ({"features": torch.tensor([[1.0, torch.nan]] * 3)}, "non-finite features is 3"),
        ({"features": torch.tensor([[1.0, -torch.inf]] * 3)}, "non-finite features is 3"),
        ({"features": torch.tensor([[1.0, torch.nan]] * 3).half()}, "non-finite features is 3"),
        ({"features": torch.tensor([[1.0, torch.inf]] * 3).half()}, "non-finite features is 3.*overflow"),
        ({"frame_times_ms": torch.zeros(2)}, "frame_times_ms"),
        ({"frame_times_ms": torch.zeros(3, dtype=torch.float64)}, "frame_times_ms"),
        ({"frame_indices": torch.zeros(4, dtype=torch.int64)}, "frame_indices"),
        ({"frame_indices": torch.zeros(3)}, "frame_indices"),
    ],
)
def test_unusable_sequence_is_refused_by_key_and_the_good_ones_are_kept(folder, change, message):
    good = StoredSequence(torch.ones(3, 4), torch.zeros(3), torch.arange(3))
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        writer.add(key_of(0), sequence_of(0))
        with pytest.raises(ValueError, match=f"{key_of(1)}.*{message}"):
            writer.add(key_of(1), good._replace(**change))
        writer.add(key_of(2), good)
    assert set(FeatureStore.open(folder).keys()) == {key_of(0), key_of(2)}


def test_extreme_numbers_that_are_finite_are_kept(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    extremes = {
        dtype: torch.tensor([[torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny, -0.0]]).to(dtype)
        for dtype in (torch.float16, torch.float32)
    }
    with store.writer() as writer:
        for i, features in enumerate(extremes.values()):
            writer.add(key_of(i), StoredSequence(features, torch.full((1,), torch.nan), torch.tensor([2**62])))
    assert len(shards(folder)) == 2  # one array has one type
    for i, features in enumerate(extremes.values()):
        found = store.read(key_of(i))
        assert found.features.dtype == features.dtype
        assert found.features.tolist() == features.tolist()
        assert found.frame_times_ms.isnan().all()
        assert found.frame_indices.tolist() == [2**62]


@pytest.mark.parametrize("in_memory", [False, True])
def test_store_survives_pickling_with_open_shards_as_a_loader_worker_needs(folder, in_memory):
    fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    store = FeatureStore.open(folder, in_memory=in_memory)
    store.read(key_of(0))
    again = pickle.loads(pickle.dumps(store))
    assert again.in_memory == in_memory
    assert_holds(again, range(3))


# --- rows ---


def test_find_gives_the_row_of_each_key_and_minus_one_for_the_others(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    assert store.find([key_of(0), key_of(1)]).tolist() == [-1, -1]
    assert store.find([]).tolist() == []
    fill(store, range(100), per_shard=9)
    wanted = [50, 3, 200, 99, 0, 3, 101]
    rows = store.find([key_of(i) for i in wanted])
    assert rows.dtype == np.int64
    assert rows.tolist() == [50, 3, -1, 99, 0, 3, -1]
    assert list(store.keys()) == [key_of(i) for i in range(100)]
    assert store.find([]).tolist() == []


def test_keys_with_zero_bytes_are_no_other_keys(folder):
    """NumPy strips zeros at the end of a string, and C ends a string there."""
    keys = ["00" * 32, "01" + "00" * 31, "0100" * 16, "00" * 31 + "01", "ab" * 31 + "00", "ab" * 30 + "0000"]
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        for i, key in enumerate(keys):
            writer.add(key, sequence_of(i))
    for of in (store, FeatureStore.open(folder)):
        assert list(of.keys()) == keys
        assert of.find([*keys, "01" * 32]).tolist() == [0, 1, 2, 3, 4, 5, -1]
        assert "ab" * 31 + "01" not in of
        for i, key in enumerate(keys):
            assert_equal(of.read(key), sequence_of(i))


def test_rows_stay_what_they_are_when_shards_come_in(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(10), rank=3)
    keys = [key_of(i) for i in range(10)]
    before = store.find(keys)
    fill(FeatureStore.open(folder), range(10, 20), rank=0)  # sorts before rank 3
    store.refresh()
    assert store.find(keys).tolist() == before.tolist() == list(range(10))
    assert_holds(store, range(20))


@pytest.mark.parametrize("row", [-1, 3, 2**40])
def test_row_that_no_entry_has_is_refused(folder, row):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    with pytest.raises(IndexError, match=f"row is {row}, needs 0 to below 3.*find"):
        store.view(row)
    with pytest.raises(IndexError, match=f"row is {row}"):
        store.lengths(np.array([0, row]))


def test_index_takes_less_than_a_hundred_bytes_of_memory_an_entry():
    n = 20_000
    random = np.random.default_rng(0)
    tracemalloc.start()
    try:
        index = EntryIndex()
        for _ in range(5):
            keys = random.integers(0, 256, (n, 32), np.uint8).view("S32").ravel()
            index.add([ShardIndex(keys, random.integers(1, 99, n), {})])
        del keys
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 5 * n
    assert held < 60 * 5 * n


# --- several shards, several processes ---


def test_key_in_two_shards_is_one_entry(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    unaware = FeatureStore.open(folder)
    fill(store, range(3), rank=0)
    fill(unaware, range(1, 5), rank=1)
    assert len(shards(folder)) == 2
    again = FeatureStore.open(folder)
    assert_holds(again, range(5))
    assert again.find([key_of(i) for i in range(5)]).tolist() == [0, 1, 2, 5, 6]
    assert list(again.keys()) == [key_of(i) for i in range(5)]
    unaware.refresh()
    assert_holds(unaware, range(5))


def test_refresh_sees_what_other_ranks_wrote_and_what_was_deleted(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2), rank=0)
    fill(FeatureStore.open(folder), range(2, 4), rank=1)
    assert len(store) == 2
    store.refresh()
    assert_holds(store, range(4))
    (folder / "rank0-0.safetensors").unlink()
    store.refresh()
    assert_holds(store, range(2, 4))


def test_shard_that_was_replaced_is_read_anew_and_not_by_the_places_of_the_old_one(folder, tmp_path):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(9, 10))
    other = fill(FeatureStore.create(tmp_path / "other", FINGERPRINT), range(18, 19))  # of the same size
    (other.path / "rank0-0.safetensors").replace(folder / "rank0-0.safetensors")
    with pytest.raises(DamagedShardError, match=r"rank0-0\.safetensors: .*changed since it was opened"):
        store.read(key_of(9))
    store.refresh()
    assert_holds(store, range(18, 19))


def test_shard_that_went_since_is_named(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(4), per_shard=2)
    (folder / "rank0-0.safetensors").unlink()
    with pytest.raises(DamagedShardError, match=r"rank0-0\.safetensors: .*gone since it was opened"):
        store.read(key_of(0))
    assert_equal(store.read(key_of(3)), sequence_of(3))


def test_more_shards_than_may_be_mapped_are_read_all_the_same(folder, monkeypatch):
    monkeypatch.setattr(store_module, "_MAX_MAPPED_SHARDS", 2)
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(6), per_shard=1)
    for _ in range(2):
        assert_holds(store, range(6))
    assert len(store._mapped) == 2


# --- damage ---


def position_of(path: Path, i: int) -> int:
    """Where the features of an entry begin in its shard."""
    return path.read_bytes().index(sequence_of(i).features.numpy().tobytes())


def test_opening_reads_no_features(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(6), per_shard=2)
    for name in shards(folder):
        flip(folder / name, position_of(folder / name, 2 * int(name[6])))
    again = FeatureStore.open(folder)
    assert not again._mapped
    assert len(again) == len(store) == 6
    refused = 0
    for i in range(6):
        try:
            again.read(key_of(i))
        except DamagedShardError:
            refused += 1
    assert refused == 3


def test_entry_is_compared_with_its_digest_once_and_again_when_it_is_asked_for(folder, monkeypatch):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    seen = []
    fault = store_module.MappedShard.fault
    monkeypatch.setattr(store_module.MappedShard, "fault", lambda *at: (seen.append(at[1]), fault(*at))[1])
    for _ in range(3):
        store.read(key_of(1))
        store.view(2)
    assert seen == [1, 2]
    store.check(key_of(1))
    assert seen == [1, 2, 1]
    path = folder / "rank0-0.safetensors"
    flip(path, position_of(path, 1))  # the map shows it
    with pytest.raises(DamagedShardError, match=f"{re.escape(str(path))}: .*{key_of(1)}.*store prune"):
        store.check(key_of(1))
    with pytest.raises(DamagedShardError):
        store.read(key_of(1))  # what is known to be damaged is no longer served
    flip(path, position_of(path, 0) + 2)
    assert_equal(store.read(key_of(2)), sequence_of(2))


def test_truncated_shard_costs_only_its_own_entries(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(9), per_shard=3)
    bad = folder / "rank0-1.safetensors"
    os.truncate(bad, bad.stat().st_size - 5)
    with pytest.raises(DamagedShardError, match=r"rank0-1\.safetensors: damaged"):
        FeatureStore.open(folder)
    with pytest.raises(DamagedShardError, match=r"rank0-1\.safetensors: damaged.*changed"):
        store.read(key_of(4))  # opened before the damage: an error, not a crash
    bad.unlink()
    again = FeatureStore.open(folder)
    assert set(again.keys()) == {key_of(i) for i in (0, 1, 2, 6, 7, 8)}
    assert_holds(fill(again, range(9)), range(9))


def test_store_in_a_folder_with_spaces_is_repaired_by_the_command_as_it_stands(tmp_path):
    folder = tmp_path / "my features; rm -r"
    fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    flip(folder / "rank0-0.safetensors", 20)
    with pytest.raises(DamagedShardError, match=f"store prune '{folder}';"):
        FeatureStore.open(folder)


# --- in memory ---


def test_store_in_memory_reads_no_file_after_it_is_opened(folder):
    fill(FeatureStore.create(folder, FINGERPRINT), range(5), per_shard=2)
    store = FeatureStore.open(folder, in_memory=True)
    shutil.rmtree(folder)
    assert_holds(store, range(5))


def test_store_in_memory_compares_with_digests_and_takes_in_what_comes(folder):
    fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    path = folder / "rank0-0.safetensors"
    flip(path, position_of(path, 1))
    store = FeatureStore.open(folder, in_memory=True)
    with pytest.raises(DamagedShardError, match=f"{key_of(1)} is not what was written.*store prune"):
        store.read(key_of(1))
    fill(FeatureStore.open(folder), range(3, 5), rank=1)
    store.refresh()
    assert_equal(store.read(key_of(4)), sequence_of(4))
    path.unlink()
    store.refresh()
    assert_holds(store, range(3, 5))


def test_store_larger_than_the_memory_that_is_free_is_refused_with_both_numbers(folder, monkeypatch):
    fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    with (folder / "rank0-1.safetensors").open("wb") as file:
        file.truncate(2**43)  # takes no room on the disk
    free = store_module.free_bytes()
    assert 2**20 < free < 2**43
    monkeypatch.setattr(store_module, "free_bytes", lambda: 3 * 2**30)
    with pytest.raises(ValueError, match=r"8192\.00 GiB, needs at most 3\.00 GiB.*without in_memory"):
        FeatureStore.open(folder, in_memory=True)


# --- a folder that is only read ---


def test_read_only_folder_can_be_read_and_says_its_path_when_written():
    folder = Path(tempfile.mkdtemp()) / "features"  # pytest's own folders are closed to other users
    user = os.geteuid()
    try:
        fill(FeatureStore.create(folder, FINGERPRINT), range(3))
        folder.parent.chmod(0o755)
        folder.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        store = FeatureStore.create(folder, FINGERPRINT)
        assert_holds(store, range(3))
        with pytest.raises(PermissionError, match=r"features/rank0-1\.safetensors"):
            fill(store, range(3, 5))
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder.parent)


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError) as error:
        FeatureStore.create(tmp_path / "file", {"encoder": "any"})
    assert_message(error.value, "configuration", "feature store", tmp_path / "file", "a folder")
