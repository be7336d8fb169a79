"""Fine-tune an audio classifier with LoRA adapters.

accelerate launch recipes/lora.py                                       # the bundled spoken digits
accelerate launch recipes/lora.py --data.source FOLDER --train.output_dir runs/mine
python recipes/lora.py --help
"""

from __future__ import annotations

import time

from peft_audio.adapter_record import describe_adapter
from peft_audio.adapters import save_adapter
from peft_audio.batching import make_loaders
from peft_audio.config import LoraRecipe, run_recipe
from peft_audio.data import load_splits
from peft_audio.models import identify_base, load_classifier, load_extractor
from peft_audio.report import RunReport, check_output_dir, finish_run, save_predictions, split_metrics, start_run
from peft_audio.strategies import apply_lora
from peft_audio.training import evaluate, make_accelerator, train


def main(cfg: LoraRecipe) -> RunReport | None:
    """Files to adapter and report, in a straight line."""
    began = time.perf_counter()
    accelerator = make_accelerator(cfg.train)
    check_output_dir(cfg.train, accelerator)
    splits = load_splits(cfg.data)
    extractor = load_extractor(cfg.model)
    model = load_classifier(cfg.model, splits.labels)
    base = identify_base(cfg.model, model)
    loaders = make_loaders(splits, extractor, base.minimum_samples, cfg, accelerator)
    model, trained = apply_lora(model, cfg.lora)
    run = start_run(cfg, splits, base, accelerator, began)
    result = train(model, trained, loaders, cfg.train, accelerator, run.folder / "metrics.jsonl")
    evaluations = {"validation": evaluate(result.model, loaders.validation, accelerator)}
    if cfg.train.evaluate_test:
        evaluations["test"] = evaluate(result.model, loaders.test, accelerator)
    save_predictions(run, evaluations)
    record = describe_adapter(cfg, base, splits.labels, extractor, trained.strategy, split_metrics(evaluations))
    if accelerator.is_main_process:
        save_adapter(run.folder / "adapter", result.model, extractor, record)
    accelerator.wait_for_everyone()
    return finish_run(run, trained, result, evaluations)


if __name__ == "__main__":
    run_recipe(main, LoraRecipe)
