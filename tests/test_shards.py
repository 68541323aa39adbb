"""One shard file: not a byte of it can change unseen, and no header, however hostile, is believed."""

import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scripts.store import headers
from scripts.store.shards import (
    DamagedShardError,
    ForeignShardError,
    StoredSequence,
    entry_digest,
    list_shards,
)
from scripts.store.store import FeatureStore
from tests.stores import (
    FINGERPRINT,
    arrays_of,
    assert_equal,
    assert_holds,
    fill,
    flip,
    forged,
    key_of,
    sequence_of,
    shards,
    spelled,
)

TENSORS = {"keys", "digests", "lengths", "features", "frame_times_ms", "frame_indices"}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features"


def refusal(path: Path) -> str:
    """What the refusal of a damaged shard says: its name and the command that repairs."""
    return (
        f"^{re.escape(str(path))}: damaged shard: .*python -m scripts store prune {re.escape(str(path.parent))}; then"
    )


# --- what is written ---


def test_shard_is_a_safetensors_file_of_six_tensors_that_names_nothing_else(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(5))
    with safe_open(folder / "rank0-0.safetensors", "pt") as shard:
        assert set(shard.keys()) == TENSORS
        assert shard.metadata().keys() == {"format_version", "fingerprint_digest", "index_digest"}
        assert (shard.metadata()["format_version"], shard.metadata()["fingerprint_digest"]) == ("2", store.digest)
        assert [key.numpy().tobytes().hex() for key in shard.get_tensor("keys")] == [key_of(i) for i in range(5)]
        assert shard.get_tensor("lengths").tolist() == [1, 2, 3, 4, 5]
        assert shard.get_tensor("features").dtype == torch.float16
        digests = [digest.numpy().tobytes().hex() for digest in shard.get_tensor("digests")]
        assert digests == [entry_digest(key_of(i), sequence_of(i)) for i in range(5)]
    assert sorted(p.name for p in folder.iterdir()) == ["fingerprint.json", "rank0-0.safetensors"]


def test_header_does_not_grow_with_the_entries(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(1))
    fill(store, range(1, 600), rank=1)
    sizes = [int.from_bytes((folder / name).read_bytes()[:8], "little") for name in shards(folder)]
    assert sizes[0] <= sizes[1] <= sizes[0] + 64


def test_entry_digest_tells_every_part_of_an_entry_apart():
    sequence = StoredSequence(torch.arange(12.0).view(3, 4), torch.zeros(3), torch.arange(3))
    others = [
        (key_of(1), sequence),
        (key_of(0), sequence._replace(features=sequence.features.view(3, 2, 2))),
        (key_of(0), sequence._replace(features=sequence.features.half())),
        (key_of(0), sequence._replace(features=-sequence.features)),
        (key_of(0), sequence._replace(frame_times_ms=torch.ones(3))),
        (key_of(0), sequence._replace(frame_indices=torch.arange(3).flip(0))),
    ]
    digests = {entry_digest(key, other) for key, other in [(key_of(0), sequence), *others]}
    assert len(digests) == 7
    strided = torch.arange(24.0).view(3, 8)[:, ::2] / 2  # equal numbers, laid out in another way
    assert entry_digest(key_of(0), sequence._replace(features=strided)) in digests


# --- damage ---


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_byte_that_changed_anywhere_is_refused_at_opening_or_costs_one_entry(folder, mask):
    fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    path = folder / "rank0-0.safetensors"
    whole = path.read_bytes()
    at_opening = at_reading = 0
    for position in range(len(whole)):
        flip(path, position, mask)
        try:
            store = FeatureStore.open(folder)
        except DamagedShardError as error:
            assert re.match(refusal(path), str(error))
            at_opening += 1
        else:
            refused = []
            for i in range(3):
                try:
                    assert_equal(store.read(key_of(i)), sequence_of(i))
                except DamagedShardError as error:
                    assert re.match(refusal(path), str(error))
                    refused.append(i)
                    for way in (store.read, store.check, lambda key, s=store: s.view(s.find([key])[0])):
                        with pytest.raises(DamagedShardError, match=f"{key_of(i)} is not what was written"):
                            way(key_of(i))
            assert len(refused) == 1
            at_reading += 1
        path.write_bytes(whole)
    index = 8 + int.from_bytes(whole[:8], "little") + 3 * (32 + 32 + 8)
    assert (at_opening, at_reading) == (index, len(whole) - index)
    assert_holds(FeatureStore.open(folder), range(3))


def test_shard_cut_anywhere_or_with_a_byte_more_is_refused_at_opening(folder):
    fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    path = folder / "rank0-0.safetensors"
    whole = path.read_bytes()
    damages = [whole[:size] for size in range(len(whole))] + [whole + b"\0"]
    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(DamagedShardError, match=refusal(path)):
            FeatureStore.open(folder)
    assert len(damages) > 900


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_though_their_digest_is_right(folder, dtype, number):
    store = FeatureStore.create(folder, FINGERPRINT)
    arrays = arrays_of([3, 4])
    arrays["features"] = arrays["features"].astype(dtype)
    arrays["features"][6, 2] = number  # of entry 4
    (folder / "rank0-0.safetensors").write_bytes(forged(aligned(arrays), store.digest))
    store.refresh()
    assert store.read(key_of(3)).features.isfinite().all()
    with pytest.raises(DamagedShardError, match=f"{key_of(4)} has features that are not finite"):
        store.read(key_of(4))


