"""Run the command `peft-audio` as `python -m peft_audio.cli`."""

import sys

from peft_audio.cli import main

sys.exit(main())
