"""One shard file: who may read it, and what happens to what killed runs of other people left."""

import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.features.store import FeatureStore
from tests.test_store import FINGERPRINT, assert_holds, fill


@contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_every_file_of_a_store_has_the_mode_that_the_umask_gives(tmp_path, mask, mode):
    with umask(mask):
        fill(FeatureStore.create(tmp_path / "features", FINGERPRINT), range(2)).write_manifest()
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "features").iterdir()}
    names = ("fingerprint.json", "manifest.json", "rank0-0.safetensors")
    assert found == dict.fromkeys(names, mode)


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
