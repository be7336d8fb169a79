"""Train low-rank changes of linear layers (LoRA, DoRA, rsLoRA)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from peft_audio.config.fields import check_ranges, setting
from peft_audio.config.recipes import Recipe
from peft_audio.config.settings import TrainConfig
from peft_audio.encoders.base import EncoderFamily
from peft_audio.errors import UserError, require
from peft_audio.strategies.base import Setup, Trainable, describe_trained, wrap_in_peft


@dataclass(frozen=True)
class LoraConfig:
    """Control LoRA, low-rank changes of linear layers (Hu et al., 2021, arXiv 2106.09685).

    Args:
        r: Rank of the change; 8 as in PEFT.
        alpha: Scale of the change, which is multiplied by alpha / r, or by alpha / sqrt(r) with rsLoRA. Twice the rank,
            as is common.
        dropout: Dropout on the input of each change, in training only; 0 as in PEFT.
        targets: Linear layers of the encoder's transformer: "all-linear", "attention", "feed-forward", or a list of
            their names, such as [q_proj, v_proj]. All layers, as in QLoRA (Dettmers et al., 2023).
        layers: Numbers of the transformer layers to change, such as [4, 5]; all layers by default.
        use_dora: Learn magnitudes and directions separately (DoRA; Liu et al., 2024, arXiv 2402.09353).
        use_rslora: Scale by alpha / sqrt(r) (Kalajdzievski, 2023, arXiv 2312.03732).
    """

    r: int = setting(8, "training")
    alpha: int = setting(16, "training")
    dropout: float = setting(0.0, "training", takes="share")
    targets: Literal["all-linear", "attention", "feed-forward"] | list[str] = setting("all-linear", "training")
    layers: list[int] | None = setting(None, "training")
    use_dora: bool = setting(False, "training")
    use_rslora: bool = setting(False, "training")

    def __post_init__(self) -> None:
        require(self.r >= 1, "lora.r", self.r, "a rank of 1 or more", "Try 8.")
        require(self.alpha >= 1, "lora.alpha", self.alpha, "1 or more", "Try twice lora.r.")
        check_ranges("lora", self)
        require(bool(self.targets), "lora.targets", "[]", "at least one layer name", "Try all-linear.")
        if self.layers is not None:
            usable = bool(self.layers) and min(self.layers) >= 0
            require(usable, "lora.layers", self.layers, "layer numbers from 0", "Leave it out for all layers.")


@dataclass(frozen=True)
class LoraRecipe(Recipe):
    """Fine-tune an audio classifier with LoRA adapters.

    Args:
        lora: Settings of LoRA.
    """

    train: TrainConfig = field(default_factory=lambda: TrainConfig(output_dir="runs/lora", learning_rate=1e-3))
    lora: LoraConfig = field(default_factory=LoraConfig)
    # LoRA is the only strategy that trains no weight of the encoder.
    quantizes: ClassVar[bool] = True


def apply_lora(model: Any, setup: Setup) -> tuple[Any, Trainable]:
    """Train LoRA in linear layers of the transformer, and the head.

    The output of a changed layer is `W x + (alpha / r) B A x` (Hu et al., 2021, arXiv 2106.09685).

    Args:
        model: Model from `load_classifier`.
        setup: Parts of the run; `cfg.lora` gives rank, scale and layers.

    Returns:
        The model wrapped by PEFT, and its trained parameters.

    Raises:
        UserError: The encoder lacks one of the linear layers or transformer layers.
    """
    import peft

    cfg = setup.cfg.lora
    family = setup.family
    family.freeze_stem(model)
    peft_config = peft.LoraConfig(
        # SEQ_CLS would save `classifier` without `projector`, so the whole head is named below.
        task_type=None,
        r=cfg.r,
        lora_alpha=cfg.alpha,
        lora_dropout=cfg.dropout,
        target_modules=_targets(family, cfg),
        layers_to_transform=_layer_numbers(family.layer_count(model.config), cfg),
        layers_pattern=None if cfg.layers is None else family.layers.rsplit(".", 1)[-1],
        modules_to_save=list(family.head),
        use_dora=cfg.use_dora,
        use_rslora=cfg.use_rslora,
    )
    adapted = wrap_in_peft(model, peft_config)
    return adapted, describe_trained("lora", adapted, family, peft_config)


def _targets(family: EncoderFamily, cfg: LoraConfig) -> list[str]:
    """Return the names of the linear layers to change."""
    groups = {
        "all-linear": family.lora_targets,
        "attention": family.attention,
        "feed-forward": family.feed_forward,
    }
    targets = set(groups[cfg.targets] if isinstance(cfg.targets, str) else cfg.targets)
    unknown = sorted(targets - set(family.lora_targets))
    if unknown:
        raise UserError(
            f"--lora.targets: got {', '.join(unknown)}, must be among {', '.join(family.lora_targets)}, "
            "or a group of them such as all-linear. Correct the list."
        )
    return sorted(targets)


def _layer_numbers(count: int, cfg: LoraConfig) -> list[int] | None:
    """Return the numbers of the transformer layers to change; None for all layers."""
    if cfg.layers is not None and max(cfg.layers) >= count:
        raise UserError(
            f"--lora.layers: got {max(cfg.layers)}, must be 0 to {count - 1}, because the encoder has {count} layers. "
            "Correct the list, or leave it out for all layers."
        )
    return None if cfg.layers is None else sorted(set(cfg.layers))
