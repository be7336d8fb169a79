"""A dataset on the Hub, downloaded or streamed; its audio is decoded by us, never by datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    IterableDatasetDict,
    Value,
    concatenate_datasets,
    load_dataset,
)
from huggingface_hub import HfApi
from huggingface_hub.constants import HF_HUB_CACHE

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable, make_clips, name_splits
from peft_audio.errors import UserError, library_problem
from peft_audio.files import atomic_file, sha256
from peft_audio.text import listed

FILE = {"bytes": Value("binary"), "path": Value("string")}
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Stream:
    """The training split of a Hub dataset, read over the network.

    Attributes:
        name: The dataset, and its configuration.
        rows: With the columns `audio` (`bytes`, `path`) and `label`.
        label_names: Of the numbers in `label`; None where the column holds names.
        skipped: Grows with the clips that this process could not use: the reason by name.
    """

    name: str
    rows: IterableDataset
    label_names: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Columns:
    """Which columns hold what."""

    audio: str
    label: str
    group: str | None

    def names(self) -> list[str]:
        return [self.audio, self.label, *([self.group] if self.group else [])]


def from_hub(cfg: DataConfig) -> ClipTable:
    """The clips of a Hub dataset; without those to train on, if they are streamed.

    Raises:
        UserError: It is not there or cannot be read, or it is not clear which columns to take.
    """
    commit = resolve_commit(cfg)
    found = _open(cfg, commit)
    columns = _columns(next(iter(found.values())).features, cfg)
    splits, notes = _splits(found, cfg)
    notes.append(f"{cfg.source} at commit {commit[:12]}; audio in {columns.audio!r}, labels in {columns.label!r}")
    parts: dict[str, Dataset] = {}
    for split, rows in splits.items():
        part = rows.select_columns(columns.names()).cast_column(columns.audio, Audio(decode=False))
        if isinstance(part, IterableDataset):
            if split == "train":
                continue
            with _told_in_words(cfg):
                part = _download(part, f"{cfg.source} {cfg.config_name} {cfg.split_names} {commit} {split} {columns}")
        parts[split] = part
        _refuse_files_elsewhere(part.data.column(columns.audio), cfg)
    clips = [_clips(part, "" if set(parts) == {"train"} else split, columns, cfg) for split, part in parts.items()]
    table = pd.concat(clips, ignore_index=True)
    names = [Path(path).name for path in table["id"]]
    table["id"] = names
    if not all(names) or table["id"].duplicated().any():
        table["id"] = [f"{split}/{i}" for split, part in parts.items() for i in range(len(part))]
    table["stored"] = np.arange(len(table))
    features = next(iter(parts.values())).features
    labels = _labels(table, features[columns.label])
    audio = [_renamed(part.select_columns([columns.audio]), {columns.audio: "audio"}) for part in parts.values()]
    return ClipTable(table, labels, concatenate_datasets(audio), tuple(notes), (), commit, tuple(names))


def open_stream(cfg: DataConfig, commit: str | None) -> Stream:
    """The training split of a Hub dataset, to be read as training goes.

    Args:
        cfg: Which dataset and columns.
        commit: That the other splits were read at.

    Raises:
        UserError: It is not there or cannot be read.
    """
    found = _open(cfg, commit)
    columns = _columns(next(iter(found.values())).features, cfg)
    rows = _splits(found, cfg)[0]["train"]
    feature = rows.features[columns.label]
    # Not as audio, even undecoded: datasets would encode each clip again, with a package that we do without.
    rows = rows.select_columns([columns.audio, columns.label]).cast_column(columns.audio, FILE)
    rows = _renamed(rows, {columns.audio: "audio", columns.label: "label"})
    names = feature.names if isinstance(feature, ClassLabel) else None
    return Stream(f"{cfg.source} {cfg.config_name or ''}".strip(), rows, names)


def resolve_commit(cfg: DataConfig) -> str:
    """The commit that a branch stands for now: what is pushed later does not change a run.

    Raises:
        UserError: There is no such dataset or revision, or the Hub cannot be asked.
    """
    if cfg.revision is not None and COMMIT.fullmatch(cfg.revision):
        return cfg.revision
    revision = "" if cfg.revision is None else f" at --data.revision {cfg.revision}"
    try:
        commit = HfApi().dataset_info(cfg.source, revision=cfg.revision).sha
    except Exception as error:  # the kinds differ between versions of huggingface_hub
        raise UserError(
            f"--data.source: {cfg.source}{revision} is not a local folder, and the Hub did not return it: "
            f"{library_problem(error)}. Give a folder, or correct the name."
        ) from error
    assert commit is not None
    return commit


def _open(cfg: DataConfig, commit: str | None) -> DatasetDict | IterableDatasetDict:
    with _told_in_words(cfg):
        return load_dataset(cfg.source, cfg.config_name, revision=commit, streaming=cfg.streaming)


@contextmanager
def _told_in_words(cfg: DataConfig) -> Iterator[None]:
    """What datasets cannot do, as a message with a way out."""
    try:
        yield
    except Exception as error:  # datasets raises a dozen kinds, of its own and others
        reason = " ".join(f"{library_problem(error)} {error.__cause__ or ''}".split())[:500]
        advice = "see its page on the Hub"
        if "Config name is missing" in reason or "BuilderConfig" in reason:
            advice = "choose one with --data.config_name"
        elif "scripts are no longer supported" in reason:
            advice = "try --data.revision refs/convert/parquet, where the Hub keeps a converted copy"
        elif "torchcodec" in reason:
            # It is not in Parquet but in files of its own; datasets would decode those itself.
            advice = f"download its files (hf download {cfg.source} --repo-type dataset --local-dir DIR) and give DIR"
        raise UserError(f"--data.source: {cfg.source} cannot be read: {reason}; {advice}.") from error


def _columns(features: Features, cfg: DataConfig) -> _Columns:
    """The columns that were named, or the only ones that can be meant."""
    usable = {
        "audio_column": [name for name, feature in features.items() if _is_audio(feature)],
        "label_column": [name for name, feature in features.items() if _is_class(feature)],
        "group_column": [name for name, feature in features.items() if _is_class(feature)],
    }
    labels = [name for name in usable["label_column"] if isinstance(features[name], ClassLabel)]
    guessed = {"audio_column": usable["audio_column"], "label_column": labels or ["label"], "group_column": []}
    found: dict[str, str | None] = {}
    for flag, allowed in usable.items():
        named = getattr(cfg, flag)
        if named is None and flag == "group_column":
            found[flag] = None
            continue
        candidates = [named] if named else [name for name in guessed[flag] if name in allowed]
        if len(candidates) != 1 or candidates[0] not in allowed:
            what = f"has no such column {named!r}" if named else f"has {len(candidates)} columns that it could be"
            every = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
            raise UserError(f"--data.{flag}: {cfg.source} {what}; its columns are {every}. Name one of them.")
        found[flag] = candidates[0]
    return _Columns(str(found["audio_column"]), str(found["label_column"]), found["group_column"])


def _is_audio(feature: Any) -> bool:
    return isinstance(feature, Audio) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_class(feature: Any) -> bool:
    """Whether a column can hold a class or a group: names, numbers of names, whole numbers, text."""
    plain = isinstance(feature, Value) and (feature.dtype.startswith(("int", "uint", "string", "large_string", "bool")))
    return isinstance(feature, ClassLabel) or plain


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _splits(found: Any, cfg: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """The splits under our names, and a note on those that have none."""
    names = list(found)
    absent = sorted(set(cfg.split_names or ()) - set(names))
    if absent:
        raise UserError(f"--data.split_names: {cfg.source} has no {listed(absent)}, only {listed(names, 20)}.")
    ours = name_splits(names, "data.source", cfg.split_names)
    if not ours and len(names) == 1:
        ours = {names[0]: "train"}
    splits = {split: found[name] for name, split in ours.items()}
    other = [name for name in names if name not in ours]
    if "train" not in splits:
        raise UserError(
            f"--data.source: {cfg.source} has no train split, only {listed(names, 20)}; say which is which with "
            f"--data.split_names, as in '{{{names[0]}: train}}'."
        )
    if cfg.streaming and set(splits) != set(SPLITS):
        raise UserError(
            f"--data.streaming: {cfg.source} must have the splits {', '.join(SPLITS)}; it has {listed(list(found))}. "
            "Leave streaming out, then the missing ones are made."
        )
    return splits, [f"splits that are not used: {listed(other)}"] if other else []


def _download(rows: IterableDataset, key: str) -> Dataset:
    """A streamed split as a table on disk, kept in datasets' cache for the next run."""
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "peft_audio"
    file = cache / f"{sha256([key.encode()])[:32]}.arrow"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Several processes may write at once: each its own file, and the last one to be done stays.
        partial = file.with_suffix(f".{os.getpid()}.partial")
        schema = rows.features.arrow_schema
        with atomic_file(file, partial=partial) as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in rows.with_format("arrow").iter(100):
                writer.write_table(batch.select(schema.names).cast(schema))
    return Dataset.from_file(str(file))


