"""Info, verify, prune and merge: what they tell of a store, repair in it, and never lose."""

import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts.curation import inspection, maintenance, merging
from scripts.curation.maintenance import prune_store
from scripts.curation.merging import merge_stores
from scripts.curation.overview import store_info
from scripts.curation.verification import verify_store
from scripts.features.entries import entry_key, pass_key
from scripts.store.shards import StoredSequence, read_index
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.exams import write_exam
from tests.stores import FINGERPRINT, assert_equal, assert_holds, fill, flip, key_of, sequence_of, shards

SETTINGS = {"encoder_weights": "dinov2_small", "image_size": 112, "window": "percentile"}
OTHER = {**FINGERPRINT, "mean": 0.25}


def make(folder: Path, numbers: range, per_shard: int = 5, rank: int = 0) -> Path:
    """A store of these entries."""
    fill(FeatureStore.create(folder, FINGERPRINT, SETTINGS, {"python": "3"}), numbers, per_shard, rank)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def payload_of(folder: Path, number: int) -> tuple[Path, int]:
    """The shard of an entry, and where its features begin in it."""
    wanted = sequence_of(number).features.numpy().tobytes()
    for path in sorted(folder.glob("*.safetensors")):
        at = path.read_bytes().find(wanted)
        if at >= 0:
            return path, at
    raise AssertionError


def damage(folder: Path, number: int) -> Path:
    """Flip a byte of an entry's features."""
    path, at = payload_of(folder, number)
    flip(path, at + 3)
    return path


def hold_back(folder: Path, name: str) -> int:
    """A temporary file as a living process has it: locked."""
    descriptor = os.open(folder / name, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@pytest.fixture
def store(tmp_path) -> Path:
    """Twenty entries in four shards."""
    return make(tmp_path / "features", range(20))


# --- info ---


def test_info_tells_numbers_and_what_the_store_was_made_with(store):
    text, whole = store_info(store, progress=False)
    frames = sum(len(sequence_of(i).features) for i in range(20))
    size = sum(path.stat().st_size for path in store.glob("*.safetensors"))
    rows = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in text.splitlines()}
    assert whole
    assert rows["sequences"] == "20"
    assert rows["frames"].startswith(f"{frames}, {frames / 20:.1f} a sequence, at most 9")
    assert rows["size"] == f"{size / 1024:.1f} KiB"
    assert rows["shards"].startswith("4,")
    assert rows["features"] == "(T, 8) float16"
    assert rows["encoder"] == "tiny"
    assert rows["weights"] == "dinov2_small, digest ab"
    assert rows["preprocessing"] == "image_size 112, window percentile"
    assert rows["made with"] == "python 3"
    assert rows["fingerprint"] == FeatureStore.open(store).digest[:16]


def test_info_counts_the_augmented_passes_that_are_stored(tmp_path):
    augmentation = {"seed": 7, "1 Turn": {"class": "Turn"}}
    folder = tmp_path / "features"
    for count in (0, 3):
        store = FeatureStore.create(folder, {**FINGERPRINT, "augmentation": augmentation})
        with store.writer() as writer:
            for number in range(5):
                for augmented in range(count + 1):
                    writer.add(pass_key(key_of(number), augmented), sequence_of(number))
        wanted = f"{count}, seed 7" if count else "none"
        assert re.search(f"^augmented passes +{wanted}$", store_info(folder, progress=False)[0], re.MULTILINE)


def test_info_reads_no_feature(store):
    for number in range(20):
        damage(store, number)
    assert store_info(store, progress=False)[1]


def test_info_names_every_damaged_shard_and_counts_the_rest(store):
    for name in ("rank0-1.safetensors", "rank0-2.safetensors"):
        flip(store / name, 20)
    text, whole = store_info(store, progress=False)
    assert not whole
    assert [name for name in shards(store) if str(store / name) in text] == [
        "rank0-1.safetensors",
        "rank0-2.safetensors",
    ]
    assert f"python -m scripts store prune {store}" in text
    assert re.search(r"^sequences +10$", text, re.MULTILINE)