def aligned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """In the order of item size, as safetensors has them."""
    return dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str], bytes]:
    """A shard of three entries with one tensor changed before the digests are made."""

    def shard(digest: str) -> bytes:
        arrays = arrays_of([7, 8, 9])  # of 8, 9 and 1 frames
        return forged(aligned(arrays | {name: change(arrays[name])}), digest)

    return shard


def lengths(*values: int) -> Callable[[str], bytes]:
    return changed("lengths", lambda old: np.array(values, np.int64))


def retold(change: Callable[[dict], object]) -> Callable[[str], bytes]:
    """A shard of three entries whose header was changed by `change`, which may return other bytes for it."""

    def shard(digest: str) -> bytes:
        whole = forged(arrays_of([7, 8, 9]), digest)
        size = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:size])
        told = change(header)
        return spelled(header if told is None else told, whole[size:])

    return shard


def compact(header: object) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def without(arrays: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name not in names}


def renamed(old: str, new: str) -> Callable[[str], bytes]:
    return retold(lambda header: header.update({new: header.pop(old)}))


def at(name: str, *offsets: int) -> Callable[[str], bytes]:
    return retold(lambda header: header[name].update(data_offsets=list(offsets)))


HOSTILE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda digest: b"",
    "no header": lambda digest: b"\0" * 8,
    "header of 4 EiB": lambda digest: spelled({}, claimed=2**62),
    "header of 90 MB": lambda digest: spelled({}, claimed=90 * 2**20),
    "not JSON": lambda digest: spelled(b"\xff" * 100),
    "JSON without end": lambda digest: spelled(b"[" * 4000),
    "no object": lambda digest: spelled([1, 2]),
    "no tensors": lambda digest: spelled({"__metadata__": {"format_version": "2", "fingerprint_digest": digest}}),
    "header longer than the file": lambda digest: spelled({}, claimed=4000),
    "spaced header": retold(lambda header: json.dumps(header).encode()),
    "a tensor twice": retold(lambda header: compact(header)[:-1] + b',"keys":' + compact(header["keys"]) + b"}"),
    "one tensor more": lambda digest: forged(arrays_of([7]) | {"label": np.zeros(1, np.uint8)}, digest),
    "one tensor less": lambda digest: forged(without(arrays_of([7]), "frame_indices"), digest),
    "no index": lambda digest: forged(without(arrays_of([7]), "keys", "lengths"), digest),
    "tensor named like a path": renamed("features", "../../etc/passwd"),
    "keys and digests exchanged": retold(lambda h: h.update(keys=h["digests"], digests=h["keys"])),
    "not aligned": lambda digest: forged(
        {"features": np.ones((9, 7), "f2"), **without(arrays_of([8]), "features")}, digest
    ),
    "gap": retold(lambda header: header.pop("lengths") and None),
    "overlap": at("lengths", 0, 24),
    "beyond the end": at("digests", 2**40, 2**40 + 96),
    "end before begin": at("digests", 96, 0),
    "negative offset": at("frame_indices", -8, 136),
    "shape of another size": retold(lambda header: header["features"].update(shape=[19, 8])),
    "shape that overflows": retold(lambda header: header["features"].update(shape=[2**33, 2**33])),
    "negative shape": retold(lambda header: header["features"].update(shape=[-18, -8])),
    "shape of no numbers": retold(lambda header: header["features"].update(shape=["18", "8"])),
    "features of another form": changed("features", lambda old: old.reshape(18, 2, 2, 2)),
    "features of one dimension": changed("features", lambda old: old.reshape(-1)),
    "features without width": changed("features", lambda old: old[:, :0]),
    "features of whole numbers": changed("features", lambda old: old.view(np.int16)),
    "features of float64": changed("features", lambda old: old.astype(np.float64)),
    "times of another type": changed("frame_times_ms", lambda old: old.astype(np.float64)),
    "times of other frames": changed("frame_times_ms", lambda old: old[:-1]),
    "times of two dimensions": changed("frame_times_ms", lambda old: old.reshape(9, 2)),
    "indices of another type": changed("frame_indices", lambda old: old.astype(np.int32)),
    "indices of other frames": changed("frame_indices", lambda old: np.append(old, 0)),
    "keys of another width": changed("keys", lambda old: old.reshape(6, 16)),
    "keys of another type": changed("keys", lambda old: old.view(np.int8)),
    "more keys than lengths": changed("keys", lambda old: np.concatenate([old, old])),
    "no entries": changed("keys", lambda old: old[:0]),
    "length of 0": lengths(18, 0, 0),
    "length below 0": lengths(20, -3, 1),
    "lengths of fewer frames": lengths(8, 8, 1),
    "lengths of more frames": lengths(8, 9, 2),
    "huge length": lengths(2**62, 9, 1),
    "lengths whose sum overflows to the right one": lengths(2**63 - 1, 2**63 - 1, 20),
    "lengths of another type": changed("lengths", lambda old: old.astype(np.int32)),
    "lengths of two dimensions": changed("lengths", lambda old: old.reshape(3, 1)),
    "another index digest": lambda digest: forged(arrays_of([7]), digest, index_digest="0" * 64),
    "another format": lambda digest: forged(arrays_of([7]), digest, format_version="1"),
    "no fingerprint": retold(lambda header: header["__metadata__"].pop("fingerprint_digest") and None),
    "fingerprint exchanged": lambda digest: forged(arrays_of([7]), digest, fingerprint_digest="0" * 64),
}


