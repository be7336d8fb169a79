"""The `peft-audio` command."""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft_audio import __version__
from peft_audio.launching import RECIPES
from peft_audio.quick_start import quick_imports

if TYPE_CHECKING:
    from peft_audio.prediction import Prediction

PACKAGE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what the user can mend is said in one line, with exit code 2."""
    parser = make_parser()
    options, settings = parser.parse_known_args(arguments)
    if settings and options.run not in (run_check, run_plan):
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    options.settings = settings
    # Of a process that does nothing else; who calls this from Python goes on afterwards.
    options.quick = quick_imports if arguments is None else nullcontext
    from peft_audio.config import UserError

    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # `peft-audio predict ... | head` closes our output early; Python would complain once more at exit.
        sys.stderr.close()
        return 1


def make_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="peft-audio",
        description="Small adapters for audio classifiers. To train one: accelerate launch recipes/lora.py --help",
    )
    parser.add_argument("--version", action="version", version=f"peft-audio {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    predict = commands.add_parser("predict", help="label recordings with an adapter")
    predict.add_argument("sources", nargs="+", metavar="CLIP_OR_FOLDER", help="a recording, or a folder of them")
    predict.add_argument("--adapter", required=True, metavar="DIR", help="such as runs/lora/adapter or runs/full/model")
    predict.add_argument("--base", help="the base encoder (folder or Hub id), if it is no longer where it was")
    predict.add_argument("--device", default="cpu", help="where to run, such as cuda (default: %(default)s)")
    predict.add_argument(
        "--batch-size", type=int, default=16, help="recordings at once, at most (default: %(default)s)"
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list with the probability of every label")
    form.add_argument("--csv", action="store_true", help="a CSV table with the probability of every label")
    predict.set_defaults(run=run_predict)

    check = commands.add_parser(
        "check",
        help="say what is wrong with a collection before it costs a training run",
        description="Decodes every clip once. Exit code 1 if something would spoil a comparison: clips that are "
        "unreadable, empty, silent or hold NaN, copies or groups on two sides of a split, a class missing from one.",
        epilog="Behind SOURCE it takes the recipes' --data.* settings as well, such as --data.group_pattern, "
        "--data.group_column, --data.splits_file or --data.fold; python recipes/lora.py --help explains them.",
    )
    check.add_argument("source", metavar="SOURCE", help="a folder, a manifest, a Hub dataset, or bundled")
    check.add_argument("--json", action="store_true", help="everything that was found, as JSON")
    check.add_argument("--jobs", type=int, help="clips read at once (default: one for each core)")
    check.set_defaults(run=run_check)

    _add_comparison_commands(commands)

    recipe = commands.add_parser(
        "recipe", help="print a recipe, or a launch config, to copy: peft-audio recipe lora > lora.py"
    )
    names = sorted(recipe_files())
    recipe.add_argument("name", choices=names, help=f"one of: {', '.join(names)}")
    recipe.set_defaults(run=run_recipe_command)

    cache = commands.add_parser(
        "cache",
        help="show or clear what training kept of frozen encoders",
        description="Training keeps the output of frozen parts on the disk, shared by runs (prefix_cache in the "
        "recipes' --help). Shows each key's size and last use; clearing costs later runs a pass over their clips.",
    )
    cache.add_argument("--clear", action="store_true", help="delete all of it")
    cache.add_argument("--folder", metavar="DIR", help="as in --prefix_cache.folder (default: the Hugging Face cache)")
    cache.set_defaults(run=run_cache)

    base = commands.add_parser("base", help="copy the bundled encoder out as an ordinary transformers directory")
    base.add_argument("folder", type=Path, metavar="DIR", help="a folder that does not exist yet")
    base.set_defaults(run=run_base)
    return parser


def _add_comparison_commands(commands: Any) -> None:
    plan = commands.add_parser(
        "plan",
        help="say what a comparison will cost before it is run",
        description="Makes a few real steps of every arm, alone on the device, and reckons parameters, bytes, memory "
        "and time of all runs. The timed runs stay in the comparison's folder.",
        epilog="It takes the settings of recipes/compare.py, such as --config FILE or --data.source FOLDER; "
        "python recipes/compare.py --help explains them.",
    )
    plan.add_argument("--json", action="store_true", help="the figures of each arm, as JSON")
    plan.set_defaults(run=run_plan)

    report = commands.add_parser(
        "report",
        help="compare finished runs: tables, pictures and a page",
        description="Reads comparisons made by recipes/compare.py, and runs of the recipes from anywhere, and writes "
        "comparison.md, .json, .html, .png and .svg. Exit code 1 if a rule is broken, so that nothing is ranked.",
    )
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a comparison, or a folder of runs")
    report.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: the first DIR)")
    report.add_argument("--reference", help="the arm that the others are held against (default: full)")
    report.add_argument("--margin", type=float, help="the difference in accuracy that matters (default: 0.02)")
    report.set_defaults(run=run_report)


def recipe_files() -> dict[str, Path]:
    """The recipes, accelerate's launch configs for them, and settings of published experiments, by name."""
    return {path.stem: path for form in ("*.py", "accelerate/*.yaml", "configs/*.yaml") for path in RECIPES.glob(form)}


