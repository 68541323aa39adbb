"""The feature store: what it promises after kills, damage, full disks and foreign settings."""

import errno
import fcntl
import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scripts.features.store import FeatureStore, StoredSequence

ROOT = Path(__file__).parent.parent
FINGERPRINT = {"encoder": {"name": "tiny", "digest": "ab"}, "image_size": [224, 224], "mean": 0.5}

# What the subprocesses run: rank, how many entries, how many a shard, seconds between entries.
WRITE = """
import sys, time
from pathlib import Path
from scripts.features.store import FeatureStore
from tests.test_store import FINGERPRINT, key_of, sequence_of
folder, rank, first, last, shard_sequences, pause_s = sys.argv[1:]
store = FeatureStore.create(Path(folder), FINGERPRINT)
with store.writer(int(rank), shard_sequences=int(shard_sequences)) as writer:
    for i in range(int(first), int(last)):
        if key_of(i) not in store:
            writer.add(key_of(i), sequence_of(i))
            time.sleep(float(pause_s))
        print(i, flush=True)
"""


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def sequence_of(number: int) -> StoredSequence:
    """An entry that `number` alone determines, of 1 to 9 frames."""
    generator = torch.Generator().manual_seed(number)
    n_frames = 1 + number % 9
    times = torch.rand(n_frames, generator=generator)
    times[n_frames // 2] = torch.nan
    features = torch.randn(n_frames, 8, generator=generator).half()
    return StoredSequence(features, times, torch.arange(n_frames) * 3)


def assert_equal(found: StoredSequence, wanted: StoredSequence) -> None:
    for name in ("features", "frame_times_ms", "frame_indices"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0, atol=0, equal_nan=True)


def assert_holds(store: FeatureStore, numbers: range) -> None:
    assert set(store.keys()) == {key_of(i) for i in numbers}
    assert len(store) == len(numbers)
    for i in numbers:
        assert_equal(store.read(key_of(i)), sequence_of(i))


def fill(store: FeatureStore, numbers: range, **writer: int) -> FeatureStore:
    with store.writer(**writer) as open_writer:
        for i in numbers:
            open_writer.add(key_of(i), sequence_of(i))
    return store


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def start_writing(folder: Path, rank: int, numbers: range, shard_sequences: int, pause_s: float = 0.0):
    arguments = [folder, rank, numbers.start, numbers.stop, shard_sequences, pause_s]
    command = [sys.executable, "-W", "error", "-c", WRITE, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


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


# --- entries ---


def test_entries_come_back_exactly_from_this_store_and_from_one_opened_again(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(20), shard_sequences=7)
    assert_holds(store, range(20))
    assert_holds(FeatureStore.open(folder), range(20))
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


def test_shards_are_safetensors_that_name_tensors_by_key_and_hold_nothing_else(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    with safe_open(folder / "rank0-0.safetensors", "pt") as shard:
        names = [f"{key_of(0)}.{name}" for name in ("features", "frame_indices", "frame_times_ms")]
        assert sorted(shard.keys()) == names
        assert shard.metadata() == {"format_version": "1", "fingerprint_digest": store.digest}
    assert json.loads((folder / "fingerprint.json").read_text()) == FINGERPRINT
    assert sorted(p.name for p in folder.iterdir()) == ["fingerprint.json", "rank0-0.safetensors"]


def test_read_tensor_changed_in_place_leaves_the_next_read_unchanged(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    store.read(key_of(0)).features.zero_()
    assert_equal(store.read(key_of(0)), sequence_of(0))


def test_missing_entry_raises_key_error_that_names_it_and_the_command(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    assert key_of(1) not in store
    with pytest.raises(KeyError, match=f"{key_of(1)}.*cache_features"):
        store.read(key_of(1))


@pytest.mark.parametrize("key", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_key_that_is_no_digest_is_refused_everywhere(folder, key):
    store = FeatureStore.create(folder, FINGERPRINT)
    with pytest.raises(ValueError, match="key is"), store.writer() as writer:
        writer.add(key, sequence_of(0))
    with pytest.raises(ValueError, match="key is"):
        store.read(key)
    with pytest.raises(ValueError, match="key is"):
        _ = key in store
    assert len(store) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3)}, "features"),
        ({"features": torch.zeros(3, 0)}, "features"),
        ({"features": torch.zeros(0, 4)}, "features"),
        ({"features": torch.tensor(1.0)}, "features"),
        ({"features": torch.zeros(3, 4, dtype=torch.int64)}, "torch.int64.*float16 or torch.float32"),
        ({"features": torch.zeros(3, 4, dtype=torch.float64)}, "torch.float64"),
        ({"features": torch.tensor([[1.0, torch.nan]] * 3)}, "non-finite features is 3"),
        ({"features": torch.tensor([[1.0, torch.inf]] * 3).half()}, "non-finite features is 3.*overflow"),
        ({"frame_times_ms": torch.zeros(2)}, "frame_times_ms"),
        ({"frame_times_ms": torch.zeros(3, dtype=torch.float64)}, "frame_times_ms"),
        ({"frame_indices": torch.zeros(4, dtype=torch.int64)}, "frame_indices"),
        ({"frame_indices": torch.zeros(3)}, "frame_indices"),
    ],
)
def test_unusable_sequence_is_refused_by_key_and_the_good_ones_are_kept(folder, change, message):
    good = {
        "features": torch.ones(3, 4),
        "frame_times_ms": torch.zeros(3),
        "frame_indices": torch.arange(3),
    }
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as writer:
        writer.add(key_of(0), sequence_of(0))
        with pytest.raises(ValueError, match=f"{key_of(1)}.*{message}"):
            writer.add(key_of(1), StoredSequence(**{**good, **change}))
        writer.add(key_of(2), StoredSequence(**good))
    assert set(FeatureStore.open(folder).keys()) == {key_of(0), key_of(2)}


def test_store_survives_pickling_with_open_shards_as_a_loader_worker_needs(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    store.read(key_of(0))
    assert_holds(pickle.loads(pickle.dumps(store)), range(3))


# --- fingerprint ---


def test_create_opens_an_equal_store_whatever_the_order_of_fields(folder):
    first = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    again = FeatureStore.create(folder, {**dict(reversed(FINGERPRINT.items())), "image_size": (224, 224)})
    assert_holds(again, range(2))
    assert again.digest == first.digest
    assert again.fingerprint == FINGERPRINT


@pytest.mark.parametrize("way", [FeatureStore.create, FeatureStore.open])
def test_store_of_another_fingerprint_is_refused_with_every_differing_field(folder, way):
    FeatureStore.create(folder, FINGERPRINT)
    other = {"encoder": {"name": "small", "digest": "ab"}, "image_size": [224, 392], "pool": {"kind": "cls"}}
    with pytest.raises(ValueError, match="features_dir, or delete this folder") as refusal:
        way(folder, other)
    message = str(refusal.value)
    assert str(folder) in message
    assert 'encoder.name is "tiny" in the store, "small" wanted' in message
    assert "image_size is [224, 224] in the store, [224, 392] wanted" in message
    assert 'mean is 0.5 in the store, "(absent)" wanted' in message
    assert 'pool is "(absent)" in the store, {"kind": "cls"} wanted' in message
    assert message.count(" wanted") == 4
    assert "digest" not in message


def test_open_without_a_store_names_the_command_that_makes_one(folder):
    with pytest.raises(FileNotFoundError, match=r"features: no feature store.*cache_features\.yaml"):
        FeatureStore.open(folder)


def test_folder_with_other_content_is_refused_and_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.txt.*another features_dir"):
        FeatureStore.create(folder, FINGERPRINT)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_unreadable_fingerprint_file_is_named_with_the_way_out(folder):
    FeatureStore.create(folder, FINGERPRINT)
    (folder / "fingerprint.json").write_text("{")
    with pytest.raises(ValueError, match=r"fingerprint\.json: cannot be read.*Delete the folder"):
        FeatureStore.open(folder)


def test_shard_of_another_store_is_refused_by_name(folder, tmp_path):
    fill(FeatureStore.create(tmp_path / "other", {"encoder": "b"}), range(2), rank=4)
    FeatureStore.create(folder, FINGERPRINT)
    shutil.copy(tmp_path / "other" / "rank4-0.safetensors", folder)
    with pytest.raises(ValueError, match=r"rank4-0\.safetensors: .*another store"):
        FeatureStore.open(folder)


# --- writers ---


def test_shard_closes_at_either_bound(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer(shard_sequences=2) as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
            assert len(shards(folder)) == (i + 1) // 2
    with store.writer(rank=1, shard_bytes=300) as writer:
        writer.add(key_of(18), sequence_of(18))  # 1 frame: 28 bytes
        assert shards(folder) == [f"rank0-{n}.safetensors" for n in range(3)]
        writer.add(key_of(17), sequence_of(17))  # 9 frames: 252 bytes
        writer.add(key_of(19), sequence_of(19))
        assert shards(folder)[3:] == ["rank1-0.safetensors"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_entries_before_an_exception_are_kept(folder, error):
    store = FeatureStore.create(folder, FINGERPRINT)
    with pytest.raises(error), store.writer() as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
        raise error
    assert_holds(FeatureStore.open(folder), range(5))


def test_interrupt_in_the_middle_of_a_flush_loses_nothing(folder, monkeypatch):
    real, calls = os.fsync, []

    def interrupted(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(descriptor)

    store = FeatureStore.create(folder, FINGERPRINT)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), store.writer(shard_sequences=3) as writer:
        for i in range(5):
            writer.add(key_of(i), sequence_of(i))
    assert len(calls) > 1
    assert_holds(FeatureStore.open(folder), range(3))
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize(
    "limits", [{"rank": -1}, {"shard_bytes": 0}, {"shard_sequences": 0}, {"shard_sequences": 10**6}]
)
def test_writer_with_limits_that_cannot_work_is_refused(folder, limits):
    store = FeatureStore.create(folder, FINGERPRINT)
    with pytest.raises(ValueError, match=f"{next(iter(limits))} is"):
        store.writer(**limits)


def test_add_after_close_is_refused(folder):
    writer = FeatureStore.create(folder, FINGERPRINT).writer()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.add(key_of(0), sequence_of(0))


def test_key_added_again_is_written_once(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    before = shards(folder)
    with store.writer() as writer:
        writer.add(key_of(0), sequence_of(5))
    assert shards(folder) == before
    assert_holds(store, range(2))


def test_key_in_two_shards_is_one_entry(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    unaware = FeatureStore.open(folder)
    fill(store, range(3), rank=0)
    fill(unaware, range(1, 5), rank=1)
    assert len(shards(folder)) == 2
    assert_holds(FeatureStore.open(folder), range(5))


def test_refresh_sees_what_other_ranks_wrote_and_what_was_deleted(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2), rank=0)
    fill(FeatureStore.open(folder), range(2, 4), rank=1)
    assert len(store) == 2
    store.refresh()
    assert_holds(store, range(4))
    (folder / "rank0-0.safetensors").unlink()
    store.refresh()
    assert_holds(store, range(2, 4))


def test_two_writers_of_one_rank_in_one_process_keep_both_shards(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    with store.writer() as first, store.writer() as second:
        first.add(key_of(0), sequence_of(0))
        second.add(key_of(1), sequence_of(1))
    assert_holds(store, range(2))
    assert shards(folder) == ["rank0-0.safetensors", "rank0-1.safetensors"]


def test_two_processes_of_the_same_rank_overwrite_nothing(folder):
    writers = [start_writing(folder, 0, numbers, 1) for numbers in (range(120), range(120, 240))]
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    assert len(shards(folder)) == 240
    assert_holds(FeatureStore.open(folder, FINGERPRINT), range(240))


# --- kills, damage, full disks ---


def test_store_killed_at_any_moment_opens_whole_and_a_further_run_completes_it(folder, tmp_path):
    numbers = range(400)
    lost = []
    for wait_s in (0.0, 0.013, 0.05, 0.11):
        writer = start_writing(folder, 0, numbers, 4, pause_s=0.0005)
        writer.stdout.readline()  # it has begun
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.communicate()[0].split()]
        assert writer.returncode == -signal.SIGKILL  # it was killed at work, not done
        store = FeatureStore.open(folder)
        assert set(store.keys()) <= {key_of(i) for i in numbers}
        for i in numbers[: len(store)]:
            assert_equal(store.read(key_of(i)), sequence_of(i))
        lost.append(max(told, default=0) + 1 - len(store))
    assert max(lost) <= 4  # at most the open shard
    with start_writing(folder, 0, numbers, 4) as writer:
        writer.communicate(timeout=30)
    assert_holds(FeatureStore.open(folder), numbers)
    assert not list(folder.glob("*.tmp"))
    whole = fill(FeatureStore.create(tmp_path / "whole", FINGERPRINT), numbers, shard_sequences=4)
    assert set(whole.keys()) == set(FeatureStore.open(folder).keys())


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


def test_manifest_is_never_needed_and_can_be_made_again_from_the_shards(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(6), shard_sequences=2)
    store.write_manifest()
    manifest = folder / "manifest.json"
    wanted = manifest.read_bytes()
    content = json.loads(wanted)
    assert (content["format_version"], content["fingerprint_digest"]) == ("1", store.digest)
    assert content["sequences"] == 6
    assert {k for shard in content["shards"] for k in shard["entries"]} == {key_of(i) for i in range(6)}
    for damage in (b"", b"{", b'{"shards": []}'):
        manifest.write_bytes(damage)
        assert_holds(FeatureStore.open(folder), range(6))
    manifest.unlink()
    FeatureStore.open(folder).write_manifest()
    assert manifest.read_bytes() == wanted
    fill(FeatureStore.open(folder), range(6, 8), rank=1)  # and the manifest is stale
    assert_holds(FeatureStore.open(folder), range(8))
    store.write_manifest()
    assert json.loads(manifest.read_bytes())["sequences"] == 8


def header(content: dict, claimed: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(content).encode()
    return (len(text) if claimed is None else claimed).to_bytes(8, "little") + text + data


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def hostile(digest: str) -> dict[str, bytes]:
    meta = {"__metadata__": {"format_version": "1", "fingerprint_digest": digest}}
    key = key_of(9)
    features, times = tensor("F16", [1, 4], 0, 8), tensor("F32", [1], 8, 12)
    whole = {f"{key}.features": features, f"{key}.frame_times_ms": times}
    indices = f"{key}.frame_indices"
    return {
        "empty": b"",
        "no header": b"\x00" * 8,
        "huge header": header({}, claimed=2**62),
        "not json": header({}, claimed=30, data=b"\xff" * 100),
        "overlap": header(meta | whole | {indices: tensor("I64", [1], 4, 12)}, data=bytes(12)),
        "gap": header(meta | whole | {indices: tensor("I64", [1], 20, 28)}, data=bytes(28)),
        "beyond the end": header(meta | whole | {indices: tensor("I64", [1], 12, 20)}, data=bytes(12)),
        "path as key": header(meta | {"../../etc/passwd.features": features}, data=bytes(8)),
        "entry without indices": header(meta | whole, data=bytes(12)),
        "indices of another length": header(meta | whole | {indices: tensor("I64", [2], 12, 28)}, data=bytes(28)),
        "times of another type": header(meta | whole | {indices: tensor("I32", [1], 12, 16)}, data=bytes(16)),
        "whole entry, then a path": header(
            {indices: tensor("I64", [1], 12, 20)} | whole | meta | {"../x.features": tensor("U8", [1], 20, 21)},
            data=bytes(21),
        ),
        "one tensor more": header(
            meta | whole | {indices: tensor("I64", [1], 12, 20), f"{key}.label": tensor("U8", [1], 20, 21)},
            data=bytes(21),
        ),
    }


@pytest.mark.parametrize("kind", hostile("").keys())
def test_hostile_shard_is_refused_by_name_with_the_way_out(folder, kind):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    bad = folder / "rank0-7.safetensors"
    bad.write_bytes(hostile(store.digest)[kind])
    for _ in range(2):  # a store that is open already never comes to trust it
        with pytest.raises(ValueError, match=r"rank0-7\.safetensors: damaged shard"):
            store.refresh()
    assert_holds(store, range(2))
    with pytest.raises(ValueError, match=r"rank0-7\.safetensors: damaged shard: .*Delete this file.*cache_f"):
        FeatureStore.open(folder)
    bad.unlink()
    assert_holds(FeatureStore.open(folder), range(2))


def test_shard_without_metadata_is_refused_by_name(folder):
    FeatureStore.create(folder, FINGERPRINT)
    save_file({f"{key_of(0)}.features": torch.zeros(1, 4)}, folder / "rank0-0.safetensors")
    with pytest.raises(ValueError, match=r"rank0-0\.safetensors: format version"):
        FeatureStore.open(folder)


def test_truncated_shard_costs_only_its_own_entries(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(9), shard_sequences=3)
    bad = folder / "rank0-1.safetensors"
    os.truncate(bad, bad.stat().st_size - 5)
    with pytest.raises(ValueError, match=r"rank0-1\.safetensors: damaged"):
        FeatureStore.open(folder)
    with pytest.raises(ValueError, match=r"rank0-1\.safetensors: damaged.*size"):
        store.read(key_of(4))  # opened before the damage: an error, not a crash
    bad.unlink()
    again = FeatureStore.open(folder)
    assert set(again.keys()) == {key_of(i) for i in (0, 1, 2, 6, 7, 8)}
    assert_holds(fill(again, range(9)), range(9))


def test_full_disk_names_the_shard_and_leaves_the_store_as_it_was(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    writer = store.writer()
    writer.add(key_of(3), sequence_of(3))
    with largest_file(200), pytest.raises(OSError, match=r"rank0-1\.safetensors") as full:
        writer.flush()
    assert full.value.errno == errno.EFBIG
    assert sorted(p.name for p in folder.iterdir()) == ["fingerprint.json", "rank0-0.safetensors"]
    assert_holds(FeatureStore.open(folder), range(3))
    writer.close()  # there is room again: the entry was still held
    assert_holds(FeatureStore.open(folder), range(4))


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
