"""Store, datalist -> a sample of its exams encoded again, as the workflow that made the store would today."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from scripts.curation.lookup import all_keys, listed_items, with_passes
from scripts.errors import bad_value
from scripts.features.engines import Engine
from scripts.features.exams import ExamReader, encode, read_ahead
from scripts.keys import ENTRY, SOURCE
from scripts.networks.encoder import encodes_volumes
from scripts.pages import counted
from scripts.store.origin import Origin, differences
from scripts.store.shards import StoredSequence
from scripts.store.store import FeatureStore

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
MIN_COSINE = 0.999  # of a frame's features computed twice; engines and processors round differently
READERS = 2
_CODE = set("$@%#{")  # what a config computes, refers to, or builds begins with these


class Recomputation(NamedTuple):
    """The workflow that made a store, set up again on this machine."""

    preprocessing: Any
    augmentation: Any
    seed: int  # of the augmentation
    engine: Engine


def set_up(folder: Path, origin: Origin, models_dir: str | Path | None = None) -> Recomputation:
    """The workflow of configs/cache_features.yaml, of volumes with its overlay, with the settings of a store.

    Raises:
        ValueError: it would make features of another fingerprint; the message names the fields.
        FileNotFoundError: the encoder's weights are not here.
    """
    if not isinstance(origin.settings, dict):
        raise ValueError(bad_value(folder, "settings", "absent", "the knobs the features were made with"))
    random = origin.fingerprint.get("augmentation")
    seed = random.get("seed", 0) if isinstance(random, dict) else 0
    parser = ConfigParser()
    names = ["cache_features.yaml"] + ["volumes.yaml"] * encodes_volumes(str(origin.settings.get("encoder_name")))
    parser.read_config([BUNDLE_ROOT / "configs" / name for name in names])
    own = {
        "bundle_root": str(BUNDLE_ROOT),
        "models_dir": str(models_dir or BUNDLE_ROOT / "models"),
        "augmentation_seed": seed,
    }
    for name, value in {**origin.settings, **own, "augmented_passes": int(random is not None)}.items():
        if set(json.dumps(value)) & _CODE:  # a config runs what it holds, and stores are sent around
            allowed = f"a text without any of {' '.join(sorted(_CODE))}"
            raise ValueError(bad_value(folder, f"setting {name}", value, allowed))
        parser[name] = value
    fingerprint = parser.get_parsed_content("fingerprint")
    found = differences(origin.fingerprint, fingerprint)
    if found:
        raise ValueError(
            f"{folder}: this machine would make other features: {'; '.join(found)}. "
            "Verify where the store was made, or without --datalist, which compares bytes alone."
        )
    device = parser.get_parsed_content("device")
    encoder = parser.get_parsed_content("encoder").to(device)
    engine = Engine(encoder, fingerprint["engine"], fingerprint["precision"], device)
    preprocessing, augmentation = (parser.get_parsed_content(name) for name in ("preprocessing", "augmentation"))
    return Recomputation(preprocessing, augmentation, seed, engine)


def exams_to_encode(datalists: str | Sequence[str], dataset_dir: str | Path | None) -> list[dict[str, Any]]:
    """The items of the lists.

    Raises:
        ValueError: a list cannot be read, or names stored entries, which have no images.
    """
    items = listed_items(datalists, dataset_dir)
    exported = next((item[SOURCE] for item in items if ENTRY in item), None)
    if exported is not None:
        raise ValueError(bad_value(exported, ENTRY, "a stored entry", "an exam to encode: this list has no images"))
    return items


def compare_sample(
    folder: Path,
    items: Sequence[dict[str, Any]],
    again: Recomputation,
    sample: int,
    seed: int,
    progress: bool,
) -> tuple[list[str], bool]:
    """A line for each entry of some exams that are encoded again, and whether all are close to what is stored."""
    store = FeatureStore.open(folder)
    exams = dict(zip(all_keys(items, progress), items, strict=True))  # exams of one content once
    passes = with_passes(list(exams), lambda keys: store.find(keys) >= 0)
    here = [(key, stored) for key, stored in zip(exams, passes, strict=True) if stored]
    unlisted = len(store) - sum(len(stored) for _, stored in here)
    lines = [f"{counted(unlisted, 'stored sequence')} of no exam in the lists"] if unlisted else []
    if not here:
        return [*lines, "none of the exams in the lists is stored"], False
    drawn = np.sort(np.random.default_rng(seed).choice(len(here), min(sample, len(here)), replace=False))
    chosen = [here[number] for number in drawn.tolist()]
    most = max(number for _, stored in chosen for number in stored.values())
    reader = ExamReader(
        [exams[key] for key, _ in chosen], again.preprocessing, None, again.augmentation, most, again.seed
    )
    whole = True
    results = encode(read_ahead(reader, range(len(chosen)), READERS), again.engine)
    bar = tqdm(results, desc="encoding again", total=len(chosen), unit="exam", mininterval=1, disable=not progress)
    for (_, stored), (exam, entries) in zip(chosen, bar, strict=True):
        if exam.error is not None:
            lines, whole = [*lines, f"FAILED: {exam.error}"], False
        for key, sequence in entries:
            if key in stored:
                said, close = compare(store.read(key), sequence)
                name = exam.item[SOURCE] + (f", pass {stored[key]}" if stored[key] else "")
                lines, whole = [*lines, f"{'' if close else 'FAILED: '}{name}: {said}"], whole and close
    lines.append(f"{counted(len(chosen), 'exam')} of {len(here)} encoded again: {'all close' if whole else 'FAILED'}")
    return lines, whole


def compare(stored: StoredSequence, made: StoredSequence) -> tuple[str, bool]:
    """How far two computations of one sequence are apart, in words, and whether that is rounding."""
    if not _same(stored.frame_indices, made.frame_indices) or not _same(stored.frame_times_ms, made.frame_times_ms):
        return "other frames, or other times of them", False
    if _same(stored.features, made.features):
        return "equal bit for bit", True
    if stored.features.shape != made.features.shape:
        return f"shape {tuple(made.features.shape)} instead of {tuple(stored.features.shape)}", False
    first, second = (sequence.features.to(torch.float64).flatten(1) for sequence in (stored, made))  # (T, ...)
    cosine = float(F.cosine_similarity(first, second).min())
    return f"lowest cosine {cosine:.6f}, largest difference {float((first - second).abs().max()):.4g}", (
        cosine >= MIN_COSINE
    )


def _same(first: Tensor, second: Tensor) -> bool:
    """Equal in shape and every bit but those of unknown times."""
    return first.shape == second.shape and torch.equal(first.nan_to_num(nan=-1e9), second.nan_to_num(nan=-1e9))
