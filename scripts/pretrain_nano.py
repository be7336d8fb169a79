"""Pretrain the bundled encoder, wav2vec2-nano, on speech from `synthesise_speech.py`.

Two linear heads on the encoder's last layer are used only for pretraining. One classifies the phone of every 20 ms
frame; the other classifies the word of the clip from the mean of its frames. Phrases have only phone labels.

Training batches hold clips of equal length without padding, so the group norm of the first convolution treats each clip
as if it were alone. Evaluation pads clips, with `peft_audio.encoders.exact_padding.make_padding_exact`.

Every core runs a process with one thread on its share of the clips, and gradients are averaged once per step. Threads
would synchronise some thousand times per step, which is slow on a busy machine.

The learning rate follows the clock, so a run ends after the given time. On another machine, the same seed gives
another, equally good checkpoint.
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
HOP_SAMPLES, WINDOW_SAMPLES = 320, 400  # wav2vec 2.0's convolutions give one frame of 25 ms every 20 ms
SHORTEST_SAMPLES = 4_000  # 12 frames; SpecAugment needs more frames than its mask has
TRACK_SECONDS = 0.005  # step of the stored phone labels
IGNORED = -100  # PyTorch's index for missing labels

# Without dropout, because drawing its masks takes a CPU longer than the layers, and augmentation regularises enough.
# Eager attention trains faster than sdpa on a CPU at these lengths.
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
BATCH_SAMPLES = 576_000  # 36 s per step over all processes: about 50 words or 20 phrases
SMALLEST_BATCH = 4  # clips
HELD_OUT_CLIPS = 1_500
UNSEEN_VARIANTS = ("+Gene", "+f4", "+steph")  # voices of espeak-ng that are held out, to measure the loss on new voices


@dataclass(frozen=True)
class Speech:
    """Clips of synthetic speech.

    Attributes:
        audio: int16 samples of all clips, concatenated.
        start: first sample of each clip.
        length: samples of each clip.
        word: index of each clip's word, IGNORED for a phrase.
        engine: index into `engines` of each clip's engine.
        variant: name of each clip's voice.
        track: phone label of every 5 ms of all clips, concatenated; each clip's last label is its final silence.
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
    """Clips of a batch and their random changes.

    Attributes:
        clips: indices of the clips, of shape (clips,).
        speed: factor of each clip's speed and pitch, of shape (clips,).
        before: samples of silence before each clip, of shape (clips,).
        samples: samples of each clip with its silence, of shape (clips,); the longest is the batch's length.
    """

    clips: torch.Tensor
    speed: torch.Tensor
    before: torch.Tensor
    samples: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Return the mask of samples that are not padding, bool of shape (clips, samples)."""
        return torch.arange(int(self.samples.max()))[None] < self.samples[:, None]


def phone_track(phones: list[tuple[float, int]], seconds: float) -> np.ndarray:
    """Return labels on a 5 ms grid, with silence before the first phone.

    Args:
        phones: start in seconds and label of each phone.
        seconds: length of the clip.
    """
    starts = np.array([start for start, _ in phones])
    labels = np.array([label for _, label in phones])
    grid = np.arange(int(seconds / TRACK_SECONDS) + 2) * TRACK_SECONDS
    track = labels[
        np.searchsorted(starts, grid, side="right") - 1
    ]  # index -1, before the first phone, is the final silence
    track[-1] = labels[-1]
    return track.astype(np.int16)


def load_speech(folder: Path) -> Speech:
    """Read the output of `synthesise_speech.py`; phones that occur fewer than 100 times get no label."""
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
        audio=torch.from_numpy(np.load(folder / "audio.npy", mmap_mode="c")),  # mapped, so that processes share it
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
    """Split clips into training clips, held-out clips of the same voices, and clips of held-out voices."""
    unseen = torch.from_numpy(np.array([voice.endswith(UNSEEN_VARIANTS) for voice in speech.variant]))
    seen = torch.nonzero(~unseen)[:, 0]
    seen = seen[torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))]
    return {
        "training": seen[HELD_OUT_CLIPS:],
        "held_out": seen[:HELD_OUT_CLIPS],
        "unseen_voices": torch.nonzero(unseen)[: HELD_OUT_CLIPS * 4 : 4, 0],
    }


def training_batches(speech: Speech, clips: torch.Tensor, size: int, random: torch.Generator) -> Iterator[Batch]:
    """Yield batches without end; each epoch draws new speeds and silences, and groups clips of similar length.

    Args:
        speech: all clips.
        clips: indices of the clips to use.
        size: samples per batch, including silence.
        random: generator of all draws.

    Yields:
        Batches in which all clips are as long as the longest one.
    """
    while True:
        speed = 0.8 + 0.45 * torch.rand(len(clips), generator=random)
        before = (0.12 * SAMPLING_RATE * torch.rand(len(clips), generator=random)).long()
        after = (0.20 * SAMPLING_RATE * torch.rand(len(clips), generator=random)).long()
        samples = (speech.length[clips] / speed).long() + before + after
        samples = samples.clamp(min=SHORTEST_SAMPLES)
        batches = []
        # Sorting some thousand clips at a time keeps batches random, with lengths equal to a few ms.
        for chunk in torch.randperm(len(clips), generator=random).split(6_000):
            left = chunk[samples[chunk].argsort(descending=True)]
            while len(left) >= SMALLEST_BATCH:  # the remaining few are left out of this epoch
                longest = int(samples[left[0]])
                rows, left = left[: size // longest], left[size // longest :]
                batches.append(Batch(clips[rows], speed[rows], before[rows], torch.full((len(rows),), longest)))
        for i in torch.randperm(len(batches), generator=random):
            yield batches[i]


def evaluation_batches(speech: Speech, clips: torch.Tensor, size: int = 50) -> Iterator[Batch]:
    """Yield batches of unchanged clips, sorted by length and padded to the longest of their batch."""
    for rows in clips[speech.length[clips].argsort()].split(size):
        speed, before = torch.ones(len(rows)), torch.zeros(len(rows), dtype=torch.long)
        yield Batch(rows, speed, before, speech.length[rows].clamp(min=SHORTEST_SAMPLES))


def cut_waveforms(speech: Speech, batch: Batch) -> torch.Tensor:
    """Return the clips of a batch at their speeds with silence around them, of shape (clips, samples), -1 to 1."""
    length = speech.length[batch.clips][:, None]
    position = (torch.arange(int(batch.samples.max()))[None] - batch.before[:, None]) * batch.speed[:, None]
    inside = (position >= 0) & (position < length - 1)
    floor = position.floor().long().clamp(min=0).minimum(length - 2)
    first = speech.start[batch.clips][:, None] + floor
    low, high = speech.audio[first].float(), speech.audio[first + 1].float()
    return (low + (high - low) * (position - floor)) * inside / 32768


def frame_labels(speech: Speech, batch: Batch) -> torch.Tensor:
    """Return the phone at the centre of every frame, of shape (clips, frames); IGNORED in the padding."""
    frames = (batch.samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1
    numbers = torch.arange(int(frames.max()))[None]
    middle = numbers * HOP_SAMPLES + WINDOW_SAMPLES / 2 - batch.before[:, None]
    step = (middle * batch.speed[:, None] / SAMPLING_RATE / TRACK_SECONDS).floor().long()
    last = ((speech.length[batch.clips] / SAMPLING_RATE / TRACK_SECONDS).long() + 1)[:, None]
    step = torch.where((step < 0) | (step > last), last, step)  # outside the clip: its final silence
    labels = speech.track[speech.track_start[batch.clips][:, None] + step].long()
    return labels.masked_fill(numbers >= frames[:, None], IGNORED)


def uniform(low: float, high: float, count: int, random: torch.Generator) -> torch.Tensor:
    """Draw numbers between `low` and `high`, of shape (count, 1)."""
    return low + (high - low) * torch.rand(count, 1, generator=random)


def channel_gain(hertz: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Draw amplitude responses of microphones and telephone lines, of shape (count, frequencies).

    Each has a high-pass at 20 to 250 Hz, a spectral tilt, and an uneven response with a standard deviation of 4 dB at
    eight points. Half of them have a low-pass at 2.5 to 3.9 kHz, as telephone speech has.
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
    """Draw impulse responses of rooms, of shape (count, samples); 60% have a tail of decaying noise."""
    decay = uniform(0.01, 0.12, count, random) * SAMPLING_RATE
    tail = torch.randn(count, samples, generator=random) * torch.exp(-torch.arange(samples)[None] / decay)
    tail = tail / tail.square().sum(1, keepdim=True).sqrt() * uniform(0, 0.7, count, random)
    tail = tail * (uniform(0, 1, count, random) < 0.6)
    tail[:, 0] = 1
    return tail


def distort(waveforms: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Apply a random channel, room and coloured noise (5 to 45 dB signal-to-noise ratio) in one spectral pass.

    Args:
        waveforms: waveforms of shape (clips, samples).
        random: generator of all draws.

    Returns:
        Waveforms of shape (clips, samples).
    """
    count, samples = waveforms.shape
    tail = SAMPLING_RATE // 5
    size = math.ceil((samples + tail) / 1_024) * 1_024  # lengths with small factors transform fast
    hertz = torch.linspace(0, SAMPLING_RATE / 2, size // 2 + 1).clamp(min=30)
    spectrum = torch.fft.rfft(waveforms, size) * torch.fft.rfft(rooms(count, tail, random), size)
    spectrum = spectrum * channel_gain(hertz, count, random)
    # Drawing the spectrum of the noise saves two transforms. By Parseval's theorem, powers are sums over spectra.
    noise = torch.randn(count, size // 2 + 1, 2, generator=random)
    noise = torch.view_as_complex(noise) * (hertz / 1_000) ** uniform(-1, 0.2, count, random)
    speech_power = spectrum.abs().square().sum(1, keepdim=True) * size / samples
    noise_power = noise.abs().square().sum(1, keepdim=True)
    level = 10 ** (-uniform(5, 45, count, random) / 20)
    noise = noise * (speech_power / noise_power).sqrt() * level
    return torch.fft.irfft(spectrum + noise, size)[:, :samples]


def normalise(waveforms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Normalise each clip to mean 0 and variance 1 without its padding, as the feature extractor does."""
    count = mask.sum(1, keepdim=True)
    centred = (waveforms - (waveforms * mask).sum(1, keepdim=True) / count) * mask
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


Logits = tuple[torch.Tensor, torch.Tensor]
Measures = dict[str, torch.Tensor]


class Pretraining(nn.Module):
    """Encoder with the two heads for pretraining."""

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
        """Compute the logits of phones and words.

        Args:
            waveforms: normalised waveforms of shape (clips, samples).
            mask: bool of shape (clips, samples), false in the padding.
            engine: index of each clip's engine, of shape (clips,); phones of other engines are excluded.

        Returns:
            Phone logits of shape (clips, frames, phones) and word logits of shape (clips, words), float32.
        """
        attention_mask = None if bool(mask.all()) else mask.long()
        hidden = self.encoder(waveforms, attention_mask=attention_mask).last_hidden_state
        frames = (mask.sum(1) - WINDOW_SAMPLES) // HOP_SAMPLES + 1
        valid = (torch.arange(hidden.shape[1])[None] < frames[:, None]).unsqueeze(-1)
        pooled = (hidden * valid).sum(1) / valid.sum(1)
        phones = self.phone(hidden).float().masked_fill(~self.of_engine[engine][:, None], -1e4)
        return phones, self.word(pooled).float()


def measure(model: Pretraining, speech: Speech, batch: Batch, random: torch.Generator | None) -> Measures:
    """Compute the losses and accuracies of one batch; `random` draws the augmentation, None leaves clips unchanged."""
    waveforms, mask = cut_waveforms(speech, batch), batch.mask
    if random is not None:
        waveforms = distort(waveforms, random)
    labels, words = frame_labels(speech, batch), speech.word[batch.clips]
    with torch.autocast("cpu", torch.bfloat16):
        phone_logits, word_logits = model(normalise(waveforms, mask), mask, speech.engine[batch.clips])
    known, one_word = labels != IGNORED, words != IGNORED
    # A sum, because the mean would be NaN for a batch of phrases, which has no words.
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
    """Average losses over batches, and accuracies over all frames and words."""
    total = {key: sum(batch[key] for batch in measured) for key in measured[0]}
    return {
        "phone_loss": round(total["phone_loss"] / len(measured), 4),
        "word_loss": round(total["word_loss"] / len(measured), 4),
        "phone_accuracy": round(total["frames_right"] / max(total["frames"], 1), 4),
        "word_accuracy": round(total["words_right"] / max(total["words"], 1), 4),
    }


@torch.no_grad()
def evaluate(model: Pretraining, speech: Speech, clips: torch.Tensor) -> dict[str, float]:
    """Compute losses and accuracies on unchanged clips."""
    model.eval()
    batches = evaluation_batches(speech, clips)
    measured = [{k: v.item() for k, v in measure(model, speech, batch, None).items()} for batch in batches]
    model.train()
    return summarise(measured)


def make_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """Make an AdamW optimizer with weight decay for matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), fused=True)


def learning_rate(step: int, done: float) -> float:
    """Return the learning rate: a warm-up by steps times a cosine by the share `done` of the time."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_LEARNING_RATE * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done))) + 1e-6


def save_checkpoint(model: Pretraining, folder: Path, record: dict) -> None:
    """Save the encoder in half precision as a transformers directory, with the record as pretraining.json."""
    deepcopy(model.encoder).half().save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True).save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")


def average_gradients(model: nn.Module, done: float) -> float:
    """Average the gradients and the share `done` of the time over the processes."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([torch.tensor([done]), *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    averages = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))
    return float(flat[0])


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Measures, step: int, done: float) -> float:
    """Take an optimizer step on both losses, and return the share of the time, equal on all processes."""
    optimizer.zero_grad(set_to_none=False)  # gradients stay, so that every process averages the same list
    (losses["phone_loss"] + WORD_WEIGHT * losses["word_loss"]).backward()
    done = average_gradients(model, done)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, done)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return done


