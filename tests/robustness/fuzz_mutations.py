"""Damage for fuzz.py: to bytes, to lines of text, to values of JSON. Everything is drawn from the generator given."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

# Where counts, sizes and offsets of a header go wrong: signs, widths, one too many.
ODD_INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
ODD_INTEGERS += (2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
ODD_TEXTS = (
    "", " ", "\0", "a\0b", "\n", "\r", "a\n\nb", "\t", '"', "'", ",", ";", "#", "é", "e\u0301", "🙂",
    "\ud800", "\x1b[31m",
    "\u202e", "\u2028", "\ufeff", "a" * 5_000, "../../x", "/etc/hostname", "/dev/zero", "/proc/self/mem",
    "~", "~nobody/x",
    "-1", "1e309", "nan", "inf", "None", "null", "true", "{0}", "%s%n", "$HOME", "`id`", "<b>", "=1+1",
    "(a+)+$", r"(\w+\.?)+!", "[", "*",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (None, True, False, -1, 0, 1, 1.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"))
ODD_VALUES += (10**30, -(2**63), 10**400, [], {}, [[]], [None], {"": {}}, {"a": [1, "b"]}, [1] * 300, *ODD_TEXTS)
# As texts of the file: what no Python value can stand for.
ODD_JSON = ("[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 500 + "1" + "}" * 500, "9" * 5_000, "-Infinity", "1e999")
ODD_JSON += ("", "nul", '"\\ud800"', '{"a": 1, "a": 2}', "1" + "0" * 400, "0x10", "'a'", '"\\u0000"')
LAUGHS = ", ".join(f"&l{i} [{', '.join([f'*l{i - 1}' if i else 'ha'] * 9)}]" for i in range(10))
ODD_YAML = (
    *ODD_TEXTS, f"[{LAUGHS}]", "!!python/object/apply:os.mkdir [made-by-yaml]", "!!python/name:os.system", "&a [*a]",
    "*a", "&a {<<: *a}", "{<<: {epochs: 3}}", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    "!!timestamp 2001-12-14",
    "2001-12-14", "2001-99-99", "0o17", "0x1F", "1_000", "1:30:00", "190:20:30.15", ".nan", ".inf", "1e-999",
    "yes", "off",
    "? a", "|", ">", "@", "%YAML 9.9", "---", "...", "'", '"\\x"', "{a: b}", "[1, 2]", "[" * 3_000,
    "[" * 300 + "]" * 300,
    "!!int x", "!!float y", "!!str 1", "!!null z", "!unknown x", "config: x.yaml", "class_path: os.mkdir", "a: 1",
    "{class_path: os.mkdir, init_args: {path: x}}", "9" * 5_000, "train.epochs: 3", "null: 1", "[1]: 2", "{}: 1",
)  # fmt: skip


def mutated_bytes(rng: random.Random, content: bytes, header: int = 512, other: bytes = b"") -> bytes:
    """A few changes, most of them within the first bytes; `other` is a file to take a piece from."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8, 30))):
        within = min(len(data), header) if rng.random() < 0.8 else len(data)
        at = rng.randrange(within + 1)
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind in (2, 3):
            size, order = rng.choice(((1, ">"), (2, "<"), (2, ">"), (4, "<"), (4, ">"), (8, "<"), (8, ">")))
            number = rng.choice(ODD_INTEGERS) & (2 ** (8 * size) - 1)
            data[at : at + size] = struct.pack(f"{order}{'_BH_I___Q'[size]}", number)
        elif kind == 4:
            del data[at : at + rng.choice((1, 2, 4, 8, 100, len(data)))]
        elif kind == 5:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 50, 3_000)))
        elif kind == 6:
            piece = data[at : at + rng.choice((4, 16, 200))]
            put = rng.randrange(len(data) + 1)
            data[put : put + len(piece) * rng.randrange(2)] = piece
        else:
            begin = rng.randrange(len(other) + 1)
            piece = bytearray(other[begin : begin + rng.choice((8, 60, len(other) + 1))])
            data[at : at + len(piece)] = piece
    return bytes(data)


def mutated_lines(rng: random.Random, text: str, odd: tuple[str, ...]) -> str:
    """A few changes to lines and to the words in them; `odd` is what a word may become."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind < 4:
            words = list(re.finditer(r"[^\s,:\[\]{}]+", lines[at]))
            word = rng.choice(words[len(words) > 1 and rng.random() < 0.7 :]) if words else None
            begin, end = word.span() if word else (0, 0)
            lines[at] = lines[at][:begin] + rng.choice(odd) + lines[at][end:]
        elif kind == 4:
            del lines[at : at + rng.choice((1, 1, 5))]
            lines = lines or [""]
        elif kind == 5:
            lines.insert(rng.randrange(len(lines)), lines[at])
        elif kind == 6:
            lines[at] = rng.choice(("", " ", "  ", "\t", "- ", "? ", ": ")) + lines[at].strip()
        else:
            lines.insert(at, rng.choice(odd))
    return "\n".join(lines)


def mutated_json(rng: random.Random, value: Any) -> str:
    """JSON of a value with a few places changed: to another kind, an odd value, taken out, doubled, nested."""
    value = copy.deepcopy(value)
    raw = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return json.dumps(rng.choice(ODD_VALUES))
        owner, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind < 5:
            owner[key] = copy.deepcopy(rng.choice(ODD_VALUES))  # what is changed next must not be what all share
        elif kind == 5:
            del owner[key]
        elif kind == 6:
            owner[key] = rng.choice(([owner[key]], {"a": owner[key]}, str(owner[key]), [owner[key]] * 3))
        elif kind == 7:
            other_owner, other_key = rng.choice(places)
            owner[key] = copy.deepcopy(other_owner[other_key])
        elif kind == 8 and isinstance(owner, dict):
            owner[rng.choice(ODD_TEXTS)] = owner.pop(key)
        else:
            owner[key] = f"@raw{len(raw)}@"
            raw.append(rng.choice(ODD_JSON))
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    for number, written in enumerate(raw):
        text = text.replace(f'"@raw{number}@"', written)
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in lists and objects, with what owns it."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def write_damaged(rng: random.Random, file: Path, rows: list[dict[str, Any]]) -> None:
    """A table of these rows, in the format of the file's suffix, with a few changes."""
    import pandas as pd

    if file.suffix == ".jsonl":
        damaged = {rng.randrange(len(rows)) for _ in range(rng.choice((1, 1, 3)))}
        lines = [mutated_json(rng, row) if i in damaged else json.dumps(row) for i, row in enumerate(rows)]
        content = "\n".join(lines).encode("utf-8", "surrogatepass")
    elif file.suffix == ".parquet":
        table = pd.DataFrame(rows)
        if rng.random() < 0.5:
            odd = (
                7,
                0.5,
                True,
                b"\xff\x00",
                [1, 2],
                {"a": 1},
                datetime(2000, 1, 1),
                Decimal("1.5"),
                None,
                float("inf"),
            )
            table[rng.choice(list(table))] = pd.Series([rng.choice(odd)] * len(table))
        table.to_parquet(file)
        content = file.read_bytes()
        if rng.random() < 0.7:  # what is like a header stands at the end
            content = mutated_bytes(rng, content[::-1], 2_000)[::-1]
    else:
        text = pd.DataFrame(rows).to_csv(index=False, sep="\t" if file.suffix == ".tsv" else ",")
        content = mutated_lines(rng, text, ODD_TEXTS).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        content = mutated_bytes(rng, content, len(content))
    file.write_bytes(content)
