"""Header values of any file as numbers, codes and items, and as words that are safe to show.

A damaged or careless file can hold a person's name in any attribute. So nothing here raises on what a value is, and
`shown` quotes numbers and known codes only.
"""

import functools
import math
from collections.abc import Collection, Sequence

from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.multival import MultiValue
from pydicom.tag import Tag

from scripts.errors import READ_ERRORS

MAX_VALUE_BYTES = 2**14  # pydicom makes an object of each number: 1 MB of frame pointers took it 30 s
_tag = functools.cache(Tag)  # making it anew took a fifth of a header's time
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # in place of a value that pydicom cannot convert: no number, no code


def field_name(keyword: str) -> str:
    """Tag and keyword of an attribute, such as "(0018,1063) FrameTime"."""
    return f"{Tag(keyword)} {keyword}"


def value_of(header: Dataset, keyword: str, max_bytes: int = MAX_VALUE_BYTES) -> object:
    """The value, None where it is absent or empty, UNREADABLE where it has not the form of its type or is too long."""
    tag = _tag(keyword)
    stored = getattr(header.get_item(tag), "value", None)
    if isinstance(stored, bytes) and len(stored) > max_bytes:
        return UNREADABLE
    try:
        value = getattr(header.get(tag), "value", None)
    except READ_ERRORS + (BytesLengthException,):  # noqa: RUF005 - mypy
        return UNREADABLE
    return None if isinstance(value, (str, MultiValue, list, bytes)) and not value else value


def number(value: object) -> float | None:
    """The value as a finite number, or None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def several(value: object) -> list:
    """One or several values as a list, empty where there is none."""
    return [] if value is None else list(value) if isinstance(value, (MultiValue, list)) else [value]


def first(value: object) -> object:
    """The first of several values, or the value."""
    return next(iter(several(value)), None)


def numbers(value: object) -> list[float | None]:
    """Each of one or several values as a finite number, or None."""
    return [number(one) for one in several(value)]


def integers(value: object) -> list[int] | None:
    """Each of one or several values as an integer; None if one of them is not."""
    found = numbers(value)
    return None if any(v is None or v != int(v) for v in found) else [int(v) for v in found]  # type: ignore[arg-type]


def items(header: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence attribute, none where it is absent.

    Raises:
        Exception: whatever pydicom raises on a damaged sequence; the caller translates.
    """
    found = header.get(keyword)
    return [item for item in found if isinstance(item, Dataset)] if isinstance(found, Sequence) else []


def shown(value: object, codes: Collection[str] = ()) -> str:
    """A header's value for a message: a number, one of the codes, "absent", or else "another value"."""
    if value is None:
        return "absent"
    if isinstance(value, str) and value in codes:
        return str(value)
    found = numbers(value)
    if not found or None in found or len(found) > 8:
        return "another value"
    return ", ".join(f"{v:.6g}" for v in found)
