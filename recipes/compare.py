"""Compare ways of fine-tuning an audio classifier under equal conditions.

python recipes/compare.py                                               # the bundled spoken digits
python recipes/compare.py --data.source FOLDER --output_dir runs/mine --arms "[head_only, lora, full]"
python recipes/compare.py --help

Starts the recipes as a user would, tries learning rates on validation, runs fresh seeds, and writes comparison.md,
.json, .html, .png and .svg. The same command goes on where an earlier one stopped.
"""

import sys

from peft_audio import CompareRecipe
from peft_audio.config import parse_config

if __name__ == "__main__":
    cfg = parse_config(CompareRecipe)
    # Imports torch, so it waits until the settings are read.
    from peft_audio.comparison.run import conclude

    sys.exit(conclude(cfg))
