"""Results on disk: a reader sees the old file or the new one, never half of it."""

from pathlib import Path

from scripts.errors import bad_value


def check_place(path: str | Path) -> None:
    """Before hours of work whose result goes there: whether `write_file` will be able to write it.

    Raises:
        ValueError, OSError: as `write_file` would.
    """
    temporary = _temporary(Path(path))
    temporary.touch()
    temporary.unlink()


def write_file(path: Path, content: str | bytes) -> None:
    """Write under a temporary name in the same folder, which is made if absent, then rename; text as UTF-8.

    Raises:
        ValueError: a folder or a device is there, such as /dev/null, which the rename would replace.
        OSError: it cannot be written there, and names the path; nothing is left behind.
    """
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:  # of a full disk: names no file
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """The name beside it under which a file is written first, in a folder that is there."""
    if path.exists() and not path.is_file():
        found = "a folder" if path.is_dir() else "a device"
        raise ValueError(bad_value(path, "path", found, "a file, there or not yet"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + ".tmp")
