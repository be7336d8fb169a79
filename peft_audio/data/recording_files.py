"""Find the files of the recordings that a table names."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from peft_audio.audio.decoding import is_recording
from peft_audio.errors import UserError
from peft_audio.files import expanded
from peft_audio.text import listed, several

# Largest number of files that are searched for missing recordings.
MOST_SEARCHED = 100_000
# Number of missing recordings that are searched for.
MOST_EXPLAINED = 50


def find_files(cells: Sequence[str], folder: Path, searched: bool, table: Path) -> tuple[list[str], list[str]]:
    """Find the file of each recording.

    If a path does not exist, it is searched with slashes for backslashes, with the extension of the only recording of
    that name, and ignoring case.

    Args:
        cells: Paths relative to the folder, or absolute ones.
        folder: Folder that relative paths start from.
        searched: Also search below the folder for the only file that shares the longest end of the path.
        table: File with the names, for messages.

    Returns:
        Path of each recording, as written if its file is missing, and notes on files found elsewhere.

    Raises:
        UserError: None of the files exists.
    """
    names = dict.fromkeys(cells, "")
    missing = []
    for cell in names:
        names[cell] = str(folder / expanded(cell))
        if not os.path.lexists(names[cell]):
            missing.append(cell)
    if not missing:
        return [names[cell] for cell in cells], []
    reasons: Counter[str] = Counter()
    folders: dict[str, dict[str, list[str]]] = {}
    index = RecordingIndex(folder) if searched else None
    for cell in missing:
        path, reason = _similar_file(cell, folder, folders)
        if not path and index:
            path, reason = index.find(cell), f"found by their names below {folder}"
        if path:
            names[cell] = path
            reasons[reason] += 1
    notes = [f"{several(count, 'path')} of {table.name} {reason}" for reason, count in reasons.items()]
    absent = [cell for cell in missing if not os.path.lexists(names[cell])]
    if absent:
        cause = _explain_missing(absent, names, folder, searched)
        if len(absent) == len(names):
            raise UserError(
                f"--data.source: {'none' if len(names) > 1 else 'not one'} of the {several(len(names), 'recording')} "
                f"that {table} names exists: {listed([names[cell] for cell in absent])}. "
                + (cause or "Paths are relative to the table's folder, or to --data.audio_folder.")
            )
        if cause:
            notes.append(f"{len(absent)} of {several(len(names), 'recording')} do not exist. {cause}")
    return [names[cell] for cell in cells], notes


def _similar_file(cell: str, folder: Path, folders: dict[str, dict[str, list[str]]]) -> tuple[str, str]:
    """Return the only file with a similar name, and the difference; "" if there is none or several.

    Args:
        cell: Path from the table.
        folder: Folder that relative paths start from.
        folders: Recordings of folders that were already listed, see `_recordings_in`.
    """
    reasons = []
    slashes = cell.replace("\\", "/")
    if slashes != cell:
        reasons.append("read with / for \\")
    path = folder / expanded(slashes)
    if reasons and os.path.lexists(path):
        return str(path), reasons[0]
    if str(path.parent) not in folders:
        folders[str(path.parent)] = _recordings_in(path.parent)
    here = folders[str(path.parent)]
    for key, reason in ((path.name, "found in other letter case"), (f"{path.name}.", "found with an extension")):
        similar = here.get(key.casefold(), []) if key == path.name or not is_recording(path.name) else []
        exact = [name for name in similar if name.startswith(path.name)] or similar
        if len(exact) == 1:
            return str(path.parent / exact[0]), " and ".join([*reasons, reason])
    return "", ""


def _recordings_in(folder: Path) -> dict[str, list[str]]:
    """Return the recordings of a folder by lower-case name, with and without extension (the latter ends in a dot)."""
    recordings: dict[str, list[str]] = {}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        return recordings
    for name in names:
        if is_recording(name):
            for key in (name, name[: -len(Path(name).suffix)] + "."):
                recordings.setdefault(key.casefold(), []).append(name)
    return recordings


class RecordingIndex:
    """Index of the recordings below a folder by name.

    Args:
        folder: Folder to search.
        most: Largest number of files to index; None for all.
    """

    def __init__(self, folder: Path, most: int | None = None):
        self.by_name: dict[str, list[str]] = {}
        self.groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
        files = (f"{parent}/{name}" for parent, names in _walk(folder) for name in names)
        for file in islice(files, most):
            name = Path(file).name
            if is_recording(name):
                for key in (name, name[: -len(Path(name).suffix)]):
                    self.by_name.setdefault(key, []).append(file)

    def find(self, cell: str) -> str:
        """Return the only file that shares the longest end with a path; "" if there is none or several."""
        parts = PurePosixPath(cell.replace("\\", "/")).parts[::-1]
        files = self.by_name.get(parts[0], []) if parts else []
        for depth in range(1, len(parts)):
            if len(files) < 2:
                break
            files = self._by_folder(parts[:depth], files).get(parts[depth], [])
        return files[0] if len(files) == 1 else ""

    def _by_folder(self, end: tuple[str, ...], files: list[str]) -> dict[str, list[str]]:
        """Group files whose paths share the end `end` by the path component before it."""
        if end not in self.groups:
            groups = self.groups[end] = {}
            for file in files:
                parts = Path(file).parts
                if len(parts) > len(end):
                    groups.setdefault(parts[-1 - len(end)], []).append(file)
        return self.groups[end]


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, sorted(names)


def _explain_missing(absent: list[str], names: dict[str, str], folder: Path, searched: bool) -> str:
    """Explain why recordings are missing; "" if nothing is known."""
    some = absent[:MOST_EXPLAINED]
    if all("://" in cell for cell in some):
        return "They are URLs: download the recordings and name their files."
    if not searched and all(os.path.lexists(expanded(cell)) for cell in some):
        return "They are relative to the current folder: add --data.audio_folder ."
    swapped = {cell: _other_extension(Path(names[cell])) for cell in some}
    if all(swapped.values()):
        return f"The folder has the same names with {listed(sorted(set(swapped.values())))}: correct the table."
    if searched:
        return "No file below --data.audio_folder has such a name, or several have it."
    return _suggest_folder(some, folder)


def _suggest_folder(cells: list[str], folder: Path) -> str:
    """Suggest a folder near `folder` that holds most of the files; "" if there is none."""
    for root in (folder, folder.resolve().parent):
        index = RecordingIndex(root, MOST_SEARCHED)
        files = [file for cell in cells if (file := index.find(cell))]
        if len(files) > len(cells) / 2:
            parents = os.path.commonpath([Path(file).parent for file in files])
            near = os.path.relpath(parents)
            place = shlex.quote(parents if near.startswith("..") else near)
            return f"Files of these names are in {place}: add --data.audio_folder {place}"
    if any("\\" in cell or ":" in cell[:2] for cell in cells):
        return "They look like Windows paths: give the folder of the recordings with --data.audio_folder."
    return ""


def _other_extension(path: Path) -> str:
    """Return the extension of another recording with the same name; "" if there is none."""
    others = [name for name in _recordings_in(path.parent).get(f"{path.stem}.".casefold(), []) if name != path.name]
    return Path(others[0]).suffix if others else ""
