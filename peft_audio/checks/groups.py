"""Count groups per split and class, and suspect undeclared groups.

A group is a common origin of clips, such as a speaker, an artist or a source recording. A random division puts its
clips into several splits, so that scores are too high. Data sets have the group in file names, folders or columns of a
table. `suspect_groups` reads only names and labels.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath

import pandas as pd

from peft_audio.data.clip_table import SPLIT_NAMES, SPLITS
from peft_audio.data.divide import leaking_groups
from peft_audio.text import several

SEPARATORS = "-_. ,;+~@#=()[]"
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
DATE = r"(?:19|20)\d\d(?:-[01]\d-|_[01]\d_|\.[01]\d\.)[0-3]\d"
TIME = r"[0-2]\d(?:-[0-5]\d-|_[0-5]\d_|\.[0-5]\d\.)[0-5]\d"
FIELD = f"[^{re.escape(SEPARATORS)}]"
# A time counts as one field only after a date, because other names hold two-digit codes.
FIELDS = re.compile(rf"{DATE}(?!{FIELD})|(?<=(?:19|20)\d\d[-_.]\d\d[-_.]\d\d[-_. ]){TIME}(?!{FIELD})|{FIELD}+")
# Names of processing steps and of pieces of a recording, which clips of different recordings share.
TAGS = re.compile(
    r"v(er(sion)?)?\d+|\d+(\.\d+)?(k|hz|khz|kbps|bit|db|ms|bpm)"
    r"|(orig|original|clean|noise|noisy|pitch|pitched|speed|tempo|stretch|stretched|shift|shifted|gain|vol|volume"
    r"|reverb|echo|aug|augmented|augmentation|copy|crop|trim|seg|segment|part|chunk|slice|piece|win|window|frame"
    r"|clip|take|left|right|mono|stereo|ch|channel)\d*",
    re.IGNORECASE,
)
FEWEST_GROUPS = 3  # one for each split
FEWEST_WORDS = 4  # fewer different words usually describe clips instead of naming speakers
MOST_VERSIONS = 4  # versions of one item; more values in an unknown last word usually name speakers
NEARLY_ALL = 0.8
FEWEST_CLIPS = 10
FILLED = 0.8  # smallest share of cells of a column with a value
SHARED = 0.3  # smallest share of clips that share their value with another clip
MOST_GROUPS = 0.8  # largest number of groups per clip; with more, nearly every clip has its own value
MOST_IN_ONE = 0.8  # largest share of clips with one value; a more frequent value is a tag
LIKE_CLASS = 0.9  # share of clips with the usual value of their class from which the value names the class
DENSE = 0.6  # share of used numbers, from 0 or 1 on, from which they count clips
MOST_OPTIONAL_FIELDS = 2  # largest difference in the number of fields; names that differ more are titles
CLIPS_PER_NUMBER = 4  # clips of a class per number from which the number does not count clips
# Columns that hold groups in published tables, the most relevant first.
GROUP_COLUMNS = (
    *("speaker", "spk", "actor", "singer", "artist", "subject", "patient", "participant", "person", "client"),
    *("uploader", "user", "author", "owner", "donor", "recordist", "animal", "individual", "recording", "record"),
    *("source", "fsid", "video", "youtube", "song", "album", "track", "session", "device", "microphone", "site"),
    *("location", "station", "place", "city", "fold"),
)


@dataclass(frozen=True)
class Suspicion:
    """Property of names that may be a group.

    Attributes:
        where: Place of the value, such as "file names".
        flag: Setting that declares it, such as `--data.group_pattern '^([^_]+)_'`.
        groups: Value of each clip; "" if a cell is empty.
    """

    where: str
    flag: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class GroupCounts:
    """Numbers of groups.

    Attributes:
        groups: Number of groups.
        by_split: Number of groups by split; a group in two splits counts in both.
        by_class: Number of groups by class.
        on_several_sides: Number of groups with clips in several splits.
        statement: Result in words.
    """

    groups: int
    by_split: dict[str, int]
    by_class: dict[str, int]
    on_several_sides: int
    statement: str


def count_groups(clips: pd.DataFrame, noun: str = "group") -> GroupCounts | None:
    """Count groups per split and class.

    Args:
        clips: Clips with `label`, `group` ("" if unknown) and `split`.
        noun: Kind of group for the statement, such as "recording".

    Returns:
        The counts; None if no clip has a group.
    """
    known = clips[clips["group"] != ""]
    if known.empty:
        return None
    leaking = len(leaking_groups(known))
    total = int(known["group"].nunique())
    by_split = {split: int(known["group"][known["split"] == split].nunique()) for split in SPLITS}
    statement = f"no {noun} is in two splits"
    if leaking:
        statement = f"{leaking} of {several(total, noun)} {'is' if leaking == 1 else 'are'} in several splits"
    if not (known["split"] != "").any():
        by_split, statement = {}, "the clips are not divided"
    if total == len(clips):
        statement += f"; each clip is its own {noun}"
    return GroupCounts(
        total,
        {split: count for split, count in by_split.items() if count},
        {str(label): int(count) for label, count in known.groupby("label")["group"].nunique().items()},
        leaking,
        statement,
    )


def suspect_groups(names: Sequence[str], labels: Sequence[str], files: Sequence[str] | None = None) -> Suspicion | None:
    """Search for groups in file names and folders.

    Args:
        names: Path of each clip relative to the source, with slashes or backslashes.
        labels: Class of each clip.
        files: File name of each clip; the last component of its path when not given.

    Returns:
        The most likely group with a pattern that matches all names; None if there is none.
    """
    if len(names) < FEWEST_CLIPS:
        return None
    files = [PurePosixPath(name).name for name in names] if files is None else files
    stems = [PurePosixPath(file).stem for file in files]
    for pattern, values in [*_from_folders(names, files, labels), *_from_stems(stems, labels)]:
        # As with --data.group_pattern, a pattern without "/" is searched in file names.
        matches = [re.search(pattern, name) for name in (names if "/" in pattern else files)]
        if [match[1] if match else None for match in matches] == list(values):
            where = "folders" if "/" in pattern else "file names"
            return Suspicion(where, f"--data.group_pattern {shlex.quote(pattern)}", tuple(values))
    return None


def suspect_column(table: pd.DataFrame, labels: Sequence[str]) -> Suspicion | None:
    """Search for a column that holds groups.

    Args:
        table: Unused columns of a manifest, with all cells as text.
        labels: Class of each row.

    Returns:
        The most relevant column with a name from `GROUP_COLUMNS`; None if there is none.
    """
    by_word = {}
    for column in map(str, table.columns):
        words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())
        words += ["".join(words), *(word.removesuffix("id") for word in words)]
        known = [GROUP_COLUMNS.index(word) for word in words if word in GROUP_COLUMNS]
        values = [value.strip() for value in table[column].tolist()]
        filled = [row for row, value in enumerate(values) if value]
        if len(filled) < FILLED * len(values):
            continue
        if known and _is_shared([values[row] for row in filled], [labels[row] for row in filled]):
            flag = f"--data.group_column {shlex.quote(column)}"
            by_word[min(known)] = Suspicion(f"column {column!r} of the table", flag, tuple(values))
    return by_word[min(by_word)] if by_word else None


def _from_folders(names: Sequence[str], files: Sequence[str], labels: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Propose the folders between the class folder and the file."""
    # Tables written on Windows have backslashes.
    slash = "/" if not any("\\" in name for name in names) else r"/\\"
    parts = [re.split(f"[{slash}]", name) for name in names]
    between = slash if slash == "/" else f"[{slash}]"
    for depth in range(1, min(map(len, parts))):
        values = [path[-1 - depth] for path in parts]
        split_like = sum(value.lower() in SPLIT_NAMES for value in values) > len(values) / 2
        if not split_like and _is_shared(values, labels) and not _are_shards(values, files):
            yield f"([^{slash}]+)" + depth * f"{between}[^{slash}]+" + "$", values


