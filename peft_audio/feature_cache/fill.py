"""Find the clips whose features are needed, find those that are missing, and compute them."""

from __future__ import annotations

import json
import shutil
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
from peft_audio.progress import progress_bar

# Number of clips that are computed again, one by one, to check reused features, which were computed in batches.
# bfloat16 has 8 bits of precision; float16, in which bitsandbytes computes, has 11.
CHECKED_CLIPS = 2
TOLERANCE = {"no": 1e-4, "fp16": 1e-2, "bf16": 5e-2}

Batch = dict[str, Any]
Compute = Callable[[Batch], list[torch.Tensor]]


@dataclass(frozen=True)
class CacheableSplit:
    """Split whose features can be cached.

    Attributes:
        clips: Clips of the split.
        views: Number of versions of each clip in training; 0 for evaluation.
        names: Hashes of everything on which the features of a row and version depend, object array of shape
            (rows, max(1, views)).
        seconds: Length of each row that is used.
    """

    clips: Clips
    views: int
    names: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class MissingClip:
    """Clip whose features are not cached: its name, and its split, row and version."""

    name: str
    split: CacheableSplit
    row: int
    view: int

    def item(self) -> dict[str, Any]:
        """Return the item of the clip without SpecAugment masks, which are applied after the prefix."""
        item = self.split.clips[Draw(self.row, self.view + 1 if self.split.views else None)]
        return {name: value for name, value in item.items() if name not in ("time_mask", "feature_mask")}


def find_cacheable(loaders: Loaders, cfg: Recipe) -> tuple[dict[str, CacheableSplit], str]:
    """Find the splits whose clips have a fixed number of versions.

    Returns:
        The splits by name, and the reason if the training split is not among them.
    """
    clips: Clips = loaders.train.dataset  # type: ignore[attr-defined]
    limit = clips.view.cfg.max_seconds
    longer = int((used_seconds(clips.rows) > limit).sum())
    part = "data.max_seconds" if limit == cfg.data.max_seconds else f"the encoder's window of {limit:g} s"
    reason = f"{longer} are longer than {part} and cropped differently in every epoch" if longer else ""
    if clips.view.augment:
        reason = "they are augmented differently in every epoch"
    splits = {"validation": _cacheable(loaders.validation.dataset, 0, cfg)}
    views = cfg.prefix_cache.views if reason else 1
    if views is None:
        hint = "prefix_cache.views sets a fixed number of versions"
        return splits, f"only validation clips, not training clips: {reason} ({hint})"
    return splits | {"train": _cacheable(clips, views, cfg, drawn=bool(reason))}, ""


def _cacheable(clips: Any, views: int, cfg: Recipe, drawn: bool = False) -> CacheableSplit:
    """Name each row and version by a hash of its bytes, the part in use, and the draws of crops and augmentation."""
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
    return CacheableSplit(clips, views, names, seconds)


def _count_rows(model: Any, cut: Cut, split: CacheableSplit) -> int:
    """Estimate the number of rows in the features of a split."""
    family = family_of(model.config)
    if cut.pooled:
        return len(family.pooled_states(cut, model.config)) * split.names.size
    rate, shortest = split.clips.view.extractor.sampling_rate, family.minimum_samples(model.config)
    samples = np.maximum(np.round(split.seconds * rate), shortest).astype(int).tolist()
    return max(1, split.views) * sum(family.count_frames(model.config, length) for length in samples)


def _augmentation(cfg: AugmentConfig) -> list[Any]:
    """Return the settings and files on which augmentation before the prefix depends, so without SpecAugment."""
    settings = {name: getattr(cfg, name) for name, about in settings_of(cfg).items() if about.stage == "input"}
    files = [
        [path.name, path.stat().st_size, path.stat().st_mtime_ns]
        for folder in (cfg.noise_folder, cfg.impulse_response_folder)
        if folder is not None
        for path in sorted(expanded(folder).rglob("*"))
    ]
    return [settings, files]


def expected_bytes(store: Store, model: Any, cut: Cut, splits: dict[str, CacheableSplit]) -> int:
    """Estimate the size of the features of all splits."""
    return sum(_count_rows(model, cut, split) for split in splits.values()) * store.row_bytes


@torch.inference_mode()
def run_frozen(model: Any, cut: Cut, accelerator: Accelerator, batch: Batch) -> list[torch.Tensor]:
    """Compute the output of the prefix for each clip of a batch, of shape (rows, width), without padding."""
    with accelerator.autocast():
        values = run_prefix(model, send_to_device(batch, accelerator.device), cut).cpu()
    if cut.pooled:
        return list(values)
    family, lengths = family_of(model.config), batch["samples"].tolist()
    return [row[: family.count_frames(model.config, samples)] for row, samples in zip(values, lengths, strict=True)]


def find_missing(
    store: Store,
    splits: dict[str, CacheableSplit],
    compute: Compute,
    precision: str,
    loaders: Loaders,
    notify: Callable[[str], None],
) -> list[MissingClip]:
    """Return the clips without cached features, each once, by length; all clips if a check of cached ones fails."""
    clips = {
        str(name): MissingClip(str(name), split, row, view)
        for split in splits.values()
        for (row, view), name in np.ndenumerate(split.names)
    }
    table = read_table(store)
    cached = [name for name in clips if name in table.index]
    checked = [clips[name] for name in cached[:: -(-len(cached) // CHECKED_CLIPS)]] if cached else []
    if not _as_computed(Reader(store, table), checked, compute, TOLERANCE[precision], loaders):
        notify(f"prefix cache: {store.folder} does not match the output of the model; filling it again")
        shutil.rmtree(store.folder, ignore_errors=True)
        cached = []
    missing = [clips[name] for name in clips.keys() - set(cached)]
    return sorted(missing, key=lambda clip: (clip.split.seconds[clip.row], clip.name))


def _as_computed(
    reader: Reader, clips: Sequence[MissingClip], compute: Compute, tolerance: float, loaders: Loaders
) -> bool:
    """Return whether cached features of clips equal those that the model computes, within a tolerance."""
    for clip in clips:
        (now,) = compute(loaders.validation.collate_fn([clip.item()]))
        try:
            cached, _ = reader.read(clip.name)
        except UserError:
            return False
        bound = tolerance * max(1.0, float(now.abs().max()))
        if cached.shape != now.shape or not bool(((cached - now.float()).abs() <= bound).all()):
            return False
    return True


class _Batches(Dataset):
    """Dataset of batches of clips, decoded as by the loaders."""

    def __init__(self, batches: list[list[MissingClip]], collate_fn: Any):
        self.batches, self.collate_fn = batches, collate_fn

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> tuple[list[str], Batch]:
        clips = self.batches[index]
        return [clip.name for clip in clips], self.collate_fn([clip.item() for clip in clips])


def batch_missing(missing: list[MissingClip], cfg: TrainConfig, parts: int, loaders: Loaders) -> DataLoader:
    """Make batches of the missing clips with their names, the longest first because they need most memory.

    Args:
        missing: Missing clips, sorted by length.
        cfg: Settings of the size of a step.
        parts: Number of micro-batches per step over all processes.
        loaders: Loaders of the run.
    """
    seconds = np.array([clip.split.seconds[clip.row] for clip in missing])
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


def compute_features(
    compute: Compute, batches: DataLoader, count: int, accelerator: Accelerator
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Yield the name, length in samples and features of each clip, with a progress bar."""
    with progress_bar("frozen prefix", count, accelerator.is_main_process) as bar:
        for names, batch in batches:
            yield from zip(names, batch["samples"].tolist(), compute(batch), strict=True)
            bar.update(len(names))
