"""Streamed clips: each step holds its share of the clips, and the stream goes on where it was."""

from __future__ import annotations

import io
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import IterableDataset
from helpers.tiny_encoders import tiny_config

from peft_audio.config import DataConfig, TrainConfig
from peft_audio.data.hub_dataset import Stream
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import Splits, load_splits
from peft_audio.errors import UserError
from peft_audio.strategies import LoraRecipe

CLIPS = 40


def row(i: int) -> dict[str, Any]:
    """A clip whose length in samples, 1,000 + i, tells which it is; every twentieth is broken."""
    content = io.BytesIO()
    soundfile.write(content, np.random.default_rng(i).normal(0, 0.1, 1000 + i), 16_000, format="WAV")
    return {"audio": {"bytes": b"" if i % 20 == 19 else content.getvalue(), "path": f"{i}.wav"}, "label": i % 2}


def rows(shards: list[list[int]]) -> Any:
    for shard in shards:
        yield from map(row, shard)


def splits(bundled: Splits, shards: int) -> Splits:
    parts = [list(range(CLIPS))[shard::shards] for shard in range(shards)]
    stream = Stream("org/name", IterableDataset.from_generator(rows, gen_kwargs={"shards": parts}), ["a", "b"])
    held_out = {split: bundled[split] for split in ("validation", "test")}
    return Splits(bundled.train.select([]), **held_out, labels=("a", "b"), stored=bundled.stored, stream=stream)


@pytest.fixture(scope="module")
def bundled() -> Splits:
    return load_splits(DataConfig())


def read(
    bundled: Splits, extractor: Any, steps: int, processes: int = 1, shards: int = 1, size: int = 6, **data: Any
) -> list[Any]:
    """For each process, its micro-batches of so many steps of `size` clips in two parts, and its splits."""
    data = {"streaming": True, "shuffle_buffer": 8, "on_bad_clip": "skip"} | data
    train = TrainConfig(max_steps=12, epochs=3, batch_size=size, gradient_accumulation_steps=2, seed=3)
    cfg = LoraRecipe(data=DataConfig(**data), train=train)
    found = []
    for process in range(processes):
        accelerator = SimpleNamespace(num_processes=processes, process_index=process, device=torch.device("cpu"))
        mine = splits(bundled, shards)
        loaders = make_loaders(mine, extractor, tiny_config(), cfg, accelerator)
        assert loaders.train_order.steps == 4 and loaders.train_order.total_steps(3) == 12
        batches = []
        while len(batches) < 2 * steps:
            # As training does between two validations: a new iterator each time.
            batches += islice(loaders.train, min(8, 2 * steps - len(batches)))
        found.append((batches, mine.stream.skipped))
    return found


def clips(batches: list[dict[str, torch.Tensor]]) -> list[int]:
    return [int(count) - 1000 for batch in batches for count in batch["samples"]]


def test_the_stream_goes_on_where_it_was_and_begins_again_in_another_order(bundled: Splits, raw_extractor: Any) -> None:
    ((batches, skipped),) = read(bundled, raw_extractor, steps=13)
    usable = [i for i in range(CLIPS) if i % 20 != 19]
    seen = clips(batches)
    first, second = seen[: len(usable)], seen[len(usable) : 2 * len(usable)]
    assert sorted(first) == sorted(second) == usable and first != second
    assert all(batch["label"].tolist() == [i % 2 for i in clips([batch])] for batch in batches)
    assert all(len(batch["index"]) == 3 and batch["weight"].tolist() == pytest.approx([1 / 6] * 3) for batch in batches)
    assert skipped == dict.fromkeys(("19.wav", "39.wav"), "is empty (0 bytes)")
    again = read(bundled, raw_extractor, steps=13)[0][0]
    assert clips(again) == seen


@pytest.mark.parametrize(("processes", "workers", "shards"), [(1, 2, 2), (1, 2, 3), (2, 2, 4)])
def test_workers_keep_to_the_steps(
    bundled: Splits, raw_extractor: Any, processes: int, workers: int, shards: int
) -> None:
    found = read(bundled, raw_extractor, steps=7, processes=processes, shards=shards, size=5, num_workers=workers)
    for step in range(7):
        parts = [batch for batches, _ in found for batch in batches[2 * step : 2 * step + 2]]
        assert sum(len(batch["index"]) for batch in parts) == 5
        assert sum(float(batch["weight"].sum()) for batch in parts) == pytest.approx(1)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_processes_share_the_stream(bundled: Splits, raw_extractor: Any, shards: int) -> None:
    """By files where they divide evenly, clip by clip where they do not."""
    found = read(bundled, raw_extractor, steps=6, processes=2, shards=shards)
    for batches, _ in found:
        # Six clips in two micro-batches of two processes.
        assert {len(batch["index"]) for batch in batches[::2]} == {2}
        assert {len(batch["index"]) for batch in batches[1::2]} == {1}
    # 36 clips of 38 that can be used: none of them twice.
    seen = clips(found[0][0]) + clips(found[1][0])
    assert len(seen) == len(set(seen)) == 36


def test_bad_clips_of_a_stream_stop_it_unless_they_may_be_skipped(bundled: Splits, raw_extractor: Any) -> None:
    with pytest.raises(UserError, match=r"--data.source: (19|39).wav is empty .*--data.on_bad_clip skip"):
        read(bundled, raw_extractor, steps=13, on_bad_clip="error")
    with pytest.raises(UserError, match=r"--data.max_bad_share: \d of the first \d+ clips cannot be used"):
        read(bundled, raw_extractor, steps=30, max_bad_share=0.01)
