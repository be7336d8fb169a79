"""Errors that a user can fix, and explanations of what libraries raise."""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft_audio.text import as_told, readable

# SIGTERM comes from `kill`, from SLURM on pre-emption and from torchrun; SIGUSR1 from SLURM where a job asks for a
# warning (`--signal=USR1@90`).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
AGAIN = "The same command with --train.resume true goes on from the last checkpoint."
LESS_MEMORY = (
    "Split steps with --train.gradient_accumulation_steps (the clips of a step stay the same) or let "
    "--train.auto_micro_batch true find how; lower --data.max_seconds; in an evaluation, lower --train.batch_size or "
    "--data.max_eval_seconds."
)
FULL = (errno.ENOSPC, errno.EDQUOT)
MEANINGS = {
    # Of gloo and of NCCL.
    ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "remote process exited"): (
        "another process of this run ended or is out of reach; what it said tells why ({said}). {again}"
    ),
    ("does not have a deterministic implementation",): (
        "--train.deterministic: torch has no such kernel here ({said}). Leave the setting out."
    ),
}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG)


def explain(error: BaseException, folder: str, less_memory: str = LESS_MEMORY, again: str = AGAIN) -> str | None:
    """What happened and what helps; None for what nobody but us can mend.

    Args:
        error: What ended the run or the command.
        folder: The one it writes to, if it is known.
        less_memory: How to get by with less memory.
        again: How to go on once it is mended.
    """
    said = " ".join(str(error).split())
    out_of_memory = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, MemoryError) or any(words in said for words in out_of_memory):
        return f"memory is too small ({said[:120] or 'MemoryError'}). {less_memory}"
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "killed by signal" in said):
        return (
            f"a process that reads recordings died ({said[:160]}), often for want of memory. Lower "
            f"--data.num_workers, or set it to 0. {again}"
        )
    for parts, meaning in MEANINGS.items():
        if any(part in said for part in parts):
            return meaning.format(said=said[:160], again=again)
    number, strerror = getattr(error, "errno", None), getattr(error, "strerror", None)
    where = getattr(error, "filename", None)
    if number in FULL or "No space left on device" in said:
        at = f" at {where}" if where else f", most likely that of {folder}" if folder else ""
        return f"the disk is full{at} ({strerror or said[:160]}). Make room. {again}".rstrip()
    if number in REFUSED or (number == errno.ENOENT and where):
        what = "is not there, or not any more" if number == errno.ENOENT else "cannot be written or read"
        return f"{where or 'a file'} {what} ({strerror}). {again}".rstrip()
    return None


DEBUG = "PEFT_AUDIO_DEBUG"
INTERRUPTED = 128 + signal.SIGINT  # exit code, as in shells


def failure(error: Exception, folder: str, less_memory: str = LESS_MEMORY, again: str = AGAIN) -> tuple[str, int]:
    """Translate the error that ended a command into a message and an exit code.

    Args:
        error: Error that ended the command. Its traceback is printed if `PEFT_AUDIO_DEBUG` is 1.
        folder: Folder that the command writes to; empty if unknown.
        less_memory: Advice for errors of memory.
        again: Advice on how to continue.

    Raises:
        Exception: The error itself, if it is neither a `UserError` nor one that `explain` knows.
    """
    words = str(error) if isinstance(error, UserError) else explain(error, folder, less_memory, again)
    if words is None:
        raise error
    print_traceback_if_debugging()
    return as_told(words), error.exit_code if isinstance(error, UserError) else UserError.exit_code


def print_traceback_if_debugging() -> None:
    """Print the traceback of the exception under way if `PEFT_AUDIO_DEBUG` is 1."""
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()


class UserError(ValueError):
    """Report what the user can fix. The message names the problem, the value, what is allowed and the fix."""

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(readable(message.strip()))


class DivergedError(UserError):
    """Report a loss or a gradient that is not a finite number. A comparison counts such a tuning run as a result."""

    exit_code = 4


class ResumeError(UserError):
    """Report a run that cannot be resumed: its checkpoints are damaged, or it has other settings."""


class SaveError(UserError):
    """Report a checkpoint that was not written. Training continues without it."""


