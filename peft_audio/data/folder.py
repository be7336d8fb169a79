"""Read a folder of recordings with one subfolder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from peft_audio.audio.decoding import AUDIO_SUFFIXES, is_recording
from peft_audio.data.clip_table import (
    SPLIT_NAMES,
    ClipTable,
    make_clips,
    map_split_names,
    normalise_label,
    similar_labels,
)
from peft_audio.errors import UserError
from peft_audio.text import listed, several


def from_folder(root: Path) -> ClipTable:
    """List the recordings below a folder, labelled by their class folder, at any depth.

    Args:
        root: Folder of class folders, or of split folders with class folders.

    Raises:
        UserError: There are no recordings, or some are outside any class folder.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    split_like = [folder.name for folder in folders if folder.name.lower() in SPLIT_NAMES]
    given = bool(folders) and len(split_like) == len(folders)
    splits = map_split_names(split_like, "data.source") if given else {}
    named = [name for name in split_like if _has_class_folders(root / name)]
    if named and not given:
        other = [folder.name for folder in folders if folder.name not in split_like]
        raise UserError(
            f"--data.source: {root} has split folders ({listed(named)}) beside other folders ({listed(other)}); "
            "move the others away, or put all clips in class folders."
        )
    names = _names_below(root)
    _refuse_unlabelled(root, [name for name in names if is_recording(name) and "/" not in name])
    notes: list[str] = []
    columns: dict[str, list[str]] = {"id": [], "label": [], "split": []}
    for folder in folders if given else [root]:
        prefix = f"{folder.name}/" if given else ""
        clips, clip_labels = _find_clips(folder, [name[len(prefix) :] for name in names if name.startswith(prefix)])
        columns["id"] += [prefix + name for name in clips]
        columns["label"] += clip_labels
        columns["split"] += [splits[folder.name] if given else ""] * len(clips)
    labels = tuple(sorted(set(columns["label"])))
    if not labels:
        contents = f"it has {types_of(names)}, but" if names else "it has no files;"
        raise UserError(
            f"--data.source: found no recordings in {root}: {contents} expected one subfolder per class with files "
            f"of type {', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    depth = 3 if given else 2
    deeper = sorted(
        {label for name, label in zip(columns["id"], columns["label"], strict=True) if name.count("/") >= depth}
    )
    if deeper:
        notes.append(f"recordings in deeper folders have the label of their class folder: {listed(deeper)}")
    if split_like and not given:
        notes.append(f"{listed(split_like)}: read as a class, because it holds no class folders")
    return ClipTable(
        make_clips(columns | {"path": [str(root / name) for name in columns["id"]]}),
        labels,
        notes=(*notes, *similar_labels(labels)),
        ignored=tuple(name for name in names if not is_recording(name)),
    )


def files_below(folder: Path) -> list[Path]:
    """List the files below a folder, sorted by path, without hidden files. Links to folders are followed once.

    Raises:
        UserError: A folder cannot be read, or a name is not valid UTF-8.
    """
    return [folder / name for name in _names_below(folder)]


def _names_below(folder: Path) -> list[str]:
    """List the files of `files_below` as text relative to the folder, which takes less memory than paths."""
    names = names_below(folder, "--data.source: ")
    odd = [repr(str(folder / name)) for name in names if not is_text(f"{folder}/{name}")]
    if odd:
        raise UserError(f"--data.source: file names that are not valid UTF-8: {listed(odd)}; rename them.")
    return names


def names_below(folder: Path, setting: str = "") -> list[str]:
    """List the files below a folder relative to it, including names that are not valid UTF-8; see `files_below`.

    Args:
        folder: Folder to search.
        setting: Setting that named the folder, as a prefix of the message.

    Raises:
        UserError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{setting}cannot read folder {error.filename} ({error.strerror}); correct its permissions.")

    seen: set[str] = set()
    files: list[str] = []
    links = [folder]
    # Real folders come before links, so that a link to the same clips does not give them another label.
    while links:
        for parent, folders, names in os.walk(links.pop(0), onerror=refuse):
            real = os.path.realpath(parent)
            # A link to a parent folder would cause an endless loop.
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
            above = Path(parent).relative_to(folder).as_posix()
            prefix = "" if above == "." else f"{above}/"
            files += [prefix + name for name in names if not name.startswith(".")]
    return sorted(files)


def types_of(names: Iterable[str]) -> str:
    """Count files by extension, such as "12 .txt, 3 .dss", the most frequent first."""
    counts = Counter(Path(name).suffix.lower() or "without extension" for name in names)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return listed([f"{count} {suffix}" for suffix, count in ranked], 8)


def ignored_note(names: Sequence[str]) -> str:
    """Return a note on files whose names are not those of recordings."""
    return f"{several(len(names), 'file')} ignored, not recordings by name: {types_of(names)} ({listed(names)})"


def is_text(name: str) -> bool:
    """Return whether a file name is valid UTF-8, so that it can be printed and saved."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_class_folders(folder: Path) -> bool:
    entries = list(folder.iterdir())
    return any(path.is_dir() for path in entries) and not any(is_recording(path.name) for path in entries)


def _refuse_unlabelled(folder: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"--data.source: {folder} has recordings outside any class folder ({listed(names)}); "
            "move each into a subfolder named by its label."
        )


def _find_clips(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """Return the recordings below each class folder, and their labels, which are the names of the class folders.

    Args:
        folder: Folder of class folders.
        names: Files below the folder, relative to it.
    """
    others = [name for name in names if not is_recording(name)]
    names = [name for name in names if is_recording(name)]
    _refuse_unlabelled(folder, [name for name in names if "/" not in name])
    classes = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    folders = [name.partition("/")[0] for name in names]
    empty = sorted(classes - set(folders))
    if names and empty:
        unread = [name for name in others if name.partition("/")[0] in empty]
        only = f" (only {types_of(unread)})" if unread else ""
        raise UserError(
            f"--data.source: no recordings in {listed([str(folder / name) for name in empty])}{only}; "
            f"add {'recordings of another type' if unread else 'some'}, or move the folder away."
        )
    labels = {name: normalise_label(name) for name in set(folders)}
    return names, [labels[name] for name in folders]
