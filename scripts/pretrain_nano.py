"""Pretrain the bundled encoder, wav2vec2-nano, on what `synthesise_speech.py` spoke.

Two linear heads sit on the encoder's last layer while it trains, and are thrown away afterwards: one names the phone of
every 20 ms frame, the other names the word of the whole clip from the mean of its frames. Phrases have phones only.

Training batches hold clips of equal length, so nothing in them is padding and the first convolution's group norm sees
each clip as it would be alone; evaluation pads, with `peft_audio.encoders.exact_padding.make_padding_exact`.

Every core runs a process of one thread on its own share of the clips, and the gradients are averaged once a step.
Threads would meet some thousand times a step, and each meeting waits for whoever else uses the machine.

The clock drives the learning rate, so a run ends when it was told to; the same seed on another machine makes another,
equally good checkpoint.
"""

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from peft_audio.encoders.exact_padding import make_padding_exact

SAMPLING_RATE = 16_000
HOP_SAMPLES, WINDOW_SAMPLES = 320, 400  # of wav2vec2's convolutions: one frame every 20 ms, each seeing 25 ms
SHORTEST_SAMPLES = 4_000  # 12 frames: SpecAugment needs more than its mask's length
TRACK_SECONDS = 0.005  # step of the stored phone labels
IGNORED = -100  # PyTorch's "no label here"

# No dropout: drawing its masks costs a CPU more than the layers do, and the augmentation regularises enough. Eager
# attention trains faster than sdpa on a CPU at these lengths.
ENCODER: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "conv_dim": (32, 32, 64, 64, 64, 128, 128),
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 16,
    "feat_extract_norm": "group",
    "do_stable_layer_norm": True,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "mask_time_prob": 0.05,
    "mask_time_length": 5,
    "mask_time_min_masks": 0,
    "attn_implementation": "eager",
}
PEAK_LEARNING_RATE, WARMUP_STEPS, WEIGHT_DECAY = 1.5e-3, 400, 0.02
WORD_WEIGHT, WORD_SMOOTHING = 0.5, 0.05
BATCH_SAMPLES = 576_000  # 36 s a step, over all processes: about 50 words, or 20 phrases
SMALLEST_BATCH = 4  # clips
HELD_OUT_CLIPS = 1_500
UNSEEN_VARIANTS = ("+Gene", "+f4", "+steph")  # espeak-ng's speakers that never train, to see what a new voice costs


@dataclass(frozen=True)
class Speech:
    """All clips.

    Attributes:
        audio: int16 samples of all clips, end to end.
        start: first sample of each clip.
        length: samples of each clip.
        word: index of each clip's word, IGNORED for a phrase.
        engine: index into `engines` of each clip's engine.
        variant: name of each clip's voice.
        track: phone label of every 5 ms, of all clips end to end; each clip's last label is its closing silence.
        track_start: first label of each clip in `track`.
        phones: names of the phones, `engine:name`.
        engines: names of the engines.
    """

    audio: torch.Tensor
    start: torch.Tensor
    length: torch.Tensor
    word: torch.Tensor
    engine: torch.Tensor
    variant: np.ndarray
    track: torch.Tensor
    track_start: torch.Tensor
    phones: list[str]
    engines: list[str]


@dataclass(frozen=True)
class Batch:
    """Which clips to cut, and how.

    Attributes:
        clips: indices, (clips,).
        speed: factor of each clip's speed (and pitch), (clips,).
        before: samples of silence before each clip, (clips,).
        samples: samples of each clip with its silence, (clips,); the longest is the batch's length.
    """

    clips: torch.Tensor
    speed: torch.Tensor
    before: torch.Tensor
    samples: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Which samples are a clip's own, (clips, samples)."""
        return torch.arange(int(self.samples.max()))[None] < self.samples[:, None]


def phone_track(phones: list[tuple[float, int]], seconds: float) -> np.ndarray:
    """Labels on a 5 ms grid, from the start (seconds) and label of each phone; what precedes the first is silence."""
    starts = np.array([start for start, _ in phones])
    labels = np.array([label for _, label in phones])
    grid = np.arange(int(seconds / TRACK_SECONDS) + 2) * TRACK_SECONDS
    track = labels[np.searchsorted(starts, grid, side="right") - 1]  # -1, before the first, is the last: silence
    track[-1] = labels[-1]
    return track.astype(np.int16)


