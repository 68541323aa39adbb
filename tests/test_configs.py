"""The workflows' files: what must agree between them, with the README and with metadata.json."""

import json
import re
from pathlib import Path

import pytest
import yaml

from scripts.networks.card import NOMINAL

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
WORKFLOWS = ("cache_features", "train", "evaluate", "inference")
OVERLAYS = ("multi_gpu_cache", "multi_gpu_train")
SCHEMA_REQUIRED = (  # of meta_schema_20240725.json
    "schema",
    "version",
    "monai_version",
    "pytorch_version",
    "numpy_version",
    "required_packages_version",
    "task",
    "description",
    "authors",
    "copyright",
    "network_data_format",
)


def load(name: str) -> dict:
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def knobs(name: str) -> dict:
    """Ids and values of a file's knobs block."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    block = re.search(r"# --- knobs[^\n]*\n(.*?)\n# ---", text, re.S)
    assert block is not None
    return yaml.safe_load(block.group(1))


def expressions(value: object) -> list[str]:
    if isinstance(value, dict):
        return [e for v in value.values() for e in expressions(v)]
    if isinstance(value, list):
        return [e for v in value for e in expressions(v)]
    return [value] if isinstance(value, str) and value.startswith("$") else []


@pytest.mark.parametrize("name", [*WORKFLOWS, "finetune", "plan_memory"])
def test_readme_table_and_knobs_block_agree(name):
    readme = (ROOT / "README.md").read_text()
    section = re.search(rf"### configs/{name}\.yaml\n(.*?)(?=\n##|\Z)", readme, re.S)
    assert section is not None
    rows = re.findall(r"^\| (\w+) \| ([^|]*?) \|", section.group(1), re.M)
    table = {key: default for key, default in rows if key != "id"}
    stated = {}
    for key, value in knobs(name).items():
        target = value["_target_"].rsplit(".", 1)[1] if isinstance(value, dict) else value
        stated[key] = str(target).lower() if isinstance(target, bool) else str(target)
    assert table == stated


@pytest.mark.parametrize("name", (*WORKFLOWS, "finetune", *OVERLAYS))
def test_expressions_are_short_and_simple(name):
    found = expressions(load(name))
    assert found
    for expression in found:
        assert len(expression) <= 80, expression
        assert "lambda" not in expression and " for " not in expression and "open(" not in expression


@pytest.mark.parametrize("name", (*WORKFLOWS, "finetune", "plan_memory", "multi_gpu_cache"))
def test_initialize_finds_the_bundle_then_checks_the_overrides(name):
    first, second = load(name)["initialize"][:2]
    assert first == "$sys.path.insert(0, os.path.abspath(@bundle_root))"
    assert second == {"_target_": "scripts.overrides.start_run"}


def test_files_stay_within_their_lengths():
    for name in WORKFLOWS:
        assert len((CONFIGS / f"{name}.yaml").read_text().splitlines()) <= 200, name
    for name in (*OVERLAYS, "volumes"):
        assert len((CONFIGS / f"{name}.yaml").read_text().splitlines()) <= 50, name


def test_preprocessing_is_the_same_in_caching_finetuning_and_inference():
    names = ("cache_features", "inference", "finetune")
    cache, inference, finetune = (load(name)["preprocessing"]["transforms"] for name in names)
    assert len(cache) == 5
    assert cache == inference == finetune


def test_settings_kept_with_the_features_are_the_knobs_that_decide_them():
    kept = load("cache_features")["settings"]
    assert kept == {name: f"@{name}" for name in kept}
    of_the_run = {"max_sequence_bytes", "batch_frames", "num_readers", "rank", "world_size", "device", "progress"}
    of_the_passes = {"augmented_passes", "augmentation_seed"}  # which no exam in inference sees
    assert knobs("cache_features").keys() - kept.keys() == of_the_run | of_the_passes


def test_nominal_card_agrees_with_metadata_and_training_defaults():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert image["num_channels"] == NOMINAL["max_frames"]
    assert image["spatial_shape"] == [3, NOMINAL["image_size"], NOMINAL["image_size"]]
    assert list(pred["channel_def"].values()) == NOMINAL["classes"]
    assert pred["num_channels"] == len(NOMINAL["classes"])
    defaults = load("cache_features") | load("train")
    shared = NOMINAL.keys() & defaults.keys()
    assert len(shared) == len(NOMINAL) - 2  # task_type and classes come from the datalist
    for key in shared:
        assert defaults[key] == NOMINAL[key], key


def test_card_written_by_training_has_all_that_inference_reads():
    assert NOMINAL.keys() <= load("cache_features")["settings"].keys() | load("train")["trained"].keys()
    read = {m for e in expressions(load("inference")) for m in re.findall(r"@card\['(\w+)'\]", e)}
    assert read == NOMINAL.keys()


def test_metadata_has_what_the_schema_requires():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert not [key for key in SCHEMA_REQUIRED if key not in metadata]
    assert metadata["version"] in metadata["changelog"]
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.M))
    pins = {name.lower(): version for name, version in pins.items()}
    needed = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    assert {name: pins[name] for name in needed} == needed
    for name, network in metadata.items():
        if name.endswith("_data_format"):
            for tensor in [*network["inputs"].values(), *network["outputs"].values()]:
                assert {
                    "type",
                    "format",
                    "num_channels",
                    "spatial_shape",
                    "dtype",
                    "value_range",
                } <= tensor.keys()
