"""Write a comparison as Markdown, figure, self-contained HTML page and JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Column, Table

from peft_audio.comparison.plots import draw_comparison, rate_text, to_bytes
from peft_audio.comparison.results import MEASURED_COSTS, METRICS, Arm, Comparison, Score, in_quotes
from peft_audio.files import write_atomically
from peft_audio.pages.render import render_html
from peft_audio.pages.sections import Section, printable_section
from peft_audio.tasks.metrics import METRIC_NAMES
from peft_audio.text import escape_markdown, markdown_table, with_minus

NOTHING = "–"
COSTS = "Costs"
BUSY = "*"  # marks times that were measured on a busy machine
RECALLS = "Recall of each class, %"
MOST_CLASSES = 50  # more classes make no table
# Colour codes of terminals, and characters that a page cannot show.
NOT_TEXT = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def sections(comparison: Comparison) -> list[Section]:
    """List the sections that are not empty; reasons not to rank come first."""
    found = [
        Section("Not ranked: a rule is broken", comparison.broken_rules, warning=True),
        _scores(comparison),
        Section("What this shows", (*comparison.on_controls, *(arm.claim for arm in comparison.arms if arm.claim))),
        _costs(comparison),
        _recalls(comparison),
        Section("How to read this", _guide(comparison)),
        _conditions(comparison),
        _failures(comparison),
        Section("Notes", comparison.notes),
    ]
    return [printable_section(section) for section in found if section.bullets or section.rows or section.outputs]


def _scores(comparison: Comparison) -> Section:
    metric = comparison.metric
    header = (
        "rank",
        "arm",
        "seeds",
        f"test {METRIC_NAMES[metric]}, %",
        f"difference to {comparison.reference}, points",
        "Holm p",
        *(f"{METRIC_NAMES[other]}, %" for other in METRICS if other != metric),
        "gap, points",
        "learning rate",
    )
    arms = sorted(comparison.arms, key=lambda arm: (arm.control, arm.useless))
    rows = []
    for arm in arms:
        if arm.useless and not any(other.useless for other in arms[: arms.index(arm)]):
            rows.append(_line(f"no better than always answering {in_quotes(comparison.majority)}:", header))
        if arm.control and any(other.useless for other in arms) and not arms[arms.index(arm) - 1].control:
            rows.append(_line("controls:", header))
        rows.append(_score_row(comparison, arm))
    lines = []
    if any(arm.control for arm in arms):
        lines.append("control: not ranked; shows the score without pretrained weights or without a network.")
    if any(arm.at_edge for arm in arms):
        lines.append("edge: the lowest or the highest rate that was tried; a better one may lie beyond it.")
    if any(arm.gap is not None for arm in arms):
        lines.append("gap: training accuracy minus validation accuracy.")
    return Section("Scores", header=header, rows=tuple(rows), name_column=1, lines=tuple(lines))


def _line(text: str, header: Sequence[str]) -> tuple[str, ...]:
    """Make a row of the scores that is a heading for the rows below it."""
    return tuple(text if name == "arm" else "" for name in header)


def _score_row(comparison: Comparison, arm: Arm) -> tuple[str, ...]:
    rank = NOTHING if arm.rank is None else str(arm.rank)
    rates = ", ".join(map(rate_text, arm.learning_rates)) or NOTHING
    if arm.difference is None:
        difference = "reference" if arm.name == comparison.reference else NOTHING
    else:
        difference = _with_interval(arm.difference.estimate, arm.difference.low, arm.difference.high, signed=True)
    return (
        "control" if arm.control else "not ranked" if comparison.broken_rules else rank,
        arm.name,
        str(len(arm.seeds)),
        _score(arm.score(comparison.metric)),
        difference,
        _p_value(arm.p_holm),
        *(_score(arm.score(other)) for other in METRICS if other != comparison.metric),
        _hundredths(arm.gap, signed=True),
        rates + (" (edge)" if arm.at_edge else ""),
    )


def _recalls(comparison: Comparison) -> Section:
    """Make the table of each class's recall, if there are few classes."""
    arms = [arm for arm in comparison.arms if arm.recalls and not arm.control]
    if not 0 < len(comparison.labels) <= MOST_CLASSES:
        arms = []
    return Section(
        RECALLS,
        header=("class", "test clips", *(arm.name for arm in arms)) if arms else (),
        rows=tuple(
            (label, f"{clips:,}", *(_hundredths(arm.recalls[i]) for arm in arms))
            for i, (label, clips) in enumerate(zip(comparison.labels, comparison.label_clips, strict=True))
            if arms
        ),
    )


