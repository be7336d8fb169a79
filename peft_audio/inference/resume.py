"""Answers kept while a large folder is labelled, so that a killed run goes on where it stopped.

The file is JSON lines. The first says what the answers depend on. Each further line holds the answers of recordings
that were computed together, and is written at once: where one of them is missing they are computed again as a whole,
with the same neighbours, so that what comes out is the same to the last bit.
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
class Unfinished:
    """Answers on the disk; in memory is only where they stand.

    Attributes:
        file: Open for reading and appending.
        places: By path, where the line with its answer begins, and the stamp and the length of the recording.
    """

    file: IO[bytes]
    places: dict[str, tuple[int, tuple[int, int] | None, float | None]] = field(default_factory=dict)

    def known_seconds(self, path: str, stamp: tuple[int, int] | None) -> float | None:
        """The length of a recording that was answered and is unchanged since; None of any other."""
        _, then, seconds = self.places.get(path, (0, None, None))
        return seconds if then == stamp else None

    def add(self, answers: Iterable[Answer]) -> None:
        """Keep answers that were computed together."""
        found = list(answers)
        at = self.file.seek(0, os.SEEK_END)
        self.file.write(json.dumps([asdict(told) for told in found]).encode() + b"\n")
        self.file.flush()
        self._place(at, found)

    def read(self, paths: Sequence[str]) -> Iterator[Answer]:
        """The answers of recordings, all of them known, in this order."""
        for first in range(0, len(paths), CHUNK_RECORDINGS):
            some = paths[first : first + CHUNK_RECORDINGS]
            found: dict[tuple[int, str], Answer] = {}
            for at in sorted({self.places[path][0] for path in some}):
                self.file.seek(at)
                found |= {(at, told.path): told for told in _answers(self.file.readline())}
            for path in some:
                yield found[self.places[path][0], path]

    def take_up(self, about: dict[str, Any]) -> None:
        """Read what an earlier run left, or begin. Errors are not kept: they may have been mended since.

        Raises:
            UserError: It depends on something else, or is not of this kind.
        """
        begin = json.dumps({VERSION: 1} | about).encode() + b"\n"
        first = self.file.readline()
        if first != begin and begin.startswith(first):
            self.file.truncate(0)
            self.file.write(begin)
            self.file.flush()
            return
        _refuse_others(first, about, self.file.name)
        while True:
            at = self.file.tell()
            line = self.file.readline()
            try:
                self._place(at, (told for told in _answers(line) if told.error is None))
            except (ValueError, TypeError, KeyError):
                # The end, or a line that was being written when all stopped.
                self.file.truncate(at)
                return

    def _place(self, at: int, answers: Iterable[Answer]) -> None:
        self.places |= {told.path: (at, told.stamp, told.seconds) for told in answers}


@contextmanager
def unfinished_answers(out: Path, about: dict[str, Any]) -> Iterator[Unfinished]:
    """What is known already for the file `out`, held by this process alone; gone once `out` is there.

    Args:
        out: Where the answers will be written.
        about: What they depend on.

    Raises:
        UserError: `out` is there, its folder cannot be used, another process is at it, or what is known depends on
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
        # Between the first look and the lock, another process may have come to its end.
        _refuse_to_overwrite(out)
        with partial.open("a+b") as file:
            file.seek(0)
            known = Unfinished(file)
            known.take_up(about)
            yield known
        if out.exists():
            partial.unlink()
    finally:
        lock.release()
        if not partial.exists():
            Path(f"{partial}.lock").unlink(missing_ok=True)


@contextmanager
def whole_or_not(out: Path, binary: bool) -> Iterator[IO[Any]]:
    """A file that is there once it is complete, whatever happens meanwhile.

    Raises:
        UserError: Another file came to be there meanwhile; it is left as it is.
    """
    # The usual name of a partial file is that of the answers.
    with atomic_file(out, binary, out.with_name(out.name + ".writing"), sync=True) as file:
        yield file
        _refuse_to_overwrite(out)


def _refuse_to_overwrite(out: Path) -> None:
    if out.exists():
        raise UserError(f"--out: {out} exists already; move it away, or give another name.")


def _answers(line: bytes) -> list[Answer]:
    if not line.endswith(b"\n"):
        raise ValueError("the line is torn")
    return [_answer(**told) for told in json.loads(line)]


def _answer(path: str, stamp: list[int] | None, windows: list[Any], **told: Any) -> Answer:
    parts = tuple((start, end, tuple(row)) for start, end, row in windows)
    return Answer(path, (stamp[0], stamp[1]) if stamp else None, windows=parts, **told)


def _refuse_others(first: bytes, about: dict[str, Any], name: str) -> None:
    try:
        stored = dict(json.loads(first))
        assert VERSION in stored
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--out: {name} is not what an unfinished predict left; move it away.") from error
    other = [key for key in about if stored.get(key) != about[key]]
    if other:
        told = ", ".join(f"{key.replace('_', ' ')} was {stored.get(key)}, is {about[key]}" for key in other)
        raise UserError(
            f"--out: {name} was begun with something else ({told}). Give what it was begun with to go on, "
            "or delete it to begin anew."
        )
