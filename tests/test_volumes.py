"""Volumes over time: NIfTI -> (T, 1, S, S, S) in one orientation -> features, a trained model, a plan."""

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import create_workflow

from scripts.curation.recomputation import set_up
from scripts.datalists.collect import make_datalist
from scripts.errors import SequenceError
from scripts.keys import SPLITS
from scripts.memory import checkpointing
from scripts.memory.subjects import config_workload, named_workload
from scripts.networks.classifier import SequenceClassifier
from scripts.networks.encoder import check_image_size, make_encoder
from scripts.networks.heads import make_head
from scripts.networks.volume_encoder import FORMS
from scripts.networks.weights import load_into
from scripts.overrides import our_error
from scripts.sequences import nifti
from scripts.sequences.transforms import LoadSequenced
from scripts.sequences.volumes import LoadVolumesd, ToVolumeInputd, fit_cube, make_augmentation
from scripts.store.origin import read_origin
from scripts.store.store import FeatureStore
from tests.conftest import assert_message
from tests.runs import ROOT

SWIN = "monai.networks.nets.swin_unetr.SwinTransformer"
RESNET = "monai.networks.nets.resnet10"
RAS = np.diag([2.0, 2.0, 4.0, 1.0])  # voxels of 2 x 2 x 4 mm
LPS = np.diag([-2.0, -2.0, 4.0, 1.0])
SAGITTAL = np.array([[0, 0, 2.0, 0], [2.0, 0, 0, 0], [0, -4.0, 0, 0], [0, 0, 0, 1.0]])  # axes: front, down, right
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")  # MONAI 1.6.1: configs run code


