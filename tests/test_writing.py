"""A result is on disk whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from scripts.writing import check_place, write_file
from tests.conftest import assert_message


def test_written_file_replaces_the_old_one_and_its_folder_is_made(tmp_path):
    path = tmp_path / "new" / "file.json"
    for content in ("old", "n\xe4chster", b"\x00bytes"):
        write_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["folder", "device", "empty name"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = Path("" if kind == "empty name" else kind)
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        os.mkfifo(path)
    before = path.stat()
    for refuse in (lambda: write_file(path, "new"), lambda: check_place(path)):
        with pytest.raises(ValueError, match="path is a") as refused:
            refuse()
        assert_message(refused.value, path, "a file")
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)
    assert len(list(tmp_path.iterdir())) == (kind != "empty name")


def test_a_place_is_found_to_be_writable_or_not_and_left_as_it_was(tmp_path):
    path = tmp_path / "new" / "file.json"
    check_place(path)
    assert list(path.parent.iterdir()) == []
    write_file(path, "old")
    check_place(path)
    assert path.read_text() == "old"
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        check_place(path / "below")


def test_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_file(path, "old")

    def no_space(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")  # as of a file that is open: without its name

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="No space left") as failed:
        write_file(path, "new")
    assert failed.value.filename == str(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
