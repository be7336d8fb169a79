"""Examine an adapter for an audio classifier, made by this package or by PEFT alone, and list its faults."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import peft
from huggingface_hub import HfApi
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
from rich.console import Console
from transformers import AutoConfig, AutoFeatureExtractor

from peft_audio.adapters.files import (
    ADAPTER_CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    WHOLE_CONFIG,
    WHOLE_WEIGHTS,
    nonfinite_weights,
    read_object,
    read_peft_config,
    refuse_excessive_rank,
    stored_shapes,
)
from peft_audio.adapters.hub import fetch_adapter
from peft_audio.adapters.load import base_of, base_rate, expected_shapes, read_extractor
from peft_audio.adapters.record import RECORD, AdapterRecord, read_record
from peft_audio.adapters.snippet import check_snippet, differs_from_readme
from peft_audio.adapters.verify import check_probes
from peft_audio.config import ModelConfig
from peft_audio.encoders.base import LAYER_WEIGHTS
from peft_audio.encoders.family import FAMILIES
from peft_audio.encoders.loading import identify_base, load_with_absent, pin_base, quiet_loading
from peft_audio.errors import EncoderError, UserError, library_problem
from peft_audio.files import expanded, is_folder
from peft_audio.strategies.base import PEFT_PREFIX
from peft_audio.strategies.bias_only import mark_biases
from peft_audio.text import readable, safe_to_print

AGAIN = "get the adapter again from its source"
GIVE_BASE = "give its folder or Hub id with --base"


@dataclass(frozen=True)
class Finding:
    """Hold the result of one check.

    Attributes:
        check: Part that was checked, such as files, weights, settings, base, keys, head or answers.
        severity: "broken" if answers are wrong or impossible, "warning" if they may be, "skipped" if the check
            could not run.
        what: Result of the check and its consequence.
        mend: Advice on how to fix it; empty if no action is needed.
    """

    check: str
    severity: Literal["ok", "skipped", "warning", "broken"]
    what: str
    mend: str = ""

    def __post_init__(self) -> None:
        for name in ("what", "mend"):
            object.__setattr__(self, name, readable(getattr(self, name)))


Shapes = dict[str, tuple[int, ...]]
# Weight of the last layer of each family's head; it has one row per class.
LAST_LAYERS = tuple({f"{family.head_layers[-1]}.weight" for family in FAMILIES.values()})


@dataclass(frozen=True)
class ReadAdapter:
    """Readable parts of an adapter.

    Attributes:
        folder: Adapter directory.
        settings: Content of `adapter_config.json`; None if it is damaged.
        shapes: Shapes of the weights in its file; None if it is damaged.
        record: Content of `peft_audio.json`; None if it is missing or damaged.
        base: Folder or Hub id of the base, as given by the user.
    """

    folder: Path
    settings: dict[str, Any] | None
    shapes: Shapes | None
    record: AdapterRecord | None
    base: str | None


def check_base(adapter: ReadAdapter) -> Iterator[Finding]:
    """Check base, head and keys; without a record also labels and preprocessor."""
    settings, shapes, record = adapter.settings, adapter.shapes, adapter.record
    if settings is None or shapes is None:
        yield Finding("base", "skipped", "not checked, because of the faults above")
        return
    try:
        where = _base_settings(adapter, settings)
        count = len(record.labels) if record else _classes(shapes)
        labels = record.labels if record else [str(i) for i in range(count or 2)]
        model, absent = load_with_absent(where, labels, any_family=record is None)
    except EncoderError as error:
        yield Finding("base", "broken", f"--base: {error.problem}", GIVE_BASE)
        return
    except UserError as error:
        yield Finding("base", "broken", str(error), GIVE_BASE)
        return
    family = FAMILIES.get(model.config.model_type)
    encoder = f"{family.encoder if family else model.base_model_prefix}."
    lost = sorted(name for name in absent if name.startswith(encoder))
    if lost:
        why = f"{where.name} lacks {len(lost)} weights of its own encoder, {lost[0]} first; they would be random"
        yield Finding("base", "broken", why, "give a complete checkpoint with --base")
        return
    if record:
        yield from _check_base_weights(where, model, record)
    else:
        yield _check_revision(where, settings)
        yield _check_labels(where, count, absent)
        yield _check_rates(adapter.folder, where)
    fresh = {f"{PEFT_PREFIX}{name}" for name in absent}
    yield _check_head(fresh, shapes, settings)
    yield from _check_keys(adapter, model, fresh)
    yield from _check_uncalled(model, shapes)


def _base_settings(adapter: ReadAdapter, settings: dict[str, Any]) -> ModelConfig:
    """Return the settings of the base of an adapter."""
    if adapter.record:
        return base_of(adapter.folder, adapter.record, adapter.base)
    name, revision = adapter.base or settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name or not isinstance(revision, (str, type(None))):
        raise UserError(f"{ADAPTER_CONFIG} does not name its base (base_model_name_or_path is {name!r}).")
    mixed = any(key.endswith(f".{LAYER_WEIGHTS}") for key in adapter.shapes or ())
    return ModelConfig(name=name, revision=None if adapter.base else revision, layer_weighted_sum=mixed)


def _classes(shapes: Shapes) -> int | None:
    """Count the labels of the head in a file; None if the file has no head."""
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(LAST_LAYERS) and len(shape) == 2]
    return rows[0] if len(rows) == 1 else None


def _check_base_weights(where: ModelConfig, model: Any, record: AdapterRecord) -> Iterator[Finding]:
    """Check that the base has the recorded weights, commit and sampling rate."""
    found, rate = identify_base(where, model), base_rate(where)
    if found.sha256 != record.base.sha256:
        why = f"{where.name} has other weights ({found.sha256[:12]}) than what it was trained on"
        yield Finding("base", "broken", f"{why} ({record.base.sha256[:12]})", "give the right one with --base")
    elif found.commit != record.base.commit and found.commit and record.base.commit:
        why = f"{where.name} is at another commit than was recorded, with the same weights"
        yield Finding("base", "warning", why, f"pin {record.base.commit}")
    else:
        at = f" at {found.commit}" if found.commit else ""
        yield Finding("base", "ok", f"{where.name}{at}, with the recorded weights ({found.sha256[:12]})")
    if rate is None:
        yield Finding("base", "warning", f"{where.name} has no preprocessor, so its rate is not known", "")
    elif rate != record.sampling_rate:
        why = f"the adapter is for {record.sampling_rate} Hz, its base for {rate} Hz: clips would run at a wrong speed"
        yield Finding("preprocessor", "broken", why, AGAIN)


def _check_revision(where: ModelConfig, settings: dict[str, Any]) -> Finding:
    """Check that the adapter records the version of its base."""
    if settings.get("revision"):
        return Finding("base", "ok", f"{where.name} at {settings['revision']} can be loaded")
    why = f"{where.name} can be loaded, but the adapter does not record its commit: it can have changed since"
    return Finding("base", "warning", why, f"ask its maker, and set revision in {ADAPTER_CONFIG} to a commit")


def _check_labels(where: ModelConfig, count: int | None, absent: set[str]) -> Finding:
    """Check that the names of the labels are known."""
    name, commit = pin_base(where)
    names = AutoConfig.from_pretrained(name, revision=commit, trust_remote_code=False).id2label or {}
    if not absent and count in (None, len(names)):
        return Finding("labels", "ok", f"the base is a classifier and brings its labels: {list(names.values())}")
    if count is None:
        return Finding("labels", "warning", "neither their names nor their number is known: no head is in the file")
    why = f"the names of the {count} labels are not known: an adapter of PEFT does not hold them"
    return Finding("labels", "warning", why, "ask its maker for their names, in the order of the logits")


def _check_rates(folder: Path, where: ModelConfig) -> Finding:
    """Check the sampling rates of the adapter and its base."""
    base, commit = pin_base(where)
    rates = []
    for place, revision in ((str(folder), None), (base, commit)):
        try:
            found = AutoFeatureExtractor.from_pretrained(place, revision=revision, trust_remote_code=False)
            rates.append(getattr(found, "sampling_rate", None))
        except Exception:  # missing and damaged files raise many types of errors
            rates.append(None)
    own, of_base = rates
    if own and of_base and own != of_base:
        why = f"the adapter has {own} Hz, its base {of_base} Hz: one of them is wrong"
        return Finding("preprocessor", "broken", why, f"find out which, and correct {PREPROCESSOR}")
    if own or of_base:
        return Finding("preprocessor", "ok", f"{own or of_base:,} Hz{'' if own else ', from the base'}")
    why = "neither the adapter nor its base has a sampling rate"
    return Finding("preprocessor", "warning", why, "ask its maker; most speech encoders take 16,000 Hz")


def _check_head(fresh: set[str], shapes: Shapes, settings: dict[str, Any]) -> Finding:
    """Check that the file holds every weight that transformers initialises when it loads the base as a classifier."""
    if not fresh:
        return Finding("head", "ok", "the base has a head of its own")
    lost = sorted(name.removeprefix(PEFT_PREFIX) for name in fresh - shapes.keys())
    if not lost:
        return Finding("head", "ok", f"all {len(fresh)} weights that are fresh on this base are in the file")
    modules = sorted({name.removeprefix(PEFT_PREFIX).split(".")[0] for name in fresh})
    why = f"{', '.join(lost)}: drawn at random each time the base is loaded, and not in the file"
    cause = f" (task_type {settings['task_type']} saves other parts)" if settings.get("task_type") else ""
    mend = f"the trained values are lost: train it again with task_type=None and modules_to_save={modules}"
    return Finding("head", "broken", f"{why}{cause}, so logits differ from load to load", mend)


def _check_keys(adapter: ReadAdapter, model: Any, fresh: set[str]) -> Iterator[Finding]:
    """Check that the file holds exactly the weights that PEFT would save for such an adapter, with equal shapes."""
    shapes, record = adapter.shapes or {}, adapter.record
    plain = {f"{PEFT_PREFIX}{name}" for name in model.state_dict()}
    biases = mark_biases(model) if record and record.strategy == "bias_only" else ()
    try:
        refuse_excessive_rank(adapter.folder, adapter.settings or {}, shapes)
        expected = _expected_shapes(
            adapter.folder, model, biases, any(name.endswith(f".{LAYER_WEIGHTS}") for name in shapes)
        )
    except Exception as error:  # PEFT raises many types of errors for unexpected settings
        yield Finding("keys", "broken", f"PEFT cannot put it on this base: {library_problem(error)}", AGAIN)
        return
    missing = sorted(expected.keys() - shapes.keys() - fresh)
    # PEFT also loads weights of the base if a file holds them under their names.
    unknown = sorted(shapes.keys() - expected.keys() - (set() if record else plain))
    other = sorted(name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name])
    if missing:
        why = (
            f"{len(missing)} weights are missing from {WEIGHTS}, {missing[0]} first; they would keep their first values"
        )
        yield Finding("keys", "broken", why, AGAIN)
    if unknown:
        why = f"{len(unknown)} weights in {WEIGHTS} fit no layer, {unknown[0]} first; PEFT ignores them silently"
        yield Finding("keys", "broken", why, "they were renamed, or are of another base or version; " + AGAIN)
    if other:
        name = other[0]
        why = f"{len(other)} weights have another shape than {ADAPTER_CONFIG} and the base give them, {name} first"
        yield Finding(
            "keys", "broken", f"{why}: {list(shapes[name])}, not {list(expected[name])} (r, or labels)", AGAIN
        )
    if not missing and not unknown and not other:
        yield Finding("keys", "ok", f"all {len(expected)} weights that PEFT would save, in their shapes")


def _check_uncalled(model: Any, shapes: Shapes) -> Iterator[Finding]:
    """Warn of changes that have no effect in plain PEFT until they are merged."""
    family = FAMILIES.get(model.config.model_type)
    layers = family.uncalled if family else ()
    # A weight or bias of the layer itself was trained whole, and replaces that of the base.
    changed = [
        layer
        for layer in layers
        if any(f".{layer}." in name and not name.endswith((f".{layer}.weight", f".{layer}.bias")) for name in shapes)
    ]
    if family and changed:
        why = (
            f"transformers' {family.examples} reads the weights of {', '.join(changed)} without calling these layers: "
            "until it is merged, plain PEFT leaves them as they were, without an error"
        )
        yield Finding("merging", "warning", why, "call merge_and_unload() before use, or load it with peft-audio")


def _expected_shapes(folder: Path, model: Any, biases: tuple[str, ...], mixed: bool) -> Shapes:
    """Return the shapes of the weights that PEFT would save for an adapter."""
    with quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PeftConfig.from_pretrained(str(folder))
        # XLORA refers to other adapters; the rest are for text models.
        if (
            config.is_prompt_learning
            or config.peft_type not in PEFT_TYPE_TO_PREFIX_MAPPING
            or config.peft_type == "XLORA"
        ):
            raise ValueError(f"{config.peft_type} is not for audio classifiers")
        if hasattr(config, "init_lora_weights"):
            # Only names and shapes are needed; some initialisations decompose every matrix of the base.
            config.init_lora_weights = False
        return expected_shapes(peft.get_peft_model(model, config, low_cpu_mem_usage=True), biases, mixed)


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
CODE = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".exe", ".bat")
STYLES = {"ok": "green", "skipped": "dim", "warning": "yellow", "broken": "bold red"}


def examine(
    where: str | Path, base: str | None = None, revision: str | None = None, snippet: bool = False
) -> list[Finding]:
    """Check every part of an adapter, or of a whole model made by this package.

    No pickle is read and no code of the adapter is run.

    Args:
        where: Adapter directory, or `org/name` on the Hub.
        base: Folder or Hub id of the base encoder, if the recorded one is no longer valid.
        revision: Branch, tag or commit of an adapter on the Hub.
        snippet: Run the code of its README as well, as the record gives it.

    Returns:
        One finding per check, in the order of the checks. A check that an earlier fault prevents is "skipped".

    Raises:
        UserError: The folder does not exist, holds no adapter, or cannot be fetched from the Hub.
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
        findings += check_base(ReadAdapter(folder, settings, shapes, record, base))
    findings += _check_probes(folder, record, ours, base, findings)
    return [*findings, *_check_snippet(folder, record, base, str(where), findings)] if snippet else findings


