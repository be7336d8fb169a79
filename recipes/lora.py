# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fine-tune an audio classifier with LoRA adapters.

accelerate launch recipes/lora.py                                       # the bundled spoken digits
accelerate launch recipes/lora.py --data.source FOLDER --train.output_dir runs/mine
python recipes/lora.py --help
"""

from peft_audio import LoraRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, LoraRecipe)
