"""A folder of recordings, one subfolder a class."""

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
    name_splits,
    similar_labels,
    tidy,
)
from peft_audio.errors import UserError
from peft_audio.text import listed, several


def from_folder(root: Path) -> ClipTable:
    """The recordings below a folder, labelled by the class folder that they are in, at whatever depth.

    Raises:
        UserError: There are none, or one class, or files that belong to no class.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    split_like = [folder.name for folder in folders if folder.name.lower() in SPLIT_NAMES]
    given = bool(folders) and len(split_like) == len(folders)
    splits = name_splits(split_like, "data.source") if given else {}
    named = [name for name in split_like if _has_class_folders(root / name)]
    if named and not given:
        other = [folder.name for folder in folders if folder.name not in split_like]
        raise UserError(
            f"--data.source: {root} has split folders ({listed(named)}) beside other folders ({listed(other)}); "
            "move the others away, or put all clips in class folders."
        )
    names = _names_below(root)
    _refuse_loose(root, [name for name in names if is_recording(name) and "/" not in name])
    notes: list[str] = []
    columns: dict[str, list[str]] = {"id": [], "label": [], "split": []}
    for folder in folders if given else [root]:
        prefix = f"{folder.name}/" if given else ""
        clips, found = _find_clips(folder, [name[len(prefix) :] for name in names if name.startswith(prefix)])
        columns["id"] += [prefix + name for name in clips]
        columns["label"] += found
        columns["split"] += [splits[folder.name] if given else ""] * len(clips)
    labels = tuple(sorted(set(columns["label"])))
    if not labels:
        there = f"it has {types_of(names)}, but" if names else "it has no files;"
        raise UserError(
            f"--data.source: found no recordings in {root}: {there} expected one subfolder a class with files of type "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    depth = 3 if given else 2
    deeper = sorted(
        {label for name, label in zip(columns["id"], columns["label"], strict=True) if name.count("/") >= depth}
    )
    if deeper:
        notes.append(f"recordings in deeper folders count to their class folder: {listed(deeper)}")
    if split_like and not given:
        notes.append(f"{listed(split_like)}: taken as a class like the others, because it holds no class folders")
    return ClipTable(
        make_clips(columns | {"path": [str(root / name) for name in columns["id"]]}),
        labels,
        notes=(*notes, *similar_labels(labels)),
        ignored=tuple(name for name in names if not is_recording(name)),
    )


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, links to folders followed once, hidden ones left out; sorted by path.

    Raises:
        UserError: A folder may not be read, or a name is not text.
    """
    return [folder / name for name in _names_below(folder)]


def _names_below(folder: Path) -> list[str]:
    """What `files_below` gives, relative to the folder and as text: a Path takes several times the memory."""
    names = names_below(folder, "--data.source: ")
    odd = [repr(str(folder / name)) for name in names if not is_text(f"{folder}/{name}")]
    if odd:
        raise UserError(f"--data.source: file names that are not valid UTF-8: {listed(odd)}; rename them.")
    return names


def names_below(folder: Path, setting: str = "") -> list[str]:
    """The same, whether the names are text or not.

    Args:
        folder: Where to look.
        setting: What the folder came by, for the message.

    Raises:
        UserError: A folder may not be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{setting}cannot look into {error.filename} ({error.strerror}); mend its permissions.")

    seen: set[str] = set()
    files: list[str] = []
    links = [folder]
    # What is really in the folder first: a link elsewhere to the same clips must not give them another label.
    while links:
        for parent, folders, names in os.walk(links.pop(0), onerror=refuse):
            real = os.path.realpath(parent)
            # A link back to a folder above would go round for ever.
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
    """Say which files are no recordings by their names."""
    return f"{several(len(names), 'file')} ignored, no recordings by their names: {types_of(names)} ({listed(names)})"


def is_text(name: str) -> bool:
    """Whether a file's name is valid UTF-8, so that it can be written down."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_class_folders(folder: Path) -> bool:
    inside = list(folder.iterdir())
    return any(path.is_dir() for path in inside) and not any(is_recording(path.name) for path in inside)


def _refuse_loose(folder: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"--data.source: {folder} has recordings outside any class folder ({listed(names)}); "
            "move each into a subfolder named by its label."
        )


def _find_clips(folder: Path, names: list[str]) -> tuple[list[str], list[str]]:
    """The recordings below each class folder, of the files below `folder`; the label is the class folder's name."""
    others = [name for name in names if not is_recording(name)]
    names = [name for name in names if is_recording(name)]
    _refuse_loose(folder, [name for name in names if "/" not in name])
    classes = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    folders = [name.partition("/")[0] for name in names]
    barren = sorted(classes - set(folders))
    if names and barren:
        inside = [name for name in others if name.partition("/")[0] in barren]
        only = f" (only {types_of(inside)})" if inside else ""
        raise UserError(
            f"--data.source: no recordings in {listed([str(folder / name) for name in barren])}{only}; "
            f"add {'recordings of another type' if inside else 'some'}, or move the folder away."
        )
    labels = {name: tidy(name) for name in set(folders)}
    return names, [labels[name] for name in folders]
