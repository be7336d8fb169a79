"""Make the bundled dataset from a part of the Free Spoken Digit Dataset, as Parquet with FLAC bytes.

    git clone https://github.com/Jakobovski/free-spoken-digit-dataset
    python scripts/bundle_digits.py free-spoken-digit-dataset/recordings peft_audio/assets/digits

The splits are divided by speaker. They hold the first takes of each speaker and digit. The same recordings give the
same bytes with the same versions of soundfile and pyarrow.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

# Speakers in alphabetical order.
SPEAKERS = {"train": ("george", "jackson", "lucas"), "validation": ("nicolas",), "test": ("theo", "yweweler")}
TAKES = {"train": range(15), "validation": range(15), "test": range(15)}
EXAMPLE = "7_theo_49.wav"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def main() -> None:
    """Write train.parquet, validation.parquet, test.parquet and example.flac."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recordings", type=Path, help="folder with {digit}_{speaker}_{take}.wav")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, speakers in SPEAKERS.items():
        rows = [
            make_row(arguments.recordings / f"{digit}_{speaker}_{take}.wav", DIGITS[digit], speaker)
            for speaker in speakers
            for digit in range(10)
            for take in TAKES[split]
        ]
        # FLAC is already compressed.
        pq.write_table(pa.Table.from_pylist(rows), arguments.out / f"{split}.parquet", compression="none")
        print(f"{split}: {len(rows)} clips of {', '.join(speakers)}")
    (arguments.out / "example.flac").write_bytes(to_flac(arguments.recordings / EXAMPLE))


def make_row(path: Path, label: str, speaker: str) -> dict[str, object]:
    """Make the row of a clip for the bundled Parquet files."""
    info = soundfile.info(path)
    return {
        "id": path.stem,
        "audio": {"path": None, "bytes": to_flac(path)},
        "label": label,
        "group": speaker,
        "num_frames": info.frames,
        "sampling_rate": info.samplerate,
    }


def to_flac(path: Path) -> bytes:
    """Compress the 16-bit samples of a file losslessly, and return the bytes of the FLAC file."""
    samples, sampling_rate = soundfile.read(path, dtype="int16")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
