"""An adapter's own files, read without trust: JSON as plain values, weights from safetensors alone."""

from __future__ import annotations

import math
import re
from pathlib import Path
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from safetensors import SafetensorError, safe_open

from peft_audio.errors import UserError
from peft_audio.files import parse_json

# The longest name of a module is shorter.
LENGTH = 100
# Three `.*` in a row, and two things that may be left out.
MOST_WAYS = 4 * (LENGTH + 1) ** 3
_REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


def may_hang(pattern: str) -> bool:
    """Check whether matching a pattern can take too long; true also for text that is no pattern."""
    try:
        return _ways(parser.parse(pattern)) > MOST_WAYS
    except (re.error, RecursionError, OverflowError):
        return True


def _ways(items: Any) -> float:
    """In how many ways, at most, a sequence can be laid along a name, and so be tried in vain."""
    return math.prod(_ways_of(kind, what) for kind, what in items)


def _ways_of(kind: Any, what: Any) -> float:
    ways: float = 1
    if kind in _REPEATS:
        least, most, inner = what
        repeats = min(int(most), LENGTH) - min(least, LENGTH) + 1
        ways = repeats * _ways(inner) if most <= 1 or _is_one_character(inner) else math.inf
    elif kind is kinds.BRANCH:
        tried = [_ways(branch) for branch in what[1]]
        # Where the first letters differ, only one is tried to its end.
        begins = {tuple(branch[0]) for branch in what[1] if len(branch) and branch[0][0] is kinds.LITERAL}
        ways = max(tried) if len(begins) == len(tried) else sum(tried)
    elif kind in (kinds.SUBPATTERN, kinds.ASSERT, kinds.ASSERT_NOT):
        ways = _ways(what[-1])
    elif kind is kinds.ATOMIC_GROUP:
        ways = _ways(what)
    elif kind in (kinds.GROUPREF, kinds.GROUPREF_EXISTS):
        ways = math.inf  # in no adapter that we know
    return ways


def _is_one_character(items: Any) -> bool:
    return len(items) == 1 and items[0][0] in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN)


ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WHOLE_CONFIG = "config.json"
WHOLE_WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
TRAINED_CLIPS = "trained_clips.bin"
# What a config may say where nothing of that rank is saved.
LEAST_RANK = 64
# PEFT's documents have 4 and 16 rounds for PiSSA, and 1 for LoftQ.
FEW_ROUNDS = {str(rounds) for rounds in range(1, 33)}
# What PEFT takes for regular expressions: text, lists, and the keys of objects.
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
LISTED_PATTERNS = ("modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: It is missing, cannot be read, or holds something else.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is missing"
        raise UserError(f"{path} {what}; get the adapter again.")
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); get the adapter again.") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); get the adapter again.")
    return found


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Read the settings of an adapter that PEFT reads.

    Raises:
        UserError: It is missing or damaged, names a module for PEFT to import, or would keep PEFT at work without end.
    """
    path = folder / ADAPTER_CONFIG
    found = read_object(path)
    if not isinstance(found.get("peft_type"), str):
        raise UserError(f"{path}: peft_type is {found.get('peft_type')!r}, must be a kind that PEFT knows, as LORA.")
    if found.get("megatron_config"):
        raise UserError(f"{path}: megatron_config makes PEFT import a module of the file's choosing; take it out.")
    _refuse_endless_work(path, found)
    return found


def _refuse_endless_work(path: Path, settings: dict[str, Any]) -> None:
    for name in (*PATTERNS, *LISTED_PATTERNS):
        value = settings.get(name)
        listed = value if name in LISTED_PATTERNS and isinstance(value, (list, dict)) else [value]
        for pattern in listed:
            if isinstance(pattern, str) and may_hang(pattern):
                words = f"{name} has no pattern, or one that may take days to match: {pattern[:60]!r}; name modules."
                raise UserError(f"{path}: {words}")
    loftq = settings.get("loftq_config")
    asked = {
        "init_lora_weights": str(settings.get("init_lora_weights")).partition("_niter_")[2],
        "loftq_config": loftq.get("loftq_iter", 1) if isinstance(loftq, dict) else 1,
    }
    for name, rounds in asked.items():
        if str(rounds) and str(rounds) not in FEW_ROUNDS:
            words = f"{name} asks for {str(rounds)[:20]} rounds at every loading; at most {len(FEW_ROUNDS)} are done."
            raise UserError(f"{path}: {words}")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight in a file.

    Raises:
        UserError: There is no such file, or it is cut off or no safetensors file.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "is missing"
        raise UserError(f"{path} {what}; no other file is read for weights, pickles least of all.")
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}; get the adapter again.") from error


def refuse_excessive_rank(folder: Path, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a rank for which PEFT would take all of the memory before it sees that the file holds no such weights.

    Raises:
        UserError: It is far above what the weights have.
    """
    patterns = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    largest = max([LEAST_RANK, *(side for shape in shapes.values() for side in shape)])
    for rank in ranks:
        if isinstance(rank, int) and rank > largest:
            raise UserError(f"{folder / ADAPTER_CONFIG}: r is {rank}, but no weight in the file has so many rows.")


def not_finite(path: Path) -> list[str]:
    """Weights with a NaN or an infinity in them.

    Args:
        path: A file that `stored_shapes` could read.

    Raises:
        UserError: A weight is of a kind that torch does not take.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            return [name for name in weights.keys() if not weights.get_tensor(name).float().isfinite().all()]  # noqa: SIM118
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}; get the adapter again.") from error
