"""Datalist items -> encoder input, one bad exam never stopping the others."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset

from scripts.errors import RunFailedError, SequenceError
from scripts.keys import ERROR, IMAGE, SOURCE

logger = logging.getLogger("angiography")


class SequenceDataset(Dataset):
    """MONAI's Dataset whose items keep their `source`; one that cannot be read comes back as `source` and `error`.

    Args:
        data: datalist items.
        transform: from an item to encoder input.
    """

    def __init__(self, data: Sequence[dict[str, Any]], transform: Callable) -> None:
        super().__init__(data, transform)

    def _transform(self, index: int) -> dict[str, Any]:
        item = self.data[index]
        try:
            return super()._transform(index)
        except (RuntimeError, SequenceError, OSError) as error:  # MONAI wraps what a transform raises
            reason = next((e for e in _causes(error) if isinstance(e, (SequenceError, OSError))), None)
            if reason is None:
                raise
            return {SOURCE: item[SOURCE], ERROR: relative_message(reason, item)}


def relative_message(error: BaseException, item: dict[str, Any]) -> str:
    """The error's text with the item's paths as the datalist spells them."""
    text, images = str(error), item[IMAGE] if isinstance(item[IMAGE], list) else [item[IMAGE]]
    for image in images:
        text = text.replace(str(image), item[SOURCE] if len(images) == 1 else Path(image).name)
    if len(images) > 1:
        text = text.replace(str(Path(images[0]).parent), item[SOURCE])
    return text if item[SOURCE] in text else f"{item[SOURCE]}: {text}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def refuse_failures(failures: Sequence[dict[str, str]], total: int, what: str) -> None:
    """End a finished run with an error if any exam could not be used, listing each.

    Raises:
        RunFailedError: at least one failure; everything else has been written by then.
    """
    if failures:
        lines = "\n".join(f"  {failure[ERROR]}" for failure in failures)
        others = "; the others are done" if len(failures) < total else ""
        raise RunFailedError(f"{what}: {len(failures)} of {total} exams could not be used{others}.\n{lines}")
