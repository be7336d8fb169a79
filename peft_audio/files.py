"""Read, write and hash files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PACKAGE = Path(__file__).parent
# A wheel carries the recipes inside the package; a checkout has them beside it.
RECIPES = PACKAGE / "recipes" if (PACKAGE / "recipes").is_dir() else PACKAGE.parent / "recipes"


def expanded(path: str | Path) -> Path:
    """A path with ~ as the user's home, where that is what it means."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # a file whose name begins with ~
        return Path(path)


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; also asked of names that no disk takes."""
    try:
        return expanded(path).is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing, cut off or no object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def partial_path(path: Path) -> Path:
    """Name the place where a file or folder is written before it is moved to its own."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, so that readers see the old content or all of the new one."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, binary: bool = True, partial: Path | None = None, sync: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing; it appears under its name when the block ends, and not at all after an error.

    Args:
        path: Name of the file; an existing file is replaced.
        binary: Write bytes; otherwise UTF-8 without translation of line ends.
        partial: Name while writing; `partial_path(path)` by default.
        sync: Wait until the content is on the disk.
    """
    partial = partial or partial_path(path)
    form: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": ""}
    try:
        with partial.open(**form) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Make a folder of files; it appears under its name, synced, when the block ends, and not at all after an error.

    Yields:
        The folder to write files into.
    """
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        replace_folder(partial, folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(source: Path, target: Path) -> None:
    """Move a folder to another name; an old folder of that name goes, but stays if the move fails."""
    old = target.with_name(target.name + ".discarded")
    if not target.exists():
        source.rename(target)
        return
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    try:
        source.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder; after an interruption, what is left has another name."""
    old = folder if folder.suffix == ".discarded" else folder.with_name(folder.name + ".discarded")
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows syncs no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(parts: Iterable[bytes]) -> str:
    """Hash bytes, given in parts, as hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash the content of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str) -> Any:
    r"""What JSON says.

    Raises:
        ValueError: It is no JSON, or holds half of a pair of \u escapes, which is no text and could be written nowhere.
        RecursionError: It is nested too deeply to be read.
    """
    found = json.loads(text)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()
    return found
