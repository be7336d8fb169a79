"""Find words and first lines that the project's style rules out."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("peft_audio", "recipes", "scripts", "benchmarks")
CODE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("recipes/**/*.yaml")]
WORDS = re.compile(
    r"\b(hear|hears|heard|tell|tells|told|say|says|said|mend|mends|mended|stand|stands|stood|stranger|strangers|"
    r"patient|theatre|likewise|(?:take|takes|taken|took) up|so many|a row a|a line a)\b(?!-in)",
    re.IGNORECASE,
)
FIRST_WORDS = ("What", "Which", "Whether", "How", "Where", "As", "The place")
# Words that name something in data, by file.
ALLOWED = {
    "peft_audio/checks/groups.py": {"patient"},
    "peft_audio/data/layouts.py": {"patient"},
    "peft_audio/adapters/examine.py": {"mend"},  # a key of the JSON output
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """List the comments and string constants of a module, docstrings and messages among them, by line."""
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def banned(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    """List the banned words of a file with their lines."""
    name = path.relative_to(ROOT).as_posix()
    return [
        f"{name}:{line}: {match[0]!r} in {text[max(0, match.start() - 40) : match.end() + 20]!r}"
        for line, text in lines
        for match in WORDS.finditer(text)
        if match[0].lower() not in ALLOWED.get(name, ())
    ]


def test_code_has_no_banned_words() -> None:
    assert not [line for path in CODE for line in banned(path, texts(path))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_have_no_banned_words(path: Path) -> None:
    # Output of the program in code blocks is tested as text of the code.
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)
    assert not banned(path, iter(enumerate(text.splitlines(), start=1)))


def test_docstrings_start_with_a_verb_or_a_noun() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path.relative_to(ROOT).as_posix()}: {docstring.splitlines()[0]}"
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
        if docstring.startswith(tuple(f"{word} " for word in FIRST_WORDS))
    ]
    assert not found
