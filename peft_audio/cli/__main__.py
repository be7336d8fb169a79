"""The same as the command `peft-audio`."""

import sys

from peft_audio.cli import main

sys.exit(main())
