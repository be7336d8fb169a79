# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fine-tune the last layers of an audio classifier.

accelerate launch recipes/last_n_layers.py                              # the bundled spoken digits
accelerate launch recipes/last_n_layers.py --data.source FOLDER --train.output_dir runs/mine
python recipes/last_n_layers.py --help
"""

from peft_audio import LastNLayersRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, LastNLayersRecipe)
