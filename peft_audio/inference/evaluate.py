"""What an adapter is worth on recordings with labels: heard as its own run's evaluation would hear them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import pandas as pd
from datasets import Dataset
from rich.console import Console
from torch.utils.data import DataLoader

from peft_audio.adapters.load import Adapter
from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable
from peft_audio.data.collate import collate
from peft_audio.data.dataset import Clips, View
from peft_audio.data.loaders import heard_seconds
from peft_audio.data.sampler import evaluation_batches
from peft_audio.data.scan import scan
from peft_audio.data.sources import find_clips, pin_revision, refuse_later_settings
from peft_audio.data.splits import recordings_of, to_rows
from peft_audio.data.splitting import divide
from peft_audio.data.windows import cut_windows
from peft_audio.encoders.family import family_of
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import Evaluation, judge_rows, run_through
from peft_audio.evaluation.scores import Scores, score
from peft_audio.tasks.task import Task
from peft_audio.text import listed
from peft_audio.training.tracking import progress_bar


@dataclass(frozen=True)
class Judgement:
    """What an adapter said of recordings, and how good that is.

    Attributes:
        scores: How good it is.
        evaluation: What was said, in the order of `recordings`.
        recordings: `id`, `label` (text) and `group` of each.
        split: Which part of the source: train, validation, test or all.
        labels: Of the adapter, in the order of the logits.
        unseen: Labels of the adapter that do not occur.
        skipped: Clips that cannot be used, with the reason.
        notes: What was decided, to be told.
        revision: The commit of a Hub dataset.
        task: what the adapter answers.
    """

    scores: Scores
    evaluation: Evaluation
    recordings: pd.DataFrame
    split: str
    labels: tuple[str, ...]
    unseen: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    revision: str | None
    task: Task

    def as_json(self) -> dict[str, Any]:
        """All but the single recordings, as plain values."""
        told = {name: getattr(self, name) for name in ("split", "unseen", "skipped", "notes", "revision")}
        return told | asdict(self.scores)


def evaluate_adapter(adapter: Adapter, cfg: DataConfig, split: str | None = None, batch_size: int = 16) -> Judgement:
    """Hold what an adapter says against the labels of a source.

    Args:
        adapter: What `load_adapter` gives.
        cfg: The source, and how it is divided. What it says of how recordings are heard must be what the adapter's
            record says. Of unusable clips, none stops it; they are left out. `max_seconds`, `on_bad_clip` and
            `max_bad_share` are ignored, as are settings that affect cost alone.
        split: train, validation, test, or all; when not given, the source's own test split, or all of a source that is
            not divided.
        batch_size: Clips that run through the model at once, at most.

    Raises:
        UserError: The source cannot be used, has labels that the adapter does not know, or has no such split.
    """
    _refuse_others(cfg, adapter.record.crop)
    cfg = pin_revision(cfg, None)
    collection = find_clips(cfg)
    unknown = sorted(set(collection.labels) - set(adapter.labels))
    if unknown:
        raise UserError(
            f"--data.source: {cfg.source} has labels that the adapter does not know: {listed(unknown, 10)}. It knows "
            f"{listed(adapter.labels, 20)}. Rename them, or leave those clips out."
        )
    clips = scan(collection, quiet=not sys.stderr.isatty())
    bad, good = clips[clips["fault"] != ""], clips[clips["fault"] == ""]
    if good.empty:
        raise UserError(f"--data.source: none of the {len(clips)} clips of {cfg.source} can be used; peft-audio check.")
    chosen, name, note = _choose(good, cfg, split)
    crop = adapter.record.crop
    windows = cut_windows(chosen, crop.get("window_seconds"), crop.get("hop_seconds"))
    rows = to_rows(windows, adapter.labels, name, adapter.task)
    evaluation = _hear(adapter, rows, collection, batch_size)
    recordings = recordings_of(rows, adapter.labels, adapter.task)
    scores = score(
        adapter.task,
        evaluation.logits,
        evaluation.labels,
        adapter.labels,
        evaluation.metrics,
        list(recordings["group"]),
    )
    notes = [*collection.notes, note]
    long = int((heard_seconds(rows) > crop["evaluation_seconds"]).sum())
    if long:
        notes.append(f"{long} are longer than the {crop['evaluation_seconds']:g} s that the adapter hears of them")
    occur = set(chosen["label"])
    where = bad["path"].where(bad["path"] != "", bad["id"])
    return Judgement(
        scores=scores,
        evaluation=evaluation,
        recordings=recordings,
        split=name,
        labels=adapter.labels,
        unseen=tuple(label for label in adapter.labels if label not in occur),
        skipped=tuple(zip(where, bad["error"], strict=True)),
        notes=tuple(notes),
        revision=collection.revision,
        task=adapter.task,
    )


def _refuse_others(cfg: DataConfig, crop: dict[str, float]) -> None:
    """Refuse settings under which this would not be the evaluation of the adapter's own run."""
    refuse_later_settings(cfg)
    own = {"window_seconds": crop.get("window_seconds"), "hop_seconds": crop.get("hop_seconds")}
    for name, heard in (own | {"max_eval_seconds": crop["evaluation_seconds"]}).items():
        value = getattr(cfg, name)
        # A default that was given cannot be told from one that was not: what is longer than is heard is noted.
        if value not in (getattr(DataConfig, name), heard):
            told = "left out" if heard is None else f"{heard:g}"
            raise UserError(
                f"--data.{name}: got {value}, must be {told}: an adapter is judged as its own record says that "
                "recordings are heard. Leave it out."
            )


