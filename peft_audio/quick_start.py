"""A start for processes that only load an adapter and answer."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Start without what only takes time here: a third of what labelling one clip would take.

    Imports leave next to nothing for the garbage collector, which would go through it all again and again, once more
    at exit. And an adapter is loaded in float32 however it was trained: PEFT may think that bitsandbytes, which imports
    torch's compiler, is not installed; that is what None among the modules says.
    """
    absent = {"bitsandbytes"} - sys.modules.keys()
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
        for name in absent:
            del sys.modules[name]
