"""Write and read `trained_clips.bin`, the hashes of the clips that an adapter was trained or validated on.

The file holds the first 8 bytes of a SHA-256 of each clip (`clip_table.clip_hash`), sorted. A list above `LARGEST_LIST`
bytes is replaced by a Bloom filter (Bloom, Comm. ACM 13, 1970), with about 1% of false positives among
new clips. Layout, little-endian: 8 bytes magic, format version and number of hash functions (0 for a list) as uint32,
number of clips and number of bits as uint64; then the hashes as big-endian uint64, or the bits.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_audio.adapters.files import TRAINED_CLIPS
from peft_audio.errors import UserError
from peft_audio.files import write_atomically

MAGIC = b"PACLIPS\0"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ")
LARGEST_LIST = 512_000
FALSE_ALARMS = 0.01


class TrainedClipsError(UserError):
    """`trained_clips.bin` cannot be read."""


@dataclass(frozen=True)
class TrainedClips:
    """Clips that an adapter was trained or validated on.

    Attributes:
        clips: number of clips.
        false_alarms: share of other clips for which `holds` is wrongly true; 0 with a list.
        hashes: sorted uint64 of shape (clips,), or the bits of the filter, uint8.
        functions: number of hash functions of the filter; 0 with a list.
    """

    clips: int
    false_alarms: float
    hashes: np.ndarray
    functions: int = 0

    def holds(self, clip_hashes: Iterable[str]) -> np.ndarray:
        """Return whether each clip is one of these clips, bool of shape (clips,)."""
        numbers = _numbers(clip_hashes)
        if not self.functions:
            return np.isin(numbers, self.hashes)
        positions = _bit_positions(numbers, self.functions, 8 * len(self.hashes))
        bits = self.hashes[positions >> np.uint64(3)] >> (positions & np.uint64(7)).astype(np.uint8) & 1
        return bits.all(axis=0)


def write_trained_clips(folder: Path, clip_hashes: Iterable[str]) -> None:
    """Write `trained_clips.bin` into the folder of an adapter.

    Args:
        folder: folder of the adapter.
        clip_hashes: hashes of the training and validation clips; repeated hashes count once.
    """
    write_atomically(folder / TRAINED_CLIPS, encode_trained_clips(clip_hashes))


def encode_trained_clips(clip_hashes: Iterable[str], largest_list: int = LARGEST_LIST) -> bytes:
    """Encode clips as a list, or as a Bloom filter if a list would be larger than `largest_list` bytes."""
    numbers = np.unique(_numbers(clip_hashes))
    if numbers.nbytes + HEADER.size <= largest_list:
        return HEADER.pack(MAGIC, VERSION, 0, len(numbers), 0) + numbers.astype(">u8").tobytes()
    # The smallest number of bits for the rate, and the best number of hash functions.
    size = math.ceil(len(numbers) * -math.log(FALSE_ALARMS) / math.log(2) ** 2 / 8)
    functions = round(8 * size / len(numbers) * math.log(2))
    bits = np.zeros(8 * size, bool)
    bits[_bit_positions(numbers, functions, len(bits))] = True
    packed = np.packbits(bits, bitorder="little")
    return HEADER.pack(MAGIC, VERSION, functions, len(numbers), len(bits)) + packed.tobytes()


def read_trained_clips(folder: Path) -> TrainedClips | None:
    """Read `trained_clips.bin` from the folder of an adapter; None if it does not exist.

    Raises:
        TrainedClipsError: The file is damaged or of a newer version.
    """
    path = folder / TRAINED_CLIPS
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TrainedClipsError(
            f"{path} cannot be read ({error.strerror}); remove it or get the adapter again."
        ) from error
    damaged = TrainedClipsError(f"{path} is damaged; remove it or get the adapter again.")
    if len(content) < HEADER.size or not content.startswith(MAGIC):
        raise damaged
    _, version, functions, clips, bits = HEADER.unpack_from(content)
    if version > VERSION:
        raise TrainedClipsError(f"{path} has format version {version}, expected {VERSION} or less; upgrade peft-audio.")
    expected = bits // 8 if functions else 8 * clips
    if len(content) - HEADER.size != expected or functions > 64 or (functions and not bits):
        raise damaged
    body = content[HEADER.size :]
    if functions:
        return TrainedClips(clips, FALSE_ALARMS, np.frombuffer(body, np.uint8), functions)
    return TrainedClips(clips, 0.0, np.frombuffer(body, ">u8").astype(np.uint64))


def _numbers(clip_hashes: Iterable[str]) -> np.ndarray:
    """Convert hexadecimal hashes to uint64."""
    return np.array([int(value, 16) for value in clip_hashes], dtype=np.uint64)


def _bit_positions(numbers: np.ndarray, functions: int, bits: int) -> np.ndarray:
    """Return the positions of the bits of each clip, uint64 of shape (functions, clips), by double hashing."""
    first, step = numbers >> np.uint64(32), numbers & np.uint64(0xFFFFFFFF) | np.uint64(1)
    rounds = np.arange(functions, dtype=np.uint64)[:, None]
    return (first + rounds * step) % np.uint64(bits)
