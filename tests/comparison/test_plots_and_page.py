from __future__ import annotations

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console

from peft_audio.comparison.controls import sentences
from peft_audio.comparison.page import print_comparison, rate_text, to_html, to_json, to_markdown, write_comparison
from peft_audio.comparison.plots import COSTS, GREY, draw_comparison, place, score_limits, to_bytes
from peft_audio.comparison.results import Arm, Comparison, ControlTest, Curve, Failure, Score, Trial
from peft_audio.evaluation.significance import Difference, Interval
from peft_audio.text import with_minus

NAN = float("nan")
COSTLY = {"accelerator_memory_max": None, "train_time": None, "samples_per_second": None, "inference_seconds": None}


def score(mean: float) -> Score:
    return Score(Interval(mean, mean - 0.02, mean + 0.02), (mean - 0.01, mean + 0.01))


def arm(name: str, accuracy: float, parameters: int, **changed: Any) -> Arm:
    rates = (1e-3, 3e-3, 1e-2)
    trials = tuple(Trial(rate, None, accuracy - i / 50, (100, 101), i == 0) for i, rate in enumerate(rates))
    curve = Curve(1, None, (2.0, 1.0, 0.02), (2.0, 1.1, 0.9), (0.3, 0.6, accuracy), 3)
    whole = Arm(
        name=name,
        strategy=name,
        control=False,
        rank=1,
        learning_rates=(1e-3,),
        trials=trials,
        at_edge=True,
        seeds=(1, 2),
        test_accuracy=score(accuracy),
        test_macro_f1=score(accuracy),
        validation_accuracy=score(accuracy),
        train_accuracy=score(accuracy),
        gap=0.031,
        difference=Difference(accuracy - 0.9, accuracy - 0.92, accuracy - 0.88, 0.03, 180, 3, True, (5, 5)),
        p_holm=0.0004,
        claim=f"{name} is measured.",
        num_trainable_params=parameters,
        num_total_params=2_900_000,
        file_size=4 * parameters,
        accelerator_memory_max=2.0**30 + 1e4 * parameters,
        train_time=40 + parameters / 1e5,
        total_time=80.0,
        samples_per_second=12.3,
        inference_seconds=0.004,
        encoder_drift=0.0,
        front=(),
        curves=(curve, replace(curve, seed=2, train_loss=(2.0, 1.0))),
        failures=(),
    )
    return replace(whole, **changed)


FAILED: dict[str, Any] = {
    **dict.fromkeys(("rank", "test_accuracy", "test_macro_f1", "gap", "difference", "p_holm", "claim")),
    **dict.fromkeys(("num_trainable_params", "file_size")),
    **COSTLY,
    "failures": (Failure("runs/odd-1", 1, "\x1b[31mError: <b>```\x1b[0m"),),
    "trials": (),
    "curves": (),
}
ARMS = (
    arm("full", 0.93, 2_900_000, rank=1),
    arm("lora", 0.90, 95_000, rank=2, difference=None, p_holm=None, front=tuple(COSTS)),
    arm("head | only <script>alert(1)</script> `x` $y$", 0.85, 2_570, rank=3, front=("train_time",)),
    arm("_odd_", 0.5, 1, **FAILED),
    arm("log-mel", 0.84, 6_000, rank=None, control=True, trials=(), curves=()),
    arm("majority", 0.1, 0, rank=None, control=True, test_accuracy=Score(Interval(0.1, NAN, NAN), (0.1,)), **COSTLY),
)


def compared(arms: tuple[Arm, ...] = ARMS, **changed: Any) -> Comparison:
    whole = Comparison(
        arms=arms,
        reference="lora",
        margin=0.02,
        broken_rules=(),
        notes=("A note.",),
        source="https://example.org/<data>",
        encoder="wav2vec2-nano",
        clips=(600, 120, 180),
        groups=3,
        folds=None,
        budget="20 epochs, 3 learning rates",
        best_metric="macro_f1",
        resolution=0.021,
        conditional=True,
        device="cpu",
        versions={"torch": "2.13.0"},
        dataset_sha256=("a1b2c3d4e5f6" + "0" * 52,),
        split_sha256=(),
        metric="accuracy",
    )
    return replace(whole, **changed)


def folded(whole: Arm) -> Arm:
    trials = tuple(replace(trial, fold=fold) for fold in range(3) for trial in whole.trials)
    return replace(whole, trials=trials, curves=tuple(replace(whole.curves[0], fold=fold) for fold in range(3)))


