"""Everything that is wrong with an adapter, ours or anybody's for an audio classifier, told before it misleads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from rich.console import Console

from peft_audio.adapters.examine_base import Patient, check_base
from peft_audio.adapters.files import (
    ADAPTER_CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    WHOLE_CONFIG,
    WHOLE_WEIGHTS,
    not_finite,
    read_object,
    read_peft_config,
    stored_shapes,
)
from peft_audio.adapters.finding import AGAIN, Finding
from peft_audio.adapters.hub import fetch_adapter
from peft_audio.adapters.record import RECORD, AdapterRecord, read_record
from peft_audio.adapters.verify import check_probes
from peft_audio.errors import UserError
from peft_audio.files import expanded
from peft_audio.text import as_told

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".exe", ".bat")
STYLES = {"ok": "green", "skipped": "dim", "warning": "yellow", "broken": "bold red"}


def examine(where: str | Path, base: str | None = None, revision: str | None = None) -> list[Finding]:
    """Look at every part of an adapter, or of a whole model of ours. Of its files no pickle is read and no code run.

    Args:
        where: A folder, or `org/name` on the Hub.
        base: Where the base encoder is now, if not where the adapter says.
        revision: Of an adapter on the Hub.

    Returns:
        The findings in the order of the checks. What cannot be checked because of an earlier fault says so.

    Raises:
        UserError: There is no such folder, nothing of an adapter in it, or the Hub does not give it.
    """
    folder = fetch_adapter(where, revision)
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder; give one such as runs/lora/adapter, or org/name on the Hub.")
    ours = (folder / RECORD).exists()
    if not ours and not (folder / ADAPTER_CONFIG).exists():
        read_record(folder)
    here = expanded(where).exists()
    names = _names_in(folder) if here else _names_on_hub(str(where), revision)
    record, about_record = _read(folder) if ours else (None, [])
    whole = record.whole if record else not (folder / ADAPTER_CONFIG).exists()
    if whole and base is not None:
        raise UserError(f"--base: got {base}, but {where} is a whole model and needs none. Leave it out.")
    findings = [*_check_files(folder, names, WHOLE_WEIGHTS if whole else WEIGHTS), *about_record]
    shapes, about_weights = _check_weights(folder / (WHOLE_WEIGHTS if whole else WEIGHTS))
    findings += about_weights
    settings, about_settings = _check_settings(folder, whole, record)
    findings += about_settings
    if record:
        findings += _check_preprocessor(folder, record)
    if not whole:
        findings += check_base(Patient(folder, settings, shapes, record, base))
    return [*findings, *_check_probes(folder, record, ours, base, findings)]


def _names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _names_on_hub(name: str, revision: str | None) -> list[str] | None:
    """All files there are, which are more than those that are fetched; None where the Hub does not say."""
    try:
        return sorted(HfApi().list_repo_files(name, revision=revision))
    except Exception:  # the connection's own kinds differ between versions of huggingface_hub
        return None


def _read(folder: Path) -> tuple[AdapterRecord | None, list[Finding]]:
    try:
        record = read_record(folder)
    except UserError as error:
        return None, [Finding("record", "broken", str(error), AGAIN)]
    made = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name != "python")
    return record, [Finding("record", "ok", f"{record.strategy}, {len(record.labels)} labels, made with {made}")]


def _check_files(folder: Path, names: list[str] | None, weights: str) -> Iterator[Finding]:
    """What else stands there, and what is not really there."""
    if names is None:
        yield Finding("files", "skipped", "the Hub cannot be asked what else stands beside what was fetched")
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    code = [name for name in names if name.endswith(CODE)]
    if pickles and not (folder / weights).exists():
        why = f"the weights are there only as a pickle ({', '.join(pickles)}), which can run any code when it is read"
        mend = f"it was not read; ask for {weights}, or convert it where nothing can be harmed"
        yield Finding("files", "broken", why, mend)
    elif pickles:
        why = f"pickles beside the weights: {', '.join(pickles)}; not read here, but other programs may"
        yield Finding("files", "warning", why, "delete them: a pickle can run any code when it is read")
    if code:
        yield Finding("files", "warning", f"code beside the weights: {', '.join(code)}; never run here", "delete it")
    for name in names:
        path = folder / name
        # The Hub's cache is made of such links, from snapshots/ to blobs/.
        if path.is_symlink() and "snapshots" not in folder.resolve().parts:
            target = path.resolve()
            if not target.is_relative_to(folder.resolve()):
                why = f"{name} is a link out of the folder, to {target}; whoever gets the folder will not have it"
                yield Finding("files", "warning", why, "put the file itself there, if you know what it is")
    if not pickles and not code:
        yield Finding("files", "ok", "no pickles and no code")


def _check_weights(path: Path) -> tuple[dict[str, tuple[int, ...]] | None, list[Finding]]:
    """The shapes in the file, and whether all of it is there and finite."""
    try:
        shapes = stored_shapes(path)
        bad = not_finite(path)
    except UserError as error:
        return None, [Finding("weights", "broken", str(error), AGAIN)]
    if bad:
        why = f"NaN or infinity in {len(bad)} of {len(shapes)} weights, {bad[0]} first: every answer is NaN"
        return shapes, [Finding("weights", "broken", why, "train it again with a lower rate, or get another copy")]
    if not shapes:
        return shapes, [Finding("weights", "broken", f"{path.name} holds no weights", AGAIN)]
    return shapes, [Finding("weights", "ok", f"{len(shapes)} weights, {path.stat().st_size:,} bytes, all finite")]


def _check_settings(
    folder: Path, whole: bool, record: AdapterRecord | None
) -> tuple[dict[str, Any] | None, list[Finding]]:
    """`adapter_config.json`, or the `config.json` of a whole model."""
    name = WHOLE_CONFIG if whole else ADAPTER_CONFIG
    try:
        settings = read_object(folder / WHOLE_CONFIG) if whole else read_peft_config(folder)
    except UserError as error:
        return None, [Finding("settings", "broken", str(error), AGAIN)]
    found = [*_settings_of_whole(settings, record)] if whole else [*_settings_of_adapter(settings, record)]
    kind = settings.get("model_type" if whole else "peft_type")
    usable = whole or kind in PEFT_TYPE_TO_CONFIG_MAPPING
    return settings if usable else None, found or [Finding("settings", "ok", f"{name}: {kind}")]


def _settings_of_adapter(settings: dict[str, Any], record: AdapterRecord | None) -> Iterator[Finding]:
    kind, base = settings["peft_type"], settings.get("base_model_name_or_path")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(PEFT_TYPE_TO_CONFIG_MAPPING))
        yield Finding("settings", "broken", f"peft_type {kind} is none that PEFT here knows ({known})", "upgrade PEFT")
    mapping = settings.get("auto_mapping")
    library = mapping.get("parent_library", "transformers") if isinstance(mapping, dict) else "transformers"
    if str(library).split(".")[0] not in ("transformers", "peft"):
        why = f"auto_mapping.parent_library is {library}: AutoPeftModel would import that, which is code; not done here"
        yield Finding("settings", "broken", why, "set it to null")
    if record is None:
        return
    if base != record.base.name:
        why = f"{ADAPTER_CONFIG} names the base {base}, {RECORD} names {record.base.name}: PEFT alone loads another one"
        yield Finding("settings", "broken", why, f"set base_model_name_or_path to {record.base.name}")
    if settings.get("revision") not in (None, record.base.commit):
        why = f"{ADAPTER_CONFIG} names the revision {settings['revision']}, {RECORD} the commit {record.base.commit}"
        yield Finding("settings", "broken", why, "set revision to that commit")


def _settings_of_whole(settings: dict[str, Any], record: AdapterRecord | None) -> Iterator[Finding]:
    if settings.get("auto_map"):
        why = f"{WHOLE_CONFIG} names code of its own (auto_map); never run here, but other programs may ask to"
        yield Finding("settings", "warning", why, "take auto_map out of it: our models need no code")
    names = settings.get("id2label")
    names = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else None
    if record is not None and names != list(record.labels):
        why = f"{WHOLE_CONFIG} says the labels {names}, {RECORD} says {list(record.labels)}: programs would disagree"
        yield Finding("labels", "broken", why, AGAIN)


def _check_preprocessor(folder: Path, record: AdapterRecord) -> Iterator[Finding]:
    # Here, because adapters loads models, and all above is said where those cannot be imported.
    from peft_audio.adapters.load import read_extractor

    try:
        read_extractor(folder, record)
    except UserError as error:
        yield Finding("preprocessor", "broken", str(error), f"copy {PREPROCESSOR} from the base, if that fits")
    else:
        yield Finding("preprocessor", "ok", f"{record.sampling_rate:,} Hz, as recorded")


def _check_probes(
    folder: Path, record: AdapterRecord | None, ours: bool, base: str | None, before: list[Finding]
) -> Iterator[Finding]:
    if not ours:
        why = "it holds no recorded answers, so nobody can see whether it still gives its maker's numbers"
        yield Finding("answers", "warning", why, "ask its maker for a few clips with their labels")
    elif record is None or any(finding.severity == "broken" for finding in before):
        yield Finding("answers", "skipped", "not asked for, because of what is broken above")
    else:
        try:
            problems = check_probes(folder, base)
        except UserError as error:
            yield Finding("loading", "broken", str(error), AGAIN)
            return
        for problem in problems:
            yield Finding("answers", "broken", problem, "labels or weights were changed since it was saved; " + AGAIN)
        if not problems:
            yield Finding("answers", "ok", f"{len(record.probes)} probe clips give the recorded logits and labels")


def is_broken(findings: list[Finding]) -> bool:
    """Whether something there makes answers wrong or impossible."""
    return any(finding.severity == "broken" for finding in findings)


def print_findings(findings: list[Finding], console: Console) -> None:
    """A line a finding, with its mend below."""
    for finding in findings:
        console.print(f"[{STYLES[finding.severity]}]{finding.severity:<8}[/]", end="")
        console.print(as_told(f"{finding.check}: {finding.what}"), highlight=False, markup=False, soft_wrap=True)
        if finding.mend:
            console.print(as_told(f"        mend: {finding.mend}"), highlight=False, markup=False, soft_wrap=True)
    worst = {finding.severity for finding in findings}
    usable = "usable, with the warnings above" if "warning" in worst else "nothing is wrong with it"
    console.print("broken: do not use it as it is" if is_broken(findings) else usable)


def to_json(where: str, findings: list[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    return {"adapter": where, "broken": is_broken(findings), "findings": [asdict(finding) for finding in findings]}
