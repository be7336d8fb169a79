"""Compare the speed of `peft_audio.predict` with the pipeline of transformers, in clips per second.

    python benchmarks/speed/inference.py
    python benchmarks/speed/inference.py --digits 60 --noises 6 --repeats 2 --out inference.md

Both label the same files with the same LoRA adapter. Decoding is included; loading and one warm-up clip are not. The
pipeline is called as documented, on arrays, because file names need the program ffmpeg and other rates torchaudio. Its
batches are padded without a mask, so that their probabilities differ from those of single clips; the table has the
difference. The encoders are the bundled one on bundled digits, and one of the size of wav2vec2-base (random weights) on
noise of 1 to 9 s. Every figure comes from a separate process, and the methods take turns. The last figure is that of
the whole command on one clip.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from joblib import cpu_count

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "peft_audio" / "assets" / "digits" / "test.parquet"
SHORTEST_SECONDS, LONGEST_SECONDS, RATE = 1.0, 9.0, 16_000
STEPS = 2
PIPELINE_BATCH = 8
LABELS = ("pink", "white")


def main() -> None:
    """Print the tables, or measure one figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=int, default=300, help="bundled recordings (default: %(default)s)")
    parser.add_argument("--noises", type=int, default=24, help="clips of noise (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="number of repeats (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the page to this file")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, *places = options.measure
        print(json.dumps(WAYS[way](*map(Path, places), options.device)))
        return
    with tempfile.TemporaryDirectory(prefix="inference_") as temporary:
        folder = Path(temporary)
        write_digits(folder / "digits", options.digits)
        write_noises(folder / "noises", options.noises)
        write_base(folder / "base")
        nano = make_adapter(folder / "nano-run", {"data.source": "bundled"})
        # Two steps on two kinds of noise suffice, because speed does not depend on the weights.
        base = make_adapter(
            folder / "base-run",
            {"data.source": folder / "noises", "model.name": folder / "base", "train.batch_size": 2},
        )
        cases = {"bundled encoder, digits": (nano, "digits"), "wav2vec2-base's size, noise": (base, "noises")}
        rows, threads = [], 0
        for name, (adapter, clips) in cases.items():
            found, threads = measure_ways(adapter, folder / clips, options)
            rows += [[name, *row] for row in found]
        command = time_command(nano, next((folder / "digits").iterdir()), options)
    columns = ["encoder, clips", "way", "clips per second", "peft-audio is faster by", "largest difference"]
    about = (
        f"{options.digits} digits, {options.noises} clips of noise, {options.repeats} processes each on "
        f"{options.device}: median (lowest to highest). The difference is that of any label's probability to the "
        "pipeline's default."
    )
    machine = f"{cpu_count()} cores, {threads} threads, {platform.machine()}, {platform.system()}"
    whole = f"`peft-audio predict` on one clip, start to end: {spread(command)} s."
    page = "\n\n".join(["# Labelling clips", f"{machine}.", about, table(columns, rows), whole])
    print(page)
    if options.out:
        options.out.write_text(page + "\n", encoding="utf-8")


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---", "---", *["---:"] * (len(columns) - 2)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float]) -> str:
    """Format the median, the lowest and the highest value."""
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_digits(folder: Path, count: int) -> None:
    """Write `count` recordings of the bundled test split as files."""
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = pq.read_table(DIGITS, columns=["audio"]).slice(0, count).to_pylist()
    for number, row in enumerate(rows):
        (folder / f"{number:03}.flac").write_bytes(row["audio"]["bytes"])


def write_noises(folder: Path, count: int) -> None:
    """Write noise of mixed lengths, in one folder per class."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    for number, seconds in enumerate(rng.uniform(SHORTEST_SECONDS, LONGEST_SECONDS, count)):
        file = folder / LABELS[number % 2] / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        white = rng.normal(size=round(seconds * RATE))
        noise = np.cumsum(white) / 300 if number % 2 else white / 10
        soundfile.write(file, np.clip(noise, -1, 1), RATE)


def write_base(folder: Path) -> None:
    """Save an encoder of the size of wav2vec2-base with random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)


def make_adapter(run: Path, settings: dict[str, object]) -> Path:
    """Train an adapter with a few steps of the recipe, and return its folder."""
    settings = settings | {
        "train.max_steps": STEPS,
        "train.epochs": 1,
        "train.evaluate_test": "false",
        "train.verify_adapter": "false",
        "train.output_dir": run,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    finished([sys.executable, str(ROOT / "recipes" / "lora.py"), *flags])
    return run / "adapter"


def finished(command: list[str]) -> str:
    """Run a command and return its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def measure_ways(adapter: Path, clips: Path, options: argparse.Namespace) -> tuple[list[list[str]], int]:
    """Measure each method of labelling the clips.

    Returns:
        One row per method, and the number of threads.
    """
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, results in found.items():
            command = [sys.executable, __file__, "--device", options.device, "--measure", way, str(adapter), str(clips)]
            results.append(json.loads(finished(command).splitlines()[-1]))
    ours, reference = found["peft-audio"], found["pipeline"][0]["probabilities"]
    rows = []
    for way, results in found.items():
        ratios = [mine["speed"] / its["speed"] for mine, its in zip(ours, results, strict=True)]
        differences = [
            abs(value - reference[clip][label])
            for clip, row in results[0]["probabilities"].items()
            for label, value in row.items()
        ]
        speeds = spread([result["speed"] for result in results])
        rows.append([way, speeds, "" if way == "peft-audio" else spread(ratios), f"{max(differences):.0e}"])
    return rows, ours[0]["threads"]


def run_pipeline(batch_size: int | None, adapter: Path, clips: Path, device: str) -> dict[str, Any]:
    """Measure the pipeline, with PEFT's model as in the adapter's own README."""
    import torch
    from peft import PeftModel
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

    from peft_audio.adapters.record import read_record
    from peft_audio.audio.decoding import load_audio
    from peft_audio.encoders.loading import resolve_base

    record = read_record(adapter)
    names = dict(enumerate(record.labels))
    model: Any = AutoModelForAudioClassification.from_pretrained(
        resolve_base(record.base.name),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        dtype=torch.float32,
    )
    extractor = AutoFeatureExtractor.from_pretrained(adapter)
    adapted: Any = PeftModel.from_pretrained(model, adapter).eval()
    classify: Any = pipeline("audio-classification", model=adapted, feature_extractor=extractor, device=device)
    more = {} if batch_size is None else {"batch_size": batch_size}

    def label(files: list[Path]) -> list[Any]:
        sounds = [load_audio(file, record.sampling_rate) for file in files]
        return classify(sounds, top_k=len(names), **more)

    files = sorted(clips.rglob("*.*"))
    label(files[:1])
    began = perf_counter()
    rows = label(files)
    seconds = perf_counter() - began
    probabilities = {
        str(file): {row["label"]: row["score"] for row in answer} for file, answer in zip(files, rows, strict=True)
    }
    return {"speed": len(files) / seconds, "probabilities": probabilities, "threads": torch.get_num_threads()}


def run_predict(adapter: Path, clips: Path, device: str) -> dict[str, Any]:
    """Measure `peft_audio.predict` on a folder."""
    import torch

    from peft_audio import load_adapter, predict

    loaded = load_adapter(adapter, device=device)
    predict(loaded, next(clips.rglob("*.*")))
    began = perf_counter()
    found = predict(loaded, clips)
    seconds = perf_counter() - began
    probabilities = {prediction.path: prediction.probabilities for prediction in found}
    return {"speed": len(found) / seconds, "probabilities": probabilities, "threads": torch.get_num_threads()}


def time_command(adapter: Path, clip: Path, options: argparse.Namespace) -> list[float]:
    """Measure the seconds of the command on one clip."""
    command = [sys.executable, "-m", "peft_audio.cli", "predict", str(clip), "--adapter", str(adapter)]
    seconds = []
    for _ in range(options.repeats):
        began = perf_counter()
        finished([*command, "--device", options.device])
        seconds.append(perf_counter() - began)
    return seconds


WAYS: dict[str, Callable[..., dict[str, Any]]] = {
    "pipeline": lambda *rest: run_pipeline(None, *rest),
    f"pipeline, batch_size={PIPELINE_BATCH}": lambda *rest: run_pipeline(PIPELINE_BATCH, *rest),
    "peft-audio": run_predict,
}

if __name__ == "__main__":
    main()
