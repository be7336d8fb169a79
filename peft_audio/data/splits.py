"""Build the train, validation and test splits of a source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable
from peft_audio.data.divide import divide, leaking_groups, missing_classes
from peft_audio.data.hub_dataset import Stream, open_stream
from peft_audio.data.scan import scan
from peft_audio.data.sources import find_clips, pin_revision
from peft_audio.data.training_audio import audio_quantiles
from peft_audio.data.windows import cut_windows, fit_lengths
from peft_audio.errors import UserError
from peft_audio.files import sha256
from peft_audio.tasks import task_of
from peft_audio.tasks.task import Task
from peft_audio.text import listed

ROWS = pa.schema(
    {
        "id": pa.string(),
        "recording": pa.string(),
        "path": pa.string(),
        "stored": pa.int64(),
        "label": pa.int64(),
        "group": pa.string(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "num_frames": pa.int64(),
        "sampling_rate": pa.int32(),
        "sha256": pa.string(),
        "clip_hash": pa.string(),
    }
)


@dataclass(frozen=True)
class Splits:
    """Rows of each split.

    A row has these columns:
        `id`: unique id.
        `recording`: id of its recording, which may be cut into several windows.
        `path` or `stored`: location of the recording, see `clip_table.recording_of`.
        `label`: target as encoded by the task.
        `group`: group; "" if not known.
        `start_seconds`, `end_seconds`: times in the file; None for the end of the file.
        `num_frames`: length of the clip in samples of the file.
        `sampling_rate`: sampling rate of the file in hertz.
        `sha256`: hash of the file.
        `clip_hash`: hash of the recording, or of the part of a file that the source lists.

    Attributes:
        train: Training rows; empty if they are streamed.
        validation: Rows for choosing settings and the best epoch.
        test: Rows that are read once, at the end.
        labels: Label names, in the order of the label numbers.
        stored: Recordings stored as bytes.
        skipped: `id` and reason of each clip that cannot be used.
        notes: Messages for the user about how the source was read.
        ignored: Files whose names are not those of recordings.
        revision: Commit of a Hub dataset.
        stream: Training clips, if they are streamed.
        task: Task that the labels are targets of.
        train_counts: Number of training recordings by label, before `data.max_train_clips` draws some of them; empty if
            they are streamed.
        train_audio: Quantiles of the length, level and sampling rate of the training clips, see `audio_quantiles`;
            empty if they are streamed.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    labels: tuple[str, ...]
    stored: Dataset | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    revision: str | None = None
    stream: Stream | None = None
    task: Task = field(default_factory=task_of)
    train_counts: Mapping[str, int] = field(default_factory=dict)
    train_audio: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __getitem__(self, split: str) -> Dataset:
        return getattr(self, split)

    def recordings(self, split: str) -> pd.DataFrame:
        """Return `id`, `label` (text) and `group` of each recording of a split, in the order of an evaluation."""
        return recordings_of(self[split], self.labels, self.task)

    def clip_hashes(self, split: str) -> list[str]:
        """Return the clip hash of each recording of a split, in the order of `recordings`."""
        rows = self[split].select_columns(["recording", "clip_hash"]).to_pandas()
        return list(rows.drop_duplicates("recording")["clip_hash"])

    def table(self) -> pa.Table:
        """Return the id, label, group, split and clip hash of every recording, as the run saves them."""
        # Without the validation split if it is the test split, so that the table can be used as data.splits_file.
        names = [split for split in SPLITS if split != "validation" or self.validation is not self.test]
        parts = [self.recordings(split).assign(split=split, clip_hash=self.clip_hashes(split)) for split in names]
        text = pa.schema(dict.fromkeys(("id", "label", "group", "split", "clip_hash"), pa.string()))
        return pa.Table.from_pandas(pd.concat(parts), text, preserve_index=False)

    def dataset_sha256(self) -> str:
        """Hash the id, label, times and file of every recording, so that any changed clip changes the hash."""
        source = [f"{self.stream.name}\t{self.revision}"] if self.stream else []
        return hash_of_rows([self[split] for split in SPLITS], self.labels, self.task, source)

    def split_sha256(self) -> str:
        """Hash the id and split of every recording."""
        rows = self.table().select(["id", "split"]).to_pydict()
        return _sha256(map("\t".join, zip(rows["id"], rows["split"], strict=True)))