def _costs(comparison: Comparison) -> Section:
    header = (
        "arm",
        "trained parameters",
        "saved, kB",
        *MEASURED_COSTS.values(),
    )
    arms = sorted(comparison.arms, key=lambda arm: arm.control)
    rows = []
    for arm in arms:
        mark = BUSY if arm.other_cpus is not None else ""
        row = (
            arm.name + (" (control)" if arm.control else ""),
            _parameters(arm),
            _figures(arm.file_size, 1e-3),
            _figures(arm.accelerator_memory_max, 2**-20),
            _figures(arm.train_time, mark=mark),
            _figures(arm.total_time, mark=mark),
            _figures(arm.samples_per_second, mark=mark),
            _figures(arm.inference_seconds, 1e3, mark=mark),
        )
        rows.append(row)
    scored = [arm for arm in arms if arm.test_accuracy is not None and not arm.control]
    unknown = any(getattr(arm, cost) is None for arm in scored for cost in MEASURED_COSTS)
    lines = [f"{NOTHING}: no run is known to have had the device to itself."] if unknown else []
    if any(arm.other_cpus is not None for arm in arms):
        lines.append(f"{BUSY}: measured on a busy machine, so too long; see the notes for its load.")
    return Section(COSTS, header=header, rows=tuple(rows), lines=tuple(lines))


def _parameters(arm: Arm) -> str:
    if arm.num_trainable_params is None:
        return NOTHING
    share = f" ({arm.num_trainable_params / arm.num_total_params:.1%})" if arm.num_total_params else ""
    return f"{arm.num_trainable_params:,}{share}"


def _guide(comparison: Comparison) -> tuple[str, ...]:
    """Explain the intervals, their scope, and the smallest difference that the split can resolve."""
    folds = "" if comparison.folds is None else f", each over all {comparison.folds} folds together"
    found = [
        f"Scores are means over seeds{folds}; the brackets hold the 95% interval of that mean over other seeds. Equal "
        "scores have no interval.",
        f"Arms are ranked by {METRIC_NAMES[comparison.metric]}. An arm that is not better than always answering the "
        "largest class has no rank and makes no claim.",
        "Macro-F1 and balanced accuracy are means over classes: a small class counts as much as a large one.",
    ]
    if any(arm.difference for arm in comparison.arms):
        found.append(
            f"Differences are to {comparison.reference}; their 95% intervals are over test clips and seeds, "
            "and Holm p is corrected for the number of arms."
        )
        things = "clips" if comparison.groups is None else f"{comparison.groups} groups"
        found.append(
            f"The intervals hold for these {things} of the test split only; the order of the arms may differ on others."
            if comparison.conditional
            else f"The intervals include the choice of the {things} of the test split, if these represent others."
        )
    if any(len(arm.seeds) == 1 and not arm.control for arm in comparison.arms):
        found.append("An arm with one seed is measured by that run; another seed may give another difference.")
    if comparison.groups is None:
        found.append(
            "No groups are known. If a speaker or source is on both sides of the split, all scores are too high."
        )
    found.append("Costs are of runs that had the device to themselves; clips/s are of training.")
    margin = f"a difference of {_hundredths(comparison.margin)} points counts as relevant"
    if comparison.resolution is None or not math.isfinite(comparison.resolution):
        return (*found, f"Here {margin}.")
    resolution = f"For the least certain arm, this test resolves {_hundredths(comparison.resolution)} points; {margin}"
    wide = ", which it cannot resolve for that arm" if comparison.resolution > comparison.margin else ""
    return (*found, f"{resolution}{wide}.")


