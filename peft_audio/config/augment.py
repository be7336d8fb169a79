"""Declare the settings of augmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peft_audio.config.fields import check_ranges, setting
from peft_audio.errors import require
from peft_audio.files import is_folder


@dataclass(frozen=True)
class AugmentConfig:
    """Augment training clips, never others. Every draw depends on train.seed, the epoch and the clip alone.

    Args:
        preset: "none"; "light": gain and faint noise; "speech": those, and small changes of pitch, pace and band;
            "environment": those, and shifts in time, gaps and wider changes. The numbers are in
            `peft_audio/data/augment.py`.
        mask_time_share: SpecAugment over time (Park et al., 2019, arXiv 1904.08779): this share of a clip's frames is
            replaced in training by the encoder's mask vector, in spans. 0, our default, turns it off; transformers has
            0.05.
        mask_time_frames: Length of a span, in frames of 20 ms; 10 as in transformers. At most half of the clip.
        mask_feature_share: SpecAugment over features: this share of the channels that the transformer is fed is set to
            zero for a whole clip, in spans. 0 turns it off, as in transformers.
        mask_feature_channels: Length of a span, in channels; 10 as in transformers.
        noise_folder: Folder with your own background sounds: half of the clips get a piece of one, 3 to 30 dB below
            them (audiomentations' defaults), after what the preset does.
        impulse_response_folder: Folder with impulse responses of rooms or microphones: half of the clips are convolved
            with one.
    """

    preset: Literal["none", "light", "speech", "environment"] = setting("none", "input", "show_on_card")
    mask_time_share: float = setting(0.0, "training", takes="share")
    mask_time_frames: int = setting(10, "training", takes="count")
    mask_feature_share: float = setting(0.0, "training", takes="share")
    mask_feature_channels: int = setting(10, "training", takes="count")
    noise_folder: str | None = setting(None, "input")
    impulse_response_folder: str | None = setting(None, "input")

    def __post_init__(self) -> None:
        check_ranges("augment", self)
        for name in ("noise_folder", "impulse_response_folder"):
            value = getattr(self, name)
            usable = value is None or (bool(value) and is_folder(value))
            require(usable, f"augment.{name}", value or "''", "a folder of recordings", "Leave it out, or give one.")
