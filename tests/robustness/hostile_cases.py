"""Collections with one fault each, on top of a clean base of 120 spoken digits; `hostile.py` runs them."""

from __future__ import annotations

import csv
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from helpers.encodings import at_rate, by_pyav, opus, wav, written

SPEAKERS = {"george": "train", "jackson": "train", "theo": "validation", "lucas": "test"}
Encode = Callable[[np.ndarray, int], bytes]
Make = Callable[..., list[str]]


class UntestableError(Exception):
    """A fault that cannot be made here."""


def by_class(root: Path, data: Path) -> None:
    """A folder a class."""
    for clip, label, _, _ in base_clips(data):
        put(root, f"{label}/{clip.name}", clip.read_bytes())


def by_split(root: Path, data: Path) -> None:
    """The same clips divided by speaker."""
    for clip, label, _, split in base_clips(data):
        put(root, f"{split}/{label}/{clip.name}", clip.read_bytes())


def table(root: Path, data: Path) -> None:
    """The same clips and splits as a manifest, with who speaks as the artist."""
    rows = [("path", "label", "artist", "split")]
    for clip, label, speaker, split in base_clips(data):
        rows.append((put(root, clip.name, clip.read_bytes())[0], label, speaker, split))
    list_tracks(root, rows)


def list_tracks(root: Path, rows: Sequence[tuple[str, ...]]) -> None:
    """Add rows to the manifest."""
    with (root / "tracks.csv").open("a", newline="") as file:
        csv.writer(file).writerows(rows)


def base_clips(data: Path) -> list[tuple[Path, str, str, str]]:
    """Three digits by four speakers, ten takes: file, label, speaker and split."""
    names = [(f"{digit}", speaker, take) for digit in range(3) for speaker in SPEAKERS for take in range(10)]
    return [(data / "fsdd" / f"{d}_{s}_{t}.wav", d, s, SPEAKERS[s]) for d, s, t in names]


def put(root: Path, name: str, content: bytes) -> list[str]:
    """Write a file, and its name."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)
    return [name]


WAV = wav("PCM_16")


class Case(NamedTuple):
    """One fault.

    Attributes:
        made: What it is.
        make: Puts it on top of the base, in `root`, from clips in `data`; gives the names that a message should hold.
        group: Cases that are trained as one collection.
        base: Makes the clean collection.
        flags: For `check` and the recipe.
    """

    made: str
    make: Make
    group: str
    base: Callable[[Path, Path], None] = by_class
    flags: tuple[str, ...] = ()

    def source(self, root: Path) -> Path:
        """What is given as the source."""
        return root / "tracks.csv" if self.base is table else root


def mp3(waveform: np.ndarray, rate: int) -> bytes:
    """An MP3 by libsndfile."""
    return written(waveform, rate, "MP3", "MPEG_LAYER_III")


def clip(
    name: str, encode: Encode = WAV, kept: float = 1.0, change: Any = np.copy, *, root: Path, data: Path
) -> list[str]:
    """Five seconds of rain at 44.1 kHz: changed, encoded, and of its bytes the first share kept."""
    waveform, rate = soundfile.read(data / "esc10" / "rain" / "1-17367-A.ogg", dtype="float32")
    content = encode(change(waveform), rate)
    return put(root, name, content[: round(kept * len(content))])


def given(name: str, content: bytes, *, root: Path, data: Path) -> list[str]:
    """A file with this in it."""
    return put(root, name, content)


def copy(old: str, new: str, encode: Encode | None = None, *, root: Path, data: Path) -> list[str]:
    """A clip of the base again: to the byte, or at a third of its level in another format."""
    content = (root / old).read_bytes()
    if encode:
        waveform, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        content = encode(waveform / 3, rate)
    return put(root, new, content)


def holed(name: str, *, root: Path, data: Path) -> list[str]:
    """An OGG Vorbis file whose middle is gone."""
    clip(name, FORMATS["OGG Vorbis"][1], root=root, data=data)
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    return put(root, name, bytes(content))


def renamed(old: str, new: str, *, root: Path, data: Path) -> list[str]:
    """A folder under another name."""
    (root / old).rename(root / new)
    return []


def another_class(label: str, *, root: Path, data: Path) -> list[str]:
    """Clips of the digit three."""
    for take in range(10):
        put(root, f"{label}/{take}.wav", (data / "fsdd" / f"3_theo_{take}.wav").read_bytes())
    return [label]


def another_take(name: str, *, root: Path, data: Path) -> list[str]:
    """A clip that the base has not, of a speaker whom it trains on."""
    return put(root, name, (data / "fsdd" / Path(name).name).read_bytes()) and ["george"]


def link(name: str, target: str, *, root: Path, data: Path) -> list[str]:
    """A symbolic link."""
    (root / name).symlink_to(target)
    return [name]


def empty_folder(name: str, *, root: Path, data: Path) -> list[str]:
    """A class without recordings."""
    (root / name).mkdir()
    return [name]


def without(*folders: str, named: str = "", root: Path, data: Path) -> list[str]:
    """The base less some folders."""
    for name in folders:
        shutil.rmtree(root / name)
    return [named] if named else []


def reads_anything() -> bool:
    """Whether permissions do not bind whoever runs this."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).chmod(0)
        return os.access(file.name, os.R_OK)


