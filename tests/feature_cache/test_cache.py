"""Training from what was kept against training from the recordings; what is kept is used only where it is right."""

from __future__ import annotations

import ast
import dataclasses
import errno
import functools
import json
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.cuts import ENDS, EVERY
from helpers.forks import start_python
from helpers.matrix import encoders_by_strategies
from helpers.recipe_runs import free_port
from helpers.tiny_encoders import ENCODERS, save_encoder
from helpers.tones import write_tone

from peft_audio import cli
from peft_audio.config import AugmentConfig, DataConfig, ModelConfig, PrefixCacheConfig, Recipe, TrainConfig
from peft_audio.data.loaders import Loaders, make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.encoders.loading import load_classifier, load_extractor
from peft_audio.encoders.wav2vec2 import WAV2VEC2
from peft_audio.errors import UserError
from peft_audio.feature_cache import cache as prefix_cache
from peft_audio.feature_cache.cache import cache_frozen_prefix
from peft_audio.feature_cache.store import Store, clear_stores, fill_lock, make_room, open_store, read_table
from peft_audio.strategies.base import Trainable
from peft_audio.training.hardware import make_accelerator
from peft_audio.training.loop import Result, train
from peft_audio.training.tracking import Log

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_encoder(folder / str(i), config) for i, (name, config) in enumerate(ENCODERS.items())}


@pytest.fixture(autouse=True)
def _fresh_accelerator_state() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def settings(tone_folder: Path, bases: dict[str, Path], tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe on 24 tones, 15 to train on, with sections as keywords; 4 epochs of 5 steps."""

    def make(family: str = "wav2vec2-base", **sections: dict[str, Any]) -> Recipe:
        return Recipe(
            data=DataConfig(**{"source": str(tone_folder)} | sections.get("data", {})),
            model=ModelConfig(**{"name": str(bases[family])} | sections.get("model", {})),
            augment=AugmentConfig(**sections.get("augment", {})),
            prefix_cache=PrefixCacheConfig(**{"folder": str(tmp_path / "kept")} | sections.get("prefix_cache", {})),
            train=TrainConfig(
                **{"epochs": 4, "batch_size": 3, "learning_rate": 1e-2, "mixed_precision": "no"}
                | sections.get("train", {})
            ),
        )

    return make


@dataclasses.dataclass
class Ready:
    """A recipe's parts up to the training."""

    model: Any
    trained: Trainable
    loaders: Loaders
    plain: Loaders
    cfg: Recipe
    accelerator: Any

    def train(self, log: Path) -> tuple[Result, list[dict[str, Any]]]:
        log.unlink(missing_ok=True)
        found = train(self.model, self.trained, self.loaders, self.cfg.train, self.accelerator, Log(log))
        return found, [json.loads(line) for line in log.read_text().splitlines()]


# Tests read the same clips many times; those that change them write others.
divided = functools.cache(load_splits)


def ready(cfg: Recipe, strategy: str = "lora") -> Ready:
    accelerator = make_accelerator(cfg.train)
    splits = divided(cfg.data)
    model = load_classifier(cfg.model, splits.labels)
    plain = make_loaders(splits, load_extractor(cfg.model), model.config, cfg, accelerator)
    torch.manual_seed(1)
    model, trained = EVERY[strategy](model)
    model, loaders = cache_frozen_prefix(model, trained, plain, cfg, accelerator)
    return Ready(model, trained, loaders, plain, cfg, accelerator)


def curve(cfg: Recipe, strategy: str, log: Path) -> tuple[list[float], Ready]:
    """The losses of all steps and validations."""
    parts = ready(cfg, strategy)
    lines = parts.train(log)[1]
    AcceleratorState._reset_state(reset_partial_state=True)
    return [line.get("loss", line.get("validation_loss")) for line in lines], parts


def never(cfg: Recipe) -> Recipe:
    return replace(cfg, prefix_cache=replace(cfg.prefix_cache, use="never"))


@pytest.mark.parametrize(
    ("family", "strategy"),
    encoders_by_strategies(
        ENCODERS, ["head_only", "bias_only", "last_n_layers", "lora", "ia3", "attention_heads", "full"]
    ),
)
def test_loss_curves_are_those_of_the_plain_path(
    settings: Callable[..., Recipe], tmp_path: Path, strategy: str, family: str
) -> None:
    cfg = settings(family, train={"max_steps": 20})
    kept, parts = curve(cfg, strategy, tmp_path / "kept.jsonl")
    (cut,) = (cut for cut in WAV2VEC2.cuts(ENCODERS[family]) if cut == ENDS[strategy])
    assert parts.loaders.prefix.cached == str(cut) and parts.loaders.prefix.clips > 15
    plain, parts = curve(never(cfg), strategy, tmp_path / "plain.jsonl")
    assert not parts.loaders.prefix.cached
    assert len(kept) == len(plain) == 24
    np.testing.assert_allclose(kept, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "sections"),
    [
        ("last_n_layers", {"augment": {"preset": "speech"}, "prefix_cache": {"views": 2}}),
        ("lora", {"data": {"max_seconds": 0.25}, "prefix_cache": {"views": 3}}),
        ("lora", {"augment": {"mask_time_share": 0.3, "mask_time_ms": 40.0}}),
        ("ia3", {"augment": {"mask_time_share": 0.3}, "data": {"max_seconds": 0.2}, "prefix_cache": {"views": 2}}),
        ("head_only", {"model": {"layer_weighted_sum": True}}),
        ("head_only", {"model": {"head_dropout": 0.2}}),
        ("last_n_layers", {"data": {"window_seconds": 0.2}}),
        ("lora", {"train": {"gradient_accumulation_steps": 2, "class_weights": "balanced"}}),
        ("lora", {"train": {"batch_seconds": 1.0}}),
        ("lora", {"prefix_cache": {"use": "always"}, "train": {"max_steps": 3}}),
    ],
)  # fmt: skip
def test_loss_curves_are_the_same_whatever_else_is_set(
    settings: Callable[..., Recipe], tmp_path: Path, strategy: str, sections: dict[str, dict[str, Any]]
) -> None:
    cfg = settings(**sections)
    kept, parts = curve(cfg, strategy, tmp_path / "kept.jsonl")
    assert parts.loaders.train is not parts.plain.train and parts.loaders.validation is not parts.plain.validation
    plain, _ = curve(never(cfg), strategy, tmp_path / "plain.jsonl")
    np.testing.assert_allclose(kept, plain, atol=1e-4)


