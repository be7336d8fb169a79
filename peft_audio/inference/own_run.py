"""Match clips of a source with those of the run that made an adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from peft_audio.adapters.record import AdapterRecord
from peft_audio.adapters.trained_clips import FALSE_ALARMS, read_trained_clips
from peft_audio.config import DataConfig, dotted
from peft_audio.config.fields import changed_fields, settings_of
from peft_audio.data.clip_table import SPLITS, clip_hash
from peft_audio.data.splits import hash_of_rows, to_rows
from peft_audio.data.tables import MANIFEST_SUFFIXES, as_text, read_table
from peft_audio.data.windows import cut_windows
from peft_audio.errors import UserError
from peft_audio.files import expanded, read_json
from peft_audio.runs.finished import made_adapter

ROWS_TRIED = 100  # first rows of a table whose paths are looked up


@dataclass(frozen=True)
class OwnRun:
    """Run that made an adapter.

    Attributes:
        folder: folder of the run.
        clips: one row per clip of its splits: `id`, `group`, `split` and `clip_hash` ("" in runs of earlier versions).
        settings: its settings by dotted name.
        dataset_sha256: hash of its clips, from its report.
    """

    folder: Path
    clips: pd.DataFrame
    settings: dict[str, Any]
    dataset_sha256: str = ""

    def divide(self, clips: pd.DataFrame) -> pd.DataFrame:
        """Add the split of each clip in the run, and its group if it has none.

        Clips are matched by the content of their files; among several copies, one with the same name is preferred.
        Otherwise the split is the first of train, validation and test that holds a copy, so that no trained clip counts
        as a test clip. Splits of earlier versions hold no hashes; their clips are matched by name.

        Args:
            clips: Scanned clips of a source.

        Returns:
            The clips with `split` and `group`; "" for clips that are not in the run.
        """
        key = "clip_hash" if self.hashed else "id"
        own = self.clips.assign(rank=self.clips["split"].map(list(SPLITS).index)).sort_values("rank", kind="stable")
        first = own.drop_duplicates(key).set_index(key)
        same_name = own.drop_duplicates(["id", key]).set_index(["id", key])
        names = pd.MultiIndex.from_arrays([clips["id"], clips[key]])
        matches = {}
        for column in ("split", "group"):
            by_name = same_name[column].reindex(names).to_numpy(object)
            by_hash = first[column].reindex(clips[key]).to_numpy(object)
            values = np.where(pd.isna(by_name), by_hash, by_name)
            matches[column] = np.where(pd.isna(values), "", values)
        group = np.where(clips["group"] != "", clips["group"], matches["group"])
        return clips.assign(split=matches["split"], group=group)

    @property
    def hashed(self) -> bool:
        """Return whether the splits hold the hashes of the clips."""
        return bool((self.clips["clip_hash"] != "").any())

    def is_other_collection(self, clips: pd.DataFrame, record: AdapterRecord) -> bool:
        """Return whether clips have the names of the run's clips but another content.

        This only concerns runs of earlier versions, which have one hash of all their clips. Clips of other runs are
        matched by their own hashes.

        Args:
            clips: scanned clips of a source, with labels of the adapter.
            record: record of the adapter.
        """
        same_names = clips[clips["id"].isin(set(self.clips["id"]))]
        if self.hashed or same_names.empty or self.settings.get("data.streaming"):
            return False
        windows = cut_windows(same_names, record.crop.get("window_seconds"), record.crop.get("hop_seconds"))
        rows = to_rows(windows, record.labels, "all", record.task)
        return hash_of_rows([rows], record.labels, record.task) != self.dataset_sha256

    def split_is_in(self, split: str, clips: pd.DataFrame) -> bool:
        """Return whether clips include all clips of one split of the run."""
        key = "clip_hash" if self.hashed else "id"
        members = set(self.clips[key][self.clips["split"] == split])
        return bool(members) and members <= set(clips[key])

    def differing_settings(self, cfg: DataConfig) -> list[str]:
        """Describe each given setting that affects the splits and differs from the run."""
        changed = changed_fields(cfg)
        given = {name: changed[name] for name, about in settings_of(cfg).items() if name in changed and about.divides}
        made = {name: self.settings.get(f"data.{name}") for name in given}
        return [
            f"--data.{name}: got {value!r}, but the run used {made[name] if made[name] is not None else 'none'!r}"
            for name, value in given.items()
            if value != made[name]
        ]


def find_run(folder: Path | None, record: AdapterRecord) -> OwnRun | None:
    """Read the run whose folder holds an adapter; None if no run or another run made this folder."""
    run = made_adapter(folder, record) if folder else None
    if run is None:
        return None
    try:
        clips = pq.read_table(run / "splits.parquet").to_pandas()
        settings = dotted((run / "config.yaml").read_text(encoding="utf-8"))
        clips = clips.reindex(columns=["id", "group", "split", "clip_hash"], fill_value="").fillna("")
    except (OSError, ValueError, yaml.YAMLError, pa.ArrowException):
        return None
    clips, made = clips[clips["split"].isin(SPLITS)], str(read_json(run / "report.json").get("dataset_sha256"))
    return OwnRun(run, clips, settings, made) if len(clips) else None


def with_run_settings(cfg: DataConfig, run: OwnRun | None) -> tuple[DataConfig, list[str]]:
    """Copy settings of columns and names from the run if it read the same source and they are not given.

    A table of the same name counts as the same source. Only columns that it has are copied.

    Returns:
        The settings, and a note about those that were copied.
    """
    if run is None or not _same_source(cfg.source, str(run.settings.get("data.source", ""))):
        return cfg, []
    made = {
        name: run.settings.get(f"data.{name}")
        for name, about in settings_of(cfg).items()
        if about.names_parts and name not in changed_fields(cfg)
    }
    made = {name: value for name, value in made.items() if value is not None}
    if made and expanded(cfg.source).suffix.lower() in MANIFEST_SUFFIXES:
        made = _applicable(made, cfg, expanded(str(run.settings["data.source"])))
    if not made:
        return cfg, []
    flags = " ".join(f"--data.{name} {value}" for name, value in made.items())
    return replace(cfg, **made), [f"{cfg.source} is read as in the run in {run.folder}: {flags}"]


def _applicable(made: dict[str, Any], cfg: DataConfig, source: Path) -> dict[str, Any]:
    """Select the settings that apply to a table: its columns, and the folder of recordings if it exists.

    The folder is left out for a table at another place whose recordings are beside it.

    Args:
        made: settings of the run by name.
        cfg: settings as given.
        source: table of the run.
    """
    file = expanded(cfg.source)
    try:
        table, _ = read_table(file, "data.source")
    except UserError:  # raised again where the clips are read
        return {}
    fitting = {name: value for name, value in made.items() if not name.endswith("_column") or value in table}
    column = fitting.get("audio_column") or cfg.audio_column or "path"
    if "audio_folder" in fitting:
        names = table[column].head(ROWS_TRIED).map(as_text) if column in table else []
        beside = file.resolve() != source.resolve() and all((file.parent / name).exists() for name in names)
        if beside or not expanded(fitting["audio_folder"]).is_dir():
            del fitting["audio_folder"]
    return fitting


def _same_source(given: str, made: str) -> bool:
    here, there = expanded(given), expanded(made)
    manifest = here.suffix.lower() in MANIFEST_SUFFIXES and here.name == there.name
    return given == made or manifest or (here.exists() and here.resolve() == there.resolve())


@dataclass(frozen=True)
class Seen:
    """Mask of the clips that an adapter was trained or validated on.

    Attributes:
        clips: bool of shape (clips,).
        source: file that the mask was made from.
        false_alarms: share of the new clips that are wrongly marked as seen.
    """

    clips: np.ndarray
    source: str
    false_alarms: float = 0.0


def seen_clips(clips: pd.DataFrame, folder: Path | None, run: OwnRun | None) -> Seen | None:
    """Mark the clips that an adapter was trained or validated on; None if that is not recorded.

    A part of a recording counts as seen if the whole recording was.

    Args:
        clips: with `id`, `sha256`, `start_seconds`, `end_seconds` and `clip_hash`.
        folder: folder of the adapter.
        run: the run that made the adapter.
    """
    recorded = read_trained_clips(folder) if folder else None
    whole_files = [clip_hash(file, 0.0, None) for file in clips["sha256"]]
    if recorded is not None:
        seen = recorded.holds(clips["clip_hash"]) | recorded.holds(whole_files)
        return Seen(seen, "trained_clips.bin", FALSE_ALARMS if recorded.functions else 0.0)
    if run is None or run.settings.get("data.streaming"):
        return None
    learned = {"train", "validation"} | ({"test"} if run.settings.get("data.validate_on_test") else set())
    own = run.clips[run.clips["split"].isin(learned)]
    if not run.hashed:
        if not clips["id"].isin(set(run.clips["id"])).any():
            return None  # the same clips may have other names in this source
        return Seen(clips["id"].isin(set(own["id"])).to_numpy(), "the names in splits.parquet")
    known = set(own["clip_hash"])
    seen = [part in known or file in known for part, file in zip(clips["clip_hash"], whole_files, strict=True)]
    return Seen(np.array(seen), "splits.parquet")
