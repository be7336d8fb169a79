"""Bad recordings and settings, and what a run must say of each; faults.py runs them."""

from __future__ import annotations

from functools import partial

import numpy as np
from filelock import FileLock
from robustness import fault_hooks as hooks
from robustness.fault_cases import (
    CLIP,
    cases,
    cut,
    cut_flac,
    manifest,
    once,
    one_clip_of_a_class,
    remove,
    samples,
    write,
)
from robustness.fault_stage import Stage

SKIP = ["--data.on_bad_clip", "skip"]
NAN = samples("data/low/nan.wav", np.full(8000, np.nan), subtype="FLOAT")
RECORDINGS = cases(
    [
        (
            "recordings",
            "an empty file",
            ["empty.wav is empty", "on_bad_clip skip"],
            once(make=write("data/low/empty.wav", "")),
        ),
        (
            "recordings",
            "a text named .wav",
            ["text.wav is not audio", "on_bad_clip skip"],
            once(make=write("data/low/text.wav", "no sound\n" * 99)),
        ),
        ("recordings", "a FLAC file cut in half", ["cut.flac is cut off", "on_bad_clip skip"], once(make=cut_flac)),
        (
            "recordings",
            "samples that are NaN",
            ["nan.wav holds samples that are NaN", "on_bad_clip skip"],
            once(make=NAN),
        ),
        (
            "recordings",
            "the same, with data.on_bad_clip skip",
            ["skipped 1 clip", "skipped_clips.csv", "nan.wav"],
            once(*SKIP, make=NAN),
            0,
        ),
        (
            "recordings",
            "silence",
            ["zero.wav is silent", "on_bad_clip skip"],
            once(make=samples("data/low/zero.wav", np.zeros(8000))),
        ),
        (
            "recordings",
            "more bad clips than may be skipped",
            ["data.max_bad_share", "repair them, or raise it"],
            once(*SKIP, make=lambda root: [write(f"data/low/bad{i}.wav", "")(root) for i in range(9)]),
        ),
        (
            "recordings",
            "a WAV file shorter than its header states",
            ["warning: 1 of 32 clips are cut off", "peft-audio check"],
            once(make=cut(CLIP, 0.6)),
            0,
        ),
        (
            "recordings",
            "a broken link",
            ["gone.wav is a broken link", "on_bad_clip skip"],
            once(make=lambda root: (root / "data/low/gone.wav").symlink_to("nowhere.wav")),
        ),
        ("recordings", "no such folder", ["nothing", "data.source"], once("--data.source", "./nothing")),
        (
            "recordings",
            "an empty folder",
            ["found no recordings in none", "one subfolder per class"],
            once("--data.source", "none", make=lambda root: (root / "none").mkdir()),
        ),
        ("recordings", "one class only", ["data.source", "class"], once(make=remove("data/low"))),
        ("recordings", "a class of one clip", ["low", "data"], once(make=one_clip_of_a_class)),
        (
            "recordings",
            "a manifest without the column label",
            ["no column 'label'", "--data.label_column"],
            once("--data.source", "clips.csv", make=manifest("path,class")),
        ),
        (
            "recordings",
            "a manifest that lists a file that is not there",
            ["absent.wav", "on_bad_clip skip"],
            once("--data.source", "clips.csv", make=manifest("path,label", "data/low/absent.wav")),
        ),
        (
            "recordings",
            "a clip vanishes between scan and training",
            ["3.wav", "repair or remove it"],
            once(hook=partial(hooks.remove_before_reading, CLIP)),
        ),
        (
            "recordings",
            "a clip turns to garbage between scan and training",
            ["3.wav", "repair or remove it"],
            once(hook=partial(hooks.spoil_before_reading, CLIP)),
        ),
        (
            "recordings",
            "the same, read by a worker process",
            ["3.wav", "repair or remove it"],
            once("--data.num_workers", "1", hook=partial(hooks.spoil_before_reading, CLIP)),
        ),
    ]
)


def hold(stage: Stage) -> int:
    """Another process is at work in the run's folder."""
    with FileLock(stage.root / ".run.lock"):
        return stage.run()


