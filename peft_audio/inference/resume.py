"""Save answers while a large folder is labelled, so that an interrupted prediction can resume.

The file holds JSON lines. The first line holds everything that the answers depend on. Each further line holds the
answers of one group of recordings, which were computed together. If an answer of a group is missing, the whole group is
computed again, so that its answers have the same bits.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from peft_audio.errors import UserError
from peft_audio.files import atomic_file
from peft_audio.inference.predict import CHUNK_RECORDINGS, Answer

VERSION = "peft_audio_unfinished_answers"


@dataclass
class PartialAnswers:
    """Answers saved in a file, with an index in memory.

    Attributes:
        file: File opened for reading and appending.
        lines: By path, the offset in bytes of the line with its answer, and the stamp and length of the recording.
    """

    file: IO[bytes]
    lines: dict[str, tuple[int, tuple[int, int] | None, float | None]] = field(default_factory=dict)

    def known_seconds(self, path: str, stamp: tuple[int, int] | None) -> float | None:
        """Return the length of a recording with a saved answer; None if it has none or changed since."""
        _, saved_stamp, seconds = self.lines.get(path, (0, None, None))
        return seconds if saved_stamp == stamp else None

    def add(self, answers: Iterable[Answer]) -> None:
        """Save the answers of one group of recordings."""
        group = list(answers)
        offset = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps([asdict(answer) for answer in group]).encode() + b"\n")
        self.file.flush()
        self._index(offset, group)

    def read(self, paths: Sequence[str]) -> Iterator[Answer]:
        """Yield the answers of recordings in the order of `paths`; all of them must be saved."""
        for first in range(0, len(paths), CHUNK_RECORDINGS):
            chunk = paths[first : first + CHUNK_RECORDINGS]
            answers: dict[tuple[int, str], Answer] = {}
            for offset in sorted({self.lines[path][0] for path in chunk}):
                self.file.seek(offset)
                answers |= {(offset, answer.path): answer for answer in _answers(self.file.readline())}
            for path in chunk:
                yield answers[self.lines[path][0], path]

    def load(self, about: dict[str, Any]) -> None:
        """Read the answers of an earlier run, or start a new file.

        Recordings with errors are left out, because the user may have repaired them.

        Args:
            about: Everything that the answers depend on.

        Raises:
            UserError: The saved answers depend on something else, or the file has another format.
        """
        header = json.dumps({VERSION: 1} | about).encode() + b"\n"
        first = self.file.readline()
        if first != header and header.startswith(first):
            self.file.truncate(0)
            self.file.write(header)
            self.file.flush()
            return
        _refuse_other_answers(first, about, self.file.name)
        while True:
            offset = self.file.tell()
            line = self.file.readline()
            try:
                self._index(offset, (answer for answer in _answers(line) if answer.error is None))
            except (ValueError, TypeError, KeyError):
                # The end of the file, or a line that was cut off when the process was killed.
                self.file.truncate(offset)
                return

    def _index(self, offset: int, answers: Iterable[Answer]) -> None:
        self.lines |= {answer.path: (offset, answer.stamp, answer.seconds) for answer in answers}


@contextmanager
def partial_answers(out: Path, about: dict[str, Any]) -> Iterator[PartialAnswers]:
    """Open the saved answers for an output file, locked for this process; delete them once `out` exists.

    Args:
        out: Output file of the prediction.
        about: Everything that the answers depend on.

    Raises:
        UserError: `out` exists, its folder cannot be used, another process writes it, or the saved answers depend on
            something else.
    """
    _refuse_to_overwrite(out)
    partial = out.with_name(out.name + ".partial")
    lock = FileLock(f"{partial}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"--out: {out} is being written by another process; wait, or give another name.") from error
    except OSError as error:
        raise UserError(f"--out: cannot write in {out.parent} ({error.strerror}); give another folder.") from error
    try:
        # Another process may have finished before the lock was acquired.
        _refuse_to_overwrite(out)
        with partial.open("a+b") as file:
            file.seek(0)
            saved = PartialAnswers(file)
            saved.load(about)
            yield saved
        if out.exists():
            partial.unlink()
    finally:
        lock.release()
        if not partial.exists():
            Path(f"{partial}.lock").unlink(missing_ok=True)


@contextmanager
def complete_file(out: Path, binary: bool) -> Iterator[IO[Any]]:
    """Open a temporary file that replaces `out` once it is complete.

    Raises:
        UserError: Another file named `out` was created meanwhile; it is kept.
    """
    # The usual suffix of a temporary file, ".partial", is that of the saved answers.
    with atomic_file(out, binary, out.with_name(out.name + ".writing"), sync=True) as file:
        yield file
        _refuse_to_overwrite(out)


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise UserError(f"--out: {out} already exists; move it, or give another name.")


def _answers(line: bytes) -> list[Answer]:
    if not line.endswith(b"\n"):
        raise ValueError("the line is incomplete")
    return [_answer(**fields) for fields in json.loads(line)]


def _answer(path: str, stamp: list[int] | None, windows: list[Any], **fields: Any) -> Answer:
    parts = tuple((start, end, tuple(row)) for start, end, row in windows)
    return Answer(path, (stamp[0], stamp[1]) if stamp else None, windows=parts, **fields)


def _refuse_other_answers(first: bytes, about: dict[str, Any], name: str) -> None:
    try:
        stored = dict(json.loads(first))
        assert VERSION in stored
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--out: {name} does not hold the answers of an interrupted predict; move it.") from error
    differing = [key for key in about if stored.get(key) != about[key]]
    if differing:
        differences = ", ".join(f"{key.replace('_', ' ')} was {stored.get(key)}, is {about[key]}" for key in differing)
        raise UserError(
            f"--out: {name} was started with other settings ({differences}). Repeat those to resume, or delete the "
            "file to start again."
        )
