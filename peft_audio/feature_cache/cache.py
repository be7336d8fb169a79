"""Cache the output of the frozen layers, so each clip passes through them once.

With everything before the first weight that trains frozen and in eval mode, a clip's way through it never changes. At
equal weights, the model gives the same logits and gradients from what was kept as from the recordings.
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
    Missing,
    Wanted,
    computed,
    expected_bytes,
    find_missing,
    find_wanted,
    in_batches,
    run_frozen,
)
from peft_audio.feature_cache.store import (
    Reader,
    Store,
    cache_root,
    filling,
    in_bytes,
    make_room,
    open_store,
    read_table,
    write_features,
)
from peft_audio.files import sha256
from peft_audio.strategies.base import Trainable

# Modules, beside all of encoders/, that decide the features of a clip. A change in one of them makes another key.
CODE = ["audio/decoding", "audio/pyav", "data/augment", "data/collate", "data/dataset"]
CODE += ["feature_cache/cut", "feature_cache/fill", "feature_cache/store"]
PACKAGES = ("torch", "transformers", "numpy", "soundfile", "soxr", "audiomentations", "av")
Tell = Callable[[str], None]


def cache_frozen_prefix(
    model: Any, trained: Trainable, loaders: Loaders, cfg: Recipe, accelerator: Accelerator
) -> tuple[Any, Loaders]:
    """Cache the output of the frozen layers, so each clip passes through them once.

    Prints what it did, or the reason if nothing is cached. The model still accepts waveforms.

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
    tell: Tell = print if accelerator.is_main_process else lambda words: None

    def refuse(reason: str) -> tuple[Any, Loaders]:
        tell(f"prefix cache: not used: {reason}")
        return model, replace(loaders, prefix=Prefix(reason=reason))

    masked = bool(cfg.augment.mask_time_share or cfg.augment.mask_feature_share)
    cut = find_cut(model, trained, masked, head_dropout=bool(cfg.model.head_dropout))
    reason = _why_never(cfg, cut)
    if reason or cut is None:
        return refuse(reason)
    wanted, reason = find_wanted(loaders, cfg)
    model.to(accelerator.device).eval()

    # The first process of each machine fills the cache, and the others read it.
    with _local_main_process_first(accelerator):
        try:
            reader, filled, problem = _open_and_fill(model, cut, wanted, reason, loaders, cfg, accelerator, tell)
        except (OSError, NotImplementedError) as error:  # the latter from locks on file systems without them
            # Training continues without the cache, which only saves time.
            where = getattr(error, "filename", None) or cfg.prefix_cache.folder or "its folder"
            reader, filled, problem = None, False, f"{where}: {getattr(error, 'strerror', None) or error}"
    # Either all processes use the cache or none: they must make the same collective calls.
    problems = [each for each in gather_object([problem]) if each]
    if problems or reader is None:
        return refuse(problems[0])
    prefix = _outcome(cut, reason, reader, wanted, filled)
    tell(f"prefix cache: {'filled in' if filled else 'which took them'} {prefix.seconds:.1f} s")
    family_of(model.config).accept_features(model, cut)
    kept: dict[str, Any] = {
        split: _loader(getattr(loaders, split), Features(each, reader), accelerator) for split, each in wanted.items()
    }
    return model, replace(loaders, **kept, prefix=prefix)


def _open_and_fill(
    model: Any,
    cut: Cut,
    wanted: dict[str, Wanted],
    reason: str,
    loaders: Loaders,
    cfg: Recipe,
    accelerator: Accelerator,
    tell: Tell,
) -> tuple[Reader | None, bool, str]:
    """Open the cache, and compute what it lacks on the first process of a machine.

    Returns:
        The reader, whether features were computed, and the problem if the cache cannot be used.
    """
    compute = partial(run_frozen, model, cut, accelerator)
    store = _open(model, cut, loaders, cfg, accelerator)
    with filling(store, tell):
        missing = find_missing(store, wanted, compute, _precision(store, cfg, accelerator), loaders, tell)
        problem = _too_much(store, model, cut, wanted, missing, loaders, cfg)
        if missing and not accelerator.is_local_main_process:
            problem = problem or "the first process of this machine did not fill it"
        if problem:
            return None, False, problem
        tell(_announcement(store, model, cut, wanted, missing, reason, loaders, cfg))
        if missing:
            parts = cfg.train.gradient_accumulation_steps * accelerator.num_processes
            batches = in_batches(missing, cfg.train, parts, loaders)
            features = computed(compute, batches, len(missing), accelerator)
            write_features(store, features, time.perf_counter())
        return Reader(store, read_table(store)), bool(missing), ""


