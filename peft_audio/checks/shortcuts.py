"""Test whether properties of the files reveal the classes.

A classifier uses only one property, such as the silence at the end of each clip. If it predicts the class of held-out
clips, a network can learn this property instead of the sound.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

MOST_CLIPS = 2_000  # a seeded sample of a larger collection, so that a test takes seconds
FOLDS = 5
FEWEST_CLIPS = 5  # clips of a class, one per fold; smaller classes are left out
MOST_VALUES = 20  # rarer codecs or rates count as one
PERMUTATIONS = 999
SIGNIFICANT = 0.01
MARGIN = 0.1  # above the accuracy of always naming one class
SENTENCES = 3
QUIETEST = 1e-5


@dataclass(frozen=True)
class Shortcut:
    """Accuracy with which one property of the files predicts the class.

    Attributes:
        name: Property, such as "digital silence".
        kind: "artefact" if the property comes from how files were made, "content" if the sound can explain it.
        accuracy: Balanced accuracy on held-out clips: mean recall over classes.
        chance: Balanced accuracy of always answering one class: 1 / classes.
        p_value: Share of random permutations of labels with at least this accuracy.
        clips: Number of clips that were tested.
        examples: Sentences on the classes that differ most.
        warns: Whether the accuracy is above chance by more than the margin, with p < 0.01.
    """

    name: str
    kind: Literal["artefact", "content"]
    accuracy: float
    chance: float
    p_value: float
    clips: int
    examples: tuple[str, ...]
    warns: bool


@dataclass(frozen=True)
class _Property:
    """Property of files, as numbers for a classifier and as phrases for messages.

    Attributes:
        name: Name, see `Shortcut`.
        kind: Kind, see `Shortcut`.
        numbers: Function of the clips that returns features of shape (clips, features).
        phrases: Function of the clips that returns statements: a phrase with `{}` for a median, a mask of the clips
            that it holds for, and the values of which the median is taken.
        fix: Advice on how to remove the property.
    """

    name: str
    kind: Literal["artefact", "content"]
    numbers: Callable[[pd.DataFrame], np.ndarray]
    phrases: Callable[[pd.DataFrame], list[tuple[str, pd.Series, pd.Series]]]
    fix: str


def find_shortcuts(clips: pd.DataFrame, seed: int = 0) -> list[Shortcut]:
    """Test each property of the files, with groups in one fold if known.

    Args:
        clips: Usable clips with `label`, `group` and the columns that `scan` adds.
        seed: Seed of the sample, the folds and the permutations.

    Returns:
        One result per property that varies; none if there are too few clips.
    """
    counts = clips["label"].value_counts()
    clips = clips[clips["label"].isin(counts[counts >= FEWEST_CLIPS].index)].sort_values("id", ignore_index=True)
    labels = sorted(set(clips["label"]))
    if len(labels) < 2:
        return []
    drawn = _sample(clips, seed)
    results = []
    for prop in PROPERTIES:
        numbers = prop.numbers(drawn)
        numbers = numbers[:, np.ptp(numbers, axis=0) > 0]
        if numbers.shape[1]:
            accuracy, p_value = _test(numbers, drawn, seed)
            warns = p_value < SIGNIFICANT and accuracy >= 1 / len(labels) + MARGIN
            examples = tuple(_examples(prop.phrases(clips), clips["label"])) if warns else ()
            results.append(
                Shortcut(prop.name, prop.kind, accuracy, 1 / len(labels), p_value, len(drawn), examples, warns)
            )
    return results


def describe(shortcut: Shortcut) -> str:
    """Describe a shortcut and how to remove it, in one or two sentences."""
    fix = next(prop.fix for prop in PROPERTIES if prop.name == shortcut.name)
    right = f"{shortcut.accuracy:.0%} of clips (mean over classes; always answering one class: {shortcut.chance:.0%})"
    effect = "differs by class" if shortcut.kind == "content" else "reveals the class"
    return f"{shortcut.name} {effect}: a classifier that uses only this is right for {right}. {fix}"


def _sample(clips: pd.DataFrame, seed: int) -> pd.DataFrame:
    if len(clips) <= MOST_CLIPS:
        return clips
    order = np.random.default_rng(seed).permutation(len(clips))
    # The first few clips of each class come first, so that rare classes stay.
    rank = pd.Series(order).groupby(clips["label"]).rank() - 1
    first = np.lexsort([order, rank >= FEWEST_CLIPS])
    return clips.iloc[np.sort(first[:MOST_CLIPS])].reset_index(drop=True)


def _test(numbers: np.ndarray, clips: pd.DataFrame, seed: int) -> tuple[float, float]:
    """Predict the class of held-out clips, and compare with permuted labels.

    Args:
        numbers: Features of shape (clips, features).
        clips: Clips with `id`, `label` and `group`.
        seed: Seed of the folds and the permutations.

    Returns:
        Mean recall over classes, and the share of permutations that reach it.
    """
    names, truth = np.unique(clips["label"].to_numpy(dtype=str), return_inverse=True)
    # A clip without a group is its own group.
    groups = clips["group"].where(clips["group"] != "", "\0" + clips["id"].astype(str))
    _, group = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
    folds = min(FOLDS, group.max() + 1)
    if folds < 2:
        return 0.0, 1.0
    kind = StratifiedKFold if group.max() + 1 == len(group) else StratifiedGroupKFold
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=200))
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # classes in fewer groups than folds, and fits that stop early
        try:
            cut = kind(folds, shuffle=True, random_state=seed)
            predicted = cross_val_predict(model, numbers, truth, cv=cut, groups=group)
        except ValueError:  # a training fold has only one class
            return 0.0, 1.0
    accuracy = _mean_recall(truth, predicted, len(names))
    if accuracy < 1 / len(names) + MARGIN:
        # Below the margin nothing is reported, so permutations are not needed.
        return accuracy, 1.0
    reached = sum(
        _mean_recall(_permuted(truth, group, rng), predicted, len(names)) >= accuracy for _ in range(PERMUTATIONS)
    )
    return accuracy, (1 + reached) / (1 + PERMUTATIONS)


def _mean_recall(truth: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    right = np.bincount(truth[truth == predicted], minlength=classes)
    return float((right / np.bincount(truth, minlength=classes)).mean())


def _permuted(truth: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute labels in agreement with groups.

    If each group has one class, labels are permuted between groups, otherwise within groups.
    """
    first = np.unique(group, return_index=True)[1]
    if (truth == truth[first][group]).all():
        return truth[first][rng.permutation(len(first))][group]
    order = np.argsort(group, kind="stable")
    permuted = np.empty_like(truth)
    permuted[order] = truth[np.lexsort([rng.random(len(truth)), group])]
    return permuted


