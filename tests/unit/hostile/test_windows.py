"""What Windows does otherwise, simulated: files that are open, drives without links between them."""

import errno
import os
import sys

from fer_utils import files

import pytest


def _refused(*_):
    raise PermissionError(errno.EACCES, "Permission denied")  # what Windows answers for a file that is open


def test_a_table_that_is_open_in_another_program_stays_and_the_message_says_so(tmp_path, monkeypatch):
    table = tmp_path / "balanced.csv"
    table.write_text("earlier")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", _refused)
    with pytest.raises(
        files.OutputError, match=r"balanced\.csv cannot be written .*close the program that has it open"
    ):
        files.write_text(table, "new")
    assert table.read_text() == "earlier" and [path.name for path in tmp_path.iterdir()] == ["balanced.csv"]


def test_from_one_drive_to_another_files_are_copied(tmp_path, monkeypatch):
    source = tmp_path / "c" / "faces"
    (source / "happy").mkdir(parents=True)
    (source / "happy" / "a.png").write_bytes(b"face")
    monkeypatch.setattr(os, "link", _refused)
    files.place_copy(source, tmp_path / "d" / "faces")
    copy = tmp_path / "d" / "faces" / "happy" / "a.png"
    assert copy.read_bytes() == b"face" and copy.stat().st_nlink == 1
