"""Damaged files, and settings and collections of every kind: each works or is refused in words."""

from __future__ import annotations

import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from robustness.fuzz import Found, prepare, try_one, watch
from robustness.fuzz_mutations import ODD_TEXTS, ODD_VALUES, mutated_json

from peft_audio.adapters.files import may_hang
from peft_audio.comparison.settings import RECIPES, CompareRecipe
from peft_audio.config import DataConfig, parse, parse_config, to_yaml
from peft_audio.data.clip_table import SPLITS, make_clips
from peft_audio.data.divide import divide, leaking_groups
from peft_audio.errors import UserError

INPUTS = {"audio": 200, "yaml": 12, "manifests": 30, "json": 50, "safetensors": 50}
ROUNDS = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module", autouse=True)
def _parsers_are_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parse, "make_parser", cache(parse.make_parser))
        yield


@pytest.mark.parametrize(
    ("target", "inputs"),
    [*((target, 10) for target in INPUTS), *(pytest.param(*more, marks=pytest.mark.slow) for more in INPUTS.items())],
)
def test_damaged_inputs_work_or_are_refused(
    target: str, inputs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(target, tmp_path)
    monkeypatch.chdir(tmp_path / "empty")
    found = {number: try_one(target, 1, number, tmp_path) for number in range(inputs)}
    assert {number: said for number, said in found.items() if said not in ("accepted", "refused")} == {}
    assert "refused" in found.values() or inputs < INPUTS[target]


def test_an_input_depends_on_its_number_alone() -> None:
    before = repr(ODD_VALUES)
    for number in range(500):
        mutated_json(random.Random(number), {"a": [1, {"b": 2}], "c": 3})
    assert repr(ODD_VALUES) == before


@pytest.mark.parametrize(
    ("last_words", "told"),
    [("os.abort()", "DIED with -6"), ("time.sleep(60)", "HUNG for 1 s"), ("sys.exit(0)", "")],
)
def test_an_input_that_kills_or_stops_its_process_is_known(last_words: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    journal = """
import os, sys, time
file = open("journal.jsonl", "w")
file.write('{"input": 6}\\n{"input": 6, "outcome": "refused", "seconds": 0.5}\\n{"input": 7}\\n')
file.flush()
"""
    found = Found()
    code = f"import os; os.chdir({str(tmp_path)!r})" + journal + last_words
    assert watch([sys.executable, "-c", code], tmp_path, found, hang_seconds=1.0).strip() == told
    assert (found.tried, found.refused, found.last, found.slowest) == (2, 1, 7, 0.5)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a setting of this type: right ones, and wrong ones of its kind."""
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.lists(values(get_args(hint)[0]), max_size=3)
    if get_origin(hint) is dict:
        return st.dictionaries(st.text(max_size=3), st.sampled_from(["train", "test", "lora", 1, {}]), max_size=2)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.integers(-2, 7) | st.integers(),
        float: st.floats(-0.1, 1.2) | st.floats() | st.integers(0, 3),
        str: st.text(max_size=8) | st.sampled_from(ODD_TEXTS[:-1]).filter(lambda text: len(text) < 100),
        type(None): st.none(),
    }
    return plain[hint] if hint in plain else st.one_of(*map(values, get_args(hint)))


def any_value(hint: Any) -> st.SearchStrategy[Any]:
    wrong = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(0, 2))
    return st.one_of(values(hint), values(hint), values(hint), wrong)


@st.composite
def some_settings(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    """A recipe, and one to three of its settings."""
    recipe = draw(st.sampled_from([*RECIPES.values(), CompareRecipe]))
    kinds, given = get_type_hints(recipe), {}
    for _ in range(draw(st.sampled_from([1, 1, 1, 3]))):
        section = draw(st.sampled_from([field.name for field in fields(recipe)]))
        if is_dataclass(kinds[section]):
            name, hint = draw(st.sampled_from(sorted(get_type_hints(kinds[section]).items(), key=lambda item: item[0])))
            given.setdefault(section, {})[name] = draw(any_value(hint))
        elif section != "own_arms":  # its arms are records, of which other tests have wrong ones
            given[section] = draw(any_value(kinds[section]))
    return recipe, given


@pytest.mark.slow
@given(some=some_settings())
@ROUNDS
def test_any_settings_are_read_back_or_refused_by_name(
    some: tuple[type, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, chosen = some
    file = tmp_path / "settings.yaml"
    file.write_bytes(yaml.safe_dump(chosen, allow_unicode=True).encode("utf-8", "surrogatepass"))
    try:
        cfg = parse_config(recipe, ["--config", str(file)])
    except SystemExit as stop:
        said = capsys.readouterr().err
        assert stop.code == 2 and said.startswith("error: --") and said.count("\n") == 1, said
        named = said.removeprefix("error: --").partition(":")[0]
        assert named in {*parse.flags_of(recipe), "config"}, said
        return
    file.write_text(to_yaml(cfg), encoding="utf-8")
    assert parse_config(recipe, ["--config", str(file)]) == cfg


@st.composite
def some_clips(draw: st.DrawFn) -> tuple[dict[str, Any], DataConfig]:
    """A collection of a few classes, perhaps with groups or splits of its own, and how to divide it."""
    names = draw(st.lists(st.text(max_size=2) | st.integers(0, 12).map(str), min_size=1, max_size=8, unique=True))
    groups = st.sampled_from(names) if draw(st.booleans()) else st.just("")
    given = st.sampled_from(SPLITS[: draw(st.integers(1, 3))]) if draw(st.integers(0, 4)) == 0 else st.just("")
    rows = draw(st.lists(st.tuples(st.sampled_from("abc"), groups, given), max_size=40))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("label", "group", "split"))}
    shares = {"test_share": draw(st.floats(0.01, 0.5)), "validation_share": draw(st.floats(0.01, 0.49))}
    folds = draw(st.integers(3, 6))
    if draw(st.booleans()):
        shares |= {"fold": draw(st.integers(0, folds - 1)), "num_folds": folds}
    seed, on_test = draw(st.integers(0, 9)), draw(st.booleans())
    return columns, DataConfig(**shares, split_seed=seed, validate_on_test=on_test)


@pytest.mark.slow
@given(some=some_clips(), shuffle=st.integers(0, 99))
@ROUNDS
def test_any_collection_is_divided_once_for_all_or_refused(
    some: tuple[dict[str, Any], DataConfig], shuffle: int
) -> None:
    columns, cfg = some
    clips = make_clips(columns | {"id": [f"{i:02}" for i in range(len(columns["label"]))]})
    try:
        found = divide(clips, cfg)
    except UserError:
        return
    assert sorted(found["id"]) == sorted(clips["id"]) and set(found["split"]) <= set(SPLITS)
    if not any(columns["split"]):
        wanted = {"train", "test"} | (set() if cfg.validate_on_test else {"validation"})
        assert set(found["split"]) == wanted and leaking_groups(found) == {}
    by_id = found.set_index("id")["split"]
    again = divide(clips.sample(frac=1, random_state=shuffle), replace(cfg)).set_index("id")["split"]
    assert by_id.equals(again.loc[by_id.index])


def larger_patterns(smaller: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    in_turn = st.lists(smaller, min_size=1, max_size=4).map("".join)
    either = st.lists(smaller, min_size=2, max_size=3).map("|".join).map("({})".format)
    repeated = st.tuples(smaller, st.sampled_from(["*", "+", "?", "*?", "{2,9}"])).map(
        lambda two: "(?:{}){}".format(*two)
    )
    return st.one_of(in_turn, either, repeated, smaller.map("(?={})".format))


@given(pattern=st.recursive(st.sampled_from(["a", ".", "a*", ".+", "a?", r"\w*", "[ab]+", "b"]), larger_patterns))
@settings(ROUNDS, max_examples=300)
def test_patterns_that_are_let_through_end(pattern: str) -> None:
    if not may_hang(pattern):
        began = time.process_time()
        for name in ("a" * 80 + "!", "ab" * 40 + "!"):
            re.fullmatch(pattern, name)
        assert time.process_time() - began < 1  # a hanging one takes days


@pytest.mark.parametrize(
    "pattern",
    [
        "wav2vec2.encoder.layers.0.attention.q_proj",
        r".*\.(q_proj|v_proj)$",
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
        r"(.*\.)?(.*layers.*)$",
        r"^.*\.encoder\.layers\.\d+\..*(q|k|v|out)_proj$",
    ],
)
def test_patterns_that_people_use_are_let_through(pattern: str) -> None:
    assert not may_hang(pattern)
