from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from peft_audio.comparison import settings as comparison
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config import TrainConfig, dotted, parse_config, run_recipe, to_yaml
from peft_audio.config.parse import flags_of, make_parser, read_settings
from peft_audio.strategies import (
    AttentionHeadsRecipe,
    BiasOnlyRecipe,
    FullRecipe,
    HeadOnlyRecipe,
    IA3Recipe,
    LastNLayersRecipe,
    LoraRecipe,
)

ROOT = Path(__file__).parents[2]
RECIPES = tuple(comparison.RECIPES.values())
FLAGS = sorted({flag for recipe in RECIPES for flag in flags_of(recipe)})


def recipe_of(flag: str) -> type:
    """A recipe that has the flag."""
    return next(recipe for recipe in RECIPES if flag.lstrip("-") in flags_of(recipe))


# What each setting must refuse. A new setting fails `test_every_setting_has_values_that_it_refuses` until it is here.
REFUSED = {
    "data.source": [""],
    "data.max_seconds": ["-1", "0", "nan", "inf", "long"],
    "data.max_eval_seconds": ["-1", "0", "nan", "inf"],
    "data.split_seed": ["-1", "4294967296", "1.5"],
    "data.validation_share": ["0", "1", "nan"],
    "data.test_share": ["0", "1", "0.9"],
    "data.max_train_clips": ["0", "-1", "some"],
    "data.num_workers": ["-1", "two"],
    "data.streaming": ["perhaps"],
    "data.split_names": ["train", "5"],
    "data.shuffle_buffer": ["0", "1.5"],
    "data.group_pattern": ["(", "[a-"],
    "data.fold": ["-1", "5", "first"],
    "data.num_folds": ["2", "0"],
    "data.validate_on_test": ["perhaps"],
    "data.window_seconds": ["0", "-1", "nan", "31"],
    "data.hop_seconds": ["0", "1"],
    "data.on_bad_clip": ["ignore"],
    "data.max_bad_share": ["-0.1", "1", "nan"],
    "model.name": [""],
    "model.pretrained": ["perhaps"],
    "model.input_seconds": ["0", "-1", "nan"],
    "model.layer_weighted_sum": ["perhaps"],
    "model.dropout": ["1", "-0.1", "nan"],
    "model.head_dropout": ["1", "-0.1", "nan"],
    "model.quantization": ["int4"],
    "augment.preset": ["heavy"],
    "augment.mask_time_share": ["1", "-0.1", "nan"],
    "augment.mask_time_ms": ["0", "nan"],
    "augment.mask_feature_share": ["1", "-0.1", "nan"],
    "augment.mask_feature_channels": ["0"],
    "augment.noise_folder": ["", "no/such/folder", "~nobody-here/x"],
    "augment.impulse_response_folder": ["", "no/such/folder"],
    "train.output_dir": [""],
    "train.overwrite": ["perhaps"],
    "train.resume": ["perhaps"],
    "train.record_clips": ["perhaps"],
    "train.checkpoint_every_steps": ["0", "often"],
    "train.checkpoint_every_minutes": ["0", "-1", "nan"],
    "train.keep_checkpoints": ["0", "2.5"],
    "train.auto_micro_batch": ["perhaps"],
    "train.epochs": ["0", "-3", "2.5"],
    "train.max_steps": ["0", "soon"],
    "train.early_stopping_patience": ["0", "soon"],
    "train.batch_size": ["0"],
    "train.batch_seconds": ["0", "-1", "nan"],
    "train.gradient_accumulation_steps": ["0"],
    "train.mixed_precision": ["fp8", "16"],
    "train.compile": ["perhaps"],
    "model.attention": ["fast"],
    "prefix_cache.use": ["sometimes"],
    "prefix_cache.views": ["0", "1.5"],
    "prefix_cache.folder": [""],
    "prefix_cache.max_gigabytes": ["0", "-1", "nan"],
    "prefix_cache.dtype": ["float16"],
    "train.optimizer": ["sgd"],
    "train.learning_rate": ["banana", "nan", "inf", "0", "-0.5"],
    "train.head_learning_rate": ["0", "nan", "banana"],
    "train.weight_decay": ["-0.1", "nan"],
    "train.l1": ["-0.1", "nan"],
    "train.label_smoothing": ["1", "-0.1", "nan"],
    "train.class_weights": ["some"],
    "train.schedule": ["step"],
    "train.warmup_share": ["1", "-0.1", "nan"],
    "train.max_grad_norm": ["0", "inf"],
    "train.frozen_dropout": ["perhaps"],
    "train.seed": ["-1", "4294967296"],
    "train.deterministic": ["perhaps"],
    "train.best_metric": ["auc"],
    "train.evaluate_train": ["perhaps"],
    "train.evaluate_test": ["perhaps"],
    "train.verify_adapter": ["perhaps"],
    "train.log_with": ["mlflow", "wandb"],
    "lora.r": ["0", "1.5"],
    "lora.alpha": ["0"],
    "lora.dropout": ["1", "-0.1", "nan"],
    "lora.targets": ["[]", "3"],
    "lora.layers": ["[]", "[-1]", "x"],
    "lora.use_dora": ["perhaps"],
    "lora.use_rslora": ["perhaps"],
    "last_n_layers.n": ["0", "1.5"],
    "last_n_layers.part": ["half"],
    "full.train_cnn": ["perhaps"],
    "baseline.kind": ["svm"],
    "attention_heads.count": ["0", "1.5"],
    "attention_heads.choose": ["best"],
    "attention_heads.scoring_batches": ["0", "some"],
    "attention_heads.head_steps": ["0", "1.5"],
}
TAKES_ANY_TEXT = {
    "data.audio_column",
    "data.audio_folder",
    "data.config_name",
    "data.group_column",
    "data.label_column",
    "data.revision",
    "data.splits_file",
    "model.revision",
}
PYTHON_WORDS = re.compile(r"Traceback|Parser key|Literal\[|<class|NoneType|Union")


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str], recipe: type = LoraRecipe) -> str:
    """The one line on stderr with which these arguments end the process."""
    with pytest.raises(SystemExit) as stop:
        parse_config(recipe, arguments)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert not printed.out
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and len(printed.err) < 300, printed.err
    assert not PYTHON_WORDS.search(printed.err), printed.err
    return printed.err.strip()


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_setting_has_values_that_it_refuses() -> None:
    assert sorted(REFUSED.keys() | TAKES_ANY_TEXT) == FLAGS


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in REFUSED.items() for value in values])
def test_refusal_names_flag_value_allowed_and_fix(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, [f"--{flag}", value], recipe_of(flag))
    parts = re.fullmatch(rf"error: --{re.escape(flag)}: got (.+?), must be (.+)\. (\S.+)", message)
    assert parts, message
    assert (value or "''") in parts[1]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_rate_that_is_no_number_is_told_it_must_be_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "finite" in refusal(capsys, ["--train.learning_rate", value])


