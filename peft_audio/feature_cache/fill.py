"""Find the clips whose features are needed, find those that are missing, and compute them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, Dataset

from peft_audio.config import AugmentConfig, Recipe, TrainConfig
from peft_audio.config.fields import settings_of
from peft_audio.data.dataset import Clips
from peft_audio.data.loaders import Loaders, used_seconds
from peft_audio.data.sampler import Draw, cut_batches
from peft_audio.encoders.base import Cut
from peft_audio.encoders.family import family_of
from peft_audio.errors import UserError
from peft_audio.feature_cache.cut import run_prefix
from peft_audio.feature_cache.store import Reader, Store, read_table
from peft_audio.files import expanded, sha256
from peft_audio.training.tracking import progress_bar

# So many clips are computed again when features are reused, each alone, where they were filled in batches. bfloat16 has
# 8 bits of precision, float16 11; bitsandbytes computes in the latter.
CHECKED_CLIPS = 2
TOLERANCE = {"no": 1e-4, "fp16": 1e-2, "bf16": 5e-2}

Batch = dict[str, Any]
Compute = Callable[[Batch], list[torch.Tensor]]


@dataclass(frozen=True)
class Wanted:
    """Hold a split whose features are needed, cropped for training or for evaluation.

    Attributes:
        clips: The split.
        views: In how many ways training hears each clip; 0 for evaluation.
        names: What the features of each row and view depend on, of shape (rows, max(1, views)).
        seconds: How much of each row is heard.
    """

    clips: Clips
    views: int
    names: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Missing:
    """A clip whose features are not there: its name, and where it stands among those that are wanted."""

    name: str
    wanted: Wanted
    row: int
    view: int

    def item(self) -> dict[str, Any]:
        """The clip as `Clips` gives it, without SpecAugment's masks, which come behind the prefix."""
        item = self.wanted.clips[Draw(self.row, self.view + 1 if self.wanted.views else None)]
        return {name: value for name, value in item.items() if name not in ("time_mask", "feature_mask")}


def find_wanted(loaders: Loaders, cfg: Recipe) -> tuple[dict[str, Wanted], str]:
    """The splits whose clips are heard alike in every epoch, or in so many ways; and why training's are not."""
    clips: Clips = loaders.train.dataset  # type: ignore[attr-defined]
    limit = clips.view.cfg.max_seconds
    longer = int((used_seconds(clips.rows) > limit).sum())
    what = "data.max_seconds" if limit == cfg.data.max_seconds else f"the encoder's window of {limit:g} s"
    reason = f"{longer} are longer than {what}, and cropped anew in every epoch" if longer else ""
    if clips.view.augment:
        reason = "they are augmented anew in every epoch"
    wanted = {"validation": _wanted(loaders.validation.dataset, 0, cfg)}
    views = cfg.prefix_cache.views if reason else 1
    if views is None:
        hint = "prefix_cache.views would keep a few ways of hearing them"
        return wanted, f"validation clips only, not those of training: {reason} ({hint})"
    return wanted | {"train": _wanted(clips, views, cfg, drawn=bool(reason))}, ""


def _wanted(clips: Any, views: int, cfg: Recipe, drawn: bool = False) -> Wanted:
    """With names that say what features depend on: the bytes, what is heard of them, and what was drawn."""
    limit = clips.view.cfg.max_seconds if views else clips.view.cfg.max_eval_seconds
    seconds = used_seconds(clips.rows, limit)
    rows = clips.rows.select_columns(["sha256", "start_seconds"]).to_pandas()
    names = np.empty((len(rows), max(1, views)), dtype=object)
    augmentation = _augmentation(cfg.augment) if drawn else None
    for row, view in np.ndindex(names.shape):
        facts = [rows["sha256"][row], float(rows["start_seconds"][row]), float(seconds[row])]
        if drawn:
            facts += [limit, augmentation, clips.view.seeds(Draw(row, view + 1))]
        names[row, view] = sha256([json.dumps(facts).encode()])
    return Wanted(clips, views, names, seconds)


def _rows(model: Any, cut: Cut, each: Wanted) -> int:
    """Of the features of a split, about."""
    family = family_of(model.config)
    if cut.pooled:
        return len(family.pooled_states(cut, model.config)) * each.names.size
    rate, shortest = each.clips.view.extractor.sampling_rate, family.minimum_samples(model.config)
    samples = np.maximum(np.round(each.seconds * rate), shortest).astype(int).tolist()
    return max(1, each.views) * sum(family.count_frames(model.config, length) for length in samples)


