"""Offer the commands as Python functions, which import torch only when they are called.

Arguments have the names of the flags, and sections of settings are dicts: `--train.epochs 3` is `train={"epochs": 3}`.
A wrong argument raises `UserError` with the message of the command.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio.errors import UserError, require

if TYPE_CHECKING:
    import numpy as np

    from peft_audio.adapters.load import Adapter
    from peft_audio.checks.collection import Check
    from peft_audio.comparison.results import Comparison
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.config import BaselineRecipe, DataConfig, Recipe
    from peft_audio.inference.evaluate import AdapterEvaluation
    from peft_audio.inference.predict import Prediction, PredictionList
    from peft_audio.publish.export import Exported
    from peft_audio.publish.push import Pushed
    from peft_audio.runs.report import RunReport
    from peft_audio.strategies import Apply


def fine_tune(
    source: Recipe | str | Path, strategy: str | Apply | None = None, **settings: Mapping[str, Any] | str | Path
) -> RunReport:
    """Train, evaluate and save an audio classifier, as `peft-audio train` does.

    `fine_tune("recordings", "lora", train={"epochs": 3}, lora={"r": 4})`

    Args:
        source: Folder, manifest, Hub dataset or "bundled"; or all settings of the run, such as `LoraRecipe()`.
        strategy: Name of the strategy, "lora" by default. With a recipe, None or a function
            `(model, setup) -> (model, Trainable)` that marks the weights that train.
        **settings: Sections of the recipe's settings, and `config`, the path of a YAML file with more. Not with a
            recipe.

    Returns:
        The report, on every process. A finished run (`train={"resume": True}`) returns the report that it wrote.

    Raises:
        UserError: A setting, the data, the encoder or the folder cannot be used.
        Stopped: A signal ended the run; it resumes from a checkpoint with `train={"resume": True}`.
    """
    from peft_audio.config import Recipe
    from peft_audio.strategies import STRATEGIES

    if isinstance(source, Recipe):
        if isinstance(strategy, str) or settings:
            extra = [*(["strategy"] if isinstance(strategy, str) else []), *settings]
            raise UserError(f"{', '.join(extra)}: not used with a {type(source).__name__}. Set it in there.")
        cfg, apply = source, strategy
    else:
        name = "lora" if strategy is None else strategy
        if not isinstance(name, str) or name not in STRATEGIES:
            raise UserError(f"strategy: got {name}, must be one of {', '.join(STRATEGIES)}. Try lora.")
        cfg, apply = _with_source(STRATEGIES[name].recipe, source, settings), None
    from peft_audio import finetune

    return finetune.fine_tune(cfg, apply)


def run_baseline(cfg: BaselineRecipe) -> RunReport:
    """Fit and evaluate a control without a network, as `recipes/baseline.py` does.

    Args:
        cfg: Settings of the run.

    Returns:
        The report, on every process.

    Raises:
        UserError: A setting, the folder or a clip cannot be used.
    """
    from peft_audio.runs import baseline

    return baseline.run_baseline(cfg)


def compare(source: CompareRecipe | str | Path, **settings: Any) -> Comparison:
    """Compare ways of fine-tuning under equal conditions, as `recipes/compare.py` does.

    `compare("recordings", arms=["head_only", "lora"], reference="lora", minutes=20)`

    Runs that are finished in the folder are kept, so the same call resumes a comparison that was stopped.

    Args:
        source: Folder, manifest, Hub dataset or "bundled"; or all settings, `CompareRecipe(...)`.
        **settings: Settings of the comparison, and sections that all arms share. Not with a `CompareRecipe`.

    Returns:
        Scores, costs and claims of all arms. Nothing is ranked if `broken_rules` is not empty.

    Raises:
        UserError: A setting, the data or the folder cannot be used, or no run could be finished.
    """
    from peft_audio.comparison.settings import CompareRecipe

    if isinstance(source, CompareRecipe):
        if settings:
            raise UserError(f"{', '.join(settings)}: not used with a CompareRecipe. Set it in there.")
        cfg = source
    else:
        cfg = _with_source(CompareRecipe, source, settings)
    from peft_audio.comparison.run import run_arms

    return run_arms(cfg)


def check(
    source: DataConfig | str | Path,
    *,
    jobs: int | None = None,
    deep: bool = False,
    base: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> Check:
    """Check a collection before it costs a training run, as `peft-audio check` does.

    `check("recordings", data={"group_pattern": "^([a-z]+)"})`

    Args:
        source: Folder, manifest, Hub dataset or "bundled"; or all settings of the data.
        jobs: Number of clips decoded in parallel; one per core by default.
        deep: Whether to look for groups in the sound as well, by clusters of encoder embeddings.
        base: Encoder of `deep`, a folder or Hub id; the bundled one by default.
        data: Settings of the data, by the name behind `--data.`; not with a `DataConfig`.

    Returns:
        Counts and findings; `spoiled` is true if one of them would spoil a comparison.

    Raises:
        UserError: There is nothing to check, or a setting cannot be used.
    """
    require(jobs is None or jobs >= 1, "jobs", jobs, "1 or more", "Leave it out.")
    if base is not None and not deep:
        raise UserError(f"--base: got {base}, but only --deep uses an encoder. Add --deep, or leave it out.")
    cfg = _data_settings(source, data)
    from peft_audio.checks import collection
    from peft_audio.config import ModelConfig
    from peft_audio.data.scan import JOBS

    return collection.check(cfg, jobs or JOBS, (base or ModelConfig().name) if deep else None)


def evaluate(
    adapter: Adapter | str | Path,
    source: DataConfig | str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    out: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
) -> AdapterEvaluation:
    """Evaluate an adapter on recordings with labels, as `peft-audio evaluate` does.

    Args:
        adapter: Folder such as runs/lora/adapter, `org/name` on the Hub, or what `load_adapter` returned.
        source: Folder, manifest, Hub dataset or "bundled"; or all settings of the data.
        split: "train", "validation", "test" or "all". By default the test split of the source or of the adapter's run,
            else all of it.
        revision: Branch, tag or commit of an adapter on the Hub.
        base: Base encoder (folder or Hub id), if it is no longer where it was.
        device: Device such as "cuda"; a loaded adapter stays where it is.
        batch_size: Clips at once.
        out: Folder to create with metrics.json and predictions.parquet.
        data: Settings of the data, by the name behind `--data.`; not with a `DataConfig`.

    Raises:
        UserError: The adapter cannot be loaded, the source cannot be used or has labels that the adapter does not know.
    """
    require(batch_size >= 1, "batch-size", batch_size, "1 or more", "Try 16.")
    if out is not None and Path(out).exists():
        raise UserError(f"--out: {out} already exists; give a new folder.")
    cfg = _data_settings(source, data)
    from peft_audio.inference.evaluate import evaluate_adapter, write_evaluation

    loaded = _loaded(adapter, base, device, revision)
    found = evaluate_adapter(loaded, cfg, split, batch_size)
    if out is not None:
        place = loaded.folder if adapter is loaded else adapter
        write_evaluation(found, {"adapter": str(place), "source": cfg.source}, Path(out))
    return found


def predict(
    adapter: Adapter | str | Path,
    sources: str | Path | np.ndarray | Iterable[str | Path | np.ndarray],
    batch_size: int = 16,
    workers: int = 2,
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    each_window: bool = False,
    sampling_rate: int | None = None,
    *,
    revision: str | None = None,
    base: str | None = None,
    device: str = "cpu",
    top_k: int | None = None,
    threshold: float = 0.0,
    out: str | Path | None = None,
) -> PredictionList:
    """Label recordings, as `peft-audio predict` does.

    A recording's answer does not depend on the others. An adapter that was trained on windows reads the whole recording
    in such windows, and the probabilities are averaged. Any other reads the start of the recording, of a length
    given in `seconds_used`.

    Args:
        adapter: Folder such as runs/lora/adapter, `org/name` on the Hub, or what `load_adapter` returned.
        sources: Recording, folder or pattern such as `clips/**/*.wav`, or several; folders are searched to any depth.
            Or waveforms, each a mono array of shape (samples,): floats with full scale at 1, or int16.
        batch_size: Clips or windows at once, at most.
        workers: Threads that decode ahead of the model.
        window_seconds: Length of windows to read all of a recording in, instead of what the adapter was trained with.
        hop_seconds: Time from one window's start to the next one's; `window_seconds` by default.
        each_window: Whether each window has a prediction of its own.
        sampling_rate: Sampling rate of waveforms, in hertz; files have their own.
        revision: Branch, tag or commit of an adapter on the Hub.
        base: Base encoder (folder or Hub id), if it is no longer where it was.
        device: Device such as "cuda"; a loaded adapter stays where it is.
        top_k: Number of labels in `probabilities`, the most probable first; all of them by default.
        threshold: Probability below which `label` is None.
        out: File to write as well: .json, .jsonl, .csv or .parquet. A call that was stopped resumes from it.

    Returns:
        One prediction per recording, in the order of `sources`, by name within a folder; a file that is named twice is
        labelled once. A recording that cannot be used is among them, with `label` None and the reason in `error`.

    Raises:
        UserError: The adapter cannot be loaded, a source does not exist, or an argument cannot be used.
    """
    from peft_audio.inference import predict as inference
    from peft_audio.inference.into_file import check_output, label_into_file
    from peft_audio.inference.recordings import find_recordings
    from peft_audio.inference.writers import OutputFormat

    check_output(top_k, threshold, None if out is None else Path(out))
    if out is not None and sampling_rate is not None:
        raise UserError(f"sampling_rate: got {sampling_rate}, but with out only files are read. Leave it out.")
    inference.check_counts(batch_size, workers)
    loaded = _loaded(adapter, base, device, revision)
    output = OutputFormat(loaded.labels, top_k, threshold, each_window)
    found = inference.PredictionList()
    if out is None:
        heard = (batch_size, workers, window_seconds, hop_seconds, each_window, sampling_rate)
        found += inference.predict(loaded, sources, *heard)
    else:
        names = [sources] if isinstance(sources, (str, Path)) else list(sources)
        paths = [name for name in names if isinstance(name, (str, Path))]
        if len(paths) < len(names) or loaded.folder is None:
            raise UserError("out: needs recordings in files and an adapter in a folder. Leave it out.")
        windowing = inference.make_windowing(loaded, batch_size, window_seconds, hop_seconds, each_window)

        def keep(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
            """Keep the predictions while they are written."""
            for prediction in predictions:
                found.append(prediction)
                yield prediction

        label_into_file(Path(out), loaded, find_recordings(paths), windowing, output, workers, keep)
    return inference.PredictionList(map(output.cut, found))


def export(
    adapter: str | Path,
    folder: str | Path,
    *,
    merged: bool = False,
    onnx: bool = False,
    revision: str | None = None,
    base: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export an adapter to a folder that needs neither its base nor this package, as `peft-audio export` does.

    Args:
        adapter: Folder such as runs/lora/adapter, or `org/name` on the Hub.
        folder: Destination, which does not exist yet.
        merged: Whether to write a transformers directory for `transformers.pipeline`.
        onnx: Whether to write a graph for ONNX Runtime; one of the two is needed.
        revision: Branch, tag or commit of an adapter on the Hub.
        base: Base encoder (folder or Hub id), if it is no longer where it was.
        overwrite: Whether to replace an earlier export.

    Returns:
        Folder, size, and the difference from the recorded logits in a fresh process.

    Raises:
        UserError: The adapter cannot be loaded, the folder is in use, a package is not installed, or the fresh process
            computed other logits.
    """
    if merged == onnx:
        raise UserError("export: got neither or both of merged and onnx, expected one. Try merged=True.")
    from peft_audio.publish.export import export_adapter

    return export_adapter(adapter, Path(folder), "merged" if merged else "onnx", base, revision, overwrite)