def many(count: int) -> tuple[Arm, ...]:
    values = np.random.default_rng(0).uniform(0.85, 0.93, count)
    form = "lora-r{}" if count < 10 else "lora-r{}-alpha-16-and-every-linear-layer"
    return tuple(arm(form.format(i), value, 9_000 * 2**i) for i, value in enumerate(values))


CASES = {
    "mixed": compared(),
    "broken": compared(broken_rules=("full had more learning rates.",)),
    "one": compared((replace(ARMS[1], trials=(), curves=()),), conditional=False, groups=None, resolution=None),
    "failed": compared((ARMS[3],)),
    "none": compared(()),
    "untimed": compared(tuple(replace(one, **COSTLY) for one in ARMS)),
    "folds": compared(tuple(folded(one) for one in ARMS[:2]), folds=3, best_metric="loss"),
    "diverged": compared((arm("lora", NAN, 9, gap=NAN, curves=(replace(ARMS[0].curves[0], train_loss=(NAN,)),)),)),
    "sixteen": compared(many(16)),
}


def tables(markdown: str) -> list[list[list[str]]]:
    """Cells of each table: the header, the rule under it, the rows."""
    blocks = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", row)[1:-1] for row in block.splitlines()] for block in blocks]


def column(markdown: str, table: int, name: str) -> list[str]:
    header, _, *rows = tables(markdown)[table]
    place = [cell.strip() for cell in header].index(name)
    return [row[place].strip() for row in rows]