def _examples(phrases: Sequence[tuple[str, pd.Series, pd.Series]], labels: pd.Series) -> Iterator[str]:
    """Write sentences on the classes that differ most from the others."""
    classes = sorted(set(labels))
    by_contrast = []
    for phrase, true, value in phrases:
        for label in classes:
            own = labels == label
            if len(classes) == 2 and true[own].mean() < true[~own].mean():
                continue  # the sentence on the other class is equivalent
            by_contrast.append((abs(true[own].mean() - true[~own].mean()), phrase, label, true, value))
    by_contrast.sort(key=lambda entry: -entry[0])
    if by_contrast and by_contrast[0][0] >= MARGIN:
        written: set[str] = set()
        for contrast, phrase, label, true, value in by_contrast:
            if contrast >= MARGIN and label not in written and len(written) < SENTENCES:
                written.add(label)
                yield _contrast(phrase, label, true, value, labels)
        return
    # The statements hold for all classes, so the sentence compares the medians.
    medians = [(value[true].groupby(labels[true]).median(), phrase) for phrase, true, value in phrases if true.any()]
    if medians:
        median, phrase = max(medians, key=lambda entry: entry[0].max() - entry[0].min())
        highest, lowest = median.idxmax(), median.idxmin()
        yield (
            f"clips of {highest!r} {phrase.format(median[highest])}, "
            f"clips of {lowest!r} {phrase.format(median[lowest])} (medians)"
        )


