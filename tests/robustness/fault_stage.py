"""A place for one fault: recordings, an encoder and a run of its own, and what a run there did and said."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from robustness.chaos import unlike
from robustness.fault_hooks import FILLER, signal_at
from robustness.forked import Command, log_of, make_base, make_data, open_server, start, wait

# Paths are relative to the folder of the case, so that a run can be copied there.
FLAGS = ["--data.source", "data", "--model.name", "base", "--train.output_dir", "run", "--train.epochs", "2"]
FLAGS += ["--train.batch_size", "8", "--train.verify_adapter", "false", "--prefix_cache.use", "never"]
SAVING = ["--train.checkpoint_every_steps", "1"]
# Where a case lets frozen prefixes be kept.
KEPT = "disk/prefixes"
RESUME = [*SAVING, "--train.resume", "true"]
# A run here takes seconds; on a busy machine a few times as long.
PATIENCE_SECONDS = 150.0


class UntestableError(Exception):
    """A fault that cannot be made here."""


@dataclass
class Theatre:
    """What all cases share: recordings and an encoder to copy, and runs to copy."""

    folder: Path
    context: Any

    def stage(self, name: str) -> Stage:
        """A fresh place for a case."""
        root = self.folder / "cases" / name
        for part in ("data", "base"):
            shutil.copytree(self.folder / part, root / part)
        for part in ("tmp", "home"):
            (root / part).mkdir()
        return Stage(root, self)

    def template(self, name: str) -> Path:
        """A run to copy: one that was stopped behind its fourth step, or a finished one."""
        made = self.folder / "cases" / f"template-{name}"
        if not made.exists():
            stage = self.stage(made.name)
            hook, code = {
                "stopped": (partial(signal_at, 4, signal.SIGTERM), 128 + signal.SIGTERM),
                "finished": (None, 0),
            }[name]
            if stage.run(*SAVING, hook=hook) != code:
                raise RuntimeError(f"the {name} run failed:\n{stage.output}")
        return made / "run"


def open_theatre(folder: Path) -> Theatre:
    """Make recordings and encoder, and start the server that processes are forked from."""
    context = open_server(folder / "assets")
    make_data(folder / "data")
    make_base(folder / "base")
    return Theatre(folder, context)


@dataclass
class Stage:
    """The folder of one case.

    Attributes:
        root: Holds `data`, `base`, and in most cases `run`.
        theatre: What it was made from.
        out: The run's folder, relative to it.
        output: What all runs here have printed.
        strays: What they made outside the run's folder.
        wrong: What else was not as it should be.
    """

    root: Path
    theatre: Theatre
    out: str = "run"
    output: str = ""
    strays: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _before: set[str] = field(default_factory=set)
    _runs: int = 0

    def run(
        self,
        *flags: str,
        hook: Callable[[], None] | None = None,
        recipe: str = "lora",
        processes: int = 1,
        act: Callable[[Sequence[BaseProcess]], None] | None = None,
    ) -> int:
        """Run a recipe in processes forked for it; gives the first one's exit code.

        Args:
            flags: Behind those that all runs have.
            hook: Breaks something in the process; it must be importable there.
            recipe: Its name.
            processes: How many.
            act: Does something to the processes while they run.
        """
        self._before = self._listing()
        enter = partial(_enter, str(self.root), [*FLAGS, "--train.output_dir", self.out, *flags], hook)
        place = self.theatre.folder / "logs" / f"{self.root.name}-{self._runs}"
        self._runs += 1
        children = start(self.theatre.context, Command(recipe, [], processes), place, enter)
        if act:
            act(children)
        if not wait(children, PATIENCE_SECONDS):
            self.wrong.append(f"hung for {PATIENCE_SECONDS:.0f} s")
            for child in children:
                child.kill()
                child.join()
        self._note(log_of(place).read_text(encoding="utf-8", errors="replace"))
        return children[0].exitcode or 0

    def take(self, template: str) -> Path:
        """Let a run be there that an earlier command left; gives its folder."""
        return Path(shutil.copytree(self.theatre.template(template), self.root / "run"))

    def whole(self) -> Path:
        """The folder of a run that nothing happened to."""
        return self.theatre.template("finished")

    def same_as_finished(self) -> None:
        """Note what of the run differs from one that nothing happened to."""
        found = unlike(self.whole(), self.root / self.out)
        # The adapter's README says where its encoder stands.
        self.wrong += [f"not as undisturbed: {what}" for what in found if what != "adapter/README.md"]

    def await_steps(self, count: int) -> None:
        """Wait until so many steps have been logged."""
        log, until = self.root / self.out / "metrics.jsonl", time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and not (log.exists() and len(log.read_bytes().splitlines()) >= count):
            time.sleep(0.01)

    def await_file(self, name: str) -> None:
        """Wait until a file is there."""
        until = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < until and not (self.root / name).exists():
            time.sleep(0.01)

    def mount(self, name: str, options: str) -> Path:
        """A small disk of its own, which goes with the process that runs the cases."""
        (self.root / name).mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", options, "none", str(self.root / name)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UntestableError("whoever runs this may mount no disk") from error
        return self.root / name

    def unmount(self, name: str) -> None:
        """Let it go again."""
        subprocess.run(["umount", str(self.root / name)], check=True)

    def _note(self, text: str) -> None:
        for long, short in ((f"{self.root.resolve()}/", ""), (f"{self.root}/", ""), (sys.executable, "python")):
            text = text.replace(long, short)
        self.output += text
        run = Path(self.out)
        lock = str(run.with_name(f".{run.name}.lock"))
        for name in sorted(self._listing() - self._before):
            asked = name in (self.out, lock) or name.startswith((f"{self.out}/", KEPT))
            if not asked and Path(name).name != FILLER:
                self.strays.append(name)

    def _listing(self) -> set[str]:
        found = (Path(parent, name) for parent, folders, names in os.walk(self.root) for name in [*folders, *names])
        return {path.relative_to(self.root).as_posix() for path in found}


def _enter(root: str, arguments: list[str], hook: Callable[[], None] | None) -> None:
    """In the child: go to the folder of the case, and break something."""
    os.chdir(root)
    os.environ |= {"HOME": f"{root}/home", "TMPDIR": f"{root}/tmp"}
    tempfile.tempdir = None
    # Processes that read recordings start as they do in a process that nobody forked.
    multiprocessing.set_start_method("fork" if sys.platform == "linux" else "spawn", force=True)
    sys.argv[1:] = arguments
    if hook:
        hook()
