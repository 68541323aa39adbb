"""fingerprint.json <-> what a store's features were made with, told when one byte of it is not as it was written.

The file holds the `fingerprint`, which is compared; `settings` and `made_with`, which are not; and the digest of
these three.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from scripts.errors import bad_value
from scripts.store.files import remove_leftovers, write_whole
from scripts.store.shards import CACHE_COMMAND

FINGERPRINT_FILE = "fingerprint.json"


class Origin(NamedTuple):
    """What a store's features were made with; all JSON-able."""

    fingerprint: dict[str, Any]  # decides the values; two stores of one fingerprint hold equal features
    settings: dict[str, Any] | None  # the knobs of the workflow, which training and inference follow
    made_with: dict[str, Any]  # versions that decide no value, for the curious

    def content(self) -> bytes:
        """The file that says so; the only one, to the byte."""
        own = json.loads(canonical(self._asdict()))
        digest = hashlib.sha256(canonical(own)).hexdigest()
        return (json.dumps({**own, "digest": digest}, indent=2, sort_keys=True) + "\n").encode()

    def digest(self) -> str:
        """SHA-256 of the fingerprint as canonical JSON, 64 hex digits; what shards refer to."""
        return hashlib.sha256(canonical(self.fingerprint)).hexdigest()


def write_origin(folder: Path, origin: Origin) -> None:
    """Make a folder a store of this origin, unless another process just made it one."""
    remove_leftovers(folder, f"{FINGERPRINT_FILE}.*")
    write_whole(folder / FINGERPRINT_FILE, origin.content(), keep_existing=True)


def read_origin(folder: Path) -> Origin:
    """What the store in `folder` was made with.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: the file is not as it was written.
    """
    path = folder / FINGERPRINT_FILE
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(bad_value(folder, FINGERPRINT_FILE, "a folder or a device", "a file", "Remove it."))
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{folder}: no feature store here. Make it first: {CACHE_COMMAND}") from None
    try:
        read = json.loads(content)
        origin = Origin(*(read[name] for name in Origin._fields))
        if origin.content() != content:
            raise ValueError("its digest is not that of its content")
        if not isinstance(origin.fingerprint, dict):
            raise ValueError("no fingerprint")
        if not isinstance(origin.settings, dict | None) or not isinstance(origin.made_with, dict):
            raise ValueError("no settings")
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(
            f"{path}: damaged, or of another format ({type(error).__name__}: {error}). Delete this file: the next run "
            f"writes it again where the shards are of the same fingerprint: {CACHE_COMMAND}"
        ) from None
    return origin


def differences(stored: Any, wanted: Any, at: str = "") -> list[str]:
    """One phrase for each field of two fingerprints that differs; 1 and 1.0 do, as in the digest."""
    if canonical(stored) == canonical(wanted):
        return []
    if not isinstance(stored, dict) or not isinstance(wanted, dict):
        return [f"{at} is {json.dumps(stored)} in the store, {json.dumps(wanted)} wanted"]
    found = []
    for name in sorted(stored.keys() | wanted.keys()):
        pair = stored.get(name, "(absent)"), wanted.get(name, "(absent)")
        found += differences(*pair, f"{at}.{name}" if at else name)
    return found


def canonical(content: object) -> bytes:
    """One spelling of a JSON value."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
