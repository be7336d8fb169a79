"""Synthesise common English words and short phrases with espeak-ng and flite, with the time of every phone.

The result is the speech that `pretrain_nano.py` trains the bundled encoder on. Needs the programs `espeak-ng` (with its
library `libespeak-ng.so.1`) and `flite`, and the Python packages numpy, soundfile, soxr and wordfreq.

The output folder holds
    audio.npy     int16 samples at 16 kHz of all clips, concatenated
    clips.npz     per clip: start and length (samples), word (index, -1 for a phrase), engine, voice
    phones.json   per clip: [start in seconds, phone name] of every phone
    words.json    the words, in the order of their indices
    summary.json  settings, and the numbers of clips and hours
"""

import argparse
import ctypes
import itertools
import json
import random
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from wordfreq import top_n_list

SAMPLING_RATE = 16_000
SILENCE_LEVEL = 200  # int16 steps; both engines are silent well below it
MAX_EDGE_SECONDS = 0.12  # silence left at either end of a clip
SHORTEST_SAMPLES = 1_000


def names(text: str) -> list[str]:
    """Split names separated by spaces."""
    return text.split()


# The bundled task is spoken digits, so the pretraining must contain no digit, no other number, no homophone and no
# compound that ends in a number. Homophones are also found by pronunciation (`sound_alikes`).
NUMBERS = names("zero one two three four five six seven eight nine ten eleven twelve twenty hundred")
NUMBER_STEMS = re.compile(
    "(zero|nought|naught|three|four|five|six|seven|eight|nine|eleven|twel[fv]|twent|thirt|fift|forty|fort(ie|y)"
    "|hundred|thousand|million|billion|trillion|dozen)"
)
NUMBER_WORDS = names(
    """oh owe one ones once won wan two twos twice to too tue for fore forth ate ten tens tenth first second seconds
    third thirds anyone everyone someone noone oneself half halves quarter quarters double triple single sic sicks sox
    nein weight weights freight height heights"""
)

ESPEAK_ACCENTS = names("en-us en-us en en-gb-scotland en-gb-x-gbclan en-gb-x-rp en-gb-x-gbcwmd en-029")
ESPEAK_VARIANTS = names(
    """m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 Andy Annie linda Michael steph Lee michel Tweaky Alex
    Alicia Andrea Diogo Gene Jacky Mario Mike adam anika antonio boris caleb david ed grandma gustave john marcelo max
    norbert pablo paul shelby travis belinda edward iven kaukovalta quincy rob victor zac"""
)
ESPEAK_RATE, ESPEAK_PITCH, ESPEAK_SPREAD = 1, 3, 4  # numbers of espeak-ng's parameters
EVENT_LIST_END, EVENT_PHONEME = 0, 7
FLITE_VOICES = ["slt", "rms", "awb", "kal16"]  # voices made from recordings at 16 kHz

Phones = list[tuple[float, str]]


@dataclass(frozen=True)
class Clip:
    """One spoken text.

    Attributes:
        text: the text.
        engine: "espeak" or "flite".
        voice: voice of the engine.
        samples: int16 samples at 16 kHz.
        phones: start in seconds and name of each phone.
    """

    text: str
    engine: str
    voice: str
    samples: np.ndarray
    phones: Phones


class Event(ctypes.Structure):
    """Structure `espeak_EVENT` of espeak-ng's speak_lib.h."""

    class Id(ctypes.Union):
        """Value of an event; that of a phoneme event is its name."""

        _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user", ctypes.c_void_p),
        ("id", Id),
    ]


CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


