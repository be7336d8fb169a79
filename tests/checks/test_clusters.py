from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from peft_audio.checks import clusters, collection
from peft_audio.cli import main
from peft_audio.config import DataConfig
from peft_audio.data import splits

ASSETS = Path(splits.__file__).parents[1] / "assets" / "digits"
CLASSES, CLIPS, WIDTH = 8, 60, 24


def clouds(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw clips of classes that are far apart; nothing else divides them."""
    labels = np.repeat(np.arange(CLASSES), CLIPS)
    return rng.normal(0, 8, (CLASSES, WIDTH))[labels] + rng.normal(0, 1, (len(labels), WIDTH)), labels


def named(labels: np.ndarray) -> list[str]:
    return [f"class {label}" for label in labels]


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_recur_in_all_classes_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, labels = clouds(rng)
    groups = rng.integers(4, size=len(labels))
    found = clusters.find_clusters(values + rng.normal(0, 2, (4, WIDTH))[groups], named(labels))
    assert found is not None
    assert len(set(found)) == len(set(zip(found, groups, strict=True))) == 4, "the same partition"
    assert list(np.bincount(found)) == sorted(np.bincount(groups), reverse=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", ["classes alone", "kinds in each class", "a gradual change", "rare outliers"])
def test_no_clusters_are_reported_without_groups(layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, labels = clouds(rng)
    if layout == "kinds in each class":
        # Two kinds of each class, such as breeds, which no other class has.
        values += rng.normal(0, 2, (CLASSES, 2, WIDTH))[labels, rng.integers(2, size=len(labels))]
    if layout == "a gradual change":
        values += rng.uniform(-6, 6, (len(labels), 1)) * rng.normal(0, 1, WIDTH)
    if layout == "rare outliers":
        values[rng.permutation(len(labels))[:4]] *= 4
    assert clusters.find_clusters(values, named(labels)) is None


def write_digits(folder: Path, count: int) -> None:
    """Write bundled digits under numbers, so that no name shows the speaker."""
    rows = [row for split in ("train", "test") for row in pq.read_table(ASSETS / f"{split}.parquet").to_pylist()]
    for number, place in enumerate(np.random.default_rng(0).permutation(len(rows))[:count].tolist()):
        file = folder / str(rows[place]["label"]) / f"{number}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rows[place]["audio"]["bytes"])


def test_check_says_what_a_random_split_divides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path, 160)
    rng = np.random.default_rng(0)

    def embed(parts: list[clusters.Part], base: str, advance: object) -> np.ndarray:
        assert len(parts) == 160 and base == "wav2vec2-nano"
        return rng.normal(0, 4, (3, WIDTH))[np.arange(160) % 3] + rng.normal(0, 1, (160, WIDTH))

    monkeypatch.setattr(clusters, "embed", embed)
    assert main(["check", str(tmp_path), "--deep"]) == 0
    said = capsys.readouterr().out
    assert "clips form 3 clusters that recur in several classes" in said
    assert "3 of them are in several splits, with 160 of 160 clips" in said
    assert "cluster 1: 54 clips of 10 classes (train, validation, test), such as" in said
    # Clips whose groups are known need no embeddings.
    assert main(["check", str(tmp_path), "--deep", "--data.group_pattern", r"(\d)\.flac$"]) == 0
    assert "groups are declared" in capsys.readouterr().out
    monkeypatch.setattr(clusters, "embed", lambda parts, *more: rng.normal(0, 1, (len(parts), WIDTH)))
    assert main(["check", str(tmp_path), "--deep"]) == 0
    assert (
        "note: --deep: embeddings of 160 clips by wav2vec2-nano form no clear clusters across classes. There may"
        in capsys.readouterr().out
    )


def test_an_encoder_without_the_search_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bundled", "--base", "wav2vec2-nano"]) == 2
    assert "--base: got wav2vec2-nano, but only --deep uses an encoder" in capsys.readouterr().err


@pytest.mark.slow
def test_five_speakers_of_the_bundled_digits_are_suspected(tmp_path: Path) -> None:
    write_digits(tmp_path, 600)
    found = collection.check(DataConfig(source=str(tmp_path)), deep="wav2vec2-nano")
    assert [finding.what for finding in found.findings if "clusters that recur" in finding.what]
