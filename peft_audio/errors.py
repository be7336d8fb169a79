"""Define errors that a user can fix, and explain errors of libraries."""

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

from peft_audio.text import readable, safe_to_print

# `kill`, torchrun, and SLURM on pre-emption send SIGTERM. SLURM sends SIGUSR1 to jobs that request it
# (`--signal=USR1@90`).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
AGAIN = "Repeat the command with --train.resume true to resume from the last checkpoint."
LESS_MEMORY = (
    "Split steps with --train.gradient_accumulation_steps or --train.auto_micro_batch true, which keep the clips of a "
    "step; lower --data.max_seconds; in an evaluation, lower --train.batch_size or --data.max_eval_seconds."
)
FULL = (errno.ENOSPC, errno.EDQUOT)
MEANINGS = {
    # Messages of gloo and NCCL.
    ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "remote process exited"): (
        "another process of this run ended or cannot be reached; its output shows the cause ({text}). {again}"
    ),
    ("does not have a deterministic implementation",): (
        "--train.deterministic: torch has no deterministic kernel for an operation ({text}). Leave the setting out."
    ),
}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG)


def explain(error: BaseException, folder: str, less_memory: str = LESS_MEMORY, again: str = AGAIN) -> str | None:
    """Explain an error that the user can fix: its cause and a remedy.

    Args:
        error: Error that ended the run or the command.
        folder: Folder that the command writes to; empty if unknown.
        less_memory: Advice for errors of memory.
        again: Advice on how to continue.

    Returns:
        The explanation; None if the error is not one of memory, disk, files or processes.
    """
    text = " ".join(str(error).split())
    out_of_memory = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, MemoryError) or any(words in text for words in out_of_memory):
        return f"memory is too small ({text[:120] or 'MemoryError'}). {less_memory}"
    if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
        return (
            f"a process that reads recordings died ({text[:160]}), often because memory ran out. Lower "
            f"--data.num_workers, or set it to 0. {again}"
        )
    for parts, meaning in MEANINGS.items():
        if any(part in text for part in parts):
            return meaning.format(text=text[:160], again=again)
    number, strerror = getattr(error, "errno", None), getattr(error, "strerror", None)
    where = getattr(error, "filename", None)
    if number in FULL or "No space left on device" in text:
        location = f" at {where}" if where else f", most likely that of {folder}" if folder else ""
        return f"the disk is full{location} ({strerror or text[:160]}). Make room. {again}".rstrip()
    if number in REFUSED or (number == errno.ENOENT and where):
        what = "does not exist" if number == errno.ENOENT else "cannot be written or read"
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
    return safe_to_print(words), error.exit_code if isinstance(error, UserError) else UserError.exit_code


def print_traceback_if_debugging() -> None:
    """Print the traceback of the current exception if `PEFT_AUDIO_DEBUG` is 1."""
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()


class UserError(ValueError):
    """Report a problem that the user can fix. The message names the problem, the value, what is allowed and a fix."""

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


class Stopped(BaseException):  # not an Exception, so that handlers of errors do not catch it
    """Report that a signal stopped a run. The message explains how to resume.

    Args:
        message: Message for the user.
        signal: Number of the signal. The exit code is 128 plus this number, as in shells.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.exit_code = 128 + signal


def require(holds: bool, flag: str, value: Any, allowed: str, fix: str) -> None:
    """Raise a `UserError` in the common form of messages on settings, unless a condition holds."""
    if not holds:
        raise UserError(f"--{flag}: got {value}, must be {allowed}. {fix}")


def require_package(flag: str, value: str, package: str) -> None:
    """Raise a `UserError` if the package of a setting is not installed, before any work is done."""
    installed = find_spec(package) is not None
    require(installed, flag, value, f"left out while {package} is not installed", f"Try pip install {package}.")


# Packages with which versions of huggingface_hub connect to the Hub.
CONNECTIONS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
LONGEST = 400


class EncoderError(UserError):
    """Report an encoder that cannot be used.

    Args:
        problem: Message without the flag that named the encoder.
        given: Flag or file that named the encoder, put before the message. `encoder_given_by` changes it.
    """

    def __init__(self, problem: str, given: str = "--model.name"):
        super().__init__(f"{given}: {problem}")
        self.problem = readable(problem.strip())


class HubUnreachableError(EncoderError):
    """Report an encoder for which the Hub gave no answer. A dry run of a push continues without it."""


@contextmanager
def encoder_given_by(given: str) -> Iterator[None]:
    """Put another flag, such as `--base-id`, instead of `--model.name` before errors of an encoder."""
    try:
        yield
    except EncoderError as error:
        raise type(error)(error.problem, given) from error


def in_one_line(error: BaseException, longest: int = 1_000) -> str:
    """Return the text of an exception on one line, at most `longest` characters; its type if it has no text."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def library_problem(error: BaseException) -> str:
    """Describe in a clause what a library or the Hub reported.

    Libraries wrap a lost connection or an answer of the Hub in other errors, so this searches the causes.
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
        # Libraries then report that files do not exist.
        cause = _first_line(chain[-1])
        return f"the Hub was not reached, or the connection was lost ({cause}); downloaded files are kept"
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
        problem = "its weights are not on the Hub, or not downloaded completely; repeat the command to resume"
    elif "weights_only" in str(error):
        # The message of torch advises to run the pickle.
        problem = "its weights are a pickle that holds more than weights"
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
