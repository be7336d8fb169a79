"""What is promised of reading a damaged input, and whether it was kept: see fuzz.py."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peft_audio.audio.pyav import AudioError
from peft_audio.errors import UserError

Trial = Callable[[], object]
LONGEST_LINE = 2_000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Python's audit events (PEP 578) that name what they change first; the rest have no business here at all.
CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod"}
FORBIDDEN = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"}
FORBIDDEN |= {"socket.getaddrinfo", "pickle.find_class"}


@dataclass
class Watch:
    """What was done outside a folder, while there is one."""

    root: Path | None = None
    seen: list[str] = field(default_factory=list)
    hooked: bool = False

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        """An audit hook; none can be taken away again."""
        if self.root is None:
            return
        changes = event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITING)
        if changes and isinstance(args[0], (str, bytes)):
            path = Path(os.path.realpath(os.fsdecode(args[0])))
            if not path.is_relative_to(self.root) and str(path) != os.devnull:
                self.seen.append(f"{event} {path}")
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {args!r:.200}")


WATCH = Watch()


@contextlib.contextmanager
def watched(root: Path) -> Iterator[None]:
    """Write down what is done outside a folder from here on."""
    if not WATCH.hooked:
        sys.addaudithook(WATCH.hear)
    WATCH.hooked, WATCH.root, WATCH.seen = True, root, []
    try:
        yield
    finally:
        WATCH.root = None


def attempt(draw: Callable[[Path], Trial], place: Path) -> str:
    """Make one damaged input in a folder, and read it.

    Args:
        draw: Puts it into `input/` in the folder given, and gives what reads it.
        place: The folder. The process must work in an empty one.

    Returns:
        "accepted", "refused", or what was wrong.
    """
    shutil.rmtree(place / "input", ignore_errors=True)
    (place / "input").mkdir()
    trial = draw(place)
    said = io.StringIO()
    with watched(place.parent), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's: noise on a user's screen
        try:
            trial()
            outcome = "accepted"
        except (UserError, AudioError) as error:
            outcome = f"UNCLEAR: {fault} at {place_of(error)}" if (fault := unclear(str(error))) else "refused"
        except (Exception, SystemExit) as error:
            said.write("".join(traceback.format_exception(error)))
            outcome = f"{type(error).__name__} at {place_of(error)}"
    # What native code made is not heard, but would stand here.
    made = sorted(path.name for path in Path().iterdir())
    for name in made:
        shutil.rmtree(name, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
    if outcome in ("accepted", "refused") and "Traceback (most recent call last)" in said.getvalue():
        outcome = f"TRACEBACK shown: {said.getvalue().strip().splitlines()[-1]}"
    if WATCH.seen or made:
        outcome = f"OUTSIDE: {[*WATCH.seen, *made][0]}"
    if outcome not in ("accepted", "refused"):
        (place.parent / "said.txt").write_text(said.getvalue(), encoding="utf-8", errors="backslashreplace")
    return outcome


def unclear(message: str) -> str:
    """What keeps a message from being one short paragraph, or a list below one."""
    if not message.strip() or "\n\n" in message.strip():
        return "not one paragraph"
    if "Traceback" in message:
        return "a traceback"
    if any(len(line) > LONGEST_LINE for line in message.splitlines()):
        return "a line without end"
    return "control characters" if any((ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 for c in message) else ""


def place_of(error: BaseException) -> str:
    """The last line of this package in a traceback, and the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "peft_audio" in Path(frame.filename).parts]
    last = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*ours[-1:], *frames[-1:])]
    return " ".join(dict.fromkeys(last))
