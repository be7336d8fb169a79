"""A finished run in the words of PEFT's method comparison, so that it can be put beside the results there.

Field names: `method_comparison/processing.py` of huggingface/peft. What was not measured is null.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from peft_audio.files import read_json
from peft_audio.runs.finished import Finished, epochs_of, training_seconds, whole_seconds

# Its table names these four beside PEFT itself.
PACKAGES = ("peft", "transformers", "datasets", "torch", "bitsandbytes")


def peft_result(run: Finished) -> dict[str, Any]:
    """`run_info`, `train_info` and `meta_info` of one run, as PEFT's scripts write them."""
    report, settings = run.report, run.settings
    adapter = read_json(run.folder / "adapter" / "adapter_config.json")
    made = datetime.fromtimestamp((run.folder / "report.json").stat().st_mtime, UTC)
    losses = {epoch["epoch"]: epoch["train_loss"] for epoch in epochs_of(run)}
    return {
        "run_info": {
            "created_at": made.isoformat(timespec="seconds"),
            "total_time": whole_seconds(report),
            "experiment_name": f"{run.arm}/{settings.get('model.name')}-seed{run.seed}",
            "peft_branch": None,
            "train_config": {"model_id": settings.get("model.name"), **settings},
            "peft_config": adapter or None,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": report.get("peak_memory_bytes") if run.alone else None,
            "accelerator_memory_reserved_99th": None,
            "train_time": training_seconds(report) if run.alone else None,
            "file_size": report.get("adapter_bytes"),
            "num_trainable_params": report.get("trainable_parameters"),
            "num_total_params": report.get("total_parameters"),
            "status": "success",
            "metrics": [
                {
                    "step": report.get("steps"),
                    "valid accuracy": report.get("validation_accuracy"),
                    "test accuracy": report.get("test_accuracy"),
                    "train loss": losses.get(report.get("best_epoch")),
                    "train samples": report.get("train_clips"),
                    "train total tokens": None,
                }
            ],
        },
        "meta_info": {
            "model_info": {"sha": report.get("base_sha256")},
            "dataset_info": {"sha": report.get("dataset_sha256")},
            "package_info": {f"{name}-version": report.get("versions", {}).get(name) for name in PACKAGES},
            "system_info": {"device": report.get("device")},
        },
    }