def _names_in(folder: Path) -> list[str]:
    """List all files of a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _names_on_hub(name: str, revision: str | None) -> list[str] | None:
    """List all files of a Hub repository, including those that are not fetched; None if the Hub cannot be reached."""
    try:
        return sorted(HfApi().list_repo_files(name, revision=revision))
    except Exception:  # connection errors differ between versions of huggingface_hub
        return None


def _read(folder: Path) -> tuple[AdapterRecord | None, list[Finding]]:
    """Read the record of an adapter."""
    try:
        record = read_record(folder)
    except UserError as error:
        return None, [Finding("record", "broken", str(error), AGAIN)]
    made = ", ".join(f"{name} {version}" for name, version in record.versions.items() if name != "python")
    return record, [Finding("record", "ok", f"{record.strategy}, {len(record.labels)} labels, made with {made}")]


def _check_files(folder: Path, names: list[str] | None, weights: str) -> Iterator[Finding]:
    """Check for pickles, code, and links that point out of the folder."""
    if names is None:
        yield Finding("files", "skipped", "the Hub did not list the other files of the repository")
        return
    pickles = [name for name in names if name.endswith(PICKLES)]
    code = [name for name in names if name.endswith(CODE)]
    if pickles and not (folder / weights).exists():
        why = f"the weights exist only as a pickle ({', '.join(pickles)}), which can run any code when it is read"
        mend = f"it was not read; ask for {weights}, or convert it in a sandbox"
        yield Finding("files", "broken", why, mend)
    elif pickles:
        why = f"pickles beside the weights: {', '.join(pickles)}; not read here, but other programs may"
        yield Finding("files", "warning", why, "delete them: a pickle can run any code when it is read")
    if code:
        yield Finding("files", "warning", f"code beside the weights: {', '.join(code)}; never run here", "delete it")
    for name in names:
        path = folder / name
        # The cache of the Hub consists of such links, from snapshots/ to blobs/.
        if path.is_symlink() and "snapshots" not in folder.resolve().parts:
            target = path.resolve()
            if not target.is_relative_to(folder.resolve()):
                why = f"{name} is a link out of the folder, to {target}; whoever gets the folder will not have it"
                yield Finding("files", "warning", why, "replace the link by the file, if you know the file")
    if not pickles and not code:
        yield Finding("files", "ok", "no pickles and no code")


def _check_weights(path: Path) -> tuple[dict[str, tuple[int, ...]] | None, list[Finding]]:
    """Read the shapes in the file and check that all weights are present and finite."""
    try:
        shapes = stored_shapes(path)
        bad = nonfinite_weights(path)
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
    """Read and check `adapter_config.json`, or the `config.json` of a whole model."""
    name = WHOLE_CONFIG if whole else ADAPTER_CONFIG
    try:
        settings = read_object(folder / WHOLE_CONFIG) if whole else read_peft_config(folder)
    except UserError as error:
        return None, [Finding("settings", "broken", str(error), AGAIN)]
    found = [*_check_model_config(settings, record)] if whole else [*_check_adapter_config(settings, record)]
    kind = settings.get("model_type" if whole else "peft_type")
    usable = whole or kind in PEFT_TYPE_TO_CONFIG_MAPPING
    return settings if usable else None, found or [Finding("settings", "ok", f"{name}: {kind}")]


def _check_adapter_config(settings: dict[str, Any], record: AdapterRecord | None) -> Iterator[Finding]:
    """Check the contents of `adapter_config.json`."""
    kind, base = settings["peft_type"], settings.get("base_model_name_or_path")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(PEFT_TYPE_TO_CONFIG_MAPPING))
        yield Finding("settings", "broken", f"peft_type {kind} is unknown to this PEFT ({known})", "upgrade PEFT")
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


def _check_model_config(settings: dict[str, Any], record: AdapterRecord | None) -> Iterator[Finding]:
    """Check the `config.json` of a whole model."""
    if settings.get("auto_map"):
        why = f"{WHOLE_CONFIG} names code of its own (auto_map); never run here, but other programs may ask to"
        yield Finding("settings", "warning", why, "remove auto_map, because our models need no code")
    names = settings.get("id2label")
    names = [names.get(str(i)) for i in range(len(names))] if isinstance(names, dict) else None
    if record is not None and names != list(record.labels):
        why = f"{WHOLE_CONFIG} has the labels {names}, {RECORD} has {list(record.labels)}: programs would disagree"
        yield Finding("labels", "broken", why, AGAIN)


def _check_preprocessor(folder: Path, record: AdapterRecord) -> Iterator[Finding]:
    """Check that the feature extractor can be loaded and fits the record."""
    try:
        read_extractor(folder, record)
    except UserError as error:
        yield Finding("preprocessor", "broken", str(error), f"copy {PREPROCESSOR} from the base, if that fits")
    else:
        yield Finding("preprocessor", "ok", f"{record.sampling_rate:,} Hz, as recorded")


def _check_probes(
    folder: Path, record: AdapterRecord | None, ours: bool, base: str | None, before: list[Finding]
) -> Iterator[Finding]:
    """Check that the adapter reproduces its recorded logits."""
    if not ours:
        why = "it holds no recorded logits, so it cannot be compared with the trained adapter"
        yield Finding("answers", "warning", why, "ask its maker for a few clips with their labels")
    elif record is None or any(finding.severity == "broken" for finding in before):
        yield Finding("answers", "skipped", "not checked, because of the faults above")
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


def _check_snippet(
    folder: Path, record: AdapterRecord | None, base: str | None, where: str, before: list[Finding]
) -> Iterator[Finding]:
    """Run the code of the README, which was not written by this package where there is no record."""
    if record is None:
        yield Finding("snippet", "skipped", "without a record, the README's code cannot be built")
        return
    if is_broken(before):
        yield Finding("snippet", "skipped", "not run, because of the faults above")
        return
    place = None if record.whole else pin_base(base_of(folder, record, base))[0]
    if place and is_folder(Path(place)):
        place = str(Path(place).resolve())
    problems = check_snippet(folder, record, place)
    for problem in problems:
        yield Finding("snippet", "broken", f"the README's code does not give the recorded logits: {problem}", AGAIN)
    if not problems:
        filled = f", with BASE set to {place}," if place else ""
        other = differs_from_readme(folder, record, where)
        what = f"the README's code{filled} gives the recorded logits in a fresh process without peft-audio"
        mend = "README.md itself has other code, which was not run; save or push again to renew it" if other else ""
        yield Finding("snippet", "warning" if other else "ok", what, mend)


def is_broken(findings: list[Finding]) -> bool:
    """Return whether a finding makes answers wrong or impossible."""
    return any(finding.severity == "broken" for finding in findings)


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print one line per finding, followed by the advice on how to fix it."""
    for finding in findings:
        console.print(f"[{STYLES[finding.severity]}]{finding.severity:<8}[/]", end="")
        console.print(safe_to_print(f"{finding.check}: {finding.what}"), highlight=False, markup=False, soft_wrap=True)
        if finding.mend:
            console.print(safe_to_print(f"        fix: {finding.mend}"), highlight=False, markup=False, soft_wrap=True)
    worst = {finding.severity for finding in findings}
    usable = "usable, with the warnings above" if "warning" in worst else "no faults found"
    console.print("broken: do not use it as it is" if is_broken(findings) else usable)


def to_json(where: str, findings: list[Finding]) -> dict[str, Any]:
    """Convert findings to JSON values."""
    return {"adapter": where, "broken": is_broken(findings), "findings": [asdict(finding) for finding in findings]}
