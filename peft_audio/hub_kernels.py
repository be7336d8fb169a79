"""bitsandbytes is imported without the compiled code that it would fetch from the Hub and run.

On CPUs with units for bf16 it does that as soon as it is imported, where the package `kernels` is installed, and PEFT
imports it wherever it is installed itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class WithoutHubKernels(MetaPathFinder):
    """Finds bitsandbytes, to be loaded while `kernels` seems not to be installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "bitsandbytes" else None
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, plain: Loader) -> None:
        self._plain = plain

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._plain.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._plain
        if module.__spec__:
            module.__spec__.loader = self._plain
        # It would advise to install what is hidden here.
        logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
        level, known = logger.level, {name: sys.modules[name] for name in ("kernels",) if name in sys.modules}
        logger.setLevel(logging.ERROR)
        sys.modules["kernels"] = None  # type: ignore[assignment]
        try:
            self._plain.exec_module(module)
        finally:
            del sys.modules["kernels"]
            sys.modules.update(known)
            logger.setLevel(level)