def _contrast(phrase: str, label: str, true: pd.Series, value: pd.Series, labels: pd.Series) -> str:
    own = labels == label
    classes = sorted(set(labels))
    other = next(name for name in classes if name != label)
    rest = int((true & ~own).sum())
    others = f"{(~own).sum()} clips of {f'{other!r}' if len(classes) == 2 else 'the other classes'}"
    none = f"none of {f'{other!r}' if len(classes) == 2 else 'the other classes'}"
    median = value[true & own].median() if (true & own).any() else value[true].median()
    return (
        f"{(true & own).sum()} of {own.sum()} clips of {label!r} {phrase.format(median)}, "
        f"{f'{rest} of {others}' if rest else none}"
    )


def _columns(*names: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda clips: clips[list(names)].to_numpy(dtype=float)


def _one_hot(column: str) -> Callable[[pd.DataFrame], np.ndarray]:
    def numbers(clips: pd.DataFrame) -> np.ndarray:
        common = clips[column].value_counts().index[:MOST_VALUES]
        return np.stack([clips[column] == value for value in common], axis=1).astype(float)

    return numbers


def _each_value(column: str, phrase: str) -> Callable[[pd.DataFrame], list[tuple[str, pd.Series, pd.Series]]]:
    def phrases(clips: pd.DataFrame) -> list[tuple[str, pd.Series, pd.Series]]:
        common = clips[column].value_counts().index[:MOST_VALUES]
        nothing = pd.Series(0.0, index=clips.index)
        return [(phrase.format(value).replace("{", "{{"), clips[column] == value, nothing) for value in common]

    return phrases


def _silence_phrases(clips: pd.DataFrame) -> list[tuple[str, pd.Series, pd.Series]]:
    verbs = {
        "trailing_silence_seconds": "end in",
        "leading_silence_seconds": "begin with",
        "silence_seconds": "contain",
    }
    shape = "{} {{:.2g}} s of digital silence"
    return [(shape.format(verb), clips[column] > 0, clips[column]) for column, verb in verbs.items()]


def _seconds(clips: pd.DataFrame) -> pd.Series:
    return clips["num_frames"] / clips["sampling_rate"]


def _level(clips: pd.DataFrame, column: str) -> pd.Series:
    return 20 * np.log10(np.maximum(clips[column], QUIETEST))


PROPERTIES = (
    _Property(
        "digital silence",
        "artefact",
        _columns("leading_silence_seconds", "trailing_silence_seconds", "silence_seconds"),
        _silence_phrases,
        "Trim the silence, or pad all recordings in the same way.",
    ),
    _Property(
        "file format",
        "artefact",
        _one_hot("codec"),
        _each_value("codec", "are {}"),
        "Use recordings of one format, or encode all recordings in the same way.",
    ),
    _Property(
        "sampling rate",
        "artefact",
        _one_hot("sampling_rate"),
        _each_value("sampling_rate", "have a sampling rate of {:,} Hz"),
        "Resample all recordings to the lowest of these rates.",
    ),
    _Property(
        "number of channels",
        "artefact",
        _one_hot("channels"),
        _each_value("channels", "have {} channel(s)"),
        "Mix all recordings to mono in the same way.",
    ),
    _Property(
        "clipping",
        "artefact",
        lambda clips: np.stack([clips["clipped"], clips["clipped"] > 0], axis=1).astype(float),
        lambda clips: [("have {:.2g}% of samples at full scale", clips["clipped"] > 0, 100 * clips["clipped"])],
        "Record all classes at the same level, or leave the clipped recordings out.",
    ),
    _Property(
        "duration",
        "content",
        lambda clips: np.stack([_seconds(clips), np.log(_seconds(clips))], axis=1),
        lambda clips: [("last {:.2g} s", pd.Series(True, index=clips.index), _seconds(clips))],
        "Crop all clips to one length if classes should not differ by it.",
    ),
    _Property(
        "level",
        "content",
        lambda clips: np.stack([_level(clips, "rms"), _level(clips, "peak")], axis=1),
        lambda clips: [("have a level of {:.0f} dBFS", pd.Series(True, index=clips.index), _level(clips, "rms"))],
        "Normalise the level of all clips if classes should not differ by it.",
    ),
)
