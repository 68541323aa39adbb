"""The many errors that readers of NIfTI, images and video raise on a damaged file -> one SequenceError."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from scripts.errors import SequenceError, bad_value

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
    struct.error,
    zlib.error,
    MemoryError,
)


@contextmanager
def reading(path: object, what: str, allowed: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a damaged file makes a library raise into one SequenceError, without quoting the library's text.

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
        if isinstance(error, OSError) and error.errno and not isinstance(error, also):
            raise  # the operating system's: an absent file, a right that is missing
        raise SequenceError(bad_value(path, what, f"unreadable ({type(error).__name__})", allowed)) from error