def push(
    folder: str | Path,
    repository: str,
    *,
    base_id: str | None = None,
    private: bool = False,
    license: str = "",
    comparison: str | Path | None = None,
    without_trained_clips: bool = False,
    dry_run: bool = False,
) -> Pushed:
    """Send an adapter to the Hugging Face Hub in one commit, as `peft-audio push` does.

    Args:
        folder: Folder such as runs/lora/adapter or runs/full/model.
        repository: `org/name`; created if it does not exist.
        base_id: Base on the Hub, if training used a copy in a folder.
        private: Whether to make a new repository private.
        license: Licence for the card, such as "apache-2.0".
        comparison: Folder that a comparison wrote, for the card.
        without_trained_clips: Whether to leave out trained_clips.bin, the hashes of the clips that it was trained on.
        dry_run: Whether to list the files and send nothing.

    Returns:
        Files and their bytes; after a dry run `obstacle` is the reason why a push would be refused.

    Raises:
        UserError: The adapter is broken, its base is not on the Hub, or the Hub refuses it.
    """
    from peft_audio.publish.push import push_adapter

    return push_adapter(
        Path(folder).expanduser(),
        repository,
        base_id=base_id,
        private=private,
        license=license,
        comparison=None if comparison is None else Path(comparison),
        trained_clips=not without_trained_clips,
        dry_run=dry_run,
    )