def read_only(stage: Stage) -> int:
    """The folder of the run stands on a disk that may not be written to."""
    stage.mount("disk", "ro")
    stage.out = "disk/run"
    code = stage.run()
    stage.unmount("disk")
    return code


def without_locks(stage: Stage) -> int:
    """A disk without locks."""
    return stage.run(hook=hooks.no_locks)


SETTINGS = cases(
    [
        (
            "settings",
            "an unknown flag",
            ["--train.learning_rat: no such setting", "Did you mean --train.learning_rate?"],
            once("--train.learning_rat", "1"),
        ),
        (
            "settings",
            "a value of another kind",
            ["--train.epochs: got many, must be a whole number", "See --help"],
            once("--train.epochs", "many"),
        ),
        ("settings", "a value out of range", ["--lora.r: got 0, must be", "Try 8"], once("--lora.r", "0")),
        (
            "settings",
            "a rate that is no number",
            ["--train.learning_rate: got nan, must be a finite number", "See --help"],
            once("--train.learning_rate", "nan"),
        ),
        (
            "settings",
            "a YAML file that is none",
            ["settings.yaml is not plain YAML", "line 1", "correct it"],
            once("--config", "settings.yaml", make=write("settings.yaml", "train: {epochs: 5")),
        ),
        (
            "settings",
            "a YAML file with a Python object in it",
            ["settings.yaml is not plain YAML", "correct it"],
            once(
                "--config",
                "settings.yaml",
                make=write("settings.yaml", "train: !!python/object/apply:os.system ['touch EXECUTED']"),
            ),
        ),
        (
            "settings",
            "a YAML file that is not there",
            ["absent.yaml does not exist", "give a YAML file"],
            once("--config", "absent.yaml"),
        ),
        (
            "settings",
            "a YAML file with an unknown name",
            ["--train.epoch: no such setting", "Did you mean --train.epochs?"],
            once("--config", "settings.yaml", make=write("settings.yaml", "train: {epoch: 5}")),
        ),
        (
            "settings",
            "more micro-batches than clips in a step",
            ["--train.batch_size: got 2, must be at least 4", "Raise it, or lower"],
            once("--train.batch_size", "2", "--train.gradient_accumulation_steps", "4"),
        ),
        (
            "settings",
            "fp16 on a CPU",
            ["--train.mixed_precision: got fp16", "Try bf16"],
            once("--train.mixed_precision", "fp16"),
        ),
        (
            "settings",
            "a layer that LoRA does not find",
            ["lora.targets", "no_proj"],
            once("--lora.targets", "[no_proj]"),
        ),
        (
            "settings",
            "the folder of a finished run",
            ["run already exists", "--train.overwrite true"],
            lambda stage: (stage.take("finished"), stage.run())[1],
            2,
            True,
        ),
        (
            "settings",
            "the folder of a run that was stopped",
            ["from an unfinished run", "--train.resume true", "--train.overwrite true"],
            lambda stage: (stage.take("stopped"), stage.run())[1],
        ),
        (
            "settings",
            "a file in the place of the folder",
            ["run already exists", "give another"],
            once(make=write("run", "mine")),
        ),
        (
            "settings",
            "a file above the folder",
            ["file cannot be written to", "give another folder"],
            once("--train.output_dir", "file/run", make=write("file", "mine")),
        ),
        (
            "settings",
            "overwriting a folder with somebody's file in it",
            ["notes.txt was not made by a run", "move it away"],
            once("--train.overwrite", "true", make=write("run/notes.txt", "mine")),
        ),
        ("settings", "two runs in one folder", ["another run is using run", "give another folder"], hold),
        ("settings", "a folder on a read-only disk", ["disk cannot be written to", "give another folder"], read_only),
        (
            "settings",
            "a folder on a disk without locks",
            ["note: run is on a disk without locks", "remove it after a crash"],
            without_locks,
            0,
        ),
    ]
)
CASES = [*RECORDINGS, *SETTINGS]
