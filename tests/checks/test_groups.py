from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import pandas as pd
import pytest

from peft_audio.checks.groups import suspect_column, suspect_groups

CLASSES = ("cat", "dog", "frog")
SPEAKERS = ("ann", "bob", "cleo", "dan", "eve", "finn", "gus", "hana")
# A layout gives names, and the true group of each clip where it has groups.
Layout = Callable[[random.Random], Iterator[tuple[str, str, str]]]


def hexadecimal(rng: random.Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def uuid(rng: random.Random) -> str:
    start, version = hexadecimal(rng, 8), hexadecimal(rng, 3)
    return f"{start}-{hexadecimal(rng, 4)}-4{version}-8{hexadecimal(rng, 3)}-{hexadecimal(rng, 12)}"


def of_ids(name: Callable[[str, str, int], str], ids: Callable[[random.Random], list[str]], takes: int = 5) -> Layout:
    # Each id has some clips of some class, so that ids and classes cross.
    def layout(rng: random.Random) -> Iterator[tuple[str, str, str]]:
        for group in ids(rng):
            for take in range(takes):
                label = rng.choice(CLASSES)
                yield name(label, group, take), label, group

    return layout


def of_classes(name: Callable[[str, int, random.Random], str], clips: int = 40) -> Layout:
    def layout(rng: random.Random) -> Iterator[tuple[str, str, str]]:
        for label in CLASSES:
            for number in range(clips):
                yield name(label, number, rng), label, ""

    return layout


def people(rng: random.Random) -> list[str]:
    return list(SPEAKERS)


def numbered(form: str, count: int = 12, first: int = 0) -> Callable[[random.Random], list[str]]:
    return lambda rng: [form.format(first + i) for i in range(count)]


PLANTED: dict[str, Layout] = {
    "FSDD: class, speaker, take": of_ids(lambda c, g, i: f"{c}/{c}_{g}_{i}.wav", people),
    "speaker, take, in folders of classes": of_ids(lambda c, g, i: f"{c}/{g}-{i:02}.flac", people),
    "VCTK: speaker id, sentence": of_ids(lambda c, g, i: f"{c}/{g}_{i:03}.wav", numbered("p{}", first=225)),
    "Speech Commands: hash of the speaker": of_ids(
        lambda c, g, i: f"{c}/{g}_nohash_{i}.wav", lambda rng: [hexadecimal(rng, 8) for _ in range(40)]
    ),
    "ESC: fold, source, take": of_ids(
        lambda c, g, i: f"{c}/{1 + int(g) % 5}-{g}-{'ABC'[i]}.ogg",
        lambda rng: [str(n) for n in rng.sample(range(10_000, 99_999), 60)],
        takes=3,
    ),
    "UrbanSound8K: recording, class, occurrence, slice": of_ids(
        lambda c, g, i: f"{c}/{g}-{CLASSES.index(c)}-{i // 2}-{i % 2}.wav",
        lambda rng: [str(n) for n in rng.sample(range(1_000, 200_000), 30)],
    ),
    "Donate a Cry: device, time, version, gender, age": of_ids(
        lambda c, g, i: (
            f"{c}/{g}-{1430742197 + 977 * i}-1.{i % 8}-{'mf'[len(g) % 2]}-{(4, 26, 48)[i % 3]:02}-{c[:2]}.wav"
        ),
        lambda rng: [uuid(rng).upper() for _ in range(61)],
    ),
    "EmoDB: speaker, text, class, version": of_ids(
        lambda c, g, i: f"{c}/{g}{'ab'[i % 2]}0{i}{c[0].upper()}a.wav", numbered("{:02}", 8, first=3)
    ),
    "speaker and take without a separator": of_ids(lambda c, g, i: f"{c}/{g}{i}.wav", people),
    "RAVDESS: six codes, then the actor": lambda rng: (
        (f"{c}/03-01-{k + 1:02}-{a % 2 + 1:02}-{a // 2 % 2 + 1:02}-{a // 4 + 1:02}-{g}.wav", c, g)
        for g in map("{:02}".format, range(1, 25))
        for k, c in enumerate(CLASSES)
        for a in range(8)
    ),
    "a folder for each speaker inside the class": of_ids(lambda c, g, i: f"{c}/{g}/{i:03}.wav", people),
    "folders of speakers and a table of labels": of_ids(
        lambda c, g, i: f"audio/{g}/{g}-{i:04}.flac", numbered("{}", first=1089)
    ),
    "folders of numbered sessions with numbered clips": of_ids(lambda c, g, i: f"{g}/{i}.wav", numbered("session{}")),
    "windows of numbered recordings": of_ids(lambda c, g, i: f"{c}/rec{g}_{i}.wav", numbered("{:03}", 20)),
    "day and time of the recording": of_ids(
        lambda c, g, i: f"{c}/{g}_{10 + i}{17 * i % 60:02}00.wav", numbered("202103{:02}", 9, first=4)
    ),
    **{
        f"class, item, {words}": lambda rng, words=words: (
            (f"{c}/{c}_{i:03}_{word}.wav", c, f"{c}_{i:03}")
            for c in CLASSES
            for i in range(12)
            for word in words.split()
        )
        for words in ("seg0 seg1 seg2", "orig pitch speed", "dry wet far", "bit0 bit1 bit2 bit3 bit4 bit5", "v1 v2")
    },
    "date with hyphens and time": of_ids(
        lambda c, g, i: f"{c}/{c}_{g}_{10 + i}-{17 * i % 60:02}-00.wav", numbered("2021-03-{:02}", 9, first=4)
    ),
    "NSynth: instrument, pitch, velocity": lambda rng: (
        (f"{c}/{c}_acoustic_{g}-{pitch:03}-{velocity:03}.wav", c, g)
        for c in CLASSES
        for g in ("000", "001", "002", "003")
        for pitch in range(36, 60, 3)
        for velocity in (25, 50, 75, 100, 127)
    ),
    "class, speaker, version": of_ids(lambda c, g, i: f"{c}/{c}_{g}_{i}_v{i % 3}.wav", people),
    "person, number, in one file name": of_ids(lambda c, g, i: f"{g}.{c}.{i}.wav", people),
}

CLEAN: dict[str, Layout] = {
    "numbers": of_classes(lambda c, i, rng: f"{c}/{i}.wav"),
    "numbers with zeros, over all classes": of_classes(lambda c, i, rng: f"{c}/{1000 * CLASSES.index(c) + i:06}.wav"),
    "GTZAN: class, number": of_classes(lambda c, i, rng: f"{c}/{c}.{i:05}.wav"),
    "class, number, in one folder": of_classes(lambda c, i, rng: f"audio/{c}_{i}.wav"),
    "an abbreviation of the class, number": of_classes(lambda c, i, rng: f"{c}/{c[0].upper()}{i:03}.wav"),
    "uuids": of_classes(lambda c, i, rng: f"{c}/{uuid(rng)}.wav", clips=3_000),
    "hashes": of_classes(lambda c, i, rng: f"{c}/{hexadecimal(rng, 16)}.wav"),
    "short random names": of_classes(lambda c, i, rng: f"{c}/{hexadecimal(rng, 6)}.wav"),
    "random numbers": of_classes(lambda c, i, rng: f"{c}/{rng.randrange(10_000)}.wav"),
    "a recorder's names": of_classes(lambda c, i, rng: f"{c}/REC_{40 * CLASSES.index(c) + i + 1:04}.WAV"),
    "number in parentheses": of_classes(lambda c, i, rng: f"{c}/{c} ({i + 1}).mp3"),
    "time of each clip": of_classes(lambda c, i, rng: f"{c}/20210304_{rng.randrange(86_400):06}.wav"),
    "a constant prefix and a constant suffix": of_classes(lambda c, i, rng: f"{c}/clip_{i}_16k.wav"),
    "folders of a thousand numbered clips": of_classes(
        lambda c, i, rng: f"{(40 * CLASSES.index(c) + i) // 15:03}/{40 * CLASSES.index(c) + i:05}.wav"
    ),
    "letters": of_classes(lambda c, i, rng: f"{c}/{chr(ord('a') + i)}.wav", clips=26),
    "two kinds of microphones": of_classes(lambda c, i, rng: f"{c}/{'near' if i % 2 else 'far'}_{i}.wav"),
    "class, version, number": of_classes(lambda c, i, rng: f"{c}/{c}_v{i % 3 + 1}_{i:03}.wav"),
    "class, number, sampling rate": of_classes(lambda c, i, rng: f"{c}/{c}{i:03}_{rng.choice((8, 16, 44))}k.wav"),
    "a date of each clip": of_classes(
        lambda c, i, rng: f"{c}/{c}_{2018 + i % 6}-{1 + i // 6:02}-{rng.randrange(1, 29):02}_120000.wav"
    ),
    "a date and a time of each clip": of_classes(
        lambda c, i, rng: f"{c}/{2018 + i % 6}_{1 + i // 6:02}_{rng.randrange(1, 29):02}_{10 + i % 4}-30-00.wav"
    ),
    "words": of_classes(
        lambda c, i, rng: (
            f"{c}/{rng.choice(('heavy', 'light', 'soft', 'loud'))} {c} "
            f"{rng.choice(('roof', 'tent', 'car', 'wood'))} {i:03}.wav"
        )
    ),
    "an adjective and two nouns": of_classes(
        lambda c, i, rng: f"{c}/{rng.choice(('heavy', 'distant', 'short', 'long', 'soft'))} {c} roof {i:03}.wav"
    ),
    "an adjective": of_classes(lambda c, i, rng: f"{c}/{c}_{rng.choice(('distant', 'short', 'long'))}_{i:03}.wav"),
    "pitch, velocity": of_classes(
        lambda c, i, rng: f"{c}/{36 + 3 * (i // 5):03}-{(25, 50, 75, 100, 127)[i % 5]:03}.wav"
    ),
    "number, class": of_classes(lambda c, i, rng: f"{i:03}_{c}.wav"),
}


@pytest.mark.parametrize("layout", PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_groups_in_names_are_suspected(layout: str, seed: int) -> None:
    names, labels, groups = zip(*PLANTED[layout](random.Random(seed)), strict=True)
    suspicion = suspect_groups(names, labels)
    assert suspicion is not None
    # The same partition, whatever the groups are called.
    assert len(set(suspicion.groups)) == len(set(groups)) == len(set(zip(suspicion.groups, groups, strict=True)))
    (pattern,) = re.findall("^--data.group_pattern '(.*)'$", suspicion.flag)
    searched = names if "/" in pattern else [PurePosixPath(name).name for name in names]
    found = [re.search(pattern, name) for name in searched]
    assert [match[1] for match in found if match] == list(suspicion.groups)


@pytest.mark.parametrize("layout", CLEAN)
@pytest.mark.parametrize("seed", range(3))
def test_names_that_only_tell_clips_apart_are_not(layout: str, seed: int) -> None:
    names, labels, _ = zip(*CLEAN[layout](random.Random(seed)), strict=True)
    assert suspect_groups(names, labels) is None


def test_titles_are_not_names_with_fields() -> None:
    rng = random.Random(0)
    words = ("the", "old", "small", "loud", "wild", "my", "in", "a", "park", "house", "at", "night")
    for label in CLASSES:
        names = [f"{label}/{' '.join(rng.choices(words, k=rng.randint(2, 7)))} {label}.wav" for _ in range(60)]
        assert suspect_groups(names, [label] * 60) is None


def test_a_column_is_suspected_by_its_name_and_its_values() -> None:
    labels = [CLASSES[i % 3] for i in range(30)]
    table = pd.DataFrame(
        {
            "fold": [str(i // 2 % 5) for i in range(30)],
            "fsID": [str(10_000 + i // 5) for i in range(30)],
            "salience": [str(i // 4 % 3) for i in range(30)],
            "recording_id": [str(i) for i in range(30)],
            "source": [f"{label}s" for label in labels],
        }
    )
    suspicion = suspect_column(table, labels)
    assert suspicion is not None and suspicion.flag == "--data.group_column fsID"
    assert suspicion.groups == tuple(table["fsID"])
    assert suspect_column(table.drop(columns=["fsID", "fold"]), labels) is None
