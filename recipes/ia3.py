# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fine-tune an audio classifier with IA3's scaling vectors.

accelerate launch recipes/ia3.py                                        # the bundled spoken digits
accelerate launch recipes/ia3.py --data.source FOLDER --train.output_dir runs/mine
python recipes/ia3.py --help
"""

from peft_audio import IA3Recipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, IA3Recipe)
