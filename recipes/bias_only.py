# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Train the biases of an audio classifier and its head.

accelerate launch recipes/bias_only.py                                  # the bundled spoken digits
accelerate launch recipes/bias_only.py --data.source FOLDER --train.output_dir runs/mine
python recipes/bias_only.py --help
"""

from peft_audio import BiasOnlyRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, BiasOnlyRecipe)
