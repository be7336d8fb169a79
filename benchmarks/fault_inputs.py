"""Bad recordings, settings, encoders and Hubs, and what a run must say of each; faults.py runs them."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fault_hooks as hooks
import numpy as np
import soundfile
from fault_stage import Stage
from filelock import FileLock

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hub_standin import Handler, Hub, Repository, running

CLIP = "data/low/3.wav"


class Case(NamedTuple):
    """One fault.

    Attributes:
        group: What it is in.
        fault: What it is.
        says: What must stand in what the user sees: the thing, and the way out. The first of them is in the line that
            the table quotes.
        play: Makes it, runs, and gives the exit code of the last run.
        code: What that must be.
        finished: Whether a finished run stands in the folder then; where not given, with exit code 0.
    """

    group: str
    fault: str
    says: Sequence[str]
    play: Callable[[Stage], int]
    code: int = 2
    finished: bool | None = None


def once(*flags: str, make: Callable[[Path], Any] | None = None, **run: Any) -> Callable[[Stage], int]:
    """Change something in the folder of the case, then run once."""

    def play(stage: Stage) -> int:
        if make:
            make(stage.root)
        return stage.run(*flags, **run)

    return play


def write(name: str, content: str | bytes) -> Callable[[Path], Any]:
    """Make a file, and its folder."""

    def make(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def remove(*names: str) -> Callable[[Path], Any]:
    """Files or folders that are not there."""
    return lambda root: [shutil.rmtree(root / n) if (root / n).is_dir() else (root / n).unlink() for n in names]


def cut(name: str, kept: float) -> Callable[[Path], Any]:
    """A file of which only the first part is there."""
    return lambda root: os.truncate(root / name, int((root / name).stat().st_size * kept))


def samples(name: str, values: np.ndarray, **form: Any) -> Callable[[Path], Any]:
    """A recording of certain samples."""
    return lambda root: soundfile.write(root / name, values, 16_000, **form)


def manifest(header: str, *names: str) -> Callable[[Path], Any]:
    """A table of recordings, some of both classes, and others by name."""
    rows = [f"data/{label}/{i}.wav,{label}" for label in ("low", "high") for i in range(8)]
    return write("clips.csv", "\n".join([header, *rows, *(f"{name},low" for name in names)]) + "\n")


def one_clip_of_a_class(root: Path) -> None:
    """A class of one recording."""
    for i in range(1, 16):
        (root / f"data/low/{i}.wav").unlink()


def cut_flac(root: Path) -> None:
    """A FLAC file without its second half."""
    samples("data/low/cut.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000))(root)
    cut("data/low/cut.flac", 0.5)(root)


def both(*makes: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """One after the other."""
    return lambda root: [make(root) for make in makes]


SKIP = ["--data.on_bad_clip", "skip"]
NAN = samples("data/low/nan.wav", np.full(8000, np.nan), subtype="FLOAT")
RECORDINGS = [
    Case(*row)
    for row in [
        ("recordings", "an empty file", ["empty.wav is empty", "on_bad_clip skip"], once(make=write("data/low/empty.wav", ""))),
        ("recordings", "a text named .wav", ["text.wav is not audio", "on_bad_clip skip"], once(make=write("data/low/text.wav", "no sound\n" * 99))),
        ("recordings", "a FLAC file cut in half", ["cut.flac is cut off", "on_bad_clip skip"], once(make=cut_flac)),
        ("recordings", "samples that are NaN", ["nan.wav holds samples that are NaN", "on_bad_clip skip"], once(make=NAN)),
        ("recordings", "the same, with data.on_bad_clip skip", ["skipped 1 clip", "skipped_clips.csv", "nan.wav"], once(*SKIP, make=NAN), 0),
        ("recordings", "silence", ["zero.wav is silent", "on_bad_clip skip"], once(make=samples("data/low/zero.wav", np.zeros(8000)))),
        ("recordings", "more bad clips than may be skipped", ["data.max_bad_share", "mend them, or raise it"], once(*SKIP, make=lambda root: [write(f"data/low/bad{i}.wav", "")(root) for i in range(9)])),
        ("recordings", "a WAV file shorter than its header says", ["warning: 1 of 32 clips are cut off", "peft-audio check"], once(make=cut(CLIP, 0.6)), 0),
        ("recordings", "a broken link", ["gone.wav is a broken link", "on_bad_clip skip"], once(make=lambda root: (root / "data/low/gone.wav").symlink_to("nowhere.wav"))),
        ("recordings", "no such folder", ["nothing", "data.source"], once("--data.source", "./nothing")),
        ("recordings", "an empty folder", ["found no recordings in none", "one subfolder a class"], once("--data.source", "none", make=lambda root: (root / "none").mkdir())),
        ("recordings", "one class only", ["data.source", "class"], once(make=remove("data/low"))),
        ("recordings", "a class of one clip", ["low", "data"], once(make=one_clip_of_a_class)),
        ("recordings", "a manifest without the column label", ["no column 'label'", "--data.label_column"], once("--data.source", "clips.csv", make=manifest("path,class"))),
        ("recordings", "a manifest that lists a file that is not there", ["absent.wav", "on_bad_clip skip"], once("--data.source", "clips.csv", make=manifest("path,label", "data/low/absent.wav"))),
        ("recordings", "a clip vanishes between scan and training", ["3.wav", "mend or remove it"], once(hook=partial(hooks.remove_before_reading, CLIP))),
        ("recordings", "a clip turns to garbage between scan and training", ["3.wav", "mend or remove it"], once(hook=partial(hooks.spoil_before_reading, CLIP))),
        ("recordings", "the same, read by a worker process", ["3.wav", "mend or remove it"], once("--data.num_workers", "1", hook=partial(hooks.spoil_before_reading, CLIP))),
    ]
]


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


SETTINGS = [
    Case(*row)
    for row in [
        ("settings", "an unknown flag", ["--train.learning_rat: no such setting", "Did you mean --train.learning_rate?"], once("--train.learning_rat", "1")),
        ("settings", "a value of another kind", ["--train.epochs: got many, must be a whole number", "See --help"], once("--train.epochs", "many")),
        ("settings", "a value out of range", ["--lora.r: got 0, must be", "Try 8"], once("--lora.r", "0")),
        ("settings", "a rate that is no number", ["--train.learning_rate: got nan, must be a finite number", "See --help"], once("--train.learning_rate", "nan")),
        ("settings", "a YAML file that is none", ["settings.yaml is not plain YAML", "line 1", "mend it"], once("--config", "settings.yaml", make=write("settings.yaml", "train: {epochs: 5"))),
        ("settings", "a YAML file with a Python object in it", ["settings.yaml is not plain YAML", "mend it"], once("--config", "settings.yaml", make=write("settings.yaml", "train: !!python/object/apply:os.system ['touch EXECUTED']"))),
        ("settings", "a YAML file that is not there", ["absent.yaml does not exist", "give a YAML file"], once("--config", "absent.yaml")),
        ("settings", "a YAML file with an unknown name", ["--train.epoch: no such setting", "Did you mean --train.epochs?"], once("--config", "settings.yaml", make=write("settings.yaml", "train: {epoch: 5}"))),
        ("settings", "more micro-batches than clips in a step", ["--train.batch_size: got 2, must be at least 4", "Raise it, or lower"], once("--train.batch_size", "2", "--train.gradient_accumulation_steps", "4")),
        ("settings", "fp16 on a CPU", ["--train.mixed_precision: got fp16", "Try bf16"], once("--train.mixed_precision", "fp16")),
        ("settings", "a layer that LoRA does not find", ["lora.targets", "no_proj"], once("--lora.targets", "[no_proj]")),
        ("settings", "the folder of a finished run", ["run exists already", "--train.overwrite true"], lambda stage: (stage.take("finished"), stage.run())[1], 2, True),
        ("settings", "the folder of a run that was stopped", ["from a run that did not finish", "--train.resume true", "--train.overwrite true"], lambda stage: (stage.take("stopped"), stage.run())[1]),
        ("settings", "a file in the place of the folder", ["run exists already", "give another"], once(make=write("run", "mine"))),
        ("settings", "a file above the folder", ["file cannot be written to", "give another folder"], once("--train.output_dir", "file/run", make=write("file", "mine"))),
        ("settings", "overwriting a folder with somebody's file in it", ["notes.txt was not made by a run", "move it away yourself"], once("--train.overwrite", "true", make=write("run/notes.txt", "mine"))),
        ("settings", "two runs in one folder", ["another run is at work in run", "give another folder"], hold),
        ("settings", "a folder on a read-only disk", ["disk cannot be written to", "give another folder"], read_only),
        ("settings", "a folder on a disk without locks", ["note: run is on a disk without locks", "remove it after a crash"], without_locks, 0),
    ]
]


class Payload:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('EXECUTED', 'w').close()",)


def config(**changes: Any) -> Callable[[Path], Any]:
    """Set keys of the encoder's settings."""

    def make(root: Path) -> None:
        stored = json.loads((root / "base/config.json").read_text())
        (root / "base/config.json").write_text(json.dumps(stored | changes))

    return make


def weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Change the encoder's weights."""

    def make(root: Path) -> None:
        from safetensors.torch import load_file, save_file

        stored = load_file(root / "base/model.safetensors")
        change(stored)
        save_file(stored, root / "base/model.safetensors", metadata={"format": "pt"})

    return make


def spoil(stored: dict[str, Any]) -> None:
    """One weight is no number."""
    stored["encoder.layers.1.attention.q_proj.weight"][0, 0] = float("nan")


A_PICKLE = both(remove("base/model.safetensors"), write("base/pytorch_model.bin", pickle.dumps(Payload())))
WAYS_OUT = "Give a folder made by save_pretrained"
BASES = [
    Case(*row)
    for row in [
        ("base", "no such folder", ["no folder ./absent", "give an existing folder"], once("--model.name", "./absent")),
        ("base", "a folder without config.json", ["base has no config.json", "save_pretrained"], once(make=remove("base/config.json"))),
        ("base", "a config.json that is no JSON", ["--model.name: base cannot be loaded", WAYS_OUT], once(make=cut("base/config.json", 0.5))),
        ("base", "a family that is not known here", ["bert", "--model.name"], once(make=config(model_type="bert"))),
        ("base", "a config.json that names code", ["--model.name: base", WAYS_OUT], once(make=both(config(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}), write("base/evil.py", "open('EXECUTED', 'w')")))),
        ("base", "weights cut in half", ["--model.name: base cannot be loaded", WAYS_OUT], once(make=cut("base/model.safetensors", 0.5))),
        ("base", "weights that lack a layer", ["--model.name: base lacks 1 weights", "give a complete checkpoint"], once(make=weights(lambda w: w.pop("encoder.layers.1.attention.q_proj.weight")))),
        ("base", "a weight that is NaN", ["NaN", "base"], once(make=weights(spoil))),
        ("base", "a pickle with a payload for weights", ["--model.name: base cannot be loaded", WAYS_OUT], once(make=A_PICKLE)),
    ]
]


