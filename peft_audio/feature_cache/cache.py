"""Cache the output of the frozen layers, so each clip passes through them once.

Layers before the first trained weight are frozen and in eval mode, so their output for a clip never changes. With equal
weights, the model computes the same logits and gradients from cached features as from recordings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from peft_audio.config import Recipe
from peft_audio.data.collate import collate_facts
from peft_audio.data.loaders import Loaders, Prefix
from peft_audio.data.sampler import Draw
from peft_audio.encoders.base import Cut
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import weights_sha256
from peft_audio.feature_cache.cut import find_cut, prefix_weights
from peft_audio.feature_cache.fill import (
    Batch,
    CacheableSplit,
    MissingClip,
    batch_missing,
    compute_features,
    expected_bytes,
    find_cacheable,
    find_missing,
    run_frozen,
)
from peft_audio.feature_cache.store import (
    Reader,
    Store,
    cache_root,
    fill_lock,
    format_bytes,
    make_room,
    open_store,
    read_table,
    write_features,
)
from peft_audio.files import sha256
from peft_audio.strategies.base import Trainable

# Modules that, with all of encoders/, determine the features of a clip. A change in one of them changes the key.
CODE = ["audio/decoding", "audio/pyav", "data/augment", "data/collate", "data/dataset"]
CODE += ["feature_cache/cut", "feature_cache/fill", "feature_cache/store"]
PACKAGES = ("torch", "transformers", "numpy", "soundfile", "soxr", "audiomentations", "av")
Notify = Callable[[str], None]


def cache_frozen_prefix(
    model: Any, trained: Trainable, loaders: Loaders, cfg: Recipe, accelerator: Accelerator
) -> tuple[Any, Loaders]:
    """Cache the output of the frozen layers, so each clip passes through them once.

    Prints the size and time of the cache, or the reason if nothing is cached. The model still accepts waveforms.

    Args:
        model: Model that a strategy returned.
        trained: Parameters and modules that train.
        loaders: Loaders of waveforms.
        cfg: Settings of the recipe.
        accelerator: Processes and device. Processes share the cache; the first one of a machine fills it.

    Returns:
        The model, and loaders. If features are cached, `train` and `validation` load them, and the other loaders load
        waveforms. `prefix` of the loaders describes the cache.
    """
    notify: Notify = print if accelerator.is_main_process else lambda note: None

    def refuse(reason: str) -> tuple[Any, Loaders]:
        notify(f"prefix cache: not used: {reason}")
        return model, replace(loaders, prefix=Prefix(reason=reason))

    masked = bool(cfg.augment.mask_time_share or cfg.augment.mask_feature_share)
    cut = find_cut(model, trained, masked, head_dropout=bool(cfg.model.head_dropout))
    reason = _reason_not_to_cache(cfg, cut) or ("" if cut else _reason_for_no_cut(model, trained, masked))
    if reason or cut is None:
        return refuse(reason)
    splits, reason = find_cacheable(loaders, cfg)
    model.to(accelerator.device).eval()

    # The first process of each machine fills the cache, and the others read it.
    with _local_main_process_first(accelerator):
        try:
            reader, filled, problem = _open_and_fill(model, cut, splits, reason, loaders, cfg, accelerator, notify)
        except (OSError, NotImplementedError) as error:  # the latter from locks on file systems without them
            # Training continues without the cache, which only saves time.
            where = getattr(error, "filename", None) or cfg.prefix_cache.folder or "its folder"
            reader, filled, problem = None, False, f"{where}: {getattr(error, 'strerror', None) or error}"
    # All processes use the cache or none, because they must make the same collective calls.
    problems = [each for each in gather_object([problem]) if each]
    if problems or reader is None:
        return refuse(problems[0])
    prefix = _describe_use(cut, reason, reader, splits, filled)
    notify(f"prefix cache: {'filled' if filled else 'reused; it was filled'} in {prefix.seconds:.1f} s")
    family_of(model.config).accept_features(model, cut)
    cached: dict[str, Any] = {
        split: _loader(getattr(loaders, split), Features(each, reader), accelerator) for split, each in splits.items()
    }
    return model, replace(loaders, **cached, prefix=prefix)


def _open_and_fill(
    model: Any,
    cut: Cut,
    splits: dict[str, CacheableSplit],
    reason: str,
    loaders: Loaders,
    cfg: Recipe,
    accelerator: Accelerator,
    notify: Notify,
) -> tuple[Reader | None, bool, str]:
    """Open the cache, and compute missing features on the first process of a machine.

    Returns:
        The reader, whether features were computed, and the problem if the cache cannot be used.
    """
    compute = partial(run_frozen, model, cut, accelerator)
    store = _open(model, cut, loaders, cfg, accelerator)
    with fill_lock(store, notify):
        missing = find_missing(store, splits, compute, _precision(store, cfg, accelerator), loaders, notify)
        problem = _reason_not_to_fill(store, model, cut, splits, missing, loaders, cfg)
        if missing and not accelerator.is_local_main_process:
            problem = problem or "the first process of this machine did not fill it"
        if problem:
            return None, False, problem
        notify(_announcement(store, model, cut, splits, missing, reason, loaders, cfg))
        if missing:
            parts = cfg.train.gradient_accumulation_steps * accelerator.num_processes
            batches = batch_missing(missing, cfg.train, parts, loaders)
            features = compute_features(compute, batches, len(missing), accelerator)
            write_features(store, features, time.perf_counter())
        return Reader(store, read_table(store)), bool(missing), ""


@contextmanager
def _local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run a block first on the first process of each machine, then on the others, even if the first raises.

    With `Accelerator.local_main_process_first`, the others would wait forever after an exception.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


class Features(Dataset):
    """Dataset of the cached features of a split, indexed by draws like `Clips`.

    Args:
        split: Split whose features are cached.
        reader: Reader of the cache.
    """

    def __init__(self, split: CacheableSplit, reader: Reader):
        self.split, self.reader = split, reader
        self.labels = np.asarray(split.clips.rows["label"])

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """Return the features of a draw, for `collate_features`."""
        clips = self.split.clips
        view = 0 if draw.epoch is None else (draw.epoch - 1) % self.split.views
        values, samples = self.reader.read(self.split.names[draw.index, view])
        item = {"features": values, "samples": samples, "label": self.labels[draw.index].tolist(), "index": draw.index}
        item |= {"weight": draw.weight, "recording": int(clips.recordings[draw.index])}
        return item if draw.epoch is None else item | clips.view.spec_masks(samples, draw)


def collate_features(items: Sequence[dict[str, Any]]) -> Batch:
    """Pad cached features into a batch.

    Returns:
        Batch as from `collate`, but with `features`, float32 of shape (clips, rows, channels), and `samples` as inputs.
    """
    values = pad_sequence([item["features"] for item in items], batch_first=True)
    samples = torch.tensor([item["samples"] for item in items])
    return collate_facts(items) | {"inputs": {"features": values, "samples": samples}, "samples": samples}


def _loader(plain: DataLoader, features: Features, accelerator: Accelerator) -> DataLoader:
    """Make a loader of features with the batches of a loader of waveforms."""
    # No worker processes: reading features takes less time than passing them between processes.
    pinned = accelerator.device.type == "cuda"
    return DataLoader(
        features,
        batch_sampler=plain.batch_sampler,
        collate_fn=collate_features,
        pin_memory=pinned,
        generator=plain.generator,
    )


def _reason_not_to_cache(cfg: Recipe, cut: Cut | None) -> str:
    """Return the reason why features cannot be cached at any cost; empty if they can."""
    if cfg.prefix_cache.use == "never":
        return "prefix_cache.use is never"
    if cut is not None and cfg.train.frozen_dropout:
        return "train.frozen_dropout changes the output of frozen layers in every step"
    return "the clips are streamed" if cfg.data.streaming else ""


def _reason_for_no_cut(model: Any, trained: Trainable, masked: bool) -> str:
    """Return the reason why no layers have the same output in every step."""
    if masked and find_cut(model, trained, masked=False, head_dropout=False):
        return "SpecAugment (augment.mask_time_share, mask_feature_share) masks the input of the first layers"
    return "the first layers train"


def _open(model: Any, cut: Cut, loaders: Loaders, cfg: Recipe, accelerator: Accelerator) -> Store:
    """Open the store whose key covers everything, apart from the clip, on which features depend."""
    family, config, device = family_of(model.config), model.config, accelerator.device
    extractor = loaders.validation.dataset.view.extractor  # type: ignore[attr-defined]
    about = {
        "cut": [cut.place, cut.layers, str(cut)],
        "weights": weights_sha256(prefix_weights(model, cut)),
        "config": family.config_of_prefix(config),
        "attention": model.config._attn_implementation,
        "quantization": cfg.model.quantization,
        "input": family.describe_input(extractor, family.minimum_samples(config)),
        "precision": accelerator.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "code": sha256(path.read_bytes() for path in _source_files()),
        "versions": {name: version(name) for name in PACKAGES if find_spec(name)},
    }
    dtype = cfg.prefix_cache.dtype
    if dtype == "auto":
        dtype = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
    return open_store(cache_root(cfg.prefix_cache), about, family.kept_width(cut, config), dtype)


def _source_files() -> list[Path]:
    """Return the source files that determine the features of a clip."""
    package = Path(__file__).parents[1]
    return [*(package / f"{name}.py" for name in CODE), *sorted((package / "encoders").glob("*.py"))]


def _reason_not_to_fill(
    store: Store,
    model: Any,
    cut: Cut,
    splits: dict[str, CacheableSplit],
    missing: list[MissingClip],
    loaders: Loaders,
    cfg: Recipe,
) -> str:
    """Return the reason not to compute missing features: no gain or no room; empty if there is none."""
    if not missing:
        return ""
    passes, views = _passes(loaders, cfg), splits["train"].views if "train" in splits else 1
    if passes <= views and cfg.prefix_cache.use == "auto":
        versions = f", with {views} versions of each clip" if views > 1 else ""
        return f"it would not save time: {passes:.3g} passes over the training clips{versions}"
    root = store.folder.parent
    share = expected_bytes(store, model, cut, splits) * len(missing) // sum(each.names.size for each in splits.values())
    return make_room(root, store, share, 1e9 * cfg.prefix_cache.max_gigabytes) or ""


def _passes(loaders: Loaders, cfg: Recipe) -> float:
    """Return the number of passes over the training clips."""
    order = loaders.train_order
    return order.total_steps(cfg.train.epochs, cfg.train.max_steps) / order.steps


def _precision(store: Store, cfg: Recipe, accelerator: Accelerator) -> str:
    """Return the lowest precision that features went through."""
    if "bf16" in (accelerator.mixed_precision, *(["bf16"] if store.dtype == "bfloat16" else [])):
        return "bf16"
    return "fp16" if accelerator.mixed_precision == "fp16" or cfg.model.quantization != "none" else "no"


def _announcement(
    store: Store,
    model: Any,
    cut: Cut,
    splits: dict[str, CacheableSplit],
    missing: list[MissingClip],
    reason: str,
    loaders: Loaders,
    cfg: Recipe,
) -> str:
    """Describe the use of the cache: the cut, the number of clips, the size and the gain."""
    clips, size = (
        sum(each.names.size for each in splits.values()),
        format_bytes(expected_bytes(store, model, cut, splits)),
    )
    views, passes = splits["train"].views if "train" in splits else 1, _passes(loaders, cfg)
    note = f"prefix cache: {cut} runs once for each of {clips:,} clips ({size}), "
    if missing:
        note += f"{len(missing):,} of them now, " if len(missing) < clips else ""
        note += f"and pays after {views} of {passes:.3g} epochs" if views < passes else "and pays in later runs"
    else:
        note += "done by earlier runs"
    return f"{note}; {reason}" if reason else note


def _describe_use(cut: Cut, reason: str, reader: Reader, splits: dict[str, CacheableSplit], filled: bool) -> Prefix:
    """Return the facts on the cache for the report."""
    names = {name for each in splits.values() for name in each.names.ravel()}
    size = sum(reader.places[name]["rows"] for name in names) * reader.store.row_bytes
    return Prefix(str(cut), reason, len(names), size, reader.seconds(names), not filled)
