"""Fetch adapters from the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from peft_audio.adapters.files import (
    ADAPTER_CONFIG,
    PREPROCESSOR,
    TRAINED_CLIPS,
    WEIGHTS,
    WHOLE_CONFIG,
    WHOLE_WEIGHTS,
)
from peft_audio.adapters.record import RECORD
from peft_audio.errors import UserError, library_problem
from peft_audio.files import expanded, file_sha256, sha256

# Files of an adapter or of a whole model. No other files, such as pickles or code, are pushed or fetched.
ADAPTER_FILES = (ADAPTER_CONFIG, WEIGHTS)
WHOLE_FILES = (WHOLE_CONFIG, WHOLE_WEIGHTS)
COMMON_FILES = ("README.md", RECORD, PREPROCESSOR)


def fetch_adapter(where: str | Path, revision: str | None = None) -> Path:
    """Return the folder of an adapter, fetched from the Hub into its cache if necessary.

    Args:
        where: Folder, or `org/name` on the Hub if no such folder exists.
        revision: Branch, tag or commit on the Hub; the default branch by default.

    Returns:
        The folder, which can lack an adapter.

    Raises:
        UserError: The adapter is not on the Hub, or the Hub cannot be reached.
    """
    folder = expanded(where)
    if folder.exists() or not is_hub_id(str(where)):
        if revision is not None:
            raise UserError(f"--revision: got {revision}, but {where} is not on the Hub. Leave it out.")
        return folder
    files = [*COMMON_FILES, *ADAPTER_FILES, *WHOLE_FILES, TRAINED_CLIPS]
    try:
        return Path(snapshot_download(str(where), revision=revision, allow_patterns=files))
    except Exception as error:  # types of errors differ between versions of huggingface_hub
        version = "" if revision is None else f" at --revision {revision}"
        raise UserError(
            f"{where}{version} is not a local folder, and the Hub did not return it: {library_problem(error)}."
        ) from error


def hash_adapter(folder: Path) -> str:
    """Hash the files of an adapter except its README, as hexadecimal digits; with the base, they determine logits."""
    names = sorted({*COMMON_FILES, *ADAPTER_FILES, *WHOLE_FILES} - {"README.md"})
    return sha256(f"{name}\t{file_sha256(folder / name)}\n".encode() for name in names if (folder / name).is_file())


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub repository, `org/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1
