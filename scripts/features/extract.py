"""Exams -> feature store: the frozen encoder runs once a frame, and only for what the store does not hold."""

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from scripts.errors import bad_value
from scripts.features.store import FeatureStore, StoredSequence
from scripts.keys import ERROR, FRAME_INDICES, FRAME_TIMES, FRAMES, IMAGE, SOURCE
from scripts.sequences.dataset import SequenceDataset, refuse_failures, relative_message
from scripts.sequences.dicom import sequence_files
from scripts.sequences.pixels import decoder_versions

logger = logging.getLogger("angiography")

PREPROCESSING_VERSION = 1  # raise it when a change in scripts/sequences changes what the encoder sees
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_fingerprint(
    encoder_name: str, encoder_digest: str, preprocessing: Callable, precision: str
) -> dict[str, Any]:
    """All that decides a feature's value besides the exam itself.

    Args:
        encoder_name: timm name.
        encoder_digest: of the weights.
        preprocessing: MONAI Compose from item to encoder input.
        precision: of the encoder's arithmetic, a key of `PRECISIONS`.

    Raises:
        ValueError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            bad_value("configuration", "precision", precision, f"one of {', '.join(PRECISIONS)}")
        )
    return {
        "encoder": {"name": encoder_name, "digest": encoder_digest},
        "preprocessing": {"version": PREPROCESSING_VERSION}
        | {f"{i} {type(t).__name__}": describe(t) for i, t in enumerate(preprocessing.transforms, 1)},  # type: ignore[attr-defined]
        "precision": precision,
        "decoders": decoder_versions(),
    }


def describe(value: Any) -> Any:
    """A transform, or anything it is made of, as JSON: its class and what it was made with."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, type) or hasattr(value, "__code__"):  # a class or a function
        return value.__qualname__
    skip = ("keys", "allow_missing_keys", "max_sequence_bytes", "R")  # names of keys, limits, random state
    settings = {k: v for k, v in vars(value).items() if not k.startswith("_") and k not in skip}
    return {k: describe(v) for k, v in settings.items()} or type(value).__qualname__


def open_store(features_dir: str | Path, fingerprint: dict[str, Any]) -> FeatureStore:
    """The store to train from, refused if it was made with another encoder, preprocessing or precision.

    Decoder versions are left out of the comparison: whoever trains does not decode.
    """
    stored = FeatureStore.open(Path(features_dir)).fingerprint
    return FeatureStore.open(Path(features_dir), {**fingerprint, "decoders": stored.get("decoders")})


def entry_key(item: dict[str, Any]) -> str:
    """SHA-256 (hex) of an exam's bytes and of its own frame choice, whatever its name or place.

    Raises:
        FileNotFoundError, SequenceError: nothing to read there.
    """
    digests = []
    for path in sequence_files(item[IMAGE]):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    ordered = digests if isinstance(item[IMAGE], list) else sorted(digests)
    content = {"files": ordered, FRAMES: item.get(FRAMES), FRAME_TIMES: item.get(FRAME_TIMES)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cache_features(
    items: Sequence[dict[str, Any]],
    preprocessing: Callable,
    encoder: nn.Module,
    features_dir: str | Path,
    fingerprint: dict[str, Any],
    device: torch.device | str,
    chunk_frames: int = 16,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = True,
) -> None:
    """Fill the store with the features of every item, this rank taking every `world_size`-th one.

    Entries that are there already are kept, so a run that was stopped goes on where it was. A bad exam is
    reported at the end and does not stop the others.

    Args:
        items: datalist items.
        preprocessing: from an item to image (T, 3, H, W).
        encoder: (N, 3, H, W) -> (N, D), on `device`.
        features_dir: the store, made if absent.
        fingerprint: of `make_fingerprint`.
        device: where the encoder runs.
        chunk_frames: frames a forward pass.
        rank: of this process.
        world_size: number of processes.
        progress: show progress bars.

    Raises:
        ValueError: the folder holds a store of another fingerprint.
        RunFailedError: the run is complete but some exams could not be used.
    """
    device = torch.device(device)
    store = FeatureStore.create(Path(features_dir), fingerprint)
    mine = list(items[rank::world_size])
    failures: list[dict[str, str]] = []
    missing: dict[str, dict[str, Any]] = {}
    for item in tqdm(mine, desc="checking", unit="exam", mininterval=1, disable=not progress):
        try:
            key = entry_key(item)
        except (OSError, ValueError) as error:
            failures.append({SOURCE: item[SOURCE], ERROR: relative_message(error, item)})
            continue
        if key not in store:
            missing.setdefault(key, item)
    unread = len(failures)
    frames, seconds = _encode(
        list(missing.items()), preprocessing, encoder, store, device, chunk_frames, rank, failures, progress
    )
    logger.info(
        f"{frames} frames computed in {seconds:.1f} s for {len(missing) - len(failures) + unread} new sequences; "
        f"{len(mine) - len(missing) - unread} of {len(mine)} exams were in the store; {len(failures)} failed"
    )
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, failures)
        failures = [failure for part in gathered for failure in part]
    if rank == 0:
        store.write_manifest()
        refuse_failures(failures, len(items), "cache_features")


def _read_ahead(dataset: SequenceDataset, ahead: int = 2) -> Iterator[dict[str, Any]]:
    """The items in order, the next ones being decoded in threads while the caller computes.

    MONAI's ThreadDataLoader does this too, but ends silently when reading raises (1.6.1).
    """
    with ThreadPoolExecutor(ahead) as pool:
        pending = deque(pool.submit(dataset.__getitem__, i) for i in range(min(ahead, len(dataset))))
        for i in range(len(dataset)):
            item = pending.popleft().result()
            if i + ahead < len(dataset):
                pending.append(pool.submit(dataset.__getitem__, i + ahead))
            yield item


@torch.inference_mode()
def _encode(
    missing: Sequence[tuple[str, dict[str, Any]]],
    preprocessing: Callable,
    encoder: nn.Module,
    store: FeatureStore,
    device: torch.device,
    chunk_frames: int,
    rank: int,
    failures: list[dict[str, str]],
    progress: bool,
) -> tuple[int, float]:
    """Encode and store; returns frames computed and seconds taken."""
    encoder.eval()
    dtype = PRECISIONS[store.fingerprint["precision"]]
    dataset = SequenceDataset([item for _, item in missing], preprocessing)
    frames, start = 0, time.monotonic()
    with (
        store.writer(rank=rank) as writer,
        tqdm(total=len(missing), desc="encoding", unit="exam", mininterval=1, disable=not progress) as bar,
    ):
        for (key, _), item in zip(missing, _read_ahead(dataset), strict=True):
            bar.update()
            if ERROR in item:
                failures.append(item)
                continue
            image = item[IMAGE]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                features = torch.cat([encoder(chunk.to(device)) for chunk in image.split(chunk_frames)])
            half = features.to("cpu", torch.float16)  # (T, D); half the disk, 3 significant digits
            writer.add(key, StoredSequence(half, item[FRAME_TIMES], item[FRAME_INDICES]))
            frames += len(image)
            bar.set_postfix_str(f"{frames / (time.monotonic() - start):.1f} frames/s")
    return frames, time.monotonic() - start