def _augmentation(cfg: AugmentConfig) -> list[Any]:
    """What augmentation depends on; SpecAugment comes behind the prefix."""
    settings = {name: getattr(cfg, name) for name, about in settings_of(cfg).items() if about.stage == "input"}
    files = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for folder in (cfg.noise_folder, cfg.impulse_response_folder)
        if folder is not None
        for path in sorted(expanded(folder).rglob("*"))
    ]
    return [settings, files]


def expected_bytes(store: Store, model: Any, cut: Cut, wanted: dict[str, Wanted]) -> int:
    """What the features of all that is wanted take, about."""
    return sum(_rows(model, cut, each) for each in wanted.values()) * store.row_bytes


@torch.inference_mode()
def run_frozen(model: Any, cut: Cut, accelerator: Accelerator, batch: Batch) -> list[torch.Tensor]:
    """What the prefix makes of each clip of a batch, of shape (rows, width), without padding."""
    with accelerator.autocast():
        values = run_prefix(model, send_to_device(batch, accelerator.device), cut).cpu()
    if cut.pooled:
        return list(values)
    family, lengths = family_of(model.config), batch["samples"].tolist()
    return [row[: family.count_frames(model.config, samples)] for row, samples in zip(values, lengths, strict=True)]


def find_missing(
    store: Store,
    wanted: dict[str, Wanted],
    compute: Compute,
    precision: str,
    loaders: Loaders,
    tell: Callable[[str], None],
) -> list[Missing]:
    """The clips that are not there, each once, by length; all of them where what is there is not what it should be."""
    clips = {
        str(name): Missing(str(name), each, row, view)
        for each in wanted.values()
        for (row, view), name in np.ndenumerate(each.names)
    }
    table = read_table(store)
    there = [name for name in clips if name in table.index]
    checked = [clips[name] for name in there[:: -(-len(there) // CHECKED_CLIPS)]] if there else []
    if not _as_computed(Reader(store, table), checked, compute, TOLERANCE[precision], loaders):
        tell(f"prefix cache: {store.folder} does not hold what the model returns, and is made again")
        shutil.rmtree(store.folder, ignore_errors=True)
        there = []
    missing = [clips[name] for name in clips.keys() - set(there)]
    return sorted(missing, key=lambda clip: (clip.wanted.seconds[clip.row], clip.name))


def _as_computed(
    reader: Reader, clips: Sequence[Missing], compute: Compute, tolerance: float, loaders: Loaders
) -> bool:
    for clip in clips:
        (now,) = compute(loaders.validation.collate_fn([clip.item()]))
        try:
            kept, _ = reader.read(clip.name)
        except UserError:
            return False
        bound = tolerance * max(1.0, float(now.abs().max()))
        if kept.shape != now.shape or not bool(((kept - now.float()).abs() <= bound).all()):
            return False
    return True


class _Batches(Dataset):
    """Clips in batches, decoded as the loaders do it."""

    def __init__(self, batches: list[list[Missing]], collate_fn: Any):
        self.batches, self.collate_fn = batches, collate_fn

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, at: int) -> tuple[list[str], Batch]:
        return [clip.name for clip in self.batches[at]], self.collate_fn([clip.item() for clip in self.batches[at]])


def in_batches(missing: list[Missing], cfg: TrainConfig, parts: int, loaders: Loaders) -> DataLoader:
    """Batch the missing clips with their names, the longest first because they need most memory.

    Args:
        missing: By length.
        cfg: How much a step holds.
        parts: Into how many micro-batches, over all processes, it is split.
        loaders: Of the run.
    """
    seconds = np.array([clip.wanted.seconds[clip.row] for clip in missing])
    limit = None if cfg.batch_seconds is None else cfg.batch_seconds / parts
    rows = cut_batches(np.arange(len(missing)), seconds, -(-cfg.batch_size // parts), limit)
    batches = [[missing[row] for row in batch] for batch in reversed(rows)]
    plain = loaders.validation
    return DataLoader(
        _Batches(batches, plain.collate_fn),
        batch_size=None,
        num_workers=plain.num_workers,
        worker_init_fn=plain.worker_init_fn,
    )


def computed(
    compute: Compute, batches: DataLoader, count: int, accelerator: Accelerator
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Each clip's name, length in samples and features, with a bar."""
    with progress_bar(accelerator.is_main_process and sys.stdout.isatty()) as progress:
        bar = progress.add_task("frozen prefix", total=count)
        for names, batch in batches:
            yield from zip(names, batch["samples"].tolist(), compute(batch), strict=True)
            progress.advance(bar, len(names))
