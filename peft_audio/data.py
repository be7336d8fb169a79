"""Recordings as rows, and rows as train, validation and test splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from peft_audio.audio import AudioError, AudioInfo, read_info
from peft_audio.config import DataConfig, UserError

BUNDLED = Path(__file__).parent / "assets" / "digits"
SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {split: split for split in SPLITS} | {"valid": "validation", "val": "validation"}
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au"}
UNREADABLE_SUFFIXES = {".m4a", ".aac", ".wma", ".webm", ".mp4"}
MOST_LISTED = 10


@dataclass(frozen=True)
class Splits:
    """The rows of each split.

    A row has `id` (unique), `audio` (`path` or `bytes`), `label` (a number), `group` (speaker or source, "" if not
    known), `num_frames`, `sampling_rate` in hertz and `num_bytes` as the file has them.

    Attributes:
        train: What is trained on.
        validation: What settings and the best epoch are chosen on.
        test: Read once, at the end.
        labels: The label names, in the order of the label numbers.
        ignored: Files in the folder that are not recordings by their names.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def __getitem__(self, split: str) -> Dataset:
        return getattr(self, split)

    def table(self) -> pa.Table:
        """Every clip's id, label, group and split, as the run saves them."""
        parts = []
        for split in SPLITS:
            rows = self[split]
            labels = [self.labels[i] for i in rows["label"]]
            columns = {"id": rows["id"], "label": labels, "group": rows["group"], "split": [split] * len(rows)}
            parts.append(pa.table({name: pa.array(list(values), pa.string()) for name, values in columns.items()}))
        return pa.concat_tables(parts)

    def dataset_sha256(self) -> str:
        """A hash of every clip's id, label, frames, rate and bytes: changed, added or relabelled clips change it.

        The bytes are counted, not read, so an edit that keeps length and size is not seen.
        """
        rows = (row for split in SPLITS for row in self[split].remove_columns("audio"))
        facts = ("id", "num_frames", "sampling_rate", "num_bytes")
        return _sha256("\t".join([self.labels[row["label"]], *(str(row[fact]) for fact in facts)]) for row in rows)

    def split_sha256(self) -> str:
        """A hash of which clip stands in which split."""
        return _sha256(f"{row['id']}\t{row['split']}" for row in self.table().to_pylist())


def load_splits(cfg: DataConfig) -> Splits:
    """Find the clips and divide them; nothing is decoded yet.

    Raises:
        UserError: There is nothing to train on, a file cannot be read, or a class is too small to be divided.
    """
    splits = _bundled() if cfg.source == "bundled" else _from_folder(cfg)
    return splits if cfg.max_train_clips is None else replace(splits, train=_fewer(splits, cfg.max_train_clips, cfg))


def _bundled() -> Splits:
    tables = {split: pq.read_table(BUNDLED / f"{split}.parquet") for split in SPLITS}
    labels = tuple(sorted(set(tables["train"]["label"].to_pylist())))
    rows = {split: table.to_pylist() for split, table in tables.items()}
    for row in (row for split in SPLITS for row in rows[split]):
        row["num_bytes"] = len(row["audio"]["bytes"])
    return _to_splits(rows, labels)


def _from_folder(cfg: DataConfig) -> Splits:
    root = Path(cfg.source).expanduser()
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise UserError(
            f'--data.source: {cfg.source} {what}; give "bundled" or a folder with one subfolder of recordings a class.'
        )
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    given = bool(folders) and all(folder.name in SPLIT_FOLDERS for folder in folders)
    named = [folder.name for folder in folders if folder.name in SPLIT_FOLDERS and _has_class_folders(folder)]
    if named and not given:
        other = [folder.name for folder in folders if folder.name not in SPLIT_FOLDERS]
        raise UserError(
            f"--data.source: {root} has split folders ({_listed(named)}) beside other folders ({_listed(other)}); "
            "move the others away, or put all clips in class folders."
        )
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for folder in folders if given else [root]:
        rows[SPLIT_FOLDERS[folder.name] if given else "train"] += _find_clips(folder, root)
    labels = _check_labels(rows, cfg.source)
    _read_headers([row for split in SPLITS for row in rows[split]])
    _make_missing_splits(rows, cfg)
    ignored = [path for path in files_below(root) if path.suffix.lower() not in AUDIO_SUFFIXES]
    return replace(_to_splits(rows, labels), ignored=tuple(path.relative_to(root).as_posix() for path in ignored))


def files_below(folder: Path) -> list[Path]:
    """Every file below a folder, links to folders followed once, hidden ones left out; sorted by path."""
    seen, files = set(), []
    for parent, folders, names in os.walk(folder, followlinks=True):
        # A link back to a folder above would go round for ever.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda path: path.as_posix())


def _has_class_folders(folder: Path) -> bool:
    inside = list(folder.iterdir())
    return any(path.is_dir() for path in inside) and not any(path.suffix.lower() in AUDIO_SUFFIXES for path in inside)