@pytest.mark.parametrize(
    ("strategy", "sections", "words"),
    [
        ("lora", {"prefix_cache": {"use": "never"}}, "prefix_cache.use is never"),
        ("full, train_cnn", {}, "the first layers train"),
        ("lora", {"train": {"frozen_dropout": True}}, "train.frozen_dropout"),
        ("lora", {"train": {"max_steps": 3}}, "would not save time: 0.5 passes over the training clips"),
        ("lora", {"augment": {"preset": "light"}, "prefix_cache": {"views": 4}}, "would not save time"),
        ("lora", {"prefix_cache": {"max_gigabytes": 1e-6}}, "more than prefix_cache.max_gigabytes allows"),
    ],
)
def test_plain_path_is_taken_and_the_reason_told(
    settings: Callable[..., Recipe],
    capsys: pytest.CaptureFixture[str],
    strategy: str,
    sections: dict[str, dict[str, Any]],
    words: str,
) -> None:
    parts = ready(settings(**sections), strategy)
    assert words in parts.loaders.prefix.reason and not parts.loaders.prefix.cached
    assert f"prefix cache: not used: {parts.loaders.prefix.reason}" in capsys.readouterr().out
    assert replace(parts.loaders, prefix=parts.plain.prefix) == parts.plain


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"augment": {"preset": "light"}}, "augmented differently"),
        ({"data": {"max_seconds": 0.3}}, "cropped differently"),
    ],
)
def test_validation_alone_is_kept_where_training_hears_something_new(
    settings: Callable[..., Recipe], capsys: pytest.CaptureFixture[str], sections: dict[str, Any], words: str
) -> None:
    parts = ready(settings(**sections))
    assert parts.loaders.train is parts.plain.train and parts.loaders.validation is not parts.plain.validation
    assert words in parts.loaders.prefix.reason and words in capsys.readouterr().out


def features(folder: Path) -> Path:
    (found,) = folder.rglob("*.features")
    return found