def test_forged_shard_is_accepted_before_it_is_made_hostile(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    (folder / "rank0-7.safetensors").write_bytes(forged(aligned(arrays_of([7, 8, 9])), store.digest))
    store.refresh()
    assert_holds(store, range(7, 10))


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_shard_is_refused_by_name_with_the_way_out(folder, kind):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    bad = folder / "rank0-7.safetensors"
    bad.write_bytes(HOSTILE[kind](store.digest))
    for _ in range(2):  # a store that is open already never comes to trust it
        with pytest.raises(DamagedShardError, match=refusal(bad)):
            store.refresh()
    assert_holds(store, range(2))
    with pytest.raises(DamagedShardError, match=refusal(bad)):
        FeatureStore.open(folder)
    bad.unlink()
    assert_holds(FeatureStore.open(folder), range(2))


def test_shard_of_more_entries_than_are_written_is_refused(folder, monkeypatch):
    fill(FeatureStore.create(folder, FINGERPRINT), range(3))
    monkeypatch.setattr(headers, "MAX_SEQUENCES", 2)
    with pytest.raises(DamagedShardError, match="shapes"):
        FeatureStore.open(folder)


def test_shard_of_the_first_format_is_refused_by_name(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    path = folder / "rank0-0.safetensors"
    tensors = {f"{key_of(0)}.features": torch.zeros(1, 4)}
    save_file(tensors, path, {"format_version": "1", "fingerprint_digest": store.digest})
    with pytest.raises(DamagedShardError, match=refusal(path)):
        FeatureStore.open(folder)


def test_whole_shard_of_another_store_is_no_damaged_one(folder, tmp_path):
    other = fill(FeatureStore.create(tmp_path / "other", {"encoder": "b"}), range(2), rank=4)
    store = FeatureStore.create(folder, FINGERPRINT)
    shutil.copy(tmp_path / "other" / "rank4-0.safetensors", folder)
    with pytest.raises(ForeignShardError, match=rf"rank4-0\.safetensors: .*{other.digest}.*{store.digest}.*another"):
        FeatureStore.open(folder)


def test_nothing_but_a_file_is_taken_for_a_shard(folder):
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    os.mkfifo(folder / "rank0-1.safetensors")  # opening it would wait for a writer
    (folder / "rank0-2.safetensors").mkdir()
    for name in ("rank0-x.safetensors", "rank-1-0.safetensors", "0.safetensors", "rank0-3.safetensors.aside"):
        (folder / name).write_bytes(b"")
    assert [shard.name for shard in list_shards(folder)] == ["rank0-0.safetensors"]
    assert_holds(fill(store, range(2, 4)), range(4))
    assert shards(folder)[-1] == "rank0-x.safetensors"
    assert [shard.name for shard in list_shards(folder)] == ["rank0-0.safetensors", "rank0-3.safetensors"]


def test_shards_are_listed_by_rank_and_number_not_by_letter(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    fill(store, range(12), per_shard=1, rank=2)
    fill(store, range(12, 13), rank=10)
    assert [shard.order for shard in list_shards(folder)] == [*((2, n) for n in range(12)), (10, 0)]


# --- who may read and write it ---


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_every_file_of_a_store_has_the_mode_that_the_umask_gives(folder, mask, mode):
    with umask(mask):
        fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert found == dict.fromkeys(("fingerprint.json", "rank0-0.safetensors"), mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
def test_leftover_of_another_person_is_passed_over_and_the_shard_gets_the_next_name():
    folder = Path(tempfile.mkdtemp()) / "features"  # pytest's own folders are closed to other users
    try:
        FeatureStore.create(folder, FINGERPRINT)
        (folder / "rank0-0.safetensors.tmp").write_bytes(b"half a shard")
        folder.parent.chmod(0o755)
        folder.chmod(0o777)
        os.seteuid(65534)
        store = fill(FeatureStore.open(folder), range(3))
        os.seteuid(0)
        assert_holds(store, range(3))
        left = sorted(path.name for path in folder.iterdir())
    finally:
        os.seteuid(0)
        shutil.rmtree(folder.parent)
    assert left == ["fingerprint.json", "rank0-0.safetensors.tmp", "rank0-1.safetensors"]
