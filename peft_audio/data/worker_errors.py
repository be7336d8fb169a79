"""Errors that cross from the worker processes of a DataLoader into the process that reads batches."""

from __future__ import annotations

import pickle
import sys
from typing import Any, NoReturn

from torch._utils import ExceptionWrapper
from torch.utils.data._utils import worker


def keep_worker_errors(worker_id: int) -> None:
    """Let a worker process send the exceptions themselves; a DataLoader's `worker_init_fn`.

    torch sends the class and the traceback as text, and calls the class with that text: attributes are lost, and the
    message is the traceback.
    """
    worker.ExceptionWrapper = WorkerError  # type: ignore[misc]


class WorkerError(ExceptionWrapper):
    """Carry an exception from a worker process, with its attributes; the worker's traceback becomes a note of it."""

    def __init__(self, exc_info: Any = None, where: str = "in background") -> None:
        super().__init__(exc_info, where)
        error = sys.exc_info()[1] if exc_info is None else exc_info[1]
        assert error is not None
        error.add_note(f"Raised {where}:\n{self.exc_msg}")
        try:
            self.pickled = pickle.dumps(error)
            pickle.loads(self.pickled)
        except Exception:  # of a library, with a constructor or an attribute that pickle cannot handle
            self.pickled = b""

    def reraise(self) -> NoReturn:
        """Raise the exception in this process."""
        if not self.pickled:
            super().reraise()
        raise pickle.loads(self.pickled)
