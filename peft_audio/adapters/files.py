"""Read the files of untrusted adapters: JSON as plain values, weights only from safetensors."""

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

# Names of modules are shorter than this.
MAX_NAME_LENGTH = 100
# As many as three `.*` and two optional parts have.
MAX_MATCHES = 4 * (MAX_NAME_LENGTH + 1) ** 3
_REPEATS = (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT)


def may_hang(pattern: str) -> bool:
    """Return whether matching a regular expression can take too long; True if the text is not a regular expression."""
    try:
        return _matches_of_sequence(parser.parse(pattern)) > MAX_MATCHES
    except (re.error, RecursionError, OverflowError):
        return True


def _matches_of_sequence(items: Any) -> float:
    """Return an upper bound of the ways in which a sequence can match a name, each of which can be tried in vain."""
    return math.prod(_matches_of_item(kind, argument) for kind, argument in items)


def _matches_of_item(kind: Any, argument: Any) -> float:
    """Return an upper bound of the ways in which an item of a parsed expression can match a name."""
    matches: float = 1
    if kind in _REPEATS:
        least, most, inner = argument
        repeats = min(int(most), MAX_NAME_LENGTH) - min(least, MAX_NAME_LENGTH) + 1
        matches = repeats * _matches_of_sequence(inner) if most <= 1 or _is_one_character(inner) else math.inf
    elif kind is kinds.BRANCH:
        branches = [_matches_of_sequence(branch) for branch in argument[1]]
        # If the first letters differ, only one branch is tried to its end.
        starts = {tuple(branch[0]) for branch in argument[1] if len(branch) and branch[0][0] is kinds.LITERAL}
        matches = max(branches) if len(starts) == len(branches) else sum(branches)
    elif kind in (kinds.SUBPATTERN, kinds.ASSERT, kinds.ASSERT_NOT):
        matches = _matches_of_sequence(argument[-1])
    elif kind is kinds.ATOMIC_GROUP:
        matches = _matches_of_sequence(argument)
    elif kind in (kinds.GROUPREF, kinds.GROUPREF_EXISTS):
        matches = math.inf  # no known adapter has a back reference
    return matches


def _is_one_character(items: Any) -> bool:
    """Return whether a sequence matches exactly one character."""
    return len(items) == 1 and items[0][0] in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN)


ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
WHOLE_CONFIG = "config.json"
WHOLE_WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
TRAINED_CLIPS = "trained_clips.bin"
# Ranks up to this are allowed even if the file has no weights of that rank.
LEAST_RANK = 64
# The documentation of PEFT has 4 and 16 rounds for PiSSA, and 1 for LoftQ.
FEW_ROUNDS = {str(rounds) for rounds in range(1, 33)}
# Settings that PEFT interprets as regular expressions: text, lists, and the keys of objects.
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
LISTED_PATTERNS = ("modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        UserError: The file is missing, cannot be read, or does not hold an object.
    """
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "is missing"
        raise UserError(f"{path} {problem}; get the adapter again.")
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); get the adapter again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); get the adapter again.")
    return content


def read_peft_config(folder: Path) -> dict[str, Any]:
    """Read the PEFT config of an adapter.

    Raises:
        UserError: The file is missing or damaged, makes PEFT import a module, or makes PEFT compute almost without end.
    """
    path = folder / ADAPTER_CONFIG
    settings = read_object(path)
    if not isinstance(settings.get("peft_type"), str):
        kind = settings.get("peft_type")
        raise UserError(f"{path}: peft_type is {kind!r}, must be a type of PEFT, such as LORA.")
    if settings.get("megatron_config"):
        raise UserError(f"{path}: megatron_config makes PEFT import a module of the file's choosing; remove it.")
    _refuse_endless_work(path, settings)
    return settings


def _refuse_endless_work(path: Path, settings: dict[str, Any]) -> None:
    """Refuse settings whose patterns or initialisation can take days."""
    for name in (*PATTERNS, *LISTED_PATTERNS):
        value = settings.get(name)
        listed = value if name in LISTED_PATTERNS and isinstance(value, (list, dict)) else [value]
        for pattern in listed:
            if isinstance(pattern, str) and may_hang(pattern):
                problem = f"{name} holds no pattern, or one that can take days to match: {pattern[:60]!r}"
                raise UserError(f"{path}: {problem}; name modules.")
    loftq = settings.get("loftq_config")
    requested = {
        "init_lora_weights": str(settings.get("init_lora_weights")).partition("_niter_")[2],
        "loftq_config": loftq.get("loftq_iter", 1) if isinstance(loftq, dict) else 1,
    }
    for name, rounds in requested.items():
        if str(rounds) and str(rounds) not in FEW_ROUNDS:
            problem = f"{name} requests {str(rounds)[:20]} rounds at each load, expected at most {len(FEW_ROUNDS)}"
            raise UserError(f"{path}: {problem}. Lower it.")


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight in a file by name.

    Raises:
        UserError: The file does not exist, or is not an intact safetensors file.
    """
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "is missing"
        raise UserError(f"{path} {problem}; weights are not read from other files, such as pickles.")
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}; get the adapter again.") from error


def refuse_excessive_rank(folder: Path, settings: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse a rank that the weights do not have, because PEFT would allocate memory for it before it reads them.

    Raises:
        UserError: The rank is larger than each side of all weights.
    """
    patterns = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(patterns.values() if isinstance(patterns, dict) else ())]
    largest = max([LEAST_RANK, *(side for shape in shapes.values() for side in shape)])
    for rank in ranks:
        if isinstance(rank, int) and rank > largest:
            raise UserError(f"{folder / ADAPTER_CONFIG}: r is {rank}, but all weights in the file have fewer rows.")


def nonfinite_weights(path: Path) -> list[str]:
    """Return the names of weights that hold NaN or infinity.

    Args:
        path: File that `stored_shapes` can read.

    Raises:
        UserError: A weight has a type that torch does not read.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            names = weights.keys()
            return [name for name in names if not weights.get_tensor(name).float().isfinite().all()]
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}; get the adapter again.") from error
