"""Describe a page as sections of text, tables, curves and players, and render them in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peft_audio.pages.curves import Curves
from peft_audio.pages.render import render_html
from peft_audio.text import printable, with_minus, without_secrets


@dataclass(frozen=True)
class Section:
    """One section of a page: bullets, curves, table, lines and outputs, in this order.

    Attributes:
        title: Heading.
        bullets: One sentence per item.
        header: Column names of the table; empty without a table.
        rows: Cells of the table, one per column.
        name_column: Index of the column that names a row; the columns right of it hold numbers if `numbers` is true.
        numbers: Whether the table holds numbers.
        lines: Footnotes.
        outputs: Caption and text of the last output of runs.
        warning: Whether to highlight the section.
        curves: Line charts.
        players: For each row of the table the data URI of its recording, played in a column of its own; "" for a row
            without a player. Empty without such a column.
    """

    title: str
    bullets: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    name_column: int = 0
    numbers: bool = True
    lines: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    warning: bool = False
    curves: tuple[Curves, ...] = ()
    players: tuple[str, ...] = ()


def printable_section(section: Section) -> Section:
    """Replace characters that a page cannot show, and secrets in outputs."""
    return replace(
        section,
        bullets=tuple(with_minus(printable(bullet)) for bullet in section.bullets),
        header=tuple(map(printable, section.header)),
        rows=tuple(tuple(map(printable, row)) for row in section.rows),
        lines=tuple(map(printable, section.lines)),
        outputs=tuple((printable(caption), without_secrets(text)) for caption, text in section.outputs),
    )


def render_notebook(title: str, sections: Sequence[Section]) -> str:
    """Render sections as the HTML that a notebook shows for an object.

    Args:
        title: Heading of the whole.
        sections: Sections that are not empty; all text is escaped.
    """
    return render_html("notebook.html", title=printable(title), sections=list(map(printable_section, sections)))
