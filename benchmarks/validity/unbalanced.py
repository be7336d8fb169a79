"""Build an unbalanced folder of classes from a balanced source.

    python benchmarks/validity/unbalanced.py ESC-10 runs/unbalanced/two --target baby_cry --clips 240
    python benchmarks/validity/unbalanced.py fsdd.csv runs/unbalanced/tail --ratio 20 --clips 400

With --target, one class has 16% of the clips, and clips of all other classes form the class `other`. Otherwise the
sizes of the classes fall geometrically, and the largest class has `ratio` times the clips of the smallest. Sources are
those of `data.source`: a folder with a folder per class, or a manifest.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from peft_audio.config import DataConfig
from peft_audio.data.sources import find_clips

SHARE = 0.16  # share of the target class


def main() -> None:
    """Draw clips and copy them into a folder per class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder with a folder per class, or a manifest")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--target", help="class that has 16%% of the clips beside `other` (default: a long tail)")
    parser.add_argument("--ratio", type=float, default=20.0, help="largest over smallest class (default: 20)")
    parser.add_argument("--clips", type=int, default=300, help="number of clips (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    options = parser.parse_args()
    clips = find_clips(DataConfig(source=options.source)).clips
    drawn = draw(clips, options.target, options.ratio, options.clips, options.seed)
    for row in drawn.itertuples():
        folder = options.out / str(row.label)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(row.path, folder / Path(row.path).name)
    print(drawn["label"].value_counts().to_string())


def draw(clips: pd.DataFrame, target: str | None, ratio: float, count: int, seed: int) -> pd.DataFrame:
    """Draw clips without replacement.

    Args:
        clips: `path` and `label` of each clip.
        target: label that has 16% of the clips; None for a long tail.
        ratio: size of the largest class over that of the smallest, for a long tail.
        count: number of clips; fewer if the source has too few.
        seed: seed of the draws.
    """
    if target is not None:
        clips = clips.assign(label=clips["label"].where(clips["label"] == target, "other"))
        sizes = {"other": count - round(SHARE * count), target: round(SHARE * count)}
    else:
        labels = sorted(clips["label"].unique())
        shares = np.geomspace(ratio, 1, len(labels))
        sizes = dict(zip(labels, np.maximum(5, np.round(count * shares / shares.sum())).astype(int), strict=True))
    parts = [
        rows.sample(min(size, len(rows)), random_state=seed)
        for label, size in sizes.items()
        if len(rows := clips[clips["label"] == label])
    ]
    return pd.concat(parts)


if __name__ == "__main__":
    main()
