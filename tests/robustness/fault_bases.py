"""Bad encoders and Hubs, and what a run must say of each; faults.py runs them."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from helpers.hub_standin import Handler, Hub, Repository, running
from robustness import fault_hooks as hooks
from robustness.fault_cases import both, cases, cut, once, remove, write
from robustness.fault_stage import Stage


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
BASES = cases(
    [
        ("base", "no such folder", ["no folder ./absent", "give an existing folder"], once("--model.name", "./absent")),
        (
            "base",
            "a folder without config.json",
            ["base has no config.json", "save_pretrained"],
            once(make=remove("base/config.json")),
        ),
        (
            "base",
            "a config.json that is no JSON",
            ["--model.name: base cannot be loaded", WAYS_OUT],
            once(make=cut("base/config.json", 0.5)),
        ),
        ("base", "a family that is not known here", ["bert", "--model.name"], once(make=config(model_type="bert"))),
        (
            "base",
            "a config.json that names code",
            ["--model.name: base", WAYS_OUT],
            once(
                make=both(
                    config(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
                    write("base/evil.py", "open('EXECUTED', 'w')"),
                )
            ),
        ),
        (
            "base",
            "weights cut in half",
            ["--model.name: base cannot be loaded", WAYS_OUT],
            once(make=cut("base/model.safetensors", 0.5)),
        ),
        (
            "base",
            "weights that lack a layer",
            ["--model.name: base lacks 1 weights", "give a complete checkpoint"],
            once(make=weights(lambda w: w.pop("encoder.layers.1.attention.q_proj.weight"))),
        ),
        ("base", "a weight that is NaN", ["NaN", "base"], once(make=weights(spoil))),
        (
            "base",
            "a pickle with a payload for weights",
            ["--model.name: base cannot be loaded", WAYS_OUT],
            once(make=A_PICKLE),
        ),
    ]
)


class Refusing(Handler):
    """Asks for a login."""

    def answer(self) -> None:
        """To whatever is asked."""
        self.reply(401, error="GatedRepo")


class Stalling(Handler):
    """Sends half of a large file, and then nothing more."""

    def reply(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None, error: str = "") -> None:
        """Half of it."""
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
HUBS = cases(
    [
        (
            "Hub",
            "no connection, for an encoder",
            ["org/tiny cannot be loaded", "needs a connection"],
            asks(NOWHERE, *TINY),
        ),
        (
            "Hub",
            "no connection, for a dataset",
            ["org/clips", "the Hub was not reached", "correct the name"],
            asks(NOWHERE, "--data.source", "org/clips"),
        ),
        (
            "Hub",
            "no such repository",
            ["org/absent cannot be loaded", "Repository Not Found", WAYS_OUT],
            asks_standin("--model.name", "org/absent"),
        ),
        (
            "Hub",
            "a repository that asks for a login",
            ["org/tiny cannot be loaded", "gated", WAYS_OUT],
            asks_standin(*TINY, handler=Refusing),
        ),
        (
            "Hub",
            "a download that stalls half-way",
            ["org/tiny cannot be loaded", "timed out", "downloaded files are kept"],
            asks_standin(*TINY, handler=Stalling),
        ),
        (
            "Hub",
            "HF_HUB_OFFLINE, and the encoder is not here",
            ["org/tiny cannot be loaded", "HF_HUB_OFFLINE"],
            once(*TINY),
        ),
    ]
)
CASES = [*BASES, *HUBS]