class Refusing(Handler):
    """Asks for a login."""

    def answer(self) -> None:
        self.reply(401, error="GatedRepo")


class Stalling(Handler):
    """Sends half of a large file, and then nothing more."""

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, error: str = "") -> None:
        if self.command == "GET" and len(content) > 50_000:
            self.close_connection = True
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            threading.Event().wait(20)
            return
        super().reply(status, content, headers, error)


@contextmanager
def hub(stage: Stage, handler: type[Handler] = Handler) -> Iterator[str]:
    """The address of a Hub with the encoder of the case, org/tiny."""
    server = Hub({"org/tiny": stage.root / "base"}, {})
    server.models["org/mine"] = Repository(server.models["org/tiny"].commits, private=True)
    server.RequestHandlerClass = handler
    with running(server):
        yield server.url()


def asks(address: str, *flags: str) -> Callable[[Stage], int]:
    """A run that asks a Hub at an address."""

    def play(stage: Stage) -> int:
        cache = stage.theatre.folder / "hub" / stage.root.name
        return stage.run(*flags, hook=partial(hooks.ask_hub, str(cache), HF_ENDPOINT=address))

    return play


def asks_standin(*flags: str, handler: type[Handler] = Handler) -> Callable[[Stage], int]:
    """A run that asks the stand-in."""

    def play(stage: Stage) -> int:
        with hub(stage, handler) as address:
            return asks(address, *flags)(stage)

    return play


TINY = ["--model.name", "org/tiny"]
NOWHERE = "http://127.0.0.1:9"
HUBS = [
    Case(*row)
    for row in [
        ("Hub", "no connection, for an encoder", ["org/tiny cannot be loaded", "needs a connection"], asks(NOWHERE, *TINY)),
        ("Hub", "no connection, for a dataset", ["org/clips", "check the name and the connection"], asks(NOWHERE, "--data.source", "org/clips")),
        ("Hub", "no such repository", ["org/absent cannot be loaded", "Repository Not Found", WAYS_OUT], asks_standin("--model.name", "org/absent")),
        ("Hub", "a repository that asks for a login", ["org/tiny cannot be loaded", "gated", WAYS_OUT], asks_standin(*TINY, handler=Refusing)),
        ("Hub", "a download that stalls half-way", ["org/tiny cannot be loaded", "timed out", "start again"], asks_standin(*TINY, handler=Stalling)),
        ("Hub", "HF_HUB_OFFLINE, and the encoder is not here", ["org/tiny cannot be loaded", "HF_HUB_OFFLINE"], once(*TINY)),
    ]
]
CASES = [*RECORDINGS, *SETTINGS, *BASES, *HUBS]