def test_info_counts_duplicates_and_what_killed_runs_left_but_not_what_living_ones_hold(store):
    shutil.copy(store / "rank0-1.safetensors", store / "rank1-0.safetensors")
    (store / "rank1-1.safetensors.tmp").write_bytes(b"x" * 2048)
    (store / "fingerprint.json.0a1b.tmp").write_bytes(b"")
    living = hold_back(store, "rank2-0.safetensors.tmp")
    text, whole = store_info(store, progress=False)
    os.close(living)
    assert whole
    assert "20, 5 duplicates beside them" in text
    assert "2 files, 2.0 KiB" in text


def test_info_of_an_empty_store_says_that_it_is_empty(tmp_path):
    FeatureStore.create(tmp_path / "new", FINGERPRINT)
    text, whole = store_info(tmp_path / "new", progress=False)
    assert whole
    assert "none yet" in text


@pytest.mark.parametrize("command", [store_info, verify_store, prune_store])
def test_folder_that_is_no_store_is_refused(tmp_path, command):
    make(tmp_path / "lost", range(3))
    (tmp_path / "lost" / "fingerprint.json").unlink()
    for folder in (tmp_path / "absent", tmp_path, tmp_path / "lost"):
        with pytest.raises(FileNotFoundError, match=r"no feature store here. Make it first"):
            command(folder, progress=False)
    assert shards(tmp_path / "lost") == ["rank0-0.safetensors"]


# --- verify ---


def test_verify_passes_a_store_as_it_was_written(store):
    text, whole = verify_store(store, progress=False)
    assert whole
    assert "20 sequences in 4 shards" in text
    assert "all bytes are what was written" in text


def test_flipped_byte_anywhere_in_a_shard_is_told_by_verify_and_lost_by_prune_with_its_own_entries_alone(tmp_path):
    make(tmp_path / "whole", range(6), per_shard=3)
    n_bytes = (tmp_path / "whole" / "rank0-0.safetensors").stat().st_size
    positions = np.random.default_rng(0).choice(n_bytes, 40, replace=False).tolist()
    left = []
    for position in positions:
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"at{position}")
        flip(folder / "rank0-0.safetensors", position, 1 << position % 8)
        text, whole = verify_store(folder, progress=False)
        assert not whole
        assert f"DAMAGED: {folder / 'rank0-0.safetensors'}: " in text
        assert f"python -m scripts store prune {folder}" in text
        assert prune_store(folder, progress=False)[1]
        pruned = FeatureStore.open(folder)
        for number in range(3, 6):  # of the other shard
            assert_equal(pruned.read(key_of(number)), sequence_of(number))
        left.append(len(pruned))
        assert sum(1 for key in pruned.keys() if not pruned.check(key)) == len(pruned)  # noqa: SIM118
        assert verify_store(folder, progress=False)[1]
    assert len(left) == 40
    assert set(left) <= {3, 4, 5, 6}
    assert left.count(5) > 10  # most bytes are of one entry


def test_verify_counts_the_entries_that_are_hit(store):
    hit = {damage(store, number) for number in (0, 3, 12)}
    text, whole = verify_store(store, progress=False)
    assert not whole
    assert len(hit) == 2
    assert f"{store / 'rank0-0.safetensors'}: 2 of 5 sequences damaged" in text
    assert f"{store / 'rank0-2.safetensors'}: 1 of 5 sequences damaged" in text


def test_shard_of_another_store_is_told_and_left_alone(store, tmp_path):
    fill(FeatureStore.create(tmp_path / "other", OTHER), range(30, 33))
    shutil.copy(tmp_path / "other" / "rank0-0.safetensors", store / "rank7-0.safetensors")
    assert not store_info(store, progress=False)[1]
    text, whole = verify_store(store, progress=False)
    assert not whole
    assert "rank7-0.safetensors" in text
    text, whole = prune_store(store, progress=False)
    assert not whole
    assert "rank7-0.safetensors" in text
    assert (store / "rank7-0.safetensors").exists()
    (store / "rank7-0.safetensors").unlink()
    assert_holds(FeatureStore.open(store), range(20))


def test_shard_that_the_system_does_not_let_be_read_is_told_and_never_dropped(store, monkeypatch):
    def refusing(path, digest):
        if path.name == "rank0-1.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return read_index(path, digest)

    damage(store, 0)
    before = content(store)["rank0-1.safetensors"]
    with monkeypatch.context() as patched:
        patched.setattr(inspection, "read_index", refusing)
        text, whole = prune_store(store, progress=False)
        assert not whole
        assert "Permission denied" in text
        assert not merge_stores(store.with_name("all"), [store], progress=False)[1]
    assert content(store)["rank0-1.safetensors"] == before
    assert_holds(FeatureStore.open(store), range(1, 20))


