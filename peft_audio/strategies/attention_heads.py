"""Train a few attention heads and the head of the classifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from peft_audio.config.fields import check_ranges, setting
from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.errors import UserError
from peft_audio.strategies.base import Setup, Trainable, describe_trained, wrap_in_peft

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from peft_audio.tasks.task import Task

Batch = dict[str, Any]  # of tensors


@dataclass(frozen=True)
class AttentionHeadsConfig:
    """Select the attention heads of the encoder's transformer that train.

    Args:
        count: Number of heads, over all layers. 4 of the 24 heads of the bundled encoder have about as many weights as
            LoRA trains by default, as have 7 of the 144 heads of wav2vec2-base.
        choose: "gradient", the heads on which the loss depends most after a new classifier was fitted (Michel et al.,
            2019, arXiv 1905.10650), or "random", drawn by train.seed, as a control.
        scoring_batches: Number of batches of training clips that score the heads, at most one epoch. With
            data.streaming, training starts after these batches. A choice: 16 are 256 clips by default.
        head_steps: Number of steps that fit the new classifier before the heads are scored; each uses all of these
            clips. The classifier then restarts from its first weights, so that training is as long as in other
            recipes. A choice.
    """

    count: int = setting(4, "training", takes="count")
    choose: Literal["gradient", "random"] = setting("gradient", "training")
    scoring_batches: int = setting(16, "training", takes="count")
    head_steps: int = setting(200, "training", takes="count")

    def __post_init__(self) -> None:
        check_ranges("attention_heads", self)


@dataclass(frozen=True)
class AttentionHeadsRecipe(Recipe):
    """Fine-tune a few attention heads of an audio classifier.

    Args:
        attention_heads: Selection of the heads.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            output_dir="runs/attention_heads", learning_rate=1e-3, head_learning_rate=1e-3
        )
    )
    attention_heads: AttentionHeadsConfig = field(default_factory=AttentionHeadsConfig)


