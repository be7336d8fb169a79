"""Tasks: what a classifier is asked about a clip, one module per task."""

from __future__ import annotations

from peft_audio.errors import UserError
from peft_audio.tasks.single_label import SingleLabel
from peft_audio.tasks.task import Task

DEFAULT_TASK = "single_label"
TASKS: dict[str, Task] = {DEFAULT_TASK: SingleLabel()}


def task_of(name: str = DEFAULT_TASK) -> Task:
    """Return the task of a name; files that name none were made by the default task.

    Args:
        name: A key of `TASKS`.

    Raises:
        UserError: No task has this name.
    """
    if name not in TASKS:
        raise UserError(f"task: got {name!r}, expected one of {', '.join(TASKS)}. Upgrade peft-audio.")
    return TASKS[name]
