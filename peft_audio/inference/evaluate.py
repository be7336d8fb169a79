"""Evaluate an adapter on recordings with labels, read as in the evaluation of its own run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from rich.console import Console
from torch.utils.data import DataLoader

from peft_audio.adapters.load import Adapter
from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable
from peft_audio.data.collate import collate
from peft_audio.data.dataset import Clips, View
from peft_audio.data.divide import divide
from peft_audio.data.loaders import used_seconds
from peft_audio.data.sampler import evaluation_batches
from peft_audio.data.scan import scan
from peft_audio.data.sources import find_clips, pin_revision, refuse_later_settings
from peft_audio.data.splits import recordings_of, to_rows
from peft_audio.data.tables import as_name
from peft_audio.data.windows import cut_windows
from peft_audio.encoders.family import family_of
from peft_audio.errors import UserError
from peft_audio.evaluation.chance import AgainstChance, compare_with_chance, learned_nothing_line
from peft_audio.evaluation.run_split import Evaluation, judge_rows, run_through
from peft_audio.evaluation.scores import Scores, score
from peft_audio.inference.own_run import OwnRun, Seen, own_run, read_as_in_run, seen_clips
from peft_audio.tasks.task import Task
from peft_audio.text import listed
from peft_audio.training.tracking import progress_bar


@dataclass(frozen=True)
class Judgement:
    """What an adapter answered on recordings with labels, and how good that is.

    Attributes:
        scores: Scores on all recordings.
        seen_scores: Scores on the recordings that it was trained or validated on; None if there are none, or that is
            not recorded.
        unseen_scores: Scores on the other recordings; None if there are none, or that is not recorded.
        seen: Which recordings those are; None if that is not recorded.
        chance: Comparison with guessing, on the unseen recordings where there are some of both kinds; None where fewer
            than two classes occur.
        evaluation: Logits, in the order of `recordings`.
        recordings: `id`, `label` (text) and `group` of each.
        split: Which part of the source: train, validation, test or all.
        labels: Labels of the adapter, in the order of the logits.
        unseen: Labels of the adapter that do not occur.
        skipped: Clips that cannot be used, with the reason.
        notes: What was decided, for people.
        revision: The commit of a Hub dataset.
        task: What the adapter answers.
    """

    scores: Scores
    seen_scores: Scores | None
    unseen_scores: Scores | None
    seen: Seen | None
    chance: AgainstChance | None
    evaluation: Evaluation
    recordings: pd.DataFrame
    split: str
    labels: tuple[str, ...]
    unseen: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    revision: str | None
    task: Task

    @property
    def parts(self) -> dict[str, Scores]:
        """Return the scores of the seen and of the unseen recordings, by the name of the part, if there are both."""
        if self.seen_scores is None or self.unseen_scores is None:
            return {}
        return {"trained or validated on": self.seen_scores, "new": self.unseen_scores}

    def as_json(self) -> dict[str, Any]:
        """Return all but the single recordings, as plain values."""
        told = {name: getattr(self, name) for name in ("split", "unseen", "skipped", "notes", "revision")}
        parts = {"seen_clips": self.seen_scores, "unseen_clips": self.unseen_scores}
        told |= {name: None if part is None else asdict(part) for name, part in parts.items()}
        told |= {"chance": None if self.chance is None else self.chance.as_json()}
        told |= {"seen_known_from": self.seen.source if self.seen else None}
        told |= {"seen_false_alarms": self.seen.false_alarms if self.seen else None}
        return told | asdict(self.scores)


def evaluate_adapter(adapter: Adapter, cfg: DataConfig, split: str | None = None, batch_size: int = 16) -> Judgement:
    """Compare the answers of an adapter with the labels of a source.

    An adapter in the folder of its run is evaluated with the splits of that run, where the source holds the same clips.

    Args:
        adapter: What `load_adapter` returns.
        cfg: The source, and how it is divided. The length that is read of each recording must be what the adapter's
            record says. Clips that cannot be used are left out. `max_seconds`, `on_bad_clip` and `max_bad_share` are
            ignored, as are settings that affect cost alone.
        split: train, validation, test, or all; when not given, the test split of the source or of the adapter's run, or
            all of a source that is not divided.
        batch_size: Clips that run through the model at once, at most.

    Raises:
        UserError: The source cannot be used, has labels that the adapter does not know, or has no such split.
    """
    _refuse_others(cfg, adapter.record.crop)
    run = own_run(adapter.folder, adapter.record)
    cfg, taken_over = read_as_in_run(cfg, run)
    cfg = pin_revision(cfg, None)
    collection = find_clips(cfg, least_labels=1)
    collection = with_labels_of(adapter.labels, collection, cfg.source)
    clips = scan(collection, quiet=not sys.stderr.isatty())
    bad, good = clips[clips["fault"] != ""], clips[clips["fault"] == ""]
    if good.empty:
        raise UserError(f"--data.source: none of the {len(clips)} clips of {cfg.source} can be used; peft-audio check.")
    if run is not None and run.is_other_collection(good, adapter.record):
        taken_over.append(
            f"{cfg.source} is another collection than that of the run in {run.folder}, or a part of it: it has clips "
            "of the same names, but another dataset_sha256 than report.json"
        )
        run = None
    chosen, name, notes = _choose(good, cfg, split, run)
    crop = adapter.record.crop
    windows = cut_windows(chosen, crop.get("window_seconds"), crop.get("hop_seconds"))
    rows = to_rows(windows, adapter.labels, name, adapter.task)
    evaluation = _hear(adapter, rows, collection, batch_size)
    recordings = recordings_of(rows, adapter.labels, adapter.task)
    seen = seen_clips(chosen.set_index("id", drop=False).loc[list(recordings["id"])], adapter.folder, run)

    def scores(which: np.ndarray) -> Scores | None:
        logits, targets = evaluation.logits[which], evaluation.labels[which]
        if not len(targets):
            return None
        metrics = adapter.task.measure(logits, targets)
        return score(adapter.task, logits, targets, adapter.labels, metrics, list(recordings["group"][which]))

    everything = np.ones(len(recordings), bool)
    new = ~seen.clips if seen and not seen.clips.all() else everything
    chance, kind = _compare_with_chance(adapter, evaluation, list(recordings["group"]), new)
    if chance is not None and chance.learned_nothing:
        notes.append(f"warning: {learned_nothing_line(chance, kind)}")
    whole = scores(everything)
    assert whole is not None
    long = int((used_seconds(rows) > crop["evaluation_seconds"]).sum())
    if long:
        notes.append(f"{long} are longer than the {crop['evaluation_seconds']:g} s that the adapter hears of them")
    notes += _notes_on_seen(seen, name)
    occur = set(chosen["label"])
    where = bad["path"].where(bad["path"] != "", bad["id"])
    return Judgement(
        scores=whole,
        seen_scores=scores(seen.clips) if seen else None,
        unseen_scores=scores(~seen.clips) if seen else None,
        seen=seen,
        chance=chance,
        evaluation=evaluation,
        recordings=recordings,
        split=name,
        labels=adapter.labels,
        unseen=tuple(label for label in adapter.labels if label not in occur),
        skipped=tuple(zip(where, bad["error"], strict=True)),
        notes=(*taken_over, *collection.notes, *collection.doubts, *notes),
        revision=collection.revision,
        task=adapter.task,
    )


def _compare_with_chance(
    adapter: Adapter, evaluation: Evaluation, groups: list[Any], new: np.ndarray
) -> tuple[AgainstChance | None, str]:
    """Compare the answers for new recordings with guessing, or all if the new ones have one class only.

    Args:
        adapter: Adapter that answered.
        evaluation: Logits and labels of the recordings.
        groups: Groups of the recordings.
        new: Mask of the recordings that the adapter was not trained on.

    Returns:
        The comparison, None if not possible, and "new" if it is of new recordings alone.
    """
    for which, kind in ((new, "" if new.all() else "new"), (np.ones_like(new), "")):
        chosen = [group for group, taken in zip(groups, which, strict=True) if taken]
        chance = compare_with_chance(
            adapter.task, evaluation.logits[which], evaluation.labels[which], adapter.labels, chosen
        )
        if chance is not None:
            return chance, kind
    return None, ""


def with_labels_of(known: Sequence[str], collection: ClipTable, source: str) -> ClipTable:
    """Write labels as the adapter has them where formats differ, such as True in a table for the folder true.

    Args:
        known: Labels of the adapter.
        collection: Clips of the source.
        source: Name of the source, for messages.

    Returns:
        The clips with labels of the adapter.

    Raises:
        UserError: The adapter does not know some labels.
    """
    counts = Counter(map(as_name, known))
    by_name = {as_name(label): label for label in known if counts[as_name(label)] == 1}
    renamed = {label: by_name.get(as_name(label), label) for label in collection.labels if label not in known}
    _refuse_unknown_labels([label for label, new in renamed.items() if new not in known], known, source)
    if not renamed:
        return collection
    labels = tuple(sorted({renamed.get(label, label) for label in collection.labels}))
    clips = collection.clips.assign(label=[renamed.get(label, label) for label in collection.clips["label"]])
    return replace(collection, clips=clips, labels=labels)


def _refuse_unknown_labels(unknown: Sequence[str], known: Sequence[str], source: str) -> None:
    if not unknown:
        return
    # Labels that differ by case alone are the closest.
    by_case = {name.casefold(): name for name in known}
    meant = []
    for label in unknown:
        near = get_close_matches(label.casefold(), list(by_case), 1)
        meant.append(f"{label} (did you mean {by_case[near[0]]}?)" if near else label)
    raise UserError(
        f"--data.source: {source} has labels that the adapter does not know: {listed(meant, 10)}. It knows "
        f"{listed(known, 20)}. Rename them, or leave those clips out."
    )


def _notes_on_seen(seen: Seen | None, split: str) -> list[str]:
    """Describe how many clips the adapter was trained or validated on."""
    if seen is None:
        advice = "" if split == "test" else ": give --split test with the --data settings of its run"
        return [
            f"the adapter does not record which clips it was trained on; if some are among these, the scores are too "
            f"high{advice}"
        ]
    count, total = int(seen.clips.sum()), len(seen.clips)
    rate = f" (about {seen.false_alarms:.0%} of new clips are taken for these)" if seen.false_alarms else ""
    if not count:
        return [f"none of these clips is among those that the adapter was trained or validated on{rate}"]
    what = f"{count} of these {total} clips" if count < total else f"all of these {total} clips"
    text = f"the adapter was trained or validated on {what}{rate}: their scores do not hold for new recordings"
    return [text if split in ("train", "validation") else f"warning: {text}"]


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


def _choose(
    clips: pd.DataFrame, cfg: DataConfig, split: str | None, run: OwnRun | None
) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the clips of a split, its name, and notes on which they are."""
    notes: list[str] = []
    if run is not None and cfg.splits_file is None:
        made = run.divide(clips)
        if (made["split"] != "").any():
            return _choose_of_run(made, cfg, split, run)
        notes.append(
            f"{cfg.source} is another collection than that of the run in {run.folder}: none of its {len(clips)} clips "
            "is in the splits of the run"
        )
    own = set(clips["split"]) - {""}
    divided = bool(own) or cfg.fold is not None
    split = split or ("test" if divided else "all")
    if split == "all":
        undivided = "" if divided else ", which has no splits of its own"
        return clips, split, [*notes, f"all {len(clips)} clips of {cfg.source}{undivided}"]
    made_here = split not in own or cfg.fold is not None
    if made_here:
        clips = divide(clips, cfg)
    whose = (
        "made as a run with these settings makes it" if made_here else f"as {cfg.splits_file or 'the source'} has it"
    )
    chosen = _of_split(clips, split, cfg.source)
    return chosen, split, [*notes, f"the {split} split of {cfg.source}, {whose}: {len(chosen)} clips"]


