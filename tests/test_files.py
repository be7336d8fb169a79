"""Files and folders are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_audio.files import atomic_file, file_sha256, replace_folder, sha256, write_atomically


def test_an_error_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path, sync=True) as file:
        file.write(b"half of the new")
        raise KeyboardInterrupt
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.json", "old")]


def test_the_old_folder_stays_if_the_new_one_cannot_be_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a").touch()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "absent", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["a"]


def test_a_hash_is_that_of_all_parts(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "a") == sha256([b"a", b"", b"bc"]) == expected