@pytest.mark.parametrize("flag", ["train.schedule", "train.best_metric", "augment.preset"])
def test_refused_choice_lists_the_choices(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    choices = {"train.schedule": "linear cosine", "train.best_metric": "macro_f1 accuracy loss"}
    message = refusal(capsys, [f"--{flag}", "other"]).split("must be")[1]
    assert all(choice in message for choice in choices.get(flag, "none light").split())


@pytest.mark.parametrize(("wrong", "right"), [("lorra.r", "lora.r"), ("train.learning_rat", "train.learning_rate")])
def test_misspelt_flag_is_refused_with_the_right_one(
    wrong: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, [f"--{wrong}", "4"])
    assert f"--{wrong}:" in message and f"Did you mean --{right}?" in message


@pytest.mark.parametrize(("wrong", "right"), [("lorra: {r: 4}", "lora.r"), ("train: {epoch: 4}", "train.epochs")])
def test_misspelt_key_in_yaml_is_refused_with_the_right_one(
    wrong: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["--config", write(tmp_path / "run.yaml", wrong)])
    section, key = re.match(r"(\w+): {(\w+)", wrong).groups()
    assert f"{section}.{key}" in message and f"Did you mean --{right}?" in message


@pytest.mark.parametrize(
    ("text", "flag", "value"),
    [
        ("train: {epochs: many}", "train.epochs", "many"),
        ("train: {epochs: [1, 2]}", "train.epochs", "[1, 2]"),
        ("lora: {r: 0}", "lora.r", "0"),
        ("data: {test_share: null}", "data.test_share", "null"),
        ("lora: {layers: 3}", "lora.layers", "3"),
        ("train: {learning_rate: .nan}", "train.learning_rate", "nan"),
    ],
)
def test_wrong_value_in_yaml_is_refused_like_a_flag(
    text: str, flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["--config", write(tmp_path / "run.yaml", text)])
    assert message.startswith(f"error: --{flag}: got ") and value in message


@pytest.mark.parametrize("text", ["train: [1\n", "train: 5\n", "- train\n", "just words\n"])
def test_yaml_of_the_wrong_shape_is_refused_by_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "shape.yaml", text)
    message = refusal(capsys, ["--config", file])
    assert "shape.yaml" in message or "--train" in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {source: " + "[" * 3_000, "nested"),
        (
            "data: [" + ", ".join(f"&l{i} [{', '.join([f'*l{i - 1}' if i else 'ha'] * 9)}]" for i in range(10)) + "]",
            "*",
        ),
        ("train: {seed: 2001-99-99}", "plain YAML"),
        ("lora: {dropout: ''}", "got '', must be a finite number"),
        ('train: {"a\\e[31m": 1}', r"--train.a\x1b[31m: no such setting"),
        ("data: {source: {a: " + "b" * 9_000 + "}}", "characters) ..."),
        ("augment: {noise_folder: " + "b" * 300 + "}", "must be a folder of recordings"),
    ],
    ids=["brackets", "repeats of repeats", "month 13", "nothing", "colour", "no end", "no disk takes it"],
)
def test_yaml_that_was_found_by_fuzzing_is_refused_in_a_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_config(LoraRecipe, ["--config", write(tmp_path / "run.yaml", text)])
    printed = capsys.readouterr().err
    assert words in printed and printed.startswith("error: ") and len(printed) < 2_000
    assert printed.count("\n") == 1 and printed.strip().isprintable()


