"""What frozen prefixes returned, on the disk: a folder for each key, shared by runs.

A folder holds `about.json`, which says what its key was made of, and pairs of files: features one clip after the
other, and a table of where each is. A pair is never changed once its table is there, so readers need no lock; features
are read by their place, because pages of a mapped file would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import torch
from filelock import FileLock, Timeout
from huggingface_hub import cached_assets_path

from peft_audio.config import PrefixCacheConfig, UserError

ABOUT = "about.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = ["clip", "file", "at", "rows", "samples", "crc32", "seconds"]
# Room that is left on the disk for whatever else runs.
SPARE_BYTES = 10**9


@dataclass(frozen=True)
class Store:
    """One key's folder, and the form of what is in it.

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
        return Path(cfg.folder).expanduser()
    return cached_assets_path("peft-audio", "prefixes")


def open_store(root: Path, about: Mapping[str, Any], width: int, dtype: str) -> Store:
    """The folder for what `about` says; another word in it is another folder."""
    text = json.dumps([about, width, dtype], sort_keys=True)
    return Store(root / hashlib.sha256(text.encode()).hexdigest()[:32], about, width, dtype)


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
    """Add clips to a store, one at a time as they come; nothing of them counts before all are written.

    Args:
        store: Held by `filling`.
        features: Of each clip its name, its length in samples, and a tensor of shape (rows, width).
        began: `time.perf_counter()` before the work on them began; each clip's share of what it took is kept.
    """
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder / ABOUT).write_text(json.dumps(store.about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    whole = {path.with_suffix("") for path in store.folder.glob("*.parquet")}
    for left in store.folder.iterdir():
        # Of a run that was killed while it filled.
        if left.name != ABOUT and left.with_suffix("") not in whole:
            left.unlink()
    name = f"{len(whole):04d}-{os.getpid()}"
    aside, rows = store.folder / f"{name}.partial", []
    with aside.open("wb") as file:
        for clip, samples, values in features:
            stored = values.to("cpu", DTYPES[store.dtype]).contiguous().view(torch.uint8).numpy().tobytes()
            rows.append([clip, "", file.tell(), len(values), samples, zlib.crc32(stored), 0.0])
            file.write(stored)
    aside.rename(aside.with_suffix(".features"))
    table = pd.DataFrame(rows, columns=COLUMNS).assign(seconds=(time.perf_counter() - began) / max(1, len(rows)))
    table.to_parquet(aside)
    aside.rename(aside.with_suffix(".parquet"))


class Reader:
    """Features of clips by name. Its files stay open, so that clearing the cache takes nothing from a run.

    Args:
        store: What is read.
        table: What `read_table` gave.
    """

    def __init__(self, store: Store, table: pd.DataFrame):
        self.files: dict[str, BinaryIO] = {}
        self.store, self.places = store, table.to_dict("index")
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"files": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        names = {place["file"] for place in self.places.values()}
        self.files = {name: (self.store.folder / name).open("rb") for name in names}

    def __del__(self) -> None:
        for file in self.files.values():
            file.close()

    def seconds(self, clips: Iterable[str]) -> float:
        """What it took to make the features of these clips, whichever run made them."""
        return sum(self.places[clip]["seconds"] for clip in set(clips))

    def read(self, clip: str) -> tuple[torch.Tensor, int]:
        """A clip's features, float32 of shape (rows, width), and its length in samples.

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
    """Let what was not used for longest go until so much more fits.

    Returns:
        Why it cannot fit; None where it can.
    """
    held = sum(size for name, size, _, _ in list_stores(root) if name == keep.folder.name)
    if held + wanted_bytes > max_bytes:
        return f"{in_bytes(held + wanted_bytes)} are more than prefix_cache.max_gigabytes allows"
    others = [entry for entry in list_stores(root) if entry[0] != keep.folder.name]
    total = held + wanted_bytes + sum(size for _, size, _, _ in others)
    for name, size, _, _ in sorted(others, key=lambda entry: entry[2]):
        if total <= max_bytes:
            break
        shutil.rmtree(root / name, ignore_errors=True)
        total -= size
    free = shutil.disk_usage(root).free
    return (
        None if wanted_bytes + SPARE_BYTES <= free else f"it needs {in_bytes(wanted_bytes)}, and {root} is nearly full"
    )


def list_stores(root: Path) -> Sequence[tuple[str, int, float, dict[str, Any]]]:
    """Every key's folder: its name, bytes, when it was last used (seconds since 1970), and what it is about."""
    found = []
    for about in sorted(root.glob(f"*/{ABOUT}")):
        with suppress(OSError, ValueError):
            size = sum(path.stat().st_size for path in about.parent.iterdir())
            found.append((about.parent.name, size, about.stat().st_mtime, json.loads(about.read_text("utf-8"))))
    return found


def clear_stores(root: Path) -> int:
    """Delete every key's folder; gives the bytes that were freed. What runs use is freed when they end."""
    stores = list_stores(root)
    for name, *_ in stores:
        shutil.rmtree(root / name, ignore_errors=True)
    return sum(size for _, size, _, _ in stores)


def in_bytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