def train_attention_heads(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Choose a few attention heads, the same on every process, and train them and the head of the classifier.

    Args:
        model: Model from `load_classifier`.
        setup: Parts of the run; `cfg.attention_heads` selects the heads, and the first training batches score them.

    Returns:
        The model wrapped by PEFT, and its trained parameters.

    Raises:
        UserError: The encoder has fewer heads.
    """
    import numpy as np
    import torch

    cfg = setup.cfg
    family, config = setup.family, model.config
    layers, each, count = family.layer_count(config), family.attention_heads(config), cfg.attention_heads.count
    if count > layers * each:
        raise UserError(
            f"--attention_heads.count: got {count}, must be 1 to {layers * each}, because the encoder has {layers} "
            f"layers of {each} heads. Lower it."
        )
    if cfg.attention_heads.choose == "random":
        scores = torch.from_numpy(np.random.default_rng(cfg.train.seed).random((layers, each)))
    else:
        assert setup.loaders and setup.accelerator
        scores = score_heads(model, setup.loaders.train, cfg, setup.accelerator, setup.task)
    heads = best_heads(scores, count)
    if os.environ.get("RANK", "0") == "0":
        names = " ".join(f"{layer}.{head}" for layer, chosen in heads.items() for head in chosen)
        print(f"attention heads that train (layer.head, chosen by {cfg.attention_heads.choose}): {names}")
    return unfreeze_heads(model, heads)


def score_heads(
    model: Any, batches: Iterable[Batch], cfg: AttentionHeadsRecipe, accelerator: Accelerator, task: Task
) -> torch.Tensor:
    """Score how much the loss depends on each attention head, after fitting the fresh head of the classifier.

    A head's score is the mean over clips of |dL/dm| for a factor m = 1 on the head's input to the output projection
    (Michel et al., 2019, arXiv 1905.10650, equation 2). As in that paper, the scores of a layer are divided by their l2
    norm. The classifier is fitted first, because gradients of a random classifier rank nothing; then its first weights
    are restored. Clips are prepared as in training, without SpecAugment. The encoder runs in float32, in eval mode.

    Args:
        model: Model from `load_classifier`; this function freezes its encoder.
        batches: Training batches of this process, of which the first are used.
        cfg: Number of batches, and of steps that fit the classifier.
        accelerator: Processes and device of the run.
        task: Task with the loss.

    Returns:
        Scores of shape (layers, heads), the same on every process.
    """
    from torch import nn
    from torch.nn import functional as F

    parts = cfg.attention_heads.scoring_batches * cfg.train.gradient_accumulation_steps
    read = list(islice(batches, parts))
    model.to(accelerator.device)
    # Freezing avoids the gradients of weights and the graph of the convolutions.
    family = family_of(model.config)
    family.freeze_stem(model)
    encoder_of(model).requires_grad_(False)
    classifier = nn.Sequential(*(getattr(model, name) for name in family.head))
    fresh = deepcopy(classifier.state_dict())
    labels, features = _for_each_clip(lambda batch: pooled_features(model, batch), read, accelerator)
    rate = cfg.train.head_learning_rate or cfg.train.learning_rate
    _fit(classifier, features, labels, cfg.attention_heads.head_steps, rate, task)
    _, gradients = _for_each_clip(lambda batch: mask_gradients(model, batch, task).flatten(1), read, accelerator)
    classifier.load_state_dict(fresh)
    scores = gradients.abs().mean(0).view(-1, family.attention_heads(model.config))
    return F.normalize(scores, dim=1)


def mask_gradients(model: Any, batch: Batch, task: Task) -> torch.Tensor:
    """Differentiate each clip's loss by a factor on the output of each attention head, at a factor of 1.

    Args:
        model: Classifier.
        batch: Batch of clips.
        task: Task with the loss.

    Returns:
        Derivatives of shape (clips, layers, heads).
    """
    import torch

    from peft_audio.evaluation.run_split import model_logits

    family = family_of(model.config)
    heads = family.attention_heads(model.config)
    layers = encoder_of(model).get_submodule(family.layers)
    masks = torch.ones(len(layers), len(batch["label"]), heads, device=batch["label"].device, requires_grad=True)

    def masked(layer: int) -> Callable[..., tuple[torch.Tensor]]:
        def scale(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            by_head = args[0].unflatten(-1, (heads, -1))
            return ((by_head * masks[layer][:, None, :, None]).flatten(-2),)

        return scale

    outputs = [layer.get_submodule(family.attention_paths[-1]) for layer in layers]
    hooks = [module.register_forward_pre_hook(masked(layer)) for layer, module in enumerate(outputs)]
    try:
        # Clips do not affect each other, so the gradient of the sum holds the gradient of each clip.
        loss = task.clip_losses(model_logits(model, batch), batch["label"]).sum()
        return torch.autograd.grad(loss, masks)[0].transpose(0, 1)
    finally:
        for hook in hooks:
            hook.remove()


def pooled_features(model: Any, batch: Batch) -> torch.Tensor:
    """Compute the output of the encoder for each clip, averaged over frames as in the model.

    The layers before the average are linear, so the classifier gives the same logits for averages as for frames.

    Args:
        model: Classifier.
        batch: Batch of clips.

    Returns:
        Features of shape (clips, channels).
    """
    import torch
    from torch import nn

    from peft_audio.evaluation.run_split import model_logits

    head = {name: getattr(model, name) for name in family_of(model.config).head}
    try:
        for name in head:
            setattr(model, name, nn.Identity())
        with torch.no_grad():
            return model_logits(model, batch)
    finally:
        for name, module in head.items():
            setattr(model, name, module)


def best_heads(scores: torch.Tensor, count: int) -> dict[int, list[int]]:
    """List the heads with the highest scores, by layer; of equal heads, lower layers and numbers come first.

    Args:
        scores: Scores of shape (layers, heads).
        count: Number of heads.
    """
    best = scores.flatten().argsort(descending=True, stable=True)[:count].sort().values
    heads: dict[int, list[int]] = {}
    for index in best.tolist():
        layer, head = divmod(index, scores.shape[1])
        heads.setdefault(layer, []).append(head)
    return heads


def unfreeze_heads(model: Any, heads: Mapping[int, Sequence[int]]) -> tuple[Any, Trainable]:
    """Train the rows of q, k and v and the columns of the output projection of some heads, and the classifier.

    A change of k rows of a matrix is `B A` with one-hot columns in B, and a change of k columns has one-hot rows in A.
    This is LoRA of rank k and alpha k with one fixed factor; the other factor starts at zero. Plain PEFT loads it, and
    all other weights, including biases, keep their bits. Weight decay pulls towards the pretrained weights.

    Args:
        model: Model from `load_classifier`.
        heads: Numbers of the heads that train, by layer.

    Returns:
        The model wrapped by PEFT, and its trained parameters. The saved adapter includes the fixed factors.
    """
    import peft
    import torch
    from torch import nn
    from torch.nn import functional as F

    family, config = family_of(model.config), model.config
    family.freeze_stem(model)
    width = family.width(config) // family.attention_heads(config)
    blocks = {layer: f"{family.encoder}.{family.layers}.{layer}" for layer in heads}
    ranks = {f"{blocks[layer]}.{name}": width * len(heads[layer]) for layer in heads for name in family.attention_paths}
    peft_config = peft.LoraConfig(
        task_type=None,
        r=width,
        lora_alpha=width,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=list(ranks),
        modules_to_save=list(family.head),
    )
    adapted = wrap_in_peft(model, peft_config)
    for layer, chosen in heads.items():
        channels = torch.cat([torch.arange(head * width, (head + 1) * width) for head in chosen])
        one_hot = F.one_hot(channels, family.width(config)).float()
        for name in family.attention_paths:
            lora = model.get_submodule(f"{blocks[layer]}.{name}")
            a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
            fixed, value, trains = (a, one_hot, b) if name == family.attention_paths[-1] else (b, one_hot.T, a)
            fixed.requires_grad_(False).copy_(value)
            nn.init.zeros_(trains)
    return adapted, describe_trained("attention_heads", adapted, family, peft_config)


def _fit(
    classifier: nn.Module, features: torch.Tensor, targets: torch.Tensor, steps: int, rate: float, task: Task
) -> None:
    """Fit a classifier to features with AdamW; each step uses all clips."""
    import torch

    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        task.clip_losses(classifier(features), targets).mean().backward()
        optimizer.step()


def _for_each_clip(
    measure: Callable[[Batch], torch.Tensor], batches: Sequence[Batch], accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the targets and values of the clips of all processes, in the same order on every process."""
    import torch
    from accelerate.utils import send_to_device

    parts = []
    for cpu_batch in batches:
        batch = send_to_device(cpu_batch, accelerator.device)
        rows = {"index": batch["index"], "label": batch["label"], "values": measure(batch)}
        # In an uneven step, a part without clips repeats one with weight 0.
        parts.append({name: values[batch["weight"] > 0] for name, values in rows.items()})
    rows_of_process = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # Shares of processes differ by a clip, so they are padded with index -1.
    gathered = accelerator.gather(accelerator.pad_across_processes(rows_of_process, pad_index=-1))
    order = gathered["index"].argsort(stable=True)
    order = order[gathered["index"][order] >= 0]
    return gathered["label"][order], gathered["values"][order]
