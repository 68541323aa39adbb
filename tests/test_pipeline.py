"""The workflows end to end, on small synthetic exams and a tiny untrained encoder, through monai.bundle."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydicom
import pytest
import torch
from monai.bundle import create_workflow

from scripts.curation.export import export_store
from scripts.datalists.collect import make_datalist
from scripts.networks.card import read_card
from scripts.reports.wording import QUESTIONS
from scripts.sequences.phantom import CLASSES, write_exams
from scripts.store.store import FeatureStore

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
ENCODER = {"encoder_name": "test_vit", "encoder_weights": "random:0", "image_size": 48, "max_frames": 8}
HEAD = {"num_layers": 2, "bidirectional": True, "readout": "last"}  # other than by default: all have to follow
IDENTITIES = ("Verrückt^Anna", "ID-4711-SECRET", "19510203", "St. Elsewhere Clinic")
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def config(*names: str) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def run_here(workflow_type: str, names: tuple[str, ...], **overrides: object) -> None:
    """Run a workflow in this process, as create_workflow does for any program."""
    workflow = create_workflow(
        workflow_type=workflow_type, config_file=config(*names), bundle_root=str(ROOT), logging_file=False, **overrides
    )
    workflow.run()
    workflow.finalize()


def command_line(names: tuple[str, ...], overrides: dict[str, object], processes: int = 1) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = (launcher if processes > 1 else [sys.executable]) + ["-m", "monai.bundle", "run"]
    files = config(*names)
    command += ["--config_file", files[0] if len(files) == 1 else str(files), "--bundle_root", str(ROOT)]
    return command + [text for name, value in overrides.items() for text in (f"--{name}", str(value))]


def run_outside(cwd: Path, *names: str, processes: int = 1, **overrides: object) -> subprocess.CompletedProcess:
    """Run a workflow as a command, from a folder that is not the bundle's."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = command_line(names, overrides, processes)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300, check=False)


def plant_identities(folder: Path) -> int:
    """Write a person into every DICOM file below a folder; returns how many there were."""
    files = sorted(folder.rglob("*.dcm"))
    for path in files:
        data = pydicom.dcmread(path)
        data.SpecificCharacterSet = "ISO_IR 192"
        data.PatientName, patient, data.PatientBirthDate, data.InstitutionName = IDENTITIES
        data.PatientID = f"{patient}-{data.PatientID}"
        data.save_as(path)
    return len(files)


@pytest.fixture(scope="module")
def flow(tmp_path_factory) -> dict[str, Path]:
    """Exams of people, cached, trained on, evaluated and predicted; where everything is."""
    root = tmp_path_factory.mktemp("flow")
    data, out = root / "data", root / "out"
    write_exams(data, num_patients=18, rows=64, progress=False)
    assert plant_identities(data) > 18
    make_datalist(data, data / "labels.csv", classes=CLASSES["ffa_leak"], num_folds=3)
    places = {"dataset_dir": str(data), "output_dir": str(out)}
    trained = {**places, **HEAD, "model_path": str(out / "model.pt"), "max_epochs": 3, "batch_size": 8}
    run_here("train", ("cache_features",), **places, **ENCODER, progress=False)
    run_here("train", ("train",), **trained)
    judged = {**places, "model_path": trained["model_path"], "num_resamples": 200}
    untrained = {"encoder_weights": "random:1", "features_dir": str(out / "features_untrained"), "progress": False}
    run_here("train", ("cache_features",), **places, **{**ENCODER, **untrained})
    run_here("train", ("evaluate",), **judged)
    run_here(
        "infer", ("inference",), input=str(data), output_dir=str(out), model_path=str(out / "model.pt"), progress=False
    )
    return {"root": root, "data": data, "out": out, "model": out / "model.pt"}


def places_of(flow: dict[str, Path]) -> dict[str, object]:
    return {"dataset_dir": flow["data"], "output_dir": flow["out"]}


def entries(folder: Path) -> dict[str, torch.Tensor]:
    store = FeatureStore.open(folder)
    return {key: store.read(key).features for key in list(store.keys())}


def assert_equal_stores(found: Path, expected: Path) -> None:
    ours, theirs = entries(found), entries(expected)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=2e-3, atol=2e-3)  # float16, other threads


