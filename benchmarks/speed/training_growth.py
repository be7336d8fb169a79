"""Measure and draw the growth of the seconds per training step, for benchmarks/speed/training.py --growth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from machine import in_words
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from training import Bench, Case, make_base, measure_in_turn

SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
BATCHES = (1, 2, 4, 8, 16)
TIMES_CLIPS = (1, 2, 4, 8)
SIZES = {"nano": "nano", "base, 6 layers": "6", "base, 12 layers": "12"}
STEPS = 2  # steps per epoch, except where the number of clips grows
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
AXES = {
    "clip_seconds": "seconds per clip",
    "batch": "clips per step",
    "base": "encoder",
    "clips": "clips per epoch",
}


def measure_growth(
    bench: Bench, case: Case, strategies: list[str], repeats: int, longest: float
) -> Iterator[dict[str, Any]]:
    """Measure variants of a case with one size changed at a time, and clips of up to `longest` seconds.

    Yields:
        Results of `measure_in_turn` with `panel`, the changed size (a key of `AXES`), and `size`, its value.
    """
    sizes = {name: make_base(bench, size) for name, size in SIZES.items()}
    lengths = [seconds for seconds in SECONDS if seconds <= longest]
    few = replace(case, clips=max(2, STEPS * case.batch))
    for strategy in strategies:
        around: list[tuple[str, Any, Case]] = [
            *(("clip_seconds", seconds, replace(few, clip_seconds=seconds)) for seconds in lengths),
            *(("batch", batch, replace(case, batch=batch, clips=max(2, STEPS * batch))) for batch in BATCHES),
            *(("base", name, replace(few, base=base)) for name, base in sizes.items()),
            *(("clips", times * case.clips, replace(case, clips=times * case.clips)) for times in TIMES_CLIPS),
        ]
        for panel, size, one in around:
            runs = measure_in_turn(bench, [replace(one, strategy=strategy)], repeats)
            yield from (run | {"panel": panel, "size": size} for run in runs)


def draw_growth(found: list[dict[str, Any]], case: Case, machine: dict[str, Any], picture: Path) -> None:
    """Draw one panel per size, with dashed lines as documented, solid lines for recipes, and a colour per strategy."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"Seconds per training step ({case.precision}, {case.epochs} epochs; otherwise {case.clip_seconds:g} s clips, "
        f"{case.batch} per step)\n{in_words(machine).partition('. ')[0]}",
        fontsize=9,
    )
    strategies = list(dict.fromkeys(run["strategy"] for run in found))
    for axes, (panel, label) in zip(figure.subplots(2, 2).flat, AXES.items(), strict=True):
        for strategy, colour in zip(strategies, COLOURS, strict=False):
            for way, line, name in (("a", "--", "as documented"), ("b", "-", "our recipe")):
                sizes = _by_size(found, panel, strategy, way)
                look = {"color": colour, "marker": "o", "markerfacecolor": "white" if way == "a" else colour}
                axes.plot(sizes.keys(), sizes.values(), line, label=f"{strategy}, {name}", **look)
        if panel != "base":
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(sizes), labels=[f"{size:g}" for size in sizes])
            axes.minorticks_off()
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.set_ylabel("seconds per step")
        axes.grid(color="#e8e8e8")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)


def _by_size(found: list[dict[str, Any]], panel: str, strategy: str, way: str) -> dict[Any, float]:
    """Return the seconds per step by size."""
    seconds: dict[Any, list[float]] = {}
    for run in found:
        if (run["panel"], run["strategy"], run["way"]) == (panel, strategy, way):
            seconds.setdefault(run["size"], []).append(run["seconds"] / run["steps"])
    return {size: median(values) for size, values in seconds.items()}