def test_missing_yaml_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["--config", str(tmp_path / "absent.yaml")])
    assert "--config" in message and "absent.yaml" in message and "does not exist" in message.lower()


def test_empty_yaml_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "empty.yaml", "# nothing yet\n")
    assert parse_config(LoraRecipe, ["--config", file]) == LoraRecipe()


@pytest.mark.parametrize(
    "text",
    [
        "lora: {class_path: os.mkdir, init_args: {path: MARK}}",
        "train: {output_dir: !!python/object/apply:os.mkdir [MARK]}",
        "class_path: os.mkdir\ninit_args: {path: MARK}",
    ],
)
def test_yaml_cannot_name_code_to_run(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "made-by-yaml"
    refusal(capsys, ["--config", write(tmp_path / "run.yaml", text.replace("MARK", str(mark)))])
    assert not mark.exists()


@pytest.mark.parametrize("number", ["1" + "0" * 400, "-" + "9" * 400, "0x" + "f" * 300, "1" + ":0" * 200])
def test_a_number_too_large_for_a_float_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "run.yaml", f"train: {{learning_rate: {number}}}")
    assert "digits, which no setting accepts" in refusal(capsys, ["--config", file])
    assert "digits, which no setting accepts" in refusal(capsys, ["--train.learning_rate", number])