@contextmanager
def _local_main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Let the first process of each machine go first, and the others follow even if it raises.

    `Accelerator.local_main_process_first` leaves the others waiting for ever after an exception.
    """
    if not accelerator.is_local_main_process:
        accelerator.wait_for_everyone()
    try:
        yield
    finally:
        if accelerator.is_local_main_process:
            accelerator.wait_for_everyone()


class Features(Dataset):
    """Read a split's rows as cached features; draws are those of `Clips`.

    Args:
        wanted: The split.
        reader: What was kept.
    """

    def __init__(self, wanted: Wanted, reader: Reader):
        self.wanted, self.reader = wanted, reader
        self.labels = np.asarray(wanted.clips.rows["label"])

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        """The features of a draw, ready for `collate_features`."""
        clips = self.wanted.clips
        view = 0 if draw.epoch is None else (draw.epoch - 1) % self.wanted.views
        values, samples = self.reader.read(self.wanted.names[draw.index, view])
        item = {"features": values, "samples": samples, "label": self.labels[draw.index].tolist(), "index": draw.index}
        item |= {"weight": draw.weight, "recording": int(clips.recordings[draw.index])}
        return item if draw.epoch is None else item | clips.view.spec_masks(samples, draw)


def collate_features(items: Sequence[dict[str, Any]]) -> Batch:
    """Pad cached features into a batch.

    Returns:
        As `collate`, but `inputs` holds `features`, float32 of shape (clips, rows, channels), and `samples`.
    """
    values = pad_sequence([item["features"] for item in items], batch_first=True)
    samples = torch.tensor([item["samples"] for item in items])
    return collate_facts(items) | {"inputs": {"features": values, "samples": samples}, "samples": samples}


def _loader(plain: DataLoader, features: Features, accelerator: Accelerator) -> DataLoader:
    # Reading is over before a worker process would have been asked.
    pinned = accelerator.device.type == "cuda"
    return DataLoader(
        features,
        batch_sampler=plain.batch_sampler,
        collate_fn=collate_features,
        pin_memory=pinned,
        generator=plain.generator,
    )


def _why_never(cfg: Recipe, cut: Cut | None) -> str:
    """Why nothing can be kept, whatever that would cost; empty where it can."""
    if cfg.prefix_cache.use == "never":
        return "prefix_cache.use is never"
    if cut is None:
        return "the convolutions train, and nothing comes before them"
    if cfg.train.frozen_dropout:
        return "train.frozen_dropout lets frozen parts drop out, anew in every step"
    return "the clips are streamed" if cfg.data.streaming else ""


def _open(model: Any, cut: Cut, loaders: Loaders, cfg: Recipe, accelerator: Accelerator) -> Store:
    """The store for all that features depend on besides the clip."""
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
        "code": sha256(path.read_bytes() for path in _code()),
        "versions": {name: version(name) for name in PACKAGES if find_spec(name)},
    }
    dtype = cfg.prefix_cache.dtype
    if dtype == "auto":
        dtype = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
    return open_store(cache_root(cfg.prefix_cache), about, family.kept_width(cut, config), dtype)


def _code() -> list[Path]:
    package = Path(__file__).parents[1]
    return [*(package / f"{name}.py" for name in CODE), *sorted((package / "encoders").glob("*.py"))]


def _too_much(
    store: Store,
    model: Any,
    cut: Cut,
    wanted: dict[str, Wanted],
    missing: list[Missing],
    loaders: Loaders,
    cfg: Recipe,
) -> str:
    """Why what is missing should not be made: it would not pay, or has no room; empty where it should."""
    if not missing:
        return ""
    passes, views = _passes(loaders, cfg), wanted["train"].views if "train" in wanted else 1
    if passes <= views and cfg.prefix_cache.use == "auto":
        ways = f", each to be kept in {views} ways" if views > 1 else ""
        return f"it would not pay: training goes over its clips {passes:.3g} times{ways}"
    root = store.folder.parent
    share = expected_bytes(store, model, cut, wanted) * len(missing) // sum(each.names.size for each in wanted.values())
    return make_room(root, store, share, 1e9 * cfg.prefix_cache.max_gigabytes) or ""


def _passes(loaders: Loaders, cfg: Recipe) -> float:
    """How often training goes over its clips."""
    order = loaders.train_order
    return order.total_steps(cfg.train.epochs, cfg.train.max_steps) / order.steps


def _precision(store: Store, cfg: Recipe, accelerator: Accelerator) -> str:
    """The coarsest precision that features went through."""
    if "bf16" in (accelerator.mixed_precision, *(["bf16"] if store.dtype == "bfloat16" else [])):
        return "bf16"
    return "fp16" if accelerator.mixed_precision == "fp16" or cfg.model.quantization != "none" else "no"


def _announcement(
    store: Store,
    model: Any,
    cut: Cut,
    wanted: dict[str, Wanted],
    missing: list[Missing],
    reason: str,
    loaders: Loaders,
    cfg: Recipe,
) -> str:
    clips, size = sum(each.names.size for each in wanted.values()), in_bytes(expected_bytes(store, model, cut, wanted))
    views, passes = wanted["train"].views if "train" in wanted else 1, _passes(loaders, cfg)
    told = f"prefix cache: {cut} runs once for each of {clips:,} clips ({size}), "
    if missing:
        told += f"{len(missing):,} of them now, " if len(missing) < clips else ""
        told += f"and pays after {views} of {passes:.3g} epochs" if views < passes else "and pays in later runs"
    else:
        told += "as earlier runs did"
    return f"{told}; {reason}" if reason else told


def _outcome(cut: Cut, reason: str, reader: Reader, wanted: dict[str, Wanted], filled: bool) -> Prefix:
    names = {name for each in wanted.values() for name in each.names.ravel()}
    size = sum(reader.places[name]["rows"] for name in names) * reader.store.row_bytes
    return Prefix(str(cut), reason, len(names), size, reader.seconds(names), not filled)
