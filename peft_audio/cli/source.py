"""Read SOURCE, the recordings of several commands."""

from __future__ import annotations

import argparse

from peft_audio.errors import UserError

SOURCE_HELP = "a folder with one subfolder per class, a table (.csv, .tsv, .jsonl, .parquet), a Hub dataset, or bundled"
FLAG = "--data.source"


def settings_with_source(options: argparse.Namespace) -> list[str]:
    """Return the settings of a command line, with SOURCE as `--data.source`.

    Raises:
        UserError: SOURCE and `--data.source` are both given.
    """
    if options.source is None:
        return options.settings
    for number, word in enumerate(options.settings):
        flag, equals, value = word.partition("=")
        if flag == FLAG:
            other = value if equals else "".join(options.settings[number + 1 : number + 2])
            raise UserError(f"{FLAG}: got {other}, but SOURCE is {options.source} already. Give one of the two.")
    return [f"{FLAG}={options.source}", *options.settings]
