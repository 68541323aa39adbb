"""One bad exam becomes its source and an error; the others, and programming errors, come through."""

import pytest
import torch
from monai.data import DataLoader
from monai.transforms import Compose, Lambdad

from scripts.errors import RunFailedError, SequenceError
from scripts.keys import ERROR, FRAME_TIMES, FRAMES, IMAGE, SOURCE
from scripts.sequences.dataset import SequenceDataset, refuse_failures, relative_message
from scripts.sequences.transforms import LoadSequenced, ResizeFramesd, ToEncoderInputd, WindowSequenced
from tests.conftest import PERSON, assert_message, assert_no_person, ramp


def transform() -> Compose:
    return Compose([LoadSequenced(), WindowSequenced(), ResizeFramesd(image_size=14), ToEncoderInputd()])


@pytest.fixture
def exams(save, tmp_path) -> list[dict]:
    """Five items of which the odd ones cannot be read."""
    save("good.dcm", **PERSON)
    save("bad.dcm", **PERSON, NumberOfFrames=7)
    save("flat.dcm", ramp() * 0, **PERSON)
    (tmp_path / "empty").mkdir()
    names = ["good.dcm", "bad.dcm", "good.dcm", "absent.dcm", "good.dcm", "empty", "good.dcm", "flat.dcm"]
    return [{IMAGE: tmp_path / name, SOURCE: name} for name in names]


def test_dataset_gives_bad_exams_as_source_and_error_and_the_others_as_read(exams):
    items = list(SequenceDataset(exams, transform()))
    assert len(items) == len(exams) == 8
    good = LoadSequenced()(exams[0])
    for item, exam in zip(items[::2], exams[::2], strict=True):
        assert item[SOURCE] == exam[SOURCE] == "good.dcm"
        assert item[IMAGE].shape == (4, 3, 14, 14)
        torch.testing.assert_close(item[FRAME_TIMES], good[FRAME_TIMES], equal_nan=True)
    for item, exam in zip(items[1::2], exams[1::2], strict=True):
        assert set(item) == {SOURCE, ERROR}
        assert item[SOURCE] == exam[SOURCE]
        assert item[ERROR].startswith(exam[SOURCE])
        assert_message(SequenceError(item[ERROR]), exam[SOURCE])


def test_dataset_errors_name_items_as_the_datalist_does_and_no_person(exams, tmp_path):
    errors = [item[ERROR] for item in SequenceDataset(exams, transform()) if ERROR in item]
    assert len(errors) == 4
    for error in errors:
        assert str(tmp_path) not in error
    assert_no_person(errors)


def test_dataset_error_of_a_file_in_a_folder_names_folder_and_file(save, tmp_path):
    save("exam/1.dcm", ramp(1), InstanceNumber=1)
    save("exam/2.dcm", ramp(1), InstanceNumber=2, BitsAllocated=32)
    item = SequenceDataset([{IMAGE: tmp_path / "exam", SOURCE: "exam"}], transform())[0]
    assert item[ERROR].startswith("exam/2.dcm: ")


def test_dataset_error_of_a_list_of_files_names_no_absolute_path(save, tmp_path):
    paths = [save(f"exam/{n}.dcm", ramp(1, 12, 8 + n), InstanceNumber=n) for n in (1, 2)]
    item = SequenceDataset([{IMAGE: paths, SOURCE: "exam/1.dcm (+1 files)"}], transform())[0]
    assert "Columns of 2.dcm" in item[ERROR]
    assert str(tmp_path) not in item[ERROR]


@pytest.mark.parametrize("entry", [{FRAMES: 5}, {FRAMES: [0, [1]]}, {FRAME_TIMES: 33.3}])
def test_dataset_of_a_nonsense_frames_entry_marks_this_exam_only(save, entry):
    path = save()
    dataset = SequenceDataset([{IMAGE: path, SOURCE: "a", **entry}, {IMAGE: path, SOURCE: "b"}], transform())
    assert dataset[1][IMAGE].shape == (4, 3, 14, 14)
    assert set(dataset[0]) == {SOURCE, ERROR}


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("error", [TypeError, KeyError, AttributeError, ValueError, ZeroDivisionError])
def test_dataset_lets_programming_errors_out(exams, error, wrapped):
    def broken(value: object) -> object:
        raise error("a mistake of ours")

    step = Lambdad(IMAGE, broken)
    dataset = SequenceDataset(exams, Compose([LoadSequenced(), step]) if wrapped else step)
    with pytest.raises((RuntimeError, error)) as raised:
        dataset[0]
    causes, cause = [], raised.value
    while cause is not None:
        causes.append(type(cause))
        cause = cause.__cause__
    assert error in causes


def test_dataset_lets_a_runtime_error_of_the_network_library_out(exams):
    dataset = SequenceDataset(exams, Compose([LoadSequenced(), Lambdad(IMAGE, lambda x: x @ torch.ones(99))]))
    with pytest.raises(RuntimeError):
        dataset[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_dataset_read_by_a_loader_marks_the_same_exams(exams, num_workers):
    loader = DataLoader(
        SequenceDataset(exams, transform()), batch_size=1, num_workers=num_workers, collate_fn=lambda b: b[0]
    )
    assert [ERROR in item for item in loader] == [False, True] * 4


def test_relative_message_names_the_source_once(tmp_path):
    path = tmp_path / "a" / "run.dcm"
    item = {IMAGE: path, SOURCE: "a/run.dcm"}
    told = relative_message(SequenceError(f"{path}: Rows is absent, needs at least 1."), item)
    assert told == "a/run.dcm: Rows is absent, needs at least 1."
    told = relative_message(SequenceError("sequence: pixel values is all 0, needs two."), item)
    assert told == "a/run.dcm: sequence: pixel values is all 0, needs two."


def test_refuse_failures_lists_each_failure_and_counts():
    failures = [{SOURCE: name, ERROR: f"{name}: Rows is absent, needs at least 1."} for name in "ab"]
    with pytest.raises(RunFailedError) as refused:
        refuse_failures(failures, 9, "cache_features")
    text = str(refused.value)
    assert text.startswith("cache_features: 2 of 9 exams")
    assert [line.strip() for line in text.splitlines()[1:]] == [failure[ERROR] for failure in failures]


def test_refuse_failures_of_none_says_nothing():
    assert refuse_failures([], 9, "cache_features") is None
