"""A few attention heads: which of them, and how they train while everything else stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import peft
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.nn import functional as F

from peft_audio.config import AttentionHeadsRecipe
from peft_audio.data.loaders import Loaders
from peft_audio.encoders.base import LAYER_WEIGHTS
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.encoders.loading import quiet_loading
from peft_audio.errors import UserError
from peft_audio.evaluation.run_split import model_logits
from peft_audio.strategies.base import Trainable, describe_trained
from peft_audio.tasks.task import Task

Batch = dict[str, torch.Tensor]


def train_attention_heads(
    model: Any, loaders: Loaders, cfg: AttentionHeadsRecipe, accelerator: Accelerator
) -> tuple[Any, Trainable]:
    """Choose a few attention heads, the same on every process; they and the head of the classifier train.

    Args:
        model: What `load_classifier` gives.
        loaders: The first training batches are what heads are scored on.
        cfg: How many heads, and how they are chosen.
        accelerator: Where it runs.

    Returns:
        The model wrapped by PEFT, and what trains in it.

    Raises:
        UserError: The encoder's attention ignores LoRA, or it has not so many heads.
    """
    family, config = family_of(model.config), model.config
    layers, each, count = family.layer_count(config), family.attention_heads(config), cfg.attention_heads.count
    if not family.lora_reaches_attention:
        raise UserError(
            f"--model.name: got {cfg.model.name}, must be of another family: {family.examples}'s attention ignores "
            "LoRA, as which heads train. Use recipes/last_n_layers.py with --last_n_layers.part attention."
        )
    if count > layers * each:
        raise UserError(
            f"--attention_heads.count: got {count}, must be 1 to {layers * each}: the encoder has {layers} layers of "
            f"{each} heads. Lower it."
        )
    if cfg.attention_heads.choose == "random":
        scores = torch.from_numpy(np.random.default_rng(cfg.train.seed).random((layers, each)))
    else:
        scores = score_heads(model, loaders.train, cfg, accelerator, loaders.task)
    heads = best_heads(scores, count)
    if accelerator.is_main_process:
        names = " ".join(f"{layer}.{head}" for layer, chosen in heads.items() for head in chosen)
        print(f"attention heads that train (layer.head, chosen by {cfg.attention_heads.choose}): {names}")
    return unfreeze_heads(model, heads)


def score_heads(
    model: Any, batches: Iterable[Batch], cfg: AttentionHeadsRecipe, accelerator: Accelerator, task: Task
) -> torch.Tensor:
    """How much the loss depends on each attention head, once the fresh head of the classifier was fitted.

    A head's score is the mean over clips of |dL/dm| for a factor m = 1 on what the head hands to the output projection
    (Michel et al., 2019, arXiv 1905.10650, equation 2); as they advise, the scores of a layer are divided by their l2
    norm. A random classifier's gradients would rank nothing, so the classifier is fitted first, and then gets its
    fresh weights back. Clips are heard as in training, without SpecAugment; the encoder runs in float32, in eval mode.

    Args:
        model: What `load_classifier` gives; its encoder is frozen here.
        batches: This process's training batches; the first ones are read.
        cfg: How many, and how long the classifier is fitted.
        accelerator: Where it runs.
        task: the loss.

    Returns:
        Scores of shape (layers, heads), the same on every process.
    """
    parts = cfg.attention_heads.scoring_batches * cfg.train.gradient_accumulation_steps
    read = list(islice(batches, parts))
    model.to(accelerator.device)
    # A frozen encoder keeps no gradients of its weights, and its convolutions no graph.
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
    """The derivative of each clip's loss by a factor on each attention head's output, where that factor is 1.

    Args:
        model: A classifier.
        batch: A batch of clips.
        task: the loss.

    Returns:
        Of shape (clips, layers, heads).
    """
    family = family_of(model.config)
    heads = family.attention_heads(model.config)
    layers = encoder_of(model).get_submodule(family.layers)
    masks = torch.ones(len(layers), len(batch["label"]), heads, device=batch["label"].device, requires_grad=True)

    def masked(layer: int) -> Callable[..., tuple[torch.Tensor]]:
        def scale(module: nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            by_head = args[0].unflatten(-1, (heads, -1))
            return ((by_head * masks[layer][:, None, :, None]).flatten(-2),)

        return scale

    outputs = [layer.get_submodule(family.attention_block).get_submodule(family.attention[-1]) for layer in layers]
    hooks = [module.register_forward_pre_hook(masked(layer)) for layer, module in enumerate(outputs)]
    try:
        # Clips do not see each other, so the gradient of the sum holds that of each.
        loss = task.clip_losses(model_logits(model, batch), batch["label"]).sum()
        return torch.autograd.grad(loss, masks)[0].transpose(0, 1)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def pooled_features(model: Any, batch: Batch) -> torch.Tensor:
    """What the encoder makes of each clip, averaged over its frames as the model does it.

    The classifier is linear until after the average, so it says the same of these as of the frames.

    Args:
        model: A classifier.
        batch: A batch of clips.

    Returns:
        Of shape (clips, channels).
    """
    head = {name: getattr(model, name) for name in family_of(model.config).head}
    try:
        for name in head:
            setattr(model, name, nn.Identity())
        return model_logits(model, batch)
    finally:
        for name, module in head.items():
            setattr(model, name, module)


def best_heads(scores: torch.Tensor, count: int) -> dict[int, list[int]]:
    """The heads with the highest scores, by layer; the lower layer and head first in a tie.

    Args:
        scores: Of shape (layers, heads).
        count: How many heads.
    """
    best = scores.flatten().argsort(descending=True, stable=True)[:count].sort().values
    heads: dict[int, list[int]] = {}
    for index in best.tolist():
        layer, head = divmod(index, scores.shape[1])
        heads.setdefault(layer, []).append(head)
    return heads


def unfreeze_heads(model: Any, heads: Mapping[int, Sequence[int]]) -> tuple[Any, Trainable]:
    """These attention heads and the head of the classifier train: the heads' rows of q, k and v, and columns after.

    A change of k rows of a matrix is `B A` with one-hot columns in B, and of k columns with one-hot rows in A: LoRA of
    rank k and alpha k whose other factor trains, from zero. Plain PEFT loads it, and every other weight, the biases
    included, stays as it is by the bit. Weight decay pulls towards the pretrained weights.

    Args:
        model: What `load_classifier` gives.
        heads: The numbers of the heads that train, for each layer that has some.

    Returns:
        The model wrapped by PEFT, and what trains in it. The fixed factors are saved too, and count in the bytes.
    """
    family, config = family_of(model.config), model.config
    family.freeze_stem(model)
    width = family.width(config) // family.attention_heads(config)
    blocks = {layer: f"{family.encoder}.{family.layers}.{layer}.{family.attention_block}" for layer in heads}
    ranks = {f"{blocks[layer]}.{name}": width * len(heads[layer]) for layer in heads for name in family.attention}
    peft_config = peft.LoraConfig(
        task_type=None,
        r=width,
        lora_alpha=width,
        rank_pattern=ranks,
        alpha_pattern=dict(ranks),
        target_modules=list(ranks),
        modules_to_save=list(family.head),
    )
    with quiet_loading():
        adapted = peft.get_peft_model(model, peft_config)
    for layer, chosen in heads.items():
        channels = torch.cat([torch.arange(head * width, (head + 1) * width) for head in chosen])
        one_hot = F.one_hot(channels, family.width(config)).float()
        for name in family.attention:
            lora = model.get_submodule(f"{blocks[layer]}.{name}")
            a, b = lora.lora_A["default"].weight, lora.lora_B["default"].weight
            fixed, value, trains = (a, one_hot, b) if name == family.attention[-1] else (b, one_hot.T, a)
            fixed.requires_grad_(False).copy_(value)
            nn.init.zeros_(trains)
    if hasattr(model, LAYER_WEIGHTS):
        # PEFT's modules_to_save passes over a parameter that is no module, and leaves it frozen.
        model.layer_weights.requires_grad_(True)
    return adapted, describe_trained("attention_heads", adapted, family, peft_config)


def _fit(
    classifier: nn.Module, features: torch.Tensor, targets: torch.Tensor, steps: int, rate: float, task: Task
) -> None:
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        task.clip_losses(classifier(features), targets).mean().backward()
        optimizer.step()


def _for_each_clip(
    measure: Callable[[Batch], torch.Tensor], batches: Sequence[Batch], accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the targets and values of the clips of all processes, in the same order on every process."""
    parts = []
    for cpu_batch in batches:
        batch = send_to_device(cpu_batch, accelerator.device)
        rows = {"index": batch["index"], "label": batch["label"], "values": measure(batch)}
        # A part of a ragged step that has no clips of its own repeats one with weight 0.
        parts.append({name: values[batch["weight"] > 0] for name, values in rows.items()})
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # Shares differ by a clip: pad with index -1, and drop that.
    gathered = accelerator.gather(accelerator.pad_across_processes(whole, pad_index=-1))
    order = gathered["index"].argsort(stable=True)
    order = order[gathered["index"][order] >= 0]
    return gathered["label"][order], gathered["values"][order]