def _conditions(comparison: Comparison) -> Section:
    train, validation, test = comparison.clips
    rows = [
        ("data", comparison.source),
        ("encoder", comparison.encoder),
        ("clips", f"{train:,} training, {validation:,} validation, {test:,} test"),
        ("test groups", "unknown" if comparison.groups is None else str(comparison.groups)),
        *([] if comparison.folds is None else [("folds", str(comparison.folds))]),
        ("each run", comparison.budget),
        ("margin", f"{_hundredths(comparison.margin)} points"),
        ("learning rates tried per arm", _rates_tried(comparison)),
        ("chosen on validation by", METRIC_NAMES.get(comparison.best_metric, comparison.best_metric)),
        ("ranked on test by", METRIC_NAMES[comparison.metric]),
        ("change of frozen encoder weights, adapter off", _drift(comparison)),
        ("device", comparison.device),
        ("versions", ", ".join(f"{name} {version}" for name, version in comparison.versions.items())),
        ("data SHA-256", _hashes(comparison.dataset_sha256)),
        ("splits SHA-256", _hashes(comparison.split_sha256)),
    ]
    return Section("Conditions", header=("condition", "value"), rows=tuple(rows), numbers=False)


def _rates_tried(comparison: Comparison) -> str:
    counts = sorted({len({trial.learning_rate for trial in arm.trials}) for arm in comparison.arms if not arm.control})
    return "none" if counts in ([], [0]) else " to ".join(map(str, counts))


def _drift(comparison: Comparison) -> str:
    drifts = [arm.encoder_drift for arm in comparison.arms if arm.seeds and not arm.control]
    if not drifts or None in drifts:
        return "unknown"
    return "exactly 0 in every run" if set(drifts) == {0.0} else ", ".join(f"{drift:g}" for drift in drifts)


def _hashes(hashes: Sequence[str]) -> str:
    return ", ".join(found[:12] for found in hashes) or NOTHING


def _failures(comparison: Comparison) -> Section:
    outputs = [
        (f"{arm.name}: {failure.run}, exit code {failure.exit_code}", NOT_TEXT.sub("", failure.last_lines).strip("\n"))
        for arm in comparison.arms
        for failure in arm.failures
    ]
    return Section("Failed runs", outputs=tuple(outputs))


def _score(score: Score | None) -> str:
    if score is None:
        return NOTHING
    seeds = len(score.values)
    equal = f" ({seeds} equal seeds)" if seeds > 1 and len(set(score.values)) == 1 else ""
    return _with_interval(score.interval.mean, score.interval.low, score.interval.high) + equal


def _with_interval(mean: float, low: float, high: float, signed: bool = False) -> str:
    bounds = [_hundredths(low, signed), _hundredths(high, signed)]
    # An interval without width, as earlier versions wrote it, is no interval.
    return _hundredths(mean, signed) + ("" if NOTHING in bounds or low == high else f" [{', '.join(bounds)}]")


def _hundredths(value: float | None, signed: bool = False) -> str:
    """Format a share in percent, or a difference of shares in points."""
    if value is None or not math.isfinite(value):
        return NOTHING
    # Round first, so that zero has no sign.
    points = round(100 * value, 1) + 0.0
    return with_minus(f"{points:+.1f}" if signed and points else f"{points:.1f}")