class Espeak:
    """The espeak-ng library, which unlike the program also reports the start of each phone."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.library.espeak_Initialize(2, 0, None, 1)  # synchronous, default buffer, phoneme events on
        self.callback = CALLBACK(self._collect)  # kept, because ctypes would free it while the library uses it
        self.library.espeak_SetSynthCallback(self.callback)
        self.samples: list[np.ndarray] = []
        self.phones: Phones = []

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != EVENT_LIST_END:
            if events[i].type == EVENT_PHONEME:
                name = events[i].id.string.decode("utf8", "replace")
                self.phones.append((events[i].audio_position / 1000, name))
            i += 1
        return 0  # continue speaking

    def speak(self, text: str, voice: str, rate: int, pitch: int, spread: int) -> tuple[np.ndarray, Phones]:
        """Speak one text.

        Args:
            text: text to speak.
            voice: accent and variant, such as `en-us+f2`.
            rate: words per minute.
            pitch: pitch, 0 to 100.
            spread: range of the pitch, 0 to 100.

        Returns:
            int16 samples at `self.rate`, and the phones.

        Raises:
            ValueError: the installed espeak-ng does not have the voice.
        """
        self.samples, self.phones = [], []
        if self.library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((ESPEAK_RATE, rate), (ESPEAK_PITCH, pitch), (ESPEAK_SPREAD, spread)):
            self.library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        self.library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return np.concatenate(self.samples), list(self.phones)


def trim(samples: np.ndarray, phones: Phones, rng: random.Random) -> tuple[np.ndarray, Phones] | None:
    """Cut the silence at both ends to a random 0 to 120 ms, and shift the times of the phones.

    Args:
        samples: int16 samples at 16 kHz.
        phones: start in seconds and name of each phone.
        rng: generator of the lengths of the silences.

    Returns:
        Samples and phones of the clip, or None if there is hardly any sound.
    """
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > SILENCE_LEVEL)
    if len(loud) < SHORTEST_SAMPLES:
        return None
    first = max(0, loud[0] - int(rng.uniform(0, MAX_EDGE_SECONDS) * SAMPLING_RATE))
    last = min(len(samples), loud[-1] + int(rng.uniform(0, MAX_EDGE_SECONDS) * SAMPLING_RATE))
    return samples[first:last], [(round(float(start) - first / SAMPLING_RATE, 4), name) for start, name in phones]


def speak_with_espeak(job: tuple[list[str], int, int]) -> list[Clip]:
    """Speak every text of a job several times with espeak-ng, each time with another voice.

    Args:
        job: texts, number of repetitions, and seed of the choices.
    """
    texts, repeats, seed = job
    engine, rng, clips = Espeak(), random.Random(f"espeak-{seed}"), []
    for text in (text for text in texts for _ in range(repeats)):
        voice = rng.choice(ESPEAK_ACCENTS) + rng.choice(["", *(f"+{variant}" for variant in ESPEAK_VARIANTS)])
        try:
            spoken, phones = engine.speak(text, voice, rng.randint(120, 260), rng.randint(15, 85), rng.randint(20, 80))
        except ValueError:
            continue  # versions differ in their variants, and the others suffice
        resampled = soxr.resample(spoken.astype(np.float32), engine.rate, SAMPLING_RATE)
        trimmed = trim(np.clip(resampled, -32768, 32767).astype(np.int16), phones, rng)
        if trimmed:
            clips.append(Clip(text, "espeak", voice, *trimmed))
    return clips


def flite_settings(voice: str, rng: random.Random) -> list[str]:
    """Return a random speed and pitch for a voice of flite, as arguments of the program."""
    # kal16 is a diphone voice with a mean pitch in hertz; the statistical voices have a factor.
    if voice == "kal16":
        pitch = f"int_f0_target_mean={rng.uniform(80, 160):.0f}"
    else:
        pitch = f"f0_shift={rng.uniform(0.8, 1.3):.2f}"
    return ["--setf", f"duration_stretch={rng.uniform(0.75, 1.35):.2f}", "--setf", pitch]


def speak_with_flite(job: tuple[list[str], int, int]) -> list[Clip]:
    """Speak every text of a job several times with flite, using its voices in turn.

    Args:
        job: texts, number of repetitions, and seed of the choices.
    """
    texts, repeats, seed = job
    rng, clips = random.Random(f"flite-{seed}"), []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/clip.wav"
        for turn, text in enumerate(text for text in texts for _ in range(repeats)):
            voice = FLITE_VOICES[turn % len(FLITE_VOICES)]
            command = ["flite", "-voice", voice, *flite_settings(voice, rng), "-psdur", "-t", text, "-o", path]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            samples, rate = soundfile.read(path, dtype="int16")
            assert rate == SAMPLING_RATE, f"flite's voice {voice} speaks at {rate} Hz"
            # `-psdur` prints the phone ends before stretching, so they are scaled to the length of the audio.
            names, ends = zip(*(piece.rsplit(":", 1) for piece in printed.split()), strict=True)
            scale = len(samples) / rate / float(ends[-1])
            starts = [0.0, *(float(end) * scale for end in ends[:-1])]
            trimmed = trim(samples, list(zip(starts, names, strict=True)), rng)
            if trimmed:
                clips.append(Clip(text, "flite", voice, *trimmed))
    return clips


def pronounce(words: Iterable[str], accent: str) -> list[str]:
    """Return the phonemes of espeak-ng for each word, without stress marks."""
    listing = "\n\n".join(words)  # a blank line ends a clause, so that each word is spoken separately
    command = ["espeak-ng", "-q", "-x", "--sep=", "-v", accent, "--stdin"]
    printed = subprocess.run(command, input=listing, capture_output=True, text=True, check=True).stdout
    return [re.sub("[',]", "", line).strip() for line in printed.splitlines() if line.strip()]


def sound_alikes(words: list[str]) -> set[str]:
    """Return the words that an accent pronounces like a number."""
    homophones = set()
    for accent in sorted(set(ESPEAK_ACCENTS)):
        numbers, spoken = set(pronounce(NUMBERS, accent)), pronounce(words, accent)
        if len(spoken) != len(words):
            raise RuntimeError(f"espeak-ng gave {len(spoken)} pronunciations for {len(words)} words in {accent}")
        homophones |= {word for word, phones in zip(words, spoken, strict=True) if phones in numbers}
    return homophones


def choose_words(count: int) -> list[str]:
    """Return the most frequent English words of 3 to 10 letters, without numbers and their homophones."""
    common = [w for w in top_n_list("en", 20_000) if w.isascii() and w.isalpha() and 3 <= len(w) <= 10]
    # Words without a vowel are abbreviations, which one engine spells and the other reads.
    common = [w for w in common if re.search("[aeiouy]", w) and w not in NUMBER_WORDS and not NUMBER_STEMS.search(w)]
    common = common[: count + 100]
    alike = sound_alikes(common)
    return [w for w in common if w not in alike][:count]


def make_phrases(words: list[str], count: int, rng: random.Random) -> list[str]:
    """Return random phrases of two or three words, which contain transitions between words but no grammar."""
    return [" ".join(rng.sample(words, rng.choice((2, 2, 3)))) for _ in range(count)]


def speak_all(pool: Pool, speak: Callable, texts: list[str], repeats: int, seed: int) -> list[Clip]:
    """Distribute texts over processes; the result does not depend on their number."""
    if not repeats:
        return []
    jobs = [(texts[i::64], repeats, seed + i) for i in range(64)]
    return list(itertools.chain.from_iterable(pool.map(speak, jobs, chunksize=1)))


def save(folder: Path, clips: list[Clip], words: list[str], summary: dict) -> None:
    """Save the clips, their labels, the words and the summary."""
    index = {word: i for i, word in enumerate(words)}
    lengths = np.array([len(clip.samples) for clip in clips])
    np.save(folder / "audio.npy", np.concatenate([clip.samples for clip in clips]))
    np.savez(
        folder / "clips.npz",
        start=np.cumsum(lengths) - lengths,
        length=lengths,
        word=np.array([index.get(clip.text, -1) for clip in clips]),
        engine=np.array([clip.engine for clip in clips]),
        voice=np.array([clip.voice for clip in clips]),
    )
    (folder / "phones.json").write_text(json.dumps([clip.phones for clip in clips]))
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description="Synthesise common English words and phrases with espeak-ng and flite, with every phone's time.",
        epilog="The defaults give about 15 hours of speech in about 6 minutes on two CPU cores. "
        "Next: python scripts/pretrain_nano.py SPEECH CHECKPOINT",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("speech", type=Path, help="output folder; created if missing")
    parser.add_argument("--words", type=int, default=2400, help="number of words, without numbers and homophones")
    parser.add_argument("--espeak-per-word", type=int, default=24, help="clips per word by espeak-ng (fast, robotic)")
    parser.add_argument("--flite-per-word", type=int, default=10, help="clips per word by flite (slower, human-like)")
    parser.add_argument(
        "--phrases", type=int, default=3000, help="phrases of 2 or 3 words, each spoken twice by each engine"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    parser.add_argument("--processes", type=int, default=2, help="number of processes; it does not change the result")
    return parser.parse_args()


def main() -> None:
    """Choose the words, speak them and save the clips."""
    args, began = parse_arguments(), time.monotonic()
    args.speech.mkdir(parents=True, exist_ok=True)
    words = choose_words(args.words)
    phrases = make_phrases(words, args.phrases, random.Random(args.seed))
    clips: list[Clip] = []
    # espeak-ng keeps state between texts, so a job is reproducible only in a fresh process.
    with get_context().Pool(args.processes, maxtasksperchild=1) as pool:
        for engine, speak, per_word in (
            ("espeak-ng", speak_with_espeak, args.espeak_per_word),
            ("flite", speak_with_flite, args.flite_per_word),
        ):
            clips += speak_all(pool, speak, words, per_word, 1000 * args.seed)
            clips += speak_all(pool, speak, phrases, 2, 1000 * args.seed + 500)
            print(f"{len(clips)} clips up to {engine}, {time.monotonic() - began:.0f} s", flush=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("speech", "processes")}
    summary = settings | {
        "spoken_words": len(words),
        "clips": len(clips),
        "phrase_clips": sum(" " in clip.text for clip in clips),
        "espeak_clips": sum(clip.engine == "espeak" for clip in clips),
        "flite_clips": sum(clip.engine == "flite" for clip in clips),
        "hours": round(sum(len(clip.samples) for clip in clips) / SAMPLING_RATE / 3600, 2),
        "minutes_to_make": round((time.monotonic() - began) / 60, 1),
    }
    save(args.speech, clips, words, summary)
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