def load_speech(folder: Path) -> Speech:
    """Read what `synthesise_speech.py` wrote; phones heard fewer than 100 times get no label."""
    clips = dict(np.load(folder / "clips.npz"))
    engines = sorted(set(clips["engine"]))
    spoken = [
        [(max(start, 0.0), f"{engine}:{name}") for start, name in phones]
        for phones, engine in zip(json.loads((folder / "phones.json").read_text()), clips["engine"], strict=True)
    ]
    counts = Counter(name for phones in spoken for _, name in phones)
    names = sorted(name for name, count in counts.items() if count >= 100)
    label = {name: i for i, name in enumerate(names)}
    labelled = [[(start, label.get(name, IGNORED)) for start, name in phones] or [(0.0, IGNORED)] for phones in spoken]
    seconds = clips["length"] / SAMPLING_RATE
    tracks = [phone_track(phones, duration) for phones, duration in zip(labelled, seconds, strict=True)]
    lengths = np.array([len(track) for track in tracks])
    word = clips["word"].astype(np.int64)
    return Speech(
        audio=torch.from_numpy(np.load(folder / "audio.npy", mmap_mode="c")),  # so that processes share it
        start=torch.from_numpy(clips["start"].astype(np.int64)),
        length=torch.from_numpy(clips["length"].astype(np.int64)),
        word=torch.from_numpy(np.where(word < 0, IGNORED, word)),
        engine=torch.from_numpy(np.searchsorted(engines, clips["engine"])),
        variant=clips["voice"],
        track=torch.from_numpy(np.concatenate(tracks)),
        track_start=torch.from_numpy(np.cumsum(lengths) - lengths),
        phones=names,
        engines=[str(engine) for engine in engines],
    )


def split_speech(speech: Speech, seed: int) -> dict[str, torch.Tensor]:
    """Clips to train on; held-out clips of the same words and voices; clips of voices that never train."""
    unseen = torch.from_numpy(np.array([voice.endswith(UNSEEN_VARIANTS) for voice in speech.variant]))
    seen = torch.nonzero(~unseen)[:, 0]
    seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))]
    return {
        "training": seen[HELD_OUT_CLIPS:],
        "held_out": seen[:HELD_OUT_CLIPS],
        "unseen_voices": torch.nonzero(unseen)[: HELD_OUT_CLIPS * 4 : 4, 0],
    }


