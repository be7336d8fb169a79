"""Fit a control without a network: the most frequent class, or logistic regression on log-mel statistics.

accelerate launch recipes/baseline.py                                   # the bundled spoken digits
accelerate launch recipes/baseline.py --data.source FOLDER --train.output_dir runs/mine --baseline.kind majority
python recipes/baseline.py --help
"""

from __future__ import annotations

import time

from accelerate import Accelerator

from peft_audio.config import BaselineRecipe, run_recipe
from peft_audio.data.splits import load_splits
from peft_audio.runs.baseline import NO_ENCODER, evaluate_baseline, finish_baseline, fit_baseline
from peft_audio.runs.folder import open_folder
from peft_audio.runs.report import RunReport
from peft_audio.runs.run import save_predictions, start_run


def main(cfg: BaselineRecipe) -> RunReport | None:
    """Files to report, in a straight line; there is no adapter, and nothing to load."""
    began = time.perf_counter()
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    folder = open_folder(cfg, accelerator)
    if folder is None:  # its run is finished
        return None
    splits = load_splits(cfg.data, accelerator)
    run = start_run(folder, cfg, splits, NO_ENCODER, accelerator, began)
    if not accelerator.is_main_process:
        return None
    fitted = fit_baseline(splits, cfg)
    evaluations = {"validation": evaluate_baseline(fitted, splits, "validation")}
    if cfg.train.evaluate_train:
        evaluations["train"] = evaluate_baseline(fitted, splits, "train")
    if cfg.train.evaluate_test:
        evaluations["test"] = evaluate_baseline(fitted, splits, "test")
    save_predictions(run, evaluations)
    return finish_baseline(run, cfg.baseline.kind, fitted, evaluations)


if __name__ == "__main__":
    run_recipe(main, BaselineRecipe)
