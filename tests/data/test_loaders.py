from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from helpers.tiny_encoders import tiny_config
from scipy.stats import kstest
from sklearn.utils.class_weight import compute_class_weight
from transformers import Wav2Vec2FeatureExtractor

from peft_audio.config import AugmentConfig, DataConfig, TrainConfig
from peft_audio.data.collate import collate, prepare_clip
from peft_audio.data.dataset import Clips, View
from peft_audio.data.loaders import make_loaders
from peft_audio.data.sampler import Draw, TrainingBatches, evaluation_batches
from peft_audio.data.splits import Splits, load_splits
from peft_audio.encoders.family import family_of
from peft_audio.encoders.wav2vec2 import WAV2VEC2
from peft_audio.errors import UserError
from peft_audio.strategies import LoraRecipe

RATE = 16_000
ENCODER = tiny_config()
RAW = Wav2Vec2FeatureExtractor(do_normalize=False)
NORMALISING = Wav2Vec2FeatureExtractor(do_normalize=True)
RAMP_SECONDS = 4.0
# (processes, micro-batches) that one optimizer step is split into.
DIVISIONS = [(1, 1), (2, 1), (1, 4), (2, 2), (3, 2), (4, 4)]


def mixed_seconds(count: int) -> np.ndarray:
    """Lengths from 0.2 to 30 s, short ones as frequent as long ones on a logarithmic scale."""
    return np.exp(np.random.default_rng(0).uniform(np.log(0.2), np.log(30), count))


def steps_of(lengths: np.ndarray, batch_size: int, processes: int, micros: int, epoch: int = 0) -> list[list[Draw]]:
    """The draws of each optimizer step, over all of its processes and micro-batches, as training would run them."""
    shares = []
    for process in range(processes):
        batches = TrainingBatches(lengths, batch_size, 7, micros, processes, process)
        batches.epoch = epoch
        shares.append(list(batches))
        assert len(shares[-1]) == len(batches) == batches.steps * micros
        assert all(shares[-1])
    return [
        [draw for share in shares for batch in share[step * micros : (step + 1) * micros] for draw in batch]
        for step in range(batches.steps)
    ]


def padded_share(steps: list[list[int]], lengths: np.ndarray) -> float:
    computed = sum(lengths[step].max() * len(step) for step in steps)
    return 1 - lengths[np.concatenate(steps)].sum() / computed


def ramp_clips(tmp_path: Path, count: int = 2, seed: int = 0, **settings: Any) -> Clips:
    """Clips whose samples rise from 0 to 1, so that a sample tells where in the clip it stood."""
    path = tmp_path / "ramp.wav"
    frames = round(RAMP_SECONDS * RATE)
    soundfile.write(path, np.arange(frames, dtype=np.float32) / frames, RATE, subtype="FLOAT")
    row = {"recording": "ramp", "path": str(path), "stored": -1, "label": 0, "start_seconds": 0.0}
    row |= {"end_seconds": None, "num_frames": frames, "sampling_rate": RATE}
    return Clips(Dataset.from_list([row] * count), None, View(WAV2VEC2, RAW, DataConfig(**settings), seed))


def crop_start(clips: Clips, epoch: int | None, index: int = 0) -> tuple[int, int]:
    """Where a draw begins in the ramp and how long it is, in samples; it must be one unbroken piece."""
    values = clips[Draw(index, epoch)]["inputs"]["input_values"]
    positions = np.rint(values * RAMP_SECONDS * RATE)
    assert (np.diff(positions) == 1).all()
    return int(positions[0]), len(positions)


@pytest.fixture(scope="module")
def tones(tone_folder: Path) -> Splits:
    return load_splits(DataConfig(source=str(tone_folder)))


def recipe(augment: str = "light", num_workers: int = 0, batch_size: int = 6, parts: int = 1) -> LoraRecipe:
    return LoraRecipe(
        data=DataConfig(max_seconds=0.3, num_workers=num_workers),
        augment=AugmentConfig(preset=augment),  # type: ignore[arg-type]
        train=TrainConfig(batch_size=batch_size, gradient_accumulation_steps=parts, seed=3),
    )


def process(index: int = 0, count: int = 1) -> Any:
    """What `make_loaders` asks of an Accelerator."""
    return SimpleNamespace(num_processes=count, process_index=index, device=torch.device("cpu"))


def by_clip(loaders: list[Any], split: str) -> dict[int, tuple[bytes, float]]:
    """Each clip's samples without padding, and its weight; fillers left out, no clip twice."""
    found: dict[int, tuple[bytes, float]] = {}
    for batch in (batch for one in loaders for batch in getattr(one, split)):
        for i, index in enumerate(batch["index"].tolist()):
            if batch["weight"][i] > 0:
                assert index not in found
                inputs = batch["inputs"]
                values = inputs["input_values"][i][inputs["attention_mask"][i].bool()]
                found[index] = values.numpy().tobytes(), batch["weight"][i].item()
    return found