def load_splits(cfg: DataConfig, accelerator: Accelerator | None = None, window: float | None = None) -> Splits:
    """Find the clips of a source, decode each once to check it, and divide them.

    Args:
        cfg: Source and settings of the splits.
        accelerator: Processes of the run; the main process decodes and sends the result to the others.
        window: Fixed window of the encoder in seconds; None if it accepts clips of any length.

    Raises:
        UserError: `data.window_seconds` is longer than `window`, a split or a class has no clips, clips cannot be used,
            or a class is too small to be divided.
    """
    fit_lengths(cfg, window)  # refuses a wrong window before clips are decoded
    cfg = pin_revision(cfg, accelerator)
    collection = find_clips(cfg)
    stream = open_stream(cfg, collection.revision) if cfg.streaming else None
    notes = [*collection.notes, *collection.doubts]
    clips, skipped = _drop_unusable(_scan_once(collection, accelerator), cfg)
    if cfg.splits_file is None and not cfg.streaming:
        clips = divide(clips, cfg)
    if cfg.validate_on_test:
        # The validation split is not needed then, so its clips are trained on.
        clips = clips.assign(split=clips["split"].replace("validation", "train"))
    absent = missing_classes(clips, collection.labels, collection.task)
    if absent:
        split, names = next(iter(absent.items()))
        raise UserError(
            f"--data.source: the {split} split of {cfg.source} has no clips of {listed(names)}; "
            "add some, or divide the clips in another way."
        )
    for split in SPLITS[1:] if not cfg.validate_on_test else SPLITS[2:]:
        if not (clips["split"] == split).any():
            raise UserError(f"--data.source: {cfg.source} has no {split} clips; add some.")
    if not stream and not (clips["split"] == "train").any():
        raise UserError(f"--data.source: {cfg.source} has no train clips; add some.")
    notes += _warnings(clips, cfg, window)
    counts = dict(clips["label"][clips["split"] == "train"].value_counts().astype(int))
    if cfg.max_train_clips is not None:
        clips = _limit_training_clips(clips, cfg.max_train_clips, cfg.split_seed)
    # Frees the unscanned copy of the table, which is large for many clips.
    collection = replace(collection, clips=collection.clips.iloc[:0])
    rows = cut_windows(clips, cfg.window_seconds, cfg.hop_seconds)
    train = rows[rows["split"] == "train"]
    # The levels come from the scan, which decodes every clip.
    audio = audio_quantiles(train["num_frames"] / train["sampling_rate"], train["rms"], train["sampling_rate"])
    splits = _to_splits(rows, collection, cfg)
    return replace(splits, skipped=skipped, notes=tuple(notes), stream=stream, train_counts=counts, train_audio=audio)


def _scan_once(collection: ClipTable, accelerator: Accelerator | None) -> pd.DataFrame:
    """Scan the clips on the main process, and return the result on every process."""
    if accelerator is None or accelerator.num_processes == 1:
        return scan(collection)
    scanned = [scan(collection) if accelerator.is_main_process else None]
    return broadcast_object_list(scanned)[0]


def _drop_unusable(clips: pd.DataFrame, cfg: DataConfig) -> tuple[pd.DataFrame, tuple[tuple[str, str], ...]]:
    """Return the usable clips, and the id and error of the others.

    Raises:
        UserError: Unusable clips are not allowed, or there are too many.
    """
    bad = clips[clips["fault"] != ""]
    if not len(bad):
        return clips, ()
    where = bad["path"].where(bad["path"] != "", bad["id"])
    lines = [f"{path} {error}" for path, error in zip(where, bad["error"], strict=True)]
    details = "\n  " + "\n  ".join(lines)
    if cfg.on_bad_clip == "error":
        raise UserError(
            f"--data.source: {len(bad)} of {len(clips)} clips cannot be used; repair or remove them, or leave them out "
            f"with --data.on_bad_clip skip:{details}"
        )
    if len(bad) > cfg.max_bad_share * len(clips):
        raise UserError(
            f"--data.max_bad_share: {len(bad)} of {len(clips)} clips cannot be used, more than the share of "
            f"{cfg.max_bad_share:g} that may be skipped; repair them, or raise it:{details}"
        )
    return clips[clips["fault"] == ""], tuple(zip(bad["id"], bad["error"], strict=True))


