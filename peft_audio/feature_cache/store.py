"""Store cached features on disk, with one folder per key, shared by runs.

A folder holds `about.json`, with the facts of its key, and pairs of files: the features of clips, one after the other,
and a table of their positions. A pair never changes once its table exists, so readers need no lock. Features are
read by position, because the pages of a mapped file would count as memory of the process.
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
# Free space to leave on the disk for other programs.
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Store:
    """Folder of one key, and the form of its features.

    Attributes:
        folder: Path of the folder, which exists once it is filled.
        about: Facts of the key.
        width: Number of channels of a row.
        dtype: Type of the features, a key of `DTYPES`.
    """

    folder: Path
    about: Mapping[str, Any]
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Return the size of a row, which is a frame or the mean of a layer over time."""
        return self.width * DTYPES[self.dtype].itemsize


def cache_root(cfg: PrefixCacheConfig) -> Path:
    """Return the folder of all stores."""
    if cfg.folder is not None:
        return expanded(cfg.folder)
    return cached_assets_path("peft-audio", "prefixes")


def open_store(root: Path, about: Mapping[str, Any], width: int, dtype: str) -> Store:
    """Return the store for the facts in `about`; different facts have different folders."""
    text = json.dumps([about, width, dtype], sort_keys=True)
    return Store(root / sha256([text.encode()])[:KEY_LENGTH], about, width, dtype)


@contextmanager
def fill_lock(store: Store, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock for filling a store, so that one process fills it while others wait."""
    store.folder.parent.mkdir(parents=True, exist_ok=True)
    # The lock is beside the folder, because clearing the folder must not remove a lock in use.
    lock = FileLock(store.folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify("prefix cache: another process is filling it; waiting ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def read_table(store: Store) -> pd.DataFrame:
    """Read the table of cached clips, one row per clip, indexed by name; skip files of a wrong size."""
    tables = [pd.DataFrame(columns=COLUMNS)]
    for path in sorted(store.folder.glob("*.parquet")):
        table, features = pd.read_parquet(path), path.with_suffix(".features")
        if features.is_file() and features.stat().st_size == table["rows"].sum() * store.row_bytes:
            tables.append(table.assign(file=features.name))
    with suppress(OSError):
        os.utime(store.folder / ABOUT)
    joined = pd.concat([table for table in tables if len(table)] or tables)
    return joined.drop_duplicates("clip").set_index("clip")


def write_features(store: Store, features: Iterable[tuple[str, int, torch.Tensor]], began: float) -> None:
    """Add the features of clips to a store; readers see them once all are written.

    Args:
        store: Store whose `fill_lock` this process holds.
        features: Name, length in samples and tensor of shape (rows, width) of each clip.
        began: `time.perf_counter()` before the features were computed; the table stores the mean time per clip.
    """
    store.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(store.folder / ABOUT, json.dumps(store.about, indent=2, sort_keys=True) + "\n")
    complete = {path.with_suffix("") for path in store.folder.glob("*.parquet")}
    for path in store.folder.iterdir():
        # Runs that were killed while filling leave incomplete pairs.
        if path.name != ABOUT and path.with_suffix("") not in complete:
            path.unlink()
    name = f"{len(complete):04d}-{os.getpid()}"
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
    """Reader of the features of clips by name. Files stay open, so that a run can read them after the cache is cleared.

    Args:
        store: Store to read.
        table: Table from `read_table`.
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
        """Return the seconds that it took to compute the features of these clips, in whichever run."""
        return sum(self.places[clip]["seconds"] for clip in set(clips))

    def read(self, clip: str) -> tuple[torch.Tensor, int]:
        """Read a clip's features, float32 of shape (rows, width), and its length in samples.

        Raises:
            UserError: The file is damaged.
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
    """Delete the stores that were not used for longest, until new features fit under the limit and on the disk.

    Args:
        root: Folder of all stores.
        keep: Store that must not be deleted.
        wanted_bytes: Size of the new features.
        max_bytes: Largest size of all stores.

    Returns:
        The reason if they cannot fit; None if they fit.
    """
    stores = {entry.name: entry for entry in list_stores(root)}
    held = stores.pop(keep.folder.name).bytes if keep.folder.name in stores else 0
    if held + wanted_bytes > max_bytes:
        return f"{format_bytes(held + wanted_bytes)} are more than prefix_cache.max_gigabytes allows"
    room = min(
        max_bytes - held - sum(entry.bytes for entry in stores.values()), shutil.disk_usage(root).free - SPARE_BYTES
    )
    for entry in sorted(stores.values(), key=lambda entry: entry.last_used):
        if wanted_bytes <= room:
            break
        room += _delete(root / entry.name, entry.bytes)
    return None if wanted_bytes <= room else f"it needs {format_bytes(wanted_bytes)}, but {root} has no room"


@dataclass(frozen=True)
class StoreInfo:
    """Folder of a key: its name, size, time of last use (seconds since 1970) and facts."""

    name: str
    bytes: int
    last_used: float
    about: dict[str, Any]


def list_stores(root: Path) -> list[StoreInfo]:
    """List the folders of all keys."""
    infos = []
    for folder in sorted(path for path in root.glob("*/") if len(path.name) == KEY_LENGTH):
        with suppress(OSError):
            size = sum(path.stat().st_size for path in folder.iterdir())
            infos.append(StoreInfo(folder.name, size, (folder / ABOUT).stat().st_mtime, read_json(folder / ABOUT)))
    return infos


def clear_stores(root: Path) -> int:
    """Delete all stores that no run is filling, and return their size; files in use are freed when their run ends."""
    return sum(_delete(root / entry.name, entry.bytes) for entry in list_stores(root))


def _delete(folder: Path, size: int) -> int:
    """Delete a store unless a run is filling it, and return the number of bytes freed."""
    try:
        with FileLock(folder.with_suffix(".lock"), timeout=0):
            shutil.rmtree(folder, ignore_errors=True)
            return size
    except Timeout:
        return 0


def format_bytes(count: float) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
