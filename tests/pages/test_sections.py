"""What a notebook shows of the results of the public functions."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from peft_audio.pages.curves import HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_curves
from peft_audio.pages.render import render_html
from peft_audio.pages.sections import Section, render_notebook

HOSTILE = "<script>alert('x')</script>"


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_and_labels_are_text() -> None:
    chart = draw_curves(HOSTILE, [1, 2], {HOSTILE: [0.5, 0.25]})
    assert chart is not None
    section = Section(
        HOSTILE,
        (HOSTILE,),
        (HOSTILE, "n"),
        ((HOSTILE, HOSTILE),),
        lines=(HOSTILE,),
        outputs=((HOSTILE, HOSTILE),),
        curves=(chart,),
        players=("data:audio/wav;base64,AAAA",),
    )
    tags = Tags(render_notebook(HOSTILE, [section]))
    assert "script" not in tags.seen
    assert {"table", "svg", "audio"} <= set(tags.seen)
    assert tags.text.count(HOSTILE) == 11


def test_curves_are_placed_by_their_values() -> None:
    chart = draw_curves("loss", [1, 2, 3], {"training": [3.0, 2.0, 1.0], "validation": [None, math.nan, 2.0]}, mark=2)
    assert chart is not None
    first, second = (line.points for line in chart.lines)
    corners = [tuple(map(float, point.split(","))) for point in first.split()]
    assert corners[0] == (LEFT, TOP)
    assert corners[2][0] == WIDTH - RIGHT and corners[2][1] > corners[1][1] > corners[0][1]
    assert corners[2][1] < HEIGHT
    assert second == f"{corners[2][0]},{corners[1][1]}"
    assert chart.mark == corners[1][0]
    assert chart.description == "loss over epochs 1 to 3: training 3.000 to 1.000, validation 2.000 to 2.000"
    svg = Tags(render_notebook("run", [Section("s", curves=(chart,))]))
    assert svg.seen.count("polyline") == 2


@pytest.mark.parametrize("values", [[], [None], [math.inf]])
def test_without_values_there_is_no_chart(values: list[float | None]) -> None:
    assert draw_curves("loss", list(range(1, 1 + len(values))), {"training": values}) is None


def test_a_chart_is_well_formed() -> None:
    chart = draw_curves("a & b", [1], {"x < y": [1.0]})
    html = render_html("notebook.html", title="", sections=[Section("s", curves=(chart,) if chart else ())])
    svg = html[html.index("<svg") : html.index("</svg>") + 6]
    assert ElementTree.fromstring(svg).tag == "svg"