# --- prune ---


def test_prune_of_a_whole_store_changes_no_byte(store):
    before = content(store)
    text, whole = prune_store(store, progress=False)
    assert whole
    assert "dropped: nothing" in text
    assert content(store) == before


def test_prune_drops_damage_duplicates_and_leftovers_and_writes_only_shards_concerned(store):
    fill(FeatureStore.open(store), range(30, 35), rank=1)
    shutil.copy(store / "rank0-1.safetensors", store / "rank3-0.safetensors")
    (store / "rank1-1.safetensors.tmp").write_bytes(b"x" * 5000)
    (store / "fingerprint.json.0a1b.tmp").write_bytes(b"")
    living = hold_back(store, "rank2-0.safetensors.tmp")
    damage(store, 12)
    before = content(store)
    would, _ = prune_store(store, dry_run=True, progress=False)
    assert content(store) == before
    did, whole = prune_store(store, progress=False)
    os.close(living)
    after = content(store)
    assert whole
    assert "would drop: 1 damaged sequence, 5 duplicates, 2 files of killed runs" in would
    assert "dropped: 1 damaged sequence, 5 duplicates, 2 files of killed runs" in did
    assert "24 sequences left" in did
    assert "cache_features.yaml" in did
    unchanged = {"fingerprint.json", *(f"rank0-{n}.safetensors" for n in (0, 1, 3)), "rank1-0.safetensors"}
    assert {name for name in before if after.get(name) == before[name]} == unchanged | {"rank2-0.safetensors.tmp"}
    freed = sum(map(len, before.values())) - sum(map(len, after.values()))
    assert f"freed {freed / 1024:.1f} KiB" in did
    (store / "rank2-0.safetensors.tmp").unlink()
    assert_holds(fill(FeatureStore.open(store), [12]), sorted({*range(20), *range(30, 35)}))


def test_damaged_copy_of_an_entry_costs_nothing_where_another_is_whole(store):
    shutil.copy(store / "rank0-1.safetensors", store / "rank3-0.safetensors")
    damage(store, 7)  # in the shard that comes first
    prune_store(store, progress=False)
    assert_holds(FeatureStore.open(store), range(20))


def test_prune_of_an_empty_store_and_of_one_that_is_all_damaged_leaves_an_empty_one(store, tmp_path):
    FeatureStore.create(tmp_path / "new", FINGERPRINT)
    for name in shards(store):
        flip(store / name, 12)
    for folder in (tmp_path / "new", store):
        assert prune_store(folder, progress=False)[1]
        assert_holds(FeatureStore.open(folder), range(0))
        assert verify_store(folder, progress=False)[1]


@pytest.mark.parametrize("fatal", range(6))
def test_prune_killed_at_any_step_loses_nothing_and_the_next_one_ends_it(store, monkeypatch, fatal):
    for number in (1, 6, 11):
        damage(store, number)
    steps = iter(range(100))

    def deadly(step):
        def run(*arguments, **options):
            if next(steps) == fatal:
                raise KeyboardInterrupt
            return step(*arguments, **options)

        return run

    with monkeypatch.context() as patched:
        patched.setattr(maintenance, "publish", deadly(maintenance.publish))
        patched.setattr(Path, "unlink", deadly(Path.unlink))
        with pytest.raises(KeyboardInterrupt):
            prune_store(store, progress=False)
    good = sorted({*range(20)} - {1, 6, 11})
    stored = FeatureStore.open(store)
    assert set(stored.keys()) >= {key_of(i) for i in good}
    prune_store(store, progress=False)
    assert_holds(FeatureStore.open(store), good)


def test_process_that_reads_a_store_goes_on_while_it_is_pruned(store):
    reader = FeatureStore.open(store)
    rows = reader.find([key_of(i) for i in range(20)])
    for number in (0, 5, 10, 15):
        reader.read(key_of(number))
    damage_of = [damage(store, number) for number in (4, 9, 14, 19)]
    prune_store(store, progress=False)
    assert not any(path.exists() for path in damage_of)
    for number in sorted({*range(20)} - {4, 9, 14, 19}):
        assert_equal(reader.read(key_of(number)), sequence_of(number))
        assert_equal(reader.view(rows[number]), sequence_of(number))