def unreadable(name: str, *, root: Path, data: Path) -> list[str]:
    """A file that its owner may not read."""
    clip(name, root=root, data=data)
    (root / name).chmod(0)
    if os.access(root / name, os.R_OK):
        raise UntestableError("whoever runs this may read everything (root)")
    return [name]


def gtzan(*, root: Path, data: Path) -> list[str]:
    """The faults that B. L. Sturm found in GTZAN ("The GTZAN dataset", arXiv:1306.1461), in small."""
    put(root, "corrupt.wav", bytes(64) + (root / "0_theo_0.wav").read_bytes()[64:])
    copy("0_george_0.wav", "repeat.wav", root=root, data=data)
    copy("1_george_1.wav", "repeat.mp3", mp3, root=root, data=data)
    another_take("2_george_20.wav", root=root, data=data)
    faults = [("corrupt.wav", "0", "theo", "validation"), ("repeat.wav", "0", "george", "test")]
    faults += [("repeat.mp3", "1", "george", "test"), ("2_george_20.wav", "2", "george", "test")]
    list_tracks(root, faults)
    return ["corrupt.wav"]


def at_level(waveform: np.ndarray, decibels: float) -> np.ndarray:
    """Louder, and cut at full scale."""
    return np.clip(waveform / np.abs(waveform).max() * 10 ** (decibels / 20), -1, 1)


def fading(waveform: np.ndarray, count: int) -> np.ndarray:
    """Channels, each fainter than the one before."""
    return np.outer(waveform, 0.8 ** np.arange(count))


def with_nan(waveform: np.ndarray) -> np.ndarray:
    """One sample that is no number."""
    return np.where(np.arange(len(waveform)) == 1000, np.nan, waveform)


