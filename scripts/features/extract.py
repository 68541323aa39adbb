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

from scripts.errors import RunFailedError, bad_value
from scripts.features.fingerprint import PRECISIONS
from scripts.features.store import FeatureStore, StoredSequence
from scripts.keys import ERROR, FRAME_INDICES, FRAME_TIMES, FRAMES, HEADER, IMAGE, MODALITY, SOURCE
from scripts.sequences.dataset import SequenceDataset, refuse_failures, relative_message
from scripts.sequences.reader import source_files

logger = logging.getLogger("angiography")


def entry_key(item: dict[str, Any]) -> str:
    """SHA-256 (hex) of an exam's bytes and of what its item says of it, whatever its name or place.

    Raises:
        FileNotFoundError, SequenceError: nothing to read there.
    """
    digests = []
    source = Path(item[IMAGE]) if isinstance(item[IMAGE], str) else item[IMAGE]
    for path in source_files(source):
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    ordered = digests if isinstance(item[IMAGE], list) else sorted(digests)  # a list can say the order of frames
    said = {key: item[key] for key in (FRAMES, FRAME_TIMES, MODALITY) if item.get(key) is not None}
    content = {"files": ordered, **said}
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
    store = FeatureStore.create(Path(features_dir), fingerprint)
    mine = list(items[rank::world_size])
    failures: list[dict[str, str]] = []
    missing: dict[str, list[dict[str, Any]]] = {}  # items that have one content are encoded once
    for item in tqdm(mine, desc="checking", unit="exam", mininterval=1, disable=not progress):
        try:
            key = entry_key(item)
        except (OSError, ValueError) as error:
            failures.append({SOURCE: item[SOURCE], ERROR: relative_message(error, item)})
            continue
        if key not in store:
            missing.setdefault(key, []).append(item)
    there = len(mine) - len(failures) - sum(map(len, missing.values()))
    dataset = SequenceDataset([same[0] for same in missing.values()], preprocessing)
    encoded = encode(dataset, encoder, torch.device(device), PRECISIONS[fingerprint["precision"]], chunk_frames)
    new, frames, start = 0, 0, time.monotonic()
    with (
        store.writer(rank=rank) as writer,
        tqdm(total=len(missing), desc="encoding", unit="exam", mininterval=1, disable=not progress) as bar,
    ):
        for (key, same), result in zip(missing.items(), encoded, strict=True):
            if isinstance(result, StoredSequence):
                writer.add(key, result)
                new, frames = new + len(same), frames + len(result.features)
                bar.set_postfix_str(f"{frames / (time.monotonic() - start):.1f} frames/s", refresh=False)
            else:
                failures += [{SOURCE: item[SOURCE], ERROR: result} for item in same]
            bar.update()
    logger.info(
        f"{frames} frames computed in {time.monotonic() - start:.1f} s for {new} new exams; "
        f"{there} of {len(mine)} were in the store; {len(failures)} failed"
    )
    if world_size > 1:
        gathered: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(gathered, failures)
        failures = [failure for part in gathered for failure in part]
    if rank == 0:
        store.write_manifest()
        refuse_failures(failures, len(items), "cache_features")
    elif failures:
        raise RunFailedError(f"cache_features: {len(failures)} exams could not be used; rank 0 lists them")


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
def encode(
    dataset: SequenceDataset, encoder: nn.Module, device: torch.device, dtype: torch.dtype, chunk_frames: int
) -> Iterator[StoredSequence | str]:
    """For each exam its features as they are stored, float16, or the reason why it has none."""
    encoder.eval()
    odd = stills = 0
    for i, item in enumerate(_read_ahead(dataset)):
        if ERROR in item:
            yield item[ERROR]
            continue
        odd += HEADER in item and bool(item[HEADER].warnings)
        stills += HEADER in item and len(item[IMAGE]) == 1 < item[HEADER].num_frames
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            chunks = [encoder(chunk.to(device)) for chunk in item[IMAGE].split(chunk_frames)]
        features = torch.cat(chunks).to("cpu", torch.float16)  # (T, D); half the disk, 3 significant digits
        if torch.isfinite(features).all():
            yield StoredSequence(features, item[FRAME_TIMES], item[FRAME_INDICES])
        else:
            source = dataset.data[i][SOURCE]
            yield bad_value(source, "features", "not finite as float16", "numbers within 65504 of zero")
    if stills:
        logger.warning(f"{stills} runs came down to one frame, in which nothing moves; frame_choice does not suit them")
    if odd:
        logger.warning(f"{odd} exams are odd but usable; python -m scripts check DATALIST tells what is odd in each")
