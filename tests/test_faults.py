"""Faults of extraction: kills, full disks, folders that are read only, damaged files, two runs at once.

After each of them the next run ends with a store equal to that of an uninterrupted run, or refuses in one line
that names the damaged file and what repairs it; once that is done, the next run ends so.
"""

import errno
import functools
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.curation.maintenance import prune_store
from scripts.keys import FEATURES, FRAME_INDICES, FRAME_TIMES, LENGTHS
from scripts.store.headers import DIGESTS, KEYS, read_head
from scripts.store.store import FeatureStore, StoredSequence
from tests.exams import write_exam
from tests.extractions import NEVER, OFTEN, Extractions, Kill, extract
from tests.stores import assert_equal, flip, shards
from tests.test_writer import largest_file

SEED = 0  # of the moments and places of the faults
EXAMS, FEW = 18, 6
KILLS = 20  # for each number of processes
FLIPS = 5  # in each region of a shard


@pytest.fixture(scope="module")
def exams(tmp_path_factory) -> list[Path]:
    """Exams of 2 to 6 frames each."""
    folder = tmp_path_factory.mktemp("exams")
    return [write_exam(folder / f"{n:02d}.dcm", num_frames=2 + n % 5, seed=n) for n in range(EXAMS)]


@pytest.fixture(scope="module")
def extractions(exams, tmp_path_factory) -> Iterator[Extractions]:
    started = Extractions(exams, tmp_path_factory.mktemp("log") / "stderr")
    yield started
    started.close()


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    monkeypatch.setattr(FeatureStore, "writer", OFTEN)


def entries_of(folder: Path) -> dict[str, StoredSequence]:
    store = FeatureStore.open(folder)
    return {key: store.read(key) for key in list(store.keys())}


@pytest.fixture(scope="module")
def whole(exams, tmp_path_factory) -> dict[str, StoredSequence]:
    """The entries that an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole") / "features"
    extract(exams, folder)
    entries = entries_of(folder)
    assert len(entries) == EXAMS
    return entries


def assert_whole(folder: Path, entries: dict[str, StoredSequence], number: int = EXAMS) -> None:
    """The store is that of an uninterrupted run over the first exams, and no half shard lies there."""
    found = entries_of(folder)
    assert len(found) == number and found.keys() <= entries.keys(), folder
    for key, sequence in found.items():
        assert_equal(sequence, entries[key])
    assert not list(folder.glob("rank*.tmp")), folder


# --- kills ---


def kills_of(number: int, chance: random.Random, seconds: float, processes: int) -> list[Kill]:
    """A random moment of a run that takes so long, of its start, or of its progress, by turns; for each process.

    A second process goes with the first or soon after, as torchrun has it.
    """
    moments = [Kill(chance.uniform(0, part * seconds)) for part in (1, 0.1)]
    moments.append(Kill(chance.uniform(0, seconds / EXAMS), chance.randrange(1, EXAMS)))
    first = moments[number % len(moments)]
    kills = [first, first._replace(delay_s=first.delay_s + chance.choice([0, 0.01, 0.1, 1]))][:processes]
    chance.shuffle(kills)
    return kills


@pytest.mark.parametrize("processes", [1, 2])
def test_extraction_killed_at_any_moment_is_completed_by_the_next_run(extractions, whole, tmp_path, processes):
    chance = random.Random(f"{SEED} {processes}")
    never = [NEVER] * processes
    seconds = min(extractions.run(tmp_path / f"timed {n}", *never)[1] for n in range(3))
    stages: list[int] = []  # shards that were there at each kill
    for number in range(10 * KILLS):
        kills = kills_of(number, chance, seconds, processes)
        folder = tmp_path / str(number)
        codes, _ = extractions.run(folder, *kills)
        if 0 in codes:
            continue  # it had ended
        before = {name: (folder / name).read_bytes() for name in shards(folder)} if folder.exists() else {}
        stages.append(len(before))
        codes, _ = extractions.run(folder, *never)
        assert not any(codes), f"seed {SEED}, {kills}: {extractions.errors()}"
        assert_whole(folder, whole)
        assert all((folder / name).read_bytes() == content for name, content in before.items())
        assert len(shards(folder)) == EXAMS  # of one entry each: nothing was computed twice
        if len(stages) == KILLS:
            break
    assert len(stages) == KILLS
    assert 0 in stages and max(stages) >= 3 and len(set(stages)) >= 5, stages


def test_runs_over_the_same_list_at_the_same_time_leave_one_whole_store(extractions, whole, tmp_path):
    for number in range(3):
        codes, _ = extractions.run(tmp_path / str(number), NEVER, NEVER, grouped=False)
        assert codes == [0, 0], extractions.errors()
        assert_whole(tmp_path / str(number), whole)


def test_run_beside_one_that_is_killed_leaves_a_whole_store(extractions, whole, tmp_path):
    chance = random.Random(SEED)
    killed = 0
    for number in range(5):
        folder = tmp_path / str(number)
        kill = Kill(chance.uniform(0, 0.03), chance.randrange(EXAMS // 2))
        codes, _ = extractions.run(folder, kill, NEVER, grouped=False)
        killed += codes[0] == -signal.SIGKILL
        assert codes[1] == 0, f"seed {SEED}, {kill}: {extractions.errors()}"
        assert entries_of(folder).keys() == whole.keys()
        assert extractions.run(folder, NEVER)[0] == [0]  # removes what the killed one left
        assert_whole(folder, whole)
    assert killed


# --- disks and rights ---


@pytest.fixture(params=["disk", "limit"])
def cramped(request, exams, tmp_path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """A store with room for a few shards, and what makes room there: a small disk, or a limit of a file's size."""
    folder = tmp_path / "small" / "features"
    if request.param == "limit":
        extract(exams[:1], folder)
        with ExitStack() as limits:
            limits.enter_context(largest_file((folder / "rank0-0.safetensors").stat().st_size + 60))  # of 4 frames
            yield folder, limits.close
        return
    folder.parent.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", folder.parent]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a disk of its own")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=4m", folder.parent], check=True)
    subprocess.run(["umount", "--lazy", folder.parent], check=True)  # maps of its files may still be in use


