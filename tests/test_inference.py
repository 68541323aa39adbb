"""Inference: one row a sequence, a reason for each exam that could not be used, through MONAI's evaluator."""

import csv
import json
from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch.utils.data import DataLoader

from scripts.errors import RunFailedError
from scripts.features.batching import collate_sequences
from scripts.keys import (
    FRAME_INDICES,
    FRAME_TIMES,
    FRAME_WEIGHTS,
    IMAGE,
    LENGTHS,
    MULTICLASS,
    MULTILABEL,
    PRED,
    SEQUENCE,
    SOURCE,
)
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import FrameEncoder
from scripts.networks.heads import make_head
from scripts.networks.weights import load_into
from scripts.reports.inference import PREFIX_LOGITS, PredictionWriter, predict_sequences
from scripts.reports.predictions import AFTER_FRAME, NUM_FRAMES, PREDICTED, PROBABILITIES, REASON
from scripts.sequences.dataset import SequenceDataset
from scripts.sequences.transforms import LoadSequenced, ResizeFramesd, ToEncoderInputd, WindowSequenced
from scripts.training.engine import prepare_batch
from scripts.training.losses import to_probabilities
from tests.exams import item_of, write_exam

CLASSES = ("normal", "leakage", "staining")
PREPROCESSING = Compose(
    [LoadSequenced(max_frames=3), WindowSequenced(), ResizeFramesd(image_size=32), ToEncoderInputd()]
)


@pytest.fixture
def network() -> SequenceClassifier:
    encoder = FrameEncoder("test_vit")
    load_into(encoder, "random:0", "models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SequenceClassifier(encoder, make_head("gru", encoder.num_features, len(CLASSES), hidden_size=8), 2)


@pytest.fixture
def items(tmp_path) -> list[dict]:
    """Exams of 1, 2 and 9 frames."""
    return [
        item_of(write_exam(tmp_path / "exams" / f"{n}.dcm", num_frames=count, seed=n))
        for n, count in enumerate((1, 2, 9))
    ]


def run(
    network: SequenceClassifier,
    items: list[dict],
    output_dir: Path,
    task_type: str = MULTICLASS,
    batch_size: int = 1,
) -> PredictionWriter:
    writer = PredictionWriter(output_dir, task_type, CLASSES, progress=False)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            SequenceDataset(items, PREPROCESSING), batch_size=batch_size, collate_fn=collate_sequences
        ),
        network=network,
        prepare_batch=prepare_batch,
        iteration_update=predict_sequences,
        val_handlers=[writer],
        amp=False,
        decollate=False,
    ).run()
    return writer


def written(output_dir: Path) -> tuple[list[dict], dict]:
    """The rows of predictions.csv, and predictions.json."""
    with (output_dir / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file)), json.loads((output_dir / "predictions.json").read_text())


@pytest.mark.parametrize("task_type", [MULTICLASS, MULTILABEL])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_sequence_gets_one_row_of_what_the_network_says_of_it(network, items, tmp_path, task_type, batch_size):
    writer = run(network, items, tmp_path / "out", task_type, batch_size)
    rows, document = written(tmp_path / "out")
    assert [len(writer.rows), len(rows), len(document["predictions"])] == [3, 3, 3]
    for item, found in zip(items, document["predictions"], strict=True):
        read = PREPROCESSING(item)
        with torch.inference_mode():
            logits, weights, prefixes = network.eval().explain(read[IMAGE][None], None, read[FRAME_TIMES][None])
        wanted = to_probabilities(logits, task_type)[0].tolist()
        assert found[SEQUENCE] == item[SEQUENCE]
        assert found[IMAGE] == item[SOURCE]
        assert found[NUM_FRAMES] == len(read[IMAGE])
        assert found[PROBABILITIES] == pytest.approx(wanted, abs=1e-5)
        assert found[FRAME_INDICES] == read[FRAME_INDICES].tolist()
        assert found[FRAME_TIMES] == pytest.approx(read[FRAME_TIMES].tolist())
        assert found[FRAME_WEIGHTS] == pytest.approx(weights[0].tolist(), abs=1e-5)
        assert sum(found[FRAME_WEIGHTS]) == pytest.approx(1.0, abs=1e-5)
        assert len(found[AFTER_FRAME]) == found[NUM_FRAMES]
        for after, cut in zip(found[AFTER_FRAME], to_probabilities(prefixes[0], task_type).tolist(), strict=True):
            assert after == pytest.approx(cut, abs=1e-5)
        assert found[AFTER_FRAME][-1] == pytest.approx(found[PROBABILITIES], abs=1e-5)
    writer.finish()  # nothing failed