def _loaded(adapter: Adapter | str | Path, base: str | None, device: str, revision: str | None) -> Adapter:
    """Load an adapter by its name; a loaded one is returned as it is."""
    from peft_audio.adapters.load import load_adapter

    if isinstance(adapter, (str, Path)):
        return load_adapter(adapter, base, device, revision=revision)
    for name, value in (("base", base), ("revision", revision)):
        if value is not None:
            raise UserError(f"{name}: got {value}, but the adapter is loaded already. Give it to load_adapter.")
    return adapter


def _data_settings(source: DataConfig | str | Path, data: Mapping[str, Any] | None) -> DataConfig:
    """Read settings of data as the commands do."""
    from peft_audio.config import CheckSettings, DataConfig

    if not isinstance(source, DataConfig):
        cfg: CheckSettings = _with_source(CheckSettings, source, {} if data is None else {"data": data})
        return cfg.data
    if data is not None:
        raise UserError("data: not used with a DataConfig. Set it in there.")
    return source


def _with_source(recipe: type[Any], source: str | Path, settings: Mapping[str, Any]) -> Any:
    """Read settings with the source among those of `data`."""
    from peft_audio.config import read_settings

    data = settings.get("data", {})
    if isinstance(data, Mapping):
        if "source" in data:
            raise UserError(f"data: got source {data['source']}, but {source} is given already. Give one.")
        data = {"source": source, **data}
    return read_settings(recipe, {**settings, "data": data})