def pretrain(model: Pretraining, speech: Speech, rank: int, args: argparse.Namespace) -> None:
    """Train for the given minutes; the first process prints, evaluates and saves."""
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
    """Run one process from reading the speech to the end of the training."""
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
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Pretrain wav2vec2-nano (2.85M parameters) to classify the phone of every frame and the word of "
        "every clip.",
        epilog="First run: python scripts/synthesise_speech.py SPEECH. Two CPU cores do two or three steps per second; "
        "more minutes give a better encoder.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("speech", type=Path, help="output folder of synthesise_speech.py")
    parser.add_argument("checkpoint", type=Path, help="folder to write, loadable by Wav2Vec2Model.from_pretrained")
    parser.add_argument(
        "--minutes", type=float, default=75, help="duration of the training; the learning rate follows the clock"
    )
    parser.add_argument(
        "--save-minutes", type=float, default=10, help="minutes between two saves; the end is saved too"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, held-out clips and augmentation")
    parser.add_argument("--processes", type=int, default=2, help="number of processes; one per core is best")
    return parser.parse_args()


def main() -> None:
    """Start the processes and wait for them."""
    args = parse_arguments()
    args.checkpoint.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(run_process, (f"{folder}/meeting", args), nprocs=args.processes)


if __name__ == "__main__":
    main()
