# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fit a control without a network: the most frequent class, or logistic regression on log-mel statistics.

accelerate launch recipes/baseline.py                                   # the bundled spoken digits
accelerate launch recipes/baseline.py --data.source FOLDER --train.output_dir runs/mine --baseline.kind majority
python recipes/baseline.py --help
"""

from peft_audio import BaselineRecipe, run_baseline
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(run_baseline, BaselineRecipe)
