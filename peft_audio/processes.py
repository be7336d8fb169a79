"""Start and end child processes, and change how this process imports some modules."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any


class WithoutHubKernels(MetaPathFinder):
    """Import bitsandbytes as if `kernels` were not installed, so that it does not request kernels from the Hub."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == "bitsandbytes" else None
        if spec and spec.loader:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Load a module while `kernels` is hidden."""

    def __init__(self, plain: Loader) -> None:
        self._plain = plain

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._plain.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._plain
        if module.__spec__:
            module.__spec__.loader = self._plain
        # The log would advise to install the hidden package.
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


class OldRecipes(MetaPathFinder):
    """Explain failed imports in recipes that an earlier version printed. It must be the last finder."""

    # The first module that each of those recipes imports.
    REMOVED_MODULES = ("peft_audio.accelerator", "peft_audio.arithmetic", "peft_audio.baseline")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname not in self.REMOVED_MODULES:
            return None
        usual_hook = sys.excepthook

        def print_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
            if isinstance(error, OldRecipeError):
                print(f"error: {error}", file=sys.stderr)
            else:
                usual_hook(kind, error, trace)

        sys.excepthook = print_one_line
        raise OldRecipeError(
            f"this recipe needs an earlier version of peft-audio, which had {fullname}; print a new one with "
            "`peft-audio recipe NAME`, or use `from peft_audio import LoraRecipe, fine_tune`."
        )


class OldRecipeError(ImportError):
    """Report a recipe of an earlier version."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Speed up imports in the block, by a third for labelling one clip.

    Garbage collection is off, because imports leave little garbage and the collector would scan all objects several
    times. bitsandbytes is hidden by None in `sys.modules`: its import loads the compiler of torch, and PEFT does not
    need it for adapters in float32.
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


def quiet_hub_retries() -> None:
    """Hide the log of retries of the Hub's client, because the final error has the cause; HF_DEBUG shows the log."""
    if not os.environ.keys() & {"HF_DEBUG", "HF_HUB_VERBOSITY"}:
        for name in ("utils._http", "file_download"):
            logging.getLogger(f"huggingface_hub.{name}").setLevel(logging.ERROR)


@contextmanager
def signal_handlers(handlers: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Install signal handlers, and restore those before them at the end.

    Python allows no handlers outside the main thread, so signals keep their effect there.

    Args:
        handlers: Handlers by number of the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def visible_gpus() -> list[str]:
    """List the GPUs that this process may use, by the names in CUDA_VISIBLE_DEVICES."""
    import torch  # here, because the command line imports this module and must start fast

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return chosen[:count] if chosen != [""] else [str(i) for i in range(count)]


def child_environment(gpu: str | None, threads: int | None = None) -> dict[str, str]:
    """Return the environment of a child process, with one device and without the variables of a launcher.

    A recipe runs in it as under `accelerate launch` with one process and no config file, but starts faster.

    Args:
        gpu: GPU that the child may use; None for the CPU.
        threads: Threads on the CPU; the child's default if None.
    """
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in os.environ.items() if name not in launcher and "ACCELERATE" not in name}
    clean |= {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if not clean.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
        # On a busy machine, threads that spin instead of sleeping make a step ten times as long.
        clean["OMP_WAIT_POLICY"] = "passive"
    return clean | {"CUDA_VISIBLE_DEVICES": gpu or ""} | ({"ACCELERATE_USE_CPU": "true"} if gpu is None else {})


def run_python(
    arguments: Sequence[str], timeout_seconds: float, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process on the CPU, wait for it and return its exit code and output.

    Args:
        arguments: Command line of Python: a script, or `-m` and a module, then its arguments.
        timeout_seconds: Time after which the process is killed.
        folder: Working directory; that of this process by default.

    Raises:
        subprocess.TimeoutExpired: The process was killed.
    """
    return subprocess.run(
        python_command(arguments),
        cwd=folder,
        env=child_environment(gpu=None),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )


def python_command(arguments: Sequence[str]) -> list[str]:
    """Return a Python command that does not import modules from the working directory, such as a user's datasets.py."""
    return [sys.executable, "-P", *arguments]


def end_processes(pids: Sequence[int]) -> None:
    """End processes and their children."""
    import psutil

    family = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            family += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            member.kill()


def creation_time(pid: int) -> float | None:
    """Return the creation time of a process, which distinguishes processes with the same id; None if it has ended."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def usable_cpu_times() -> list[Any]:
    """Return `psutil.cpu_times` of each CPU that this process may use."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    chosen = [cpu for number, cpu in enumerate(times) if number in allowed]
    # Disabled CPUs leave gaps in the numbering.
    return chosen if len(chosen) == len(allowed) else times


def cpu_seconds() -> float:
    """Return the busy seconds since boot, summed over the CPUs that this process may use."""
    idle = ("idle", "iowait", "guest", "guest_nice")  # time of guests is a part of user time
    return sum(sum(cpu) - sum(getattr(cpu, name, 0.0) for name in idle) for cpu in usable_cpu_times())


def family_cpu_seconds(pid: int) -> float:
    """Return the CPU time in seconds of a process and its children, including children that ended.

    Raises:
        psutil.Error: The process has ended.
    """
    import psutil

    process = psutil.Process(pid)
    total = 0.0
    for member in (process, *process.children(recursive=True)):
        with suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total
