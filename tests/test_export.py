"""The exported folder: a store that trains the same model, names nobody, and says what it is."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from scripts.curation.export import export_store
from scripts.curation.overview import store_info
from scripts.curation.verification import verify_store
from scripts.datalists.datalist import all_items, is_synthetic, labelled_split, read_datalist, read_task
from scripts.features.batching import FeatureDataset
from scripts.features.entries import entry_key, pass_key
from scripts.keys import FEATURES, FRAME_TIMES, LABEL, PATIENT, SEQUENCE, SPLITS
from scripts.store.store import FeatureStore
from tests.conftest import PERSON, assert_message, assert_no_person
from tests.exams import write_exam
from tests.stores import FINGERPRINT, assert_equal, fill, flip, key_of, sequence_of

LICENCE = "CC BY 4.0"
NUM_EXAMS = 9
SETTINGS = {
    "encoder_name": "hf-hub:timm/vit_tiny",
    "encoder_weights": "/home/Quarzel/Krombholz Hospital/weights.pth",
    "image_size": 112,
    "lookup": "C:\\Users\\Ottilde\\table.csv",
}


@pytest.fixture
def exams(tmp_path) -> Path:
    """Nine exams of five patients in files and a list that name them, with a label and a split each."""
    folder = tmp_path / "Krombholz Hospital"
    content = {split: [] for split in SPLITS}
    for number in range(NUM_EXAMS):
        path = write_exam(folder / f"{PERSON['PatientName']} {PERSON['PatientID']}" / f"{number}.dcm", seed=number)
        content[SPLITS[number % 5 % 3]].append(
            {
                "image": str(path.relative_to(folder)),
                "label": number % 2,
                "patient": f"{PERSON['PatientName']} {number % 5}",
                "sequence": f"{PERSON['PatientBirthDate']} {PERSON['PatientID']} {number}",
                "comment": PERSON["StudyDescription"],
            }
        )
    task = {"type": "binary", "classes": ["no leak", "leak"], "doctor": PERSON["ReferringPhysicianName"]}
    listed = {**content, "task": task, "synthetic": True, "site": PERSON["InstitutionName"]}
    (folder / "datalist.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture
def store(exams, tmp_path) -> Path:
    """The features of the exams, two augmented passes of each, and five sequences of nobody in the list."""
    folder = tmp_path / "features"
    with FeatureStore.create(folder, FINGERPRINT, SETTINGS, {"python": "3"}).writer() as writer:
        for number, item in enumerate(all_items(exams / "datalist.json", exams)):
            for augmented in range(3):
                writer.add(pass_key(entry_key(item), augmented), sequence_of(10 * number + augmented))
                writer.flush()
    fill(FeatureStore.open(folder), range(200, 205))
    return folder


def export(store: Path, output: Path, exams: Path | None = None, **more: object) -> str:
    return export_store(
        store, output, **{"licence": LICENCE, "datalist": exams and exams / "datalist.json", "progress": False} | more
    )


def test_training_reads_the_same_from_an_export_as_from_its_source(store, exams, tmp_path):
    out = tmp_path / "out"
    export(store, out, exams)
    assert read_task(out / "datalist.json", out) == read_task(exams / "datalist.json", exams)
    compared = 0
    for split in SPLITS:
        theirs = FeatureDataset(labelled_split(out / "datalist.json", out, split), FeatureStore.open(out))
        ours = FeatureDataset(labelled_split(exams / "datalist.json", exams, split), FeatureStore.open(store))
        found = {key: theirs[n] for n, key in enumerate(theirs.keys)}
        wanted = {key: ours[n] for n, key in enumerate(ours.keys)}
        assert found.keys() == wanted.keys()
        for key, item in wanted.items():
            assert found[key][LABEL] == item[LABEL]
            for name in (FEATURES, FRAME_TIMES):
                assert found[key][name].numpy().tobytes() == item[name].numpy().tobytes()
            compared += 1
    assert compared == NUM_EXAMS


def test_export_holds_the_exams_of_its_list_with_their_passes_and_no_other(store, exams, tmp_path):
    export(store, tmp_path / "out", exams)
    keys = [entry_key(item) for item in all_items(exams / "datalist.json", exams)]
    exported = FeatureStore.open(tmp_path / "out")
    assert set(exported.keys()) == {pass_key(key, number) for key in keys for number in range(3)}
    for number, key in enumerate(keys):
        assert_equal(exported.read(pass_key(key, 2)), sequence_of(10 * number + 2))


def test_export_without_a_list_holds_every_sequence_and_no_label(store, tmp_path):
    export(store, tmp_path / "out")
    assert set(FeatureStore.open(tmp_path / "out").keys()) == set(FeatureStore.open(store).keys())
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert "There are no labels here" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("with_list", [True, False])
def test_no_byte_of_an_export_names_a_person_a_place_or_a_file(store, exams, tmp_path, with_list):
    out = tmp_path / "out"
    export(store, out, exams if with_list else None)
    files = list(out.iterdir())
    assert len(files) == (6 if with_list else 5)
    for file in files:
        content = file.read_bytes().decode("latin-1")
        assert_no_person(file.name, content)
        for hint in (str(tmp_path), "/home", "Users", ".dcm", "comment", "doctor"):
            assert hint not in content


def test_export_keeps_patients_together_and_apart_under_new_names_that_follow_no_order(store, exams, tmp_path):
    export(store, tmp_path / "out", exams)
    theirs = read_datalist(tmp_path / "out" / "datalist.json", tmp_path / "out")
    ours = read_datalist(exams / "datalist.json", exams)
    names: dict[str, set[str]] = {}
    for split in SPLITS:
        by_key = {entry_key(item): item for item in ours[split]}
        assert sorted(by_key) == [item["entry"] for item in theirs[split]]  # nothing of the list's own order
        for item in theirs[split]:
            names.setdefault(by_key[item["entry"]][PATIENT], set()).add(item[PATIENT])
    assert sorted(name for found in names.values() for name in found) == [f"P{n:04d}" for n in range(1, 6)]
    sequences = sorted(item[SEQUENCE] for split in SPLITS for item in theirs[split])
    assert sequences == [f"S{n:05d}" for n in range(1, NUM_EXAMS + 1)]


def test_export_says_what_it_is_and_every_file_can_be_checked(store, exams, tmp_path):
    out = tmp_path / "out"
    said = export(store, out, exams)
    manifest = json.loads((out / "manifest.json").read_text())
    frames = sum(len(sequence_of(10 * n + p).features) for n in range(NUM_EXAMS) for p in range(3))
    wanted = {"licence": LICENCE, "synthetic": True, "sequences": 27, "frames": frames, "labelled": NUM_EXAMS}
    assert {name: manifest[name] for name in wanted} == wanted
    assert manifest["fingerprint_digest"] == FeatureStore.open(store).digest
    assert re.fullmatch(r"\d+\.\d+\.\d+", manifest["bundle_version"])
    assert "(T, 8) float16" in manifest["tensors"]["features"]
    assert set(manifest["tensors"]) == {
        "keys", "digests", "lengths", "features", "frame_times_ms", "frame_indices",
    }  # fmt: skip
    readme = (out / "README.md").read_text()
    for part in (LICENCE, "synthetic", "27 sequences", "configs/train.yaml", "weights.pth", "What is not in it"):
        assert part in readme
    assert is_synthetic(out / "datalist.json")
    assert "27 sequences" in said
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True, capture_output=True)
    summed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert summed == {file.name for file in out.iterdir()} - {"SHA256SUMS"}


def test_export_is_a_store_for_every_command(store, exams, tmp_path):
    export(store, tmp_path / "out", exams)
    assert store_info(tmp_path / "out", progress=False)[1]
    assert verify_store(tmp_path / "out", progress=False)[1]
    export(tmp_path / "out", tmp_path / "again", tmp_path / "out")
    assert (tmp_path / "again" / "datalist.json").read_bytes() == (tmp_path / "out" / "datalist.json").read_bytes()


def test_list_and_descriptions_of_an_export_made_twice_are_the_same_bytes(store, exams, tmp_path):
    for name in ("one", "two"):
        export(store, tmp_path / name, exams)
    for name in ("datalist.json", "manifest.json", "README.md", "fingerprint.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_paths_in_settings_become_file_names_and_names_of_models_stay(store, tmp_path):
    export(store, tmp_path / "out")
    wanted = {**SETTINGS, "encoder_weights": "weights.pth", "lookup": "table.csv"}
    assert FeatureStore.open(tmp_path / "out").settings == wanted


@pytest.mark.parametrize(
    "name", ["/home/me/table.npy", "local-dir:models/me", "file:/home/me", "C:\\me\\table.npy", "../me", "~/me"]
)
def test_path_in_the_fingerprint_itself_is_refused(tmp_path, name):
    fill(FeatureStore.create(tmp_path / "features", {**FINGERPRINT, "steps": [{"table": name}]}), range(2))
    with pytest.raises(ValueError, match="no path") as error:
        export(tmp_path / "features", tmp_path / "out")
    assert_message(error.value, "fingerprint.json", "steps.0.table")
    assert not (tmp_path / "out").exists()


# --- refusals ---


@pytest.mark.parametrize("licence", ["", "  ", True, "CC0\n# Heading", "CC0\x1b[31m"])
def test_export_without_a_licence_of_one_line_is_refused(store, tmp_path, licence):
    with pytest.raises(ValueError, match="licence") as error:
        export(store, tmp_path / "out", licence=licence)
    assert_message(error.value, "licence")
    assert not (tmp_path / "out").exists()


def test_export_into_a_folder_with_content_is_refused(store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for output in (tmp_path / "out", store, tmp_path / "out" / "notes.txt"):
        with pytest.raises(ValueError, match="a new or empty folder") as error:
            export(store, output)
        assert_message(error.value, output, "output")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_exam_without_features_is_refused_or_left_out_on_request(store, exams, tmp_path):
    listed = json.loads((exams / "datalist.json").read_text())
    write_exam(exams / "new.dcm", seed=77)
    listed["training"] += [{"image": "new.dcm", "label": 1}, {"image": "gone.dcm", "label": 0}]
    (exams / "datalist.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="--skip_missing") as error:
        export(store, tmp_path / "out", exams)
    assert_message(error.value, store, "without 2 of 11 exams, first new.dcm")
    assert not (tmp_path / "out").exists()
    said = export(store, tmp_path / "out", exams, skip_missing=True)
    assert "2 exams left out" in said
    assert len(all_entries(tmp_path / "out")) == NUM_EXAMS


def test_copy_of_an_exam_is_exported_once_and_refused_with_another_label(store, exams, tmp_path):
    listed = json.loads((exams / "datalist.json").read_text())
    first = listed["training"][0]
    (exams / "copy.dcm").write_bytes((exams / first["image"]).read_bytes())
    for label in (first["label"], 1 - first["label"]):
        more = {**first, "image": "copy.dcm", "sequence": "copy", "label": label}
        (exams / "datalist.json").write_text(json.dumps({**listed, "training": [*listed["training"], more]}))
        if label == first["label"]:
            assert "1 exam left out whose content is in the list twice" in export(store, tmp_path / "out", exams)
            assert len(all_entries(tmp_path / "out")) == NUM_EXAMS
        else:
            with pytest.raises(ValueError, match="another label") as error:
                export(store, tmp_path / "other", exams)
            assert_message(error.value, "copy.dcm", "content")


@pytest.mark.parametrize("existed", [True, False])
def test_export_of_a_damaged_store_is_refused_and_leaves_nothing(store, tmp_path, existed):
    wanted = sequence_of(200).features.numpy().tobytes()
    path = next(path for path in store.glob("*.safetensors") if wanted in path.read_bytes())
    flip(path, path.read_bytes().find(wanted))
    if existed:
        (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="store prune"):
        export(store, tmp_path / "out")
    assert (tmp_path / "out").exists() == existed
    assert not existed or not list((tmp_path / "out").iterdir())


def test_damage_to_what_is_not_exported_does_not_matter(store, exams, tmp_path):
    wanted = sequence_of(200).features.numpy().tobytes()
    path = next(path for path in store.glob("*.safetensors") if wanted in path.read_bytes())
    flip(path, path.read_bytes().find(wanted))
    export(store, tmp_path / "out", exams)
    assert key_of(200) not in FeatureStore.open(tmp_path / "out")


def all_entries(folder: Path) -> list[dict]:
    content = read_datalist(folder / "datalist.json", folder)
    return [item for split in SPLITS for item in content[split]]
