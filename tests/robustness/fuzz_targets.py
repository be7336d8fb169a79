"""What fuzz.py damages: each target puts one damaged input into a folder, and gives what reads it as a user would."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from robustness.fuzz_mutations import ODD_INTEGERS, ODD_YAML, mutated_bytes, mutated_json, mutated_lines, write_damaged
from robustness.fuzz_promise import Trial, unclear

from peft_audio.comparison.settings import RECIPES, CompareRecipe
from peft_audio.config import DataConfig, parse_config, read_config, to_yaml
from peft_audio.config.parse import flags_of
from peft_audio.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Target:
    """What is damaged.

    Attributes:
        prepare: Fills a folder with sound files to damage.
        draw: Writes one damaged input into `input/` beside them, and gives what reads it: that either works or raises
            UserError or AudioError.
        modules: Imported before the first input, whose time it would take.
    """

    prepare: Callable[[Path], None]
    draw: Callable[[random.Random, Path], Trial]
    modules: tuple[str, ...] = ("peft_audio.config",)


def _prepare_audio(place: Path) -> None:
    from helpers.sound_files import FFMPEG_FORMATS, FORMATS, chirps, encoded, speech_like, written

    for name, subtype, _ in FORMATS:
        written(place / f"{subtype}-{name}", speech_like(0.3), subtype=subtype)
    written(place / "wide.wav", chirps(0.2, 48_000, 6), 48_000, "PCM_16")
    for name, codec, rate, channels, _ in FFMPEG_FORMATS:
        encoded(place / name, chirps(0.3, rate, channels), rate, codec, fflags="+bitexact")


def _draw_audio(rng: random.Random, place: Path) -> Trial:
    sound = sorted(path for path in place.iterdir() if path.is_file())
    path, other = rng.choice(sound), rng.choice(sound)
    suffix = path.suffix if rng.random() < 0.9 else other.suffix
    file = place / "input" / f"clip{suffix}"
    file.write_bytes(mutated_bytes(rng, path.read_bytes(), rng.choice((64, 200, 1_000)), other.read_bytes()))
    source = file if rng.random() < 0.7 else file.read_bytes()
    start, seconds = rng.choice((0.0, 0.0, 0.1, 7.0)), rng.choice((None, None, 0.05, 100.0))
    return lambda: _hear(source, start, seconds)


def _hear(source: Path | bytes, start: float, seconds: float | None) -> None:
    from peft_audio.audio.decoding import load_audio, read_info
    from peft_audio.data.scan import scan_clip

    said = scan_clip(source, start, float("nan") if seconds is None else start + seconds)["error"]
    if said:
        assert isinstance(said, str) and "\n" not in said, said
    info = read_info(source)
    assert info.num_frames > 0 and info.channels > 0, info
    waveform = load_audio(source, 16_000, start, seconds)
    assert waveform.dtype == np.float32 and waveform.ndim == 1 and waveform.size > 0
    assert np.isfinite(waveform).all()


def _prepare_yaml(place: Path) -> None:
    for file in (Path(__file__).parents[2] / "recipes" / "configs").glob("*.yaml"):
        shutil.copy(file, place)


def _draw_yaml(rng: random.Random, place: Path) -> Trial:
    recipe = rng.choice([*RECIPES.values(), CompareRecipe])
    published = rng.choice(sorted(place.glob("*.yaml"))).read_text(encoding="utf-8")
    kind = rng.random()
    if kind < 0.35:
        text = mutated_json(rng, asdict(recipe()))
    else:
        text = mutated_lines(rng, to_yaml(recipe()) if kind < 0.8 else published, ODD_YAML)
    content = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        content = mutated_bytes(rng, content, len(content))
    file = place / "input" / "settings.yaml"
    file.write_bytes(content)
    arguments = ["--config", str(file)] if rng.random() < 0.9 else []
    if rng.random() < 0.2 or not arguments:
        flag, value = f"--{rng.choice(list(flags_of(recipe)))}", rng.choice(ODD_YAML)
        arguments += [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
    whole = rng.random() < 0.2
    return lambda: _parse(recipe, arguments, place / "input" / "again.yaml", whole)


def _parse(recipe: type[Any], arguments: list[str], again: Path, whole: bool) -> None:
    if whole:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                cfg = parse_config(recipe, arguments)
        except SystemExit as stop:
            assert stop.code == 2 and said.getvalue().startswith("error: "), (stop.code, said.getvalue())
            raise UserError(said.getvalue()) from stop
    else:
        cfg = read_config(recipe, arguments)
    again.write_text(to_yaml(cfg), encoding="utf-8")
    assert read_config(recipe, ["--config", str(again)]) == cfg, "saved settings are read back as others"


def _prepare_manifests(place: Path) -> None:
    from helpers.sound_files import speech_like, written

    for i in range(12):
        (place / "clips" / f"s{i % 3}").mkdir(parents=True, exist_ok=True)
        written(place / "clips" / f"s{i % 3}" / f"{i}.wav", speech_like(0.05, hertz=200 + 50 * i), subtype="PCM_16")


def _rows(rng: random.Random) -> list[dict[str, Any]]:
    """A row a clip, with some of the columns that a manifest may have."""
    rows: list[dict[str, Any]] = []
    columns = {name for name in ("split", "group", "times") if rng.random() < 0.4}
    for i in range(12):
        row: dict[str, Any] = {"path": f"../clips/s{i % 3}/{i}.wav", "label": ("no", "yes")[i // 6]}
        row |= {"split": ("train", "dev", "test")[i % 3]} if "split" in columns else {}
        row |= {"group": f"s{i % 3}"} if "group" in columns else {}
        row |= {"start_seconds": 0.01, "end_seconds": 0.04} if "times" in columns else {}
        rows.append(row)
    return rows


def _draw_manifests(rng: random.Random, place: Path) -> Trial:
    rows = _rows(rng)
    suffix = rng.choice((".csv", ".tsv", ".jsonl", ".parquet"))
    given: dict[str, Any] = {"on_bad_clip": rng.choice(("error", "skip", "skip")), "max_bad_share": 0.95}
    given |= rng.choice(
        (
            *[{}] * 4,
            {"group_column": rng.choice(("label", "path", "nothing"))},
            {"group_pattern": rng.choice((r"^(\d)", ".", "(x)?", "(?P<n>.)", "$"))},
            {"window_seconds": 0.02, "hop_seconds": rng.choice((0.01, 0.02))},
            {"fold": 0, "num_folds": 3},
            {"validate_on_test": True},
            {"max_train_clips": 3},
            {"label_column": "path"},
        )
    )
    if rng.random() < 0.15:
        rows = [row | {"id": row["path"], "split": ("train", "dev", "test")[i % 3]} for i, row in enumerate(rows)]
        given = {"splits_file": str(place / "input" / f"splits{suffix}")} | {
            name: value for name, value in given.items() if name not in ("fold", "num_folds")
        }
        good = place / "input" / "clips.csv"
        good.write_text("path,label\n" + "".join(f"{row['path']},{row['label']}\n" for row in rows))
        write_damaged(rng, Path(given["splits_file"]), rows)
        cfg = DataConfig(source=str(good), **given)
    else:
        file = place / "input" / f"clips{suffix}"
        write_damaged(rng, file, rows)
        cfg = DataConfig(source=str(file), **given)
    checked = rng.random() < 0.2
    return lambda: _divide(cfg, checked)


def _divide(cfg: DataConfig, checked: bool) -> None:
    from peft_audio.checks.collection import check
    from peft_audio.data.splits import load_splits

    if checked:
        json.dumps(asdict(check(cfg, jobs=1)), ensure_ascii=False).encode()
        return
    splits = load_splits(cfg)
    splits.dataset_sha256(), splits.split_sha256()
    assert splits.table().num_rows > 0 and len(splits.labels) > 1


def _prepare_adapter(place: Path) -> None:
    for product in ("golden-base", "lora", "bias_only", "head_only_weighted", "full"):
        shutil.copytree(GOLDEN / product, place / product)


def _copied(rng: random.Random, place: Path) -> Path:
    product = rng.choice(("lora", "lora", "bias_only", "head_only_weighted", "full"))
    return shutil.copytree(place / product, place / "input" / product)


def _draw_json(rng: random.Random, place: Path) -> Trial:
    folder = _copied(rng, place)
    names = [path.name for path in sorted(folder.glob("*.json"))]
    file = folder / rng.choice([*names, *["peft_audio.json"] * 2])
    if rng.random() < 0.9:
        content = mutated_json(rng, json.loads(file.read_text())).encode("utf-8", "surrogatepass")
    else:
        content = mutated_bytes(rng, file.read_bytes(), 2_000)
    file.write_bytes(content)
    return _reading(rng, folder, place)


def _draw_safetensors(rng: random.Random, place: Path) -> Trial:
    folder = _copied(rng, place)
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, body = content[8 : 8 + size], content[8 + size :]
    kind = rng.random()
    if kind < 0.6:
        written = json.loads(header)
        if rng.random() < 0.4:
            entry = written[rng.choice([name for name in written if name != "__metadata__"])]
            entry |= rng.choice(
                (
                    {"dtype": rng.choice(("F64", "F16", "BF16", "F8_E4M3", "F4", "I8", "U64", "BOOL", "C64", "f32"))},
                    {"shape": [rng.choice(ODD_INTEGERS) for _ in range(rng.choice((1, 2, 40)))]},
                    {"data_offsets": [rng.choice(ODD_INTEGERS), rng.choice((len(body), *ODD_INTEGERS))]},
                )
            )
        header = (json.dumps(written) if rng.random() < 0.3 else mutated_json(rng, written)).encode(
            "utf-8", "surrogatepass"
        )
        content = struct.pack("<Q", len(header)) + header + body
    elif kind < 0.7:
        content = struct.pack("<Q", rng.choice((*ODD_INTEGERS, size - 1, size + 1, len(content)))) + content[8:]
    else:
        content = mutated_bytes(rng, content, rng.choice((8, 200, 8 + size)))
    file.write_bytes(content)
    return _reading(rng, folder, place)


def _reading(rng: random.Random, folder: Path, place: Path) -> Trial:
    depth, base = rng.random(), rng.choice((str(place / "golden-base"),) * 3 + (None,))
    return lambda: _read_adapter(folder, depth, None if folder.name == "full" else base)


def _read_adapter(folder: Path, depth: float, base: str | None) -> None:
    from peft_audio.adapters.examine import examine, to_json
    from peft_audio.adapters.files import WHOLE_WEIGHTS, nonfinite_weights, stored_shapes
    from peft_audio.adapters.load import check_peft_files, load_adapter
    from peft_audio.adapters.record import adapter_readme, read_record

    if depth < 0.08:  # `peft-audio verify` tells each fault, and raises only where there is no adapter at all
        for finding in (found := examine(folder, base)):
            assert not unclear(finding.what), (unclear(finding.what), finding)
        json.dumps(to_json(str(folder), found), ensure_ascii=False).encode()
    record = read_record(folder)
    adapter_readme(record).encode()
    if record.whole:
        stored_shapes(folder / WHOLE_WEIGHTS)
        nonfinite_weights(folder / WHOLE_WEIGHTS)
    else:
        check_peft_files(folder)
        nonfinite_weights(folder / "adapter_model.safetensors")
    if 0.08 <= depth < 0.3:
        adapter = load_adapter(folder, base)
        assert np.isfinite(adapter.logits([np.zeros(8_000, np.float32)])).all()


ADAPTER = ("peft_audio.adapters.load", "peft_audio.adapters.examine")
TARGETS = {
    "audio": Target(_prepare_audio, _draw_audio, ("peft_audio.data.scan", "av")),
    "yaml": Target(_prepare_yaml, _draw_yaml),
    "manifests": Target(
        _prepare_manifests, _draw_manifests, ("peft_audio.data.splits", "peft_audio.checks.collection")
    ),
    "json": Target(_prepare_adapter, _draw_json, ADAPTER),
    "safetensors": Target(_prepare_adapter, _draw_safetensors, ADAPTER),
}
