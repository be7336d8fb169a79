"""Read datasets of the Hub, downloaded or streamed; `audio.decoding` decodes them instead of the datasets library."""

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
from peft_audio.data.clip_table import SPLITS, ClipTable, make_clips, map_split_names
from peft_audio.errors import UserError, library_problem
from peft_audio.files import atomic_file, sha256
from peft_audio.text import listed

FILE = {"bytes": Value("binary"), "path": Value("string")}
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Stream:
    """Training split of a Hub dataset, read over the network.

    Attributes:
        name: Name of the dataset and its configuration.
        rows: Rows with the columns `audio` (`bytes`, `path`) and `label`.
        label_names: Names of the numbers in `label`; None if the column holds names.
        skipped: Reason by name of each clip that this process could not use; grows during training.
    """

    name: str
    rows: IterableDataset
    label_names: list[str] | None = None
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Columns:
    """Names of the columns of a dataset."""

    audio: str
    label: str
    group: str | None

    def names(self) -> list[str]:
        return [self.audio, self.label, *([self.group] if self.group else [])]


def from_hub(cfg: DataConfig) -> ClipTable:
    """List the clips of a Hub dataset, without the training clips if they are streamed.

    Raises:
        UserError: The dataset does not exist or cannot be read, or its columns are ambiguous.
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
            with _readable_errors(cfg):
                part = _download(part, f"{cfg.source} {cfg.config_name} {cfg.split_names} {commit} {split} {columns}")
        parts[split] = part
        _refuse_outside_files(part.data.column(columns.audio), cfg)
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
    """Open the training split of a Hub dataset for streaming.

    Args:
        cfg: Dataset and its columns.
        commit: Commit that the other splits were read at.

    Raises:
        UserError: The dataset does not exist or cannot be read.
    """
    found = _open(cfg, commit)
    columns = _columns(next(iter(found.values())).features, cfg)
    rows = _splits(found, cfg)[0]["train"]
    feature = rows.features[columns.label]
    # As plain bytes: even for undecoded audio, datasets would encode each clip again, with torchcodec.
    rows = rows.select_columns([columns.audio, columns.label]).cast_column(columns.audio, FILE)
    rows = _renamed(rows, {columns.audio: "audio", columns.label: "label"})
    names = feature.names if isinstance(feature, ClassLabel) else None
    return Stream(f"{cfg.source} {cfg.config_name or ''}".strip(), rows, names)


def resolve_commit(cfg: DataConfig) -> str:
    """Resolve the revision of a Hub dataset to its current commit, so that later pushes do not change a run.

    Raises:
        UserError: The dataset or revision does not exist, or the Hub cannot be reached.
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
    with _readable_errors(cfg):
        return load_dataset(cfg.source, cfg.config_name, revision=commit, streaming=cfg.streaming)


@contextmanager
def _readable_errors(cfg: DataConfig) -> Iterator[None]:
    """Convert errors of the datasets library to messages with advice."""
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
            # The audio is in separate files instead of Parquet, and datasets insists on decoding those.
            advice = f"download its files (hf download {cfg.source} --repo-type dataset --local-dir DIR) and give DIR"
        raise UserError(f"--data.source: {cfg.source} cannot be read: {reason}; {advice}.") from error


def _columns(features: Features, cfg: DataConfig) -> _Columns:
    """Return the columns named in the settings, or the only ones that fit.

    Raises:
        UserError: A named column does not exist, or none or several columns fit.
    """
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
            problem = f"has no column {named!r}" if named else f"has {len(candidates)} columns that fit"
            every = ", ".join(f"{name} ({_kind(feature)})" for name, feature in features.items())
            raise UserError(f"--data.{flag}: {cfg.source} {problem}; its columns are {every}. Name one of them.")
        found[flag] = candidates[0]
    return _Columns(str(found["audio_column"]), str(found["label_column"]), found["group_column"])


def _is_audio(feature: Any) -> bool:
    return isinstance(feature, Audio) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _is_class(feature: Any) -> bool:
    """Return whether a column can hold a class or a group: class labels, integers, booleans or text."""
    plain = isinstance(feature, Value) and (feature.dtype.startswith(("int", "uint", "string", "large_string", "bool")))
    return isinstance(feature, ClassLabel) or plain


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _splits(dataset: Any, cfg: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """Return the splits named train, validation and test, and a note on splits that are not used."""
    names = list(dataset)
    absent = sorted(set(cfg.split_names or ()) - set(names))
    if absent:
        raise UserError(f"--data.split_names: {cfg.source} has no {listed(absent)}, only {listed(names, 20)}.")
    split_of = map_split_names(names, "data.source", cfg.split_names)
    if not split_of and len(names) == 1:
        split_of = {names[0]: "train"}
    splits = {split: dataset[name] for name, split in split_of.items()}
    unused = [name for name in names if name not in split_of]
    if "train" not in splits:
        raise UserError(
            f"--data.source: {cfg.source} has no train split, only {listed(names, 20)}; map the names with "
            f"--data.split_names, such as '{{{names[0]}: train}}'."
        )
    if cfg.streaming and set(splits) != set(SPLITS):
        raise UserError(
            f"--data.streaming: {cfg.source} must have the splits {', '.join(SPLITS)}; it has {listed(names)}. "
            "Without streaming, missing splits are made."
        )
    return splits, [f"splits that are not used: {listed(unused)}"] if unused else []


def _download(rows: IterableDataset, key: str) -> Dataset:
    """Save a streamed split as a table in the cache of datasets, or reuse that of an earlier run."""
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "peft_audio"
    file = cache / f"{sha256([key.encode()])[:32]}.arrow"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Several processes may write at once, each to its own file; the last one to finish replaces the others.
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
    clips = {"id": [path or "" for path in paths], "label": _names(rows, columns.label, cfg), "split": split}
    if columns.group:
        clips["group"] = _names(rows, columns.group, cfg)
    return make_clips(clips)


def _refuse_outside_files(audio: pa.ChunkedArray, cfg: DataConfig) -> None:
    """Refuse rows whose path is outside the caches, because a dataset could name any file of this machine."""
    caches = [Path(cache).resolve() for cache in (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)]
    for path in pc.struct_field(audio, "path").filter(pc.is_null(pc.struct_field(audio, "bytes"))).to_pylist():
        if not any(Path(path or "").resolve().is_relative_to(cache) for cache in caches):
            problem = f"has a row without audio that names {path}, a file outside the dataset, which is not opened"
            raise UserError(f"--data.source: {cfg.source} {problem}. Use another revision, or another dataset.")


def _names(rows: Dataset, column: str, cfg: DataConfig) -> list[str]:
    """Return a column as text, with class labels as names.

    Raises:
        UserError: Rows have no value.
    """
    values, feature = rows.data.column(column).to_pylist(), rows.features[column]
    unknown = [i for i, value in enumerate(values) if value is None or (isinstance(feature, ClassLabel) and value < 0)]
    if unknown:
        raise UserError(
            f"--data.source: {len(unknown)} rows of {cfg.source} have no value in {column!r}, row {unknown[0]} first. "
            "Use another column, or a revision with labels."
        )
    to_name = feature.int2str if isinstance(feature, ClassLabel) else str
    return [to_name(value) for value in values]


def _labels(clips: pd.DataFrame, feature: Any) -> tuple[str, ...]:
    """Return the labels that occur, in the order of the dataset if it has one."""
    occurring = set(clips["label"])
    if isinstance(feature, ClassLabel):
        return tuple(name for name in feature.names if name in occurring)
    return tuple(sorted(occurring))
