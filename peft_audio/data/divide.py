"""Divide clips into train, validation and test so that no group is in two splits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, map_split_names
from peft_audio.data.tables import as_text, read_table
from peft_audio.errors import UserError
from peft_audio.files import expanded
from peft_audio.tasks.task import Task
from peft_audio.text import listed

# Number of random divisions of groups, of which the best is used: groups differ in size and classes.
TRIES = 200


def divide(clips: pd.DataFrame, cfg: DataConfig) -> pd.DataFrame:
    """Set the `split` of each clip, keeping splits that the source gives.

    Args:
        clips: Usable clips with `id`, `label`, `group` and `split` ("" if not given).
        cfg: Fold, shares and seed.

    Returns:
        The clips sorted by id, with `split`.

    Raises:
        UserError: A class or a group cannot be divided as configured.
    """
    if clips.empty:
        raise UserError("--data.source: none of its clips can be used; repair them, or give another source.")
    clips = clips.sort_values("id", ignore_index=True)
    if cfg.fold is not None:
        return clips.assign(split=_folds(clips, cfg))
    given = set(clips["split"]) - {""}
    if given and "train" not in given:
        raise UserError(f"--data.source: it has a {listed(sorted(given))} split but no train split; add one.")
    clips = clips.assign(split=clips["split"].replace("", "train"))
    shares = {"test": cfg.test_share, "validation": cfg.validation_share}
    if cfg.validate_on_test:
        del shares["validation"]
    absent = {split: share for split, share in shares.items() if split not in given}
    if not absent:
        return clips
    hold_out = _hold_out_groups if _has_groups(clips) else _hold_out
    return clips.assign(split=hold_out(clips, absent, cfg.split_seed))


def apply_splits_file(clips: pd.DataFrame, file: str) -> tuple[pd.DataFrame, str]:
    """Divide clips as listed in a table; clips that it does not list are left out.

    Args:
        clips: Clips with `id`.
        file: Table with the columns `id` and `split`, see `data.splits_file`.

    Returns:
        The clips with `split`, and a note on how many were left out.

    Raises:
        UserError: The columns are missing, or the table lists unknown clips or splits.
    """
    table, _ = read_table(expanded(file), "data.splits_file")
    missing = [column for column in ("id", "split") if column not in table]
    if missing:
        raise UserError(f"--data.splits_file: {file} has no column {missing[0]!r}; it needs id and split.")
    table = table[["id", "split"]].map(as_text).drop_duplicates()
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise UserError(
            f"--data.splits_file: {file} names clips for several splits: {listed(list(twice))}. Correct it."
        )
    split_of = dict(zip(table["id"], table["split"], strict=True))
    splits = map_split_names(sorted(set(split_of.values())), "data.splits_file")
    unknown = sorted(set(split_of.values()) - set(splits))
    if unknown:
        raise UserError(f"--data.splits_file: {file} has splits {listed(unknown)}; must be train, validation or test.")
    absent = sorted(set(split_of) - set(clips["id"]))
    if absent:
        raise UserError(
            f"--data.splits_file: {len(absent)} clips of {file} are not in the source: {listed(absent)}. "
            "Give the source that the splits were made from."
        )
    kept = clips[clips["id"].isin(split_of)]
    kept = kept.assign(split=[splits[split_of[name]] for name in kept["id"]])
    left = len(clips) - len(kept)
    return kept, f"{left} of {len(clips)} clips are left out, because {file} does not list them" if left else ""


def missing_classes(clips: pd.DataFrame, labels: Sequence[str], task: Task) -> dict[str, list[str]]:
    """Return the classes that each split lacks; only splits that have clips and lack a class are listed."""
    present = {split: set(task.label_names(list(clips["label"][clips["split"] == split]))) for split in SPLITS}
    return {split: absent for split, has in present.items() if has and (absent := sorted(set(labels) - has))}


def leaking_groups(clips: pd.DataFrame) -> dict[str, list[str]]:
    """Return the groups that are in several splits, with those splits; clips without a split are ignored."""
    known = clips[(clips["group"] != "") & (clips["split"] != "")]
    splits = known.groupby("group")["split"].agg(lambda names: sorted(set(names), key=SPLITS.index))
    return {group: names for group, names in splits.items() if len(names) > 1}


def _has_groups(clips: pd.DataFrame, num_folds: int = 0) -> bool:
    """Return whether groups affect the division.

    Groups of one clip each divide like clips without groups, unless there are exactly `num_folds` groups, which then
    are the folds.
    """
    groups = clips["group"]
    return bool((groups != "").any()) and (
        not groups.is_unique or len(groups) == num_folds or bool((groups == "").any())
    )


def _hold_out(clips: pd.DataFrame, absent: dict[str, float], seed: int) -> np.ndarray:
    """Move random training clips of each class to the absent splits.

    Args:
        clips: Clips with `label` and `split`.
        absent: Share of the clips of each class by split.
        seed: Seed of the draws.

    Returns:
        Split of each clip, of shape (clips,).
    """
    split = clips["split"].to_numpy(dtype=object, copy=True)
    rng = np.random.default_rng(seed)
    labels = clips["label"].to_numpy()
    own = {label: np.flatnonzero((labels == label) & (split == "train")) for label in sorted(set(labels))}
    own = {label: rows for label, rows in own.items() if len(rows)}
    smallest = min(own, key=lambda label: len(own[label]))
    if len(own[smallest]) <= len(absent):
        raise UserError(
            f"--data.source: class {smallest!r} has too few clips ({len(own[smallest])}) to hold out "
            f"{' and '.join(absent)}; it needs at least {len(absent) + 1}. "
            "Add clips, or give the splits as folders train/, validation/ and test/."
        )
    for rows in own.values():
        shuffled = rows[rng.permutation(len(rows))]
        for number, (name, share) in enumerate(absent.items()):
            others = len(absent) - number  # clips that later splits and training need
            count = min(max(1, round(share * len(rows))), len(shuffled) - others)
            split[shuffled[:count]] = name
            shuffled = shuffled[count:]
    return split


def _hold_out_groups(clips: pd.DataFrame, absent: dict[str, float], seed: int) -> np.ndarray:
    """Move whole groups to the absent splits, close to the share of each class; see `_hold_out`."""
    _refuse_clips_without_group(clips)
    split = clips["split"].to_numpy(dtype=object, copy=True)
    counts = pd.crosstab(clips["group"][split == "train"], clips["label"][split == "train"])
    few = (counts > 0).sum()[(counts > 0).sum() <= len(absent)]
    if len(few):
        raise UserError(
            f"--data.source: the clips of class {few.index[0]!r} are in {few.iloc[0]} groups, too few to hold out "
            f"{' and '.join(absent)}: each split needs its own group. Add groups, or leave out the group setting."
        )
    targets, rng = {name: share * counts.sum() for name, share in absent.items()}, np.random.default_rng(seed)
    for number, name in enumerate(absent):
        held = _draw_groups(counts, targets[name], len(absent) - number, rng)
        split[clips["group"].isin(held).to_numpy() & (split == "train")] = name
        counts = counts.drop(index=held)
    return split


def _draw_groups(counts: pd.DataFrame, target: pd.Series, others: int, rng: np.random.Generator) -> list[str]:
    """Draw groups at random `TRIES` times, and return the draw closest to the target counts.

    Args:
        counts: Number of clips, one row per group and one column per class.
        target: Number of clips of each class to hold out.
        others: Number of further splits that need a group of each class.
        rng: Generator of the draws.
    """
    table = counts.to_numpy()
    best: tuple[float, list[str]] = (np.inf, [])
    for _ in range(TRIES):
        order = rng.permutation(len(table))
        held = np.cumsum(table[order], axis=0)[: len(table) - others]
        groups = np.cumsum(table[order] > 0, axis=0)[: len(table) - others]
        lacking = (groups < 1) | ((table > 0).sum(axis=0) - groups < others)
        error = np.abs(held - target.to_numpy()).sum(axis=1) + lacking.sum(axis=1) * table.sum()
        last = int(error.argmin())
        best = min(best, (float(error[last]), counts.index[order[: last + 1]].tolist()), key=lambda draw: draw[0])
    return best[1]


def _folds(clips: pd.DataFrame, cfg: DataConfig) -> np.ndarray:
    assert cfg.fold is not None
    if (clips["split"] != "").any():
        raise UserError(f"--data.fold: got {cfg.fold}, must be left out: the source has its own splits.")
    labels, count = clips["label"], cfg.num_folds
    if _has_groups(clips, count):
        _refuse_clips_without_group(clips)
        folds = _group_folds(clips, count, cfg.split_seed)
    else:
        smallest = labels.value_counts().idxmin()
        if (labels == smallest).sum() < count:
            raise UserError(
                f"--data.num_folds: got {count}, must be at most {(labels == smallest).sum()}, the clips of class "
                f"{smallest!r}. Lower it."
            )
        cut = StratifiedKFold(count, shuffle=True, random_state=cfg.split_seed)
        folds = [held for _, held in cut.split(np.zeros(len(clips)), labels)]
    split = np.full(len(clips), "train", dtype=object)
    split[folds[cfg.fold]] = "test"
    if not cfg.validate_on_test:
        split[folds[(cfg.fold + 1) % count]] = "validation"
    return split


def _group_folds(clips: pd.DataFrame, count: int, seed: int) -> list[np.ndarray]:
    """Return the row numbers of each fold, with whole groups and classes as even as the groups allow.

    If there are as many groups as folds, the groups are the folds, in the order of their names.
    """
    groups, labels = clips["group"].to_numpy(), clips["label"].to_numpy()
    # Group 10 comes after group 9.
    names = sorted(set(groups), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
    if len(names) < count:
        raise UserError(
            f"--data.num_folds: got {count}, must be at most {len(names)}, the number of groups. "
            "Lower it, or take smaller groups."
        )
    if len(names) == count:
        return [np.flatnonzero(groups == name) for name in names]
    cut = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class in fewer groups than folds is reported later, as a class that a split lacks.
        warnings.simplefilter("ignore", UserWarning)
        try:
            return [held for _, held in cut.split(np.zeros(len(groups)), labels, groups)]
        except ValueError as error:
            raise UserError(f"--data.num_folds: {count} folds are too many for these classes: {error}.") from error


def _refuse_clips_without_group(clips: pd.DataFrame) -> None:
    missing = clips["id"][clips["group"] == ""]
    if len(missing):
        raise UserError(
            f"--data.group_column: {len(missing)} of {len(clips)} clips have no group: {listed(list(missing))}. "
            "Give each clip a group; a clip unrelated to others is its own group."
        )
