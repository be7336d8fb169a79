"""Offer the commands as Python functions; each imports torch when it is called, so that importing them is instant.

Arguments have the names of the flags, and sections of settings are dicts: `--train.epochs 3` is `train={"epochs": 3}`.
A wrong argument raises `UserError` with the message of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio.errors import UserError

if TYPE_CHECKING:
    from peft_audio.comparison.results import Comparison
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.config import BaselineRecipe, Recipe
    from peft_audio.runs.report import RunReport
    from peft_audio.strategies import Apply


def fine_tune(
    source: Recipe | str | Path, strategy: str | Apply | None = None, **settings: Mapping[str, Any] | str | Path
) -> RunReport:
    """Train, evaluate and save an audio classifier, as `peft-audio train` does.

    `fine_tune("recordings", "lora", train={"epochs": 3}, lora={"r": 4})`

    Args:
        source: Folder, manifest, Hub dataset or "bundled"; or all settings of the run, such as `LoraRecipe()`.
        strategy: Name of the strategy, "lora" by default. With a recipe it is left out, or a function
            `(model, setup) -> (model, Trainable)` that marks the weights that train.
        **settings: Sections of the recipe's settings, and `config`, the path of a YAML file with more. Not with a
            recipe.

    Returns:
        The report, on every process. A finished run (`train={"resume": True}`) returns the report that it wrote.

    Raises:
        UserError: A setting, the data, the encoder or the folder cannot be used.
        Stopped: A signal ended the run; it resumes from a checkpoint with `train={"resume": True}`.
    """
    from peft_audio.config import Recipe
    from peft_audio.strategies import STRATEGIES

    if isinstance(source, Recipe):
        if isinstance(strategy, str) or settings:
            extra = [*(["strategy"] if isinstance(strategy, str) else []), *settings]
            raise UserError(f"{', '.join(extra)}: not used with a {type(source).__name__}. Set it in there.")
        cfg, apply = source, strategy
    else:
        name = "lora" if strategy is None else strategy
        if not isinstance(name, str) or name not in STRATEGIES:
            raise UserError(f"strategy: got {name}, must be one of {', '.join(STRATEGIES)}. Try lora.")
        cfg, apply = _with_source(STRATEGIES[name].recipe, source, settings), None
    from peft_audio import finetune

    return finetune.fine_tune(cfg, apply)


def run_baseline(cfg: BaselineRecipe) -> RunReport:
    """Fit and evaluate a control without a network, as `recipes/baseline.py` does.

    Args:
        cfg: Settings of the run.

    Returns:
        The report, on every process.

    Raises:
        UserError: A setting, the folder or a clip cannot be used.
    """
    from peft_audio.runs import baseline

    return baseline.run_baseline(cfg)


def compare(source: CompareRecipe | str | Path, **settings: Any) -> Comparison:
    """Compare ways of fine-tuning under equal conditions, as `recipes/compare.py` does.

    `compare("recordings", arms=["head_only", "lora"], reference="lora", minutes=20)`

    Runs that are finished in the folder are kept, so the same call resumes a comparison that was stopped.

    Args:
        source: Folder, manifest, Hub dataset or "bundled"; or all settings, `CompareRecipe(...)`.
        **settings: Settings of the comparison, and sections that all arms share. Not with a `CompareRecipe`.

    Returns:
        Scores, costs and claims of all arms. Nothing is ranked if `broken_rules` is not empty.

    Raises:
        UserError: A setting, the data or the folder cannot be used, or no run could be finished.
    """
    from peft_audio.comparison.settings import CompareRecipe

    if isinstance(source, CompareRecipe):
        if settings:
            raise UserError(f"{', '.join(settings)}: not used with a CompareRecipe. Set it in there.")
        cfg = source
    else:
        cfg = _with_source(CompareRecipe, source, settings)
    from peft_audio.comparison.run import run_arms

    return run_arms(cfg)


def _with_source(recipe: type[Any], source: str | Path, settings: Mapping[str, Any]) -> Any:
    """Read settings with the source among those of `data`."""
    from peft_audio.config import read_settings

    data = settings.get("data", {})
    if isinstance(data, Mapping):
        if "source" in data:
            raise UserError(f"data: got source {data['source']}, but {source} is given already. Give one.")
        data = {"source": source, **data}
    return read_settings(recipe, {**settings, "data": data})