def save(path: Path, values: np.ndarray, affine: np.ndarray = RAS, step: float = 0.5, **header: Any) -> Path:
    """Values as X, Y, Z or X, Y, Z, T."""
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    if values.ndim == 4:
        image.header["pixdim"][4] = step
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def corner(shape: tuple[int, ...] = (16, 16, 8)) -> np.ndarray:
    """Bright where x, y and z of RAS are large, less so with each time: (X, Y, Z, 3)."""
    volume = np.zeros((*shape, 3), np.int16)
    volume[shape[0] // 2 :, shape[1] // 2 :, shape[2] // 2 :] = (900, 600, 300)
    return volume


def as_stored(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A volume of RAS, as a file with that affine holds it."""
    turns = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(RAS), nibabel.orientations.io_orientation(affine)
    )
    return nibabel.orientations.apply_orientation(volume, turns)


def read(source: Any, **options: Any) -> dict[str, Any]:
    item = {"image": source, **{key: options.pop(key) for key in ("frames", "frame_times_ms") if key in options}}
    return LoadVolumesd(**{"image_size": 16, **options})(item)


# --- reading ---


@pytest.mark.parametrize("affine", [RAS, LPS, SAGITTAL])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_voxel_is_at_its_place_in_ras_however_the_file_holds_it(tmp_path, affine, name):
    found = read(save(tmp_path / name, as_stored(corner(), affine), affine))
    assert found["image"].shape == (3, 16, 16, 16) and found["image"].dtype == torch.float32
    for time, value in enumerate((900, 600, 300)):  # 16 x 16 x 8 voxels of 2 x 2 x 4 mm are a cube
        np.testing.assert_allclose(found["image"][time, 12:, 12:, 12:], value, rtol=0.01)
        np.testing.assert_allclose(found["image"][time, :4], 0, atol=1)
        np.testing.assert_allclose(found["image"][time, :, :4], 0, atol=1)
        np.testing.assert_allclose(found["image"][time, :, :, :4], 0, atol=1)
    assert found["frame_times_ms"].tolist() == [0.0, 500.0, 1000.0]


def test_proportions_in_mm_are_kept_and_the_rest_is_the_darkest_value():
    volume = torch.full((20, 10, 4), 7.0)
    volume[0, 0, 0] = 5.0
    cube = fit_cube(volume, (1.0, 1.0, 2.5), 40)  # 20 x 10 x 10 mm
    assert cube.shape == (40, 40, 40)
    filled = (cube > 6).nonzero()
    assert filled.amin(0)[1:].tolist() == [10, 10] and filled.amax(0).tolist() == [39, 29, 29]
    assert cube[0, 0, 0] == 5.0


def test_visits_of_one_patient_are_a_list_of_volumes_with_times_of_the_list(tmp_path):
    volume = corner()
    files = [str(save(tmp_path / f"{n}.nii.gz", volume[..., n])) for n in range(3)]
    files[1] = str(save(tmp_path / "other.nii.gz", as_stored(corner((20, 20, 10))[..., 1], LPS), LPS))  # another matrix
    days = [0.0, 30 * 86.4e6, 365 * 86.4e6]
    found = read(files, frame_times_ms=days)
    assert found["frame_times_ms"].tolist() == pytest.approx(days)
    for time, value in enumerate((900, 600, 300)):
        np.testing.assert_allclose(found["image"][time, 12:, 12:, 12:], value, rtol=0.01)
    unknown = read(files)["frame_times_ms"]
    assert unknown[0] == 0 and unknown[1:].isnan().all()
    np.testing.assert_array_equal(read(files, frames=[1])["image"][0], found["image"][1])


def test_only_what_is_chosen_is_read_and_one_volume_at_a_time(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii.gz", np.arange(12, dtype=np.int16) * np.ones((8, 8, 4, 1), np.int16))
    opened, original = [], nifti._opened
    monkeypatch.setattr(nifti, "_opened", lambda path: opened.append(path) or original(path))
    found = read(path, max_frames=4)
    assert found["frame_indices"].tolist() == [0, 4, 7, 11] and found["image"].amax((1, 2, 3)).tolist() == [0, 4, 7, 11]
    assert len(opened) == 4  # three times for the header, once for all values
    assert read(path, frame_choice="last", max_frames=2)["frame_indices"].tolist() == [10, 11]


def test_a_file_without_any_place_is_taken_as_its_voxels_lie(tmp_path):
    path = save(tmp_path / "a.nii", corner())
    content = path.read_bytes()
    path.write_bytes(content[:252] + bytes(76) + content[328:])  # qform_code to srow_z
    found = read(path)["image"][0]
    assert found[12:, 12:, 10].min() == pytest.approx(900, rel=0.01) and found[:4].max() < 1


@pytest.mark.parametrize(
    ("shape", "patch", "message"),
    [
        ((8, 8, 1, 5), {}, "dim is 8 x 8 x 1 x 5, needs X x Y x Z x T, or X x Y x Z, of more than one slice."),
        ((8, 8, 4, 2, 3), {}, "dim is 8 x 8 x 4 x 2 x 3, needs X x Y x Z x T"),
        ((8, 8, 4, 2), {"dim": [4, 8, 8, 4, 30000, 1, 1, 1]}, "decoded size is"),
        ((8, 8, 4, 2), {"srow_x": [np.nan] * 4}, "affine is"),
        ((8, 8, 4, 2), {"srow_x": [0, 2.0, 0, 0]}, "affine is"),
    ],
)
def test_what_holds_no_volumes_is_refused_before_anything_is_allocated(tmp_path, shape, patch, message):
    path = save(tmp_path / "a.nii", np.zeros(shape, np.int16))
    header = nibabel.load(path).header.copy()
    header["vox_offset"] = 352
    for name, value in patch.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    with pytest.raises(SequenceError) as refused:
        read(path, max_sequence_bytes=2**20)
    assert_message(refused.value, str(path), message)


def test_files_of_a_list_hold_one_volume_each_and_fit_together(tmp_path):
    one, many = save(tmp_path / "1.nii", corner()[..., 0]), save(tmp_path / "3.nii", corner())
    with pytest.raises(SequenceError) as refused:
        read([one, many])
    assert_message(refused.value, "3.nii: volumes is 3 volumes, needs one, in a list of files")
    with pytest.raises(SequenceError) as refused:
        read([one, one, one], max_sequence_bytes=20_000)  # 8,192 each as float32
    assert_message(refused.value, "decoded size is")


def test_a_volume_is_no_run_of_pictures_and_the_message_says_what_takes_it(tmp_path):
    with pytest.raises(SequenceError) as refused:
        LoadSequenced()({"image": save(tmp_path / "a.nii", corner())})
    assert_message(refused.value, "dim is 16 x 16 x 8 x 3", "give configs/volumes.yaml too")


def test_settings_that_volumes_do_not_have_are_refused_before_the_first_exam():
    for make, message in (
        (lambda: LoadVolumesd(frame_choice="contrast"), "frame_choice is contrast, needs one by time"),
        (lambda: ToVolumeInputd(pixel_mean=[0.1, 0.2, 0.3]), "needs one number, for volumes"),
        (lambda: make_encoder(SWIN, "token"), "pooling is token, needs one of avg"),
        (lambda: make_encoder(SWIN, layers=2), "layers is 2, needs 1"),
        (
            lambda: make_encoder("monai.networks.nets.UNet"),
            f"encoder_name is monai.networks.nets.UNet, needs one of {RESNET}",
        ),
        (lambda: check_image_size(make_encoder(RESNET), 31), "image_size is 31, needs a whole number of at least 32"),
        (lambda: load_into(make_encoder(RESNET), "timm", "models"), "encoder_weights is timm, needs random:SEED"),
    ):
        with pytest.raises(ValueError) as refused:
            make()
        assert_message(refused.value, message)


def test_augmentation_moves_all_times_alike_and_keeps_the_range():
    still = torch.rand(1, 20, 20, 20).expand(4, -1, -1, -1).clone()
    changed = make_augmentation().set_random_state(seed=3)({"image": still})["image"]
    assert type(changed) is torch.Tensor and changed.shape == still.shape
    assert not torch.allclose(changed[0], still[0])
    for volume in changed[1:]:
        torch.testing.assert_close(volume, changed[0])
    assert changed.min() >= 0 and changed.max() <= 1


# --- networks ---


@pytest.mark.parametrize("name", FORMS)
def test_features_of_a_volume_have_the_width_that_is_stated(name):
    encoder = make_encoder(name).eval()
    with torch.inference_mode():
        assert encoder(torch.rand(1, 1, 32, 32, 32)).shape == (1, encoder.num_features)
    with pytest.raises(ValueError, match=r"needs volumes \(N, 1, X, Y, Z\)"):
        encoder(torch.rand(1, 3, 32, 32))


def gradients(strategy: dict[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    network = SequenceClassifier(make_encoder(SWIN), make_head("gru", 768, 2, hidden_size=8, dropout=0.0)).train()
    checkpointing.apply(network, strategy)
    network(torch.rand(1, 2, 1, 32, 32, 32), torch.tensor([2])).square().sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.fixture(scope="module")
def plain_gradients() -> list[torch.Tensor]:
    return gradients({"kind": "none"})


@pytest.mark.parametrize("strategy", [{"kind": "blocks"}, {"kind": "selective"}, {"kind": "chunks", "frames": 1}])
def test_a_classifier_of_volumes_is_chunked_and_checkpointed_to_the_same_gradients(plain_gradients, strategy):
    found = gradients(strategy)
    assert len(found) == len(plain_gradients) > 100
    for ours, plain in zip(found, plain_gradients, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm() + 1e-9


def test_volumes_over_time_are_planned_for_as_frames_are():
    workload = named_workload(SWIN, "2,6,1,32,32,32")
    assert (workload.shape, workload.batch_size) == ((6, 1, 32, 32, 32), 2)
    assert isinstance(workload.make_network(), SequenceClassifier)
    with pytest.raises(ValueError) as refused:
        named_workload(SWIN, "2,6,3,32,32,32")
    assert_message(refused.value, "needs B,T,1,D,H,W for an encoder of volumes")
    files = [str(ROOT / "configs" / f"{name}.yaml") for name in ("finetune", "volumes")]
    given = {"start_from": "scratch", "encoder_name": SWIN, "image_size": 32, "max_frames": 3, "batch_size": 2}
    assert config_workload(files, given).workload.shape == (3, 1, 32, 32, 32)


# --- the whole way ---


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Twelve synthetic studies: in one class a ball fills over time, in the other it empties."""
    root = tmp_path_factory.mktemp("volumes")
    draw = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.arange(side) for side in (12, 14, 8)], indexing="ij")
    ball = np.hypot(np.hypot(x - 6, y - 7), 2 * (z - 4)) < 4
    rows = ["image,label,patient"]
    for number in range(12):
        filling = np.linspace(0, 900, 3 + number % 2)[:: 1 if number % 4 < 2 else -1]
        values = ball[..., None] * filling + draw.normal(100, 20, (*ball.shape, len(filling)))
        save(root / f"{number}.nii.gz", values.astype(np.int16), LPS)
        rows.append(f"{number}.nii.gz,{'fills' if number % 4 < 2 else 'empties'},P{number}")
    (root / "labels.csv").write_text("\n".join(rows))
    make_datalist(root, root / "labels.csv", num_folds=3, synthetic=True)
    folders = {"dataset_dir": str(root), "output_dir": str(root / "output"), "models_dir": str(root / "models")}
    options = {**folders, "encoder_name": RESNET, "encoder_weights": "random:0", "image_size": 32}
    run("infer", "cache_features", **options)
    run("train", "train", overlay=False, **folders, model_path=str(root / "model.pt"), max_epochs=2, batch_size=4)
    return folders


