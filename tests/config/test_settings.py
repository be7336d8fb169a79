"""Settings say what they affect, and every list of setting names is derived from that."""

from __future__ import annotations

import ast
from dataclasses import fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from peft_audio.checks.collection import check
from peft_audio.comparison.settings import RECIPES, ArmConfig, CompareRecipe
from peft_audio.config import (
    SECTIONS,
    BaselineRecipe,
    DataConfig,
    Recipe,
    TrainConfig,
    free_settings,
    settings_decided_by_comparison,
    settings_equal_between_arms,
    settings_on_card,
    settings_per_run,
)
from peft_audio.config.fields import SourceKind, settings_of
from peft_audio.config.settings import settings_where
from peft_audio.errors import UserError

PACKAGE = Path(__file__).parents[2] / "peft_audio"


def sections(recipe: type[Any]) -> dict[str, type[Any]]:
    """The settings dataclasses of a recipe by section."""
    hints = get_type_hints(recipe)
    return {part.name: hints[part.name] for part in fields(recipe) if is_dataclass(hints[part.name])}


def test_every_section_of_every_recipe_has_metadata() -> None:
    for recipe in (*RECIPES.values(), CompareRecipe):
        for kind in sections(recipe).values():
            assert all("setting" in part.metadata for part in fields(kind)), kind
    assert sections(Recipe) == SECTIONS
    assert sections(CompareRecipe) == SECTIONS


def test_a_field_without_metadata_is_found() -> None:
    with pytest.raises(KeyError, match="setting"):
        settings_of(make_dataclass("Forgotten", [("new", int, 1)]))


def test_a_baseline_has_the_metadata_of_the_shared_settings() -> None:
    shared = settings_of(TrainConfig)
    own = settings_of(sections(BaselineRecipe)["train"])
    assert own == {name: shared[name] for name in own}


def test_what_a_resumed_run_may_change_is_as_before() -> None:
    assert set(free_settings()) == {
        *("train.output_dir", "train.overwrite", "train.resume", "train.log_with", "train.verify_adapter"),
        *("train.checkpoint_every_steps", "train.checkpoint_every_minutes", "train.keep_checkpoints"),
        *("train.record_clips", "data.num_workers", "prefix_cache.folder", "prefix_cache.max_gigabytes"),
    }


def test_what_may_differ_between_runs_of_one_arm_is_as_before() -> None:
    before = {
        *("train.output_dir", "train.overwrite", "train.seed", "train.learning_rate", "train.evaluate_test"),
        *("train.evaluate_train", "train.log_with", "train.verify_adapter", "data.fold", "data.num_workers"),
        *("prefix_cache.use", "prefix_cache.folder", "prefix_cache.max_gigabytes"),
    }
    # No figure depends on when checkpoints are written: runs that differ in that alone are of one arm.
    added = {
        *("train.resume", "train.checkpoint_every_steps", "train.checkpoint_every_minutes", "train.keep_checkpoints"),
        "train.record_clips",
    }
    assert set(settings_per_run()) == before | added


def test_what_a_comparison_decides_is_as_before() -> None:
    before = ("output_dir", "overwrite", "learning_rate", "seed", "evaluate_test", "verify_adapter", "log_with")
    # It was refused by a rule of its own in the shared settings, and overwritten silently in the flags of an arm.
    added = {"data.fold"}
    assert set(settings_decided_by_comparison()) == {f"train.{name}" for name in before} | added


def test_what_ranked_arms_have_in_common_is_as_before() -> None:
    assert set(settings_equal_between_arms()) == {
        *("train.epochs", "train.max_steps", "train.batch_size", "train.batch_seconds", "train.best_metric"),
        *("data.max_train_clips", "data.max_seconds", "data.max_eval_seconds", "data.window_seconds"),
        "data.hop_seconds",
    }


def test_a_model_card_lists_the_settings_it_listed() -> None:
    """In the order of config.yaml; the old order was a choice of the list's author."""
    assert set(settings_on_card()) == {
        *("train.epochs", "train.max_steps", "train.batch_size", "train.learning_rate", "train.head_learning_rate"),
        *("train.optimizer", "train.weight_decay", "train.label_smoothing", "train.seed", "augment.preset"),
        *(
            "model.quantization",
            "model.layer_weighted_sum",
            "model.input_seconds",
            "data.max_seconds",
            "data.window_seconds",
            "data.fold",
            "data.validate_on_test",
        ),
    }


def without(section: Any, kind: SourceKind) -> set[str]:
    return {name for name, about in settings_of(section).items() if kind not in about.source_kinds}