def test_bad_exams_are_listed_with_reasons_and_the_others_predicted(network, items, tmp_path):
    (tmp_path / "exams" / "broken.dcm").write_bytes(b"not DICOM")
    bad = [item_of(tmp_path / "exams" / name) for name in ("broken.dcm", "absent.dcm")]
    writer = run(network, [bad[0], *items, bad[1]], tmp_path / "out")
    rows, document = written(tmp_path / "out")
    assert [row[IMAGE] for row in rows if row.get(PREDICTED)] == [item[SOURCE] for item in items]
    failures = {failure[IMAGE]: failure[REASON] for failure in document["failures"]}
    assert failures.keys() == {"broken.dcm", "absent.dcm"}
    assert all(name in reason for name, reason in failures.items())
    assert str(tmp_path) not in json.dumps(document)
    with pytest.raises(RunFailedError, match=r"inference: 2 of 5 exams could not be used"):
        writer.finish()


def test_run_without_one_readable_exam_writes_the_failures_and_no_rows(network, tmp_path):
    writer = run(network, [item_of(tmp_path / "absent.dcm")], tmp_path / "out")
    assert written(tmp_path / "out")[1]["predictions"] == []
    with pytest.raises(RunFailedError, match=r"1 of 1(.|\n)*absent\.dcm"):
        writer.finish()


def test_sequence_whose_logits_are_not_finite_is_a_failure_and_the_others_are_rows(network, items, tmp_path):
    real, calls = network.explain, []

    def explain(image, **others):
        logits, weights, prefixes = real(image, **others)
        calls.append(len(image))
        return (logits * torch.nan if len(calls) == 2 else logits), weights, prefixes

    network.explain = explain
    writer = run(network, items, tmp_path / "out")
    assert [row[IMAGE] for row in writer.rows] == ["0.dcm", "2.dcm"]
    assert calls == [1, 1, 1]
    with pytest.raises(RunFailedError, match=r"1\.dcm: probabilities is not finite"):
        writer.finish()


def test_running_again_starts_with_no_rows_of_the_run_before(network, items, tmp_path):
    first = run(network, items, tmp_path / "out")
    assert [row[IMAGE] for row in first.rows] == ["0.dcm", "1.dcm", "2.dcm"]
    run(network, items[:1], tmp_path / "out")
    assert len(written(tmp_path / "out")[1]["predictions"]) == 1


def test_encoder_takes_no_more_frames_at_once_than_its_chunk(network, items, tmp_path):
    seen: list[int] = []
    network.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    run(network, items, tmp_path / "out")
    assert max(seen) == 2
    assert sum(seen) == 1 + 2 + 3


def test_forward_pass_is_in_evaluation_mode_and_needs_no_gradients(network, items):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[collate_sequences([PREPROCESSING(item) for item in items])],
        network=network.train(),
        prepare_batch=prepare_batch,
        iteration_update=predict_sequences,
        decollate=False,
    )
    evaluator.run()
    output, batch = evaluator.state.output, evaluator.state.batch
    assert output.keys() == {PRED, FRAME_WEIGHTS, PREFIX_LOGITS}
    assert not output[PRED].requires_grad
    with torch.inference_mode():
        wanted = network.eval()(batch[IMAGE], batch[LENGTHS], batch[FRAME_TIMES])
    torch.testing.assert_close(output[PRED], wanted)