FORMATS: dict[str, tuple[str, Encode]] = {
    "WAV, 8 bits": ("wav", wav("PCM_U8")),
    "WAV, 16 bits": ("wav", wav("PCM_16")),
    "WAV, 24 bits": ("wav", wav("PCM_24")),
    "WAV, 32 bits": ("wav", wav("PCM_32")),
    "WAV, float": ("wav", wav("FLOAT")),
    "WAV, IMA ADPCM": ("wav", wav("IMA_ADPCM")),
    "WAV, mu-law": ("wav", wav("ULAW")),
    "FLAC": ("flac", partial(written, kind="FLAC", subtype="PCM_16")),
    "OGG Vorbis": ("ogg", partial(written, kind="OGG", subtype="VORBIS")),
    "OGG Opus": ("opus", opus),
    "MP3": ("mp3", mp3),
    "AIFF": ("aiff", partial(written, kind="AIFF", subtype="PCM_16")),
    "AU": ("au", partial(written, kind="AU", subtype="PCM_16")),
    "M4A (AAC)": ("m4a", by_pyav("mp4", "aac", None, 64_000)),
    "WebM (Opus)": ("webm", by_pyav("webm", "libopus", 48_000, 32_000)),
    "MP3 named .wav": ("wav", partial(written, kind="MP3", subtype="MPEG_LAYER_III", compression_level=0.9)),
}
FIRST = "train/0/0_george_0.wav"
RATES = (4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000)
CHANNELS = (1, 2, 6, 8)
CASES = [Case("nothing: the clean base", without, "base")]
CASES += [
    Case(name, partial(clip, f"0/{number}.{suffix}", encode), "formats")
    for number, (name, (suffix, encode)) in enumerate(FORMATS.items())
]
CASES += [Case(f"{rate:,} Hz", partial(clip, f"0/{rate}.wav", at_rate(rate)), "rates, channels") for rate in RATES]
CASES += [
    Case(f"channels: {count}", partial(clip, f"0/{count}.wav", change=partial(fading, count=count)), "rates, channels")
    for count in CHANNELS
]
CASES += [
    Case("FLAC cut at 60% of its bytes", partial(clip, "0/cut.flac", FORMATS["FLAC"][1], 0.6), "bad"),
    Case("MP3, cut", partial(clip, "0/cut.mp3", mp3, 0.6), "bad"),
    Case("M4A, cut", partial(clip, "0/cut.m4a", FORMATS["M4A (AAC)"][1], 0.6), "bad"),
    Case("no bytes", partial(given, "0/empty.wav", b""), "bad"),
    Case("text named .wav", partial(given, "0/text.wav", b"this is no sound\n" * 99), "bad"),
    Case(
        "text named .au, which could be samples without a header",
        partial(given, "0/text.au", b"no sound\n" * 99),
        "bad",
    ),
    Case("OGG Vorbis with a hole of 2,000 bytes", partial(holed, "0/hole.ogg"), "bad"),
    Case("a NaN in a float WAV", partial(clip, "0/nan.wav", wav("FLOAT"), change=with_nan), "bad"),
    Case("digital silence", partial(clip, "0/silent.wav", change=np.zeros_like), "bad"),
    Case("stereo in anti-phase", partial(clip, "0/phase.wav", change=lambda w: np.stack([w, -w], axis=1)), "bad"),
    Case("a broken link", partial(link, "0/link.wav", "nowhere.wav"), "bad"),
    Case("a file without read permission", partial(unreadable, "0/locked.wav"), "bad"),
    Case("WAV, cut", partial(clip, "0/cut.wav", kept=0.6), "odd"),
    Case("OGG Vorbis, cut", partial(clip, "0/cut.ogg", FORMATS["OGG Vorbis"][1], 0.6), "odd"),
    Case("0.01 s", partial(clip, "0/short.wav", change=lambda w: w[:441]), "odd"),
    Case("10 minutes", partial(clip, "0/long.wav", change=lambda w: np.resize(w, 600 * 44_100)), "odd"),
    Case("clipped, 20 dB over full scale", partial(clip, "0/loud.wav", change=partial(at_level, decibels=20)), "odd"),
    Case("names with spaces, accents, emoji", partial(clip, "0/Ünï côde 音 🎵 (1) 'a', b.wav"), "odd"),
    Case("a class folder called test", partial(another_class, "test"), "odd"),
    Case("recordings in folders of a class folder", partial(clip, "0/monday/take 1/a.wav"), "odd"),
    Case("a folder that links to another class", partial(link, "0/more", "../1"), "odd"),
    Case("a folder that links to the one above it", partial(link, "0/loop", ".."), "odd"),
    Case("a type that is not read (.dss)", partial(given, "0/memo.dss", bytes(99)), "odd"),
    Case("split folders with capitals", partial(renamed, "train", "Train"), "capitals", by_split),
    Case("a class folder without recordings", partial(empty_folder, "empty_class"), "empty"),
    Case("a recording outside class folders", partial(clip, "loose.wav"), "loose"),
    Case("one class", partial(without, "1", "2", named="'0'"), "one class"),
    Case("no clips of a class in a given test split", partial(without, "test/2", named="of 2"), "absent", by_split),
    Case("exact copy, train and test", partial(copy, FIRST, "test/0/again.wav"), "exact", by_split),
    Case(
        "MP3 copy at a third of the level, train and test",
        partial(copy, FIRST, "test/0/again.mp3", mp3),
        "near",
        by_split,
    ),
    Case("one recording in two classes", partial(copy, FIRST, "train/1/again.wav"), "near", by_split),
    Case(
        "a speaker on both sides, with `--data.group_pattern`",
        partial(another_take, "test/0/0_george_20.wav"),
        "group",
        by_split,
        ("--data.group_pattern", "_([a-z]+)_"),
    ),
    Case("GTZAN's faults as it comes: a corrupt file, repeats, an artist on both sides", gtzan, "GTZAN", table),
    Case(
        "the same, with `--data.group_column artist` (and `skip`)",
        gtzan,
        "GTZAN, told",
        table,
        ("--data.group_column", "artist", "--data.on_bad_clip", "skip"),
    ),
]
