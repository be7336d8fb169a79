"""What a command finds that goes on with a run; faults.py runs it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from robustness.fault_bases import Payload
from robustness.fault_cases import cases, remove, samples
from robustness.fault_stage import RESUME, Stage


def resume(
    *flags: str,
    make: Callable[[Path], Any] | None = None,
    run: str = "stopped",
    same: bool = False,
    processes: int = 1,
) -> Callable[[Stage], int]:
    """Something changed between a run and the command that is to go on with it."""

    def play(stage: Stage) -> int:
        stage.take(run)
        if make:
            make(stage.root)
        code = stage.run(*RESUME, *flags, processes=processes)
        if same:
            stage.same_as_finished()
        return code

    return play


def damage(*names: str, newest: bool = True) -> Callable[[Path], Any]:
    """Files of the newest checkpoint, or of all, are cut."""

    def make(root: Path) -> None:
        for folder in sorted((root / "run/checkpoints").glob("step-*"))[-1 if newest else 0 :]:
            for name in names:
                os.truncate(folder / name, (folder / name).stat().st_size // 2)

    return make


def state(**changes: Any) -> Callable[[Path], Any]:
    """The state in all checkpoints says something else, with a hash that fits."""

    def make(root: Path) -> None:
        for folder in (root / "run/checkpoints").glob("step-*"):
            stored = json.loads((folder / "state.json").read_text())
            for name, value in changes.items():
                stored[name] = stored[name] | value if isinstance(value, dict) else value
            content = json.dumps(stored).encode()
            (folder / "state.json").write_bytes(content)
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            (folder / "manifest.json").write_text(json.dumps(manifest))

    return make


def pickles(root: Path) -> None:
    """Pickles with a payload, by the names that other trainers use."""
    for folder in (root / "run/checkpoints").glob("step-*"):
        for name in ("optimizer.pt", "random_states_0.pkl", "pytorch_model.bin"):
            (folder / name).write_bytes(pickle.dumps(Payload()))


def cut_log(root: Path) -> None:
    """The log lost its end."""
    os.truncate(root / "run/metrics.jsonl", 40)


def another_base(root: Path) -> None:
    """The encoder's weights are others."""
    from safetensors.torch import load_file, save_file

    stored = load_file(root / "base/model.safetensors")
    save_file({k: v + 0.01 for k, v in stored.items()}, root / "base/model.safetensors", metadata={"format": "pt"})


OTHER = ["the run in run is another one", "Repeat the command that started it", "--train.overwrite true to start"]
BEFORE = "using the one before it"
NONE_WHOLE = ["all checkpoints in run/checkpoints are damaged", "--train.overwrite true starts from scratch"]
ADDED = samples("data/low/new.wav", np.random.default_rng(1).uniform(-0.5, 0.5, 8000))
RESUMING = cases(
    [
        (
            "resume",
            "no checkpoint",
            ["no checkpoint in run; starting from scratch"],
            lambda stage: stage.run(*RESUME),
            0,
        ),
        ("resume", "another setting", [*OTHER, "train.seed 0 there, 1 here"], resume("--train.seed", "1")),
        (
            "resume",
            "another setting, with train.overwrite",
            [
                "note: --train.resume: the run in run is another one",
                "Starting from scratch, because",
            ],
            resume("--train.seed", "1", "--train.overwrite", "true"),
            0,
        ),
        ("resume", "a recording was added", [*OTHER, "recordings"], resume(make=ADDED)),
        ("resume", "another encoder of the same name", [*OTHER, "encoder"], resume(make=another_base)),
        ("resume", "another number of processes", [*OTHER, "processes 1 there, 2 here"], resume(processes=2)),
        (
            "resume",
            "a finished run",
            ["the run in run is finished; nothing is left to do"],
            resume(run="finished", same=True),
            0,
        ),
        (
            "resume",
            "a finished run, with another setting",
            ["the run in run is finished, with other settings (train.seed 0 there, 1 here)", "--train.overwrite true"],
            resume("--train.seed", "1", run="finished"),
            2,
            True,
        ),
        (
            "resume",
            "a finished run whose config.yaml is damaged",
            ["run/config.yaml cannot be read", "--train.overwrite true"],
            resume(make=lambda root: (root / "run/config.yaml").write_text("train: {"), run="finished"),
            2,
            True,
        ),
        (
            "resume",
            "the newest checkpoint's weights are damaged",
            [BEFORE, "step-00000004 is damaged"],
            resume(make=damage("trained.safetensors"), same=True),
            0,
        ),
        (
            "resume",
            "the newest checkpoint's state is damaged",
            [BEFORE, "step-00000004 is damaged"],
            resume(make=damage("state.json"), same=True),
            0,
        ),
        (
            "resume",
            "the newest checkpoint has no manifest",
            [BEFORE, "manifest.json"],
            resume(make=remove("run/checkpoints/step-00000004/manifest.json"), same=True),
            0,
        ),
        (
            "resume",
            "all checkpoints are damaged",
            NONE_WHOLE,
            resume(make=damage("optimizer.safetensors", newest=False)),
        ),
        (
            "resume",
            "all are damaged, with train.overwrite",
            ["note: --train.resume: all checkpoints", "Starting from scratch, because"],
            resume("--train.overwrite", "true", make=damage("state.json", newest=False)),
            0,
        ),
        (
            "resume",
            "the log was cut",
            ["run/metrics.jsonl was removed or cut", "--train.overwrite true starts from scratch"],
            resume(make=cut_log),
        ),
        (
            "resume",
            "an epoch that is a text",
            ["does not fit this run (epoch is '1')", "Remove it to resume from the one before"],
            resume(make=state(position={"epoch": "1"})),
        ),
        (
            "resume",
            "no position at all",
            ["lacks the facts of its run", "Remove it to resume from the one before"],
            resume(make=state(position=[])),
        ),
        (
            "resume",
            "best weights from a folder elsewhere",
            ["it names '../../../base'", *NONE_WHOLE],
            resume(make=state(best_folder="../../../base")),
        ),
        (
            "resume",
            "pickles with a payload beside the checkpoint",
            ["resuming from run/checkpoints/step-00000004"],
            resume(make=pickles, same=True),
            0,
        ),
    ]
)
CASES = RESUMING