def _are_shards(folders: Sequence[str], files: Sequence[str]) -> bool:
    """Return whether file numbers continue from folder to folder, as in a collection divided for its size."""
    numbers = [re.findall(r"\d+", PurePosixPath(file).stem) for file in files]
    if not all(numbers) or not all(re.search(r"\d", folder) for folder in folders):
        return False
    table = pd.DataFrame(
        {"folder": folders, "file": files, "number": [int(digits[-1]) for digits in numbers]}
    ).drop_duplicates()
    if table["number"].duplicated().any():
        return False
    ends = table.groupby("folder")["number"].agg(["min", "max"]).sort_values("min")
    return bool((ends["min"].to_numpy()[1:] > ends["max"].to_numpy()[:-1]).all())


def _from_stems(stems: Sequence[str], labels: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Propose fields of the file names: first names and ids, then counting numbers, each from left to right."""
    uuids = [re.search(UUID, stem) for stem in stems]
    if all(uuids):
        values = [match[0] for match in uuids if match]
        if _is_shared(values, labels):
            yield f"({UUID})", values
        return
    fields = [FIELDS.findall(stem) for stem in stems]
    shortest, longest = min(map(len, fields)), max(map(len, fields))
    if not shortest or longest - shortest > MOST_OPTIONAL_FIELDS:
        return  # free text
    counted: list[tuple[str, list[str]]] = []
    columns = [[row[i] for row in fields] for i in range(shortest)]
    varying = [i for i, values in enumerate(columns) if len(set(values)) > 1 and not names_class(values, labels)]
    many_words = sum(_are_words(columns[i]) for i in varying) > 1 or sum(map(_are_words, columns)) > 2
    is_title = many_words and any(" " in stem.strip() for stem in stems)
    is_grid = _are_settings([columns[i] for i in varying], labels)
    for i in varying:
        items = [tuple(row[:i]) for row in fields]
        if _are_tags(columns[i]) or _names_versions(columns[i], items):
            # A first field has nothing before it, so that all clips are one item, which is no group.
            yield from _items(stems, columns, i - 1) if _is_shared(items, labels) else ()
            continue
        if i and _is_date(columns[i - 1]) and _are_times(columns[i]):
            continue
        for ending, values in _parts(columns[i]):
            numbers = _as_numbers(values)
            pattern = _pattern(stems, columns, i, ending)
            few_words = _are_words(values) and (is_title or len(set(values)) < FEWEST_WORDS)
            no_group = few_words if numbers is None else is_grid and not _count_clips(numbers)
            if no_group or not _is_shared(values, labels):
                continue
            if numbers is None:
                yield pattern, values
                continue
            pairs = Counter(zip(labels, values, strict=True))
            if sum(count for count in pairs.values() if count > 1) < SHARED * len(values):
                continue  # the numbers count the clips of each class
            is_last = not ending and i == varying[-1] and longest == shortest
            if not _count_clips(numbers):
                yield pattern, values
            elif not is_last or len(values) / len(pairs) >= CLIPS_PER_NUMBER:
                counted.append((pattern, values))
    # Last, because numbers from 0 or 1 on usually count clips.
    yield from counted


def _items(stems: Sequence[str], columns: Sequence[Sequence[str]], field: int) -> Iterator[tuple[str, list[str]]]:
    """Propose the start of the names up to and including a field."""
    pattern = _pattern(stems, columns, field, "", whole=True)
    matches = [re.match(pattern, stem) for stem in stems]
    if all(matches):
        yield pattern, [match[1] for match in matches if match]


def _parts(values: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield a field's leading letters or digits if all values have them, then the whole field.

    Yields:
        Pattern of the part ("" for the whole field), and its values.
    """
    for kind, ending in ((r"[^\W\d_]+", r"\d"), (r"\d+", r"[^\W\d_]")):
        heads = [re.match(f"({kind}){ending}", value) for value in values]
        if all(heads):
            leading = [head[1] for head in heads if head]
            if len(set(leading)) > 1:
                yield f"({kind}){ending}", leading
    yield "", values


def _are_words(values: Sequence[str]) -> bool:
    return all(map(str.isalpha, values)) and _as_numbers(values) is None


def _are_tags(values: Sequence[str]) -> bool:
    return sum(bool(TAGS.fullmatch(value)) for value in values) >= NEARLY_ALL * len(values)


def _are_times(values: Sequence[str]) -> bool:
    return all(re.fullmatch(rf"{TIME}|[0-2]\d[0-5]\d(?:[0-5]\d)?", value) for value in values)


def _is_date(values: Sequence[str]) -> bool:
    return all(re.fullmatch(rf"{DATE}|(?:19|20)\d\d[01]\d[0-3]\d", value) for value in values)


def _names_versions(values: Sequence[str], items: Sequence[tuple[str, ...]]) -> bool:
    """Return whether a field names pieces or versions of an item, such as seg0, seg1, seg2 or dry, wet.

    Nearly all of its values occur with each item. Names of speakers who all read the same sentences have this property
    too, so words count as versions only if they have few values.

    Args:
        values: Field of each clip.
        items: Fields before it, for each clip.
    """
    if _as_numbers(values) is not None:
        return False
    heads = [re.fullmatch(r"([^\W\d_]{2,})\d+", value) for value in values]
    numbered = all(heads) and len({head[1].lower() for head in heads if head}) == 1
    if heads[0] and numbered and heads[0][1].lower() in GROUP_COLUMNS:
        return False
    pairs, kinds, number = set(zip(items, values, strict=True)), len(set(values)), len(set(items))
    if not numbered and kinds > MOST_VERSIONS:
        return False
    return number >= 2 * kinds and len(pairs) >= NEARLY_ALL * max(kinds * number, len(values))


def _are_settings(columns: Sequence[Sequence[str]], labels: Sequence[str]) -> bool:
    """Return whether numbers form a grid of settings, such as the pitches and velocities of an instrument.

    Args:
        columns: Fields that vary, each with one value per clip.
        labels: Class of each clip.
    """
    numbers = [_as_numbers(values) for values in columns]
    grid = [i for i, column in enumerate(numbers) if column is not None and not _count_clips(column)]
    if len(grid) < 2:
        return False
    table = pd.DataFrame({"label": list(labels)} | dict(enumerate(columns))).drop_duplicates()
    others = [name for name in table.columns if name not in grid]
    kinds = table.groupby(others)[grid].nunique()
    return bool((kinds > 1).all(axis=1).mean() >= NEARLY_ALL and len(table) >= NEARLY_ALL * kinds.prod(axis=1).sum())


def _count_clips(numbers: Sequence[int]) -> bool:
    """Return whether numbers count clips: they start at 0 or 1, and most of the range is used."""
    return min(numbers) in (0, 1) and len(set(numbers)) >= DENSE * (max(numbers) - min(numbers) + 1)


def _pattern(stems: Sequence[str], columns: Sequence[Sequence[str]], field: int, part: str, whole: bool = False) -> str:
    """Return a pattern that captures a field of file names.

    Args:
        stems: File names without extension.
        columns: Values of each field.
        field: Index of the field.
        part: Pattern of a part of the field to capture instead; "" for the whole field.
        whole: Also capture everything before the field.
    """
    used = [character for character in SEPARATORS if any(character in stem for stem in stems)]
    # "-" comes first, where a character class takes it literally.
    characters = "".join("\\" + c if c in "[]" else c for c in used)
    separator = re.escape(used[0]) if len(used) == 1 and used[0] != "-" else f"[{characters}]"
    if used == ["-"]:
        separator = "-"
    doubled = any(a in used and b in used for stem in stems for a, b in pairwise(stem))
    separator += "+" if doubled else ""
    dates = r"\d+(?:[-_.]\d\d){2}"
    inner = [dates if all(map(re.compile(dates).fullmatch, values)) else f"[^{characters}]+" for values in columns]
    value = inner[field] if inner[field] == dates else f"[^{characters}{'' if '.' in used else '.'}]+"
    before = "".join(one + separator for one in inner[:field])
    if field > 1 and dates not in inner[:field]:
        before = f"(?:{inner[0]}{separator}){{{field}}}"
    return f"^({before}{value}){separator}" if whole else f"^{before}{part or f'({value})'}"


def _as_numbers(values: Sequence[str]) -> list[int] | None:
    """Read values as numbers, or single letters as their positions in the alphabet; None if they are neither."""
    if all(value.isdecimal() for value in values):
        return [int(value) for value in values]
    if all(re.fullmatch("[a-zA-Z]", value) for value in values):
        return [ord(value.lower()) - ord("a") for value in values]
    return None


def _is_shared(values: Sequence[Hashable], labels: Sequence[str]) -> bool:
    """Return whether several clips share each value, as with groups, and the values do not just name the class."""
    counts = Counter(values)
    shared = sum(count for count in counts.values() if count > 1)
    if not FEWEST_GROUPS <= len(counts) <= MOST_GROUPS * len(values):
        return False
    if shared < SHARED * len(values) or max(counts.values()) > MOST_IN_ONE * len(values):
        return False
    return not names_class(values, labels)


def names_class(values: Sequence[Hashable], labels: Sequence[str]) -> bool:
    """Return whether nearly all clips of each class have one value."""
    usual = pd.Series(list(values)).groupby(list(labels)).agg(lambda column: column.value_counts().iloc[0])
    return bool(usual.sum() >= LIKE_CLASS * len(values))
