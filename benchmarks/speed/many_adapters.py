"""Many adapters on one base: memory, loading, switching, and one clip through all of them.

    python benchmarks/speed/many_adapters.py
    python benchmarks/speed/machine.py base wav2vec2-base-sized 12
    python benchmarks/speed/many_adapters.py --base wav2vec2-base-sized --count 20 --out many.md

The adapters have random weights and 2 to 11 labels: LoRA of rank 8 in all linear layers, and heads alone. Memory is
what is resident once a process has loaded them and answered for each; every figure of it comes from a process of its
own. What is compared in time takes turns within one process. `load_adapter` is called as it is by
default, merging, and without merging, as a set holds its adapters.
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

from machine import SAMPLING_RATE, measured, run, said, set_environment

SEPARATE = 3  # models loaded apart, from which the memory of more is estimated
SWITCHES = 1000
KINDS = ("lora", "head_only")
MIB = 2**20


def main() -> None:
    """Print the page, or measure one figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="wav2vec2-nano", help="of the adapters (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="adapters of each kind (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of what is timed (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of the clip (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="a file for the page as well")
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
    clip = f"One clip of {options.seconds:g} s through {options.count} adapters: median (least to most), in ms."
    page = [
        f"`{command}`",
        said(measured("machine")),
        f"Memory, in MiB, beyond what the imports take; a file holds {sizes['lora'] / MIB:.2f} (LoRA) or "
        f"{sizes['head_only'] / MIB:.2f} (head only).",
        table(["adapters", "loaded with", "resident", "each further one"], memory),
        "Time, in ms: median (least to most).",
        table(["adapter", "load_adapter", "into a set", "switch", "load_adapter / switch"], times),
        clip,
        table(["adapters", "one after another", "one pass", "ratio", "largest difference of a logit"], passes),
    ]
    print("\n\n".join(page))
    if options.out:
        options.out.write_text("\n\n".join(page) + "\n", encoding="utf-8")


def child(*words: object) -> Any:
    """What a measure of this file gives in a fresh process."""
    return json.loads(run([sys.executable, __file__, "--measure", *map(str, words)]).splitlines()[-1])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Median, least and most."""
    middle, least, most = (f"{scale * value:,.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({least} to {most})"


def memory_rows(kind: str, folder: Path, size: int, options: argparse.Namespace) -> list[list[str]]:
    """What one adapter and all of them take, in a set and apart."""
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
        said_total = f"{total / MIB:,.1f}" if way == "set" else f"{total / MIB:,.0f}, estimated from {SEPARATE}"
        rows.append([f"{count} {kind}", name, said_total, ""])
    return rows


def time_row(kind: str, folder: Path, options: argparse.Namespace) -> list[str]:
    """Loading one afresh, loading one more into a set, and switching."""
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
    """One pass over the shared encoder against one adapter after another."""
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
    """Save so many adapters of a kind; the bytes of one's weights."""
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
    """The first so many adapters of a kind."""
    return [Path(folder) / kind / f"{number:03}" for number in range(count)]


def noise(seconds: float) -> Any:
    """A clip of noise, float32 of shape (samples,)."""
    import numpy as np

    return np.random.default_rng(0).normal(size=round(seconds * SAMPLING_RATE)).astype(np.float32)


def memory(way: str, kind: str, folder: str, count: str) -> int:
    """Resident bytes once so many adapters are loaded and each has answered; with none, of the imports."""
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
    """Seconds of loading one afresh, of loading each into a set, and of switching."""
    from peft_audio import load_adapter, load_adapters

    first, *others = places(kind, folder, int(count))
    adapters = load_adapters({first.name: first})
    into = [timed(adapters.load, path.name, path) for path in others]
    fresh = [timed(load_adapter, path) for path in others[: int(repeats)]]
    names = list(adapters)
    switch = [timed(adapters.switch, names[n % len(names)]) for n in range(SWITCHES)]
    return {"fresh": fresh, "into": into, "switch": switch}


def passes(kind: str, folder: str, count: str, repeats: str, seconds: str) -> dict[str, Any]:
    """Seconds that a clip takes through all adapters, in turn and in one pass, and how far the answers are apart."""
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
    """Seconds that something takes."""
    began = perf_counter()
    work(*given)
    return perf_counter() - began


MEASURES: dict[str, Callable[..., Any]] = {"write": write, "memory": memory, "times": times, "passes": passes}

if __name__ == "__main__":
    main()
