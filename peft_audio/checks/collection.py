"""Check a collection of recordings before training on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binomtest

from peft_audio.checks import clusters
from peft_audio.checks.groups import GroupCounts, Suspicion, count_groups, suspect_column, suspect_groups
from peft_audio.checks.near_copies import SIZE, fingerprint, near_duplicates
from peft_audio.checks.shortcuts import MOST_CLIPS, Shortcut, describe, find_shortcuts
from peft_audio.checks.trimmed_copies import EMPTY, landmarks, matching_pairs
from peft_audio.checks.trimmed_copies import SIZE as LANDMARKS
from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, ClipTable, pattern_names, recording_of
from peft_audio.data.divide import divide, leaking_groups, missing_classes
from peft_audio.data.folder import ignored_note
from peft_audio.data.scan import JOBS, scan
from peft_audio.data.sources import find_clips, refuse_training_settings
from peft_audio.errors import UserError
from peft_audio.pages.sections import Section, render_notebook
from peft_audio.progress import progress_bar
from peft_audio.text import listed, printable, several

# One frame of wav2vec 2.0 and similar encoders; shorter clips are padded with zeros.
SHORTEST_SECONDS = 0.025
BAR_SECONDS = 2
# Share of samples at full scale that single peaks of a loud recording do not reach; this package's own choice.
CLIPPED_SHARE = 1e-3
# Accuracy for which the width of the interval is reported: the lowest that is usually worth comparing.
EXAMPLE_ACCURACY = 0.8
MOST_SHOWN = 5
# From these ratios on, accuracy mostly reflects the largest class; this package's own choice.
LARGEST_SHARE = 0.7
LARGEST_TO_SMALLEST = 10


@dataclass(frozen=True)
class Finding:
    """One kind of fault and the clips that have it.

    Attributes:
        what: Description of the fault.
        spoils: Whether it would invalidate a comparison; otherwise it is a warning.
        files: Each clip or class that has the fault, with details.
    """

    what: str
    spoils: bool
    files: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """Result of `peft-audio check`.

    Attributes:
        source: Source as given.
        clips: Number of clips, including unusable ones.
        hours: Duration of the usable clips.
        classes: Number of usable clips of each class, in total and by split.
        seconds: Length of the shortest, median and longest clip.
        sampling_rates: Number of clips by sampling rate in hertz.
        channels: Number of clips by number of channels.
        largest_class_accuracy: Test accuracy of always answering the largest training class; None without a test split.
        interval: Width of the 95% Wilson interval at an accuracy of 0.8 on the test split, if its clips are
            independent; None without a test split.
        groups: Number of groups by split and class; None if no clip has a group.
        shortcuts: Properties of the files, and how well each predicts the class.
        notes: Messages about how the source was read, and content properties that predict the class.
        findings: Faults, those that invalidate a comparison first.
    """

    source: str
    clips: int
    hours: float
    classes: dict[str, dict[str, int]]
    seconds: dict[str, float]
    sampling_rates: dict[int, int]
    channels: dict[int, int]
    largest_class_accuracy: float | None
    interval: float | None
    groups: GroupCounts | None
    shortcuts: tuple[Shortcut, ...]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    def _repr_html_(self) -> str:
        """Render classes, lengths, groups and findings in a notebook."""
        columns = list(dict.fromkeys(split for counts in self.classes.values() for split in counts))
        rows = tuple(
            (label, *(str(counts.get(column, 0)) for column in columns)) for label, counts in self.classes.items()
        )
        findings = [
            Section(
                f"{'Error' if finding.spoils else 'Warning'}, {len(finding.files)} x",
                (finding.what,),
                lines=(*finding.files[:MOST_SHOWN], *_more(finding)),
                warning=finding.spoils,
            )
            for finding in self.findings
        ]
        classes = Section(
            "Clips of each class", self.notes, header=("class", *columns), rows=rows, lines=figure_lines(self)
        )
        title = f"{self.source}: {self.clips} clips, {self.hours:.2f} hours, {len(self.classes)} classes"
        return render_notebook(title, [classes, *findings, Section("Verdict", (verdict(self),))])

    @property
    def spoiled(self) -> bool:
        """Return whether a finding would invalidate a comparison."""
        return any(finding.spoils for finding in self.findings)


def check(cfg: DataConfig, jobs: int = JOBS, deep: str | None = None) -> Check:
    """Decode every clip of a source once and list the faults.

    Args:
        cfg: Source and settings of its splits.
        jobs: Number of clips that are decoded in parallel.
        deep: Folder or Hub id of an encoder whose embeddings are searched for groups that no name shows; None for no
            such search.

    Raises:
        UserError: The source does not exist, or has no recordings or only one class; or a setting affects only
            training.
    """
    refuse_training_settings(cfg)
    collection = find_clips(cfg)
    # Allocated once, in the order of the scan, because these arrays take most of the memory of a check.
    fingerprints = np.zeros((len(collection.clips), SIZE), dtype=np.int8)
    hashes = np.full((len(collection.clips), LANDMARKS), EMPTY)
    times = np.zeros(hashes.shape, dtype=np.uint16)

    def describe_clip(number: int, waveform: np.ndarray, sampling_rate: int) -> None:
        fingerprints[number] = fingerprint(waveform, sampling_rate)
        hashes[number], times[number] = landmarks(waveform, sampling_rate)

    scanned = scan(collection, describe_clip, jobs)
    scanned["number"] = np.arange(len(scanned))
    scanned["name"] = scanned["path"].where(scanned["path"] != "", scanned["id"])
    good = scanned[scanned["fault"] == ""]
    findings = [*_unusable(scanned), *(Finding(doubt, False, collection.labels) for doubt in collection.doubts)]
    try:
        good = divide(good, cfg) if cfg.splits_file is None else good
    except UserError as error:
        findings.append(Finding("the clips cannot be divided", True, (str(error),)))
    findings += _suspicious(good, cfg)
    findings += _copies(good, fingerprints, hashes, times)
    findings += _split_faults(good, collection)
    findings += _unbalanced(good, collection, cfg)
    groups = count_groups(good, "recording" if collection.groups_are_recordings else "group")
    undeclared = groups is None or collection.groups_are_recordings
    if undeclared:
        findings += _undeclared_groups(good, collection, cfg)
    about_clusters: tuple[str, ...] = ()
    if deep is not None and undeclared:
        clustered, about_clusters = _clustered(good, collection, deep)
        findings += clustered
    elif deep is not None:
        about_clusters = ("--deep: groups are declared, so embeddings were not searched for others",)
    shortcuts = find_shortcuts(good)
    findings += [
        Finding(describe(cue), False, cue.examples) for cue in shortcuts if cue.warns and cue.kind == "artefact"
    ]
    seconds = good["num_frames"] / good["sampling_rate"]
    test = good[good["split"] == "test"]
    largest = good["label"][good["split"] == "train"].value_counts()
    return Check(
        source=cfg.source,
        clips=len(scanned),
        hours=float(seconds.sum() / 3600),
        classes={label: _by_split(good[good["label"] == label]) for label in collection.labels},
        seconds={"shortest": seconds.min(), "median": seconds.median(), "longest": seconds.max()} if len(good) else {},
        sampling_rates={int(rate): int(count) for rate, count in good["sampling_rate"].value_counts().items()},
        channels={int(channels): int(count) for channels, count in good["channels"].value_counts().items()},
        largest_class_accuracy=float((test["label"] == largest.idxmax()).mean())
        if len(test) and len(largest)
        else None,
        interval=_interval(len(test)) if len(test) else None,
        groups=groups,
        shortcuts=tuple(shortcuts),
        notes=(*collection.notes, *_ignored(collection), *_shortcut_notes(shortcuts, len(good)), *about_clusters),
        findings=tuple(sorted(findings, key=lambda finding: not finding.spoils)),
    )


def _ignored(collection: ClipTable) -> list[str]:
    return [ignored_note(collection.ignored)] if collection.ignored else []


def _shortcut_notes(shortcuts: list[Shortcut], clips: int) -> Iterable[str]:
    for cue in shortcuts:
        if cue.warns and cue.kind == "content":
            yield f"{describe(cue)} {'; '.join(cue.examples)}"
    if shortcuts and clips > MOST_CLIPS:
        yield f"tested {shortcuts[0].clips} of {clips} clips, drawn at random, for properties that reveal the class"


def _by_split(clips: pd.DataFrame) -> dict[str, int]:
    counts = {split: int((clips["split"] == split).sum()) for split in SPLITS}
    return {"all": len(clips)} | {split: count for split, count in counts.items() if (clips["split"] != "").any()}


def _interval(clips: int) -> float:
    interval = binomtest(round(EXAMPLE_ACCURACY * clips), clips).proportion_ci(method="wilson")
    return float(interval.high - interval.low)


def _unusable(clips: pd.DataFrame) -> Iterable[Finding]:
    """Find clips that cannot be used, by fault."""
    bad = clips[clips["fault"] != ""]
    by_fault = (bad["name"] + " " + bad["error"]).groupby(bad["fault"], sort=False)
    return [Finding(str(fault), True, tuple(files)) for fault, files in by_fault]


def _suspicious(clips: pd.DataFrame, cfg: DataConfig) -> Iterable[Finding]:
    """Find usable clips that may be damaged or have an unsuitable length."""
    seconds = clips["num_frames"] / clips["sampling_rate"]
    limit = cfg.max_eval_seconds
    kinds = {
        "cut off: the file is shorter than its header or end_seconds": (clips["cut_off"], lambda row: ""),
        "with a WAV header without a length: read to the end of the file": (
            clips["unfinished"],
            lambda row: f": {row['num_frames'] / row['sampling_rate']:.1f} s",
        ),
        "clipped": (clips["clipped"] > CLIPPED_SHARE, lambda row: f": {row['clipped']:.1%} of samples at full scale"),
        f"shorter than {SHORTEST_SECONDS:g} s, one frame of an encoder": (
            seconds < SHORTEST_SECONDS,
            lambda row: f": {1000 * row['num_frames'] / row['sampling_rate']:.0f} ms",
        ),
    }
    if cfg.window_seconds is None:
        kinds[f"longer than {limit:g} s, of which only the first {limit:g} s are read (try --data.window_seconds)"] = (
            seconds > limit + 1.0,
            lambda row: f": {row['num_frames'] / row['sampling_rate']:.0f} s",
        )
    for what, (rows, detail) in kinds.items():
        files = [row["name"] + detail(row) for row in clips[rows].to_dict("records")]
        if files:
            yield Finding(what, False, tuple(files))


def _copies(clips: pd.DataFrame, fingerprints: np.ndarray, hashes: np.ndarray, times: np.ndarray) -> Iterable[Finding]:
    """Find exact copies, near copies and clips that share a part of one recording.

    Args:
        clips: Usable clips with `number`, their row in the arrays.
        fingerprints: Fingerprints of all clips, see `near_copies`; rows of unusable clips are cleared.
        hashes: Landmarks of all clips, see `trimmed_copies`; rows of unusable clips are cleared.
        times: Times of the landmarks.
    """
    if clips.empty:
        return
    clips = clips.set_index("number")
    seconds = (clips["num_frames"] / clips["sampling_rate"]).reindex(range(len(fingerprints)), fill_value=0.0)
    unused = ~seconds.index.isin(clips.index)
    fingerprints[unused], hashes[unused] = 0, EMPTY
    near = near_duplicates(fingerprints, seconds.to_numpy())
    part = ["sha256", "start_seconds"]
    # Compared as objects, because comparing Arrow strings takes several times the memory.
    repeated = clips[clips["sha256"].astype(object).duplicated(keep=False)]
    exact = repeated.groupby(part, sort=False).groups.values()
    groups = [("exact copies", rows.tolist()) for rows in exact if len(rows) > 1]
    unlike = [rows for rows in near if len(clips.loc[rows, part].drop_duplicates()) > 1]
    groups += [("near copies (rate, level or format differ)", rows) for rows in unlike]
    known = {clip: number for number, (_, rows) in enumerate(groups) for clip in rows}
    # Windows and segments of one file are not copies of each other.
    recordings = pd.factorize(clips["sha256"].astype(object).reindex(range(len(hashes))))[0]
    links = matching_pairs(hashes, times, recordings).tolist()
    links = [(one, other) for one, other in links if one not in known or known[one] != known.get(other)]
    groups += [("trimmed or shifted copies (they share a part)", rows) for rows in _connected(links)]
    files_of: dict[tuple[str, bool], list[str]] = {}
    for kind, rows in groups:
        members = clips.loc[rows]
        splits, labels = set(members["split"]) - {""}, set(members["label"])
        where = [" of different classes" if len(labels) > 1 else "", " in different splits" if len(splits) > 1 else ""]
        names = [
            f"{row['name']} ({', '.join(part for part in (row['label'], row['split']) if part)})"
            for row in members.to_dict("records")
        ]
        files_of.setdefault((kind + " and".join(part for part in where if part), len(splits) > 1), []).append(
            " = ".join(names)
        )
    for (what, spoils), files in files_of.items():
        yield Finding(what, spoils, tuple(files))


def _connected(links: list[tuple[int, int]]) -> list[list[int]]:
    """Group clips that are linked directly or through others."""
    members = sorted({clip for link in links for clip in link})
    place = {clip: number for number, clip in enumerate(members)}
    ends = np.array([[place[one], place[other]] for one, other in links], dtype=np.intp).reshape(-1, 2)
    matrix = coo_array((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(len(members),) * 2)
    groups: dict[int, list[int]] = {}
    for clip, group in zip(members, connected_components(matrix, directed=False)[1].tolist(), strict=True):
        groups.setdefault(group, []).append(clip)
    return list(groups.values())


def _split_faults(clips: pd.DataFrame, collection: ClipTable) -> Iterable[Finding]:
    """Find classes that a split lacks, and groups that are in several splits."""
    for split, labels in missing_classes(clips, collection.labels, collection.task).items():
        yield Finding(f"classes missing from the {split} split", True, tuple(labels))
    leaking = leaking_groups(clips)
    if leaking:
        files = tuple(f"{group}: {', '.join(splits)}" for group, splits in leaking.items())
        yield Finding("groups in several splits", True, files)


def _unbalanced(clips: pd.DataFrame, collection: ClipTable, cfg: DataConfig) -> Iterable[Finding]:
    """Find classes that are too small to be tested, and a class that outweighs the others."""
    counts = clips["label"].value_counts()
    if len(counts) < 2:
        return
    splits = clips[clips["split"] != ""]
    parts = 2 if cfg.validate_on_test else 3
    needed = cfg.num_folds if cfg.fold is not None else parts
    few = counts[counts < needed] if splits.empty else counts[:0]
    if len(few):
        yield Finding(
            f"classes with fewer clips than can be tested: each needs {needed}, for training, validation and test. "
            "Add clips, or leave the class out with a table of the other clips as --data.splits_file",
            True,
            tuple(f"{label}: {several(count, 'clip')}" for label, count in few.items()),
        )
    tested = splits["label"][splits["split"] == "test"].value_counts()
    single = sorted(tested.index[tested == 1])
    if single:
        more = max(counts[single]) > parts
        yield Finding(
            "classes with one test clip, whose recall can only be 0 or 1. Test more of them: "
            f"{_ways_to_test_more(clips, collection, cfg, more)}",
            False,
            tuple(f"{label}: 1 of {several(counts[label], 'clip')}" for label in single),
        )
    largest, smallest = counts.index[0], counts.index[-1]
    share = counts.iloc[0] / counts.sum()
    if share >= LARGEST_SHARE or counts.iloc[0] >= LARGEST_TO_SMALLEST * counts.iloc[-1]:
        yield Finding(
            f"unbalanced classes: {largest!r} has {share:.0%} of the clips, so always answering it has that accuracy. "
            "Compare macro-F1 or balanced accuracy, not accuracy, and train with --train.class_weights balanced",
            False,
            (f"{largest}: {several(counts.iloc[0], 'clip')}", f"{smallest}: {several(counts.iloc[-1], 'clip')}"),
        )


def _ways_to_test_more(clips: pd.DataFrame, collection: ClipTable, cfg: DataConfig, more: bool) -> str:
    """Return advice on few test clips.

    Args:
        clips: Usable clips.
        collection: Clips of the source.
        cfg: Settings of the splits.
        more: Whether a larger test share would hold out more clips.
    """
    if cfg.splits_file is not None:
        return f"add clips, or give more of them the split test in {cfg.splits_file}"
    folds = f"--data.fold 0 to {cfg.num_folds - 1}"
    if cfg.fold is not None:
        return f"add clips, lower --data.num_folds, or train with each of {folds}, which tests every clip once"
    given = set(collection.clips["split"]) - {""}
    if "test" in given:
        return (
            "add clips to the test split of the source, or divide the clips with a table with the columns id and "
            "split as --data.splits_file"
        )
    options = ["raise --data.test_share"] if more else []
    if not given:
        try:
            divide(clips.assign(split=""), replace(cfg, fold=0))
            options.append(f"test every clip once with {folds}")
        except UserError:
            pass  # too few clips or groups for this number of folds
    return ", or ".join([", ".join(["add clips", *options[:-1]]), *options[-1:]])


def _undeclared_groups(clips: pd.DataFrame, collection: ClipTable, cfg: DataConfig) -> Iterable[Finding]:
    """Find groups that are not declared and are in several splits."""
    # One clip per recording, because parts of one recording share their name.
    one_each = clips.drop_duplicates("group") if collection.groups_are_recordings else clips
    labels = list(one_each["label"])
    suspicion: Suspicion | None = None
    if collection.others is not None:
        suspicion = suspect_column(collection.others.loc[list(one_each["id"])], labels)
    if suspicion is None:
        names = pattern_names(collection)
        suspicion = suspect_groups(list(one_each["id"]), labels, [names[number] for number in one_each["number"]])
    if suspicion is None:
        return
    groups = list(suspicion.groups)
    if collection.groups_are_recordings:
        groups = list(clips["group"].map(dict(zip(one_each["group"], groups, strict=True))))
    clips = clips.assign(group=groups)
    sizes = clips["group"][clips["group"] != ""].value_counts()
    leaking = leaking_groups(clips)
    divided = bool((clips["split"] != "").any())
    if divided and not leaking:
        return
    shown = [str(group) for group in sizes.index if group in leaking or not divided]
    extent = f"{len(leaking)} of them are in several splits, with" if divided else "They have"
    what = (
        f"{suspicion.where}: clips share {len(sizes)} values, such as {listed(shown[:2])}, which may be speakers or "
        f"recordings. {extent} {int(sizes[shown].sum())} of {len(clips)} clips. If they are, keep each in one split "
        f"with {suspicion.flag}"
    )
    empty = clips["group"] == ""
    if empty.any():
        what += f". First fill {several(int(empty.sum()), 'empty cell')} of that column, as each row needs a group"
    if cfg.splits_file is None:
        clips = clips.assign(group=clips["group"].where(~empty, clips["id"]))
        try:
            divide(clips.assign(split=collection.clips["split"].reindex(clips["number"]).to_numpy()), cfg)
        except UserError as error:
            what += f". But the clips cannot be divided by these groups: {error}"
    where = {group: f" ({', '.join(splits)})" for group, splits in leaking.items()}
    yield Finding(
        what, False, tuple(f"{group}: {several(sizes[group], 'clip')}{where.get(group, '')}" for group in shown)
    )


def _clustered(clips: pd.DataFrame, collection: ClipTable, base: str) -> tuple[list[Finding], tuple[str, ...]]:
    """Search for groups in encoder embeddings of the clips.

    Returns:
        Findings and notes.
    """
    tested = clips if len(clips) <= clusters.MOST_CLIPS else clips.sample(clusters.MOST_CLIPS, random_state=0)
    if len(tested) < clusters.FEWEST_CLIPS:
        return [], (f"--deep: needs {clusters.FEWEST_CLIPS} usable clips, got {len(tested)}",)
    seconds = tested["num_frames"] / tested["sampling_rate"]
    # Clips of similar length need less padding.
    tested = tested.iloc[np.argsort(seconds.to_numpy(), kind="stable")]
    parts = [
        (
            recording_of(row, collection.stored),
            float(row["start_seconds"]),
            None if np.isnan(row["end_seconds"]) else float(row["end_seconds"] - row["start_seconds"]),
        )
        for row in tested.to_dict("records")
    ]
    with progress_bar("embedding clips", len(parts), delay_seconds=BAR_SECONDS) as bar:
        embeddings = clusters.embed(parts, base, bar.update)
    found = clusters.find_clusters(embeddings, list(tested["label"]))
    if found is None:
        return [], (
            f"--deep: embeddings of {several(len(tested), 'clip')} by {base} form no clear clusters across classes. "
            "There may still be groups, because small and faint ones are missed (docs/limits.md)",
        )
    tested = tested.assign(group=[f"cluster {number + 1}" for number in found])
    leaking = leaking_groups(tested)
    divided = bool((tested["split"] != "").any())
    if divided and not leaking:
        return [], ()
    members = dict(list(tested.groupby("group", sort=True)))
    in_all = int(tested["group"].isin(leaking).sum())
    extent = (
        f"{len(leaking)} of them are in several splits, with {in_all} of {len(tested)} clips"
        if divided
        else "A random division would put clips of each into several splits"
    )
    what = (
        f"embeddings by {base}: clips form {len(members)} clusters that recur in several classes, which may be "
        f"speakers, devices or places. {extent}. Listen to some clips of each. If they are groups, declare them with "
        "--data.group_column or --data.group_pattern; the clusters themselves are too inexact"
    )
    files = tuple(
        f"{group}: {several(len(rows), 'clip')} of {rows['label'].nunique()} classes"
        + (f" ({', '.join(leaking[group])})" if group in leaking else "")
        + f", such as {listed([PurePath(name).name for name in rows['name'].iloc[:3]])}"
        for group, rows in members.items()
    )
    return [Finding(what, False, files)], ()


def print_check(result: Check, console: Console) -> None:
    """Print the result of a check as tables and lines."""
    columns = list(dict.fromkeys(split for counts in result.classes.values() for split in counts))
    console.print(f"{result.clips} clips, {result.hours:.2f} hours, {len(result.classes)} classes", highlight=False)
    table = Table()
    for name in ("class", *columns):
        table.add_column(name, justify="left" if name == "class" else "right")
    for label, counts in result.classes.items():
        table.add_row(escape(printable(label)), *(str(counts.get(column, 0)) for column in columns))
    console.print(table)
    for line in figure_lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {printable(note)}", highlight=False, markup=False, soft_wrap=True)
    for finding in result.findings:
        style = "bold red" if finding.spoils else "yellow"
        console.print(f"[{style}]{'error' if finding.spoils else 'warning'}[/]", f"{len(finding.files)} x", end=" ")
        console.print(finding.what, highlight=False, markup=False, soft_wrap=True)
        for file in finding.files[:MOST_SHOWN]:
            console.print(f"    {printable(file)}", highlight=False, markup=False, soft_wrap=True)
        for line in _more(finding):
            console.print(f"    {line}; --json lists all", highlight=False)
    console.print(verdict(result), highlight=False)


def figure_lines(result: Check) -> tuple[str, ...]:
    """Describe lengths, sampling rates, groups and the accuracy to expect of the test split, one line each."""
    lines = []
    if result.seconds:
        lengths = ", ".join(f"{name} {value:.2f} s" for name, value in result.seconds.items())
        rates = ", ".join(f"{count} at {rate:,} Hz" for rate, count in result.sampling_rates.items())
        channels = ", ".join(f"{count} with {number}" for number, count in result.channels.items())
        lines += [f"clips: {lengths}", f"rates: {rates}; channels: {channels}"]
    if result.groups is not None:
        each = result.groups.by_class.values()
        per_class = " to ".join(map(str, sorted({min(each), max(each)})))
        splits = ", ".join(f"{split} {count}" for split, count in result.groups.by_split.items())
        lines.append(
            f"groups: {result.groups.groups}{f' ({splits})' if splits else ''}, {per_class} of each class; "
            f"{result.groups.statement}"
        )
    if result.interval is not None:
        lines.append(
            f"test: the 95% interval of an accuracy of {EXAMPLE_ACCURACY} is at least ± {result.interval / 2:.3f} "
            f"(independent clips); always answering the largest class gets {result.largest_class_accuracy or 0:.3f}"
        )
    return tuple(lines)


def _more(finding: Finding) -> list[str]:
    left = len(finding.files) - MOST_SHOWN
    return [f"and {left} more"] if left > 0 else []


def verdict(result: Check) -> str:
    """Summarise a check in one line."""
    if result.spoiled:
        return "the errors above would invalidate a comparison"
    if result.findings:
        return f"no unusable clip and no leak, but {several(len(result.findings), 'warning')} above"
    return "no fault found"


def to_json(result: Check) -> dict[str, Any]:
    """Convert the result of a check to plain values."""
    return asdict(result) | {"spoiled": result.spoiled}
