"""Split optimizer steps into micro-batches that fit into memory."""

from __future__ import annotations

import numpy as np
import torch
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from peft_audio.config import TrainConfig
from peft_audio.data.loaders import Loaders
from peft_audio.data.sampler import Draw, TrainingBatches
from peft_audio.encoders.spec_augment import masked
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import clip_losses
from peft_audio.strategies.base import set_modes
from peft_audio.training.state import Learner

# Copies of each trained weight: the two moments of AdamW and the buffer of DDP.
COPIES = 3


def fit_micro_batches(learner: Learner, loaders: Loaders, cfg: TrainConfig) -> int:
    """Double the number of micro-batches until the largest one fits into memory, and set it in the loaders.

    The trials do not advance random generators and change no weight.

    Args:
        learner: Model and optimizer; all processes use the number that fits on each of them.
        loaders: Loaders of a collection, not of a stream.
        cfg: Settings; the first number tried is `gradient_accumulation_steps`.

    Returns:
        Number of micro-batches per step and process.

    Raises:
        UserError: A micro-batch of one clip does not fit.
    """
    order, accelerator = loaders.train_order, learner.accelerator
    assert isinstance(order, TrainingBatches)
    most, count = max(1, cfg.batch_size // accelerator.num_processes), cfg.gradient_accumulation_steps
    while True:
        order.micro_batches = count
        fits = torch.tensor(int(_fits(learner, loaders, cfg)), device=accelerator.device)
        if int(accelerator.reduce(fits, reduction="sum")) == accelerator.num_processes:
            if accelerator.is_main_process:
                print(f"auto_micro_batch: {count} micro-batches per step and process")
            return count
        if count >= most:
            raise UserError(
                "--train.auto_micro_batch: one clip does not fit into memory. Lower --data.max_seconds, use a smaller "
                "encoder, or train fewer weights (recipes/head_only.py needs the least memory)."
            )
        count = min(2 * count, most)


def _fits(learner: Learner, loaders: Loaders, cfg: TrainConfig) -> bool:
    """Return whether a backward pass of the largest micro-batch fits into memory."""
    draws = largest_micro_batch(loaders, cfg)
    dataset, collate = loaders.train.dataset, loaders.train.collate_fn  # type: ignore[attr-defined]
    device = learner.accelerator.device
    set_modes(learner.model, learner.trained, cfg.frozen_dropout)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            known = dict(learner.model.named_parameters())
            spare = [torch.empty_like(known[name]) for name in learner.trained.parameters for _ in range(COPIES)]
            batch = send_to_device(collate([dataset[draw] for draw in draws]), device)
            with masked(learner.model, batch):
                clip_losses(learner.model, batch, loaders.task, cfg.label_smoothing).mean().backward()
            del spare
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            return False
        finally:
            learner.model.zero_grad(set_to_none=True)
            clear_device_cache(garbage_collection=True)
    return True


def largest_micro_batch(loaders: Loaders, cfg: TrainConfig) -> list[Draw]:
    """Return this process's micro-batch with the most padded seconds in the epochs up to `max_steps`."""
    order = loaders.train_order
    assert isinstance(order, TrainingBatches)
    largest: list[Draw] = []
    most_seconds, seen = -1.0, 0
    for epoch in range(1, cfg.epochs + 1):
        order.go_to(epoch)
        for draws in order:
            seen += 1
            seconds = len(draws) * float(np.max(order.lengths[[draw.index for draw in draws]]))
            if seconds > most_seconds:
                largest, most_seconds = draws, seconds
        if cfg.max_steps is not None and seen >= cfg.max_steps * order.micro_batches:
            break
    return largest
