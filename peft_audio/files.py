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
    """Replace ~ at the start of a path by the home folder of the user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~ starts the name of a file
        return Path(path)


def is_folder(path: str | Path) -> bool:
    """Return whether a folder exists; False for names that no file system accepts."""
    try:
        return expanded(path).is_dir()
    except (OSError, ValueError):
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; return {} if the file is missing, damaged or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def partial_path(path: Path) -> Path:
    """Return the temporary path of a file or folder while it is written."""
    return path.with_name(path.name + ".partial")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file, so that readers see either the old content or all of the new content."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, binary: bool = True, partial: Path | None = None, sync: bool = False) -> Iterator[IO[Any]]:
    """Open a file for writing, and rename it to its final name when the block ends without an error.

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
    """Make a folder, and sync and rename it to its final name when the block ends without an error.

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
    """Move a folder to another name, and remove the folder that had it; if the move fails, that folder is kept."""
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
    """Rename a folder and remove it, so that an interruption leaves no partial folder under its name."""
    old = folder if folder.suffix == ".discarded" else folder.with_name(folder.name + ".discarded")
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
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
    r"""Parse JSON whose text can be encoded as UTF-8.

    Raises:
        ValueError: The text is not JSON, or holds one half of a surrogate pair as a \u escape.
        RecursionError: The JSON is nested too deeply.
    """
    content = json.loads(text)
    if "\\u" in text:
        json.dumps(content, ensure_ascii=False).encode()
    return content
