# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Train a classification head on a frozen encoder.

accelerate launch recipes/head_only.py                                  # the bundled spoken digits
accelerate launch recipes/head_only.py --data.source FOLDER --train.output_dir runs/mine
python recipes/head_only.py --help
"""

from peft_audio import HeadOnlyRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, HeadOnlyRecipe)
