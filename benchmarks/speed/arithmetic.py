"""Time attention implementations and torch.compile, for each family and length of clips.

    python benchmarks/speed/arithmetic.py --out arithmetic.md
    python benchmarks/speed/arithmetic.py --encoders wav2vec2 --seconds 5 --batch 1 --repeats 2 --no-compile

Times LoRA training steps: forward and backward passes through the transformer layers, on random frames. The
convolutions before them have no attention, and run once per clip if their output is cached. All modules are in eval
mode, as frozen modules are in the recipes. Each measurement is a fresh process, and the choices take turns. Runs on the
GPU if there is one. On a CPU, seconds are processor time, so that other programs count less. torch.compile compiles
each layer; on a CPU it needs a C++ compiler. For WavLM, sdpa is the attention of peft-audio and eager that of
transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from joblib import cpu_count
from machine import NANO, PRECISIONS, SAMPLING_RATE, in_words, measured, run, set_environment

BUNDLED = "bundled"
FAMILIES = ("wav2vec2", "hubert", "unispeech-sat", "wavlm")
OURS = ("wavlm",)  # families with peft-audio's sdpa attention; the eager one of transformers ignores LoRA
BUNDLED_SECONDS = 0.5
BETTER = 1.05  # smallest speed relative to the default, in every repeat and at every length, of a recommended choice


@dataclass(frozen=True)
class Setting:
    """One setting to time.

    Attributes:
        encoder: Family at its base size, or `BUNDLED`.
        seconds: Length of each clip.
        attention: Attention implementation, by its name in transformers.
        compiled: Whether each layer is compiled.
    """

    encoder: str
    seconds: float
    attention: str
    compiled: bool

    @property
    def choice(self) -> str:
        """Return the attention implementation and whether layers are compiled, in words."""
        return self.attention + (", compiled" if self.compiled else "")


def main() -> None:
    """Print the table and the choices."""
    options = parse()
    if options.measure:
        encoder, seconds, attention, compiled = json.loads(options.measure)
        print(json.dumps(timed(Setting(encoder, seconds, attention, compiled), options)))
        return
    set_environment(options.threads)
    about = measured("machine")
    options.precision = options.precision or ("bf16" if about["fast_bf16"] else "fp32")
    found: dict[Setting, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="arithmetic_") as folder:
        # A fresh cache, because an earlier one would hide the time of compiling.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for encoder in options.encoders:
            for seconds in [BUNDLED_SECONDS] if encoder == BUNDLED else options.seconds:
                settings = [Setting(encoder, seconds, *choice) for choice in choices(encoder, about, options)]
                for _ in range(options.repeats):
                    for setting in settings:
                        found.setdefault(setting, []).append(measure(setting, options))
    text = page(found, about, options)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    encoders = (*FAMILIES, BUNDLED)
    parser.add_argument("--encoders", nargs="+", choices=encoders, default=encoders, help="default: all")
    parser.add_argument("--seconds", nargs="+", type=float, default=[5.0, 30.0], help="length of clips (default: 5 30)")
    parser.add_argument("--batch", type=int, default=4, help="clips per step (default: 4)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps after the first one (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: bf16 where it is fast, else fp32")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    threads = int(os.environ.get("OMP_NUM_THREADS", cpu_count()))
    parser.add_argument("--threads", type=int, default=threads, help="number of CPU threads (default: all)")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def choices(encoder: str, about: dict[str, Any], options: argparse.Namespace) -> list[tuple[str, bool]]:
    """List the available attention implementations, compiled or not, the default of transformers first."""
    flash = about["gpu"] and options.precision == "bf16" and find_spec("flash_attn") and encoder not in OURS
    attentions = ["sdpa", "eager", *(["flash_attention_2"] if flash else [])]
    compiler = about["gpu"] or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    both = [False, True] if compiler and not options.no_compile else [False]
    return [(attention, compiled) for attention in attentions for compiled in both]


def measure(setting: Setting, options: argparse.Namespace) -> dict[str, float]:
    """Time a setting in a fresh process."""
    words = json.dumps([setting.encoder, setting.seconds, setting.attention, setting.compiled])
    command = [sys.executable, __file__, "--measure", words, "--precision", options.precision]
    command += ["--batch", str(options.batch), "--steps", str(options.steps)]
    result = json.loads(run(command).splitlines()[-1])
    print(f"{result['step']:.4f} s, first {result['first']:.2f} s: {setting}", file=sys.stderr, flush=True)
    return result


def timed(setting: Setting, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of the first step, which compiles, and the median of the following steps."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModel

    from peft_audio.encoders.family import FAMILIES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = setting.encoder
    config = AutoConfig.from_pretrained(NANO) if name == BUNDLED else AutoConfig.for_model(name)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    torch.manual_seed(0)
    attention = "eager" if name in OURS else setting.attention
    model = AutoModel.from_config(config, attn_implementation=attention, dtype=torch.float32).to(dtype)
    if setting.attention != attention:
        FAMILIES[name].replace_attention(model)
    targets = ["intermediate_dense", "output_dense"] if name in OURS else ["q_proj", "v_proj"]
    # PEFT keeps trainable weights in float32.
    adapted: Any = get_peft_model(model, LoraConfig(r=8, target_modules=targets)).eval().to(device)
    encoder = adapted.get_base_model().encoder
    if setting.compiled:
        for layer in encoder.layers:
            layer.compile()
    samples = torch.tensor(round(setting.seconds * SAMPLING_RATE))
    frames = int(model._get_feat_extract_output_lengths(samples))
    hidden = torch.randn(options.batch, frames, config.hidden_size, device=device, dtype=dtype)
    mask = torch.ones(options.batch, frames, dtype=torch.bool, device=device)
    threads = torch.get_num_threads()
    seconds = []
    for _ in range(options.steps + 1):
        began = perf_counter() if device == "cuda" else process_time() / threads
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = encoder(hidden, attention_mask=mask)[0].float().square().mean()
        loss.backward()
        encoder.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((perf_counter() if device == "cuda" else process_time() / threads) - began)
    return {"first": seconds[0], "step": median(seconds[1:])}


def page(found: dict[Setting, list[dict[str, float]]], about: dict[str, Any], options: argparse.Namespace) -> str:
    """Format one row per setting, and the recommended choice of each encoder."""
    lines = ["| encoder | clips of | choice | s per step | first step, s | at least | default's s / this |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    gains: dict[str, dict[str, list[float]]] = {}
    for setting, runs in found.items():
        default = next(one for one in found if (one.encoder, one.seconds) == (setting.encoder, setting.seconds))
        ratios = [one["step"] / run["step"] for one, run in zip(found[default], runs, strict=True)]
        gains.setdefault(setting.encoder, {}).setdefault(setting.choice, []).extend(ratios)
        step, firsts = median(run["step"] for run in runs), [run["first"] for run in runs]
        speed = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if setting != default else "default"
        cells = [setting.encoder, f"{setting.seconds:g} s", setting.choice, f"{step:.3g}"]
        cells += [f"{firsts[0]:.3g}", f"{min(firsts):.3g}", speed]
        lines.append(f"| {' | '.join(cells)} |")
    chosen = ["| encoder | choice |", "| --- | --- |"]
    chosen += [f"| {encoder} | {choose(speeds)} |" for encoder, speeds in gains.items()]
    how = (
        f"{options.precision}, {options.batch} clips per step, medians of {options.repeats} repeats of {options.steps} "
        "steps after the first. LoRA of rank 8 on q_proj and v_proj (wavlm: on the feed-forward block), forward and "
        "backward passes through the transformer layers only. The first step of the first run compiles; later runs use "
        "its cache on disk."
    )
    why = (
        f"Recommended: of the choices at least {BETTER - 1:.0%} faster than the default in every repeat and at every "
        "length, the one with the best slowest case; otherwise the default."
    )
    return "\n\n".join([in_words(about), how, "\n".join(lines), why, "\n".join(chosen)])


def choose(speeds: dict[str, list[float]]) -> str:
    """Return the choice that is faster than the default (the first one) by enough in all cases, or the default."""
    default, *others = speeds
    worst = {choice: min(speeds[choice]) for choice in others}
    best = max(worst, key=worst.__getitem__, default=default)
    return best if worst.get(best, 0.0) >= BETTER else default


if __name__ == "__main__":
    main()
