"""Clips to train, validation and test, so that no group stands on two sides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from peft_audio.collection import SPLIT_NAMES, SPLITS, listed
from peft_audio.config import DataConfig, UserError
from peft_audio.manifest import read_table

# Few groups can be divided so that a class is missing on a side; another shuffle may do better.
TRIES = 50


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
        clips = clips[clips["split"] != "validation"]
    absent = {split: share for split, share in shares.items() if split not in given}
    if not absent:
        return clips
    hold_out = _hold_out_groups if (clips["group"] != "").any() else _hold_out
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
    table = read_table(Path(file).expanduser(), "data.splits_file")
    missing = [column for column in ("id", "split") if column not in table]
    if missing:
        raise UserError(f"--data.splits_file: {file} has no column {missing[0]!r}; it needs id and split.")
    wanted = dict(zip(table["id"].astype(str), table["split"].astype(str), strict=True))
    odd = sorted({split for split in wanted.values() if split not in SPLIT_NAMES})
    if odd:
        raise UserError(f"--data.splits_file: {file} has splits {listed(odd)}; must be train, validation or test.")
    absent = sorted(set(wanted) - set(clips["id"]))
    if absent:
        raise UserError(
            f"--data.splits_file: {len(absent)} clips of {file} are not in the source: {listed(absent)}. "
            "Give the source that the splits were made of."
        )
    kept = clips[clips["id"].isin(wanted)]
    kept = kept.assign(split=[SPLIT_NAMES[wanted[name]] for name in kept["id"]])
    left = len(clips) - len(kept)
    return kept, f"{left} of {len(clips)} clips are left out, because {file} does not name them" if left else ""


def missing_classes(clips: pd.DataFrame, labels: Sequence[str]) -> dict[str, list[str]]:
    """For each split that has clips, the classes that it has none of."""
    found = {split: set(clips["label"][clips["split"] == split]) for split in SPLITS}
    return {split: absent for split, has in found.items() if has and (absent := sorted(set(labels) - has))}


def leaking_groups(clips: pd.DataFrame) -> dict[str, list[str]]:
    """The groups that stand in several splits, with those splits."""
    known = clips[clips["group"] != ""]
    splits = known.groupby("group")["split"].agg(lambda found: sorted(set(found), key=SPLITS.index))
    return {group: found for group, found in splits.items() if len(found) > 1}


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
    held = 0.0
    for name, share in absent.items():
        rows = np.flatnonzero(split == "train")
        groups = clips["group"].to_numpy()[rows]
        largest = clips.iloc[rows]["label"].value_counts().max()
        parts = min(max(2, round((1 - held) / share)), len(set(groups)), largest)
        if parts < 2:
            raise UserError(
                f"--data.source: {len(set(groups))} groups are too few to hold out {name}; it needs one for each of "
                "train, validation and test. Leave the groups out, or add some."
            )
        others = len(absent) - list(absent).index(name)  # later splits and training need groups of each class too
        split[rows[_one_fold(clips.iloc[rows], parts, seed, others)]] = name
        held += share
    return split


def _folds(clips: pd.DataFrame, cfg: DataConfig) -> np.ndarray:
    assert cfg.fold is not None
    if (clips["split"] != "").any():
        raise UserError(f"--data.fold: got {cfg.fold}, must be left out: the source has splits of its own.")
    labels, count = clips["label"], cfg.num_folds
    if (clips["group"] != "").any():
        _refuse_clips_without_group(clips)
        folds = _group_folds(clips, count, cfg.split_seed, by_name=True)
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


def _one_fold(clips: pd.DataFrame, count: int, seed: int, others: int) -> np.ndarray:
    """Row numbers of about one part in `count`, whole groups, that has every class and leaves it to so many others."""
    pairs = clips.reset_index(drop=True)[["label", "group"]]
    best, fewest = np.array([], dtype=int), len(pairs) + 1
    for number in range(TRIES):
        for rows in _group_folds(clips, count, (seed + number) % 2**32):
            taken = pairs.index.isin(rows)
            held, left = (pairs[part].groupby("label")["group"].nunique() for part in (taken, ~taken))
            labels = pairs["label"].unique()
            lacking = sum((label not in held) + (left.get(label, 0) < others) for label in labels)
            if lacking < fewest:
                best, fewest = rows, lacking
            if not lacking:
                return rows
    return best


def _group_folds(clips: pd.DataFrame, count: int, seed: int, by_name: bool = False) -> list[np.ndarray]:
    """Row numbers of each fold; groups whole, classes as even as the groups allow.

    With as many groups as folds they are the folds, at random or in the order of their names.
    """
    groups, labels = clips["group"].to_numpy(), clips["label"].to_numpy()
    names = sorted(set(groups))
    if len(names) < count:
        raise UserError(
            f"--data.num_folds: got {count}, must be at most {len(names)}, the number of groups. "
            "Lower it, or take smaller groups."
        )
    if len(names) == count:
        order = names if by_name else np.random.default_rng(seed).permutation(names).tolist()
        return [np.flatnonzero(groups == name) for name in order]
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
