"""Declare the settings of the feature cache, which config.yaml calls `prefix_cache`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import NOT_STREAMED, check_ranges, setting
from peft_audio.errors import require


@dataclass(frozen=True)
class PrefixCacheConfig:
    """Cache the output of the frozen layers on the disk, so each clip passes through them once.

    Args:
        use: "auto" caches where that gives the same numbers and a clip is trained on more than once, and prints the
            reason where it does not; "always" caches even for a single pass, for later runs; "never" runs all layers
            in every step. Figures in the report are measured from the recordings either way.
        views: Number of augmented or cropped versions of each clip that training uses in turn, cached or not. Without
            it, augmentation and crops of longer clips differ in every epoch, and nothing can be cached. Fewer versions
            regularise less.
        folder: Folder of the cache; in the Hugging Face cache when not given. Runs share it, also at the same time:
            `peft-audio cache` shows and clears it.
        max_gigabytes: Largest size of the folder, in 10^9 bytes; files that were not used for longest are removed
            first. Features that alone need more are not cached. A choice.
        dtype: Type of the cached numbers: "float32"; "bfloat16", at half the size and with 8 bits of precision; "auto"
            takes the one that training computes in (train.mixed_precision).
    """

    use: Literal["auto", "always", "never"] = setting("auto", "training", "per_run")
    views: int | None = setting(None, "training", sources=NOT_STREAMED, takes="count")
    folder: str | None = setting(None, "cost")
    max_gigabytes: float = setting(20.0, "cost", takes="positive")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "encoder")

    def __post_init__(self) -> None:
        check_ranges("prefix_cache", self)
        usable = self.folder is None or bool(self.folder)
        require(usable, "prefix_cache.folder", "''", "a folder", "Leave it out.")