def test_second_prune_or_merge_at_once_is_refused(store, tmp_path):
    descriptor = os.open(store, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    for command, arguments in ((prune_store, (store,)), (merge_stores, (store, [make(tmp_path / "more", range(3))]))):
        with pytest.raises(ValueError, match="another prune or merge") as error:
            command(*arguments, progress=False)
        assert_message(error.value, store, "at work")
    os.close(descriptor)


# --- prune by datalists ---


@pytest.fixture
def exams(tmp_path) -> Path:
    """A folder of four exams with a datalist of the first two and one of the third."""
    folder = tmp_path / "exams"
    for number in range(4):
        write_exam(folder / f"{number}.dcm", seed=number)
    for name, listed in (("first.json", (0, 1)), ("second.json", (2,))):
        (folder / name).write_text(json.dumps({"training": [{"image": f"{number}.dcm"} for number in listed]}))
    return folder


def exam_key(exams: Path, number: int) -> str:
    return entry_key({"image": exams / f"{number}.dcm"})


def store_of(exams: Path, folder: Path, passes: int) -> Path:
    """A store of all four exams and `passes` augmented passes of each, with seventeen strangers."""
    store = fill(FeatureStore.create(folder, FINGERPRINT), range(17), per_shard=4)
    with store.writer() as writer:
        for number in range(4):
            for augmented in range(passes + 1):
                writer.add(pass_key(exam_key(exams, number), augmented), sequence_of(100 + number))
    return folder


@pytest.mark.parametrize(("names", "kept"), [(["first.json"], (0, 1)), (["first.json", "second.json"], (0, 1, 2))])
def test_prune_by_datalists_keeps_their_exams_with_all_passes_and_nothing_else(exams, tmp_path, names, kept):
    folder = store_of(exams, tmp_path / "features", passes=3)
    lists = [str(exams / name) for name in names]
    text, _ = prune_store(folder, ",".join(lists), progress=False)
    wanted = {pass_key(exam_key(exams, number), p) for number in kept for p in range(4)}
    assert set(FeatureStore.open(folder).keys()) == wanted
    assert f"{33 - len(wanted)} sequences of no exam in the lists" in text


def test_prune_by_a_datalist_keeps_passes_where_one_between_them_is_damaged(exams, tmp_path):
    folder = store_of(exams, tmp_path / "features", passes=0)
    key = exam_key(exams, 0)
    with FeatureStore.open(folder).writer() as writer:
        for number in (1, 3):
            writer.add(pass_key(key, number), sequence_of(40 + number))
        writer.add(pass_key(exam_key(exams, 1), 2), sequence_of(42))  # another exam has the pass between
    prune_store(folder, str(exams / "first.json"), progress=False)
    assert {pass_key(key, number) for number in (0, 1, 3)} <= set(FeatureStore.open(folder).keys())


def test_prune_by_a_datalist_of_which_an_exam_cannot_be_read_drops_nothing(exams, tmp_path):
    folder = store_of(exams, tmp_path / "features", passes=0)
    (exams / "1.dcm").unlink()
    before = content(folder)
    with pytest.raises(ValueError, match="unreadable") as error:
        prune_store(folder, str(exams / "first.json"), progress=False)
    assert_message(error.value, "1.dcm", "content", "1 of 2 exams")
    assert content(folder) == before


def test_prune_by_a_datalist_of_other_exams_drops_nothing(exams, store):
    before = content(store)
    with pytest.raises(ValueError, match="none of the 2 exams") as error:
        prune_store(store, str(exams / "first.json"), progress=False)
    assert_message(error.value, store, "content", "none of the 2 exams")
    assert content(store) == before


# --- merge ---


def test_merge_holds_every_entry_of_its_sources_once_in_large_shards_and_leaves_them_as_they_are(tmp_path):
    sources = [make(tmp_path / f"task{n}", range(10 * n, 10 * n + 15), per_shard=4) for n in range(4)]
    before = [content(source) for source in sources]
    text, whole = merge_stores(tmp_path / "all", sources, progress=False)
    merged = FeatureStore.open(tmp_path / "all")
    assert whole
    assert "45 copied" in text
    assert_holds(merged, range(45))
    assert shards(tmp_path / "all") == ["rank0-0.safetensors"]
    assert (merged.fingerprint, merged.settings, merged.made_with) == (FINGERPRINT, SETTINGS, {"python": "3"})
    assert [content(source) for source in sources] == before


def test_merge_of_one_store_makes_it_compact(store, tmp_path):
    merge_stores(tmp_path / "compact", [store], progress=False)
    assert_holds(FeatureStore.open(tmp_path / "compact"), range(20))
    assert len(shards(tmp_path / "compact")) == 1


def test_merge_adds_to_a_store_what_it_lacks(store, tmp_path):
    more = make(tmp_path / "more", range(15, 30))
    merge_stores(store, [more], progress=False)
    assert_holds(FeatureStore.open(store), range(30))


def test_merge_of_empty_stores_is_an_empty_store(tmp_path):
    FeatureStore.create(tmp_path / "empty", FINGERPRINT)
    assert merge_stores(tmp_path / "all", [tmp_path / "empty"], progress=False)[1]
    assert len(FeatureStore.open(tmp_path / "all")) == 0


def test_merge_refuses_another_fingerprint_naming_the_field_and_writes_nothing(store, tmp_path):
    fill(FeatureStore.create(tmp_path / "other", OTHER), range(3))
    for output, sources in ((tmp_path / "all", [store, tmp_path / "other"]), (tmp_path / "other", [store])):
        before = content(tmp_path / "other")
        with pytest.raises(ValueError, match=r"mean is 0\.\d+ in the store, 0\.\d+ wanted"):
            merge_stores(output, sources, progress=False)
        assert content(tmp_path / "other") == before
    assert not (tmp_path / "all").exists()


def test_merge_into_one_of_its_sources_is_refused_and_names_prune(store, tmp_path):
    (tmp_path / "link").symlink_to(store)
    for output in (store, tmp_path / "link", store / ".." / store.name):
        with pytest.raises(ValueError, match="store prune") as error:
            merge_stores(output, [make(tmp_path / "more", range(3)), store], progress=False)
        assert_message(error.value, output, "output")


def test_merge_leaves_damaged_entries_out_and_names_their_shards(store, tmp_path):
    damage(store, 3)
    flip(store / "rank0-2.safetensors", 12)  # in the header: none of its five entries can be had
    text, whole = merge_stores(tmp_path / "all", [store], progress=False)
    assert not whole
    assert f"{store / 'rank0-0.safetensors'}: 1 of 5 sequences damaged" in text
    assert f"{store / 'rank0-2.safetensors'}: damaged shard" in text
    assert_holds(FeatureStore.open(tmp_path / "all"), sorted({*range(20)} - {3, *range(10, 15)}))


def test_interrupted_merge_goes_on_where_it_was_and_reads_no_entry_twice(tmp_path, monkeypatch):
    sources = [make(tmp_path / f"task{n}", range(10 * n, 10 * n + 10), per_shard=2) for n in range(3)]
    monkeypatch.setattr(merging, "SHARD_BYTES", 500)
    inspected = []

    def interrupted(*arguments, **options):
        for count, shard in enumerate(inspect(*arguments, **options)):
            inspected.append(int(shard.asked.sum()))
            if count == 9 and len(inspected) == 10:
                raise KeyboardInterrupt
            yield shard

    inspect = merging.inspect_stores
    monkeypatch.setattr(merging, "inspect_stores", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_stores(tmp_path / "all", sources, progress=False)
    there = len(FeatureStore.open(tmp_path / "all"))
    assert there == 18
    assert merge_stores(tmp_path / "all", sources, progress=False)[1]
    assert sum(inspected[10:]) == 30 - there
    assert_holds(FeatureStore.open(tmp_path / "all"), range(30))


def test_merge_keeps_shards_of_one_form_apart(tmp_path):
    folder = make(tmp_path / "features", range(3))
    wide = StoredSequence(sequence_of(3).features.float(), *sequence_of(3)[1:])
    with FeatureStore.open(folder).writer() as writer:
        writer.add(key_of(3), wide)
    merge_stores(tmp_path / "all", [folder], progress=False)
    merged = FeatureStore.open(tmp_path / "all")
    assert_equal(merged.read(key_of(3)), wide)
    assert_equal(merged.read(key_of(0)), sequence_of(0))
