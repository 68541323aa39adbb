"""fingerprint.json: which store it is, what is compared, and what is told when it is lost or damaged."""

import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.store.origin import Origin, read_origin, write_origin
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.stores import FINGERPRINT, assert_holds, fill, flip

SETTINGS = {"encoder_name": "tiny", "phase_bounds_s": [103.0, 518.0], "border": None}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "features"


def test_create_opens_an_equal_store_whatever_the_order_of_fields(folder):
    first = fill(FeatureStore.create(folder, FINGERPRINT), range(2))
    again = FeatureStore.create(folder, {**dict(reversed(FINGERPRINT.items())), "image_size": (224, 224)})
    assert_holds(again, range(2))
    assert again.digest == first.digest
    assert again.fingerprint == first.fingerprint == FINGERPRINT


def test_file_says_fingerprint_settings_versions_and_their_digest(folder):
    FeatureStore.create(folder, FINGERPRINT, SETTINGS, {"torch": "2.15.0"})
    content = json.loads((folder / "fingerprint.json").read_text())
    assert re.fullmatch("[0-9a-f]{64}", content.pop("digest"))
    assert content == {"fingerprint": FINGERPRINT, "settings": SETTINGS, "made_with": {"torch": "2.15.0"}}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_fingerprint_that_is_no_file_is_refused_and_not_waited_for(folder, make):
    folder.mkdir()
    make(folder / "fingerprint.json")
    with pytest.raises(ValueError) as error:
        read_origin(folder)
    assert_message(error.value, "fingerprint.json is a folder or a device, needs a file")


def test_settings_and_versions_are_kept_as_they_were_and_not_compared(folder):
    first = FeatureStore.create(folder, FINGERPRINT, SETTINGS, {"torch": "2.15.0"})
    again = FeatureStore.create(folder, FINGERPRINT, {"encoder_name": "other"}, {"torch": "2.16.0"})
    assert first.settings == again.settings == SETTINGS
    assert first.made_with == again.made_with == {"torch": "2.15.0"}
    assert again.digest == FeatureStore.create(folder.with_name("bare"), FINGERPRINT).digest


def test_store_made_without_settings_says_so(folder):
    store = FeatureStore.create(folder, FINGERPRINT)
    assert store.made_with == {}
    with pytest.raises(ValueError, match=r"fingerprint\.json: settings is absent.*cache_features"):
        store.settings  # noqa: B018


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
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"features: no feature store.*cache_features\.yaml"):
            FeatureStore.open(folder)
        folder.mkdir(exist_ok=True)


def test_folder_with_other_content_is_refused_and_left_alone(folder):
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"thesis\.txt.*another features_dir"):
        FeatureStore.create(folder, FINGERPRINT)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fingerprint", [{"mean": float("nan")}, {"mean": object()}])
def test_fingerprint_that_no_file_can_say_makes_no_store(folder, fingerprint):
    with pytest.raises((ValueError, TypeError), match="JSON"):
        FeatureStore.create(folder, fingerprint)
    assert not list(folder.iterdir())


# --- damage ---


@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_byte_that_changed_anywhere_is_told_as_damage_and_never_as_another_store(folder, mask):
    fill(FeatureStore.create(folder, FINGERPRINT, SETTINGS, {"torch": "2.15.0"}), range(1))
    path = folder / "fingerprint.json"
    positions = range(path.stat().st_size)
    for position in positions:
        flip(path, position, mask)
        for way in (lambda: FeatureStore.open(folder), lambda: FeatureStore.create(folder, FINGERPRINT)):
            with pytest.raises(ValueError, match=r"fingerprint\.json: damaged.*Delete this file.*cache_features"):
                way()
        flip(path, position, mask)
    assert len(positions) > 300
    assert_holds(FeatureStore.open(folder), range(1))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"{}", b'{"encoder": {}, "settings": null}\n']
)
def test_unreadable_file_is_named_with_the_way_out_and_is_written_again_once_deleted(folder, content):
    fill(FeatureStore.create(folder, FINGERPRINT, SETTINGS), range(2))
    path = folder / "fingerprint.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fingerprint\.json: damaged, or of another format .*Delete this file"):
        FeatureStore.open(folder)
    path.unlink()
    assert_holds(FeatureStore.create(folder, FINGERPRINT, SETTINGS), range(2))
    assert path.read_bytes() == whole


def test_lost_file_is_written_again_only_with_the_fingerprint_of_the_shards(folder):
    fill(FeatureStore.create(folder, FINGERPRINT), range(4), per_shard=2)
    (folder / "fingerprint.json").unlink()
    with pytest.raises(ValueError, match=r"rank0-0\.safetensors, needs shards of the fingerprint.*another features_d"):
        FeatureStore.create(folder, {**FINGERPRINT, "mean": 0.4})
    assert not (folder / "fingerprint.json").exists()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt.*another features_dir"):
        FeatureStore.create(folder, FINGERPRINT)
    (folder / "notes.txt").unlink()
    (folder / "rank3-0.safetensors.tmp").write_bytes(b"of a killed run")
    assert_holds(FeatureStore.create(folder, FINGERPRINT), range(4))


def test_lost_file_beside_a_damaged_shard_is_written_again_so_that_the_store_can_be_repaired(folder):
    fill(FeatureStore.create(folder, FINGERPRINT), range(4), per_shard=2)
    (folder / "fingerprint.json").unlink()
    flip(folder / "rank0-0.safetensors", 30)
    with pytest.raises(ValueError, match=r"rank0-0\.safetensors: damaged shard.*store prune"):
        FeatureStore.create(folder, FINGERPRINT)
    assert read_origin(folder).fingerprint == FINGERPRINT


# --- several at once ---


def test_of_several_who_make_a_store_at_once_all_get_that_of_the_first(folder):
    def make(i: int) -> dict:
        store = FeatureStore.create(folder, FINGERPRINT, {"of": i})
        fill(store, range(i, i + 1), rank=i)
        return store.settings

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(make, range(8)))
    assert all(settings == found[0] for settings in found)
    assert_holds(FeatureStore.open(folder), range(8))
    assert not list(folder.glob("*.tmp"))


def test_store_that_another_process_made_meanwhile_stays(folder):
    folder.mkdir()
    write_origin(folder, Origin({"first": True}, None, {}))
    write_origin(folder, Origin({"first": False}, None, {}))
    assert read_origin(folder).fingerprint == {"first": True}
    assert [p.name for p in folder.iterdir()] == ["fingerprint.json"]


def test_what_a_kill_left_of_the_file_is_no_store_and_goes_with_the_next_run(folder):
    folder.mkdir()
    (folder / "fingerprint.json.0123abcd.tmp").write_bytes(b'{"fingerp')
    with pytest.raises(FileNotFoundError):
        FeatureStore.open(folder)
    FeatureStore.create(folder, FINGERPRINT)
    assert [p.name for p in folder.iterdir()] == ["fingerprint.json"]


def test_store_copied_elsewhere_is_the_same_store(folder, tmp_path):
    store = fill(FeatureStore.create(folder, FINGERPRINT, SETTINGS), range(3))
    shutil.copytree(folder, tmp_path / "copy")
    again = FeatureStore.open(tmp_path / "copy", FINGERPRINT)
    assert (again.digest, again.settings) == (store.digest, SETTINGS)
    assert_holds(again, range(3))
