"""Find out which clips of a source an adapter's own run divided, and which it was trained or validated on."""

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
from peft_audio.data.tables import MANIFEST_SUFFIXES
from peft_audio.files import expanded
from peft_audio.runs.finished import made_adapter


@dataclass(frozen=True)
class OwnRun:
    """The run that made an adapter.

    Attributes:
        folder: folder of the run.
        clips: one row per clip of its splits: `id`, `group`, `split` and `clip_hash` ("" in runs of earlier versions).
        settings: its settings by dotted name.
    """

    folder: Path
    clips: pd.DataFrame
    settings: dict[str, Any]

    def divide(self, clips: pd.DataFrame) -> pd.DataFrame:
        """Give each clip its split in the run, and its group where it has none; "" for clips that the run lacks.

        Clips are equal if their files are equal, whatever their names; a clip that the run has under the same name goes
        first, then a copy in the split that is worst for a test: train, validation, test. The splits of earlier
        versions hold no hashes, so that names decide.
        """
        key = "clip_hash" if self.hashed else "id"
        own = self.clips.assign(rank=self.clips["split"].map(list(SPLITS).index)).sort_values("rank", kind="stable")
        first = own.drop_duplicates(key).set_index(key)
        same_name = own.drop_duplicates(["id", key]).set_index(["id", key])
        names = pd.MultiIndex.from_arrays([clips["id"], clips[key]])
        found = {}
        for column in ("split", "group"):
            by_name = same_name[column].reindex(names).to_numpy(object)
            by_hash = first[column].reindex(clips[key]).to_numpy(object)
            values = np.where(pd.isna(by_name), by_hash, by_name)
            found[column] = np.where(pd.isna(values), "", values)
        group = np.where(clips["group"] != "", clips["group"], found["group"])
        return clips.assign(split=found["split"], group=group)

    @property
    def hashed(self) -> bool:
        """Whether its splits hold the hashes of its clips."""
        return bool((self.clips["clip_hash"] != "").any())

    def holds_whole(self, split: str, clips: pd.DataFrame) -> bool:
        """Return whether clips include the whole of one split of the run."""
        key = "clip_hash" if self.hashed else "id"
        wanted = set(self.clips[key][self.clips["split"] == split])
        return bool(wanted) and wanted <= set(clips[key])

    def contradictions(self, cfg: DataConfig) -> list[str]:
        """Describe each given setting by which the run would have divided its clips in another way."""
        changed = changed_fields(cfg)
        given = {name: changed[name] for name, about in settings_of(cfg).items() if name in changed and about.divides}
        made = {name: self.settings.get(f"data.{name}") for name in given}
        return [
            f"--data.{name}: got {value!r}, but the run used {made[name] if made[name] is not None else 'none'!r}"
            for name, value in given.items()
            if value != made[name]
        ]


def own_run(folder: Path | None, record: AdapterRecord) -> OwnRun | None:
    """Read the run whose folder an adapter is in; None if it is in none, or in that of another run."""
    run = made_adapter(folder, record) if folder else None
    if run is None:
        return None
    try:
        clips = pq.read_table(run / "splits.parquet").to_pandas()
        settings = dotted((run / "config.yaml").read_text(encoding="utf-8"))
        clips = clips.reindex(columns=["id", "group", "split", "clip_hash"]).fillna("")
    except (OSError, ValueError, yaml.YAMLError, pa.ArrowException):
        return None
    return OwnRun(run, clips[clips["split"].isin(SPLITS)], settings) if len(clips) else None


def read_as_in_run(cfg: DataConfig, run: OwnRun | None) -> DataConfig:
    """Return the settings with the columns and names by which the run read the same source, where none are given."""
    if run is None or not _same_source(cfg.source, str(run.settings.get("data.source", ""))):
        return cfg
    made = {
        name: run.settings.get(f"data.{name}")
        for name, about in settings_of(cfg).items()
        if about.names_parts and name not in changed_fields(cfg)
    }
    return replace(cfg, **{name: value for name, value in made.items() if value is not None})


def _same_source(given: str, made: str) -> bool:
    here, there = expanded(given), expanded(made)
    manifest = here.suffix.lower() in MANIFEST_SUFFIXES and here.name == there.name
    return given == made or manifest or (here.exists() and here.resolve() == there.resolve())


@dataclass(frozen=True)
class Seen:
    """Which clips an adapter was trained or validated on.

    Attributes:
        clips: bool of shape (clips,).
        source: file that says so.
        false_alarms: share of the new clips that are taken for seen ones.
    """

    clips: np.ndarray
    source: str
    false_alarms: float = 0.0


def seen_clips(clips: pd.DataFrame, folder: Path | None, run: OwnRun | None) -> Seen | None:
    """Find the clips that an adapter was trained or validated on; None if that is not recorded.

    A part of a recording is one of them also where the whole recording is.

    Args:
        clips: with `id`, `sha256`, `start_seconds`, `end_seconds` and `clip_hash`.
        folder: folder of the adapter.
        run: the run that made it.
    """
    recorded = read_trained_clips(folder) if folder else None
    whole = [clip_hash(file, 0.0, None) for file in clips["sha256"]]
    if recorded is not None:
        found = recorded.holds(clips["clip_hash"]) | recorded.holds(whole)
        return Seen(found, "trained_clips.bin", FALSE_ALARMS if recorded.functions else 0.0)
    if run is None or run.settings.get("data.streaming"):
        return None
    learned = {"train", "validation"} | ({"test"} if run.settings.get("data.validate_on_test") else set())
    own = run.clips[run.clips["split"].isin(learned)]
    if not run.hashed:
        return Seen(clips["id"].isin(set(own["id"])).to_numpy(), "the names in splits.parquet")
    known = set(own["clip_hash"])
    found = [one in known or all_of_it in known for one, all_of_it in zip(clips["clip_hash"], whole, strict=True)]
    return Seen(np.array(found), "splits.parquet")
