"""Scores as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from peft_audio.evaluation.scores import Scores, confusions
from peft_audio.text import printable

# A wider matrix does not fit into a terminal.
MOST_LABELS_IN_MATRIX = 12
MOST_SHOWN = 10


def print_scores(
    scores: Scores,
    notes: Sequence[str],
    unseen: Sequence[str],
    skipped: Sequence[tuple[str, str]],
    console: Console,
) -> None:
    """Show scores as tables.

    Args:
        scores: What to show.
        notes: Told first.
        unseen: Labels that do not occur.
        skipped: Clips that were left out, with the reason.
        console: Where.
    """

    def say(line: str) -> None:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    for note in notes:
        say(note)
    if unseen:
        say(f"labels of the adapter that do not occur: {', '.join(unseen)}")
    console.print(_summary(scores))
    console.print(_classes(scores, unseen))
    if len(scores.labels) <= MOST_LABELS_IN_MATRIX:
        console.print(_matrix(scores))
    else:
        console.print(_confusions(scores))
    console.print(_bins(scores))
    for name, reason in skipped:
        say(f"skipped: {name} {reason}")


def _summary(scores: Scores) -> Table:
    table = Table(show_header=False)
    of = f"{scores.recordings:,} recordings" + (f" of {scores.groups} groups" if scores.groups else "")
    table.add_row("accuracy", f"{scores.accuracy:.3f} of {of}")
    kind = f"{scores.interval} taken as independent"
    if scores.groups and scores.interval == "recordings":
        kind += f"; says nothing of groups beside these {scores.groups}"
    table.add_row("95% interval", f"{scores.accuracy_low:.3f} to {scores.accuracy_high:.3f}, {kind}")
    table.add_row("macro-F1", f"{scores.macro_f1:.3f}")
    table.add_row("negative log-likelihood", f"{scores.negative_log_likelihood:.3f}")
    table.add_row("Brier score", f"{scores.brier_score:.3f} (0 is best, 2 worst)")
    table.add_row("expected calibration error", f"{scores.expected_calibration_error:.3f}")
    return table


def _classes(scores: Scores, unseen: Sequence[str]) -> Table:
    table = Table()
    for name in ("class", "precision", "recall", "F1", "recordings"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for one, column in zip(scores.classes, zip(*scores.confusion, strict=True), strict=True):
        # A label that neither is there nor was said has no scores.
        if one.label not in unseen or sum(column):
            figures = (f"{value:.3f}" for value in (one.precision, one.recall, one.f1))
            table.add_row(escape(printable(one.label)), *figures, f"{one.recordings:,}")
    return table


def _matrix(scores: Scores) -> Table:
    table = Table(title="what is (rows), and what it was called", title_justify="left")
    table.add_column("")
    for label in scores.labels:
        table.add_column(escape(printable(label)), justify="right")
    for i, (label, row) in enumerate(zip(scores.labels, scores.confusion, strict=True)):
        cells = ["·" if not count else f"[bold]{count}[/]" if i == j else str(count) for j, count in enumerate(row)]
        table.add_row(escape(printable(label)), *cells)
    return table


def _confusions(scores: Scores) -> Table:
    found = confusions(scores.labels, scores.confusion)
    table = Table(title=f"the most frequent confusions, of {len(found)}", title_justify="left")
    for name in ("is", "was called", "recordings"):
        table.add_column(name, justify="right" if name == "recordings" else "left")
    for label, said, count in found[:MOST_SHOWN]:
        table.add_row(escape(printable(label)), escape(printable(said)), str(count))
    return table


def _bins(scores: Scores) -> Table:
    table = Table(title="how sure it was, and how often that was right", title_justify="left")
    for name in ("probability", "recordings", "mean probability", "accuracy"):
        table.add_column(name, justify="left" if name == "probability" else "right")
    for one in scores.bins:
        if one.confidence is not None:
            means = (f"{one.confidence:.3f}", f"{one.accuracy:.3f}")
            table.add_row(f"{one.low:.3f} to {one.high:.3f}", f"{one.recordings:,}", *means)
    return table