def test_settings_of_other_sources_are_as_before() -> None:
    on_hub = {"revision", "config_name", "split_names", "streaming", "shuffle_buffer"}
    columns = {"audio_column", "label_column", "group_column"}
    assert without(DataConfig, "bundled") == without(DataConfig, "folder") == on_hub | columns | {"audio_folder"}
    assert without(DataConfig, "manifest") == on_hub
    assert without(DataConfig, "hub") == {"audio_folder"}


def test_settings_that_a_stream_has_no_use_for_are_as_before() -> None:
    # data.hop_seconds needs data.window_seconds, which was in the list.
    assert without(DataConfig, "stream") == {
        *("group_column", "group_pattern", "splits_file", "fold", "max_train_clips", "window_seconds"),
        *("validate_on_test", "hop_seconds", "audio_folder"),
    }
    assert without(TrainConfig, "stream") == {"evaluate_train", "class_weights", "batch_seconds", "auto_micro_batch"}
    assert without(SECTIONS["prefix_cache"], "stream") == {"views"}


def test_check_and_evaluate_take_splits_and_input() -> None:
    refused = {
        name for name, about in settings_of(DataConfig).items() if about.stage not in ("splits", "input", "cost")
    }
    # shuffle_buffer was ignored; it needs streaming, which was refused.
    assert refused == {"streaming", "max_train_clips", "shuffle_buffer"}


def test_augmentation_before_the_encoder_is_in_the_key_of_the_cache() -> None:
    """SpecAugment masks what the cache returns."""
    before = {name for name in settings_of(SECTIONS["augment"]) if not name.startswith("mask_")}
    assert {name for name, about in settings_of(SECTIONS["augment"]).items() if about.stage == "input"} == before


def test_the_key_of_the_cache_covers_all_stages_up_to_the_encoder() -> None:
    """A new setting of these stages fails here until the key of `feature_cache` covers it."""
    covered_by = {
        "bytes, start and length of the clip": {
            *("data.window_seconds", "data.hop_seconds", "data.max_seconds", "data.max_eval_seconds"),
        },
        "augmentation and its seeds": {
            *("augment.preset", "augment.noise_folder", "augment.impulse_response_folder", "train.seed"),
        },
        "weights": {"model.name", "model.revision", "model.pretrained"},
        "config of the frozen layers": {"model.layer_weighted_sum"},
        "input section of the record": {"model.input_seconds"},
        "attention, quantization, precision and type": {
            *("model.attention", "model.quantization", "train.mixed_precision", "prefix_cache.dtype"),
        },
    }
    up_to_encoder = settings_where(lambda about: about.stage in ("input", "encoder"))
    assert set(up_to_encoder) == set().union(*covered_by.values())


def hand_kept_lists() -> list[str]:
    """Sets, lists and tuples that hold three or more names of settings and little else."""
    names = set()
    for recipe in (*RECIPES.values(), CompareRecipe):
        for section, kind in sections(recipe).items():
            names |= {name for part in fields(kind) for name in (part.name, f"{section}.{part.name}")}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Set | ast.List | ast.Tuple):
                words = [part.value for part in node.elts if isinstance(part, ast.Constant)]
                known = sum(word in names for word in words)
                if known >= 3 and 2 * known > len(node.elts):
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {words}")
    return found


def test_no_list_of_settings_is_kept_by_hand() -> None:
    assert hand_kept_lists() == []


@pytest.mark.parametrize(("name", "value"), [("max_train_clips", 5), ("shuffle_buffer", 2)])
def test_check_refuses_settings_of_training(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"--data.{name}: got {value}, must be left out: nothing is trained here"):
        check(DataConfig(**{name: value}))


def test_an_arm_leaves_folds_to_the_comparison() -> None:
    with pytest.raises(UserError, match=r"--own_arms: got data.fold, must be left to the comparison"):
        ArmConfig("lora", flags={"data.fold": 1})
    with pytest.raises(UserError, match=r"--data.fold: got 1, must be left to the comparison.* Try --folds 5"):
        CompareRecipe(data=DataConfig(fold=1))


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("prefix_cache", "views", 2), ("train", "evaluate_train", True), ("train", "batch_seconds", 9.0)],
)
def test_a_stream_refuses_what_needs_all_clips(section: str, name: str, value: Any) -> None:
    changed = {"train": {"max_steps": 4}}
    changed.setdefault(section, {})[name] = value
    parts = {part: SECTIONS[part](**values) for part, values in changed.items()}
    with pytest.raises(UserError, match=f"--{section}.{name}: got {value}, must be left out with data.streaming"):
        Recipe(data=DataConfig(source="org/name", streaming=True), **parts)