def test_flow_leaves_every_artefact_with_the_contract_kept(flow):
    items = json.loads((flow["data"] / "datalist.json").read_text())
    number = sum(len(items[split]) for split in ("training", "validation", "test"))
    report = json.loads((flow["out"] / "evaluation" / "report.json").read_text())
    assert report["synthetic"] is True
    assert report["controls"].keys() == QUESTIONS.keys()
    assert report["absent_controls"] == {}
    assert report["model"]["num_sequences"] == len(items["test"])
    assert "<svg" in (flow["out"] / "evaluation" / "report.html").read_text()
    artefacts = {"features": "cache_features", ".": "inference", "checkpoints": "train", "evaluation": "evaluate"}
    records = {name: json.loads((flow["out"] / place / "run.json").read_text()) for place, name in artefacts.items()}
    for name, record in records.items():
        assert record["workflow"] == name and record["duration_s"] > 0 and record["host"]["cores"] > 0
    digest = FeatureStore.open(flow["out"] / "features").digest
    assert records["cache_features"]["store_digest"] == records["inference"]["recipe"]["store_digest"] == digest
    cached, trained = records["cache_features"], records["train"]["recipe"]
    assert cached["datalist_digest"] == trained["datalist_digest"] and cached["synthetic"] is True
    assert (cached["exams"], cached["failed"]) == (number, 0) and records["inference"]["predicted"] == number
    with (flow["out"] / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == number
    for row in rows:
        assert sum(float(row[f"probability_{name}"]) for name in CLASSES["ffa_leak"]) == pytest.approx(1, abs=1e-4)
    for prediction in json.loads((flow["out"] / "predictions.json").read_text())["predictions"]:
        assert sum(prediction["frame_weights"]) == pytest.approx(1, abs=1e-4)
        assert len(prediction["frame_weights"]) == prediction["num_frames"] <= ENCODER["max_frames"]
    assert read_card(flow["model"])["classes"] == list(CLASSES["ffa_leak"])
    state = torch.load(flow["model"], weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_nothing_written_names_a_person_or_a_place(flow):
    searched = 0
    for path in [*flow["out"].rglob("*"), flow["data"] / "datalist.json"]:
        assert not any(identity in str(path) for identity in IDENTITIES)
        if path.is_file():
            content = path.read_bytes()
            searched += 1
            for identity in IDENTITIES:
                assert identity.encode() not in content, f"{identity} in {path.name}"
                assert identity.encode("utf-16-le") not in content
    assert searched > 10


def test_cached_and_direct_predictions_agree(flow):
    """Training and evaluation use stored features, inference decodes anew: one and the same numbers."""
    predictions = json.loads((flow["out"] / "predictions.json").read_text())["predictions"]
    test = json.loads((flow["data"] / "datalist.json").read_text())["test"]
    named = {entry["image"]: entry for entry in predictions}
    judged = json.loads((flow["out"] / "evaluation" / "predictions.json").read_text())["predictions"]
    assert {entry["image"] for entry in judged} == {item["image"] for item in test}
    for entry in judged:
        direct = named[entry["image"]]
        assert entry["frame_indices"] == direct["frame_indices"]
        assert entry["probabilities"] == pytest.approx(direct["probabilities"], abs=2e-3)  # features are float16
        assert entry["frame_weights"] == pytest.approx(direct["frame_weights"], abs=2e-3)
    report = json.loads((flow["out"] / "evaluation" / "report.json").read_text())
    right = sum(entry["predicted"] == CLASSES["ffa_leak"][entry["label"]] for entry in judged)
    assert right / len(test) == pytest.approx(report["model"]["accuracy"]["value"], abs=1e-6)


def test_second_caching_run_from_another_folder_computes_nothing(flow, tmp_path):
    done = run_outside(tmp_path, "cache_features", **places_of(flow), **ENCODER)
    assert done.returncode == 0, done.stderr
    assert " 0 frames computed" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_changed_exam_alone_is_computed_again_and_a_bad_one_is_listed(flow, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(flow["data"], data)
    shutil.copytree(flow["out"] / "features", out / "features")
    files = [path for path in sorted((data / "exams").glob("*/*.dcm")) if path.is_file()]
    changed = pydicom.dcmread(files[0])
    changed.SeriesDescription = "another byte or two"
    changed.save_as(files[0])
    files[1].write_bytes(files[1].read_bytes()[:3000])
    done = run_outside(tmp_path, "cache_features", **{**ENCODER, "dataset_dir": data, "output_dir": out})
    assert done.returncode == 1
    assert "for 1 new exams" in done.stderr
    last = done.stderr.strip().splitlines()
    assert last[-2].startswith("error: cache_features: 1 of ")
    assert files[1].relative_to(data).as_posix() in last[-1] and str(tmp_path) not in last[-1]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"image_sise": 48}, "--image_sise is no id of the config files.*Did you mean --image_size"),
        ({"image_size": 64}, "image_size is 48 in the store, 64 wanted"),
        ({"image_size": 50}, "image_size is 50, needs a positive multiple of its patch size, 16"),
        ({"encoder_weights": "random:1"}, "encoder.digest is"),
        ({"dataset_dir": "absent"}, "dataset_dir is absent, needs an existing folder"),
        ({"encoder_weights": "dinov2_small"}, "Pass --encoder_name vit_small_patch14_dinov2"),
    ],
)
def test_wrong_setting_is_one_line_and_a_failing_status(flow, tmp_path, override, said):
    settings = {**places_of(flow), **ENCODER, "datalist": flow["data"] / "datalist.json", **override}
    done = run_outside(tmp_path, "cache_features", **settings)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), done.stderr[-2000:]
    assert re.search(said, last), last