def test_flags_win_over_yaml_wherever_they_stand(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", "train: {epochs: 3, learning_rate: 1e-3, seed: 7}\nlora: {layers: [0, 1]}\n")
    second = write(tmp_path / "b.yaml", "train: {epochs: 4}\n")
    files = ["--config", first, "--config", second]
    for given in ([*files, "--train.seed", "9"], ["--train.seed", "9", *files]):
        cfg = parse_config(LoraRecipe, given)
        assert (cfg.train.epochs, cfg.train.learning_rate, cfg.train.seed, cfg.lora.layers) == (4, 1e-3, 9, [0, 1])
    assert cfg.train.batch_size == TrainConfig().batch_size


def test_saved_yaml_is_read_back_equal(tmp_path: Path) -> None:
    arguments = (
        "--train.learning_rate 1e-5 --train.max_steps 3 --lora.layers [1,0] --lora.targets [q_proj] --data.source ü"
    )
    for given in ([], arguments.split()):
        cfg = parse_config(LoraRecipe, given)
        saved = write(tmp_path / "config.yaml", to_yaml(cfg))
        assert parse_config(LoraRecipe, ["--config", saved]) == cfg
        stored = yaml.safe_load(to_yaml(cfg))
        assert {f"{group}.{name}" for group, part in stored.items() for name in part} == set(flags_of(LoraRecipe))


def test_every_setting_has_help() -> None:
    for recipe in RECIPES:
        texts = {action.dest: str(action.help or "") for action in make_parser(recipe)._actions}
        short = [flag for flag in flags_of(recipe) if len(texts[flag]) < 15 or not texts[flag].rstrip().endswith(".")]
        assert not short


def test_error_inside_a_recipe_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lora.py"])
    with pytest.raises(SystemExit) as stop:
        run_recipe(lambda cfg: TrainConfig(epochs=0), LoraRecipe)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --train.epochs: got 0, must be 1 or more. Try 8.\n"


def names_read(source: str) -> set[tuple[str, str]]:
    """(owner, attribute) of each attribute that is read: `cfg.train.epochs` gives (train, epochs)."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found.add((owner, node.attr))
    return found


def test_every_setting_is_read_somewhere() -> None:
    files = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "peft_audio").rglob("*.py")]
    files = [file for file in files if (ROOT / "peft_audio" / "config") not in file.parents]
    read = set(itertools.chain.from_iterable(names_read(file.read_text(encoding="utf-8")) for file in files))
    unread = [
        flag for flag in FLAGS if not read & {(owner, flag.split(".")[1]) for owner in (flag.split(".")[0], "cfg")}
    ]
    assert not unread


def test_interrupt_ends_in_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cfg: LoraRecipe) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["lora.py"])
    with pytest.raises(SystemExit) as ended:
        run_recipe(interrupted, LoraRecipe)
    assert ended.value.code == 130
    assert "no adapter was saved" in capsys.readouterr().err


def test_a_recipe_keeps_its_own_defaults_beside_what_is_given(tmp_path: Path) -> None:
    file = write(tmp_path / "run.yaml", "train: {seed: 3}\n")
    for recipe in RECIPES:
        own = recipe().train
        for given in (["--config", file], ["--train.seed", "3"]):
            assert parse_config(recipe, given).train == dataclasses.replace(own, seed=3)
    assert len({recipe().train.output_dir for recipe in RECIPES}) == len(RECIPES)


def test_numbers_of_numpy_are_read_as_plain_ones() -> None:
    train = {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "resume": np.bool_(True)}
    cfg = read_settings(LoraRecipe, {"train": train, "lora": {"targets": np.str_("all-linear")}})
    assert (cfg.train.epochs, cfg.train.learning_rate, cfg.train.resume) == (3, 0.5, True)
    assert type(cfg.train.epochs) is int and type(cfg.train.learning_rate) is float


@pytest.mark.parametrize(
    "recipe", [HeadOnlyRecipe, BiasOnlyRecipe, IA3Recipe, LastNLayersRecipe, FullRecipe, AttentionHeadsRecipe]
)
def test_a_quantised_encoder_is_for_lora_alone(recipe: type, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["--model.quantization", "nf4"], recipe)
    assert message.startswith("error: --model.quantization: got nf4, must be none") and "recipes/lora.py" in message


@pytest.mark.parametrize("recipe", [LoraRecipe, IA3Recipe])
def test_an_adapter_for_random_weights_is_refused(recipe: type, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["--model.pretrained", "false"], recipe)
    assert message.startswith("error: --model.pretrained: got False, must be true") and "recipes/full.py" in message


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        (["--model.quantization", "int8"], "bitsandbytes"),
        (["--train.optimizer", "adamw_8bit"], "bitsandbytes"),
        (["--train.log_with", "[tensorboard, wandb]"], "wandb"),
    ],
)
def test_a_missing_package_is_told_before_any_work(
    setting: list[str], package: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft_audio.errors.find_spec", lambda name: None if name == package else object())
    message = refusal(capsys, setting)
    assert f"while {package} is not installed. Try pip install {package}." in message
    monkeypatch.setattr("peft_audio.errors.find_spec", lambda name: object())
    parse_config(LoraRecipe, setting)


def test_a_setting_of_an_earlier_version_is_converted_in_files_and_named_as_a_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(capsys, ["--augment.mask_time_frames", "5"])
    assert "--augment.mask_time_frames: is now --augment.mask_time_ms; 1 there is 20 here" in message
    old = "augment: {preset: light, mask_time_frames: 5}\n"
    augment = parse_config(LoraRecipe, ["--config", write(tmp_path / "old.yaml", old)]).augment
    assert (augment.preset, augment.mask_time_ms) == ("light", 100)
    assert dotted(old) == {"augment.preset": "light", "augment.mask_time_ms": 100}
    arms = "own_arms: {masked: {recipe: lora, flags: {augment.mask_time_frames: 5}}}\narms: [masked, majority]\n"
    file = write(tmp_path / "arms.yaml", arms + "reference: masked\n")
    compared = parse_config(CompareRecipe, ["--config", file])
    assert compared.own_arms["masked"].flags == {"augment.mask_time_ms": 100}


@pytest.mark.parametrize("given", [["--lora.r", "4"], ["--lora.rank", "4"], ["--config", "YAML"]])
def test_a_setting_of_another_recipe_names_that_recipe(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "of-lora.yaml", "lora: {r: 4}\n")
    message = refusal(capsys, [file if word == "YAML" else word for word in given], FullRecipe)
    assert "no such setting here; it belongs to recipes/lora.py" in message


def test_broken_yaml_is_told_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, ["--config", write(tmp_path / "run.yaml", "train:\n  epochs: 3\n  rates: [1,\n")])
    assert re.search(r"run.yaml is not plain YAML \(line \d: .+\); correct it\.$", message)