def run_predict(options: argparse.Namespace) -> int:
    """Label recordings; exit code 1 if one could not be used."""
    from peft_audio.config import UserError

    if options.batch_size < 1:
        raise UserError(f"--batch-size: got {options.batch_size}, must be 1 or more. Try 16.")
    with options.quick():
        from peft_audio.adapters import load_adapter
        from peft_audio.prediction import find_recordings, predict

        paths = find_recordings(options.sources)
        adapter = load_adapter(options.adapter, options.base, options.device)
    found = predict(adapter, paths, options.batch_size)
    if options.json:
        print(json.dumps([asdict(prediction) for prediction in found], indent=2, ensure_ascii=False))
    elif options.csv:
        _print_csv(found, adapter.labels)
    else:
        for prediction in found:
            if prediction.error is None:
                print(f"{prediction.path}\t{prediction.label}\t{prediction.probability:.3f}")
    return _report_on_stderr(found)


def run_check(options: argparse.Namespace) -> int:
    """Check a collection; exit code 1 if something would spoil a comparison."""
    from rich.console import Console

    from peft_audio.check import check, print_check, to_json
    from peft_audio.config import CheckSettings, UserError, parse_config
    from peft_audio.scan import JOBS

    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs: got {options.jobs}, must be 1 or more. Leave it out.")
    cfg = parse_config(CheckSettings, ["--data.source", options.source, *options.settings])
    found = check(cfg.data, options.jobs or JOBS)
    if options.json:
        print(json.dumps(to_json(found), indent=2, ensure_ascii=False))
    else:
        print_check(found, Console())
    return int(found.spoiled)


def run_plan(options: argparse.Namespace) -> int:
    """Say what a comparison will cost."""
    from rich.console import Console

    from peft_audio.config import CompareRecipe, parse_config
    from peft_audio.launching import alone_in
    from peft_audio.plan import plan, print_plan

    cfg = parse_config(CompareRecipe, options.settings)
    try:
        with alone_in(Path(cfg.output_dir).expanduser()):
            print(f"timing a few steps of {len(cfg.arms)} arms, one after the other", file=sys.stderr)
            arms = plan(cfg, lambda job, record: print(f"timed {job.arm}: {record['seconds']:.0f} s", file=sys.stderr))
    except KeyboardInterrupt:
        print("stopped; what was timed stays.", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps([asdict(arm) for arm in arms], indent=2))
    else:
        print_plan(arms, Console())
    return 0


def run_report(options: argparse.Namespace) -> int:
    """Compare finished runs."""
    from rich.console import Console

    from peft_audio.collect import read_comparison
    from peft_audio.config import UserError
    from peft_audio.page import print_comparison, write_comparison

    if options.margin is not None and not 0 < options.margin < 1:
        raise UserError(f"--margin: got {options.margin}, must be between 0 and 1. Try 0.02, two points.")
    comparison = read_comparison(options.folders, options.reference, options.margin)
    written = write_comparison(comparison, options.out or options.folders[0])
    print_comparison(comparison, written, Console())
    return int(bool(comparison.broken_rules))


def run_recipe_command(options: argparse.Namespace) -> int:
    """Print a recipe or a launch config."""
    print(recipe_files()[options.name].read_text(encoding="utf-8"), end="")
    return 0


def run_cache(options: argparse.Namespace) -> int:
    """Show or clear what training kept of frozen encoders."""
    from peft_audio.config import PrefixCacheConfig
    from peft_audio.prefix import Cut
    from peft_audio.prefix_store import cache_root, clear_stores, in_bytes, list_stores

    root = cache_root(PrefixCacheConfig(folder=options.folder))
    if options.clear:
        print(f"{root}: {in_bytes(clear_stores(root))} deleted")
        return 0
    stores = list_stores(root)
    for store in stores:
        when = datetime.fromtimestamp(store.last_used).astimezone().strftime("%Y-%m-%d %H:%M")
        about = store.about
        what = f"{about['config']['model_type']} {about['weights'][:8]}: {Cut(*about['cut'])}" if about else "damaged"
        print(f"{in_bytes(store.bytes):>9}  used {when}  {what}")
    print(f"{root}: {in_bytes(sum(store.bytes for store in stores))}")
    return 0


def run_base(options: argparse.Namespace) -> int:
    """Copy the bundled encoder, its card included."""
    from peft_audio.config import UserError

    if options.folder.exists():
        raise UserError(f"{options.folder} exists already; give a folder that does not.")
    shutil.copytree(PACKAGE / "assets" / "wav2vec2-nano", options.folder)
    print(f"{options.folder}: load it with transformers' AutoModel.from_pretrained")
    return 0


def _print_csv(found: Sequence[Prediction], labels: Sequence[str]) -> None:
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["path", "label", "probability", *(f"probability_{label}" for label in labels), "error"])
    for prediction in found:
        row = [prediction.probabilities.get(label, "") for label in labels]
        table.writerow([prediction.path, prediction.label, prediction.probability, *row, prediction.error])


def _report_on_stderr(found: Sequence[Prediction]) -> int:
    failed = [prediction for prediction in found if prediction.error is not None]
    cut = [prediction for prediction in found if (prediction.seconds_used or 0) < (prediction.seconds or 0)]
    if cut:
        used = cut[0].seconds_used
        print(f"note: {len(cut)} recordings are longer than {used:g} s; only that much was heard.", file=sys.stderr)
    for prediction in failed:
        print(f"skipped: {prediction.path} {prediction.error}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
