"""Why something could not be loaded, in a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from peft_audio.config import ModelConfig, UserError

# What huggingface_hub speaks to the Hub with, by version.
CONNECTIONS = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
LONGEST = 400


def first_line(error: BaseException) -> str:
    """What an exception says, shortened to a line; its type where it says nothing."""
    if isinstance(error, HfHubHTTPError):
        # The first line is "404 Client Error."; what is not found, and how to log in, comes behind it.
        return " ".join(str(error).split())[:LONGEST]
    first, *others = str(error).strip().splitlines() or [type(error).__name__]
    # The reason comes behind a heading.
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first


def unloadable(name: str, error: Exception) -> UserError:
    """What kept a base from being loaded, for the user.

    Args:
        name: Of the base, as it was given.
        error: What was raised.
    """
    if isinstance(error, UserError):
        return error
    chain = list(_chain(error))
    why = first_line(error)
    if _connection_lost(chain):
        # transformers then speaks of files that are not there.
        why = f"the Hub was not reached, or broke off ({first_line(chain[-1])}); what has arrived is kept"
    elif "Can't load the model for" in why and not Path(name).is_dir():
        # All that transformers says where a download broke off, too.
        why = "its weights are not on the Hub, or were not fetched to their end; start again: what has arrived is kept"
    elif "weights_only" in str(error):
        # What torch says of a pickle ends in advice to run it.
        why = "its weights are a pickle of more than weights"
    return UserError(
        f"--model.name: {name} cannot be loaded: {why.rstrip('.')}. "
        f"Give a folder made by save_pretrained, a Hub id (needs a connection) or {ModelConfig().name}."
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it came from."""
    at: BaseException | None = error
    while at is not None:
        yield at
        at = at.__cause__ or at.__context__


def _connection_lost(chain: list[BaseException]) -> bool:
    """Whether the Hub gave no answer, or none to its end."""
    if any(isinstance(each, LocalEntryNotFoundError) for each in chain):
        return True
    answered = any(isinstance(each, HfHubHTTPError) for each in chain)
    return not answered and any(type(each).__module__.partition(".")[0] in CONNECTIONS for each in chain)
