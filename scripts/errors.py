"""The errors of this bundle: what a caller can catch, the one form of their messages, and damaged files told by it."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

# What libraries raise on damaged files, whatever they were written for.
READ_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,  # Pillow 13.0.0, on a damaged PNG
    EOFError,
    StopIteration,
    MemoryError,
    struct.error,
    zlib.error,
)


class SequenceError(ValueError):
    """An exam we cannot use: unreadable, incomplete, or outside the limits of the reader."""


class RunFailedError(RuntimeError):
    """A run that finished its work but could not use every item; the message lists which."""


def bad_value(item: object, field: str, found: object, allowed: str, way_out: str = "") -> str:
    """One line that names the item, the field, the value found, the values allowed and the way out.

    Args:
        item: what was being read, as the user knows it: a path in the list, an id, a file.
        field: which part of it.
        found: the value that is there; long ones are cut to 200 characters.
        allowed: what would have been accepted.
        way_out: what to do about it, a full sentence.
    """
    text = printable(found) or "empty"
    text = text if len(text) <= 200 else text[:197] + "..."
    return f"{printable(item)}: {field} is {text}, needs {allowed}." + (f" {way_out}" if way_out else "")


def printable(text: object) -> str:
    """The text on one line that a terminal and UTF-8 can show, whatever stands in a file's name."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


@contextmanager
def reading(path: object, what: str, allowed: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a damaged file makes a library raise into one SequenceError, without quoting the library's text.

    A file that is absent or may not be read stays the operating system's error: the exam is not at fault.

    Args:
        path: the item of the message.
        what: the field of the message.
        allowed: what a readable file would have been.
        also: errors that only this library has.
    """
    errors = READ_ERRORS + also
    try:
        yield
    except SequenceError:
        raise
    except errors as error:
        if isinstance(error, (FileNotFoundError, PermissionError)) and not isinstance(error, also):
            raise
        name = type(error).__name__
        kind = f"{type(error).__module__}.{name}" if name == "error" else name  # zlib.error, struct.error
        raise SequenceError(bad_value(path, what, f"unreadable ({kind})", allowed)) from error
