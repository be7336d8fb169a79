"""Evaluate an adapter on labelled recordings."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset
from torch.utils.data import DataLoader

from peft_audio.adapters.load import Adapter
from peft_audio.adapters.trained_clips import TrainedClipsError
from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable
from peft_audio.data.collate import collate
from peft_audio.data.dataset import Clips, View
from peft_audio.data.divide import divide
from peft_audio.data.loaders import used_seconds
from peft_audio.data.sampler import evaluation_batches
from peft_audio.data.scan import scan
from peft_audio.data.sources import find_clips, pin_revision, refuse_training_settings
from peft_audio.data.splits import recordings_of, to_rows
from peft_audio.data.tables import as_name
from peft_audio.data.windows import cut_windows
from peft_audio.encoders.family import family_of
from peft_audio.errors import UserError
from peft_audio.evaluation.chance import AgainstChance, compare_with_chance, learned_nothing_line
from peft_audio.evaluation.run_split import Evaluation, compute_logits, evaluate_rows
from peft_audio.evaluation.scores import (
    CLASS_COLUMNS,
    MOST_SHOWN,
    PART_COLUMNS,
    Scores,
    absent_line,
    class_rows,
    confusions,
    part_rows,
    score,
    summary_rows,
)
from peft_audio.inference.own_run import OwnRun, Seen, find_run, seen_clips, with_run_settings
from peft_audio.pages.sections import Section, render_notebook
from peft_audio.progress import progress_bar
from peft_audio.runs.predictions import predictions_table
from peft_audio.tasks.task import Task
from peft_audio.text import listed


@dataclass(frozen=True)
class AdapterEvaluation:
    """Logits and scores of an adapter on labelled recordings.

    Attributes:
        scores: Scores on all recordings.
        seen_scores: Scores on the recordings that the adapter was trained or validated on; None if there are none or
            they are not known.
        unseen_scores: Scores on the other recordings; None if there are none or they are not known.
        seen: Mask of the seen recordings; None if they are not known.
        chance: Comparison with guessing, on the unseen recordings if there are seen and unseen ones; None if fewer
            than two classes occur.
        evaluation: Logits, in the order of `recordings`.
        recordings: One row per recording with `id`, `label` (text) and `group`.
        split: Split that was evaluated: train, validation, test or all.
        labels: Labels of the adapter, in the order of the logits.
        unseen: Labels of the adapter that do not occur.
        skipped: Path and error of each clip that cannot be used.
        notes: Messages for the user about the choices made.
        revision: Commit of a Hub dataset.
        task: Task of the adapter.
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
        """Return the scores of the seen and the unseen recordings by name; empty unless there are both."""
        if self.seen_scores is None or self.unseen_scores is None:
            return {}
        return {"trained or validated on": self.seen_scores, "new": self.unseen_scores}

    def _repr_html_(self) -> str:
        """Render scores, their parts, classes and the most frequent confusions in a notebook."""
        wrong = confusions(self.scores.labels, self.scores.confusion)
        notes = (*self.notes, *filter(None, [absent_line(self.unseen)]))
        sections = [
            Section("Scores", notes, ("figure", "value"), tuple(summary_rows(self.scores)), numbers=False),
            Section("Clips of the training and new clips", header=PART_COLUMNS, rows=tuple(part_rows(self.parts))),
            Section("Classes", header=CLASS_COLUMNS, rows=tuple(class_rows(self.scores, self.unseen))),
            Section(
                f"Most frequent confusions, of {len(wrong)}",
                header=("true label", "predicted label", "recordings"),
                rows=tuple((label, said, f"{count:,}") for label, said, count in wrong[:MOST_SHOWN]),
                name_column=1,
            ),
            Section("Skipped", tuple(f"{name} {reason}" for name, reason in self.skipped), warning=True),
        ]
        shown = [section for section in sections if section.rows or section.bullets]
        return render_notebook(f"Evaluation on the {self.split} clips", shown)

    def as_json(self) -> dict[str, Any]:
        """Return the figures as plain values, without the single recordings."""
        figures = {name: getattr(self, name) for name in ("split", "unseen", "skipped", "notes", "revision")}
        parts = {"seen_clips": self.seen_scores, "unseen_clips": self.unseen_scores}
        figures |= {name: None if part is None else asdict(part) for name, part in parts.items()}
        figures |= {"chance": None if self.chance is None else self.chance.as_json()}
        figures |= {"seen_known_from": self.seen.source if self.seen else None}
        figures |= {"seen_false_alarms": self.seen.false_alarms if self.seen else None}
        return figures | asdict(self.scores)