def _find_clips(folder: Path, root: Path) -> list[dict[str, Any]]:
    """One row for each recording below each class folder; the label is the class folder's name."""
    loose = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if loose:
        raise UserError(
            f"--data.source: {folder} has recordings outside any class folder ({_listed(loose)}); "
            "move each into a subfolder named by its label."
        )
    files = files_below(folder)
    closed = [str(path.relative_to(root)) for path in files if path.suffix.lower() in UNREADABLE_SUFFIXES]
    if closed:
        raise UserError(
            f"--data.source: cannot decode {_listed(closed)}; convert to one of {', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    files = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    classes = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    barren = sorted(classes - {path.relative_to(folder).parts[0] for path in files})
    if files and barren:
        raise UserError(
            f"--data.source: no recordings in {_listed([str(folder / name) for name in barren])}; "
            "add some, or move the folder away."
        )
    return [
        {
            "id": path.relative_to(root).as_posix(),
            "audio": {"path": str(path), "bytes": None},
            "label": path.relative_to(folder).parts[0],
            "group": "",
        }
        for path in files
    ]


def _check_labels(rows: dict[str, list[dict[str, Any]]], source: str) -> tuple[str, ...]:
    labels = tuple(sorted({row["label"] for split in SPLITS for row in rows[split]}))
    if not labels:
        raise UserError(
            f"--data.source: found no recordings in {source}; expected one subfolder a class with files of type "
            f"{', '.join(sorted(AUDIO_SUFFIXES))}."
        )
    if len(labels) == 1:
        raise UserError(
            f"--data.source: {source} has one class, {labels[0]!r}; a classifier needs two or more. "
            "Give the folder above the class folders, or add another class."
        )
    for split in SPLITS:
        absent = sorted(set(labels) - {row["label"] for row in rows[split]})
        if rows[split] and absent:
            raise UserError(
                f"--data.source: the {split} split of {source} has no clips of {_listed(absent)}; "
                "add some, or put all clips in class folders and let the splits be made."
            )
    if not rows["train"]:
        raise UserError(f"--data.source: {source} has no train folder with recordings; add one.")
    return labels


def _read_headers(rows: list[dict[str, Any]]) -> None:
    """Add frames and rate to every row; all unreadable files are named at once, before anything trains."""

    def header(row: dict[str, Any]) -> AudioInfo | str:
        try:
            return read_info(Path(row["audio"]["path"]))
        except AudioError as error:
            return f"{row['audio']['path']} {error}"

    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(header, rows))
    broken = [found for found in headers if isinstance(found, str)]
    if broken:
        more = f"\n  and {len(broken) - MOST_LISTED} more" if len(broken) > MOST_LISTED else ""
        raise UserError(
            f"--data.source: {len(broken)} of {len(rows)} files cannot be used; mend or remove them:\n  "
            + "\n  ".join(broken[:MOST_LISTED])
            + more
        )
    for row, found in zip(rows, headers, strict=True):
        assert isinstance(found, AudioInfo)
        row.update(num_frames=found.num_frames, sampling_rate=found.sampling_rate)
        row["num_bytes"] = Path(row["audio"]["path"]).stat().st_size


def _make_missing_splits(rows: dict[str, list[dict[str, Any]]], cfg: DataConfig) -> None:
    """Hold out what the folder does not give, stratified by label; in place."""
    shares = {"test": cfg.test_share, "validation": cfg.validation_share}
    absent = {split: share for split, share in shares.items() if not rows[split]}
    if not absent:
        return
    by_label: dict[str, list[dict[str, Any]]] = {}
    for row in rows["train"]:
        by_label.setdefault(row["label"], []).append(row)
    smallest = min(by_label, key=lambda label: len(by_label[label]))
    if len(by_label[smallest]) <= len(absent):
        raise UserError(
            f"--data.source: class {smallest!r} has too few clips ({len(by_label[smallest])}) to hold out "
            f"{' and '.join(absent)}; it needs {len(absent) + 1} at least. "
            "Add clips, or give the splits as folders train/, validation/ and test/."
        )
    rng = np.random.default_rng(cfg.split_seed)
    for label in sorted(by_label):
        clips = [by_label[label][i] for i in rng.permutation(len(by_label[label]))]
        whole = len(clips)
        for split, share in absent.items():
            others = len(absent) - list(absent).index(split)  # clips that later splits and training need
            count = min(max(1, round(share * whole)), len(clips) - others)
            rows[split] += clips[:count]
            clips = clips[count:]
        by_label[label] = clips
    rows["train"] = [row for label in sorted(by_label) for row in by_label[label]]


def _fewer(splits: Splits, wanted: int, cfg: DataConfig) -> Dataset:
    """So many training clips, as evenly over the classes as they allow."""
    if wanted < len(splits.labels):
        raise UserError(
            f"--data.max_train_clips: got {wanted}, must be {len(splits.labels)}, one of each class, or more. Raise it."
        )
    numbers, seen, rank = splits.train["label"], Counter[int](), {}
    for i in np.random.default_rng(cfg.split_seed).permutation(len(numbers)).tolist():
        rank[i] = seen[numbers[i]]
        seen[numbers[i]] += 1
    # Every class's first clip, then every class's second one, and so on.
    return splits.train.select(sorted(sorted(rank, key=rank.__getitem__)[:wanted]))


def _to_splits(rows: dict[str, list[dict[str, Any]]], labels: tuple[str, ...]) -> Splits:
    schema = pa.schema(
        {
            "id": pa.string(),
            "audio": pa.struct({"path": pa.string(), "bytes": pa.binary()}),
            "label": pa.int64(),
            "group": pa.string(),
            "num_frames": pa.int64(),
            "sampling_rate": pa.int32(),
            "num_bytes": pa.int64(),
        }
    )
    number = {label: i for i, label in enumerate(labels)}
    for split in SPLITS:
        # Training draws by row number: the order of the rows must not depend on how the splits were made.
        rows[split].sort(key=lambda row: row["id"])
    tables = {
        split: Dataset(pa.Table.from_pylist([{**row, "label": number[row["label"]]} for row in rows[split]], schema))
        for split in SPLITS
    }
    return Splits(**tables, labels=labels)


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
