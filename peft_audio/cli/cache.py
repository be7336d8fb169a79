"""Run `peft-audio cache`."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Any


def add_commands(commands: Any) -> None:
    """Add the command `cache`."""
    cache = commands.add_parser(
        "cache",
        help="list or clear the cached output of frozen encoder layers",
        description="List the size and last use of each entry of the feature cache. Training caches the output of "
        "frozen layers on disk, and runs share it (see prefix_cache in python recipes/lora.py --help). After clearing, "
        "the next runs compute it again in one pass over their clips.",
    )
    cache.add_argument("--clear", action="store_true", help="delete all entries")
    cache.add_argument(
        "--folder", metavar="DIR", help="folder given as --prefix_cache.folder (default: the Hugging Face cache)"
    )
    cache.set_defaults(run=run_cache)


def run_cache(options: argparse.Namespace) -> int:
    """List or clear the feature cache.

    Returns:
        Exit code 0.
    """
    from peft_audio.config import PrefixCacheConfig
    from peft_audio.encoders.base import Cut
    from peft_audio.feature_cache.store import cache_root, clear_stores, format_bytes, list_stores

    root = cache_root(PrefixCacheConfig(folder=options.folder))
    if options.clear:
        print(f"{root}: {format_bytes(clear_stores(root))} deleted")
        return 0
    stores = list_stores(root)
    for store in stores:
        when = datetime.fromtimestamp(store.last_used).astimezone().strftime("%Y-%m-%d %H:%M")
        about = store.about
        what = f"{about['config']['model_type']} {about['weights'][:8]}: {Cut(*about['cut'])}" if about else "damaged"
        print(f"{format_bytes(store.bytes):>9}  used {when}  {what}")
    print(f"{root}: {format_bytes(sum(store.bytes for store in stores))}")
    return 0
