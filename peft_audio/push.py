"""An adapter, sent to the Hub whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi

from peft_audio.adapter_record import RECORD, AdapterRecord, read_record
from peft_audio.config import ModelConfig, UserError
from peft_audio.hub import ADAPTER_FILES, COMMON_FILES, WHOLE_FILES, is_hub_id
from peft_audio.model_card import model_card
from peft_audio.models import BUNDLED_ENCODER, first_line, pin_base
from peft_audio.verify import check_probes


@dataclass(frozen=True)
class Pushed:
    """What went to the Hub, or would go.

    Attributes:
        files: Name and bytes of each file.
        url: Of the commit; None after a dry run.
        commit: Its hash; None after a dry run.
    """

    files: tuple[tuple[str, int], ...]
    url: str | None = None
    commit: str | None = None


def push_adapter(
    folder: Path,
    repository: str,
    base_id: str | None = None,
    private: bool = False,
    comparison: Path | None = None,
    license: str = "",
    dry_run: bool = False,
) -> Pushed:
    """Send an adapter, or a whole model, to the Hub in one commit, once it has given its recorded answers again.

    Only the files that it consists of are sent, with a card in the place of its README. Where they stand in a run's
    folder, the card says how it was trained and what it confuses.

    Args:
        folder: Such as `runs/lora/adapter`.
        repository: `org/name`; made where it does not exist.
        base_id: The base on the Hub for which a local one stands; its weights must be the same.
        private: Make a new repository private. One that exists stays as it is.
        comparison: A folder with `comparison.md`, to be put into the card.
        license: As the Hub names licences.
        dry_run: Send nothing, and ask nothing of the repository.

    Raises:
        UserError: It is no adapter of ours, is broken, its base is not on the Hub, or the Hub does not take it.
    """
    if not is_hub_id(repository):
        raise UserError(f"ORG/NAME: got {repository}, must be two names of letters, digits, - _ and ., as org/digits.")
    record = _with_base_on_hub(folder, read_record(folder), base_id)
    problems = check_probes(folder, None if record.whole else base_id)
    if problems:
        raise UserError(f"{folder} does not give its recorded answers and is not sent: {problems[0]}")
    run = folder.resolve().parent
    with tempfile.TemporaryDirectory(prefix="peft_audio_push_") as temporary:
        staged = Path(temporary)
        card = model_card(record, repository, run if (run / "report.json").is_file() else None, comparison, license)
        _stage(folder, staged, record, card)
        files = tuple((path.name, path.stat().st_size) for path in sorted(staged.iterdir()))
        if dry_run:
            return Pushed(files)
        return _send(staged, repository, private, record, files)


def _with_base_on_hub(folder: Path, record: AdapterRecord, base_id: str | None) -> AdapterRecord:
    """The record with its base as strangers can find it."""
    if base_id is not None:
        if record.base.commit is not None and record.base.name != base_id:
            raise UserError(f"--base-id: got {base_id}, but {folder} was trained on {record.base.name}. Leave it out.")
        if not is_hub_id(base_id):
            raise UserError(f"--base-id: got {base_id}, must be the org/name of a base on the Hub.")
        commit = pin_base(ModelConfig(name=base_id))[1]
        if commit is None:
            raise UserError(f"--base-id: {base_id} is a folder here; give the base's name on the Hub, from elsewhere.")
        return replace(record, base=replace(record.base, name=base_id, commit=commit))
    if record.base.commit is not None or (record.whole and record.base.name == BUNDLED_ENCODER):
        return record
    advice = "upload it (hf upload org/name FOLDER) and give its name with --base-id org/name"
    if record.base.name == BUNDLED_ENCODER:
        raise UserError(
            f"{folder}: its base is the bundled encoder, which only peft-audio has. Write it to a folder "
            f"(peft-audio base FOLDER), {advice}."
        )
    raise UserError(
        f"{folder}: its base, {record.base.name}, is a folder of this machine, which nobody else has. If it stands for "
        f"a base on the Hub, name that with --base-id org/name; else {advice}."
    )


def _stage(folder: Path, staged: Path, record: AdapterRecord, card: str) -> None:
    """The files as strangers get them: nothing but what an adapter consists of, no path of this machine."""
    for name in (*COMMON_FILES, *(WHOLE_FILES if record.whole else ADAPTER_FILES)):
        source = folder / name
        if source.is_symlink() or not source.is_file():
            raise UserError(f"{source} is not a file; an adapter is sent whole or not at all. Save it again.")
        shutil.copyfile(source, staged / name)
    (staged / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    (staged / "README.md").write_text(card, encoding="utf-8")
    if not record.whole:
        config = json.loads((staged / "adapter_config.json").read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": record.base.name, "revision": record.base.commit}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staged / "adapter_config.json").write_text(text, encoding="utf-8")


def _send(
    staged: Path, repository: str, private: bool, record: AdapterRecord, files: tuple[tuple[str, int], ...]
) -> Pushed:
    api = HfApi()
    with _refused_in_words(repository):
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=staged,
            allow_patterns=[name for name, _ in files],
            # A whole model's files beside an adapter's would be taken for the model, and the other way round.
            delete_patterns=list(ADAPTER_FILES if record.whole else WHOLE_FILES),
            commit_message=f"{record.strategy}, trained with peft-audio {record.versions['peft-audio']}",
        )
    return Pushed(files, done.commit_url, done.oid)


@contextmanager
def _refused_in_words(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the connection's own kinds differ between versions of huggingface_hub
        status = getattr(getattr(error, "response", None), "status_code", None)
        # Without any token huggingface_hub does not even ask.
        locked = status in (401, 403) or "token" in str(error).lower()
        advice = (
            "log in as somebody who may write there (hf auth login)"
            if locked
            else "the same command can be given again"
        )
        raise UserError(
            f"{repository} was not changed, for a push is one commit or none ({first_line(error)}); {advice}."
        ) from error
