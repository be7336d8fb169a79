"""List recordings from files, folders, patterns and standard input."""

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
    """List the recordings of sources, sorted within each folder and each pattern.

    Args:
        sources: Recordings, folders, and patterns such as `clips/**/*.wav`. A file or folder with the exact name of a
            pattern takes precedence.
        stdin: Stream that `-` among the sources reads paths from, one per line, or separated by NUL as written by
            `find -print0`. These files are not checked here. If None, `-` is an ordinary name.

    Returns:
        Paths of the recordings, each once.

    Raises:
        UserError: A source does not exist, or holds no recordings.
    """
    paths: list[str] = []
    for source in sources:
        if source == "-" and stdin is not None:
            for name in _names_in_list(stdin.read()):
                paths += _recordings_in(Path(name)) if _exists(Path(name), folder=True) else [name]
        elif _exists(Path(source), folder=True):
            paths += _recordings_in(Path(source))
        elif _exists(Path(source)):
            paths.append(str(Path(source)))
        elif glob.has_magic(str(source)):
            paths += _matches(str(source))
        else:
            raise UserError(f"{source}: no such file or folder; give recordings, folders of them, or patterns.")
    return list(dict.fromkeys(paths))


class Waveform(NamedTuple):
    """Recording given as an array: a name for messages and the bytes of a WAV file of 32-bit floats."""

    name: str
    content: bytes


def as_waveforms(arrays: Sequence[np.ndarray], sampling_rate: int | None) -> list[Waveform]:
    """Convert arrays to recordings, named "array 0", "array 1" and so on.

    Args:
        arrays: Mono waveforms of shape (samples,): floats with full scale at 1, or int16.
        sampling_rate: Sampling rate of all arrays in hertz.

    Raises:
        UserError: The sampling rate is missing, or an array has another shape or type.
    """
    if not isinstance(sampling_rate, Real) or not float(sampling_rate).is_integer() or sampling_rate < 1:
        got = "none" if sampling_rate is None else sampling_rate
        raise UserError(
            f"sampling_rate: got {got}, expected a whole number of hertz, because arrays do not hold their rate. "
            "Try sampling_rate=16000."
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


def _exists(path: Path, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.exists()
    except OSError:  # the name is too long, such as a list of names in quotes
        return False


def _recordings_in(folder: Path) -> list[str]:
    # Files with an audio suffix that cannot be decoded are listed too, so that each is reported.
    names = names_below(folder)
    recordings = [str(folder / name) for name in names if is_recording(name)]
    if not recordings:
        contents = f"only {types_of(names)}" if names else "no files"
        raise UserError(f"{folder}: no recordings in this folder, {contents}; types that can be read: {KINDS}.")
    return recordings


def _matches(pattern: str) -> list[str]:
    # The patterns of pathlib match hidden files too.
    names = glob.iglob(pattern, recursive=True)  # noqa: PTH207
    recordings = sorted({str(Path(name)) for name in names if is_recording(name) and not Path(name).is_dir()})
    if not recordings:
        raise UserError(f"{pattern}: matches no recordings ({KINDS}); ** matches folders to any depth.")
    return recordings


def _names_in_list(content: bytes) -> list[str]:
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise UserError("-: standard input names no recordings; give one path per line, as in: find clips | ... -")
    return names
