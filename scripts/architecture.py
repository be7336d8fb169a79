"""Measure the layout of the package and draw it.

    python scripts/architecture.py                                          # print the figures
    python scripts/architecture.py --picture docs/pictures/architecture.png # and draw the folders and their imports

Prints the modules of each folder, the imports between folders, imports that go upwards, cycles, long functions, and
lists of setting names that are kept by hand. The exit code is 1 if an import goes upwards.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "peft_audio"
LONG_FUNCTION = 60
# Modules that nearly every folder uses; arrows to them would hide the others.
EVERYWHERE = ("text", "files", "errors", "processes")
# Number of setting names from which a tuple, list or set counts as a list kept by hand.
LISTED_NAMES = 3


def layers() -> tuple[str, ...]:
    """Read the import order of folders from tests/test_imports.py, lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "LAYERS":
            return tuple(ast.literal_eval(node.value))
    raise SystemExit("error: tests/test_imports.py defines no LAYERS")


def folder_of(file: Path) -> str:
    """Name the folder, or top-level module, that a file belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> dict[Path, ast.Module]:
    """Parse every module of the package."""
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}


def imported_folders(tree: ast.Module) -> Iterator[str]:
    """Yield the folder of each import of the package, wherever it is in a module."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "peft_audio":
            names = [f"peft_audio.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (name.split(".")[1] for name in names if name.startswith("peft_audio."))


def count_imports(parsed: dict[Path, ast.Module], order: tuple[str, ...]) -> Counter[tuple[str, str]]:
    """Count the import statements from one folder to another."""
    arrows: Counter[tuple[str, str]] = Counter()
    for file, tree in parsed.items():
        here = folder_of(file)
        if here in order:
            arrows.update((here, there) for there in imported_folders(tree) if there != here and there in order)
    return arrows


def long_functions(parsed: dict[Path, ast.Module]) -> list[tuple[str, int]]:
    """List functions with more than LONG_FUNCTION lines, longest first."""
    found = [
        (f"{file.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1)
        for file, tree in parsed.items()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno
    ]
    return sorted(((name, lines) for name, lines in found if lines > LONG_FUNCTION), key=lambda each: -each[1])


def setting_names() -> set[str]:
    """Collect the dotted names of all settings of all recipes, such as `train.epochs`."""
    from peft_audio.comparison.settings import CompareRecipe
    from peft_audio.strategies import STRATEGIES

    names: set[str] = set()
    recipes: list[Any] = [row.recipe for row in STRATEGIES.values()]
    for recipe in [*recipes, CompareRecipe]:
        hints = get_type_hints(recipe)
        for section in fields(recipe):
            kind = hints[section.name]
            if is_dataclass(kind):
                names |= {f"{section.name}.{field.name}" for field in fields(kind)}
    return names


def handkept_lists(parsed: dict[Path, ast.Module], names: set[str]) -> list[str]:
    """List literals that hold several dotted names of settings."""
    found = []
    for file, tree in parsed.items():
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                continue
            texts = {each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            if len(texts & names) >= LISTED_NAMES:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    return found


def draw(counts: dict[str, int], arrows: Counter[tuple[str, str]], order: tuple[str, ...], picture: Path) -> None:
    """Draw folders from top to bottom and the imports between them, without the modules that every folder uses.

    Args:
        counts: Modules of each folder.
        arrows: Import statements by pair of folders.
        order: Folders, lowest first.
        picture: File to write; the suffix decides the format.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [name for name in reversed(order) if counts.get(name) and name not in EVERYWHERE]
    place = {name: -i for i, name in enumerate(shown)}
    figure, axes = pyplot.subplots(figsize=(6, 0.5 * len(shown) + 0.6))
    colours = pyplot.get_cmap("tab20")
    for (above, below), count in sorted(arrows.items()):
        if above not in place or below not in place:
            continue
        start, end = place[above], place[below]
        side = 1 if start > end else -1
        style = {
            "arrowstyle": "-|>",
            "connectionstyle": f"arc3,rad={-0.32 * side}",
            "color": colours(shown.index(above) % 20) if start > end else "red",
            "linewidth": 0.6 + min(2.2, count / 6),
            "alpha": 0.75,
            "shrinkA": 2,
            "shrinkB": 2,
        }
        axes.annotate("", xy=(1.02, end), xytext=(1.02, start), arrowprops=style)
    for name, y in place.items():
        kind = "folder" if (PACKAGE / name).is_dir() else "module"
        label = f"{name}/   {counts[name]} modules" if kind == "folder" else f"{name}.py"
        box = {"boxstyle": "round,pad=0.3", "facecolor": "#eef3f8", "edgecolor": colours(shown.index(name) % 20)}
        axes.text(0.98, y, label, ha="right", va="center", fontsize=9, bbox=box)
    axes.set(xlim=(0, 2), ylim=(-len(shown) + 0.3, 0.7), title="Imports between the folders of peft_audio")
    axes.axis("off")
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)


def main() -> int:
    """Print the figures and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw the folders and their imports into this file")
    options = parser.parse_args()
    order, parsed = layers(), modules()
    counts = Counter(folder_of(file) for file in parsed if file.stem != "__init__" or file.parent == PACKAGE)
    arrows = count_imports(parsed, order)
    upwards = sorted(pair for pair in arrows if order.index(pair[1]) > order.index(pair[0]))
    print(f"{'folder':<16} {'modules':>7}  imports (statements)")
    for name in reversed(order):
        if counts.get(name):
            to = [f"{there} {arrows[here, there]}" for here, there in sorted(arrows) if here == name]
            print(f"{name:<16} {counts[name]:>7}  {', '.join(to)}")
    folders = sum((PACKAGE / name).is_dir() for name in counts)
    print(f"\n{sum(counts.values())} modules in {folders} folders and the top level")
    print(f"{len(arrows)} pairs of folders with imports, {len(upwards)} upwards: {upwards or 'none, so no cycles'}")
    long = long_functions(parsed)
    print(f"functions over {LONG_FUNCTION} lines: {len(long)}")
    for name, lines in long:
        print(f"    {name} {lines}")
    lists = handkept_lists(parsed, setting_names())
    print(f"lists of setting names kept by hand: {len(lists)}")
    for place in lists:
        print(f"    {place}")
    if options.picture:
        draw(dict(counts), arrows, order, options.picture)
        print(f"picture: {options.picture}")
    return int(bool(upwards))


if __name__ == "__main__":
    sys.exit(main())
