"""configs/finetune.yaml: it computes what caching and training compute, in parts, interrupted, in two processes."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ignite.engine import Events
from monai.bundle import create_workflow

from scripts.datalists.collect import make_datalist
from scripts.datalists.items import Task
from scripts.features.batching import FeatureDataset
from scripts.memory.budget import card_bytes
from scripts.memory.plan import make_plan
from scripts.memory.search import Candidate, Workload, whole_batch
from scripts.memory.tracking import track_training_step
from scripts.networks.card import NOMINAL, load_model, read_card
from scripts.overrides import our_error
from scripts.sequences.phantom import CLASSES, write_exams
from scripts.store.store import FeatureStore
from scripts.training import fitting
from scripts.training.checkpoints import read_run
from scripts.training.finetuning import make_network
from scripts.training.fitting import simulated
from scripts.training.lora import add_adapters
from scripts.training.out_of_memory import advice
from scripts.training.outputs import logits_of
from tests.conftest import assert_message
from tests.runs import ROOT, assert_same_weights, weights

ENCODER = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48, "max_frames": 4}
QUICK = {"max_epochs": 3, "batch_size": 4, "accumulation_steps": 2, "device": "cpu", "progress": False}
SMALL = {"encoder_name": "test_vit", "hidden_size": 8, "dropout": 0.0, "chunk_frames": 8, "drop_path": 0.0}
STILL = {"augment": False, "dropout": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def prepare(name: str, **overrides: Any) -> Any:
    config = str(ROOT / "configs" / f"{name}.yaml")
    return create_workflow(  # initialised
        workflow_type="train", config_file=config, bundle_root=str(ROOT), logging_file=False, **overrides
    )


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
    cached = logits_of(part("network_def").head, FeatureDataset(dataset.data, store), "cpu", batch_size=4)
    assert len(found) == 8
    torch.testing.assert_close(torch.tensor(found), torch.tensor(cached), rtol=2e-3, atol=2e-3)  # stored as float16
    assert not any(weight.requires_grad for weight in part("network_def").encoder.parameters())


def test_finetuning_leaves_a_model_that_inference_takes_as_it_is(places, tmp_path, caplog):
    caplog.set_level("INFO", "angiography")
    run("finetune", **options(places, tmp_path))
    assert f"starts from {places['start_from']}, a model of multiclass: {', '.join(CLASSES['ffa_leak'])}" in caplog.text
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
    workflow.run()
    workflow.finalize()
    assert json.loads((tmp_path / "predictions.json").read_text())["predictions"]
    ours, theirs = weights(tmp_path / "model.pt"), weights(Path(places["start_from"]))
    changed = {name.split(".")[3] for name in ours if ".blocks." in name and not torch.equal(ours[name], theirs[name])}
    assert changed == {"4", "5"}


def test_a_finetuned_model_is_evaluated_on_the_features_of_its_own_encoder_by_the_command_that_is_told(
    places, tmp_path
):
    run("finetune", **options(places, tmp_path, max_epochs=1))
    given = {"dataset_dir": places["dataset_dir"], "features_dir": str(tmp_path / "features"), "progress": False}
    scored = {name: value for name, value in given.items() if name != "progress"}
    scored |= {"model_path": str(tmp_path / "model.pt"), "output_dir": str(tmp_path), "split": "validation"}
    for features_dir in (given["features_dir"], str(Path(places["start_from"]).parent / "features")):
        with pytest.raises(RuntimeError) as refused:
            run("evaluate", **{**scored, "features_dir": features_dir}, num_resamples=50)
        error = our_error(refused.value)
        assert error is not None
        found = "absent" if features_dir == given["features_dir"] else "of another encoder"
        assert_message(error, f"features is {found}, needs those of its own encoder, which was finetuned")
    words = shlex.split(str(error).partition("cache_features.yaml ")[2].rstrip("."))
    knobs = {
        name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(words[::2], words[1::2], strict=True)
    }
    run("cache_features", **given, **knobs)
    run("evaluate", **scored, num_resamples=50)
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    assert {"single best frame", "mean of frames", "shuffled order", "time removed"} <= report["controls"].keys()
    assert len(report["history"]) == 1
    controls = json.loads(read_run(tmp_path / "evaluation" / "controls" / "time_removed" / "state.pt")["recipe"])
    steps = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text())
    assert controls["hidden_size"] == 8 and controls["max_epochs"] == steps["max_epochs"]
    assert controls["learning_rate"] == steps["learning_rate"] and controls["batch_size"] == steps["batch_size"]


def test_from_scratch_the_head_gets_the_scale_of_the_features_that_it_trains_on(places, tmp_path):
    given = options(places, tmp_path, **ENCODER, start_from="scratch", hidden_size=8)
    head = prepare("finetune", **given).parser.get_parsed_content("network_def").head
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


def test_adapters_learn_in_place_of_the_blocks_and_the_model_needs_none(places, tmp_path):
    pytest.importorskip("peft")
    given = options(
        places, tmp_path, lora_rank=2, trainable_blocks=2, max_epochs=2, encoder_learning_rate=0.01, **STILL
    )
    workflow = prepare("finetune", **given)
    part = workflow.parser.get_parsed_content
    network, start = part("network_def"), part("start_digest")
    learnt = [name for name, weight in network.encoder.named_parameters() if weight.requires_grad]
    assert learnt and all("lora_" in name and (".blocks.4." in name or ".blocks.5." in name) for name in learnt)
    plain = prepare("finetune", **options(places, tmp_path / "plain", **STILL)).parser.get_parsed_content
    image = torch.rand(2, 3, 3, 48, 48)
    assert start == plain("start_digest")
    torch.testing.assert_close(network.eval()(image), plain("network_def").eval()(image))  # they begin with nothing
    workflow.run()
    workflow.finalize()
    ours, theirs = weights(tmp_path / "model.pt"), weights(Path(places["start_from"]))
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if name.startswith("encoder") and not torch.equal(ours[name], theirs[name])}
    assert changed and all((".4." in name or ".5." in name) and name.endswith("weight") for name in changed)
    fresh = make_network(read_card(tmp_path / "model.pt") | {"lora_rank": 0}, part("task"))
    load_model(fresh, tmp_path / "model.pt")
    fresh.head.set_temperature(1.0)
    network.head.set_temperature(1.0)
    torch.testing.assert_close(fresh.eval()(image), network.eval()(image), rtol=1e-4, atol=1e-5)


def test_adapters_without_their_package_are_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    network = make_network(NOMINAL | SMALL | {"lora_rank": 0, "trainable_blocks": 1}, Task("multiclass", ("a", "b")))
    with pytest.raises(ImportError) as refused:
        add_adapters(network, 4)
    assert_message(refused.value, "lora_rank", "4", "the package peft")


def test_dropout_and_chunk_frames_are_those_of_the_knobs(places, tmp_path):
    workflow = prepare("finetune", **options(places, tmp_path, dropout=0.45, chunk_frames=3))
    network = workflow.parser.get_parsed_content("network_def")
    assert 0.45 in {part.p for part in network.head.modules() if isinstance(part, torch.nn.Dropout)}
    assert network.chunk_frames == 3


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
    assert_message(root_error(refused), name, value, allowed)


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


def root_error(caught: Any) -> BaseException:
    error = caught.value
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def step_of(workflow: Any) -> Any:
    return workflow.parser.get_parsed_content("fit")


def test_memory_that_ends_is_reported_against_what_was_foretold_with_what_each_change_saves(places, tmp_path):
    workflow = prepare("finetune", **options(places, tmp_path, trainable_blocks=-1))

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less.")

    workflow.trainer.add_event_handler(Events.ITERATION_STARTED(once=2), fail)
    with pytest.raises(RuntimeError) as refused:
        workflow.run()
    error, fit = our_error(refused.value), step_of(workflow)
    assert isinstance(error, MemoryError)
    first, *ladder = str(error).splitlines()
    assert first.startswith(f"CUDA out of memory; a step was foretold to hold {fit.peak_bytes / 1e6:.1f} MB of ")
    ends = [re.fullmatch(r"\d\. (.+): ([\d.]+) MB at the peak, (\d+)% less, (.+)", line) for line in ladder]
    knobs, peaks = [end[1] for end in ends], [float(end[2]) * 1e6 for end in ends]
    expected = (
        "--batch_size 2 --accumulation_steps 4",
        "--checkpointing chunks",
        "--checkpointing selective",
    )
    expected += ("--checkpointing blocks", "--max_frames 2", "--image_size 16", "configs/cache_features.yaml")
    assert [knob.startswith(start) for knob, start in zip(knobs, expected, strict=True)] == [True] * 7
    assert all(peak < 0.99 * fit.peak_bytes for peak in peaks)
    assert ends[0][4] == "no more work; the weights stay the same" and ends[3][4].endswith(
        "% more work; the same gradients"
    )
    halved = simulated(fit.workload, 2, 4, "none", fit.resident_bytes)
    assert peaks[0] == pytest.approx(halved.peak_bytes, abs=1e5)


def test_a_run_that_one_sequence_fills_is_told_no_change_that_changes_nothing(places, tmp_path):
    fit = step_of(prepare("finetune", **options(places, tmp_path, batch_size=1, trainable_blocks=0, max_frames=1)))
    ladder = advice(fit.workload.make_network(), fit, "out of memory").splitlines()[1:]
    assert ladder and not any(word in line for line in ladder for word in ("batch_size", "checkpointing", "max_frames"))


def test_the_step_that_training_takes_holds_what_was_foretold_before_it(places, tmp_path, caplog):
    caplog.set_level("INFO", "angiography")
    given = {"trainable_blocks": 3, "batch_size": 4, "accumulation_steps": 2}
    workflow = prepare("finetune", **options(places, tmp_path, **given, **STILL))
    network, fit = workflow.parser.get_parsed_content("network_def"), step_of(workflow)
    lines = [record.message for record in caplog.records if record.message.startswith("memory")]
    assert lines[0] == "memory, as asked: 4 sequences x 4 frames of 48 x 48, 2 to a step, float32, checkpointing none"
    assert f"{fit.peak_bytes / 1e6:.1f} MB at the peak" in lines[1] and len(lines) == 2
    image = torch.rand(4, 4, 3, 48, 48)
    found = track_training_step(network, (image,), accumulation=2)
    assert fit.peak_bytes - fit.resident_bytes == pytest.approx(found.peak_bytes, rel=0.02)


def test_a_run_that_cannot_fit_is_refused_with_the_change_that_would(places, tmp_path):
    given = {"trainable_blocks": -1, "batch_size": 8, "accumulation_steps": 1}
    plain = step_of(prepare("finetune", **options(places, tmp_path, **given)))
    budget = int(0.75 * plain.peak_bytes)
    with pytest.raises(Exception) as refused:
        prepare("finetune", **options(places, tmp_path, **given, memory_budget=budget))
    error = root_error(refused)
    assert_message(error, "memory", f"{plain.peak_bytes / 1e6:.1f} MB at the peak of a step", f"{budget / 1e6:.1f} MB")
    advised = re.search(r"Pass --batch_size (\d) --accumulation_steps (\d)\.", str(error))
    batch, steps = map(int, advised.groups())
    assert batch * steps == 8
    given |= {"batch_size": batch, "accumulation_steps": steps, "memory_budget": budget}
    assert step_of(prepare("finetune", **options(places, tmp_path, **given))).peak_bytes <= budget


def test_what_no_plan_fits_is_refused_with_fewer_frames_or_with_cached_features(places, tmp_path, monkeypatch):
    given = {"trainable_blocks": -1, "batch_size": 1, "accumulation_steps": 1}
    fit = step_of(prepare("finetune", **options(places, tmp_path, **given)))
    one_frame = dataclasses.replace(fit.workload, shape=(1, 3, 48, 48))
    least = Candidate({"kind": "blocks", "every": 1}, 1, fit.peak_bytes, 0.3, None)
    free = simulated(one_frame, 1, 1, least.strategy, fit.resident_bytes).peak_bytes
    monkeypatch.setattr(fitting, "search", lambda *_: (None, [least]))
    change = fitting.smallest_change(dataclasses.replace(fit, free_bytes=free))
    assert change == "Pass --max_frames 1 --checkpointing blocks."
    with pytest.raises(Exception) as refused:
        prepare("finetune", **options(places, tmp_path, **given, memory_budget=1_000_000))
    assert_message(root_error(refused), "memory", "at the peak of a step", "1.0 MB")
    assert "configs/train.yaml" in str(root_error(refused))


class OneExam:
    data = [{"num_frames": 4}]


def test_a_run_that_is_gone_on_with_keeps_its_plan(monkeypatch):
    monkeypatch.setattr(fitting, "search", None)  # not asked
    recipe = NOMINAL | SMALL | {"lora_rank": 0, "trainable_blocks": 1, "image_size": 48, "ema_decay": 0.0}
    network = make_network(recipe, Task("multiclass", ("a", "b")))
    began = {"batch_size": 2, "accumulation_steps": 4, "checkpointing": {"kind": "blocks", "every": 2}}
    asked = {"batch_size": 8, "accumulation_steps": 1, "checkpointing": "plan", "began": began}
    fit = fitting.fit_memory(network, recipe | {"world_size": 1}, [OneExam()], "cpu", **asked)
    assert fit.knobs == began


def test_half_precision_is_for_cards_and_nothing_else_is_taken_for_it(caplog):
    caplog.set_level("INFO", "angiography")
    cpu, card = torch.device("cpu"), torch.device("cuda")
    found = {
        (amp, device.type): fitting.half_precision(amp, device)
        for amp in ("auto", True, False)
        for device in (cpu, card)
    }
    assert {key for key, half in found.items() if half} == {("auto", "cuda"), (True, "cuda")}
    assert "this CPU computes in float32" in caplog.text
    with pytest.raises(ValueError) as refused:
        fitting.half_precision("maybe", cpu)
    assert_message(refused.value, "amp", "maybe", "auto, True or False")


def test_a_plan_is_applied_kept_by_the_card_and_trains_to_the_weights_of_the_plain_run(places, tmp_path):
    given = {"trainable_blocks": -1, "max_epochs": 2, "batch_size": 8, "accumulation_steps": 1, **STILL}
    run("finetune", **options(places, tmp_path / "plain", **given))
    whole = step_of(prepare("finetune", **options(places, tmp_path, **given)))
    given |= {"memory_budget": int(0.7 * whole.peak_bytes), "checkpointing": "plan"}
    run("finetune", **options(places, tmp_path / "planned", **given))
    card = read_card(tmp_path / "planned" / "model.pt")
    assert card["batch_size"] * card["accumulation_steps"] == 8 and card["batch_size"] < 8
    for name in ("plain", "planned"):
        assert (tmp_path / name / "model.pt").is_file()
    ours, theirs = (weights(tmp_path / name / "finetuning" / "last.pt") for name in ("planned", "plain"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)


def test_the_fragment_of_the_plan_command_is_taken_after_the_config(places, tmp_path):
    given = options(places, tmp_path, trainable_blocks=-1)
    del given["batch_size"], given["accumulation_steps"]
    network = prepare("finetune", **given).parser.get_parsed_content("network_def")
    workload = Workload(lambda: network, (4, 3, 48, 48), 8, amp=False)
    plain = whole_batch(workload, {"kind": "none"})
    fragment = tmp_path / "plan.yaml"
    fragment.write_text(make_plan(workload, card_bytes(int(0.8 * plain.peak_bytes))).yaml)
    stated = yaml.safe_load(fragment.read_text())
    assert stated["batch_size"] < 8
    files = [str(ROOT / "configs" / "finetune.yaml"), str(fragment)]
    workflow = create_workflow(
        workflow_type="train", config_file=files, bundle_root=str(ROOT), logging_file=False, **given
    )
    fit = step_of(workflow)
    assert fit.settings == {name: stated[name] for name in fit.settings}


def test_a_finished_run_is_resumed_although_its_model_lies_where_it_started_from(places, tmp_path):
    copied = tmp_path / "model.pt"
    for suffix in (".pt", ".json"):
        source = Path(places["start_from"]).with_suffix(suffix)
        copied.with_suffix(suffix).write_bytes(source.read_bytes())
    given = options(places, tmp_path, max_epochs=2) | {"start_from": str(copied)}
    run("finetune", **given)
    before = weights(copied)
    run("finetune", **given, resume=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(copied).items())


def broken(places: dict[str, str], folder: Path, keep: float) -> tuple[dict[str, str], str]:
    """The places with a copy of the exams, of which one of training is cut; its name in the list."""
    shutil.copytree(places["dataset_dir"], folder / "data")
    content = json.loads((folder / "data" / "datalist.json").read_text())
    name = content["training"][1]["image"]
    path = folder / "data" / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    return places | {"dataset_dir": str(folder / "data")}, name


def test_exams_without_a_readable_header_are_all_named_before_training_or_left_out(places, tmp_path, caplog):
    there, name = broken(places, tmp_path, 0.01)
    with pytest.raises(Exception) as refused:
        prepare("finetune", **options(there, tmp_path / "out"))
    error = root_error(refused)
    assert "training is 1 of 8 exams unreadable" in str(error) and "--skip_unreadable True" in str(error)
    assert name in str(error)
    workflow = prepare("finetune", **options(there, tmp_path / "out", skip_unreadable=True))
    assert len(workflow.parser.get_parsed_content("train::dataset")) == 7
    assert name in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exam_that_breaks_in_the_middle_stops_no_run_and_is_named_in_the_end(places, tmp_path, num_workers):
    there, name = broken(places, tmp_path, 1.0)
    workflow = prepare("finetune", **options(there, tmp_path / "out", max_epochs=1, num_workers=num_workers, **STILL))
    dataset = workflow.parser.get_parsed_content("train::dataset")
    whole = dataset[1]
    path = Path(there["dataset_dir"]) / name
    path.write_bytes(path.read_bytes()[:-100])  # after its header was checked
    workflow.run()
    with pytest.raises(RuntimeError) as ended:
        workflow.finalize()
    assert (tmp_path / "out" / "model.pt").is_file()
    assert name in str(our_error(ended.value)) and "bytes" in str(our_error(ended.value))
    stand_in = dataset[1]
    assert stand_in["label"] == whole["label"] and stand_in["source"] != name == whole["source"]
