"""A comparison as files: Markdown to paste, a figure, an HTML page that needs nothing else, JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from peft_audio.comparison.plots import draw_comparison, to_bytes
from peft_audio.comparison.results import Comparison
from peft_audio.comparison.sections import COSTS, Section, sections
from peft_audio.text import markdown_table, marked

# For the page; on the screen they would push the tables away.
OFF_SCREEN = ("Conditions", "How to read this")
TOO_WIDE = ("seeds", "macro-F1, %", "gap, points", "inference, ms/clip")
PAGE = Path(__file__).parents[1] / "assets" / "comparison.html"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write a comparison into a folder, each file aside first, then in the place of the old one.

    Args:
        comparison: What to write.
        folder: Made where it is missing.

    Returns:
        `comparison.md`, `.png`, `.svg`, `.html` and `.json` in it; the same comparison gives the same bytes.
    """
    figure = draw_comparison(comparison)
    svg = to_bytes(figure, "svg")
    contents = {
        "md": to_markdown(comparison).encode(),
        "png": to_bytes(figure, "png"),
        "svg": svg,
        "html": to_html(comparison, svg.decode()).encode(),
        "json": to_json(comparison).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for form, content in contents.items():
        path = folder / f"comparison.{form}"
        aside = path.with_name(path.name + ".partial")
        aside.write_bytes(content)
        paths.append(aside.replace(path))
    return paths


def print_comparison(comparison: Comparison, written: Sequence[Path], console: Console) -> None:
    """What the page says, without its conditions and the runs' last words, and where the files are."""
    for section in sections(comparison):
        if section.title in OFF_SCREEN:
            continue
        console.print(f"\n[bold{' red' if section.warning else ''}]{section.title}[/]", highlight=False)
        for bullet in section.bullets:
            console.print(f"- {bullet}", highlight=False, markup=False, soft_wrap=True)
        shown = [i for i, name in enumerate(section.header) if name not in TOO_WIDE]
        if section.rows:
            table = Table(*(section.header[i] for i in shown), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for row in section.rows:
                table.add_row(*(escape_markup(row[i]) for i in shown))
            console.print(table)
        lines = [line for line in section.lines if not line.startswith("gap")]
        for line in (*lines, *(f"{caption}\n{text}" for caption, text in section.outputs)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(path.name for path in written)
    console.print(f"\n{names} in {written[0].parent}", highlight=False, markup=False, soft_wrap=True)


def to_json(comparison: Comparison) -> str:
    """Everything, as JSON; what is not a number is null."""
    return json.dumps(_plain(asdict(comparison)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """The tables and sentences, to paste into an issue, a model card or a README."""
    parts = [f"# {marked(_title(comparison))}"]
    for section in sections(comparison):
        parts += [f"## {section.title}", *_markdown(section)]
    return "\n\n".join(parts) + "\n"


def to_html(comparison: Comparison, svg: str) -> str:
    """One page with tables and figure in it; it fetches nothing and runs nothing.

    Args:
        comparison: What to tell.
        svg: Its figure.
    """
    # Behind a page's own declaration, an XML one is an error.
    figure = svg[svg.index("<svg") :]
    says = "Test accuracy against trained parameters, training time and peak memory; learning rates; learning curves."
    figure = f'<figure><div role="img" aria-label="{says}">{figure}</div></figure>'
    body = [_html(section) + (figure if section.title == COSTS else "") for section in sections(comparison)]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(title=escape(_title(comparison)), body="\n".join(body))


def _title(comparison: Comparison) -> str:
    return f"Comparison: {comparison.encoder} on {comparison.source}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown(section: Section) -> list[str]:
    parts = []
    if section.bullets:
        parts.append("\n".join(f"- {marked(bullet)}" for bullet in section.bullets))
    if section.header:
        parts.append(markdown_table(section.header, section.rows, section.name_column + 1 if section.numbers else None))
    parts += map(marked, section.lines)
    for caption, output in section.outputs:
        # A fence is longer than any in what it holds.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", output)), default=0))
        parts += [marked(caption), f"{fence}text\n{output}\n{fence}"]
    return parts


def _html(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.bullets:
        parts.append(f"<ul>{''.join(f'<li>{escape(bullet)}</li>' for bullet in section.bullets)}</ul>")
    if section.header:
        parts.append(_html_table(section))
    parts += [f"<p>{escape(line)}</p>" for line in section.lines]
    for caption, output in section.outputs:
        parts.append(f"<p>{escape(caption)}</p>\n<pre>{escape(output)}</pre>")
    kind = ' class="broken"' if section.warning else ""
    return f"<section{kind}>\n" + "\n".join(parts) + "\n</section>"


def _html_table(section: Section) -> str:
    head = "".join(
        f'<th scope="col"{_number_class(section, i)}>{escape(cell)}</th>' for i, cell in enumerate(section.header)
    )
    rows = "\n".join(f"<tr>{_html_row(section, row)}</tr>" for row in section.rows)
    # A table that is wider than the screen scrolls by itself; the keyboard must reach it.
    where = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(section.title)}">'
    return f"{where}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"


def _html_row(section: Section, row: Sequence[str]) -> str:
    cells = []
    for i, cell in enumerate(row):
        if i == section.name_column:
            cells.append(f'<th scope="row">{escape(cell)}</th>')
        else:
            cells.append(f"<td{_number_class(section, i)}>{escape(cell)}</td>")
    return "".join(cells)


def _is_number(section: Section, column: int) -> bool:
    return section.numbers and column > section.name_column


def _number_class(section: Section, column: int) -> str:
    return ' class="number"' if _is_number(section, column) else ""
