"""Find the clips of any kind of source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from peft_audio.config import DataConfig
from peft_audio.config.fields import SourceKind, changed_fields, settings_of
from peft_audio.data.clip_table import SPLITS, ClipTable, check_labels, make_clips, with_groups
from peft_audio.data.divide import apply_splits_file
from peft_audio.data.folder import from_folder
from peft_audio.data.hub_dataset import from_hub, resolve_commit
from peft_audio.data.layouts import doubt_classes, explain_folder
from peft_audio.data.manifest import from_manifest
from peft_audio.data.tables import MANIFEST_SUFFIXES
from peft_audio.errors import UserError
from peft_audio.files import expanded

SOURCE_NAMES: dict[SourceKind, str] = {"manifest": "manifests", "hub": "datasets on the Hub"}
SAVE_AS = dict.fromkeys((".xlsx", ".xls", ".ods"), ".csv") | {".txt": ".tsv", ".tab": ".tsv", ".json": ".jsonl"}
BUNDLED = Path(__file__).parents[1] / "assets" / "digits"


def find_clips(cfg: DataConfig, least_labels: int = 2) -> ClipTable:
    """Find the clips of a source with their groups and, with `data.splits_file`, their splits; decode nothing.

    Args:
        cfg: Source and settings to read it.
        least_labels: Smallest number of labels; training a classifier needs 2.

    Raises:
        UserError: The source does not exist, or has no clips or too few labels.
    """
    place = expanded(cfg.source)
    if cfg.source == "bundled":
        _refuse_inapplicable(cfg, "bundled")
        collection = _bundled()
    elif place.is_dir():
        _refuse_inapplicable(cfg, "folder")
        collection = _from_folder(place, least_labels)
    elif place.suffix.lower() in MANIFEST_SUFFIXES:
        _refuse_inapplicable(cfg, "manifest")
        collection = from_manifest(place, cfg)
    elif _is_on_hub(cfg):
        collection = from_hub(cfg)
    else:
        problem = "is no table of these kinds" if place.is_file() else "does not exist"
        save_as = f" Save this table as {SAVE_AS[place.suffix.lower()]}." if place.suffix.lower() in SAVE_AS else ""
        raise UserError(
            f'--data.source: {cfg.source} {problem}; give "bundled", a folder with one subfolder of recordings per '
            f"class, a manifest ({', '.join(MANIFEST_SUFFIXES)}) or the id of a Hub dataset.{save_as}"
        )
    check_labels(collection.labels, cfg.source, least_labels)
    collection = with_groups(collection, cfg)
    if cfg.splits_file is None:
        return collection
    clips, note = apply_splits_file(collection.clips, cfg.splits_file)
    kept = set(collection.task.label_names(list(clips["label"])))
    labels = tuple(label for label in collection.labels if label in kept)
    check_labels(labels, f"the part of {cfg.source} listed in {cfg.splits_file}", least_labels)
    return replace(collection, clips=clips, labels=labels, notes=(*collection.notes, *([note] if note else [])))


def _from_folder(root: Path, least_labels: int) -> ClipTable:
    try:
        collection = from_folder(root)
        check_labels(collection.labels, str(root), least_labels)
    except UserError as error:
        hint = explain_folder(root)
        raise UserError(f"{error} {hint}" if hint else str(error)) from error
    return replace(collection, doubts=tuple(doubt_classes(root, collection)))


def _is_on_hub(cfg: DataConfig) -> bool:
    place = expanded(cfg.source)
    named = place.suffix.lower() not in MANIFEST_SUFFIXES and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", cfg.source)
    return bool(named) and not place.exists()


def pin_revision(cfg: DataConfig, accelerator: Accelerator | None) -> DataConfig:
    """Set the revision of a Hub dataset to its current commit, the same on every process.

    Args:
        cfg: Settings of the source.
        accelerator: Processes of the run; None for a single process.
    """
    if not _is_on_hub(cfg):
        return cfg
    commit = resolve_commit(cfg)
    if accelerator is not None and accelerator.num_processes > 1:
        commit = broadcast_object_list([commit])[0]
    return replace(cfg, revision=commit)


def refuse_training_settings(cfg: DataConfig) -> None:
    """Refuse settings that affect only training, for commands that do not train.

    Settings that affect only cost are ignored.

    Raises:
        UserError: Such a setting was changed.
    """
    for name, value in changed_fields(cfg).items():
        if settings_of(cfg)[name].stage not in ("splits", "input", "cost"):
            raise UserError(f"--data.{name}: got {value}, must be left out: nothing is trained here. Leave it out.")


def _refuse_inapplicable(cfg: DataConfig, kind: SourceKind) -> None:
    """Refuse changed settings that do not apply to this kind of source."""
    for name, value in changed_fields(cfg).items():
        kinds = settings_of(cfg)[name].source_kinds
        fix = " Try --data.group_pattern, which takes the group from the file name." if name == "group_column" else ""
        if kind not in kinds:
            applicable = [names for name, names in SOURCE_NAMES.items() if name in kinds]
            raise UserError(
                f"--data.{name}: got {value}, must be left out with the source {cfg.source}: it is for "
                f"{' and '.join(applicable)}.{fix or ' Leave it out.'}"
            )


def _bundled() -> ClipTable:
    table = pa.concat_tables(
        pq.read_table(BUNDLED / f"{split}.parquet").append_column("split", pa.array([split] * rows))
        for split in SPLITS
        for rows in [pq.read_metadata(BUNDLED / f"{split}.parquet").num_rows]
    )
    clips = make_clips(table.select(["id", "label", "group", "split"]).to_pandas().astype(object))
    clips["stored"] = np.arange(len(clips))
    return ClipTable(clips, tuple(sorted(set(clips["label"]))), stored=Dataset(table.select(["audio"])))