def test_second_run_reuses_it_and_carries_its_cost(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    first = ready(settings()).loaders.prefix
    written = features(tmp_path / "kept").stat().st_mtime_ns
    again = ready(settings(train={"seed": 3, "learning_rate": 1e-2}), "ia3").loaders.prefix
    assert again == replace(first, reused=True) and first.seconds > 0 and not first.reused
    assert features(tmp_path / "kept").stat().st_mtime_ns == written
    assert first.bytes == features(tmp_path / "kept").stat().st_size
    # A part of the clips costs a part of it.
    fewer = ready(settings(data={"max_train_clips": 6})).loaders.prefix
    assert fewer.reused and fewer.seconds == pytest.approx(first.seconds * fewer.clips / first.clips)


def test_clips_that_are_missing_are_added(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    ready(settings(data={"max_train_clips": 6}))
    more = ready(settings()).loaders.prefix
    assert not more.reused and len(list((tmp_path / "kept").rglob("*.features"))) == 2
    assert more == replace(ready(settings()).loaders.prefix, reused=False)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"layer_weighted_sum": True}},
        {"prefix_cache": {"dtype": "bfloat16"}},
        {"train": {"mixed_precision": "bf16"}},
        {"family": "hubert-base"},
    ],
)
def test_another_setting_is_another_key(
    settings: Callable[..., Recipe], tmp_path: Path, sections: dict[str, Any]
) -> None:
    ready(settings())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not ready(settings(**sections)).loaders.prefix.reused
    assert len(list((tmp_path / "kept").glob("*/about.json"))) == 2


def test_more_of_a_clip_is_another_clip(settings: Callable[..., Recipe]) -> None:
    """Validation hears up to `max_eval_seconds`, however little of a clip training takes."""
    heard = [{"max_seconds": 0.2, "max_eval_seconds": seconds} for seconds in (0.3, 0.35, 0.3)]
    assert [ready(settings(data=each)).loaders.prefix.reused for each in heard] == [False, False, True]


def test_other_weights_are_another_key(settings: Callable[..., Recipe], bases: dict[str, Path], tmp_path: Path) -> None:
    ready(settings())
    cfg = settings()
    model = load_classifier(cfg.model, ["a", "b"])
    with torch.no_grad():
        model.wav2vec2.feature_projection.projection.bias[0] += 1e-6
    model.wav2vec2.save_pretrained(tmp_path / "other")
    load_extractor(cfg.model).save_pretrained(tmp_path / "other")
    assert not ready(settings(model={"name": str(tmp_path / "other")})).loaders.prefix.reused


def test_other_bytes_of_a_clip_are_another_clip(
    settings: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        write_tone(tmp_path / "own" / "a" / f"{i}.wav", 200 + i, 0.3, seed=i)
        write_tone(tmp_path / "own" / "b" / f"{i}.wav", 900 + i, 0.3, seed=i)
    source = {"data": {"source": str(tmp_path / "own")}}
    monkeypatch.setattr(sys.modules[__name__], "divided", load_splits)
    assert not ready(settings(**source)).loaders.prefix.reused and ready(settings(**source)).loaders.prefix.reused
    for path in (tmp_path / "own" / "a").iterdir():
        write_tone(path, 500, 0.3, seed=99)
    assert not ready(settings(**source)).loaders.prefix.reused


def poison(path: Path, store_folder: Path, honest: bool) -> None:
    """Other numbers in the place of all features; `honest`: with a table that says they are what was written."""
    stored = np.fromfile(path, np.float32)
    stored[:] = stored[::-1] + 1
    stored.tofile(path)
    if honest:
        import zlib

        (table_file,) = store_folder.rglob("*.parquet")
        table, content = pd.read_parquet(table_file), path.read_bytes()
        width = len(content) // int(table["rows"].sum())
        table["crc32"] = [
            zlib.crc32(content[at : at + rows * width]) for at, rows in zip(table["at"], table["rows"], strict=True)
        ]
        table.to_parquet(table_file)


@pytest.mark.parametrize("honest", [False, True])
def test_poisoned_features_are_made_again(
    settings: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str], honest: bool
) -> None:
    expected, _ = curve(settings(), "lora", tmp_path / "log.jsonl")
    poison(features(tmp_path / "kept"), tmp_path / "kept", honest)
    again, parts = curve(settings(), "lora", tmp_path / "log.jsonl")
    assert not parts.loaders.prefix.reused and again == expected
    assert "does not match the output of the model" in capsys.readouterr().out


