"""Store -> whether it still is what was written, and what its encoder would make of the exams today."""

from collections.abc import Sequence
from pathlib import Path

from scripts.curation.inspection import inspect_stores
from scripts.curation.overview import readable_bytes, repair_command
from scripts.errors import bad_value
from scripts.pages import counted
from scripts.store.origin import read_origin


def verify_store(
    path: str | Path,
    datalists: str | Sequence[str] | None = None,
    dataset_dir: str | Path | None = None,
    models_dir: str | Path | None = None,
    sample: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> tuple[str, bool]:
    """The findings in words, and whether all is well: every byte compared, and exams of a list encoded again.

    Args:
        path: of the store.
        datalists: lists of the exams, several separated by commas; None compares bytes alone.
        dataset_dir: what the lists' paths are relative to; each list's own folder if not given.
        models_dir: where encoder weights are; models/ of the bundle if not given.
        sample: exams encoded again, drawn at random.
        seed: of the draw.
        progress: show progress bars.

    Raises:
        FileNotFoundError, ValueError: there is no store, this machine would make features of another fingerprint, or
            an exam of the lists cannot be read.
    """
    if not isinstance(sample, int) or sample < 1:
        raise ValueError(bad_value("configuration", "sample", sample, "a number of exams, at least 1"))
    folder = Path(path)
    origin = read_origin(folder)
    if datalists is None:
        lines, whole = _compare_bytes(folder, origin.digest(), progress)
        return "\n".join(lines), whole
    from scripts.curation import recomputation  # with all that encodes, seconds to import; bytes need none of it

    items = recomputation.exams_to_encode(datalists, dataset_dir)
    again = recomputation.set_up(folder, origin, models_dir)
    lines, whole = _compare_bytes(folder, origin.digest(), progress)
    if whole:
        found, whole = recomputation.compare_sample(folder, items, again, sample, seed, progress)
    else:
        found = ["No exam was encoded again: repair the store first."]
    return "\n".join([*lines, *found]), whole


def _compare_bytes(folder: Path, digest: str, progress: bool) -> tuple[list[str], bool]:
    """What the digests say of every entry."""
    sequences = n_bytes = shards = 0
    damage, repairable = [], False
    for shard in inspect_stores([(folder, digest)], progress=progress):
        shards, sequences, n_bytes = shards + 1, sequences + len(shard.keys), n_bytes + shard.shard.n_bytes
        if shard.told:
            damage.append(f"DAMAGED: {shard.told}")
            repairable |= not shard.spared
    looked_at = f"{counted(sequences, 'sequence')} in {counted(shards, 'shard')}, {readable_bytes(n_bytes)}"
    if not damage:
        return [f"{folder}: {looked_at}: all bytes are what was written"], True
    lines = [*damage, f"{folder}: {looked_at}: {len(damage)} of {counted(shards, 'shard')} cannot be used as they are"]
    if repairable:
        lines.append(f"Drop what is damaged with: {repair_command(folder)}")
    return lines, False