class Elements(HTMLParser):
    """Fails where an element is closed that is not open; keeps text, attributes and tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href", "xlink:href", "action", "srcset"}]
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("comparison", CASES.values(), ids=CASES)
def test_every_case_is_written_whole(comparison: Comparison, tmp_path: Path) -> None:
    paths = write_comparison(comparison, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [f"comparison.{form}" for form in ("md", "png", "svg", "html", "json")]
    assert set(paths[0].parent.iterdir()) == set(paths)
    markdown, _, svg, page, data = (path.read_bytes() for path in paths)
    for table in tables(markdown.decode()):
        assert len({len(row) for row in table}) == 1
    scores = [len(table) - 2 for table in tables(markdown.decode()) if table[0][0].strip() in {"rank", "arm"}]
    assert scores == ([len(comparison.arms)] * 2 if comparison.arms else [])
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    elements = Elements(page.decode())
    assert not elements.open and "script" not in elements.tags and elements.tags.count("svg") == bool(comparison.arms)
    assert all(link and link.startswith("#") for link in elements.links)
    assert [one["name"] for one in json.loads(data)["arms"]] == [one.name for one in comparison.arms]


def test_the_same_comparison_gives_the_same_bytes(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_comparison(compared(), tmp_path)]
    # Whatever style of plots the user has.
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "svg.hashsalt": None}):
        assert [path.read_bytes() for path in write_comparison(compared(), tmp_path)] == first


def test_nothing_is_fetched_and_no_text_is_markup() -> None:
    comparison = compared()
    page = to_html(comparison, to_bytes(draw_comparison(comparison), "svg").decode())
    own = page.replace("https://example.org/&lt;data&gt;", "")
    assert set(re.findall(r"https?://[^\"' ]*", own)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "url(http" not in page and "@import" not in page
    assert '<th scope="row">full</th>' in page and '<th scope="col"' in page and "prefers-color-scheme" in page


def test_markdown_holds_what_was_measured() -> None:
    markdown = to_markdown(compared())
    assert column(markdown, 0, "rank") == ["1", "2", "3", "–", "control", "control"]
    assert column(markdown, 0, "test accuracy, %")[:1] == ["93.0 [91.0, 95.0]"]
    assert column(markdown, 0, "test accuracy, %")[3:] == ["–", "84.0 [82.0, 86.0]", "10.0"]
    assert column(markdown, 0, "difference to lora, points")[:3] == [
        "+3.0 [+1.0, +5.0]",
        "reference",
        "−5.0 [−7.0, −3.0]",
    ]
    assert column(markdown, 0, "Holm p")[0] == r"\<0.001" and column(markdown, 0, "learning rate")[0] == "1e-3 (edge)"
    assert column(markdown, 0, "arm")[2] == r"head \| only \<script>alert(1)\</script> \`x\` \$y\$"
    assert column(markdown, 1, "peak memory, MiB")[1] == "1,930" and column(markdown, 1, "saved, kB")[1] == "380"
    assert column(markdown, 1, "trained parameters")[1] == "95,000 (3.3%)"
    assert "a1b2c3d4e5f6 |" in markdown and "- lora is measured." in markdown
    assert "````text\nError: <b>```\n````" in markdown
    # The arm that failed has no measurement to excuse; an arm with a score but no time has.
    assert "no run is known to have had the device" not in markdown
    assert "no run is known to have had the device" in to_markdown(CASES["untimed"])


def test_a_broken_rule_is_named_first_and_takes_the_ranks() -> None:
    markdown = to_markdown(CASES["broken"])
    assert markdown.index("full had more learning rates.") < markdown.index("| rank |")
    assert set(column(markdown, 0, "rank")) == {"not ranked", "control"}
    page = to_html(CASES["broken"], "<svg></svg>")
    assert page.index('class="broken"') < page.index("full had more learning rates.") < page.index("<table>")
    assert "Not ranked: a rule is broken" in [text.get_text() for text in draw_comparison(CASES["broken"]).texts]
    assert "Not ranked" not in to_markdown(compared())


def test_the_guide_says_of_what_the_intervals_speak() -> None:
    assert "these 3 groups of the test split only" in to_markdown(compared())
    assert "which it cannot resolve for that arm" in to_markdown(compared())
    assert "rule one out" not in to_markdown(compared(resolution=0.01))
    assert "choice of the clips of the test" in to_markdown(compared(conditional=False, groups=None))
    assert "all 3 folds together" in to_markdown(CASES["folds"])


def test_json_has_null_for_what_is_not_a_number() -> None:
    found = json.loads(to_json(compared()), parse_constant=pytest.fail)
    assert found["arms"][-1]["test_accuracy"]["interval"] == {"mean": 0.1, "low": None, "high": None}
    assert math.isclose(found["arms"][0]["gap"], 0.031) and found["clips"] == [600, 120, 180]


def test_the_front_is_filled_and_joined() -> None:
    figure = draw_comparison(compared())
    lines = {str(line.get_gid()): line for line in figure.axes[1].get_lines() if line.get_gid()}
    steps = np.asarray(lines["pareto-front-train_time"].get_xydata())
    # From the head (85%, 40.0 s) along to lora (90%, 41.0 s), up, and on to the edge.
    assert steps[:, 1] == pytest.approx([85, 85, 90, 90])
    assert steps[:, 0] == pytest.approx([40.0257, 40.95, 40.95, figure.axes[1].get_xlim()[1]])
    marks = [line for line in figure.axes[1].get_lines() if line.get_marker() in {"o", "s", "D"}]
    filled = [to_hex(line.get_markerfacecolor()) == to_hex(line.get_color()) for line in marks]
    assert filled == [False, True, True]


def test_the_axis_of_scores_ends_at_100_percent() -> None:
    low, high = score_limits([arm("full", 0.999, 1_000)], "macro_f1")
    assert high == 100 and 0 < low < 100


def test_an_arm_that_is_no_better_than_the_majority_is_grey() -> None:
    arms = (ARMS[0], replace(ARMS[1], against_majority=against_majority(False)), replace(ARMS[2], name="head"))
    marks = [
        line for line in draw_comparison(compared(arms)).axes[1].get_lines() if line.get_marker() in {"o", "s", "D"}
    ]
    assert [to_hex(line.get_color()) == GREY for line in marks] == [False, True, False]


def names(figure: Figure) -> list[list[Any]]:
    return [[text for text in panel.texts if text.get_text()] for panel in figure.axes[:3]]


@pytest.mark.parametrize("arms", [ARMS, many(9), many(16)], ids=["mixed", "nine", "sixteen"])
def test_names_cover_neither_each_other_nor_leave_the_panel(arms: tuple[Arm, ...]) -> None:
    figure = draw_comparison(compared(arms))
    figure.canvas.draw()
    for panel, texts in zip(figure.axes, names(figure), strict=False):
        boxes = [text.get_window_extent() for text in texts]
        assert len(boxes) >= 3
        assert not any(one.padded(-1).overlaps(other.padded(-1)) for one, other in combinations(boxes, 2))
        inside = panel.get_window_extent().padded(2)
        assert all(inside.contains(*corner) for box in boxes for corner in box.corners())


def test_many_names_are_numbers_that_the_legend_explains() -> None:
    figure = draw_comparison(CASES["sixteen"])
    assert {text.get_text() for text in names(figure)[0]} == {str(i) for i in range(1, 17)}
    assert figure.legends[0].get_texts()[0].get_text() == "1  lora-r0-alph…-linear-layer"


def test_placed_names_avoid_what_is_taken() -> None:
    points = np.array([[50.0, 50.0], [52.0, 50.0]])
    taken = np.array([[55.0, 40.0, 100.0, 60.0]])
    placed = place(points, np.array([[30.0, 10.0]] * 2), taken, np.array([1e4]), np.array([0.0, 0.0, 100.0, 100.0]))
    for box in placed:
        assert not ((box[:2] < taken[0, 2:]) & (box[2:] > taken[0, :2])).all()
        assert (box[:2] >= 0).all() and (box[2:] <= 100).all()
    assert not ((placed[0, :2] < placed[1, 2:]) & (placed[0, 2:] > placed[1, :2])).all()


def test_a_rate_reads_as_people_write_it() -> None:
    assert [rate_text(rate) for rate in (3e-4, 1e-3, 1.5e-5, 1.0)] == ["3e-4", "1e-3", "1.5e-5", "1e0"]


@pytest.mark.parametrize("arms", [ARMS, many(12)], ids=["short", "long"])
def test_tables_on_screen_fit_80_columns_and_shorten_no_name(arms: tuple[Arm, ...]) -> None:
    file = io.StringIO()
    print_comparison(compared(arms, notes=()), [Path("a/comparison.md")], Console(file=file, width=80))
    rows = [line for line in file.getvalue().splitlines() if line.startswith(" ")]
    assert len(rows) > 20 and max(map(len, rows)) <= 80 and "…" not in file.getvalue()


def against_majority(better: bool) -> ControlTest:
    low = 0.1 if better else -0.1
    return ControlTest(Difference(0.2, low, 0.3, 0.001, 180, 3, True, (5, 5)), 0.001, better)


def test_controls_have_a_line_of_their_own_below_useless_arms() -> None:
    useless = replace(ARMS[2], name="head_only", rank=None, claim=None, against_majority=against_majority(False))
    for stored in ("no", "'no'"):  # earlier versions stored quotes
        rows = to_markdown(compared((ARMS[0], useless, *ARMS[4:]), majority=stored)).splitlines()
        line = next(i for i, row in enumerate(rows) if "no better than always answering 'no':" in row)
        assert "head_only" in rows[line + 1] and "controls:" in rows[line + 2] and "log-mel" in rows[line + 3]
        assert "majority" in rows[line + 4]
    assert "controls:" not in to_markdown(compared())


def test_only_tested_arms_are_called_better_and_none_where_a_rule_is_broken() -> None:
    full, lora = (replace(whole, against_majority=against_majority(True)) for whole in ARMS[:2])
    arms = (full, lora, ARMS[3], ARMS[4])
    missing = "_odd_: not tested against always answering 'no', because no seed has all its final runs on the same test"
    better, untested = sentences(arms, "full", "no", "macro_f1")
    assert better == "full and lora are better than always answering 'no' (macro-F1)." and untested.startswith(missing)
    (untested,) = sentences(arms, "full", "no", "macro_f1", broken=True)
    assert untested.startswith(missing)
    assert sentences(arms[:2], "full", "no", "macro_f1")[0].startswith("Every arm is better")
    assert sentences(arms[:2], "full", "no", "macro_f1", broken=True) == ()


def test_negative_numbers_have_a_minus_in_text_and_a_hyphen_in_json() -> None:
    claim = "head-only is at most 2 points worse than lora-8 (95% interval of the difference: -0.32 to -0.10 points)."
    comparison = compared((replace(ARMS[0], claim=claim), *ARMS[1:]))
    shown, file = claim.replace(" -", " \u2212"), io.StringIO()
    print_comparison(comparison, [Path("a/comparison.md")], Console(file=file, width=80))
    assert shown in to_markdown(comparison) and shown in to_html(comparison, "<svg/>") and shown in file.getvalue()
    assert claim in to_json(comparison) and "\u2212" not in to_json(comparison)
    for text, wanted in (
        ("[-5.0, +1] (-3) -.5", "[\u22125.0, +1] (\u22123) \u2212.5"),
        ("1e-3, 2024-01-02, lora-8, 3-5, --fold, -x, a -, x=-1", None),
    ):
        assert with_minus(text) == (wanted or text)
