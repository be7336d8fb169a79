"""Push an adapter to the Hub in one commit."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from peft_audio.adapters.files import ADAPTER_CONFIG, PREPROCESSOR, TRAINED_CLIPS, read_object
from peft_audio.adapters.hub import ADAPTER_FILES, WHOLE_FILES, is_hub_id
from peft_audio.adapters.record import RECORD, AdapterRecord, read_record
from peft_audio.adapters.verify import check_probes
from peft_audio.config import ModelConfig
from peft_audio.encoders.loading import BUNDLED_ENCODER, identify_base, load_classifier, pin_base
from peft_audio.errors import HubUnreachableError, UserError, encoder_given_by, library_problem
from peft_audio.publish.model_card import model_card
from peft_audio.runs.finished import made_adapter

UNKNOWN_COMMIT = "0" * 40  # commit of a base in a dry run without the Hub


@dataclass(frozen=True)
class Pushed:
    """Files pushed to the Hub, or listed by a dry run.

    Attributes:
        files: Name and bytes of each file.
        notes: Checks that a dry run skipped because the Hub was unreachable.
        obstacle: Reason found by a dry run why a push would be refused; "" if there is none.
        url: URL of the commit; None after a dry run.
        commit: Hash of the commit; None after a dry run.
    """

    files: tuple[tuple[str, int], ...]
    notes: tuple[str, ...] = ()
    obstacle: str = ""
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
    trained_clips: bool = True,
) -> Pushed:
    """Push an adapter, or a whole model, to the Hub in one commit.

    First the adapter must reproduce its recorded logits. Only its files are sent, with a model card as README. If the
    adapter is in a run folder, the card has its training settings and confusions.

    Args:
        folder: Adapter directory, such as `runs/lora/adapter`.
        repository: `org/name`; created if it does not exist.
        base_id: Hub id of a base that was trained on as a local folder; its weights must be equal.
        private: Create a private repository. An existing one is not changed.
        comparison: Folder with `comparison.md`; its tables are added to the card.
        license: Hub id of the licence.
        dry_run: List the files and send nothing. Skip checks that need the Hub if it is unreachable.
        trained_clips: Also send `trained_clips.bin`, the hashes of the clips that the adapter was trained on.

    Raises:
        UserError: The adapter was not made by this package or is broken, its base is not on the Hub, or the Hub refuses
            the push.
    """
    if not is_hub_id(repository):
        raise UserError(
            f"ORG/NAME: got {repository}, expected two names of letters, digits, - _ and ., such as org/digits."
        )
    notes: list[str] = []
    obstacle = ""
    record = read_record(folder)
    try:
        record = _with_base_on_hub(folder, record, base_id)
    except UserError as error:
        if not dry_run:
            raise
        if isinstance(error, HubUnreachableError):
            notes.append(f"skipped the comparison of the base with {base_id}, which a push makes: {error}")
            record = replace(record, base=replace(record.base, name=base_id or "", commit=UNKNOWN_COMMIT))
        else:
            obstacle = str(error)
        base_id = None
    try:
        problems = check_probes(folder, None if record.whole else base_id)
    except HubUnreachableError as error:
        if not dry_run:
            raise
        problems = []
        notes.append(f"skipped the check of the recorded logits, which a push makes: {error}")
    if problems:
        raise UserError(f"{folder} does not reproduce its recorded logits and was not sent: {problems[0]}")
    run = _run_of(folder, record)
    with tempfile.TemporaryDirectory(prefix="peft_audio_push_") as temporary:
        staged = Path(temporary)
        card = model_card(record, repository, run, comparison, license)
        _stage(folder, staged, record, card, trained_clips)
        files = tuple((path.name, path.stat().st_size) for path in sorted(staged.iterdir()))
        if dry_run:
            return Pushed(files, tuple(notes), obstacle)
        return _send(staged, repository, private, record, files)


def _with_base_on_hub(folder: Path, record: AdapterRecord, base_id: str | None) -> AdapterRecord:
    """Return the record with the Hub id and commit of its base.

    Raises:
        UserError: The base is not on the Hub, or `base_id` has other weights.
    """
    if base_id is not None:
        if record.base.commit is not None and record.base.name != base_id:
            raise UserError(f"--base-id: got {base_id}, but {folder} was trained on {record.base.name}. Leave it out.")
        if not is_hub_id(base_id):
            raise UserError(f"--base-id: got {base_id}, must be the org/name of a base on the Hub.")
        cfg = ModelConfig(name=base_id, input_seconds=record.input_seconds)
        with encoder_given_by("--base-id"):
            commit = pin_base(cfg)[1]
        if commit is None:
            raise UserError(
                f"--base-id: {base_id} is a local folder, which hides the Hub id; run the command in another folder."
            )
        with encoder_given_by("--base-id"):
            sha256 = identify_base(cfg, load_classifier(cfg, record.labels)).sha256
        if sha256 != record.base.sha256:
            raise UserError(
                f"--base-id: {base_id} has other weights ({sha256[:12]}) than the base of {folder} "
                f"({record.base.sha256[:12]}). Give the id of the same base."
            )
        return replace(record, base=replace(record.base, name=base_id, commit=commit))
    if record.base.commit is not None or (record.whole and record.base.name == BUNDLED_ENCODER):
        return record
    advice = "upload it (hf upload org/name FOLDER) and give its Hub id with --base-id org/name"
    if record.base.name == BUNDLED_ENCODER:
        raise UserError(
            f"{folder}: its base is the bundled encoder, which only peft-audio has. Write it to a folder "
            f"(peft-audio base FOLDER), {advice}."
        )
    raise UserError(
        f"{folder}: its base, {record.base.name}, is a local folder that others do not have. If it is a copy of a base "
        f"on the Hub, give that with --base-id org/name; otherwise {advice}."
    )


def _run_of(folder: Path, record: AdapterRecord) -> Path | None:
    """Return the folder of the run that made an adapter, if the adapter is in it."""
    run = made_adapter(folder, record)
    if run is None and (folder.resolve().parent / "report.json").is_file():
        parent = folder.resolve().parent
        raise UserError(f"{folder} is in the folder of another run, {parent}; move it to its own folder first.")
    return run


def _stage(folder: Path, staged: Path, record: AdapterRecord, card: str, trained_clips: bool) -> None:
    """Copy the files to push to a temporary folder, without local paths."""
    clips = [TRAINED_CLIPS] if trained_clips and (folder / TRAINED_CLIPS).exists() else []
    for name in (PREPROCESSOR, *(WHOLE_FILES if record.whole else ADAPTER_FILES), *clips):
        source = folder / name
        if source.is_symlink() or not source.is_file():
            raise UserError(f"{source} is not a file, so the adapter is incomplete. Save it again.")
        shutil.copyfile(source, staged / name)
    (staged / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    (staged / "README.md").write_text(card, encoding="utf-8")
    if not record.whole:
        config = read_object(staged / ADAPTER_CONFIG)
        config |= {"base_model_name_or_path": record.base.name, "revision": record.base.commit}
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (staged / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def _send(
    staged: Path, repository: str, private: bool, record: AdapterRecord, files: tuple[tuple[str, int], ...]
) -> Pushed:
    api = HfApi()
    # Hashes of an adapter that was pushed before do not belong to this one.
    stale = {TRAINED_CLIPS} - {name for name, _ in files}
    try:
        _check_repository(api, repository, private, record)
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=staged,
            allow_patterns=[name for name, _ in files],
            # Beside the files of an adapter, files of a whole model would be loaded instead, and vice versa.
            delete_patterns=[*(ADAPTER_FILES if record.whole else WHOLE_FILES), *stale],
            commit_message=f"{record.strategy}, trained with peft-audio {record.versions['peft-audio']}",
        )
    except UserError:
        raise
    except Exception as error:  # exception classes differ between versions of huggingface_hub
        raise UserError(
            f"{repository}: no file was sent, because a push is a single commit: {library_problem(error)}. "
            "Correct this, or check the connection, and repeat the command."
        ) from error
    return Pushed(files, url=done.commit_url, commit=done.oid)


def _check_repository(api: HfApi, repository: str, private: bool, record: AdapterRecord) -> None:
    """Refuse an existing repository that is public or holds another model."""
    try:
        existing = api.model_info(repository)
    except RepositoryNotFoundError:
        return
    if private and not existing.private:
        raise UserError(f"--private: {repository} exists and is public; make it private on the Hub, or leave it out.")
    names = {file.rfilename for file in existing.siblings or ()}
    other = names & set(ADAPTER_FILES if record.whole else WHOLE_FILES)
    if other and RECORD not in names:
        raise UserError(f"{repository} holds a model that peft-audio did not push ({min(other)}); give another name.")
