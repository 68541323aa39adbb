"""Store and datalist -> a folder that others train from without an image: features, labels, pseudonyms, a manifest.

The folder is itself a store. Nothing in it names a person, a file or a place.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.curation.lookup import exam_keys, with_passes
from scripts.curation.merging import copy_entries
from scripts.curation.overview import Contents, read_contents, readable_bytes, repair_command
from scripts.curation.readme import readme
from scripts.datalists.datalist import Task, is_synthetic, read_datalist
from scripts.errors import bad_value
from scripts.keys import (
    CLASSES,
    ENTRY,
    FEATURES,
    FRAME_INDICES,
    FRAME_TIMES,
    LABEL,
    LENGTHS,
    PATIENT,
    SEQUENCE,
    SOURCE,
    SPLITS,
    SYNTHETIC,
    TASK,
    TYPE,
)
from scripts.pages import counted
from scripts.store.origin import FINGERPRINT_FILE, Origin, read_origin
from scripts.store.shards import FORMAT_VERSION
from scripts.store.store import FeatureStore
from scripts.writing import write_file

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
MANIFEST_FILE, README_FILE, DATALIST_FILE, SUMS_FILE = "manifest.json", "README.md", "datalist.json", "SHA256SUMS"
_PLACE = re.compile(r"(^|[:=])([A-Za-z]:)?[\\/~]|\\|^\.\.?/|^local-dir:")  # a folder of a machine, in a text


def export_store(
    path: str | Path,
    output: str | Path,
    licence: str,
    datalist: str | Path | None = None,
    dataset_dir: str | Path | None = None,
    synthetic: bool = False,
    skip_missing: bool = False,
    progress: bool = True,
) -> str:
    """Write the folder; returns what is in it, in words. What was begun is removed if anything fails.

    Args:
        path: of the store.
        output: a new or empty folder.
        licence: under which others may use the features.
        datalist: its exams alone are exported, with their labels and splits; None exports every sequence, no label.
        dataset_dir: what the list's paths are relative to; its own folder if not given.
        synthetic: the exams were made by a program; a datalist that says so is believed.
        skip_missing: leave out exams that the store does not have.
        progress: show progress bars.

    Raises:
        FileNotFoundError, ValueError: no store, no licence, an output that is not empty, an exam without features, a
            damaged entry, or a fingerprint that names a folder.
    """
    folder, out = Path(path), Path(output)
    licence = "" if isinstance(licence, bool) else str(licence).strip()
    if not licence.isprintable() or not licence:
        allowed = "in one line the licence under which others may use the features"
        raise ValueError(bad_value("configuration", "licence", licence, allowed, 'Such as --licence "CC BY 4.0".'))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(bad_value(out, "output", "not empty", "a new or empty folder"))
    origin = _without_places(folder, read_origin(folder))
    store = FeatureStore.open(folder)
    listed, wanted = None, None
    said: list[str] = []
    if datalist is not None:
        content = read_datalist(datalist, Path(datalist).parent if dataset_dir is None else dataset_dir)
        synthetic = synthetic or is_synthetic(datalist)
        kept, said = _stored_items(store, content, skip_missing, progress)
        passes = with_passes([key for key, _, _ in kept], lambda keys: store.find(keys) >= 0)
        wanted = [key for stored in passes for key in stored]
        listed = _pseudonymous(kept, content.get(TASK), synthetic)
    made = not out.exists()
    try:
        target = FeatureStore.create(out, *origin)
        copied = copy_entries([folder], target, wanted, "exporting", progress)
        if copied.damaged or (wanted is not None and len(target) < len(set(wanted))):
            raise ValueError(
                bad_value(folder, "content", "; ".join(copied.damaged), "whole", f"Run: {repair_command(folder)}")
            )
        contents = read_contents(out, target.digest, progress=False)
        _describe(out, origin, contents, licence, synthetic, listed)
    except BaseException:
        for file in out.iterdir() if out.is_dir() else ():  # all of them ours: there was none
            file.unlink()
        if made and out.is_dir():
            out.rmdir()
        raise
    size = readable_bytes(sum(file.stat().st_size for file in out.iterdir()))
    said.append(
        f"{out}: {counted(contents.sequences, 'sequence')}, {contents.frames} frames, {size}, licence {licence}"
    )
    said.append(f"Check it after it was sent: cd {out} && sha256sum -c {SUMS_FILE}")
    return "\n".join(said)


def _without_places(folder: Path, origin: Origin) -> Origin:
    """The origin whose settings name no folder.

    Raises:
        ValueError: the fingerprint does, in which nothing can be changed.
    """
    for name, text in _texts(origin.fingerprint):
        if _PLACE.search(text):
            way_out = "Cache the features again with an encoder and transforms that are named without a path."
            raise ValueError(
                bad_value(folder / FINGERPRINT_FILE, name, text, "no path: it would tell of this machine", way_out)
            )
    settings = None
    if origin.settings is not None:
        settings = {name: _file_name(name, value) for name, value in origin.settings.items()}
    return origin._replace(settings=settings)


def _texts(value: Any, at: str = "") -> list[tuple[str, str]]:
    """Each text in a nested value, with its place."""
    if isinstance(value, str):
        return [(at, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, part in pairs for found in _texts(part, f"{at}.{name}" if at else str(name))]


def _file_name(name: str, value: Any) -> Any:
    """A setting without the folders of a path; weights are the one that may be a relative one."""
    if isinstance(value, str) and (_PLACE.search(value) or name == "encoder_weights"):
        return re.split(r"[\\/]", value)[-1]
    return value


def _stored_items(
    store: FeatureStore, content: dict[str, Any], skip_missing: bool, progress: bool
) -> tuple[list[tuple[str, str, dict[str, Any]]], list[str]]:
    """Key, split and item of each exam that the store has, by key; and what was left out, in words.

    Raises:
        ValueError: exams that the store does not have, or one content with two labels or in two splits.
    """
    pairs = [(split, item) for split in SPLITS for item in content[split]]
    keys = exam_keys([item for _, item in pairs], progress)
    missing = [item[SOURCE] for key, (_, item) in zip(keys, pairs, strict=True) if key is None or key not in store]
    if missing and (not skip_missing or len(missing) == len(pairs)):
        found = f"without {len(missing)} of {len(pairs)} exams, first {missing[0]}"
        way_out = "Cache them first, or pass --skip_missing to leave them out."
        raise ValueError(bad_value(store.path, "store", found, "the features of every exam", way_out))
    kept: dict[str, tuple[str, str, dict[str, Any]]] = {}
    copies = 0
    for key, (split, item) in zip(keys, pairs, strict=True):
        if key is None or key not in store:
            continue
        first = kept.setdefault(key, (key, split, item))
        if first[2] is item:
            continue
        copies += 1
        if (first[1], first[2].get(LABEL), first[2].get(PATIENT)) != (split, item.get(LABEL), item.get(PATIENT)):
            found = f"that of {first[2][SOURCE]}, with another label, patient or split"
            way_out = "Find such exams with: python -m scripts check DATALIST"
            raise ValueError(bad_value(item[SOURCE], "content", found, "each content once", way_out))
    said = [f"{counted(len(missing), 'exam')} left out that the store does not have"] if missing else []
    said += [f"{counted(copies, 'exam')} left out whose content is in the list twice"] if copies else []
    return [kept[key] for key in sorted(kept)], said


def _pseudonymous(
    kept: Sequence[tuple[str, str, dict[str, Any]]], task: Task | None, synthetic: bool
) -> dict[str, Any]:
    """The datalist of an export. Numbers follow the keys, which are random, so that they tell nothing of names."""
    patients: dict[str, str] = {}
    listed: dict[str, Any] = {split: [] for split in SPLITS}
    for number, (key, split, item) in enumerate(kept, 1):
        out = {ENTRY: key, SEQUENCE: f"S{number:05d}"}
        if item.get(PATIENT) is not None:
            out[PATIENT] = patients.setdefault(str(item[PATIENT]), f"P{len(patients) + 1:04d}")
        if LABEL in item:
            out[LABEL] = item[LABEL]
        listed[split].append(out)
    if task is not None:
        listed[TASK] = {TYPE: task.type, CLASSES: list(task.classes)}
    return listed | ({SYNTHETIC: True} if synthetic else {})


def _describe(
    out: Path, origin: Origin, contents: Contents, licence: str, synthetic: bool, listed: dict[str, Any] | None
) -> None:
    """Write what says what the folder holds, and last the digest of every file in it."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "bundle_version": json.loads((BUNDLE_ROOT / "configs" / "metadata.json").read_text())["version"],
        "licence": licence,
        "synthetic": synthetic,
        "fingerprint_digest": origin.digest(),
        "sequences": contents.sequences,
        "frames": contents.frames,
        "labelled": sum(LABEL in item for split in SPLITS for item in listed[split]) if listed else 0,
        "tensors": {
            "keys": "(n, 32) uint8: SHA-256 of the source and of what its datalist said of it",
            "digests": "(n, 32) uint8: SHA-256 of each entry",
            LENGTHS: "(n,) int64: frames of each entry, which follow one another in the tensors below",
            FEATURES: f"{' or '.join(contents.forms)} of each entry: output of the encoder, no unit",
            FRAME_TIMES: "(T,) float32 of each entry: milliseconds since the first frame of the source, NaN = unknown",
            FRAME_INDICES: "(T,) int64 of each entry: positions in the source, from 0",
        },
    }
    write_file(out / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    if listed is not None:
        write_file(out / DATALIST_FILE, json.dumps(listed, indent=1) + "\n")
    write_file(out / README_FILE, readme(manifest, origin, listed))
    sums = []
    for file in sorted(out.iterdir()):
        with file.open("rb") as content:
            sums.append(f"{hashlib.file_digest(content, 'sha256').hexdigest()}  {file.name}\n")
    write_file(out / SUMS_FILE, "".join(sums))
