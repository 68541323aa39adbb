"""The writer: what is stored after kills, full disks, interrupts and other writers."""

import errno
import fcntl
import os
import random
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from scripts.store import store as store_module
from scripts.store import writer as writer_module
from scripts.store.store import FeatureStore, StoredSequence
from tests.stores import FINGERPRINT, assert_equal, assert_holds, fill, forked, key_of, sequence_of, shards


@contextmanager
def largest_file(n_bytes: int):
    """Let no file grow past `n_bytes`: a real write error, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features"


# --- when a shard is written ---


def test_shard_closes_at_the_size_it_may_have(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer(shard_bytes=300) as writer:
        writer.add(key_of(18), sequence_of(18))  # 1 frame: 28 bytes
        assert shards(folder) == []
        writer.add(key_of(17), sequence_of(17))  # 9 frames: 252 bytes
        writer.add(key_of(19), sequence_of(19))  # 2 frames: 56 bytes
        assert shards(folder) == ["rank0-0.safetensors"]
        writer.add(key_of(0), sequence_of(0))
    assert shards(folder) == ["rank0-0.safetensors", "rank0-1.safetensors"]
    assert len(FeatureStore.open(folder)) == 4


def test_shard_closes_when_its_first_entry_has_waited_long_enough(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    with FeatureStore.create(folder, FINGERPRINT).writer(shard_seconds=60) as writer:
        for i, (waited, written) in enumerate([(500, 0), (59, 0), (2, 1), (59.5, 1), (59.5, 1), (0.5, 2)]):
            now[0] += waited
            writer.add(key_of(i), sequence_of(i))
            assert len(shards(folder)) == written
    assert len(shards(folder)) == 2


def test_shard_closes_at_the_entries_that_a_reader_takes(folder, monkeypatch):
    monkeypatch.setattr(writer_module, "MAX_SEQUENCES", 2)
    with FeatureStore.create(folder, FINGERPRINT).writer() as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
            assert len(shards(folder)) == (i + 1) // 2


def test_features_of_another_form_begin_another_shard(folder):
    forms = [torch.ones(2, 4), torch.ones(3, 4), torch.ones(2, 5), torch.ones(2, 5).half(), torch.ones(2, 5, 1).half()]
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        for i, features in enumerate(forms):
            writer.add(key_of(i), StoredSequence(features, torch.zeros(len(features)), torch.arange(len(features))))
    assert len(shards(folder)) == 4
    for i, features in enumerate(forms):
        torch.testing.assert_close(store.read(key_of(i)).features, features, rtol=0, atol=0)


@pytest.mark.parametrize("limits", [{"rank": -1}, {"shard_bytes": 0}, {"shard_seconds": -1}, {"shard_bytes": 2**50}])
def test_writer_with_limits_that_cannot_work_is_refused(folder, limits):
    store = FeatureStore.create(folder, FINGERPRINT)
    with pytest.raises(ValueError, match=f"{next(iter(limits))} is"):
        store.writer(**limits)


# --- what the store has then ---


def test_key_added_again_is_written_once_and_the_first_stays(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    with store.writer() as writer:
        writer.add(key_of(0), sequence_of(5))
        for i in (2, 2, 3):
            writer.add(key_of(i), sequence_of(i))
            writer.add(key_of(i), sequence_of(7))
        writer.flush()
        writer.add(key_of(2), sequence_of(8))
    assert shards(folder) == ["rank0-0.safetensors", "rank0-1.safetensors"]
    assert_holds(store, range(4))


def test_writer_knows_what_is_stored_written_and_waiting(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    with store.writer() as writer:
        writer.add(key_of(1), sequence_of(1))
        writer.flush()
        writer.add(key_of(2), sequence_of(2))
        assert [key_of(i) in writer for i in range(4)] == [True, True, True, False]
        assert key_of(1) not in store


def test_index_is_not_built_anew_at_each_shard(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        store_module,
        "read_index",
        lambda path, digest, real=store_module.read_index: read.append(path) or real(path, digest),
    )
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(30), per_shard=3)
    assert len(shards(folder)) == 10
    assert len(read) == 10  # once each, when the writer is closed
    assert_holds(store, range(30))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_entries_before_an_exception_are_kept(folder, error):
    store = FeatureStore.create(folder, FINGERPRINT)
    with pytest.raises(error), store.writer() as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
        raise error
    assert_holds(FeatureStore.open(folder), range(5))


def test_add_after_close_is_refused(folder):
    writer = FeatureStore.create(folder, FINGERPRINT).writer()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add(key_of(0), sequence_of(0))


# --- several writers ---


def test_two_writers_of_one_rank_in_one_process_keep_both_shards(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as first, store.writer() as second:
        first.add(key_of(0), sequence_of(0))
        second.add(key_of(1), sequence_of(1))
    assert_holds(store, range(2))
    assert shards(folder) == ["rank0-0.safetensors", "rank0-1.safetensors"]


def test_processes_of_the_same_rank_overwrite_nothing(folder):
    forked(folder, [(0, 60), (60, 120), (120, 180)], per_shard=1)
    assert len(shards(folder)) == 180
    assert_holds(FeatureStore.open(folder, FINGERPRINT), range(180))
    assert not list(folder.glob("*.tmp"))


# --- kills ---


@pytest.mark.parametrize("processes", [1, 2])
def test_store_killed_at_any_moment_lost_its_open_shards_and_a_further_run_completes_it(folder, processes):
    wait = random.Random(processes)
    kills_s = [wait.uniform(0.0, 0.02) for _ in range(20)]
    ranges = [(0, 500), (500, 1000)][:processes]
    told = forked(folder, ranges, per_shard=4, pause_s=0.0003, kills_s=kills_s)
    before = kills = 0
    while told:
        at = told.index("killed")
        added, stored = told[:at], int(told[at + 1])
        assert 0 <= len(added) - (stored - before) <= 4 * processes  # at most the open shards
        before, told, kills = stored, told[at + 2 :], kills + 1
    assert kills == 20
    assert 0 < before < processes * 500  # they were killed at work
    store = FeatureStore.open(folder, FINGERPRINT)
    assert_holds(fill(store, range(processes * 500)), range(processes * 500))
    assert not list(folder.glob("*.tmp"))


def test_leftovers_of_a_killed_run_are_ignored_and_removed_by_the_next_writer_of_the_rank(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    mine, others = folder / "rank0-1.safetensors.tmp", folder / "rank1-0.safetensors.tmp"
    for leftover in (mine, others):
        leftover.write_bytes(b"half a shard")
    assert_holds(FeatureStore.open(folder), range(2))
    fill(store, range(2, 4))
    assert_holds(FeatureStore.open(folder), range(4))
    assert not mine.exists()
    assert others.exists()


def test_temporary_file_in_use_is_not_removed(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    busy = folder / "rank0-0.safetensors.tmp"
    with busy.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fill(store, range(1))
        assert busy.exists()
    assert shards(folder) == ["rank0-1.safetensors"]


# --- disks and interrupts ---


@pytest.mark.parametrize("name", ["fsync", "flush"])
def test_interrupt_in_the_middle_of_a_flush_loses_nothing(folder, monkeypatch, name):
    calls = []

    def interrupted(*args, real=os.fsync if name == "fsync" else writer_module.publish):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args)

    store = FeatureStore.create(folder, FINGERPRINT)
    monkeypatch.setattr(*((os, "fsync") if name == "fsync" else (writer_module, "publish")), interrupted)
    with pytest.raises(KeyboardInterrupt), store.writer() as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
        writer.flush()
    assert len(calls) > 1
    assert_holds(FeatureStore.open(folder), range(5))
    assert not list(folder.glob("*.tmp"))


def test_rename_that_fails_leaves_the_store_as_it_was_and_is_made_again(folder, monkeypatch):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    writer = store.writer()
    writer.add(key_of(3), sequence_of(3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
        with pytest.raises(OSError, match=r"not written.*rank0-1\.safetensors") as refusal:
            writer.flush()
    assert refusal.value.errno == errno.EIO
    assert sorted(p.name for p in folder.iterdir()) == ["fingerprint.json", "rank0-0.safetensors"]
    assert_holds(FeatureStore.open(folder), range(3))
    writer.close()
    assert_holds(FeatureStore.open(folder), range(4))


@pytest.mark.parametrize("room", [0, 1, 200, 900])
def test_full_disk_names_the_shard_and_leaves_the_store_as_it_was(folder, room):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    writer = store.writer()
    writer.add(key_of(8), sequence_of(8))
    with largest_file(room), pytest.raises(OSError, match=rf"{re.escape(str(folder))}/rank0-1\.safetensors") as full:
        writer.flush()
    assert full.value.errno == errno.EFBIG
    assert sorted(p.name for p in folder.iterdir()) == ["fingerprint.json", "rank0-0.safetensors"]
    assert_holds(FeatureStore.open(folder), range(3))
    writer.close()  # there is room again: the entry was still held
    assert_equal(FeatureStore.open(folder).read(key_of(8)), sequence_of(8))


def test_full_disk_makes_no_half_store(folder):
    with largest_file(10), pytest.raises(OSError, match=r"fingerprint\.json"):
        FeatureStore.create(folder, FINGERPRINT)
    assert not list(folder.iterdir())
    assert_holds(fill(FeatureStore.create(folder, FINGERPRINT), range(2)), range(2))
