# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fine-tune a whole audio classifier.

accelerate launch recipes/full.py                                       # the bundled spoken digits
accelerate launch recipes/full.py --data.source FOLDER --train.output_dir runs/mine
python recipes/full.py --help
"""

from peft_audio import FullRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, FullRecipe)