def _warnings(clips: pd.DataFrame, cfg: DataConfig, window: float | None) -> list[str]:
    """Return warnings about the clips."""
    # Grouping all clips, or comparing Arrow strings, would take several times the memory.
    repeated = clips[clips["sha256"].astype(object).duplicated(keep=False)]
    copies = repeated.groupby(["sha256", "start_seconds"])
    counts = {
        "are exact copies in more than one split": (copies["split"].transform("nunique") > 1).sum(),
        "are exact copies in more than one class": (copies["label"].transform("nunique") > 1).sum(),
        "are cut off: shorter than their header or end_seconds": clips["cut_off"].sum(),
        "have a WAV header without a length: read to the end of the file": clips["unfinished"].sum(),
    }
    if cfg.window_seconds is None:
        long = clips["num_frames"] > (cfg.max_eval_seconds + 1) * clips["sampling_rate"]
        counts[f"are longer than the {cfg.max_eval_seconds:g} s that evaluation reads"] = long.sum()
    notes = [f"warning: {many} of {len(clips)} clips {what}" for what, many in counts.items() if many]
    notes += ["peft-audio check lists these clips"] if notes else []
    cut = cfg.window_seconds is None and window is not None
    long = int((clips["num_frames"] > window * clips["sampling_rate"]).sum()) if cut else 0
    if long:
        notes.append(
            f"{long} of {len(clips)} clips are longer than the encoder's window of {window:g} s: training takes random "
            "crops of that length, evaluation and prediction average over consecutive windows"
        )
    leaking = leaking_groups(clips)
    if leaking:
        notes.append(f"warning: groups in more than one split: {listed(list(leaking))}")
    return notes


def _limit_training_clips(clips: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Draw `count` of the training clips, with classes as even as possible; other splits stay.

    Raises:
        UserError: There are more classes than clips to draw.
    """
    train = clips[clips["split"] == "train"].sort_values("id")
    classes = train["label"].nunique()
    if count < classes:
        raise UserError(f"--data.max_train_clips: got {count}, must be {classes}, one per class, or more. Raise it.")
    shuffled = train.iloc[np.random.default_rng(seed).permutation(len(train))]
    # The first clip of every class, then the second of every class, and so on.
    rank = shuffled.groupby("label").cumcount().sort_values(kind="stable")
    return clips.drop(index=train.index.difference(rank.index[:count]))


def _to_splits(clips: pd.DataFrame, collection: ClipTable, cfg: DataConfig) -> Splits:
    tables: dict[str, Any] = {
        split: to_rows(clips[clips["split"] == split], collection.labels, split, collection.task) for split in SPLITS
    }
    if cfg.validate_on_test:
        tables["validation"] = tables["test"]
    kept = {name: getattr(collection, name) for name in ("labels", "stored", "ignored", "revision", "task")}
    return Splits(**tables, **kept)


def to_rows(clips: pd.DataFrame, labels: Sequence[str], name: str, task: Task) -> Dataset:
    """Convert clips to the rows of a split, see `Splits`.

    Args:
        clips: Clips with the columns of `ROWS`, and labels as text.
        labels: Label names in the order of their numbers.
        name: Name of the split.
        task: Task that encodes the labels.
    """
    rows = clips[ROWS.names].assign(label=list(task.encode(list(clips["label"]), labels)))
    # Sorted, because training draws by row number and must not depend on how the splits were made.
    order = [(column, "ascending") for column in ("recording", "start_seconds", "id")]
    schema = ROWS.set(ROWS.get_field_index("label"), pa.field("label", task.target_type()))
    table = pa.Table.from_pandas(rows, schema, preserve_index=False).sort_by(order)
    # Given, because datasets would copy all rows to compute one.
    return Dataset(table, fingerprint=name)


def hash_of_rows(tables: Iterable[Dataset], labels: Sequence[str], task: Task, source: Sequence[str] = ()) -> str:
    """Hash the id, label, part and bytes of each row, see `Splits.dataset_sha256`.

    Args:
        tables: Rows from `to_rows`.
        labels: Label names in the order of their numbers.
        task: Task that decodes the labels.
        source: Further lines to hash.
    """
    facts = ["id", "label", "start_seconds", "end_seconds", "sha256"]
    rows = pd.concat([table.select_columns(facts).to_pandas() for table in tables]).drop_duplicates("id")
    rows["label"] = task.decode(rows["label"].to_numpy(), labels)
    return _sha256([*source, *("\t".join(map(str, row)) for row in rows.itertuples(index=False))])


def recordings_of(rows: Dataset, labels: Sequence[str], task: Task) -> pd.DataFrame:
    """Return `id`, `label` (text) and `group` of each recording of the rows, in the order of an evaluation."""
    known = rows.select_columns(["recording", "label", "group"]).to_pandas()
    known = known.drop_duplicates("recording", ignore_index=True)
    names = task.decode(known["label"].to_numpy(), labels)
    return pd.DataFrame({"id": known["recording"], "label": names, "group": known["group"]}).astype(object)


def _sha256(lines: Iterable[str]) -> str:
    return sha256(["\n".join(sorted(lines)).encode()])