def test_clip_is_normalised_alone_and_padded_with_zeros() -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(2, 3, size).astype(np.float32) for size in (700, 1000, 300)]
    items = [
        prepare_clip(clip, NORMALISING, WAV2VEC2) | {"label": i, "index": 10 + i, "weight": 0.5}
        for i, clip in enumerate(clips)
    ]
    batch = collate(items, ENCODER)
    inputs = batch["inputs"]
    assert inputs["input_values"].shape == inputs["attention_mask"].shape == (3, 1000)
    assert inputs["input_values"].dtype == torch.float32 and inputs["attention_mask"].dtype == torch.int64
    for i, clip in enumerate(clips):
        wide = clip.astype(np.float64)
        wanted = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)
        np.testing.assert_allclose(inputs["input_values"][i, : len(clip)], wanted, atol=1e-5)
        assert not inputs["input_values"][i, len(clip) :].any()
    # The clip of 300 samples counts as one of the shortest that the encoder takes.
    assert inputs["attention_mask"].sum(dim=1).tolist() == batch["samples"].tolist() == [700, 1000, 400]
    assert all((mask.diff() <= 0).all() for mask in inputs["attention_mask"])
    assert (batch["label"].tolist(), batch["index"].tolist()) == ([0, 1, 2], [10, 11, 12])


def test_short_batch_has_the_minimum_length_and_raw_clips_stay_raw() -> None:
    clip = np.array([0.25, -0.5], np.float32)
    item = prepare_clip(clip, RAW, WAV2VEC2) | {"label": 0, "index": 0, "weight": 1.0}
    inputs = collate([item], ENCODER)["inputs"]
    assert inputs["input_values"].shape == (1, 400) and inputs["attention_mask"].sum() == 400
    assert inputs["input_values"][0, :3].tolist() == [0.25, -0.5, 0.0]


@pytest.mark.parametrize("count", [64, 67, 5])
def test_epoch_covers_every_clip_once_however_steps_are_divided(count: int) -> None:
    lengths = mixed_seconds(count)
    whole = [{draw.index for draw in step} for step in steps_of(lengths, 16, 1, 1)]
    assert sorted(index for step in whole for index in step) == list(range(count))
    for processes, micros in DIVISIONS:
        steps = steps_of(lengths, 16, processes, micros)
        assert [{draw.index for draw in step if draw.weight} for step in steps] == whole
        counted = [draw.index for step in steps for draw in step if draw.weight]
        assert len(counted) == count
        for step, clips in zip(steps, whole, strict=True):
            assert {draw.weight for draw in step} <= {1 / len(clips), 0.0}
            assert sum(draw.weight for draw in step) == pytest.approx(1, abs=1e-12)
            assert all(draw.epoch == 0 for draw in step)


