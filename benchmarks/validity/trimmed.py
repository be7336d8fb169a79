"""Measure precision and recall for trimmed or shifted copies.

    python benchmarks/validity/trimmed.py
    python benchmarks/validity/trimmed.py --folder my_recordings --copied 100

Each copy is a part of a clip or has silence before it, and some are encoded again. Parts with less than a quarter of
the clip's mean power are left out, because they are nearly silent. A copy is found if it is paired with its original. A
pair is false if its clips have different originals. Pairs of originals are listed with the share of the shorter clip
that recurs in the other one, see fingerprint.py; from a third on they are not false.

`trimmed_copies.FEWEST_MATCHES` is one and a half times the highest number of matches of two different clips (11) among
the even clips (sorted by name) of FSDD and ESC-10. The table is of the odd clips, but not blind: a threshold of 10 had
7 false pairs among all clips of FSDD. Clips of FSDD are shorter than the second that is needed, so five recordings of
one speaker and digit are joined to one clip.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
from fingerprint import DATA, RATE, TRANSFORMS, recurring

from peft_audio.audio.decoding import load_audio
from peft_audio.checks.trimmed_copies import SHORTEST_SECONDS, landmarks, matching_pairs

SOUND = 0.25
CUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first 75%": lambda clip: clip[: round(0.75 * len(clip))],
    "last 75%": lambda clip: clip[round(0.25 * len(clip)) :],
    "middle 50%": lambda clip: clip[round(0.25 * len(clip)) : round(0.75 * len(clip))],
    "last 50%": lambda clip: clip[round(0.5 * len(clip)) :],
    "0.31 s of silence before": lambda clip: np.concatenate([np.zeros(5_003, np.float32), clip]),
}
CODINGS = ("MP3", "OGG Vorbis", "8 kHz", "-20 dB", "OGG Opus")


def described(clips: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the hashes and times of each clip's landmarks."""
    both = [landmarks(clip, RATE) for clip in clips]
    return np.array([hashes for hashes, _ in both]), np.array([times for _, times in both])


def read(folder: Path) -> dict[str, np.ndarray]:
    """Read clips by name; short clips of one speaker and class are joined in fives."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".wav", ".ogg", ".flac", ".mp3"})
    clips = {str(path.relative_to(folder)): load_audio(path, RATE) for path in files}
    if np.median([len(clip) for clip in clips.values()]) >= SHORTEST_SECONDS * RATE:
        return clips
    speakers: dict[str, list[str]] = {}
    for name in clips:
        speakers.setdefault(name.rpartition("_")[0], []).append(name)
    fives = [five for names in speakers.values() for five in (names[i : i + 5] for i in range(0, len(names), 5))]
    return {" ".join(five): np.concatenate([clips[name] for name in five]) for five in fives}


def measure(folder: Path, copied: int) -> None:
    """Print the table of a data set."""
    clips = read(folder)
    names, waveforms = list(clips), list(clips.values())
    started = perf_counter()
    hashes, times = described(waveforms)
    milliseconds = 1000 * (perf_counter() - started) / len(names)
    print(f"\n## {folder.name}: {len(names)} clips, {milliseconds:.1f} ms for the landmarks of a clip\n")
    real = set()
    for one, other in matching_pairs(hashes, times, np.arange(len(names))).tolist():
        share = recurring(waveforms[one], waveforms[other])
        print(f"- paired among all originals: {names[one]} and {names[other]} ({share:.0%} recurs)")
        real |= {(one, other)} if share >= 1 / 3 else set()
    kept = list(range(1, len(names), 2))
    picked = sorted(np.random.default_rng(0).permutation(kept)[:copied].tolist())
    print("\n| copies | counted | found | false pairs |\n|---|---|---|---|")
    kinds = [(name, cut, "") for name, cut in CUTS.items()]
    kinds += [(f"middle 50%, {coding}", CUTS["middle 50%"], coding) for coding in CODINGS]
    for name, cut, coding in kinds:
        origins, copies = [], []
        for number in picked:
            part = cut(waveforms[number])
            loud = np.square(part).mean() >= SOUND * np.square(waveforms[number]).mean()
            if len(part) >= SHORTEST_SECONDS * RATE and loud:
                copies.append(load_audio(TRANSFORMS[coding](part, RATE), RATE) if coding else part)
                origins.append(number)
        copy_hashes, copy_times = described(copies)
        of = np.array([*kept, *origins])
        rows = np.concatenate([hashes[kept], copy_hashes]), np.concatenate([times[kept], copy_times])
        pairs = of[matching_pairs(*rows, np.arange(len(of)))]
        found = sum(one == other for one, other in pairs.tolist())
        false = sum(one != other and (min(one, other), max(one, other)) not in real for one, other in pairs.tolist())
        print(f"| {name} | {len(origins)} | {found / max(len(origins), 1):.3f} | {false} |", flush=True)


def main() -> None:
    """Measure the data set of each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, nargs="+", default=[DATA / "fsdd", DATA / "esc10"])
    parser.add_argument("--copied", type=int, default=300, help="clips of the odd half that are copied")
    args = parser.parse_args()
    for folder in args.folder:
        measure(folder, args.copied)


if __name__ == "__main__":
    main()