def test_a_clip_that_is_damaged_stops_the_run_that_reads_it(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    ready(settings())
    path = features(tmp_path / "kept")
    (table_file,) = (tmp_path / "kept").rglob("*.parquet")
    parts = ready(settings())
    content = bytearray(path.read_bytes())
    for at in pd.read_parquet(table_file)["at"]:
        content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged; clear it with peft-audio cache --clear"):
        parts.train(tmp_path / "log.jsonl")


def test_files_of_a_killed_fill_count_for_nothing(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    ready(settings())
    path = features(tmp_path / "kept")
    (path.parent / "0007-1.partial").write_bytes(b"half")
    path.write_bytes(path.read_bytes()[:-4])
    again = ready(settings()).loaders.prefix
    assert not again.reused and not list(path.parent.glob("*.partial"))
    assert ready(settings()).loaders.prefix.reused


def test_what_was_not_used_for_longest_goes_first(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    root = tmp_path / "kept"
    size = ready(settings()).loaders.prefix.bytes
    first = next(root.glob("*/about.json")).parent
    ready(settings("hubert-base"))
    # Each alone fits, and two, with their tables; three do not.
    three = (2 * size + 30_000) / 1e9
    ready(settings("wav2vec2-large, XLS-R", prefix_cache={"max_gigabytes": three}))
    assert not first.exists() and len(list(root.glob("*/about.json"))) == 2


def test_bfloat16_halves_it_and_is_close(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    exact = ready(settings())
    half = ready(settings(prefix_cache={"dtype": "bfloat16"}))
    assert 2 * half.loaders.prefix.bytes == exact.loaders.prefix.bytes
    for one, other in zip(exact.loaders.validation, half.loaders.validation, strict=True):
        torch.testing.assert_close(one["inputs"]["features"], other["inputs"]["features"], rtol=2**-8, atol=0)


def test_features_that_were_computed_in_16_bits_are_reused(settings: Callable[..., Recipe]) -> None:
    sections = {"train": {"mixed_precision": "bf16"}, "prefix_cache": {"dtype": "float32"}}
    assert not ready(settings(**sections)).loaders.prefix.reused and ready(settings(**sections)).loaders.prefix.reused


def test_what_is_being_filled_is_not_cleared(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    root = tmp_path / "kept"
    prefix = ready(settings()).loaders.prefix
    (folder,) = (about.parent for about in root.glob("*/about.json"))
    with fill_lock(Store(folder, {}, 32, "float32"), print):
        assert clear_stores(root) == 0 and make_room(root, open_store(root, {}, 1, "float32"), 10, prefix.bytes)
    assert features(root).exists() and clear_stores(root) > prefix.bytes and not folder.exists()


def test_a_folder_that_cannot_be_used_costs_no_run(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    parts = ready(settings())
    assert "File exists" in parts.loaders.prefix.reason and parts.loaders.train is parts.plain.train


@pytest.mark.parametrize("failing_rank", [0, 1])
def test_a_full_disk_in_one_of_two_processes_lets_both_go_on_without_the_cache(
    failing_rank: int, settings: Callable[..., Recipe], tmp_path: Path
) -> None:
    cfg, port = settings(), free_port()
    # Forked, so that nothing is imported again.
    fork = multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [fork.Process(target=meet, args=(rank, failing_rank, port, cfg, tmp_path)) for rank in range(2)]
        for child in children:
            child.start()
    for child in children:
        child.join(60)
    waiting = [child for child in children if child.exitcode is None]
    for child in waiting:
        child.kill()
    assert not waiting, "one process waits for the other"
    reasons = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert reasons == [f"{tmp_path}: No space left on device"] * 2
    assert not (tmp_path / "filled-1").exists(), "the second process fills what the first one could not"


def meet(rank: int, failing_rank: int, port: str, cfg: Recipe, folder: Path) -> None:
    """Prepare a run as one of two processes; the disk of one is full."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    def fill(*args: Any) -> None:
        (folder / f"filled-{rank}").touch()
        write_features(*args)

    write_features = prefix_cache.write_features
    prefix_cache.write_features = fail if rank == failing_rank else fill
    if rank == failing_rank:
        prefix_cache.read_table = fail
    parts = ready(cfg)
    (count,) = parts.accelerator.reduce(torch.ones(1))
    assert count == 2 and parts.loaders.train is parts.plain.train
    (folder / f"{rank}.txt").write_text(parts.loaders.prefix.reason)


# What `fill` imports without an effect on the features of a clip: names of modules, or of folders.
DECIDES_NO_FEATURES = {"config", "strategies", "tasks", "training", "errors", "files", "progress", "text"}
# They choose the clips, their labels and their order. What is heard of a clip is part of its name.
DECIDES_NO_FEATURES |= {"data/clip_table", "data/folder", "data/hub_dataset", "data/loaders", "data/manifest"}
DECIDES_NO_FEATURES |= {"data/sampler", "data/scan", "data/sources", "data/splits", "data/divide", "data/streaming"}
DECIDES_NO_FEATURES |= {"data/layouts", "data/recording_files", "data/segments", "data/tables", "data/training_audio"}
DECIDES_NO_FEATURES |= {"data/windows"}


def test_a_change_in_each_module_that_decides_features_makes_another_key() -> None:
    package = Path(prefix_cache.__file__).parents[1]
    modules, left = set[Path](), {package / "feature_cache" / "fill.py"}
    while left:
        modules |= left
        left = {found for file in left for found in imported_by(file, package)} - modules
    assert {package / "encoders" / "loading.py", package / "audio" / "decoding.py"} <= modules
    unknown = {
        name
        for name in (
            file.relative_to(package).with_suffix("").as_posix() for file in modules - {*prefix_cache._source_files()}
        )
        if not {name, name.partition("/")[0]} & DECIDES_NO_FEATURES
    }
    assert not unknown, "add them to CODE in feature_cache/cache.py, or above if they decide no features"


def imported_by(file: Path, package: Path) -> set[Path]:
    """Find the modules of the package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peft_audio."):
            names |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    files = {package.parent / f"{name.replace('.', '/')}.py" for name in names}
    return {each for each in files if each.is_file()}


@pytest.mark.slow
def test_noises_belong_to_what_is_heard(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    write_tone(tmp_path / "noises" / "hum.wav", 100, 0.5)
    noisy = {"augment": {"noise_folder": str(tmp_path / "noises")}, "prefix_cache": {"views": 2}}
    first = ready(settings(**noisy)).loaders.prefix
    assert not first.reused and ready(settings(**noisy)).loaders.prefix.reused
    # What SpecAugment hides of it comes behind.
    masked = {**noisy, "augment": noisy["augment"] | {"mask_feature_share": 0.2}}
    assert ready(settings(**masked), "full").loaders.prefix.clips == first.clips
    write_tone(tmp_path / "noises" / "hiss.wav", 5000, 0.5)
    assert not ready(settings(**noisy)).loaders.prefix.reused


def test_two_processes_fill_it_once(settings: Callable[..., Recipe], tmp_path: Path) -> None:
    cfg = settings()
    flags = ["--data.source", cfg.data.source, "--model.name", cfg.model.name, "--train.evaluate_test", "false"]
    flags += ["--train.epochs", "2", "--train.verify_adapter", "false", "--prefix_cache.folder", str(tmp_path / "kept")]
    runs = [
        start_python(
            ROOT / "recipes" / "lora.py", *flags, "--train.output_dir", tmp_path / name, stdout=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    said = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["prefix_seconds"] == reports[1]["prefix_seconds"] > 0
    assert sum("prefix cache: filled" in words for words in said) == 1
    features(tmp_path / "kept")
    losses = [
        [json.loads(line).get("loss") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]


def test_command_shows_and_clears(
    settings: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(tmp_path / "kept")
    ready(settings())
    capsys.readouterr()
    assert cli.main(["cache", "--folder", root]) == 0
    said = capsys.readouterr().out
    assert "wav2vec2" in said and "before the transformer's first layer" in said and root in said
    assert cli.main(["cache", "--folder", root, "--clear"]) == 0
    assert re.search(r"0\.\d MB deleted", capsys.readouterr().out)
    assert not list((tmp_path / "kept").glob("*/about.json")) and not ready(settings()).loaders.prefix.reused


def test_store_of_a_key_is_found_by_all_that_it_says() -> None:
    folder = Path("root")
    store = open_store(folder, {"a": 1}, 4, "float32")
    assert store.folder == open_store(folder, {"a": 1}, 4, "float32").folder
    others = [open_store(folder, {"a": 2}, 4, "float32"), open_store(folder, {"a": 1}, 4, "bfloat16")]
    assert store.folder not in [other.folder for other in others] and read_table(store).empty