def evaluate_adapter(
    adapter: Adapter, cfg: DataConfig, split: str | None = None, batch_size: int = 16
) -> AdapterEvaluation:
    """Compare the predictions of an adapter with the labels of a source.

    An adapter in the folder of its run is evaluated with the splits of that run if the source holds the same clips.

    Args:
        adapter: Adapter from `load_adapter`.
        cfg: Source and settings of its splits. Lengths must be those of the adapter's record. Clips that cannot be used
            are left out, so `max_seconds`, `on_bad_clip` and `max_bad_share` are ignored. Settings that affect only
            cost are ignored as well.
        split: train, validation, test or all. The default is the test split of the source or of the adapter's run, or
            all clips of a source without splits.
        batch_size: Largest number of clips per batch.

    Raises:
        UserError: The source cannot be used, has labels that the adapter does not know, or lacks the split.
    """
    _refuse_conflicting_settings(cfg, adapter.record.crop)
    run = find_run(adapter.folder, adapter.record)
    cfg, taken_over = with_run_settings(cfg, run)
    cfg = pin_revision(cfg, None)
    collection = find_clips(cfg, least_labels=1)
    collection = match_labels(adapter.labels, collection, cfg.source)
    clips = scan(collection)
    bad, good = clips[clips["fault"] != ""], clips[clips["fault"] == ""]
    if good.empty:
        raise UserError(f"--data.source: none of the {len(clips)} clips of {cfg.source} can be used; peft-audio check.")
    if run is not None and run.is_other_collection(good, adapter.record):
        taken_over.append(
            f"{cfg.source} is not the collection of the run in {run.folder}, or only a part of it: clips have the same "
            "names, but dataset_sha256 differs from report.json"
        )
        run = None
    chosen, name, notes = _choose_split(good, cfg, split, run)
    crop = adapter.record.crop
    limit = adapter.record.recording_seconds
    windows = cut_windows(chosen, crop.get("window_seconds"), crop.get("hop_seconds"), limit)
    rows = to_rows(windows, adapter.labels, name, adapter.task)
    evaluation = _run_adapter(adapter, rows, collection, batch_size)
    recordings = recordings_of(rows, adapter.labels, adapter.task)
    try:
        seen = seen_clips(chosen.set_index("id", drop=False).loc[list(recordings["id"])], adapter.folder, run)
        about_seen = _notes_on_seen(seen, name)
    except TrainedClipsError as error:
        # The scores hold without it.
        seen = None
        about_seen = [f"warning: {error} Until then nobody knows which of these clips the adapter was trained on"]

    def scores(mask: np.ndarray) -> Scores | None:
        logits, targets = evaluation.logits[mask], evaluation.labels[mask]
        if not len(targets):
            return None
        metrics = adapter.task.measure(logits, targets)
        return score(adapter.task, logits, targets, adapter.labels, metrics, list(recordings["group"][mask]))

    everything = np.ones(len(recordings), bool)
    new = ~seen.clips if seen and not seen.clips.all() else everything
    chance, kind = _compare_with_chance(adapter, evaluation, list(recordings["group"]), new)
    if chance is not None and chance.learned_nothing:
        notes.append(f"warning: {learned_nothing_line(chance, kind)}")
    all_scores = scores(everything)
    assert all_scores is not None
    long = int((chosen["num_frames"] / chosen["sampling_rate"] > limit).sum())
    if long:
        notes.append(f"{long} are longer than {limit:g} s, of which the adapter uses only the first {limit:g} s")
    notes += about_seen
    occur = set(chosen["label"])
    where = bad["path"].where(bad["path"] != "", bad["id"])
    return AdapterEvaluation(
        scores=all_scores,
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


def write_evaluation(result: AdapterEvaluation, about: dict[str, str], folder: Path) -> None:
    """Write `metrics.json` and `predictions.parquet`.

    Args:
        result: Result of `evaluate_adapter`.
        about: Adapter and source, for `metrics.json`.
        folder: Destination, created here.

    Raises:
        UserError: The folder cannot be written.
    """
    table = predictions_table(result.recordings, result.split, result.evaluation.logits, result.labels, result.task)
    try:
        folder.mkdir(parents=True)
        pq.write_table(table, folder / "predictions.parquet")
        written = json.dumps(about | result.as_json(), indent=2, ensure_ascii=False)
        (folder / "metrics.json").write_text(written + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: cannot write in {folder} ({error.strerror}); give another folder.") from error


def _compare_with_chance(
    adapter: Adapter, evaluation: Evaluation, groups: list[Any], new: np.ndarray
) -> tuple[AgainstChance | None, str]:
    """Compare the predictions for new recordings with guessing, or for all if the new ones have only one class.

    Args:
        adapter: Adapter that made the predictions.
        evaluation: Logits and labels of the recordings.
        groups: Groups of the recordings.
        new: Mask of the recordings that the adapter was not trained on.

    Returns:
        The comparison, or None if not possible; and "new" if it covers only new recordings.
    """
    for mask, kind in ((new, "" if new.all() else "new"), (np.ones_like(new), "")):
        chosen = [group for group, used in zip(groups, mask, strict=True) if used]
        chance = compare_with_chance(
            adapter.task, evaluation.logits[mask], evaluation.labels[mask], adapter.labels, chosen
        )
        if chance is not None:
            return chance, kind
    return None, ""


def match_labels(known: Sequence[str], collection: ClipTable, source: str) -> ClipTable:
    """Replace labels of a source by those of the adapter that differ only in format, such as True and true.

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
    # Ignoring case makes labels that differ only in case the closest.
    by_case = {name.casefold(): name for name in known}
    suggestions = []
    for label in unknown:
        near = get_close_matches(label.casefold(), list(by_case), 1)
        suggestions.append(f"{label} (did you mean {by_case[near[0]]}?)" if near else label)
    raise UserError(
        f"--data.source: {source} has labels that the adapter does not know: {listed(suggestions, 10)}. It knows "
        f"{listed(known, 20)}. Rename them, or leave those clips out."
    )


def _notes_on_seen(seen: Seen | None, split: str) -> list[str]:
    """Describe how many clips the adapter was trained or validated on."""
    if seen is None:
        advice = "" if split == "test" else ". Use --split test with the --data settings of its run"
        return [
            "the adapter does not record which clips it was trained on; scores are too high if some of these are among "
            f"them{advice}"
        ]
    count, total = int(seen.clips.sum()), len(seen.clips)
    rate = f" (about {seen.false_alarms:.0%} of new clips are counted as such by mistake)" if seen.false_alarms else ""
    if not count:
        return [f"the adapter was trained or validated on none of these clips{rate}"]
    clips = f"{count} of these {total} clips" if count < total else f"all of these {total} clips"
    text = f"the adapter was trained or validated on {clips}{rate}; their scores do not predict those of new recordings"
    return [text if split in ("train", "validation") else f"warning: {text}"]


def _refuse_conflicting_settings(cfg: DataConfig, crop: dict[str, float]) -> None:
    """Refuse lengths that differ from those of the adapter's record."""
    refuse_training_settings(cfg)
    # The windows of an encoder are cut from the part of a recording that `max_eval_seconds` allows.
    longest = crop.get("recording_seconds", crop["evaluation_seconds"])
    recorded = {"window_seconds": crop.get("window_seconds"), "hop_seconds": crop.get("hop_seconds")}
    for name, required in (recorded | {"max_eval_seconds": longest}).items():
        value = getattr(cfg, name)
        # A given default looks like a setting that was not given, so it is accepted.
        if value not in (getattr(DataConfig, name), required):
            allowed = "left out" if required is None else f"{required:g}"
            raise UserError(
                f"--data.{name}: got {value}, must be {allowed}: evaluation uses the lengths of the adapter's record. "
                "Leave it out."
            )


def _choose_split(
    clips: pd.DataFrame, cfg: DataConfig, split: str | None, run: OwnRun | None
) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the clips of a split, its name, and notes about the choice."""
    notes: list[str] = []
    if run is not None and cfg.splits_file is None:
        divided_as_in_run = run.divide(clips)
        if (divided_as_in_run["split"] != "").any():
            return _choose_run_split(divided_as_in_run, cfg, split, run)
        notes.append(
            f"{cfg.source} is not the collection of the run in {run.folder}: none of its {len(clips)} clips is in the "
            "splits of the run"
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
    origin = (
        "divided as in a run with these settings" if made_here else f"as given by {cfg.splits_file or 'the source'}"
    )
    chosen = _select_split(clips, split, cfg.source)
    return chosen, split, [*notes, f"the {split} split of {cfg.source}, {origin}: {len(chosen)} clips"]


def _choose_run_split(
    clips: pd.DataFrame, cfg: DataConfig, split: str | None, run: OwnRun
) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the clips of a split of the adapter's own run, its name, and notes about the choice."""
    notes = [f"{text}; the splits of the run are used" for text in run.differing_settings(cfg)]
    known = int((clips["split"] != "").sum())
    if not run.hashed:
        notes.append(f"{run.folder / 'splits.parquet'} holds no hashes; clips are matched by their names")
    if known < len(clips):
        notes.append(f"{known} of {len(clips)} clips of {cfg.source} are in the splits of the run in {run.folder}")
    split = split or ("test" if run.split_is_in("test", clips) else "all")
    if split == "all":
        return clips, split, [*notes, f"all {len(clips)} clips of {cfg.source}"]
    chosen = _select_split(clips, split, cfg.source)
    origin = f"as divided by the run in {run.folder}"
    return chosen, split, [*notes, f"the {split} split of {cfg.source}, {origin}: {len(chosen)} clips"]


def _select_split(clips: pd.DataFrame, split: str, source: str) -> pd.DataFrame:
    chosen = clips[clips["split"] == split]
    if chosen.empty:
        others = listed([name for name in SPLITS if (clips["split"] == name).any()])
        raise UserError(f"--split: got {split}, but {source} has no usable clips in it. Use one of: {others}.")
    return chosen


def _run_adapter(adapter: Adapter, rows: Dataset, collection: ClipTable, batch_size: int) -> Evaluation:
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
    rows_with_logits = compute_logits(adapter.model, _with_progress(loader, len(batches)), device, adapter.task)
    return evaluate_rows(rows_with_logits, adapter.task, time.perf_counter() - began)


def _with_progress(loader: DataLoader, batches: int) -> Iterator[dict[str, Any]]:
    with progress_bar("evaluating", batches) as bar:
        for batch in loader:
            yield batch
            bar.update()
