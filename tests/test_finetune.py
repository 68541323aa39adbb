"""configs/finetune.yaml: it computes what caching and training compute, in parts, interrupted, in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import create_workflow

from scripts.datalists.collect import make_datalist
from scripts.features.batching import FeatureDataset
from scripts.networks.card import read_card
from scripts.overrides import our_error
from scripts.sequences.phantom import CLASSES, write_exams
from scripts.store.store import FeatureStore
from scripts.training.outputs import logits_of
from tests.conftest import assert_message
from tests.runs import ROOT, assert_same_weights, weights

ENCODER = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48, "max_frames": 4}
QUICK = {"max_epochs": 3, "batch_size": 4, "accumulation_steps": 2, "device": "cpu", "progress": False}
STILL = {"augment": False, "dropout": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def prepare(name: str, **overrides: Any) -> Any:
    workflow = create_workflow(
        workflow_type="train",
        config_file=str(ROOT / "configs" / f"{name}.yaml"),
        bundle_root=str(ROOT),
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    return workflow


def run(name: str, **overrides: Any) -> None:
    workflow = prepare(name, **overrides)
    workflow.run()
    workflow.finalize()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Exams, and a head trained on their features, to start from."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("exams")
    write_exams(root / "data", num_patients=14, rows=64, progress=False)
    make_datalist(root / "data", root / "data" / "labels.csv", classes=CLASSES["ffa_leak"], num_folds=3)
    cached = {"dataset_dir": str(root / "data"), "output_dir": str(root / "cached"), "progress": False}
    run("cache_features", **cached, **ENCODER)
    start = str(root / "cached" / "model.pt")
    run("train", **cached, model_path=start, max_epochs=2, hidden_size=8, num_threads=1, calibrate=False)
    return {"dataset_dir": cached["dataset_dir"], "start_from": start}


def options(places: dict[str, str], output: Path, **overrides: Any) -> dict[str, Any]:
    return {**places, "output_dir": str(output), "model_path": str(output / "model.pt"), **QUICK, **overrides}


def test_with_all_frozen_and_no_augmentation_the_logits_are_those_of_the_cached_path(places, tmp_path):
    workflow = prepare("finetune", **options(places, tmp_path, trainable_blocks=0, augment=False))
    part = workflow.parser.get_parsed_content
    store = FeatureStore.open(Path(places["start_from"]).parent / "features")
    dataset = part("train::dataset")
    found = logits_of(part("network_def"), dataset, "cpu", batch_size=4)
    cached = logits_of(part("head"), FeatureDataset(dataset.data, store), "cpu", batch_size=4)
    assert len(found) == 8
    torch.testing.assert_close(torch.tensor(found), torch.tensor(cached), rtol=2e-3, atol=2e-3)  # stored as float16
    assert not any(weight.requires_grad for weight in part("encoder").parameters())


def test_finetuning_leaves_a_model_that_inference_takes_as_it_is(places, tmp_path):
    run("finetune", **options(places, tmp_path))
    card, before = read_card(tmp_path / "model.pt"), read_card(places["start_from"])
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["workflow"] == "finetune" and len(record["history"]) == 3
    assert card["encoder_digest"] != before["encoder_digest"] and card["image_size"] == 48
    run_inference = {"input": places["dataset_dir"], "output_dir": str(tmp_path), "progress": False, "device": "cpu"}
    workflow = create_workflow(
        workflow_type="infer",
        config_file=str(ROOT / "configs" / "inference.yaml"),
        bundle_root=str(ROOT),
        logging_file=False,
        model_path=str(tmp_path / "model.pt"),
        **run_inference,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    ours, theirs = weights(tmp_path / "model.pt"), weights(Path(places["start_from"]))
    changed = {name.split(".")[3] for name in ours if ".blocks." in name and not torch.equal(ours[name], theirs[name])}
    assert changed == {"4", "5"}


def test_from_scratch_the_head_gets_the_scale_of_the_features_that_it_trains_on(places, tmp_path):
    given = options(places, tmp_path, **ENCODER, start_from="scratch", hidden_size=8)
    head = prepare("finetune", **given).parser.get_parsed_content("head")
    cached = weights(Path(places["start_from"]))
    torch.testing.assert_close(head.mean, cached["head.mean"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(head.std, cached["head.std"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("iterations", [(3,), (2, 6)])
def test_an_interrupted_finetuning_goes_on_to_the_same_weights(places, tmp_path, iterations):
    given = {"drop_path": 0.2, "ema_decay": 0.9, "sampling": "balanced", "trainable_blocks": -1}
    run("finetune", **options(places, tmp_path / "whole", **given))
    for iteration in iterations:
        workflow = prepare("finetune", **options(places, tmp_path / "parts", resume=True, **given))

        def stop() -> None:
            raise KeyboardInterrupt

        workflow.trainer.add_event_handler(Events.ITERATION_STARTED(once=iteration), stop)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            workflow.run()
    run("finetune", **options(places, tmp_path / "parts", resume=True, **given))
    for name in ("model.pt", "finetuning/last.pt"):
        assert_same_weights(tmp_path / "parts" / name, tmp_path / "whole" / name)


@pytest.mark.parametrize("given", [{"class_weights": "balanced"}, {"class_weights": [1.0, 5.0, 1.0, 2.0, 9.0]}])
def test_parts_of_unequal_size_and_weight_train_to_the_weights_of_the_whole_batch(places, tmp_path, given):
    """Without dropout, whose draws follow the batches."""
    ends = []
    for name, batch, steps in (("whole", 64, 1), ("parts", 3, 3)):
        workflow = prepare(
            "finetune",
            **options(
                places, tmp_path / name, **STILL, **given, batch_size=batch, accumulation_steps=steps, max_epochs=2
            ),
        )
        sizes = {len(indices) for indices in workflow.parser.get_parsed_content("train::sampler")}
        assert len(sizes) == (1 if name == "whole" else 2)
        workflow.run()
        ends.append((weights(tmp_path / name / "finetuning" / "last.pt"), workflow.trainer.state.metrics["train_loss"]))
    (whole, loss), (parts, loss_of_parts) = ends
    assert loss_of_parts == pytest.approx(loss, rel=1e-4)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("strategy", ["blocks", "selective", {"kind": "chunks", "frames": 3}])
def test_planned_and_plain_finetunings_end_with_equal_weights(places, tmp_path, strategy):
    given = {"drop_path": 0.2, "trainable_blocks": -1, "max_epochs": 2}
    if isinstance(strategy, dict):
        given |= {"drop_path": 0.0}  # its draws follow the chunks
    run("finetune", **options(places, tmp_path / "plain", **given))
    run("finetune", **options(places, tmp_path / "planned", checkpointing=strategy, **given))
    assert_same_weights(tmp_path / "planned" / "model.pt", tmp_path / "plain" / "model.pt", rtol=1e-4, atol=1e-5)


def test_last_blocks_learn_the_earlier_the_slower(places, tmp_path):
    given = {"trainable_blocks": 3, "layer_decay": 0.5, "encoder_learning_rate": 0.01, "learning_rate": 0.1}
    workflow = prepare("finetune", **options(places, tmp_path, **given, warmup=0.0))
    network, optimizer = (workflow.parser.get_parsed_content(name) for name in ("network_def", "optimizer"))
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    found = {name: rates.get(id(weight)) for name, weight in network.named_parameters()}
    assert {found[name] for name in found if name.startswith("head.")} == {0.1}
    for block, rate in {0: None, 1: None, 2: None, 3: 0.0025, 4: 0.005, 5: 0.01}.items():
        of_block = {r for name, r in found.items() if f".blocks.{block}." in name}
        assert len(of_block) == 1 and of_block.pop() == (rate if rate is None else pytest.approx(rate))
    assert found["encoder.backbone.norm.weight"] == pytest.approx(0.01)
    assert found["encoder.backbone.pos_embed"] is None


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("trainable_blocks", 99, "0 to 6"),
        ("drop_path", 1.5, "below 1.0"),
        ("start_from", "nowhere.pt", "an existing model.pt"),
        ("encoder_learning_rate", 0.0, "a number above 0.0"),
        ("layer_decay", 1.5, "above 0.0 up to 1.0"),
    ],
)
def test_a_knob_out_of_its_range_is_refused_in_one_line(places, tmp_path, name, value, allowed):
    with pytest.raises(Exception) as refused:
        prepare("finetune", **options(places, tmp_path, **{name: value})).run()
    error = refused.value
    while error.__cause__ is not None:
        error = error.__cause__
    assert_message(error, name, value, allowed)


def test_two_processes_train_to_the_weights_of_one_with_the_whole_batch(places, tmp_path):
    given = {**STILL, "class_weights": "balanced", "max_epochs": 2, "trainable_blocks": 2, "checkpointing": "blocks"}
    run("finetune", **options(places, tmp_path / "one", **given, batch_size=4))
    shared = options(places, tmp_path / "two", **given, batch_size=2)
    files = str([str(ROOT / "configs" / f"{name}.yaml") for name in ("finetune", "multi_gpu_train")])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "monai.bundle",
    ]
    command += ["run", "--config_file", files, "--bundle_root", str(ROOT)]
    command += [text for name, value in shared.items() for text in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (weights(tmp_path / name / "finetuning" / "last.pt") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-5)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


def test_a_card_out_of_memory_ends_with_what_to_change_in_the_order_to_try_it(places, tmp_path):
    workflow = prepare("finetune", **options(places, tmp_path))

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED(once=2), fail)
    with pytest.raises(RuntimeError) as refused:
        workflow.run()
    error = our_error(refused.value)
    assert isinstance(error, MemoryError)
    text = str(error)
    steps = (
        "--batch_size 2 --accumulation_steps 4",
        "'kind': 'chunks'",
        "--checkpointing selective",
        "--amp",
        "--max_frames 2",
        "--image_size 24",
        "configs/train.yaml",
    )
    places_of = [text.index(step) for step in steps]
    assert places_of == sorted(places_of)
