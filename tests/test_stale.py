"""Stale features, end to end: what changes one is computed again or refused, what changes none computes nothing."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from scripts.dicom import pixels
from scripts.features import fingerprint
from scripts.features.entries import entry_key, pass_key
from scripts.keys import FRAMES, IMAGE, LABEL
from scripts.record import RUN
from scripts.store.store import FeatureStore
from tests.exams import item_of, write_exam
from tests.stores import assert_equal
from tests.test_pipeline import run_here

FRAMES_OF = {"a.dcm": 3, "b.dcm": 4, "c.dcm": 5}
PASSES = 2  # the plain one and an augmented one
SPLITS = {"training": ["a.dcm", "b.dcm"], "test": ["c.dcm"]}
KNOBS = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 32, "augmented_passes": PASSES - 1}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def cache(root: Path, **overrides: object) -> None:
    """Run the workflow on the exams below a folder."""
    places = {"dataset_dir": str(root / "data"), "output_dir": str(root)}
    run_here("train", ("cache_features",), **{**KNOBS, **places, "progress": False, "device": "cpu", **overrides})


def write_list(root: Path, splits: dict[str, list[str]], label: int = 0, **chosen: list[int]) -> None:
    """Write the datalist.

    Args:
        root: where the folder of the exams is.
        splits: the exams of each split.
        label: of all of them.
        chosen: frames of an exam, by the name of its file without suffix.
    """
    content: dict[str, object] = {"task": {"type": "multiclass", "classes": ["first", "second"]}}
    for split, paths in splits.items():
        content[split] = [{IMAGE: path, LABEL: label, FRAMES: chosen.get(Path(path).stem)} for path in paths]
    (root / "data" / "datalist.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> Path:
    """Exams, and the store that was made of them."""
    root = tmp_path_factory.mktemp("before")
    for seed, (name, num_frames) in enumerate(FRAMES_OF.items()):
        write_exam(root / "data" / name, num_frames, seed)
    write_list(root, SPLITS)
    hook = sys.excepthook
    cache(root)
    sys.excepthook = hook
    return root


@pytest.fixture
def root(before, tmp_path, monkeypatch) -> Path:
    """A copy of them, for a test to change."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a workflow sets it
    return Path(shutil.copytree(before, tmp_path / "root"))


@pytest.fixture
def frames_computed(caplog) -> Callable[..., int]:
    """Run the workflow; the frames that it computed, as it says itself."""

    def run(root: Path, **overrides: object) -> int:
        caplog.clear()
        with caplog.at_level(logging.INFO, "angiography"):
            cache(root, **overrides)
        (count,) = re.findall(r"(\d+) frames computed", caplog.text)
        return int(count)

    return run


def content_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "features").iterdir() if path.name != RUN}


# --- what changes a feature ---


def test_exam_of_which_a_byte_changed_is_the_only_one_computed_and_by_its_new_pixels(root, frames_computed):
    path = root / "data" / "b.dcm"
    content = bytearray(path.read_bytes())
    old_key = entry_key(item_of(path))
    content[-1] ^= 0x80
    path.write_bytes(content)
    assert frames_computed(root) == PASSES * FRAMES_OF["b.dcm"]
    assert frames_computed(root, features_dir=str(root / "anew")) == PASSES * sum(FRAMES_OF.values())
    found, wanted = FeatureStore.open(root / "features"), FeatureStore.open(root / "anew")
    new_key = entry_key(item_of(path))
    assert new_key != old_key
    for number in range(PASSES):
        new = found.read(pass_key(new_key, number))
        assert_equal(new, wanted.read(pass_key(new_key, number)))
        assert not new.features.equal(found.read(pass_key(old_key, number)).features)


def test_exam_of_which_the_list_chooses_other_frames_is_the_only_one_computed(root, frames_computed):
    write_list(root, SPLITS, b=[0, 2])
    assert frames_computed(root) == PASSES * 2
    assert frames_computed(root) == 0


def older_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "version", lambda package: "0.0" if package == "pillow" else version(package))


def newer_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "PREPROCESSING_VERSION", fingerprint.PREPROCESSING_VERSION + 1)


CHANGES: dict[str, tuple[dict[str, object] | Callable, str]] = {  # the field that the refusal names
    "window": ({"window": "stored"}, "preprocessing.3 WindowSequenced.window"),
    "image size": ({"image_size": 48}, "preprocessing.4 ResizeFramesd.image_size"),
    "mean": ({"pixel_mean": [0.485, 0.456, 0.406]}, "preprocessing.5 ToEncoderInputd.pixel_mean"),
    "spread": ({"pixel_std": 0.25}, "preprocessing.5 ToEncoderInputd.pixel_std"),
    "pooling": ({"pooling": "token"}, "encoder.pooling"),
    "weights": ({"encoder_weights": "random:1"}, "encoder.digest"),
    "name in timm": ({"encoder_name": "test_vit.r160_in1k"}, "encoder.name"),  # the same architecture and weights
    "frame choice": ({"frame_choice": "all"}, "preprocessing.1 LoadSequenced.choice.kind"),
    "precision": ({"precision": "bfloat16"}, "precision"),
    "seed of the augmentation": ({"augmentation_seed": 1}, "augmentation.seed"),
    "decoder": (older_decoder, "decoders.pillow"),
    "code": (newer_code, "preprocessing.version"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_store_is_refused_naming_the_field_and_left_alone_and_another_folder_gets_every_frame(
    root, frames_computed, monkeypatch, capsys, change
):
    how, field = CHANGES[change]
    knobs = how if isinstance(how, dict) else {}
    if callable(how):
        how(monkeypatch)
    stored = content_of(root)
    with pytest.raises(RuntimeError) as error:  # MONAI's, around ours
        frames_computed(root, **knobs)
    capsys.readouterr()
    sys.excepthook(error.type, error.value, error.tb)  # shows what the command would
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"error: .*: this store was made with other settings: {re.escape(field)} is .+", line), line
    assert line.count(" wanted") == 1 and "Name another features_dir" in line
    assert content_of(root) == stored
    computed = frames_computed(root, features_dir=str(root / "other"), **knobs)
    assert computed == PASSES * sum(FRAMES_OF.values())


# --- what changes none ---


def move_and_rename(root: Path) -> None:
    (root / "data" / "elsewhere").mkdir()
    moved = {name: f"elsewhere/exam {number}.dcm" for number, name in enumerate(reversed(FRAMES_OF))}
    for old, new in moved.items():
        (root / "data" / old).rename(root / "data" / new)
    write_list(root, {split: [moved[name] for name in names] for split, names in SPLITS.items()})


HARMLESS: dict[str, Callable[[Path], dict[str, object] | None]] = {
    "path": move_and_rename,
    "label": lambda root: write_list(root, SPLITS, label=1),
    "split": lambda root: write_list(root, {"validation": ["c.dcm", "a.dcm"], "test": ["b.dcm"]}),
    "batch size": lambda root: {"batch_frames": 2},
}


@pytest.mark.parametrize("change", HARMLESS)
def test_nothing_is_computed_where_this_alone_changed(root, frames_computed, change):
    stored = content_of(root)
    assert frames_computed(root, **(HARMLESS[change](root) or {})) == 0
    assert content_of(root) == stored
