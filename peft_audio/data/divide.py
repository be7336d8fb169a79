"""Clips to train, validation and test, so that no group stands on two sides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from peft_audio.config import DataConfig
from peft_audio.data.clip_table import SPLITS, name_splits
from peft_audio.data.tables import as_text, read_table
from peft_audio.errors import UserError
from peft_audio.files import expanded
from peft_audio.tasks.task import Task
from peft_audio.text import listed

# Groups differ in size and in their classes: of so many draws, the one that divides best is taken.
TRIES = 200


def divide(clips: pd.DataFrame, cfg: DataConfig) -> pd.DataFrame:
    """The clips with their `split`: as given where the source gives it, made where it does not.

    Args:
        clips: With `id`, `label`, `group`, `split`; those that cannot be used are gone already.
        cfg: Fold, shares, seed.

    Raises:
        UserError: A class or a group cannot be divided as is wanted.
    """
    if clips.empty:
        raise UserError("--data.source: none of its clips can be used; mend them, or give another source.")
    clips = clips.sort_values("id", ignore_index=True)
    if cfg.fold is not None:
        return clips.assign(split=_folds(clips, cfg))
    given = set(clips["split"]) - {""}
    if given and "train" not in given:
        raise UserError(f"--data.source: it has a {listed(sorted(given))} split but none to train on; add one.")
    clips = clips.assign(split=clips["split"].replace("", "train"))
    shares = {"test": cfg.test_share, "validation": cfg.validation_share}
    if cfg.validate_on_test:
        del shares["validation"]
    absent = {split: share for split, share in shares.items() if split not in given}
    if not absent:
        return clips
    hold_out = _hold_out_groups if _has_groups(clips) else _hold_out
    return clips.assign(split=hold_out(clips, absent, cfg.split_seed))


def take_splits(clips: pd.DataFrame, file: str) -> tuple[pd.DataFrame, str]:
    """Divide clips as a table says; those that it does not name are left out.

    Args:
        clips: With `id`.
        file: `data.splits_file`.

    Returns:
        The clips with `split`, and a note on how many were left out.

    Raises:
        UserError: It has no such columns, names clips that are not there, or leaves no split to train on.
    """
    table, _ = read_table(expanded(file), "data.splits_file")
    missing = [column for column in ("id", "split") if column not in table]
    if missing:
        raise UserError(f"--data.splits_file: {file} has no column {missing[0]!r}; it needs id and split.")
    table = table[["id", "split"]].map(as_text).drop_duplicates()
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise UserError(f"--data.splits_file: {file} names clips for several splits: {listed(list(twice))}. Mend it.")
    wanted = dict(zip(table["id"], table["split"], strict=True))
    splits = name_splits(sorted(set(wanted.values())), "data.splits_file")
    odd = sorted(set(wanted.values()) - set(splits))
    if odd:
        raise UserError(f"--data.splits_file: {file} has splits {listed(odd)}; must be train, validation or test.")
    absent = sorted(set(wanted) - set(clips["id"]))
    if absent:
        raise UserError(
            f"--data.splits_file: {len(absent)} clips of {file} are not in the source: {listed(absent)}. "
            "Give the source that the splits were made of."
        )
    kept = clips[clips["id"].isin(wanted)]
    kept = kept.assign(split=[splits[wanted[name]] for name in kept["id"]])
    left = len(clips) - len(kept)
    return kept, f"{left} of {len(clips)} clips are left out, because {file} does not name them" if left else ""


def missing_classes(clips: pd.DataFrame, labels: Sequence[str], task: Task) -> dict[str, list[str]]:
    """For each split that has clips, the classes that it has none of."""
    found = {split: set(task.label_names(list(clips["label"][clips["split"] == split]))) for split in SPLITS}
    return {split: absent for split, has in found.items() if has and (absent := sorted(set(labels) - has))}


def leaking_groups(clips: pd.DataFrame) -> dict[str, list[str]]:
    """The groups that stand in several splits, with those splits; clips that could not be divided stand in none."""
    known = clips[(clips["group"] != "") & (clips["split"] != "")]
    splits = known.groupby("group")["split"].agg(lambda found: sorted(set(found), key=SPLITS.index))
    return {group: found for group, found in splits.items() if len(found) > 1}


def _has_groups(clips: pd.DataFrame, num_folds: int = 0) -> bool:
    """Return whether groups matter: groups of one clip each divide like clips without groups.

    Unless there are exactly `num_folds` groups, which then are the folds.
    """
    groups = clips["group"]
    return bool((groups != "").any()) and (
        not groups.is_unique or len(groups) == num_folds or bool((groups == "").any())
    )


def _hold_out(clips: pd.DataFrame, absent: dict[str, float], seed: int) -> np.ndarray:
    """Take clips of each class from those to train on, at random."""
    split = clips["split"].to_numpy(dtype=object, copy=True)
    rng = np.random.default_rng(seed)
    labels = clips["label"].to_numpy()
    own = {label: np.flatnonzero((labels == label) & (split == "train")) for label in sorted(set(labels))}
    own = {label: rows for label, rows in own.items() if len(rows)}
    smallest = min(own, key=lambda label: len(own[label]))
    if len(own[smallest]) <= len(absent):
        raise UserError(
            f"--data.source: class {smallest!r} has too few clips ({len(own[smallest])}) to hold out "
            f"{' and '.join(absent)}; it needs {len(absent) + 1} at least. "
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
    """Take whole groups from those to train on, about the wanted share of each class."""
    _refuse_clips_without_group(clips)
    split = clips["split"].to_numpy(dtype=object, copy=True)
    counts = pd.crosstab(clips["group"][split == "train"], clips["label"][split == "train"])
    few = (counts > 0).sum()[(counts > 0).sum() <= len(absent)]
    if len(few):
        raise UserError(
            f"--data.source: the clips of class {few.index[0]!r} stand in {few.iloc[0]} groups, too few to hold out "
            f"{' and '.join(absent)}: each side needs a group of its own. Add some, or leave the groups out."
        )
    wanted, rng = {name: share * counts.sum() for name, share in absent.items()}, np.random.default_rng(seed)
    for number, name in enumerate(absent):
        held = _nearest_groups(counts, wanted[name], len(absent) - number, rng)
        split[clips["group"].isin(held).to_numpy() & (split == "train")] = name
        counts = counts.drop(index=held)
    return split


def _nearest_groups(counts: pd.DataFrame, wanted: pd.Series, others: int, rng: np.random.Generator) -> list[str]:
    """Of many random draws of groups, the one that comes nearest to the wanted clips of each class.

    Args:
        counts: Clips of each group and class.
        wanted: Clips of each class to be held out.
        others: How many more sides each class must still have a group for.
        rng: Draws.
    """
    table = counts.to_numpy()
    best: tuple[float, list[str]] = (np.inf, [])
    for _ in range(TRIES):
        order = rng.permutation(len(table))
        held = np.cumsum(table[order], axis=0)[: len(table) - others]
        groups = np.cumsum(table[order] > 0, axis=0)[: len(table) - others]
        lacking = (groups < 1) | ((table > 0).sum(axis=0) - groups < others)
        missed = np.abs(held - wanted.to_numpy()).sum(axis=1) + lacking.sum(axis=1) * table.sum()
        at = int(missed.argmin())
        best = min(best, (float(missed[at]), counts.index[order[: at + 1]].tolist()), key=lambda found: found[0])
    return best[1]


def _folds(clips: pd.DataFrame, cfg: DataConfig) -> np.ndarray:
    assert cfg.fold is not None
    if (clips["split"] != "").any():
        raise UserError(f"--data.fold: got {cfg.fold}, must be left out: the source has splits of its own.")
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
    """Row numbers of each fold; groups whole, classes as even as the groups allow.

    With as many groups as folds they are the folds, in the order of their names.
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
        # A class in fewer groups than folds is told by whoever needs it in each.
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
            "Give each one (a recording of its own is a group of its own)."
        )
