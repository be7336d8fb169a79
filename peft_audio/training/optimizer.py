"""Make the optimizer and its schedule, and apply L1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from peft_audio.config import TrainConfig
from peft_audio.strategies.base import Trainable


def make_optimizer(model: nn.Module, trained: Trainable, cfg: TrainConfig) -> torch.optim.Optimizer:
    """Make AdamW with a learning rate for the head and weight decay on matrices only.

    Args:
        model: Model with the parameters that `trained` names.
        trained: Names of the trained parameters and of those of the head.
        cfg: Rates, decay, and whether the state is kept in 8 bits.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    weights = dict(model.named_parameters())
    for name in trained.parameters:
        part = "head" if name in trained.head else "body"
        # Vectors of IA3 are stored as matrices. Decay would pull them towards 0, but their neutral value is 1.
        matrix = weights[name].ndim > 1 and "ia3_l" not in name.split(".")
        groups.setdefault((part, matrix), []).append(weights[name])
    rates = {"head": cfg.head_learning_rate or cfg.learning_rate, "body": cfg.learning_rate}
    settings = [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": matrix * cfg.weight_decay,
            "part": part,
            "matrix": matrix,
        }
        for (part, matrix), parameters in groups.items()
    ]
    if cfg.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(settings)
    return torch.optim.AdamW(settings)


def make_schedule(optimizer: torch.optim.Optimizer, cfg: TrainConfig, total: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Make a schedule: linear warm-up, then linear or cosine decay to zero at `total` steps."""
    make = get_linear_schedule_with_warmup if cfg.schedule == "linear" else get_cosine_schedule_with_warmup
    return make(optimizer, num_warmup_steps=round(cfg.warmup_share * total), num_training_steps=total)


def current_rates(optimizer: Any) -> dict[str, float]:
    """Return `learning_rate` and `head_learning_rate`; both are that of the head if only the head trains."""
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    return {"learning_rate": rates.get("body", rates["head"]), "head_learning_rate": rates["head"]}


@torch.no_grad()
def apply_l1(optimizer: Any, l1: float) -> None:
    """Apply L1 to matrices after an optimizer step, by soft thresholding.

    Entries move towards zero by `l1` times their learning rate and stop at zero. As with the weight decay of AdamW,
    this is a separate step, because Adam would rescale the gradient of a penalty.
    """
    for group in optimizer.param_groups:
        for weight in group["params"] if group["matrix"] else ():
            weight.copy_(F.softshrink(weight, l1 * group["lr"]))
