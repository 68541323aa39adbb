"""A DICOM file, whatever its outer form -> a stream that pydicom reads, and pydicom's many errors as one."""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from scripts.errors import SequenceError, bad_value

# pydicom and its decoders raise all of these on damaged files.
READ_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    StopIteration,
    struct.error,
    zlib.error,
    MemoryError,
)

# pydicom quotes the offending value in its warnings and log lines, and the value can be a person's.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


@contextmanager
def reading(path: object, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes pydicom raise into one SequenceError without quoting any value."""
    try:
        yield
    except SequenceError:
        raise
    except READ_ERRORS as error:
        raise SequenceError(
            bad_value(path, what, f"unreadable ({type(error).__name__})", "a complete, valid DICOM object")
        ) from error
