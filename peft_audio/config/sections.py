"""List the sections that recipes share, and find settings in them by what they affect."""

from __future__ import annotations

from collections.abc import Callable

from peft_audio.config.augment import AugmentConfig
from peft_audio.config.data import DataConfig
from peft_audio.config.feature_cache import PrefixCacheConfig
from peft_audio.config.fields import Setting, settings_of
from peft_audio.config.model import ModelConfig
from peft_audio.config.train import TrainConfig

SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "augment": AugmentConfig,
    "prefix_cache": PrefixCacheConfig,
    "train": TrainConfig,
}


def settings_where(fits: Callable[[Setting], bool]) -> tuple[str, ...]:
    """Return the dotted names of the shared settings whose metadata fits, in their order."""
    return tuple(
        f"{section}.{name}"
        for section, kind in SECTIONS.items()
        for name, about in settings_of(kind).items()
        if fits(about)
    )


def free_settings() -> tuple[str, ...]:
    """Return the names of settings that no figure depends on, which can change when a run is resumed."""
    return settings_where(lambda about: not about.changes_figures)


def settings_per_run() -> tuple[str, ...]:
    """Return the names of settings that do not tell one arm of a comparison from another."""
    return settings_where(lambda about: "per_run" in about.marks or not about.changes_figures)


def settings_decided_by_comparison() -> tuple[str, ...]:
    """Return the names of settings that a comparison sets for each run."""
    return settings_where(lambda about: "decided_by_comparison" in about.marks)


def settings_equal_between_arms() -> tuple[str, ...]:
    """Return the names of settings that the arms of a ranking have in common."""
    return settings_where(lambda about: "equal_between_arms" in about.marks)


def settings_on_card() -> tuple[str, ...]:
    """Return the names of settings that model cards list."""
    return settings_where(lambda about: "show_on_card" in about.marks)
