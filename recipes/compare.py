# /// script
# requires-python = ">=3.11"
# dependencies = ["peft-audio"]
# ///
"""Compare ways of fine-tuning an audio classifier under equal conditions.

python recipes/compare.py                                               # the bundled spoken digits
python recipes/compare.py --data.source FOLDER --output_dir runs/mine --arms "[head_only, lora, full]"
python recipes/compare.py --help

Starts one process per run, tries learning rates on validation, runs fresh seeds, and writes comparison.md, .json,
.html, .png and .svg. Repeat the command to resume a comparison.
"""

import sys

from peft_audio import CompareRecipe
from peft_audio.config import parse_config

if __name__ == "__main__":
    cfg = parse_config(CompareRecipe)
    # Imported late, because it imports torch: settings are checked first.
    from peft_audio.comparison.run import run_comparison

    sys.exit(run_comparison(cfg))