def test_full_disk_ends_in_one_error_with_the_path_and_an_intact_store_that_the_next_run_completes(
    cramped, exams, whole
):
    folder, make_room = cramped
    for _ in range(2):
        with pytest.raises(OSError, match="not written, what was there before is whole") as full:
            extract(exams, folder)
        assert full.value.errno in (errno.ENOSPC, errno.EFBIG)
        assert re.search(rf"'{re.escape(str(folder))}/rank0-\d+\.safetensors'$", str(full.value))
        stored = len(entries_of(folder))
        assert 2 < stored < EXAMS
        assert_whole(folder, whole, stored)
    make_room()
    extract(exams, folder)
    assert_whole(folder, whole)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Close a folder to this process, and become another user if it is root, who may write anywhere."""
    user = os.geteuid()
    folder.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


def test_read_only_folder_is_named_left_as_it_was_and_completed_once_it_can_be_written(open_folder, exams, whole):
    listed = [Path(shutil.copy(path, open_folder)) for path in exams]
    folder = open_folder / "features"
    extract(listed[:FEW], folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with read_only(folder):
        extract(listed[:FEW], folder)  # nothing to write
        with pytest.raises(PermissionError, match=rf"not written.*'{folder}/rank0-{FEW}\.safetensors'"):
            extract(listed, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    extract(listed, folder)
    assert_whole(folder, whole)


def test_read_only_place_for_a_store_is_named_and_nothing_is_left_there(open_folder, exams, whole):
    for name in ("", "features"):
        with read_only(open_folder), pytest.raises(PermissionError, match=re.escape(str(open_folder / name))):
            extract(exams[:FEW], open_folder / name)
        assert not list(open_folder.iterdir())


# --- damage ---


@pytest.fixture
def store(exams, tmp_path) -> Path:
    """A store of few exams in three shards."""
    folder = tmp_path / "features"
    for begin in range(0, FEW, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FeatureStore, "writer", functools.partialmethod(OFTEN.func))
            extract(exams[begin : begin + 2], folder)
    assert len(shards(folder)) == 3
    return folder


def complete(exams: list[Path], folder: Path) -> str:
    """Extract; if that is refused, do what the refusal says and extract again. The refusal, empty if there is none."""
    try:
        extract(exams, folder)
    except ValueError as error:
        refusal = str(error)
    else:
        return ""
    assert len(refusal.splitlines()) == 1
    command = re.search(r"python -m scripts (store prune .+?);", refusal)
    if command:
        _, usable = prune_store(*shlex.split(command[1])[2:], progress=False)
        assert usable
    else:
        assert "Delete this file: " in refusal
        Path(refusal.partition(": ")[0]).unlink()
    extract(exams, folder)
    return refusal


REGIONS = ("length of the header", "header", KEYS, DIGESTS, LENGTHS, FEATURES, FRAME_TIMES, FRAME_INDICES)


def places_of(path: Path, region: str) -> range:
    """Where the bytes of a region lie in a shard."""
    places = read_head(path).places
    begin = min(at for at, _, _ in places.values())
    if region in places:
        at, dtype, shape = places[region]
        return range(at, at + math.prod(shape) * int(dtype[-1]))
    return range(8) if region == "length of the header" else range(8, begin)


@pytest.mark.parametrize("region", REGIONS)
def test_flipped_bit_in_a_shard_is_refused_by_its_name_and_made_good_as_the_refusal_says(store, exams, whole, region):
    chance = random.Random(f"{SEED} {region}")
    for _ in range(FLIPS):
        shard = store / chance.choice(shards(store))
        position, mask = chance.choice(places_of(shard, region)), 1 << chance.randrange(8)
        flip(shard, position, mask)
        assert complete(exams[:FEW], store).startswith(f"{shard}: damaged"), f"{shard}: bit {mask} of byte {position}"
        assert_whole(store, whole, FEW)


def test_flipped_bit_in_fingerprint_json_is_refused_by_its_name_and_made_good_as_the_refusal_says(store, exams, whole):
    chance = random.Random(SEED)
    path = store / "fingerprint.json"
    content = path.read_bytes()
    for _ in range(FLIPS):
        position, mask = chance.randrange(len(content)), 1 << chance.randrange(8)
        flip(path, position, mask)
        assert complete(exams[:FEW], store).startswith(f"{path}: damaged"), f"bit {mask} of byte {position}"
        assert_whole(store, whole, FEW)
        assert path.read_bytes() == content


SHARD, OTHER = "rank0-1.safetensors", "rank7-0.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], object], bool]] = {  # what happens, whether it is refused
    "a shard is cut": (lambda store: os.truncate(store / SHARD, 900), True),
    "a shard lost its last byte": (lambda store: os.truncate(store / SHARD, (store / SHARD).stat().st_size - 1), True),
    "a shard lost its header": (lambda store: os.truncate(store / SHARD, 100), True),
    "a shard is empty": (lambda store: os.truncate(store / SHARD, 0), True),
    "a shard is zeros": (lambda store: (store / SHARD).write_bytes(bytes(2000)), True),
    "a shard grew": (lambda store: os.truncate(store / SHARD, 5000), True),
    "a shard is lost": (lambda store: (store / SHARD).unlink(), False),
    "a shard has another name": (lambda store: (store / SHARD).rename(store / OTHER), False),
    "a shard is there twice": (lambda store: shutil.copy(store / SHARD, store / OTHER), False),
    "fingerprint.json is lost": (lambda store: (store / "fingerprint.json").unlink(), False),
    "fingerprint.json is empty": (lambda store: os.truncate(store / "fingerprint.json", 0), True),
    "fingerprint.json is cut": (lambda store: os.truncate(store / "fingerprint.json", 99), True),
    "a shard is cut and fingerprint.json is lost": (
        lambda store: (os.truncate(store / SHARD, 900), (store / "fingerprint.json").unlink()),
        True,
    ),
    "a killed run left half a shard": (lambda store: (store / f"{SHARD}.tmp").write_bytes(b"half"), False),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_store_is_made_good_by_the_next_run_or_by_what_its_refusal_says(store, exams, whole, damage):
    act, refused = DAMAGE[damage]
    content = (store / "fingerprint.json").read_bytes()
    act(store)
    refusal = complete(exams[:FEW], store)
    assert bool(refusal) is refused
    assert not refused or refusal.startswith((f"{store / SHARD}: damaged", f"{store / 'fingerprint.json'}: damaged"))
    assert_whole(store, whole, FEW)
    assert (store / "fingerprint.json").read_bytes() == content


def test_shard_of_another_store_is_refused_by_its_name_and_never_served(store, exams, whole, tmp_path):
    extract(exams[:FEW], tmp_path / "other", digest="1")
    foreign = store / OTHER
    shutil.copy(tmp_path / "other" / "rank0-0.safetensors", foreign)
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(foreign))}: fingerprint digest is .*another store"
    ) as refusal:
        extract(exams[:FEW], store)
    assert len(str(refusal.value).splitlines()) == 1
    told, usable = prune_store(store, progress=False)
    assert str(foreign) in told and not usable
    assert {path.name: path.read_bytes() for path in store.iterdir()} == before
    foreign.unlink()
    extract(exams[:FEW], store)
    assert_whole(store, whole, FEW)
