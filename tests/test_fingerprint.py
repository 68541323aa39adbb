"""The fingerprint: what changes a feature changes it and is refused by name, what changes none is not in it."""

import copy
import functools
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from scripts.features import fingerprint as module
from scripts.features.entries import entry_key
from scripts.features.fingerprint import describe, made_with, make_fingerprint, require_encoder
from scripts.keys import FRAMES, IMAGE, LABEL, PATIENT, SEQUENCE, SOURCE
from scripts.networks.encoder import FrameEncoder
from scripts.sequences.augmentation import make_augmentation
from scripts.sequences.transforms import (
    LoadSequenced,
    RandLoadSequenced,
    ResizeFramesd,
    ShowRegiond,
    ToEncoderInputd,
    WindowSequenced,
)
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.exams import item_of, write_exam
from tests.test_configs import CONFIGS, knobs

ENCODER = FrameEncoder("test_vit")


def of_config(**changed: Any) -> dict[str, Any]:
    """The fingerprint that configs/cache_features.yaml makes with these knobs and a small encoder."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / "cache_features.yaml")
    parser.update({"encoder_name": "test_vit", "encoder_weights": "random:0", **changed})
    return parser.get_parsed_content("fingerprint")


def preprocessing_of() -> Compose:
    return Compose([LoadSequenced(), ShowRegiond(), WindowSequenced(), ResizeFramesd(), ToEncoderInputd()])


def made(**changed: Any) -> dict[str, Any]:
    arguments = {"encoder_digest": "0", "preprocessing": preprocessing_of(), "precision": "float32"}
    return make_fingerprint(**{"encoder": ENCODER, **arguments, **changed})


def assert_refused(folder: Path, stored: dict, wanted: dict, field: str) -> None:
    """A store of the one fingerprint is refused to the other, naming the field with both values."""
    FeatureStore.create(folder, stored)
    FeatureStore.open(folder, stored)
    with pytest.raises(ValueError, match=rf"other settings: (.*; )?{field} is .+ in the store, .+ wanted") as error:
        FeatureStore.open(folder, wanted)
    assert len(str(error.value).splitlines()) == 1


# --- what changes features and what does not ---

CHANGES = {  # knob -> another value, the field that the refusal names
    "encoder_name": ("test_vit.r160_in1k", r"encoder\.name"),  # the same architecture and weights
    "encoder_weights": ("random:1", r"encoder\.digest"),
    "pooling": ("token", r"encoder\.pooling"),
    "layers": (2, r"encoder\.layers"),
    "image_size": (48, r"preprocessing\.4 ResizeFramesd\.image_size"),
    "frame_choice": ("all", r"preprocessing\.1 LoadSequenced\.choice\.kind"),
    "max_frames": (7, r"preprocessing\.1 LoadSequenced\.choice\.max_frames"),
    "every_ms": (7.0, r"preprocessing\.1 LoadSequenced\.choice\.every_ms"),
    "phase_bounds_s": ([7.0], r"preprocessing\.1 LoadSequenced\.choice\.phase_bounds_s"),
    "subtraction": ("none", r"preprocessing\.1 LoadSequenced\.subtraction"),
    "border": ("crop", r"preprocessing\.2 ShowRegiond\.border"),
    "panel": ("left", r"preprocessing\.2 ShowRegiond\.panel"),
    "window": ("voi", r"preprocessing\.3 WindowSequenced\.window"),
    "lower_percentile": (7.0, r"preprocessing\.3 WindowSequenced\.lower"),
    "upper_percentile": (90.0, r"preprocessing\.3 WindowSequenced\.upper"),
    "pixel_mean": ([0.485, 0.456, 0.406], r"preprocessing\.5 ToEncoderInputd\.pixel_mean"),
    "pixel_std": (0.25, r"preprocessing\.5 ToEncoderInputd\.pixel_std"),
    "precision": ("bfloat16", "precision"),
    "engine": ("torch_compile", "engine"),
    "augmentation_seed": (1, r"augmentation\.seed"),
}
HARMLESS = {
    "max_sequence_bytes": 10**6,
    "batch_frames": 3,
    "num_readers": 1,
    "augmented_passes": 4,  # a store may grow by passes: each is an entry of its own
    "rank": 1,
    "world_size": 2,
    "device": "cuda:1",
    "progress": False,
}


@pytest.mark.parametrize("knob", CHANGES)
def test_store_is_refused_after_a_knob_that_changes_features_naming_its_field(tmp_path, knob):
    value, field = CHANGES[knob]
    assert_refused(tmp_path / "store", of_config(), of_config(**{knob: value}), field)


@pytest.mark.parametrize("knob", HARMLESS)
def test_fingerprint_stays_after_a_knob_that_changes_no_feature(knob):
    assert of_config(**{knob: HARMLESS[knob]}) == of_config()


def test_every_knob_of_the_workflow_either_changes_the_fingerprint_or_no_feature():
    assert knobs("cache_features").keys() == CHANGES.keys() | HARMLESS.keys()
    assert not CHANGES.keys() & HARMLESS.keys()


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("PREPROCESSING_VERSION", 10**6, r"preprocessing\.version"),
        ("decoder_versions", lambda: {"pydicom": "0.0"}, r"decoders\.pydicom"),
    ],
)
def test_store_of_other_code_or_decoders_is_refused_naming_the_field(tmp_path, monkeypatch, name, value, field):
    stored = made()
    monkeypatch.setattr(module, name, value)
    assert_refused(tmp_path / "store", stored, made(), field)


@pytest.mark.parametrize(
    ("torch_version", "same"), [("2.15.0+cpu", True), ("2.15.9", True), ("2.16.0", False), ("3.15.0", False)]
)
def test_torch_is_compared_by_its_minor_version(monkeypatch, torch_version, same):
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu130")
    stored = made()
    assert stored["libraries"]["torch"] == "2.15"
    monkeypatch.setattr(torch, "__version__", torch_version)
    assert (made() == stored) is same


def test_libraries_are_those_that_compute_and_no_others():
    assert made()["libraries"].keys() == {"torch", "timm"}
    assert made(engine="openvino")["libraries"].keys() == {"torch", "timm", "openvino"}
    with_monai = made(preprocessing=Compose([*preprocessing_of().transforms, Compose([mt.Flipd(IMAGE, 0)])]))
    assert with_monai["libraries"] == {**made()["libraries"], "monai": version("monai")}


def test_key_follows_the_content_and_its_frames_and_neither_path_label_nor_split(tmp_path):
    item = item_of(write_exam(tmp_path / "a.dcm", seed=1), **{LABEL: 0, "split": "training"})
    moved = item_of(write_exam(tmp_path / "elsewhere" / "b.dcm", seed=1))
    key = entry_key(item)
    for change in ({LABEL: 1}, {"split": "test"}, {PATIENT: "P2", SEQUENCE: "s"}, {SOURCE: "x"}, moved):
        assert entry_key({**item, **change}) == key
    assert entry_key({**item, FRAMES: [0, 2]}) != key
    write_exam(item[IMAGE], seed=2)
    assert entry_key(item) != key


# --- what the fingerprint says ---


def test_fingerprint_is_json_and_the_same_for_equal_settings():
    first = made(augmentation=make_augmentation(), augmentation_seed=3)
    assert json.loads(json.dumps(first)) == first == made(augmentation=make_augmentation(), augmentation_seed=3)
    assert first["augmentation"]["seed"] == 3
    assert first["encoder"] == {"name": "test_vit", "digest": "0", "pooling": "avg", "layers": 1}
    assert {"pillow", "nibabel", "av"} <= first["decoders"].keys()
    assert made()["augmentation"] is None


def test_versions_beside_the_features_identify_no_machine():
    found = made_with()
    assert found.keys() == {"python", "torch", "monai", "numpy", "scipy", "safetensors", "machine"}
    assert all(re.fullmatch(r"[\w.+-]+", value) for value in found.values())


def test_one_number_for_each_channel_is_the_number_for_all():
    assert describe(ToEncoderInputd(pixel_mean=[0, 0, 0])) == describe(ToEncoderInputd(pixel_mean=0.0))


def test_encoder_of_another_digest_than_the_features_is_refused(tmp_path):
    store = FeatureStore.create(tmp_path / "store", made(encoder_digest="a" * 64))
    require_encoder(store, "a" * 64)
    with pytest.raises(ValueError, match=f"digest of encoder_weights is {'b' * 16}, needs {'a' * 16}"):
        require_encoder(store, "b" * 64)


@pytest.mark.parametrize(
    "transform",
    [RandLoadSequenced(), mt.RandFlipd(IMAGE), Compose([mt.RandZoomd(IMAGE)]), mt.OneOf([mt.Flipd(IMAGE, 0)])],
)
def test_random_preprocessing_cannot_be_cached(transform):
    with pytest.raises(ValueError, match=r"transform is (Rand|OneOf).*, needs transforms without randomness"):
        made(preprocessing=Compose([transform]))


@pytest.mark.parametrize("knob", ["precision", "engine"])
def test_unknown_precision_or_engine_is_refused_with_those_there_are(knob):
    with pytest.raises(ValueError) as refused:
        made(**{knob: "float8"})
    assert_message(refused.value, "configuration", knob, "float8", "torch" if knob == "engine" else "bfloat16")


# --- augmentation ---


@pytest.mark.parametrize("augmentation", [Compose([]), Compose([mt.Flipd(IMAGE, 0)])])
def test_augmentation_without_randomness_is_refused(augmentation):
    with pytest.raises(ValueError) as refused:
        made(augmentation=augmentation)
    assert_message(refused.value, "augmentation", "transforms", "a random one")


def test_other_augmentation_is_another_fingerprint():
    given = {"prob": 0.5}, {"rotate_degrees": 5.0}, {"flip_prob": 0.1}, {"contrast_fraction": 0.5}, {}
    found = [made(augmentation=make_augmentation(**options))["augmentation"] for options in given]
    assert len({json.dumps(description) for description in found}) == len(given)


@pytest.mark.parametrize(
    "make",
    [
        make_augmentation,
        lambda: mt.OneOf([mt.RandZoomd(IMAGE, prob=1), mt.RandRotated(IMAGE, prob=1)], weights=[0.2, 0.8]),
        lambda: Compose([mt.RandGaussianNoised(IMAGE, prob=1), mt.RandShiftIntensityd(IMAGE, 0.1, prob=1)]),
    ],
)
def test_description_of_what_is_drawn_is_the_same_before_and_after_drawing(make):
    transform = make()
    before = made(augmentation=transform)
    transform.set_random_state(seed=3)
    outs = [transform({IMAGE: torch.rand(3, 16, 16)})[IMAGE] for _ in range(4)]
    assert not torch.equal(outs[0], outs[1])
    assert made(augmentation=transform) == before == made(augmentation=make())


def test_describing_leaves_a_random_transform_as_it_was():
    transform = mt.RandFlipd(IMAGE, prob=0.5).set_random_state(seed=3)
    twin = copy.deepcopy(transform)
    describe(transform)
    assert transform.R.random() == twin.R.random()


# --- descriptions ---

OURS = {
    LoadSequenced: {
        "frame_choice": "all",
        "max_frames": 7,
        "every_ms": 7.0,
        "phase_bounds_s": (7.0,),
        "subtraction": "none",
    },
    ShowRegiond: {"border": "crop", "panel": "left"},
    ResizeFramesd: {"image_size": 7},
    WindowSequenced: {"window": "voi", "lower_percentile": 7.0, "upper_percentile": 90.0},
    ToEncoderInputd: {"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": 7.0},
}


def test_description_tells_every_setting_of_every_transform_of_ours_apart():
    compared = 0
    for transform, settings in OURS.items():
        for name, value in settings.items():
            assert describe(transform(**{name: value})) != describe(transform()), name
            compared += 1
        assert describe(transform()) == describe(transform()) == json.loads(json.dumps(describe(transform())))
    assert compared == 13
    used = {type(transform) for transform in preprocessing_of().transforms}
    assert used == set(OURS)


def test_size_limit_is_no_part_of_the_description():
    assert describe(LoadSequenced(max_sequence_bytes=10**6)) == describe(LoadSequenced())


MONAI = [  # two settings each that must not look alike
    (lambda v: mt.CenterSpatialCropd(IMAGE, roi_size=v), (8, 9)),
    (lambda v: mt.RandFlipd(IMAGE, prob=0.5, spatial_axis=v), (0, 1)),
    (lambda v: mt.RandFlipd(IMAGE, prob=v, spatial_axis=0), (0.1, 0.2)),
    (lambda v: mt.ScaleIntensityRangePercentilesd(IMAGE, v, 99, 0, 1), (1, 2)),
    (lambda v: mt.SpatialPadd(IMAGE, spatial_size=v), ((8, 8), (9, 9))),
    (lambda v: mt.GaussianSmoothd(IMAGE, sigma=v), (1.0, 2.0)),
    (lambda v: mt.Rotate90d(IMAGE, k=v), (1, 2)),
    (lambda v: Compose([mt.Flipd(IMAGE, v)]), (0, 1)),
]


@pytest.mark.parametrize(("make", "values"), MONAI)
def test_description_of_monais_transforms_is_json_and_tells_settings_apart(make, values):
    first, second = (describe(make(value)) for value in values)
    assert first != second
    assert json.loads(json.dumps(first)) == first == describe(make(values[0]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: mt.SpatialCropd(IMAGE, roi_start=(0, 0), roi_end=(8, 8)),
        lambda: mt.Resized(IMAGE, spatial_size=(8, 8)),
        lambda: mt.EnsureTyped(IMAGE, dtype=torch.float32),
        lambda: mt.NormalizeIntensityd(IMAGE, subtrahend=np.zeros(3)),
        lambda: mt.Lambdad(IMAGE, func=torch.relu),
        lambda: mt.ScaleIntensityRanged(IMAGE, np.float32(0), 1, 0, 1),
    ],
)
def test_description_of_transforms_with_slices_types_arrays_or_builtins_is_json(make):
    assert json.loads(json.dumps(describe(make()))) == describe(make())


def scaled(by: float) -> Any:
    return lambda x: x * by


FUNCTIONS = [  # each group differs in one thing alone
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: torch.relu(x), lambda x: torch.sigmoid(x)),  # in a name they use
    (scaled(1.0), scaled(2.0)),
    (lambda x, by=1: x * by, lambda x, by=2: x * by),
    (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    (functools.partial(torch.clamp, min=0), functools.partial(torch.clamp, min=1)),
    (torch.relu, torch.sigmoid),
    (mt.Flip(0).__call__, mt.Flip(1).__call__),
]


@pytest.mark.parametrize(("first", "second"), FUNCTIONS)
def test_description_tells_functions_apart_by_what_they_do(first, second):
    of_first, of_second = (describe(mt.Lambdad(IMAGE, func=func)) for func in (first, second))
    assert of_first != of_second
    assert json.loads(json.dumps(of_first)) == of_first == describe(mt.Lambdad(IMAGE, func=first))
    assert "0x" not in json.dumps(of_first)  # an address would differ from run to run


def test_description_of_a_function_with_a_set_is_the_same_in_every_process():
    first, second = (eval("lambda x: x in {'a', 'b', 'c', 'd'}") for _ in range(2))
    constants = tuple(frozenset("dcba") if isinstance(c, frozenset) else c for c in second.__code__.co_consts)
    second.__code__ = second.__code__.replace(co_consts=constants)
    assert describe(first) == describe(second)


def test_description_tells_tensors_apart():
    first, second = (mt.Lambdad(IMAGE, func=lambda x: x) for _ in range(2))
    first.scale, second.scale = torch.tensor([1.0]), torch.tensor([2.0])
    assert describe(first) != describe(second)


def test_description_tells_settings_in_private_attributes_apart():
    class Gain(mt.Transform):
        def __init__(self, gain: float) -> None:
            self._gain = gain

        def __call__(self, data: Any) -> Any:
            return data

    assert describe(Gain(1.0)) != describe(Gain(2.0))
    assert describe(Gain(1.0)) == describe(Gain(1.0))


def test_description_tells_nested_transforms_of_equal_settings_apart():
    class Low(mt.Transform):
        def __init__(self, value: int) -> None:
            self.value = value

        def __call__(self, data: object) -> object:
            return data

    class High(Low):
        pass

    assert describe(Compose([Low(1)])) != describe(Compose([High(1)]))


def test_transform_of_another_package_is_not_taken_for_ours_of_the_same_name():
    theirs = type("ShowRegiond", (ShowRegiond,), {"__module__": "somewhere.else"})
    assert describe(theirs()) != describe(ShowRegiond())


def test_setting_whose_content_cannot_be_told_is_refused():
    transform = mt.Lambdad(IMAGE, func=torch.relu)
    transform.setting = object()
    with pytest.raises(ValueError) as refused:
        describe(transform)
    assert_message(refused.value, "preprocessing", "setting", "object", "numbers")
