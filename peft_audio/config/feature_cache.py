"""What is told about the cache of a frozen prefix's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import NOT_STREAMED, check_ranges, setting
from peft_audio.errors import require


@dataclass(frozen=True)
class PrefixCacheConfig:
    """What is frozen need not run in every epoch: its output for each clip is kept on the disk, and trained on.

    Args:
        use: "auto" keeps it where that gives the same numbers and a clip is trained on more than once, and says why
            where it does not; "always" keeps it even for a single pass, for runs that come later; "never" runs
            everything in every step. Figures in the report are measured from the recordings either way.
        views: With augmentation, or crops of longer clips, training hears something new in every epoch, and nothing can
            be kept. Given, it hears each clip in this many ways in turn, kept or not. Fewer ways regularise less.
        folder: Where it is kept; in the Hugging Face cache when not given. Runs share it, side by side too:
            `peft-audio cache` shows and clears it.
        max_gigabytes: The folder may grow to this, in 10^9 bytes; what was not used for longest goes first. What alone
            would need more is not kept. A choice.
        dtype: What the output is kept in: "float32"; "bfloat16", at half the size and with 8 bits of precision; "auto"
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