def _p_value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _figures(value: float | None, unit: float = 1.0, mark: str = "") -> str:
    """Format a number with about three significant figures, and a mark behind it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    value *= unit
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{mark}"


# Columns of metrics that do not rank the arms.
BESIDE = tuple(f"{METRIC_NAMES[metric]}, %" for metric in METRICS)
# Sections left out in the terminal.
OFF_SCREEN = ("Conditions", "How to read this", RECALLS)
TOO_WIDE = ("seeds", "gap, points", "learning rate", "inference, ms/clip")
# Footnotes of columns that the screen leaves out.
OFF_SCREEN_LINES = ("gap:", "edge:")


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the files of a comparison atomically.

    Args:
        comparison: Comparison to write.
        folder: Destination; created if it is missing.

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
        write_atomically(path, content)
        paths.append(path)
    return paths


def print_comparison(comparison: Comparison, written: Sequence[Path], console: Console) -> None:
    """Print the main sections of the page and the paths of the files."""
    for section in sections(comparison):
        if section.title in OFF_SCREEN:
            continue
        console.print(f"\n[bold{' red' if section.warning else ''}]{section.title}[/]", highlight=False)
        for bullet in section.bullets:
            console.print(f"- {bullet}", highlight=False, markup=False, soft_wrap=True)
        shown = [i for i, name in enumerate(section.header) if name not in TOO_WIDE]
        if section.rows:
            columns = [Column(section.header[i], overflow="fold") for i in shown]
            table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for row in section.rows:
                if is_line(row):  # the sentences below give the reason
                    table.add_section()
                    continue
                table.add_row(*(escape_markup(_narrow(section.header[i], row[i])) for i in shown))
            console.print(table)
        lines = [line for line in section.lines if not line.startswith(OFF_SCREEN_LINES)]
        for line in (*lines, *(f"{caption}\n{text}" for caption, text in section.outputs)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(path.name for path in written)
    console.print(f"\n{names} in {written[0].parent}", highlight=False, markup=False, soft_wrap=True)


def is_line(row: Sequence[str]) -> bool:
    """Return whether a row of the scores is a heading for the rows below it."""
    return row.count("") == len(row) - 1


def _narrow(name: str, cell: str) -> str:
    """Leave the interval out of a cell of a metric that does not rank the arms."""
    return cell.partition(" ")[0] if name in BESIDE else cell


def to_json(comparison: Comparison) -> str:
    """Convert a comparison to JSON; NaN and infinity become null."""
    return json.dumps(_plain(asdict(comparison)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """Convert a comparison to Markdown for an issue, a model card or a README."""
    parts = [f"# {escape_markdown(title_of(comparison))}"]
    for section in sections(comparison):
        parts += [f"## {section.title}", *_markdown(section)]
    return "\n\n".join(parts) + "\n"


def to_html(comparison: Comparison, svg: str) -> str:
    """Render a comparison as one HTML page without scripts and external files.

    Args:
        comparison: Comparison to show.
        svg: Its figure as SVG.
    """
    # Inside HTML, the XML declaration of an SVG file is an error.
    figure = svg[svg.index("<svg") :]
    description = (
        f"Test {METRIC_NAMES[comparison.metric]} against trained parameters, training time and peak memory; learning "
        "rates; learning curves."
    )
    return render_html(
        "comparison.html",
        title=title_of(comparison),
        sections=sections(comparison),
        figure_after=COSTS,
        svg=figure,
        description=description,
    )


def title_of(comparison: Comparison) -> str:
    """Name the encoder and the data of a comparison."""
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
        parts.append("\n".join(f"- {escape_markdown(bullet)}" for bullet in section.bullets))
    if section.header:
        parts.append(markdown_table(section.header, section.rows, section.name_column + 1 if section.numbers else None))
    parts += map(escape_markdown, section.lines)
    for caption, output in section.outputs:
        # The fence must be longer than any fence inside the output.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", output)), default=0))
        parts += [escape_markdown(caption), f"{fence}text\n{output}\n{fence}"]
    return parts
