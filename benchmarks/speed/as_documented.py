"""Train as documented by transformers and PEFT; training.py compares the recipes with this script.

    python benchmarks/speed/as_documented.py --base DIR --data FOLDER --strategy lora --epochs 1 --batch 4 --seconds 5

Follows https://huggingface.co/docs/transformers/tasks/audio_classification, with LoRA as in
https://huggingface.co/docs/peft/quicktour and layers frozen through `requires_grad`. There are four differences. Files
are read with soundfile, because `Audio` of datasets needs torchcodec and FFmpeg. Nothing is evaluated, saved or pushed,
which the compared time of the recipe does not include either. One step is one batch. `max_length` is the length of the
clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments


def main() -> None:
    """Train once, and print the costs as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="folder of the pretrained encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/LABEL/*.wav")
    parser.add_argument("--strategy", required=True, help="head-only, last-2, lora; anything else trains all weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="longer clips are cut to this length")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="as_documented_") as folder:
        print(json.dumps(train(options, Path(folder))))


def train(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Follow the guide from files to trained weights.

    Returns:
        `seconds` of preprocessing and training without imports and loading the model, optimizer `steps`, and
        `peak_bytes` of memory.
    """
    files = sorted(options.data.glob("train/*/*.wav"))
    rows = "\n".join(f"{file},{file.parent.name}" for file in files)
    (folder / "clips.csv").write_text(f"file,label\n{rows}\n", encoding="utf-8")

    clips = load_dataset("csv", data_files=str(folder / "clips.csv"), split="train", cache_dir=str(folder / "cache"))
    clips = clips.class_encode_column("label")
    labels = clips.features["label"].names
    label2id, id2label = {}, {}
    for i, label in enumerate(labels):
        label2id[label] = str(i)
        id2label[str(i)] = label

    feature_extractor = AutoFeatureExtractor.from_pretrained(options.base)

    def preprocess_function(examples: dict[str, list[Any]]) -> Any:
        audio_arrays = [soundfile.read(file, dtype="float32")[0] for file in examples["file"]]
        return feature_extractor(
            audio_arrays,
            sampling_rate=feature_extractor.sampling_rate,
            max_length=round(options.seconds * feature_extractor.sampling_rate),
            truncation=True,
        )

    began = time.perf_counter()
    encoded_clips = clips.map(preprocess_function, remove_columns="file", batched=True)
    seconds = time.perf_counter() - began

    model = AutoModelForAudioClassification.from_pretrained(
        options.base, num_labels=len(id2label), label2id=label2id, id2label=id2label
    )
    training_args = TrainingArguments(
        output_dir=str(folder / "model"),
        eval_strategy="no",
        save_strategy="no",
        learning_rate=3e-5,
        per_device_train_batch_size=options.batch,
        num_train_epochs=options.epochs,
        warmup_steps=0.1,
        logging_steps=10,
        bf16=options.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
    )
    trainer = Trainer(
        model=freeze(model, options.strategy),
        args=training_args,
        train_dataset=encoded_clips,
        processing_class=feature_extractor,
    )
    began = time.perf_counter()
    trainer.train()
    seconds += time.perf_counter() - began
    return {"seconds": seconds, "steps": trainer.state.global_step, "peak_bytes": peak_bytes()}


def freeze(model: Any, strategy: str) -> Any:
    """Freeze the weights that the strategy does not train."""
    if strategy == "lora":
        config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], modules_to_save=["projector", "classifier"])
        return get_peft_model(model, config)
    if strategy in ("head-only", "last-2"):
        for parameter in model.base_model.parameters():
            parameter.requires_grad = False
    if strategy == "last-2":
        for parameter in model.base_model.encoder.layers[-2:].parameters():
            parameter.requires_grad = True
    return model


def peak_bytes() -> int:
    """Return the peak memory of this process: of tensors on CUDA, otherwise resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource  # missing on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
