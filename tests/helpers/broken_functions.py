"""Broken versions of functions of the package, put in their place when PEFT_AUDIO_BROKEN names one.

A function is found by its name wherever the package defines it, so that these survive moves of code. The broken version
is there before another module imports the function. tests/conftest.py calls `break_named`; tests/mutations.py prints
which test notices each.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "peft_audio"
VARIABLE = "PEFT_AUDIO_BROKEN"
Function = Callable[..., Any]


@dataclass(frozen=True)
class Broken:
    """A fault.

    Attributes:
        name: Words for it.
        function: Name of the function, or Class.method.
        version: Takes the function, gives the broken one.
        tests: Files or node ids of tests that should notice.
    """

    name: str
    function: str
    version: Callable[[Function], Function]
    tests: str


def changing(argument: int, change: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Break a function by changing one of its positional arguments."""

    def version(function: Function) -> Function:
        def broken(*given: Any, **named: Any) -> Any:
            return function(*given[:argument], change(given[argument]), *given[argument + 1 :], **named)

        return broken

    return version


def answering(change: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Break a function by changing what it returns."""
    return lambda function: lambda *given, **named: change(function(*given, **named))


def always(answer: Callable[[], Any]) -> Callable[[Function], Function]:
    """Break a function by never calling it."""
    return lambda function: lambda *given, **named: answer()


def _normalised_again(batch: dict[str, Any]) -> dict[str, Any]:
    values = batch["inputs"]["input_values"]
    mean, deviation = values.mean(1, keepdim=True), values.std(1, keepdim=True)
    return batch | {"inputs": batch["inputs"] | {"input_values": (values - mean) / (deviation + 1e-5)}}


def _all_in_train_mode(function: Function) -> Function:
    def broken(model: Any, *more: Any, **named: Any) -> None:
        function(model, *more, **named)
        model.train()

    return broken


def _without_scale(apply: Function) -> Function:
    def broken(model: Any, setup: Any) -> Any:
        lora = getattr(setup.cfg, "lora", None)
        cfg = replace(setup.cfg, lora=replace(lora, alpha=lora.r)) if lora else setup.cfg
        return apply(model, replace(setup, cfg=cfg))

    return broken


def _identity(function: Function) -> Function:
    return lambda first, *more, **named: first


BROKEN = (
    Broken(
        "padding reaches attention and pooling",
        "model_logits",
        changing(1, lambda batch: batch | {"inputs": batch["inputs"] | {"attention_mask": None}}),
        "tests/training/test_loop.py",
    ),
    Broken(
        "clips are normalised after padding",
        "collate",
        answering(_normalised_again),
        "tests/data/test_loaders.py",
    ),
    Broken(
        "frozen parts in train mode",
        "set_modes",
        _all_in_train_mode,
        "tests/strategies/test_strategies.py tests/training/test_loop.py",
    ),
    Broken(
        "labels reversed in the saved adapter",
        "describe_adapter",
        answering(lambda record: replace(record, labels=record.labels[::-1])),
        "tests/adapters/test_load_and_save.py",
    ),
    Broken(
        "the scale of LoRA is ignored",
        # The table of strategies holds the function itself, so the look-up in it is what can be broken.
        "strategy_of",
        answering(_without_scale),
        "tests/strategies/test_strategies.py",
    ),
    Broken(
        "loading compares no probe",
        "check_answers",
        always(list),
        "tests/adapters/test_examine.py",
    ),
    Broken(
        "the last epoch is kept instead of the best",
        "Best.better_of",
        changing(0, lambda best: replace(best, score=-math.inf)),
        "tests/training/test_loop.py",
    ),
    Broken(
        "every epoch sees the same crop",
        "View.seeds",
        answering(lambda seeds: [seeds[0], 0, seeds[2]]),
        "tests/data/test_loaders.py",
    ),
    Broken(
        "SpecAugment hides the same frames in every epoch",
        "View.spec_masks",
        changing(2, lambda draw: replace(draw, epoch=1)),
        "tests/data/test_loaders.py",
    ),
    Broken(
        "masks of SpecAugment are drawn and not applied",
        "spec_augment.masked",
        always(nullcontext),
        "tests/encoders/test_spec_augment.py tests/recipes/test_recipes.py",
    ),
    Broken(
        "files of a checkpoint are not compared with its manifest",
        "_facts",
        always(dict),
        "tests/training/test_resuming.py",
    ),
    Broken(
        "a run resumes with other settings",
        "changed_facts",
        always(list),
        "tests/training/test_resuming.py",
    ),
    Broken(
        "checkpoints behind the one that is used stay",
        "discard_newer",
        always(lambda: None),
        "tests/training/test_resuming.py",
    ),
    Broken(
        "macro-F1 weighs classes by their clips",
        "mean_f1",
        lambda function: lambda true, decided, both: both.sum(-1) / true.sum(-1),
        "tests/tasks",
    ),
    Broken(
        "p-values are not corrected for their number",
        "holm",
        lambda function: list,
        "tests/evaluation/test_significance.py",
    ),
    Broken(
        "copies of a clip are not found",
        "near_duplicates",
        always(list),
        "tests/checks/test_near_copies.py",
    ),
    Broken(
        "groups are divided like single clips",
        "_hold_out_groups",
        lambda function: function.__globals__["_hold_out"],
        "tests/data/test_divide.py",
    ),
    Broken(
        "the projector is not saved",
        "peft_weights",
        answering(lambda weights: {name: value for name, value in weights.items() if "projector" not in name}),
        "tests/adapters/test_load_and_save.py",
    ),
    Broken(
        "the feature cache ends one layer too late",
        "find_cut",
        answering(lambda cut: replace(cut, layers=cut.layers + 1) if cut and cut.place == "layers" else cut),
        "tests/feature_cache/test_cut.py",
    ),
    Broken(
        "control characters of names are printed",
        "printable",
        _identity,
        "tests/inference/test_predict_work.py",
    ),
)


def home_of(function: str) -> tuple[str, list[str]]:
    """Find the module that defines a function, and the names that lead to it there.

    Args:
        function: `name`, `Class.name`, or `module.name` where several modules have that name.
    """
    *before, name = function.split(".")
    homes = []
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        body = ast.parse(file.read_text(encoding="utf-8")).body
        classes = {node.name: node.body for node in body if isinstance(node, ast.ClassDef)}
        if before and before[0] in classes:
            inside, names = classes[before[0]], [before[0], name]
        elif not before or before[0] == file.stem:
            inside, names = body, [name]
        else:
            continue
        if any(isinstance(node, ast.FunctionDef) and node.name == name for node in inside):
            homes.append((module, names))
    if len(homes) != 1:
        raise LookupError(f"{function} is defined in {len(homes)} modules: {[module for module, _ in homes]}")
    return homes[0]


def break_named() -> None:
    """Replace the function that the variable names, if it names one."""
    for broken in BROKEN:
        if broken.name == os.environ.get(VARIABLE):
            module, names = home_of(broken.function)
            holder = import_module(module.removesuffix(".__init__"))
            for name in names[:-1]:
                holder = getattr(holder, name)
            setattr(holder, names[-1], broken.version(getattr(holder, names[-1])))
