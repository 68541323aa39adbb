"""Bytes -> a file of the store, whole or absent, whoever else writes there and whenever one is killed.

A file appears under its name by a rename, after its bytes are on the disk. Files get the mode that the umask
gives. A temporary file is locked while its process lives, which tells it from what a killed one left.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def write_new(target: Path, content: bytes) -> bool:
    """Whether the file was written; it is not where another process has that name, or is about to.

    Raises:
        OSError: it could not be written; the message names the path, and no part of it is left.
    """
    temporary = target.with_name(f"{target.name}.tmp")
    with _named_in_errors(target):
        try:
            file = temporary.open("xb")  # who creates the temporary file, and still holds it, owns the name
        except FileExistsError:
            return False
        with file:
            if not _hold(file, temporary):
                return False
            try:
                if target.exists():
                    return False
                _write_through(file, content)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)
    return True


def write_whole(target: Path, content: bytes, keep_existing: bool = False) -> None:
    """Write a file that is at no moment half there; with `keep_existing` the first process's stays.

    Raises:
        OSError: as in `write_new`; what was there before is whole.
    """
    with _named_in_errors(target):
        while not _write_whole(target, content, keep_existing):
            pass  # its temporary file was taken for a leftover before it was locked
    _sync_folder(target.parent)


def _write_whole(target: Path, content: bytes, keep_existing: bool) -> bool:
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            if not _hold(file, temporary):
                return False
            _write_through(file, content)
            if keep_existing:
                with suppress(OSError):  # it exists, or this file system has no hard links
                    os.link(temporary, target)  # unlike a rename, fails where the target exists
            if not keep_existing or not target.exists():
                temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Delete the temporary files of killed processes; one that a process is writing stays.

    Args:
        folder: of the store.
        pattern: of the names of the files that were to be written, a glob.
    """
    for temporary in folder.glob(f"{pattern}.tmp"):
        # gone meanwhile, or another person's: then its name is passed over like that of a living process
        with suppress(FileNotFoundError, PermissionError), temporary.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            if _is_named(file, temporary):
                temporary.unlink()


def _hold(file: BinaryIO, path: Path) -> bool:
    """Lock a new temporary file; False if it was taken for a leftover before that."""
    with suppress(OSError):  # the lock tells a living owner from a killed one, where there are locks
        fcntl.flock(file, fcntl.LOCK_EX)
    return _is_named(file, path)


def _is_named(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _named_in_errors(target: Path) -> Iterator[None]:
    """Put the path into what the system says; of a full disk it says none."""
    try:
        yield
    except OSError as error:
        reason = f"{error.strerror}: not written, what was there before is whole"
        raise OSError(error.errno, reason, str(target)) from error


def _write_through(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems refuse to sync a folder; the rename is done
        os.fsync(descriptor)
    os.close(descriptor)