class Stopped(BaseException):  # not an Exception: nothing that catches errors may take it for one
    """A signal ended a run before its time. The message says how to go on.

    Args:
        message: For the user.
        signal: Its number; the process ends with 128 more, as shells have it.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal


def require(holds: bool, flag: str, value: Any, allowed: str, fix: str) -> None:
    """Refuse a value, in the one form that all refusals have."""
    if not holds:
        raise UserError(f"--{flag}: got {value}, must be {allowed}. {fix}")


def require_package(flag: str, value: str, package: str) -> None:
    """Refuse a setting whose package is an extra that is not installed, before any work is done."""
    installed = find_spec(package) is not None
    require(installed, flag, value, f"left out while {package} is not installed", f"Try pip install {package}.")


# Packages that huggingface_hub talks to the Hub with, by version.
CONNECTIONS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
LONGEST = 400


class EncoderError(UserError):
    """Report an encoder that cannot be used.

    Args:
        problem: Message without the flag that named the encoder.
        given: What named the encoder, put before the message. `encoder_given_by` changes it.
    """

    def __init__(self, problem: str, given: str = "--model.name"):
        super().__init__(f"{given}: {problem}")
        self.problem = readable(problem.strip())


class HubUnreachableError(EncoderError):
    """Report an encoder for which the Hub gave no answer. A dry run of a push continues without it."""


@contextmanager
def encoder_given_by(given: str) -> Iterator[None]:
    """Put another flag than `--model.name` before errors of an encoder, such as `--base-id`."""
    try:
        yield
    except EncoderError as error:
        raise type(error)(error.problem, given) from error


def in_one_line(error: BaseException, longest: int = 1_000) -> str:
    """Return the text of an exception on one line, at most `longest` characters; its type if it has no text."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def library_problem(error: BaseException) -> str:
    """Describe in a clause what a library or the Hub reported.

    Libraries raise a lost connection or an answer of the Hub as errors of other kinds, so the causes are searched.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = list(_chain(error))
    answer = next((each for each in chain if isinstance(each, HfHubHTTPError)), None)
    if answer is not None:
        text = in_one_line(answer, LONGEST)
        if isinstance(answer, RevisionNotFoundError):
            return f"it has no such revision on the Hub ({text})"
        status = getattr(answer.response, "status_code", None)
        if isinstance(answer, RepositoryNotFoundError) or status in (401, 403):
            return f"check the name, or log in with `hf auth login` as someone who has access ({text})"
        return text
    if any(isinstance(each, LocalTokenNotFoundError) for each in chain):
        return f"log in with `hf auth login` ({_first_line(error)})"
    if _is_connection_lost(chain):
        # Libraries then report files that do not exist.
        return f"the Hub was not reached, or broke off ({_first_line(chain[-1])}); files fetched so far are kept"
    return _first_line(error)


def _is_connection_lost(chain: Sequence[BaseException]) -> bool:
    """Return whether the Hub gave no answer, by an exception and its causes."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if any(isinstance(each, HfHubHTTPError) for each in chain):
        return False
    lost = any(type(each).__module__.partition(".")[0] in CONNECTIONS for each in chain)
    return lost or any(isinstance(each, LocalEntryNotFoundError) for each in chain)


def _first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, with the second if the first is a heading."""
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def unloadable(name: str, error: Exception) -> UserError:
    """Translate the error of a library that could not load an encoder.

    Args:
        name: Encoder, as it was given.
        error: Error of the library; a `UserError` is returned as it is.
    """
    if isinstance(error, UserError):
        return error
    problem = library_problem(error)
    if "Can't load the model for" in problem and not Path(name).is_dir():
        # transformers reports an interrupted download with these words too.
        problem = "its weights are not on the Hub, or were not fetched completely; repeat the command to resume"
    elif "weights_only" in str(error):
        # torch advises to run the pickle.
        problem = "its weights are a pickle of more than weights"
    kind = HubUnreachableError if _is_connection_lost(list(_chain(error))) else EncoderError
    return kind(
        f"{name} cannot be loaded: {problem.rstrip('.')}. "
        f"Give a folder made by save_pretrained, a Hub id (needs a connection) or wav2vec2-nano."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