def test_training_on_a_store_of_another_encoder_is_refused(flow, tmp_path):
    done = run_outside(tmp_path, "train", **{**places_of(flow), "encoder_weights": "random:7"})
    assert done.returncode == 1
    assert "digest of encoder_weights is" in done.stderr.strip().splitlines()[-1]


def test_inference_predicts_the_good_exams_and_lists_the_bad_ones(flow, tmp_path):
    exams = tmp_path / "exams"
    good = next(path for path in sorted((flow["data"] / "exams").glob("*/*.dcm")) if path.is_file())
    exams.mkdir()
    shutil.copy(good, exams / "good.dcm")
    (exams / "cut.dcm").write_bytes(good.read_bytes()[:-2000])
    single = pydicom.dcmread(good)  # T = 1
    if single.file_meta.TransferSyntaxUID.is_encapsulated:
        single.decompress()
    single.PixelData = single.PixelData[: len(single.PixelData) // int(single.NumberOfFrames)]
    single.NumberOfFrames, single.FrameTimeVector = 1, [0]
    single.save_as(exams / "one.dcm")
    done = run_outside(tmp_path, "inference", input=exams, output_dir=tmp_path / "out", model_path=flow["model"])
    assert done.returncode == 1
    assert "cut.dcm: (7FE0,0010) PixelData" in done.stderr.strip().splitlines()[-1]
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert {row["image"]: int(row["num_frames"]) for row in csv.DictReader(file)}.keys() == {"good.dcm", "one.dcm"}


def test_killed_caching_run_goes_on_to_the_store_of_an_uninterrupted_one(flow, tmp_path):
    settings = {**places_of(flow), **ENCODER, "output_dir": tmp_path / "out"}
    moments = random.Random(0)
    for _ in range(2):
        command = command_line(("cache_features",), {**settings, "progress": False})
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "out" / "features" / "fingerprint.json").exists():
            time.sleep(0.05)
        time.sleep(moments.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run_outside(tmp_path, "cache_features", **settings)
    assert done.returncode == 0, done.stderr
    assert_equal_stores(tmp_path / "out" / "features", flow["out"] / "features")


def test_two_processes_cache_the_same_store_and_train(flow, tmp_path):
    settings = {**places_of(flow), "output_dir": tmp_path / "out"}
    cached = run_outside(tmp_path, "cache_features", "multi_gpu_cache", processes=2, **settings, **ENCODER)
    assert cached.returncode == 0, cached.stderr
    assert_equal_stores(tmp_path / "out" / "features", flow["out"] / "features")
    ranks = {path.name.split("-")[0] for path in (tmp_path / "out" / "features").glob("rank*.safetensors")}
    assert ranks == {"rank0", "rank1"}
    trained = {**settings, **HEAD, "model_path": tmp_path / "model.pt", "max_epochs": 2, "batch_size": 8}
    done = run_outside(tmp_path, "train", "multi_gpu_train", processes=2, **trained)
    assert done.returncode == 0, done.stderr
    assert (
        torch.load(tmp_path / "model.pt", weights_only=True).keys()
        == torch.load(flow["model"], weights_only=True).keys()
    )
    assert (tmp_path / "out" / "checkpoints" / "best.pt").is_file()


def test_another_institution_trains_from_the_exported_features_without_any_image(flow, tmp_path):
    exported = tmp_path / "exported"
    said = export_store(flow["out"] / "features", exported, "CC0-1.0", flow["data"] / "datalist.json", progress=False)
    assert "licence CC0-1.0" in said
    places = {"dataset_dir": str(exported), "features_dir": str(exported), "datalist": str(exported / "datalist.json")}
    options = {**HEAD, "output_dir": str(tmp_path / "out"), "model_path": str(tmp_path / "model.pt"), "max_epochs": 2}
    run_here("train", ("train",), **places, **options, batch_size=8)
    ours, theirs = (torch.load(path, weights_only=True) for path in (tmp_path / "model.pt", flow["model"]))
    assert ours.keys() == theirs.keys()
    for value in IDENTITIES:
        assert not any(value.encode() in path.read_bytes() for path in exported.iterdir())


@pytest.mark.parametrize(("workflow_type", "name"), [("train", "train"), ("infer", "inference")])
def test_workflow_has_every_property_monai_asks_for(flow, workflow_type, name):
    settings = {**places_of(flow), "model_path": str(flow["model"])}
    settings = settings if name == "train" else {"dataset_dir": flow["data"], "model_path": settings["model_path"]}
    workflow = create_workflow(
        workflow_type=workflow_type,
        config_file=config(name),
        bundle_root=str(ROOT),
        logging_file=False,
        **{key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
    )
    assert workflow.check_properties() == []


def test_exported_torchscript_equals_the_network(flow, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "ckpt_export", "network_def"]
    command += ["--config_file", *config("inference"), "--ckpt_file", str(flow["model"]), "--bundle_root", str(ROOT)]
    command += ["--model_path", str(flow["model"]), "--filepath", str(tmp_path / "model.ts")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    workflow = create_workflow(
        workflow_type="infer",
        config_file=config("inference"),
        bundle_root=str(ROOT),
        logging_file=False,
        model_path=str(flow["model"]),
        dataset_dir=str(flow["data"]),
    )
    workflow.initialize()
    network = workflow.network_def.eval()
    image = torch.randn(1, 5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exported = torch.jit.load(tmp_path / "model.ts").eval()
        torch.testing.assert_close(exported(image), network(image), rtol=1e-5, atol=1e-5)


def test_network_of_the_bundle_verifies_against_metadata():
    command = [sys.executable, "-m", "monai.bundle", "verify_net_in_out", "network_def"]
    command += ["--meta_file", str(CONFIGS / "metadata.json"), "--config_file", *config("inference")]
    command += ["--model_path", "absent/model.pt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stderr + done.stdout


def test_evaluating_before_training_or_with_another_datalist_is_refused(flow, tmp_path):
    settings = {**places_of(flow), "output_dir": tmp_path, "features_dir": flow["out"] / "features"}
    absent = run_outside(tmp_path, "evaluate", **settings, model_path=tmp_path / "model.pt")
    assert absent.returncode == 1
    assert "model_path is" in absent.stderr.strip().splitlines()[-1]
    other = tmp_path / "other.json"
    other.write_text((flow["data"] / "datalist.json").read_text() + "\n")
    done = run_outside(tmp_path, "evaluate", **settings, model_path=flow["model"], datalist=other)
    assert done.returncode == 1
    assert "datalist_digest is" in done.stderr.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == [other]  # no control was trained


def test_control_run_leaves_the_model_alone(flow, tmp_path):
    before = flow["model"].read_bytes()
    settings = {**places_of(flow), "output_dir": tmp_path, "features_dir": flow["out"] / "features", "max_epochs": 1}
    done = run_outside(tmp_path, "train", **settings, model_path=flow["model"], frames_shown="shuffled")
    assert done.returncode == 0, done.stderr
    assert flow["model"].read_bytes() == before
