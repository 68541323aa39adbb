"""Verify with a datalist: exams encoded again by the very workflow that made the store."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import create_workflow

from scripts.curation.recomputation import BUNDLE_ROOT, compare
from scripts.curation.verification import verify_store
from scripts.features.exams import encode
from scripts.store.origin import read_origin
from scripts.store.shards import StoredSequence
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.exams import write_exam
from tests.stores import flip, key_of, sequence_of

KNOBS = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48, "max_frames": 3}
NUM_EXAMS = 5
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Five exams, the datalist of them, and the features that the workflow made, with one augmented pass."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(NUM_EXAMS):
        write_exam(folder / "exams" / f"{number}.dcm", seed=number)
    listed = {"training": [{"image": f"{number}.dcm"} for number in range(NUM_EXAMS)]}
    (folder / "exams" / "datalist.json").write_text(json.dumps(listed))
    workflow = create_workflow(
        workflow_type="infer",
        config_file=[str(BUNDLE_ROOT / "configs" / "cache_features.yaml")],
        bundle_root=str(BUNDLE_ROOT),
        logging_file=False,
        dataset_dir=str(folder / "exams"),
        features_dir=str(folder / "features"),
        augmented_passes=1,
        augmentation_seed=3,
        progress=False,
        **KNOBS,
    )
    workflow.run()
    return folder


@pytest.fixture
def store(made, tmp_path) -> Path:
    """A copy of the store, for tests that change it."""
    return shutil.copytree(made / "features", tmp_path / "features")


def verify(store: Path, made: Path, **more: object) -> tuple[str, bool]:
    return verify_store(store, str(made / "exams" / "datalist.json"), progress=False, **more)


def changed(store: Path, folder: Path, change, **origin: object) -> Path:
    """The store with `change` done to each sequence, its digests right; other settings on request."""
    was, made = FeatureStore.open(store), read_origin(store)._replace(**origin)
    with FeatureStore.create(folder, *made).writer() as writer:
        for key in was.keys():  # noqa: SIM118
            writer.add(key, change(was.read(key)))
    return folder


def test_exams_encoded_again_are_equal_bit_for_bit_passes_included(made):
    text, whole = verify(made / "features", made)
    assert whole, text
    lines = [line for line in text.splitlines() if line.endswith(": equal bit for bit")]
    assert sorted(lines) == sorted(
        f"{number}.dcm{augmented}: equal bit for bit" for number in range(NUM_EXAMS) for augmented in ("", ", pass 1")
    )
    assert "5 exams of 5 encoded again: all close" in text


def test_sample_is_drawn_by_seed(made):
    def drawn(seed: int) -> set[str]:
        return set(re.findall(r"^\d\.dcm", verify(made / "features", made, sample=2, seed=seed)[0], re.MULTILINE))

    samples = [drawn(seed) for seed in (0, 0, 1, 2, 3)]
    assert samples[0] == samples[1]
    assert all(len(sample) == 2 for sample in samples)
    assert len(set().union(*samples)) > 2


def test_features_of_something_else_fail_although_every_byte_is_as_written(store, made, tmp_path):
    other = changed(store, tmp_path / "other", lambda s: s._replace(features=s.features.roll(1, dims=1)))
    assert verify_store(other, progress=False)[1]
    text, whole = verify(other, made)
    assert not whole
    assert len(re.findall(r"^FAILED: \d\.dcm.*lowest cosine", text, re.MULTILINE)) == 2 * NUM_EXAMS


def test_other_frames_fail(store, made, tmp_path):
    other = changed(store, tmp_path / "other", lambda s: s._replace(frame_indices=s.frame_indices + 1))
    text, whole = verify(other, made)
    assert not whole
    assert "other frames" in text


def test_rounding_passes_and_is_told(store, made, tmp_path):
    def rounded(sequence: StoredSequence) -> StoredSequence:
        return sequence._replace(features=(sequence.features.float() * 1.001).half())

    text, whole = verify(changed(store, tmp_path / "other", rounded), made)
    assert whole
    assert re.search(r"0\.dcm: lowest cosine (1\.000000|0\.9999\d\d), largest difference \d", text)


def test_fingerprint_that_this_machine_would_not_make_is_refused_before_anything_is_read(store, made, tmp_path):
    fingerprint = read_origin(store).fingerprint
    fingerprint["libraries"]["timm"] = "0.0.1"
    other = changed(store, tmp_path / "other", lambda s: s, fingerprint=fingerprint)
    flip(other / "rank0-0.safetensors", 20)
    with pytest.raises(ValueError, match=r"libraries\.timm is \"0\.0\.1\" in the store"):
        verify(other, made)


def test_setting_that_a_config_would_run_is_refused(store, made, tmp_path):
    for value in ("$open('/tmp/x')", {"_target_": "os.system"}, "@device", "%x"):
        settings = read_origin(store).settings | {"encoder_weights": value}
        folder = tmp_path / key_of(len(str(value)))[:8]
        other = changed(store, folder, lambda s: s, settings=settings)
        with pytest.raises(ValueError, match="setting encoder_weights") as error:
            verify(other, made)
        assert_message(error.value, other, "setting encoder_weights")


def test_sequences_of_no_listed_exam_are_counted(store, made):
    with FeatureStore.open(store).writer() as writer:
        for number in range(3):
            features = sequence_of(number).features.new_ones(2, 64)
            writer.add(key_of(number), StoredSequence(features, torch.zeros(2), torch.arange(2)))
    text, whole = verify(store, made)
    assert whole
    assert "3 stored sequences of no exam in the lists" in text


def test_exam_that_cannot_be_encoded_any_more_fails(made, monkeypatch):
    def failing(exams, engine):
        for exam in exams:
            exam.images, exam.error = [], f"{exam.item['source']}: no pixels"
            yield from encode([exam], engine)

    monkeypatch.setattr("scripts.curation.recomputation.encode", failing)
    text, whole = verify(made / "features", made, sample=1)
    assert not whole
    assert re.search(r"^FAILED: \d\.dcm: no pixels$", text, re.MULTILINE)


def test_damaged_store_is_repaired_before_anything_is_encoded(store, made):
    flip(store / "rank0-0.safetensors", 20)
    text, whole = verify(store, made)
    assert not whole
    assert "No exam was encoded again: repair the store first." in text


def test_list_that_came_with_an_export_cannot_be_encoded(store, made, tmp_path):
    key = next(iter(FeatureStore.open(store).keys()))
    (tmp_path / "datalist.json").write_text(json.dumps({"test": [{"entry": key}]}))
    with pytest.raises(ValueError, match="no images"):
        verify_store(store, str(tmp_path / "datalist.json"), progress=False)


def test_list_that_is_absent_is_told_before_a_byte_is_compared(made, tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.curation.verification.inspect_stores", lambda *_, **__: pytest.fail("bytes were read"))
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        verify_store(made / "features", str(tmp_path / "absent.json"), progress=False)


@pytest.mark.parametrize("sample", [0, -1, 1.5, "many"])
def test_sample_that_is_no_count_is_refused(made, sample):
    with pytest.raises(ValueError, match="sample") as error:
        verify(made / "features", made, sample=sample)
    assert_message(error.value, "configuration", "sample", sample)


def test_compare_tells_the_lowest_cosine_of_a_frame():
    stored = sequence_of(4)
    features = stored.features.clone()
    features[2] = -features[2]
    said, close = compare(stored, stored._replace(features=features))
    assert not close
    assert said.startswith("lowest cosine -1.000000")
    said, close = compare(stored, stored._replace(features=stored.features[:, :4]))
    assert not close
    assert "shape" in said
