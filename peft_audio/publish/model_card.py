"""Write the model card of an adapter for the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from sklearn.metrics import confusion_matrix

from peft_audio.adapters.hub import is_hub_id
from peft_audio.adapters.record import AdapterRecord, adapter_readme
from peft_audio.config import settings_on_card
from peft_audio.errors import UserError
from peft_audio.evaluation.chance import reported_line
from peft_audio.evaluation.scores import confusions
from peft_audio.files import read_json
from peft_audio.pages.render import render_text
from peft_audio.runs.finished import Finished, predictions_of, read_run
from peft_audio.text import escape_markdown, markdown_table

BUNDLED = "Free Spoken Digit Dataset, the part that comes with peft-audio"
METRICS = {"test_accuracy": ("accuracy", "Accuracy"), "test_macro_f1": ("f1", "Macro-F1")}
LARGEST_MATRIX = 20  # labels; beyond that the most frequent confusions are listed
MOST_FREQUENT = 20


def model_card(record: AdapterRecord, repository: str, run: Path | None, comparison: Path | None, license: str) -> str:
    """Return the model card: the Hub's metadata and a README.

    Args:
        record: Record of the adapter, with the Hub id of its base.
        repository: `org/name` of the destination.
        run: Folder of the run that made the adapter; adds the confusions and the training settings.
        comparison: Folder with `comparison.md`; adds its tables.
        license: Hub id of the licence, such as apache-2.0; "" for none.

    Raises:
        UserError: A file is missing from one of the folders.
    """
    finished = None if run is None else read_run(run)
    if finished is not None and finished.report.get("validation_is_test"):
        # Records of earlier versions do not hold it.
        record = replace(record, validation_is_test=True)
    chance = None if finished is None else finished.report.get("chance")
    return render_text(
        "model_card.md",
        metadata=_metadata(record, repository, finished, license).to_yaml(),
        readme=adapter_readme(record, repository, reported_line(chance)).strip(),
        confusions=None if finished is None else _confusions(finished, record.labels),
        training=None if finished is None else _training(finished, record),
        comparison=None if comparison is None else _comparison(comparison).strip(),
    )


def _metadata(record: AdapterRecord, repository: str, run: Finished | None, license: str) -> ModelCardData:
    source = "" if run is None else run.settings.get("data.source", "")
    published = run is not None and run.report.get("dataset_revision") is not None
    results = [
        EvalResult(
            task_type="audio-classification",
            dataset_type=source if published else "other",
            dataset_name=_data_name(source, published),
            metric_type=kind,
            metric_name=name,
            metric_value=round(record.metrics[metric], 4),
            dataset_split="test",
            dataset_revision=run.report["dataset_revision"] if run and published else None,
        )
        for metric, (kind, name) in METRICS.items()
        # Leaderboards of the Hub compare results without their warnings.
        if metric in record.metrics and not record.validation_is_test
    ]
    on_hub = record.base.commit is not None
    return ModelCardData(
        base_model=record.base.name if on_hub else None,
        # Full fine-tuning and training from random weights give whole models.
        base_model_relation=("finetune" if record.whole else "adapter") if on_hub and record.pretrained else None,
        library_name="transformers" if record.whole else "peft",
        pipeline_tag="audio-classification",
        datasets=[source] if published else None,
        metrics=[kind for kind, _ in METRICS.values()] if results else None,
        tags=["audio-classification", "peft-audio", record.strategy, record.base.model_type],
        license=license or None,
        # The Hub requires a name with results and rejects a name without results.
        eval_results=results or None,
        model_name=repository.rpartition("/")[2] if results else None,
    )


def _data_name(source: str, published: bool) -> str:
    """Name a data source without local folders."""
    if source == "bundled":
        return BUNDLED
    return source if published else Path(source).name or "not named"


def _confusions(run: Finished, labels: Sequence[str]) -> tuple[int, str] | None:
    """Count the test clips and tabulate their confusions; None if the run did not read the test split."""
    if run.report.get("test_accuracy") is None:
        return None
    predictions = predictions_of(run)
    matrix = confusion_matrix(predictions.clips["label"], predictions.decided, labels=labels).tolist()
    if len(labels) <= LARGEST_MATRIX:
        cells = [(label, *(str(count or "") for count in row)) for label, row in zip(labels, matrix, strict=True)]
        return len(predictions), markdown_table(("true \\ predicted", *labels), cells, numbers_from=1)
    wrong = [(label, predicted, str(count)) for label, predicted, count in confusions(labels, matrix)[:MOST_FREQUENT]]
    return len(predictions), markdown_table(("true", "predicted", "clips"), wrong, numbers_from=2)


def _training(run: Finished, record: AdapterRecord) -> str:
    report, settings = run.report, run.settings
    published = report.get("dataset_revision") is not None
    counts = {split: report.get(f"{split}_clips") for split in ("train", "validation", "test")}
    trained, total = report.get("trainable_parameters"), report.get("total_parameters")
    precision, seconds = report.get("mixed_precision"), report.get("train_seconds")
    facts = {
        "data": _data_name(settings.get("data.source", ""), published),
        "data revision": report.get("dataset_revision"),
        "clips": ", ".join(f"{count} {split}" for split, count in counts.items() if count is not None),
        "strategy": record.strategy,
        "kept epoch": report.get("best_epoch"),
        "steps": report.get("steps"),
        "trained parameters": None if None in (trained, total) else f"{trained:,} of {total:,}",
    }
    own = [name for name in settings if name.partition(".")[0] == record.strategy]
    facts |= {name: settings.get(name) for name in (*own, *settings_on_card())}
    facts |= {
        "precision": "float32" if precision == "no" else precision,
        "device": report.get("device"),
        "training": None if seconds is None else f"{seconds:.0f} s",
        "versions": ", ".join(f"{name} {version}" for name, version in report.get("versions", {}).items()),
    }
    # Reports of earlier versions lack some of these.
    rows = [(name, str(value)) for name, value in facts.items() if value not in (None, "")]
    return markdown_table(("setting", "value"), rows)


def _comparison(folder: Path) -> str:
    """Return the tables of a comparison with headings one level lower and without local folders."""
    about = read_json(folder / "comparison.json")
    if not (folder / "comparison.md").is_file() or not {"source", "encoder"} <= about.keys():
        raise UserError(
            f"--comparison: {folder} holds no comparison.md and .json; give a folder that recipes/compare.py wrote."
        )
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    # Failed runs and notes are of interest only to those who ran the comparison.
    parts = [part for part in text.split("\n## ") if not part.startswith(("Failed runs", "Notes"))]
    tables = "#" + "\n### ".join(parts)
    for name in (about["source"], about["encoder"]):
        # A Hub id has the form org/name; anything longer is a folder.
        tables = tables.replace(
            escape_markdown(name), escape_markdown(_data_name(name, name.count("/") == 1 and is_hub_id(name)))
        )
    return tables
