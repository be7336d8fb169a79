# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Fine-tune a few attention heads of an audio classifier.

accelerate launch recipes/attention_heads.py                            # the bundled spoken digits
accelerate launch recipes/attention_heads.py --data.source FOLDER --train.output_dir runs/mine
python recipes/attention_heads.py --help
"""

from peft_audio import AttentionHeadsRecipe, fine_tune
from peft_audio.config import run_recipe

if __name__ == "__main__":
    run_recipe(fine_tune, AttentionHeadsRecipe)
