"""List the tasks of classifiers, one module per task."""

from __future__ import annotations

from peft_audio.errors import UserError
from peft_audio.tasks.single_label import SingleLabel
from peft_audio.tasks.task import Task

DEFAULT_TASK = "single_label"
TASKS: dict[str, Task] = {DEFAULT_TASK: SingleLabel()}


def task_of(name: str = DEFAULT_TASK) -> Task:
    """Return the task with a name.

    Args:
        name: Key of `TASKS`; files without a name are of the default task.

    Raises:
        UserError: No task has this name.
    """
    if name not in TASKS:
        raise UserError(f"task: got {name!r}, expected one of {', '.join(TASKS)}. Upgrade peft-audio.")
    return TASKS[name]
