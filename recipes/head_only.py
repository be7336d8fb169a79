"""Train a classification head on a frozen encoder.

accelerate launch recipes/head_only.py                                  # the bundled spoken digits
accelerate launch recipes/head_only.py --data.source FOLDER --train.output_dir runs/mine
python recipes/head_only.py --help
"""

from __future__ import annotations

import time

from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.save import write_adapter
from peft_audio.config import HeadOnlyRecipe, run_recipe
from peft_audio.data.loaders import make_loaders
from peft_audio.data.splits import load_splits
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
from peft_audio.evaluation.run_split import evaluate
from peft_audio.feature_cache.cache import cache_frozen_prefix
from peft_audio.runs.folder import open_folder
from peft_audio.runs.report import RunReport, finish_run, split_metrics
from peft_audio.runs.run import save_predictions, start_run
from peft_audio.strategies.base import freeze_all_but_head
from peft_audio.training.accelerator import make_accelerator
from peft_audio.training.hardware import resolve
from peft_audio.training.loop import train
from peft_audio.training.precision import on_float32_encoder, store_frozen


def main(cfg: HeadOnlyRecipe) -> RunReport | None:
    """Files to adapter and report, in a straight line."""
    began = time.perf_counter()
    accelerator = make_accelerator(cfg.train)
    folder = open_folder(cfg, accelerator)
    if folder is None:  # its run is finished
        return None
    cfg = resolve(cfg)  # "auto" becomes what suits this device, and says why
    splits = load_splits(cfg.data, accelerator)
    extractor = load_extractor(cfg.model)
    model = load_classifier(cfg.model, splits.labels)
    base = identify_base(cfg.model, model)
    loaders = make_loaders(splits, extractor, model.config, cfg, accelerator)
    model, trained = freeze_all_but_head(model)  # the one line in which the recipes differ
    run = start_run(folder, cfg, splits, base, accelerator, began)
    model, kept = cache_frozen_prefix(model, trained, loaders, cfg, accelerator)  # says what it did, or why not
    store_frozen(model, cfg.model, accelerator.mixed_precision)
    result = train(model, trained, kept, cfg.train, accelerator, run.log, run.checkpoints)
    model = on_float32_encoder(result.model, trained, cfg.model, splits.labels)
    evaluations = {"validation": evaluate(model, loaders.validation, accelerator, loaders.task)}
    if cfg.train.evaluate_train:
        evaluations["train"] = evaluate(model, loaders.train_whole, accelerator, loaders.task)
    if cfg.train.evaluate_test:
        evaluations["test"] = evaluate(model, loaders.test, accelerator, loaders.task)
    save_predictions(run, evaluations)
    record = describe_adapter(cfg, base, splits.labels, extractor, trained.strategy, split_metrics(evaluations))
    if accelerator.is_main_process:
        write_adapter(run.folder, model, trained, extractor, record, cfg.train.verify_adapter)
    accelerator.wait_for_everyone()
    return finish_run(run, model, trained, result, evaluations)


if __name__ == "__main__":
    run_recipe(main, HeadOnlyRecipe)