def _choose_of_run(
    clips: pd.DataFrame, cfg: DataConfig, split: str | None, run: OwnRun
) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the clips that are in a split of the adapter's own run."""
    notes = [f"{text}; the splits of the run are used" for text in run.contradictions(cfg)]
    known = int((clips["split"] != "").sum())
    if not run.hashed:
        notes.append(f"{run.folder / 'splits.parquet'} holds no hashes: its clips were found by their names")
    if known < len(clips):
        notes.append(f"{known} of {len(clips)} clips of {cfg.source} are in the splits of the run in {run.folder}")
    split = split or ("test" if run.holds_whole("test", clips) else "all")
    if split == "all":
        return clips, split, [*notes, f"all {len(clips)} clips of {cfg.source}"]
    chosen = _of_split(clips, split, cfg.source)
    whose = f"as the run in {run.folder} divided it"
    return chosen, split, [*notes, f"the {split} split of {cfg.source}, {whose}: {len(chosen)} clips"]


def _of_split(clips: pd.DataFrame, split: str, source: str) -> pd.DataFrame:
    chosen = clips[clips["split"] == split]
    if chosen.empty:
        has = listed([name for name in SPLITS if (clips["split"] == name).any()])
        raise UserError(f"--split: got {split}, but {source} has no such clips that can be used; it has {has}.")
    return chosen


def _hear(adapter: Adapter, rows: Dataset, collection: ClipTable, batch_size: int) -> Evaluation:
    limit = adapter.record.crop["evaluation_seconds"]
    view = View(family_of(adapter.model.config), adapter.extractor, DataConfig(max_eval_seconds=limit))
    batches = evaluation_batches(used_seconds(rows, limit), batch_size)
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