def _renamed(rows: Any, names: dict[str, str]) -> Any:
    changed = {old: new for old, new in names.items() if old != new}
    return rows.rename_columns(changed) if changed else rows


def _clips(rows: Dataset, split: str, columns: _Columns, cfg: DataConfig) -> pd.DataFrame:
    paths = pc.struct_field(rows.data.column(columns.audio), "path").to_pylist()
    found = {"id": [path or "" for path in paths], "label": _names(rows, columns.label, cfg), "split": split}
    if columns.group:
        found["group"] = _names(rows, columns.group, cfg)
    return make_clips(found)


def _refuse_files_elsewhere(audio: pa.ChunkedArray, cfg: DataConfig) -> None:
    """Refuse rows that name a file instead of holding one: of what stands here, a dataset may name only its own."""
    caches = [Path(cache).resolve() for cache in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)]
    for path in pc.struct_field(audio, "path").filter(pc.is_null(pc.struct_field(audio, "bytes"))).to_pylist():
        if not any(Path(path or "").resolve().is_relative_to(cache) for cache in caches):
            what = f"has a row without sound, which names the file {path}; that did not come with it and is not opened"
            raise UserError(f"--data.source: {cfg.source} {what}. Take another revision, or another dataset.")


def _names(rows: Dataset, column: str, cfg: DataConfig) -> list[str]:
    """A column as text; a class label by its name."""
    values, feature = rows.data.column(column).to_pylist(), rows.features[column]
    unknown = [i for i, value in enumerate(values) if value is None or (isinstance(feature, ClassLabel) and value < 0)]
    if unknown:
        raise UserError(
            f"--data.source: {len(unknown)} rows of {cfg.source} have nothing in {column!r}, row {unknown[0]} first. "
            "Take another column, or a revision with labels."
        )
    to_name = feature.int2str if isinstance(feature, ClassLabel) else str
    return [to_name(value) for value in values]


def _labels(clips: pd.DataFrame, feature: Any) -> tuple[str, ...]:
    """The labels that occur, in the dataset's own order if it has one."""
    found = set(clips["label"])
    if isinstance(feature, ClassLabel):
        return tuple(name for name in feature.names if name in found)
    return tuple(sorted(found))
