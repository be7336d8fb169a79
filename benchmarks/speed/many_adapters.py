"""Measure many adapters on one base: memory, loading, switching, and one clip through all of them.

    python benchmarks/speed/many_adapters.py
    python benchmarks/speed/machine.py base wav2vec2-base-sized 12
    python benchmarks/speed/many_adapters.py --base wav2vec2-base-sized --count 20 --out many.md

The adapters have random weights and 2 to 11 labels: LoRA of rank 8 in all linear layers, or only heads. Memory is the
resident memory of a process that has loaded the adapters and run a clip through each; every figure comes from a
separate process. Times that are compared are measured alternately in one process. `load_adapter` is called with merging
(the default) and without merging, as in a set.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from machine import SAMPLING_RATE, in_words, measured, run, set_environment

SEPARATE = 3  # number of separate models from which the memory of more is estimated
SWITCHES = 1000
KINDS = ("lora", "head_only")
MIB = 2**20


def main() -> None:
    """Print the page, or measure one figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="wav2vec2-nano", help="base of the adapters (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="adapters of each kind (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed repeats (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure, *words = options.measure
        print(json.dumps(MEASURES[measure](*words)))
        return
    set_environment(options.threads)
    with tempfile.TemporaryDirectory(prefix="many_adapters_") as temporary:
        sizes = {kind: child("write", options.base, kind, options.count, temporary) for kind in KINDS}
        memory = [row for kind in KINDS for row in memory_rows(kind, Path(temporary), sizes[kind], options)]
        times = [time_row(kind, Path(temporary), options) for kind in KINDS]
        passes = [pass_row(kind, Path(temporary), options) for kind in KINDS]
    command = shlex.join(["python", "benchmarks/speed/many_adapters.py", *sys.argv[1:]])
    clip = f"One clip of {options.seconds:g} s through {options.count} adapters: median (lowest to highest), in ms."
    page = [
        f"`{command}`",
        in_words(measured("machine")),
        f"Memory in MiB, without the imports; a file has {sizes['lora'] / MIB:.2f} (LoRA) or "
        f"{sizes['head_only'] / MIB:.2f} (head only).",
        table(["adapters", "loaded with", "resident", "each further one"], memory),
        "Time in ms: median (lowest to highest).",
        table(["adapter", "load_adapter", "into a set", "switch", "load_adapter / switch"], times),
        clip,
        table(["adapters", "one after another", "one pass", "ratio", "largest difference of a logit"], passes),
    ]
    print("\n\n".join(page))
    if options.out:
        options.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def child(*words: object) -> Any:
    """Run a measurement of this file in a fresh process and return its result."""
    return json.loads(run([sys.executable, __file__, "--measure", *map(str, words)]).splitlines()[-1])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Format the median, the lowest and the highest value."""
    middle, least, most = (f"{scale * value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def memory_rows(kind: str, folder: Path, size: int, options: argparse.Namespace) -> list[list[str]]:
    """Make the rows of the memory of one adapter and of all, in a set and separately."""
    count, found = options.count, {}
    for way in ("set", "merged", "unmerged"):
        more = count if way == "set" else SEPARATE
        found[way] = [child("memory", way, kind, folder, n) for n in (0, 1, more)]
    rows = []
    for way, (nothing, one, more) in found.items():
        name = "load_adapters" if way == "set" else "load_adapter" + ("" if way == "merged" else ", merge=False")
        each = (more - one) / ((count if way == "set" else SEPARATE) - 1)
        rows.append([f"1 {kind}", name, f"{(one - nothing) / MIB:,.1f}", f"{each / MIB:,.2f}"])
        total = one + each * (count - 1) - nothing
        total_text = f"{total / MIB:,.1f}" if way == "set" else f"{total / MIB:,.0f}, estimated from {SEPARATE}"
        rows.append([f"{count} {kind}", name, total_text, ""])
    return rows


def time_row(kind: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Make the row of the times to load an adapter, to load one into a set, and to switch."""
    found = child("times", kind, folder, options.count, options.repeats)
    ratio = median(found["fresh"]) / median(found["switch"])
    return [
        kind,
        spread(found["fresh"], 1e3),
        spread(found["into"], 1e3),
        spread(found["switch"], 1e3, 3),
        f"{ratio:,.0f}",
    ]


def pass_row(kind: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Make the row that compares one pass over the shared encoder with one adapter after another."""
    found = child("passes", kind, folder, options.count, options.repeats, options.seconds)
    ratios = [one / together for one, together in zip(found["apart"], found["together"], strict=True)]
    return [
        f"{options.count} {kind}",
        spread(found["apart"], 1e3),
        spread(found["together"], 1e3),
        spread(ratios),
        f"{found['difference']:.0e}",
    ]


def write(base: str, kind: str, count: str, folder: str) -> int:
    """Save `count` adapters of a kind, and return the bytes of the weights of one."""
    import torch

    from peft_audio.adapters.record import describe_adapter
    from peft_audio.adapters.save import save_adapter
    from peft_audio.config import ModelConfig
    from peft_audio.encoders.family import family_of
    from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
    from peft_audio.strategies import HeadOnlyRecipe, LoraConfig, LoraRecipe, Setup, strategy_of

    cfg = LoraRecipe(model=ModelConfig(name=base))
    model = load_classifier(cfg.model, ["a", "b"])
    identity, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
    recipe = LoraRecipe(lora=LoraConfig(r=8)) if kind == "lora" else HeadOnlyRecipe()
    model, trained = strategy_of(recipe)(model, Setup(family_of(model.config), recipe))
    trains = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for number, target in enumerate(places(kind, folder, int(count))):
        labels = [f"{number} {i}" for i in range(2 + number % 10)]
        torch.manual_seed(number)
        for name, value in trains.items():
            shape = (len(labels), *value.shape[1:]) if "classifier" in name.split(".") else value.shape
            value.data = torch.randn(shape) * 0.02
        record = describe_adapter(cfg, identity, labels, extractor, kind, {})
        saved = save_adapter(Path(folder), model, trained, extractor, record, verify=False)
        target.parent.mkdir(exist_ok=True)
        saved.rename(target)
    return (places(kind, folder, 1)[0] / "adapter_model.safetensors").stat().st_size


def places(kind: str, folder: str, count: int) -> list[Path]:
    """Return the folders of the first `count` adapters of a kind."""
    return [Path(folder) / kind / f"{number:03}" for number in range(count)]


def noise(seconds: float) -> Any:
    """Make a clip of noise, float32 of shape (samples,)."""
    import numpy as np

    return np.random.default_rng(0).normal(size=round(seconds * SAMPLING_RATE)).astype(np.float32)


def memory(way: str, kind: str, folder: str, count: str) -> int:
    """Return the resident bytes after loading `count` adapters and running a clip through each; 0 for the imports."""
    import gc

    import psutil

    from peft_audio import load_adapter, load_adapters

    where = places(kind, folder, int(count))
    if way == "set" and where:
        together = load_adapters({path.name: path for path in where})
        adapters = [together[name] for name in together]
    else:
        adapters = [load_adapter(path, merge=way == "merged") for path in where]
    for adapter in adapters:
        adapter.logits([noise(0.1)])
    gc.collect()
    return psutil.Process().memory_info().rss


def times(kind: str, folder: str, count: str, repeats: str) -> dict[str, list[float]]:
    """Measure the seconds to load an adapter, to load each into a set, and to switch."""
    from peft_audio import load_adapter, load_adapters

    first, *others = places(kind, folder, int(count))
    adapters = load_adapters({first.name: first})
    into = [timed(adapters.load, path.name, path) for path in others]
    fresh = [timed(load_adapter, path) for path in others[: int(repeats)]]
    names = list(adapters)
    switch = [timed(adapters.switch, names[n % len(names)]) for n in range(SWITCHES)]
    return {"fresh": fresh, "into": into, "switch": switch}


def passes(kind: str, folder: str, count: str, repeats: str, seconds: str) -> dict[str, Any]:
    """Measure the seconds of a clip through all adapters, in turn and in one pass, and the difference of logits."""
    from peft_audio import load_adapters

    adapters = load_adapters({path.name: path for path in places(kind, folder, int(count))})
    clip = [noise(float(seconds))]

    def apart() -> dict[str, Any]:
        return {name: adapters[name].logits(clip) for name in adapters}

    one, all_at_once = apart(), adapters.logits_of_all(clip)
    found: dict[str, Any] = {"apart": [], "together": []}
    for _ in range(int(repeats)):
        found["apart"].append(timed(apart))
        found["together"].append(timed(adapters.logits_of_all, clip))
    return found | {"difference": max(float(abs(one[name] - all_at_once[name]).max()) for name in adapters)}


def timed(work: Callable[..., Any], *given: Any) -> float:
    """Return the seconds of a call."""
    began = perf_counter()
    work(*given)
    return perf_counter() - began


MEASURES: dict[str, Callable[..., Any]] = {"write": write, "memory": memory, "times": times, "passes": passes}

if __name__ == "__main__":
    main()