def run(kind: str, name: str, overlay: bool = True, **overrides: Any) -> None:
    files = [str(ROOT / "configs" / f"{part}.yaml") for part in ((name, "volumes") if overlay else (name,))]
    quick = {"device": "cpu", "progress": False, "bundle_root": str(ROOT), "logging_file": False}
    workflow = create_workflow(workflow_type=kind, config_file=files, **quick, **overrides)
    workflow.run()
    workflow.finalize()


def test_cached_features_of_volumes_train_a_model_that_predicts_and_are_recomputed_alike(places):
    root = Path(places["dataset_dir"])
    store = FeatureStore.open(root / "output" / "features")
    assert len(store) == 12 and store.settings["encoder_name"] == RESNET
    again = set_up(store.path, read_origin(store.path), root / "models")
    item = {"image": root / "5.nii.gz", "source": "5.nii.gz"}
    assert again.preprocessing(item)["image"].shape == (4, 1, 32, 32, 32)
    run(
        "infer",
        "inference",
        dataset_dir=str(root),
        model_path=str(root / "model.pt"),
        output_dir=str(root / "predicted"),
    )
    with (root / "predicted" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and {row["predicted"] for row in rows} <= {"fills", "empties"}
    assert {row["num_frames"] for row in rows} == {"3", "4"}


def test_the_encoder_of_volumes_is_trained_with_its_head(places, tmp_path):
    options = {**places, "start_from": "scratch", "encoder_name": SWIN, "encoder_weights": "random:0", "image_size": 32}
    options |= {"max_epochs": 1, "batch_size": 2, "accumulation_steps": 2, "max_frames": 2, "trainable_blocks": 1}
    options |= {"model_path": str(tmp_path / "model.pt"), "checkpointing": "blocks"}
    content = json.loads((Path(places["dataset_dir"]) / "datalist.json").read_text())
    few = {name: part[:4] if name == "training" else part[:2] for name, part in content.items() if name in SPLITS}
    (tmp_path / "few.json").write_text(json.dumps(content | few))
    options["datalist"] = str(tmp_path / "few.json")
    run("train", "finetune", **options)
    card = json.loads((tmp_path / "model.json").read_text())
    assert (card["encoder_name"], card["image_size"], card["checkpointing"]) == (
        SWIN,
        32,
        {"kind": "blocks", "every": 1},
    )
    before, after = make_encoder(SWIN), torch.load(tmp_path / "model.pt", weights_only=True)
    load_into(before, "random:0", "models")
    changed = {
        name.split(".")[0]
        for name, tensor in before.backbone.state_dict().items()
        if not torch.equal(tensor, after[f"encoder.backbone.{name}"])
    }
    assert changed == {"layers4"}


def test_an_encoder_that_normalises_over_the_batch_is_cached_but_not_trained(places, tmp_path):
    options = {
        **places,
        "start_from": str(Path(places["dataset_dir"]) / "model.pt"),
        "model_path": str(tmp_path / "m.pt"),
    }
    with pytest.raises(RuntimeError) as refused:
        run("train", "finetune", **options)
    error = our_error(refused.value)
    assert error is not None
    assert_message(error, f"encoder {RESNET}: normalisation is BatchNorm")