@pytest.mark.parametrize(("processes", "micros"), DIVISIONS)
def test_parts_of_a_full_step_are_of_equal_size(processes: int, micros: int) -> None:
    for process_index in range(processes):
        batches = TrainingBatches(mixed_seconds(96), 48, 0, micros, processes, process_index)
        assert {len(batch) for batch in batches} == {48 // (processes * micros)}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = TrainingBatches(mixed_seconds(100), 8, seed)
        batches.epoch = epoch
        np.random.seed(0)
        return batches.step_indices()

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    # Not only the order of the same batches changes: a clip meets other neighbours.
    neighbours = [{frozenset(step) for step in order(0, epoch)} for epoch in (0, 1)]
    assert len(neighbours[0] & neighbours[1]) <= 1


def test_batches_of_like_lengths_save_most_of_the_padding() -> None:
    lengths = mixed_seconds(512)
    shuffled = np.random.default_rng(1).permutation(512).reshape(-1, 16).tolist()
    assert padded_share(shuffled, lengths) > 0.6
    for epoch in range(3):
        batches = TrainingBatches(lengths, 16, 0)
        batches.epoch = epoch
        assert padded_share(batches.step_indices(), lengths) < 0.25


@pytest.mark.parametrize("batch_size", [8, 16, 32])
def test_a_mix_of_lengths_is_padded_by_less_than_a_tenth(batch_size: int) -> None:
    uniform = np.random.default_rng(0).uniform(0.2, 30, 2000)
    for lengths in (mixed_seconds(2000), uniform):
        batches = TrainingBatches(lengths, batch_size, 0)
        for batches.epoch in range(3):
            assert padded_share(batches.step_indices(), lengths) < 0.1
        # A clip meets other neighbours in another epoch.
        first, second = ({frozenset(step) for step in batches.step_indices(epoch)} for epoch in (0, 1))
        assert not first & second


def test_batch_seconds_fill_steps_up_to_their_limit() -> None:
    lengths = mixed_seconds(700)
    batches = TrainingBatches(lengths, 16, 0, batch_seconds=60.0)
    total = 0
    for batches.epoch in range(1, 4):
        steps = batches.step_indices()
        assert sorted(row for step in steps for row in step) == list(range(700))
        padded = np.array([len(step) * lengths[step].max() for step in steps])
        assert padded.max() <= 60.0 and np.median(padded) > 40.0
        assert all(sum(draw.weight for draw in step) == pytest.approx(1) for step in batches)
        total += len(steps)
    assert batches.total_steps(3) == total
    alone = TrainingBatches(np.full(5, 90.0), 16, 0, batch_seconds=60.0)
    assert [len(step) for step in alone.step_indices()] == [1] * 5, "a clip that is too long is a step of its own"


def test_evaluation_in_batch_seconds_reads_each_clip_once() -> None:
    lengths = mixed_seconds(101)
    shares = [evaluation_batches(lengths, 8, 3, process, batch_seconds=45.0) for process in range(3)]
    batches = [[draw.index for draw in batch] for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(101))
    assert max(len(batch) * lengths[batch].max() for batch in batches) <= 45.0


def test_short_and_long_batches_come_in_random_order() -> None:
    lengths, correlations = mixed_seconds(128), []
    batches = TrainingBatches(lengths, 16, 0)
    for batches.epoch in range(30):
        means = [lengths[step].mean() for step in batches.step_indices()]
        correlations.append(np.corrcoef(np.arange(8), means)[0, 1])
    # Eight shuffled batches correlate with their place by 0 on average, with a standard error of 0.07.
    assert abs(np.mean(correlations)) < 0.3


@pytest.mark.parametrize("count", [31, 2])
def test_evaluation_covers_every_clip_once_over_three_processes(count: int) -> None:
    lengths = mixed_seconds(count)
    batches = [batch for i in range(3) for batch in evaluation_batches(lengths, 4, 3, i)]
    assert sorted(draw.index for batch in batches for draw in batch) == list(range(count))
    assert all(0 < len(batch) <= 4 for batch in batches)
    assert all(draw.epoch is None for batch in batches for draw in batch)


def test_crop_lies_inside_the_clip_and_anywhere_in_it(tmp_path: Path) -> None:
    clips = ramp_clips(tmp_path, max_seconds=1.0)
    crops = [crop_start(clips, epoch) for epoch in range(200)]
    assert {length for _, length in crops} == {RATE}
    starts = np.array([start for start, _ in crops])
    assert starts.min() >= 0 and starts.max() + RATE <= RAMP_SECONDS * RATE
    assert kstest(starts / RATE, "uniform", args=(0, RAMP_SECONDS - 1)).pvalue > 1e-3


def test_crop_depends_on_seed_epoch_and_clip_alone(tmp_path: Path) -> None:
    first, again, other = (ramp_clips(tmp_path, seed=seed, max_seconds=1.0) for seed in (0, 0, 1))
    draws = [(epoch, index) for epoch in range(3) for index in range(2)]
    starts = [crop_start(first, *draw) for draw in draws]
    assert [crop_start(again, *draw) for draw in reversed(draws)] == starts[::-1]
    assert len(set(starts)) == len(draws)
    assert not set(starts) & {crop_start(other, *draw) for draw in draws}


def test_evaluation_takes_the_start_and_short_clips_whole(tmp_path: Path) -> None:
    whole = round(RAMP_SECONDS * RATE)
    assert crop_start(ramp_clips(tmp_path, max_seconds=1.0, max_eval_seconds=2.5), None) == (0, round(2.5 * RATE))
    assert crop_start(ramp_clips(tmp_path, max_seconds=1.0), None) == (0, whole)
    assert crop_start(ramp_clips(tmp_path, max_seconds=RAMP_SECONDS), 3) == (0, whole)


def test_worker_processes_change_nothing(tones: Splits) -> None:
    plain, workers = (make_loaders(tones, NORMALISING, ENCODER, recipe(num_workers=n), process()) for n in (0, 2))
    for split in ("train", "validation"):
        pairs = list(zip(getattr(plain, split), getattr(workers, split), strict=True))
        assert pairs
        for pair in pairs:
            left, right = ({**batch, **batch["inputs"]} for batch in pair)
            assert left.keys() == right.keys()
            assert all(torch.equal(left[name], right[name]) for name in left if name != "inputs")


def test_processes_and_micro_batches_see_the_same_clips(tones: Splits) -> None:
    alone = [make_loaders(tones, NORMALISING, ENCODER, recipe(), process())]
    divided = [make_loaders(tones, NORMALISING, ENCODER, recipe(parts=2), process(i, 2)) for i in range(2)]
    for split in ("train", "validation", "test"):
        clips = by_clip(alone, split)
        assert clips == by_clip(divided, split)
        assert sorted(clips) == list(range(len(tones[split])))


def test_only_training_clips_are_augmented_and_anew_each_epoch(tones: Splits) -> None:
    light, none = (make_loaders(tones, RAW, ENCODER, recipe(augment), process()) for augment in ("light", "none"))
    assert by_clip([light], "validation") == by_clip([none], "validation")
    epochs = [by_clip([light], "train")]
    light.train.batch_sampler.epoch = 1
    epochs.append(by_clip([light], "train"))
    assert epochs[0] != epochs[1]
    assert epochs[0] != by_clip([none], "train")


def test_only_training_clips_are_masked_and_anew_each_epoch(tones: Splits) -> None:
    cfg = recipe("none")
    cfg = replace(cfg, augment=AugmentConfig(mask_time_share=0.5, mask_time_ms=40, mask_feature_share=0.2))
    loaders = make_loaders(tones, RAW, ENCODER, cfg, process())
    for held_out in (loaders.train_whole, loaders.validation, loaders.test):
        assert not any("time_mask" in batch for batch in held_out)
    epochs = []
    for epoch in (0, 1, 0):
        loaders.train_order.epoch = epoch
        masks = {}
        for batch in loaders.train:
            frames = batch["samples"].tolist()
            for i, index in enumerate(batch["index"].tolist()):
                hidden = batch["time_mask"][i]
                assert not hidden[family_of(ENCODER).count_frames(ENCODER, frames[i]) :].any(), (
                    "padding needs no hiding"
                )
                masks[index] = (hidden.nonzero().tolist(), batch["feature_mask"][i].tolist())
        epochs.append(masks)
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == list(range(len(tones.train)))


def test_class_weights_are_scikit_learns_and_sum_to_one_in_each_step() -> None:
    labels = np.array([0] * 9 + [1] * 3 + [2])
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=labels)[labels]
    batches = TrainingBatches(np.ones(13), 5, 0, micro_batches=2, clip_weights=balanced)
    for step in steps_of_one(batches):
        assert sum(draw.weight for draw in step) == pytest.approx(1)
        clips = [draw for draw in step if draw.weight]
        ratios = {draw.weight / balanced[draw.index] for draw in clips}
        assert max(ratios) == pytest.approx(min(ratios))


