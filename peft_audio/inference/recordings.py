"""Which recordings are meant: files, folders, patterns, and lists on standard input."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from peft_audio.audio.decoding import AUDIO_SUFFIXES, is_recording
from peft_audio.data.folder import names_below, types_of
from peft_audio.errors import UserError

KINDS = ", ".join(sorted(AUDIO_SUFFIXES))


def find_recordings(sources: Iterable[str | Path], stdin: BinaryIO | None = None) -> list[str]:
    """Files as given, every recording below the folders given, and what patterns match, both sorted.

    Args:
        sources: Recordings, folders, and patterns such as `clips/**/*.wav`. What is there by that very name goes first.
        stdin: Where `-` among the sources reads a list from: a path a line, or divided by NUL as `find -print0` does.
            What it names may be missing, which is told of that recording. Without it `-` is a name like others.

    Raises:
        UserError: A source does not exist, or there are no recordings in it.
    """
    paths: list[str] = []
    for source in sources:
        if source == "-" and stdin is not None:
            for name in _names_in_list(stdin.read()):
                paths += _inside(Path(name)) if _is_there(Path(name), folder=True) else [name]
        elif _is_there(Path(source), folder=True):
            paths += _inside(Path(source))
        elif _is_there(Path(source)):
            paths.append(str(Path(source)))
        elif glob.has_magic(str(source)):
            paths += _matched(str(source))
        else:
            raise UserError(f"{source}: no such file or folder; give recordings, folders of them, or patterns.")
    return paths


class Waveform(NamedTuple):
    """An array as a recording: a name for messages, and the bytes of a WAV file of 32-bit floats."""

    name: str
    content: bytes


def as_waveforms(arrays: Sequence[np.ndarray], sampling_rate: int | None) -> list[Waveform]:
    """Convert arrays to recordings, named "array 0", "array 1" and so on.

    Args:
        arrays: Mono waveforms of shape (samples,): floats with full scale at 1, or int16.
        sampling_rate: Of all of them, in hertz.

    Raises:
        UserError: There is no sampling rate, or an array has another shape or type.
    """
    if not isinstance(sampling_rate, Real) or not float(sampling_rate).is_integer() or sampling_rate < 1:
        got = "none" if sampling_rate is None else sampling_rate
        raise UserError(
            f"sampling_rate: got {got}, expected a whole number of hertz; arrays do not hold their rate. "
            "Give it, such as sampling_rate=16000."
        )
    return [_as_waveform(f"array {i}", array, int(sampling_rate)) for i, array in enumerate(arrays)]


def _as_waveform(name: str, array: np.ndarray, sampling_rate: int) -> Waveform:
    if array.ndim != 1:
        raise UserError(
            f"{name}: got shape {array.shape}, expected (samples,); take the mean over the channels of a stereo array."
        )
    if array.dtype != np.int16 and not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name}: got {array.dtype}, expected floats with full scale at 1, or int16; convert it.")
    samples = array / np.float32(2**15) if array.dtype == np.int16 else array
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), sampling_rate, format="WAV", subtype="FLOAT")
    return Waveform(name, file.getvalue())


def _is_there(path: Path, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.exists()
    except OSError:  # a list of names, taken for one, is too long for a name
        return False


def _inside(folder: Path) -> list[str]:
    # What looks like audio but cannot be decoded is reported, not passed over.
    names = names_below(folder)
    inside = [str(folder / name) for name in names if is_recording(name)]
    if not inside:
        there = f"only {types_of(names)}" if names else "no files"
        raise UserError(f"{folder}: no recordings in this folder, {there}; types that can be read: {KINDS}.")
    return inside


def _matched(pattern: str) -> list[str]:
    # pathlib's own patterns would find hidden files too.
    names = glob.iglob(pattern, recursive=True)  # noqa: PTH207
    found = sorted({str(Path(name)) for name in names if is_recording(name) and not Path(name).is_dir()})
    if not found:
        raise UserError(f"{pattern}: matches no recordings ({KINDS}); ** stands for folders to any depth.")
    return found


def _names_in_list(content: bytes) -> list[str]:
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise UserError("-: standard input names no recordings; give a path a line, as in: find clips | ... -")
    return names