def _choose(clips: pd.DataFrame, cfg: DataConfig, split: str | None) -> tuple[pd.DataFrame, str, str]:
    """The clips of a split, its name, and in words which they are."""
    own = set(clips["split"]) - {""}
    divided = bool(own) or cfg.fold is not None
    split = split or ("test" if divided else "all")
    if split == "all":
        note = f"all {len(clips)} clips of {cfg.source}"
        if not divided:
            note += ", which has no splits of its own. If the adapter learned from it, some of them are no test: give "
            note += "--split test then, with the --data settings of its run"
        return clips, split, note
    made = split not in own or cfg.fold is not None
    if made:
        clips = divide(clips, cfg)
    chosen = clips[clips["split"] == split]
    if chosen.empty:
        has = listed([name for name in SPLITS if (clips["split"] == name).any()])
        raise UserError(f"--split: got {split}, but {cfg.source} has no such clips that can be used; it has {has}.")
    whose = "made as a run with these settings makes it" if made else f"as {cfg.splits_file or 'the source'} has it"
    return chosen, split, f"the {split} split of {cfg.source}, {whose}: {len(chosen)} clips"


def _hear(adapter: Adapter, rows: Dataset, collection: ClipTable, batch_size: int) -> Evaluation:
    limit = adapter.record.crop["evaluation_seconds"]
    view = View(family_of(adapter.model.config), adapter.extractor, DataConfig(max_eval_seconds=limit))
    batches = evaluation_batches(heard_seconds(rows, limit), batch_size)
    loader = DataLoader(
        Clips(rows, collection.stored, view),
        batch_sampler=batches,
        collate_fn=partial(collate, config=adapter.model.config),
    )
    began = time.perf_counter()
    device = next(adapter.model.parameters()).device
    found = run_through(adapter.model, _shown(loader, len(batches)), device, adapter.task)
    return judge_rows(found, adapter.task, time.perf_counter() - began)


def _shown(loader: DataLoader, batches: int) -> Iterator[dict[str, Any]]:
    with progress_bar(sys.stderr.isatty(), Console(stderr=True)) as bar:
        task = bar.add_task("evaluating", total=batches)
        for batch in loader:
            yield batch
            bar.advance(task)