def training_batches(speech: Speech, clips: torch.Tensor, size: int, random: torch.Generator) -> Iterator[Batch]:
    """Batches for ever: each epoch draws every clip's speed and silence anew, then joins clips of like length.

    Args:
        speech: all clips.
        clips: indices of those to use.
        size: samples of a batch, silence included.
        random: draws everything.

    Yields:
        Batches of clips that all are as long as the longest.
    """
    while True:
        speed = 0.8 + 0.45 * torch.rand(len(clips), generator=random)
        before = (0.12 * SAMPLING_RATE * torch.rand(len(clips), generator=random)).long()
        after = (0.20 * SAMPLING_RATE * torch.rand(len(clips), generator=random)).long()
        samples = (speech.length[clips] / speed).long() + before + after
        samples = samples.clamp(min=SHORTEST_SAMPLES)
        batches = []
        # Sorting thousands at a time leaves the companions of a clip to chance and makes lengths equal to a few ms.
        for chunk in torch.randperm(len(clips), generator=random).split(6_000):
            left = chunk[samples[chunk].argsort(descending=True)]
            while len(left) >= SMALLEST_BATCH:  # the few left over wait for the next epoch
                longest = int(samples[left[0]])
                rows, left = left[: size // longest], left[size // longest :]
                batches.append(Batch(clips[rows], speed[rows], before[rows], torch.full((len(rows),), longest)))
        for i in torch.randperm(len(batches), generator=random):
            yield batches[i]


def evaluation_batches(speech: Speech, clips: torch.Tensor, size: int = 50) -> Iterator[Batch]:
    """The clips as they are, the shortest first, padded to the longest of their batch."""
    for rows in clips[speech.length[clips].argsort()].split(size):
        speed, before = torch.ones(len(rows)), torch.zeros(len(rows), dtype=torch.long)
        yield Batch(rows, speed, before, speech.length[rows].clamp(min=SHORTEST_SAMPLES))


def cut_waveforms(speech: Speech, batch: Batch) -> torch.Tensor:
    """The batch's clips at their speeds, silence around them: (clips, samples), -1 to 1."""
    length = speech.length[batch.clips][:, None]
    at = (torch.arange(int(batch.samples.max()))[None] - batch.before[:, None]) * batch.speed[:, None]
    inside = (at >= 0) & (at < length - 1)
    whole = at.floor().long().clamp(min=0).minimum(length - 2)
    first = speech.start[batch.clips][:, None] + whole
    low, high = speech.audio[first].float(), speech.audio[first + 1].float()
    return (low + (high - low) * (at - whole)) * inside / 32768


def frame_labels(speech: Speech, batch: Batch) -> torch.Tensor:
    """The phone at the middle of every frame, (clips, frames); IGNORED in the padding."""
    frames = (batch.samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    numbers = torch.arange(int(frames.max()))[None]
    middle = numbers * HOP_SAMPLES + WINDOW_SAMPLES / 2 - batch.before[:, None]
    place = (middle * batch.speed[:, None] / SAMPLING_RATE / TRACK_SECONDS).floor().long()
    last = ((speech.length[batch.clips] / SAMPLING_RATE / TRACK_SECONDS).long() + 1)[:, None]
    place = torch.where((place < 0) | (place > last), last, place)  # outside the clip: its closing silence
    labels = speech.track[speech.track_start[batch.clips][:, None] + place].long()
    return labels.masked_fill(numbers >= frames[:, None], IGNORED)


def uniform(low: float, high: float, count: int, random: torch.Generator) -> torch.Tensor:
    """Numbers between `low` and `high`, (count, 1)."""
    return low + (high - low) * torch.rand(count, 1, generator=random)


def channel_gain(hertz: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """What microphones and lines do to a spectrum: (count, frequencies), amplitude factors.

    A low-pass at 2.5 to 3.9 kHz half of the time (telephone speech), a high-pass at 20 to 250 Hz, a tilt, and an uneven
    response that wanders by 4 dB between eight points.
    """
    narrow = uniform(0, 1, count, random) < 0.5
    cutoff = torch.where(narrow, uniform(2_500, 3_900, count, random), torch.tensor(20_000.0))
    points = torch.linspace(math.log(60), math.log(8_000), 8)
    spacing = points[1] - points[0]
    near = (1 - (hertz.log()[None] - points[:, None]).abs() / spacing).clamp(min=0)
    uneven = 10 ** ((torch.randn(count, 8, generator=random) * 4) @ near / 20)
    tilt = (hertz / 1_000) ** uniform(-0.4, 0.4, count, random)
    high_pass = hertz / (hertz + uniform(20, 250, count, random))
    return uneven * tilt * high_pass / (1 + (hertz / cutoff) ** 12)


def rooms(count: int, samples: int, random: torch.Generator) -> torch.Tensor:
    """Impulse responses, (count, samples): the direct sound and, six times in ten, a tail of decaying noise."""
    decay = uniform(0.01, 0.12, count, random) * SAMPLING_RATE
    tail = torch.randn(count, samples, generator=random) * torch.exp(-torch.arange(samples)[None] / decay)
    tail = tail / tail.square().sum(1, keepdim=True).sqrt() * uniform(0, 0.7, count, random)
    tail = tail * (uniform(0, 1, count, random) < 0.6)
    tail[:, 0] = 1
    return tail


def distort(waveforms: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A channel, a room and coloured noise at 5 to 45 dB, in one pass over the spectrum.

    Args:
        waveforms: (clips, samples).
        random: draws everything.

    Returns:
        As many waveforms, (clips, samples).
    """
    count, samples = waveforms.shape
    tail = SAMPLING_RATE // 5
    size = math.ceil((samples + tail) / 1_024) * 1_024  # lengths with small factors transform fast
    hertz = torch.linspace(0, SAMPLING_RATE / 2, size // 2 + 1).clamp(min=30)
    spectrum = torch.fft.rfft(waveforms, size) * torch.fft.rfft(rooms(count, tail, random), size)
    spectrum = spectrum * channel_gain(hertz, count, random)
    # Noise is drawn as a spectrum, which saves two transforms; by Parseval both powers are sums over it.
    noise = torch.randn(count, size // 2 + 1, 2, generator=random)
    noise = torch.view_as_complex(noise) * (hertz / 1_000) ** uniform(-1, 0.2, count, random)
    speech_power = spectrum.abs().square().sum(1, keepdim=True) * size / samples
    noise_power = noise.abs().square().sum(1, keepdim=True)
    level = 10 ** (-uniform(5, 45, count, random) / 20)
    noise = noise * (speech_power / noise_power).sqrt() * level
    return torch.fft.irfft(spectrum + noise, size)[:, :samples]


def normalise(waveforms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Each clip to mean 0 and variance 1 over its own samples, 0 in the padding, as the feature extractor does."""
    count = mask.sum(1, keepdim=True)
    centred = (waveforms - (waveforms * mask).sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


Logits = tuple[torch.Tensor, torch.Tensor]
Measures = dict[str, torch.Tensor]


class Pretraining(nn.Module):
    """The encoder and the two heads that are thrown away."""

    of_engine: torch.Tensor

    def __init__(self, speech: Speech) -> None:
        super().__init__()
        self.encoder = Wav2Vec2Model(Wav2Vec2Config(**ENCODER))
        make_padding_exact(self.encoder)
        self.phone = nn.Linear(self.encoder.config.hidden_size, len(speech.phones))
        self.word = nn.Linear(self.encoder.config.hidden_size, int(speech.word.max()) + 1)
        of_engine = [[name.startswith(engine + ":") for name in speech.phones] for engine in speech.engines]
        self.register_buffer("of_engine", torch.tensor(of_engine))

    def forward(self, waveforms: torch.Tensor, mask: torch.Tensor, engine: torch.Tensor) -> Logits:
        """Logits of phones and words.

        Args:
            waveforms: (clips, samples), normalised.
            mask: (clips, samples), which samples are valid.
            engine: (clips,), who spoke; only its phones are candidates, since the engines name theirs differently.

        Returns:
            Phone logits (clips, frames, phones) and word logits (clips, words), float32.
        """
        attention_mask = None if bool(mask.all()) else mask.long()
        hidden = self.encoder(waveforms, attention_mask=attention_mask).last_hidden_state
        frames = (mask.sum(1) - WINDOW_SAMPLES) // HOP_SAMPLES + 1
        valid = (torch.arange(hidden.shape[1])[None] < frames[:, None]).unsqueeze(-1)
        pooled = (hidden * valid).sum(1) / valid.sum(1)
        phones = self.phone(hidden).float().masked_fill(~self.of_engine[engine][:, None], -1e4)
        return phones, self.word(pooled).float()


def measure(model: Pretraining, speech: Speech, batch: Batch, random: torch.Generator | None) -> Measures:
    """Losses and accuracies of one batch; `random` draws the augmentation, None leaves the clips as they are."""
    waveforms, mask = cut_waveforms(speech, batch), batch.mask
    if random is not None:
        waveforms = distort(waveforms, random)
    labels, words = frame_labels(speech, batch), speech.word[batch.clips]
    with torch.autocast("cpu", torch.bfloat16):
        phone_logits, word_logits = model(normalise(waveforms, mask), mask, speech.engine[batch.clips])
    known, one_word = labels != IGNORED, words != IGNORED
    # A batch of phrases has no words; a sum over none is 0, where a mean would be NaN.
    word_losses = cross_entropy(word_logits, words, label_smoothing=WORD_SMOOTHING, reduction="sum")
    return {
        "phone_loss": cross_entropy(phone_logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED),
        "word_loss": word_losses / one_word.sum().clamp(min=1),
        "frames": known.sum(),
        "frames_right": (phone_logits.argmax(-1) == labels)[known].sum(),
        "words": one_word.sum(),
        "words_right": (word_logits.argmax(-1) == words)[one_word].sum(),
    }


def summarise(measured: list[dict[str, float]]) -> dict[str, float]:
    """Mean losses over batches, and accuracies over all their frames and words."""
    total = {key: sum(batch[key] for batch in measured) for key in measured[0]}
    return {
        "phone_loss": round(total["phone_loss"] / len(measured), 4),
        "word_loss": round(total["word_loss"] / len(measured), 4),
        "phone_accuracy": round(total["frames_right"] / max(total["frames"], 1), 4),
        "word_accuracy": round(total["words_right"] / max(total["words"], 1), 4),
    }


@torch.no_grad()
def evaluate(model: Pretraining, speech: Speech, clips: torch.Tensor) -> dict[str, float]:
    """Losses and accuracies on clips as they are."""
    model.eval()
    batches = evaluation_batches(speech, clips)
    measured = [{k: v.item() for k, v in measure(model, speech, batch, None).items()} for batch in batches]
    model.train()
    return summarise(measured)


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, done: float) -> float:
    """A warm-up by steps times a cosine by the clock, `done` going from 0 to 1."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done))) + 1e-6


def save_checkpoint(model: Pretraining, folder: Path, record: dict) -> None:
    """An ordinary transformers directory, the encoder in half precision, and what was measured beside it."""
    deepcopy(model.encoder).half().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def average_gradients(model: nn.Module, done: float) -> float:
    """Average the gradients over the processes, and `done` with them, so that all agree on the time."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([torch.tensor([done]), *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    averages = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))
    return float(flat[0])


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Measures, step: int, done: float) -> float:
    """One step down both losses; returns how much of the time is over, as all processes see it."""
    optimizer.zero_grad(set_to_none=False)  # every process then averages the same list of gradients
    (losses["phone_loss"] + WORD_WEIGHT * losses["word_loss"]).backward()
    done = average_gradients(model, done)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, done)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return done


def pretrain(model: Pretraining, speech: Speech, rank: int, args: argparse.Namespace) -> None:
    """Train until the minutes are over; the first process prints, and now and then evaluates and saves."""
    splits, random = split_speech(speech, args.seed), torch.Generator().manual_seed(1000 * args.seed + rank)
    mine = splits["training"][rank :: args.processes]
    optimizer = make_optimizer(model)
    recent: list[dict[str, float]] = []
    began = saved = time.monotonic()
    model.train()
    for step, batch in enumerate(training_batches(speech, mine, BATCH_SAMPLES // args.processes, random), start=1):
        losses = measure(model, speech, batch, random)
        done = take_step(model, optimizer, losses, step, (time.monotonic() - began) / (60 * args.minutes))
        recent = [*recent[-99:], {key: value.item() for key, value in losses.items()}]
        if rank == 0 and step % 100 == 0:
            print(f"step {step}  {time.monotonic() - began:.0f} s  {summarise(recent)}", flush=True)
        if rank == 0 and (done >= 1 or time.monotonic() - saved > 60 * args.save_minutes):
            saved = time.monotonic()
            record = {"steps": step, "minutes": round((saved - began) / 60, 1), "seed": args.seed}
            record |= {"clips": {name: len(clips) for name, clips in splits.items()}, "phones": len(speech.phones)}
            record |= {"training": summarise(recent)}
            record |= {name: evaluate(model, speech, splits[name]) for name in ("held_out", "unseen_voices")}
            save_checkpoint(model, args.checkpoint, record)
            print(json.dumps(record), flush=True)
        if done >= 1:
            return


def run_process(rank: int, meeting_point: str, args: argparse.Namespace) -> None:
    """One of the processes, from reading the speech to the end of the training."""
    torch.set_num_threads(1)
    speech = load_speech(args.speech)
    torch.manual_seed(args.seed)  # the same weights in every process
    model = Pretraining(speech)
    np.random.seed(1000 * args.seed + rank)  # transformers draws SpecAugment's masks from NumPy
    distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=args.processes)
    if rank == 0:
        size = sum(p.numel() for p in model.encoder.parameters())
        print(f"{len(speech.start)} clips, {len(speech.phones)} phones, {size} parameters in the encoder", flush=True)
    pretrain(model, speech, rank, args)
    distributed.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Pretrain wav2vec2-nano (2.85M parameters): the phone of every frame, the word of every clip.",
        epilog="First: python scripts/synthesise_speech.py SPEECH. Two CPU cores take two or three steps a second; "
        "more minutes make a better encoder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("speech", type=Path, help="folder that synthesise_speech.py wrote")
    parser.add_argument("checkpoint", type=Path, help="folder to write, loadable by Wav2Vec2Model.from_pretrained")
    parser.add_argument(
        "--minutes", type=float, default=75, help="how long to train; the learning rate follows the clock"
    )
    parser.add_argument("--save-minutes", type=float, default=10, help="evaluate and save this often, and at the end")
    parser.add_argument("--seed", type=int, default=0, help="of weights, held-out clips and augmentation")
    parser.add_argument("--processes", type=int, default=2, help="how many share a step; as many as cores is best")
    return parser.parse_args()


def main() -> None:
    """Start the processes and wait for them."""
    args = parse_arguments()
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_process, (f"{folder}/meeting", args), nprocs=args.processes)


if __name__ == "__main__":
    main()
