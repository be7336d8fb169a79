"""Generate the tables of settings when the documentation site is built.

MkDocs calls `on_page_markdown` (see `hooks` in mkdocs.yml). `python scripts/docs_hooks.py` prints the tables.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from docstring_parser import parse

from peft_audio.comparison.settings import CompareRecipe
from peft_audio.config.parse import flags_of
from peft_audio.config.recipes import BaselineRecipe, Recipe
from peft_audio.strategies import STRATEGIES

MARK = "<!-- settings -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark on a page by the tables of settings."""
    return markdown.replace(MARK, settings_tables()) if MARK in markdown else markdown


def settings_tables() -> str:
    """Build one Markdown table per section of settings: those that all recipes share, then those of each recipe."""
    shared = {field.name for field in fields(Recipe)}
    parts = [f"## {name}\n\n{_table(name, section, Recipe)}" for name, section in _sections(Recipe)]
    for recipe in [strategy.recipe for strategy in STRATEGIES.values()] + [BaselineRecipe]:
        own = [(name, section) for name, section in _sections(recipe) if name not in shared]
        parts += [f"## {name}\n\n{_table(name, section, recipe)}" for name, section in own]
    comparison = _table("", CompareRecipe, CompareRecipe)
    return "\n\n".join([*parts, f"## Comparisons (`recipes/compare.py`)\n\n{comparison}"])


def _sections(recipe: type) -> list[tuple[str, type]]:
    hints = get_type_hints(recipe)
    return [(field.name, hints[field.name]) for field in fields(recipe) if is_dataclass(hints[field.name])]


def _table(name: str, section: type, recipe: type) -> str:
    """Build the table of a section, or of the settings outside sections for the name ""."""
    docstring = parse(section.__doc__ or "")
    meaning = {each.arg_name: " ".join((each.description or "").split()) for each in docstring.params}
    takes = flags_of(recipe)
    sections = {name for name, _ in _sections(section)}
    flags = {f"{name}.{each.name}".lstrip("."): each for each in fields(section) if each.name not in sections}
    rows = [f"| `--{flag}` | {_default(each)} | {takes[flag]} | {meaning[each.name]} |" for flag, each in flags.items()]
    cells = "\n".join(row.replace("\n", " ") for row in rows)
    return f"{docstring.short_description}\n\n| flag | default | takes | meaning |\n|---|---|---|---|\n{cells}"


def _default(field: Field[Any]) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return "not given" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(settings_tables())
