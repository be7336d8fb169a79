"""Store cached features on disk, with one folder per key, shared by runs.

A folder holds `about.json`, which says what its key was made of, and pairs of files: features one clip after the
other, and a table of where each is. A pair is never changed once its table is there, so readers need no lock; features
are read by their place, because pages of a mapped file would count as memory of the process.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import torch
from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path

from peft_audio.config import PrefixCacheConfig
from peft_audio.errors import UserError
from peft_audio.files import atomic_file, expanded, read_json, sha256, write_atomically

ABOUT = "about.json"
KEY_LENGTH = 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ["clip", "file", "at", "rows", "samples", "crc32", "seconds"]
# Room that is left on the disk for whatever else runs.
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Store:
    """Describe one key's folder and the form of its features.

    Attributes:
        folder: Made when it is first filled.
        about: What the key was made of.
        width: Channels of a row.
        dtype: A key of `DTYPES`.
    """

    folder: Path
    about: Mapping[str, Any]
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Of one row: a frame, or a layer's mean over time."""
        return self.width * DTYPES[self.dtype].itemsize


def cache_root(cfg: PrefixCacheConfig) -> Path:
    """Where all keys are."""
    if cfg.folder is not None:
        return expanded(cfg.folder)
    return cached_assets_path("peft-audio", "prefixes")


def open_store(root: Path, about: Mapping[str, Any], width: int, dtype: str) -> Store:
    """The folder for what `about` says; another word in it is another folder."""
    text = json.dumps([about, width, dtype], sort_keys=True)
    return Store(root / sha256([text.encode()])[:KEY_LENGTH], about, width, dtype)


@contextmanager
def filling(store: Store, tell: Callable[[str], None]) -> Iterator[None]:
    """Be the only one that adds to a store; the others wait, and find it filled."""
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder: clearing it must not take the lock away from who holds it.
    lock = FileLock(store.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell("prefix cache: another process is filling it; waiting ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_table(store: Store) -> pd.DataFrame:
    """What is there: a row a clip, by its name. Files that are not as long as their table says are left out."""
    found = [pd.DataFrame(columns=COLUMNS)]
    for path in sorted(store.folder.glob("*.parquet")):
        table, features = pd.read_parquet(path), path.with_suffix(".features")
        if features.is_file() and features.stat().st_size == table["rows"].sum() * store.row_bytes:
            found.append(table.assign(file=features.name))
    with suppress(OSError):
        os.utime(store.folder / ABOUT)
    tables = pd.concat([table for table in found if len(table)] or found)
    return tables.drop_duplicates("clip").set_index("clip")


def write_features(store: Store, features: Iterable[tuple[str, int, torch.Tensor]], began: float) -> None:
    """Add clips to a store one at a time; none of them counts before all are written.

    Args:
        store: Held by `filling`.
        features: Of each clip its name, its length in samples, and a tensor of shape (rows, width).
        began: `time.perf_counter()` before the work on them began; each clip's share of what it took is kept.
    """
    store.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(store.folder / ABOUT, json.dumps(store.about, indent=2, sort_keys=True) + "\n")
    whole = {path.with_suffix("") for path in store.folder.glob("*.parquet")}
    for left in store.folder.iterdir():
        # Of a run that was killed while it filled.
        if left.name != ABOUT and left.with_suffix("") not in whole:
            left.unlink()
    name = f"{len(whole):04d}-{os.getpid()}"
    rows = []
    with atomic_file(store.folder / f"{name}.features") as file:
        for clip, samples, values in features:
            stored = values.to("cpu", DTYPES[store.dtype]).contiguous().view(torch.uint8).numpy().tobytes()
            rows.append([clip, "", file.tell(), len(values), samples, zlib.crc32(stored), 0.0])
            file.write(stored)
    table = pd.DataFrame(rows, columns=COLUMNS).assign(seconds=(time.perf_counter() - began) / max(1, len(rows)))
    with atomic_file(store.folder / f"{name}.parquet") as file:
        table.to_parquet(file)


class Reader:
    """Read features of clips by name. The files stay open, so that clearing the cache takes nothing from a run.

    Args:
        store: What is read.
        table: What `read_table` gave.
    """

    def __init__(self, store: Store, table: pd.DataFrame):
        self.files: dict[str, BinaryIO] = {}
        self.store, self.places = store, table.to_dict("index")
        names = {place["file"] for place in self.places.values()}
        self.files = {name: (store.folder / name).open("rb") for name in names}

    def __del__(self) -> None:
        for file in self.files.values():
            file.close()

    def seconds(self, clips: Iterable[str]) -> float:
        """What it took to make the features of these clips, whichever run made them."""
        return sum(self.places[clip]["seconds"] for clip in set(clips))

    def read(self, clip: str) -> tuple[torch.Tensor, int]:
        """Read a clip's features, float32 of shape (rows, width), and its length in samples.

        Raises:
            UserError: They are not what was written.
        """
        place = self.places[clip]
        file = self.files[place["file"]]
        file.seek(place["at"])
        stored = file.read(place["rows"] * self.store.row_bytes)
        if zlib.crc32(stored) != place["crc32"]:
            raise UserError(
                f"prefix cache: {self.store.folder / place['file']} is damaged; "
                "clear it with peft-audio cache --clear, or run with --prefix_cache.use never."
            )
        values = torch.frombuffer(bytearray(stored), dtype=torch.uint8).view(DTYPES[self.store.dtype]).float()
        return values.view(place["rows"], self.store.width), place["samples"]


def make_room(root: Path, keep: Store, wanted_bytes: int, max_bytes: float) -> str | None:
    """Let what was not used for longest go until so much more fits, under the limit and on the disk.

    Returns:
        Why it cannot fit; None where it can.
    """
    stores = {entry.name: entry for entry in list_stores(root)}
    held = stores.pop(keep.folder.name).bytes if keep.folder.name in stores else 0
    if held + wanted_bytes > max_bytes:
        return f"{in_bytes(held + wanted_bytes)} are more than prefix_cache.max_gigabytes allows"
    room = min(
        max_bytes - held - sum(entry.bytes for entry in stores.values()), shutil.disk_usage(root).free - SPARE_BYTES
    )
    for entry in sorted(stores.values(), key=lambda entry: entry.last_used):
        if wanted_bytes <= room:
            break
        room += _delete(root / entry.name, entry.bytes)
    return None if wanted_bytes <= room else f"it needs {in_bytes(wanted_bytes)}, and {root} has no room for it"


@dataclass(frozen=True)
class Held:
    """A key's folder: its name, its size, when it was last used (seconds since 1970), and what it is about."""

    name: str
    bytes: int
    last_used: float
    about: dict[str, Any]


def list_stores(root: Path) -> list[Held]:
    """Every key's folder."""
    found = []
    for folder in sorted(path for path in root.glob("*/") if len(path.name) == KEY_LENGTH):
        with suppress(OSError):
            size = sum(path.stat().st_size for path in folder.iterdir())
            found.append(Held(folder.name, size, (folder / ABOUT).stat().st_mtime, read_json(folder / ABOUT)))
    return found


def clear_stores(root: Path) -> int:
    """Delete every key's folder that no run is filling; gives the bytes. What runs read is freed when they end."""
    return sum(_delete(root / entry.name, entry.bytes) for entry in list_stores(root))


def _delete(folder: Path, size: int) -> int:
    """The bytes that this freed: none where a run is filling it."""
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            return size
    except Timeout:
        return 0


def in_bytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