def steps_of_one(batches: TrainingBatches) -> list[list[Draw]]:
    micro = list(batches)
    return [micro[i] + micro[i + 1] for i in range(0, len(micro), 2)]


def test_whole_training_clips_are_what_evaluation_sees(tones: Splits) -> None:
    cfg = replace(recipe("light"), data=DataConfig(max_seconds=0.1))
    loaders = make_loaders(tones, RAW, ENCODER, cfg, process())
    clips = {i: batch["samples"][at] for batch in loaders.train_whole for at, i in enumerate(batch["index"].tolist())}
    lengths = {i: row["num_frames"] for i, row in enumerate(tones.train)}
    assert {i: int(n) for i, n in clips.items()} == lengths


def test_loaders_give_normalised_clips(tones: Splits) -> None:
    loaders = make_loaders(tones, NORMALISING, ENCODER, recipe("none"), process())
    for split in ("train", "validation", "test"):
        for values, _ in by_clip([loaders], split).values():
            clip = np.frombuffer(values, np.float32)
            assert clip.mean() == pytest.approx(0, abs=1e-4) and clip.std() == pytest.approx(1, abs=1e-3)


def test_step_with_fewer_clips_than_parts_is_refused(tones: Splits) -> None:
    with pytest.raises(UserError, match=r"--train.batch_size: got 3, must be at least 4.*accumulation_steps"):
        make_loaders(tones, RAW, ENCODER, recipe(batch_size=3, parts=2), process(0, 2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_file_that_vanished_is_named_in_one_line(tmp_path: Path, num_workers: int) -> None:
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 800), RATE)
    splits = load_splits(DataConfig(source=str(tmp_path)))
    loaders = make_loaders(splits, RAW, ENCODER, recipe(num_workers=num_workers), process())
    gone = Path(splits.train[0]["path"])
    gone.unlink()
    with pytest.raises(UserError) as error:
        list(loaders.train)
    assert str(error.value) == f"{gone} does not exist; repair or remove it."
