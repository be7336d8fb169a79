from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import soxr
from helpers.sound_files import FFMPEG_FORMATS, FORMATS, RATE, add_sound, chirps, encoded, speech_like, written
from scipy.io import wavfile

from peft_audio.audio import pyav
from peft_audio.audio.decoding import (
    AUDIO_SUFFIXES,
    PYAV_SUFFIXES,
    AudioError,
    AudioInfo,
    load_audio,
    read_blocks,
    read_info,
)
from peft_audio.data.scan import scan_clip


def halved(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def decoded(*given: object) -> np.ndarray:
    return np.concatenate(list(read_blocks(*given)))  # type: ignore[arg-type]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


@pytest.mark.parametrize(("name", "subtype", "error"), FORMATS, ids=str)
def test_format_is_decoded_sliced_and_read_from_bytes(tmp_path: Path, name: str, subtype: str, error: float) -> None:
    clip = speech_like()
    path = written(tmp_path / name, clip, subtype=subtype)
    whole = load_audio(path, RATE)
    padded = 2048 if "ADPCM" in subtype else 0  # to whole blocks of its own
    assert whole.dtype == np.float32 and len(clip) <= len(whole) <= len(clip) + padded
    assert rms(whole[: len(clip)] - clip) <= error * rms(clip)
    assert read_info(path) == AudioInfo(len(whole), RATE, 1)
    # soundfile seeks between blocks, and lossy codecs come back to slightly other values.
    np.testing.assert_allclose(decoded(path, 0.0, None, 0.0321)[:, 0], whole, atol=0.01 * error)

    part = load_audio(path, RATE, start_seconds=0.3, seconds=0.25)
    np.testing.assert_allclose(part, whole[4800:8800], atol=1e-6)
    np.testing.assert_array_equal(load_audio(path.read_bytes(), RATE, 0.3, 0.25), part)


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    channels = np.random.default_rng(0).uniform(-1, 1, (800, 3)).astype(np.float32)
    path = written(tmp_path / "three.wav", channels)
    np.testing.assert_allclose(load_audio(path, RATE), channels.sum(axis=1) / 3, atol=1e-7)
    assert read_info(path).channels == 3


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_wav_of_another_writer_is_read_exactly(tmp_path: Path, kind: type, channels: int) -> None:
    wanted = np.random.default_rng(0).integers(-128, 128, (999, channels)) / 128  # fits every kind
    middle, scale = {np.uint8: (128, 128), np.int16: (0, 2**15), np.int32: (0, 2**31)}.get(kind, (0, 1))
    wavfile.write(tmp_path / "clip.wav", 96_000, (wanted * scale + middle).astype(kind))
    np.testing.assert_array_equal(decoded(tmp_path / "clip.wav"), wanted.astype(np.float32))
    assert read_info(tmp_path / "clip.wav") == AudioInfo(999, 96_000, channels)


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 22_050, 37_800, 44_100, 96_000, 192_000])
def test_any_rate_is_resampled_by_soxr_to_the_same_tone(tmp_path: Path, rate: int) -> None:
    clip = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)
    loaded = load_audio(written(tmp_path / "tone.wav", clip, rate), RATE)
    np.testing.assert_array_equal(loaded, soxr.resample(clip, rate, RATE, quality="HQ"))
    inside = np.arange(1000, RATE - 1000)
    np.testing.assert_allclose(loaded[inside], 0.5 * np.sin(2 * np.pi * 1000 * inside / RATE), atol=1e-3)
    assert len(loaded) == RATE and loaded.dtype == np.float32


@pytest.mark.parametrize("rate", [2_000, 384_000])
def test_rate_out_of_range_is_named(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "clip.wav", speech_like(), rate)
    for read in (read_info, decoded, lambda given: load_audio(given, RATE)):
        with pytest.raises(AudioError, match=f"rate of {rate:,} Hz; 4,000 to 192,000 Hz can be read"):
            read(path)


def test_resampled_slice_equals_the_same_slice_of_the_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "tone.wav", speech_like(2.0, 44_100), 44_100)
    whole, part = load_audio(path, RATE), load_audio(path, RATE, 0.5, 1.0)
    inside = slice(400, -400)  # a resampling filter does not know what lies beyond the slice's ends
    assert len(part) == RATE
    np.testing.assert_allclose(part[inside], whole[8000:24000][inside], atol=2e-3)


def test_slice_is_cut_at_the_end_of_the_recording(tmp_path: Path) -> None:
    clip = speech_like()
    path = written(tmp_path / "clip.wav", clip)
    np.testing.assert_array_equal(load_audio(path, RATE, 0.9, 5.0), clip[14400:])
    with pytest.raises(AudioError, match="no samples after 3 s"):
        load_audio(path, RATE, 3.0, 1.0)
    # 1e308 s have more samples than a float can count.
    np.testing.assert_array_equal(load_audio(path, RATE, 0.25, 1e308), load_audio(path, RATE, 0.25))
    with pytest.raises(AudioError, match="no samples after 1e\\+308 s"):
        load_audio(path, RATE, 1e308)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_few_samples_are_not_resampled_to_none(tmp_path: Path, count: int) -> None:
    path = written(tmp_path / "short.wav", np.full(count, 0.5, np.float32), 48_000)
    assert load_audio(path, 4_000).size >= 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"These are notes, not sound.\n" * 40, "is not audio that can be read"),
        ("header.wav", b"RIFF\x24\x00\x00\x00WAVE", "is not audio that can be read"),
    ],
)
def test_what_is_no_audio_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for source in (path, content):
        for read in (read_info, lambda given: load_audio(given, RATE)):
            with pytest.raises(AudioError, match=reason):
                read(source)


def test_missing_file_and_folder_say_so(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "absent.wav", "does not exist"), (tmp_path, "is not a file")):
        for read in (read_info, lambda given: load_audio(given, RATE)):
            with pytest.raises(AudioError, match=reason):
                read(path)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_link_pipe_and_closed_file_say_so(tmp_path: Path) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    for name, reason in (("link.wav", "is a broken link"), ("pipe.wav", "is not a file")):
        with pytest.raises(AudioError, match=reason):
            load_audio(tmp_path / name, RATE)
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is below a folder that only its owner enters
        Path(folder).chmod(0o755)
        path = written(Path(folder) / "closed.wav", speech_like())
        path.chmod(0)
        with as_nobody(), pytest.raises(AudioError, match=r"cannot be opened \(Permission denied\)"):
            read_info(path)
        Path(folder).chmod(0)
        with as_nobody(), pytest.raises(AudioError, match=r"cannot be opened \(Permission denied\)"):
            read_info(path)
        Path(folder).chmod(0o700)


def test_file_without_samples_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "silent.wav", np.zeros(0, np.float32))
    with pytest.raises(AudioError, match="holds no samples"):
        read_info(path)
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(path, RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_say_so(tmp_path: Path, bad: float) -> None:
    clip = speech_like()
    clip[700] = bad
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_audio(written(tmp_path / "nan.wav", clip), RATE)
    assert not np.isfinite(decoded(tmp_path / "nan.wav")).all()


def test_samples_whose_sum_is_no_number_say_so(tmp_path: Path) -> None:
    loud = written(tmp_path / "loud.wav", np.full((800, 2), 3e38, np.float32))
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_audio(loud, RATE)
    assert scan_clip(loud)["error"] == "holds samples up to 3e+38, far above full scale (1)"


@pytest.mark.parametrize(
    ("name", "subtype", "reason"),
    [
        ("cut.flac", "PCM_16", r"is cut off or damaged: cannot be decoded \(.*lost sync"),
        ("cut.mp3", "MPEG_LAYER_III", "is cut off: holds 1.9 of 4.0 s"),
    ],
)
def test_truncated_file_says_how_much_it_holds(tmp_path: Path, name: str, subtype: str, reason: str) -> None:
    path = halved(written(tmp_path / name, speech_like(4.0), subtype=subtype))
    for read in (decoded, lambda given: load_audio(given, RATE)):
        with pytest.raises(AudioError, match=reason):
            read(path)
    assert len(load_audio(path, RATE, 0.5, 1.0)) == RATE  # what is there can be used
    with pytest.raises(AudioError, match="is cut off"):
        load_audio(path, RATE, 3.0, 0.5)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("b.wav", "IMA_ADPCM"), ("c.aiff", "PCM_24"), ("d.au", "FLOAT"), ("e.ogg", "VORBIS"),
     ("f.opus", "OPUS")],
)  # fmt: skip
def test_format_that_hides_its_missing_end_is_told_by_its_header(tmp_path: Path, name: str, subtype: str) -> None:
    path = written(tmp_path / name, speech_like(4.0), subtype=subtype)
    whole, good = load_audio(path, RATE), read_info(path)
    left, info = load_audio(halved(path), RATE), read_info(path)
    assert info.cut_off and not good.cut_off
    assert 0.2 * len(whole) < len(left) == info.num_frames < 0.6 * len(whole)
    np.testing.assert_array_equal(left[:-1000], whole[: len(left) - 1000])


@pytest.mark.parametrize("size", [0x7FFFF000, 0xFFFFFFFF])
def test_size_that_a_writer_to_a_pipe_leaves_is_no_cut(tmp_path: Path, size: int) -> None:
    content = bytearray(written(tmp_path / "clip.wav", speech_like(), subtype="PCM_16").read_bytes())
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    assert read_info(bytes(content)) == AudioInfo(RATE, RATE, 1, cut_off=False, unfinished=True)


@pytest.mark.parametrize(
    ("subtype", "kind"), [("PCM_16", "WAV"), ("PCM_24", "WAVEX"), ("FLOAT", "WAV"), ("ULAW", "WAV")]
)
@pytest.mark.parametrize("riff", [0, 36])
def test_wav_whose_header_was_never_finished_is_read_to_its_end(
    tmp_path: Path, subtype: str, kind: str, riff: int
) -> None:
    path = tmp_path / "clip.wav"
    soundfile.write(path, speech_like(), RATE, subtype=subtype, format=kind)
    whole, content = load_audio(path, RATE), bytearray(path.read_bytes())
    content[4:8] = riff.to_bytes(4, "little")
    size = content.index(b"data") + 4
    content[size : size + 4] = bytes(4)
    path.write_bytes(content)
    for source in (path, bytes(content)):
        assert read_info(source) == AudioInfo(len(whole), RATE, 1, unfinished=True)
        np.testing.assert_array_equal(load_audio(source, RATE), whole)
        np.testing.assert_array_equal(load_audio(source, RATE, 0.3, 0.25), load_audio(source, RATE)[4800:8800])
    assert scan_clip(path)["unfinished"] and not scan_clip(path)["fault"]
    # No samples, and a title behind them.
    title = b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    for end in (b"", title, title * 2):
        with pytest.raises(AudioError, match="holds no samples"):
            read_info(bytes(content[: size + 4]) + end)


def quiet_or_refused(source: Path) -> None:
    """Read a file in several ways with all warnings as errors."""
    ways = (
        read_info,
        scan_clip,
        lambda given: load_audio(given, RATE),
        lambda given: load_audio(given, RATE, 0.1, 0.2),
    )
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        for way in ways:
            with contextlib.suppress(AudioError):
                way(source)


def test_damaged_recordings_end_in_words_and_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libmpg123 prints "Note: Illegal Audio-MPEG-Header" and other lines about these."""
    soundfile.write(tmp_path / "clip.mp3", speech_like(), RATE)
    damaged = bytearray((tmp_path / "clip.mp3").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 600] = b"\xaa" * 600
    (tmp_path / "hole.mp3").write_bytes(damaged)
    files = [*(Path(__file__).parent / "damaged").glob("*.mp3"), tmp_path / "hole.mp3"]
    assert len(files) == 3
    for file in files:
        quiet_or_refused(file)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(scan_clip, files * 4))
    assert capfd.readouterr() == ("", "")
    # What else prints to the same place is still shown.
    library = ctypes.CDLL(None)
    library.perror(b"shown")
    assert "shown" in capfd.readouterr().err


def test_doubles_that_float32_cannot_hold_are_refused_without_a_warning() -> None:
    for value in (1e300, 1e-300):
        frame = av.AudioFrame.from_ndarray(np.full((1, 480), value), format="dblp", layout="mono")
        with np.errstate(all="raise"):
            assert np.isfinite(pyav._as_float(frame)).all() == (value < 1)


@pytest.mark.parametrize(
    ("name", "at", "field"), [("clip.wma", 39, b"\xff" * 8), ("clip.aiff", 31, b"\x80" + bytes(7))]
)
def test_header_that_points_before_the_file_is_refused_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, at: int, field: bytes
) -> None:
    if name == "clip.wma":
        path = encoded(tmp_path / name, chirps(0.3, 44_100, 2), 44_100, "wmav2")
    else:
        path = written(tmp_path / name, speech_like(), subtype="PCM_16")
    content = path.read_bytes()
    path.write_bytes(content[:at] + field + content[at + 8 :])
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError):
            load_audio(source, RATE)
    assert not capfd.readouterr().err


def test_eight_channels_of_ffmpeg_are_refused_before_pyav_reads_where_none_are(tmp_path: Path) -> None:
    samples = np.zeros((1, 8 * 4_800), np.int16)
    with av.open(str(tmp_path / "clip.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(samples, "s16", "7.1")
        frame.sample_rate = 48_000
        for part in (frame, None):
            container.mux(stream.encode(part))
    code = "import sys; from peft_audio.audio.decoding import load_audio; "
    code += "load_audio(open(sys.argv[1], 'rb').read(), 16_000)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "clip.m4a"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "has 8 channels; up to 7 can be read" in done.stderr) == (1, True), done


def test_a_title_that_is_no_text_does_not_matter(tmp_path: Path) -> None:
    path = encoded(tmp_path / "clip.m4a", chirps(0.3, 44_100, 2), 44_100, "aac")
    path.write_bytes(path.read_bytes().replace(b"Lavf", b"\xa8\xff\xfe\xc3"))
    assert len(decoded(path)) > 0.2 * RATE


def test_flac_from_a_pipe_which_has_no_length(tmp_path: Path) -> None:
    clip = speech_like(20.0)
    content = bytearray(written(tmp_path / "clip.flac", clip, subtype="PCM_16").read_bytes())
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])
    assert read_info(bytes(content)) == AudioInfo(len(clip), RATE, 1)
    np.testing.assert_allclose(load_audio(bytes(content), RATE), clip, atol=1e-4)
    np.testing.assert_allclose(load_audio(bytes(content), RATE, 17.77, 1.0), clip[284_320:300_320], atol=1e-4)


def test_mp3_whose_length_is_a_guess_is_not_called_cut(tmp_path: Path) -> None:
    quiet_then_loud = np.r_[np.zeros(3 * RATE), np.random.default_rng(0).normal(0, 0.2, 3 * RATE)][:, None]
    with av.open(str(tmp_path / "clip.mp3"), "w", options={"write_xing": "0"}) as container:
        stream = container.add_stream("mp3", rate=RATE, layout="mono", options={"global_quality": "200"})
        stream.codec_context.flags |= 2  # AV_CODEC_FLAG_QSCALE: a variable bit rate
        add_sound(container, stream, quiet_then_loud)
    assert read_info(tmp_path / "clip.mp3").num_frames > 7 * RATE
    assert len(load_audio(tmp_path / "clip.mp3", RATE)) == pytest.approx(6 * RATE, abs=3000)


@pytest.mark.parametrize(("name", "codec", "rate", "channels", "misplaced"), FFMPEG_FORMATS)
def test_what_pyav_decodes_is_the_sound_and_slices_agree(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int, misplaced: int
) -> None:
    clip = chirps(8.0, rate, channels)
    path = encoded(tmp_path / name, clip, rate, codec)
    info, whole = read_info(path), decoded(path)
    assert whole.dtype == np.float32 and whole.shape[1] == channels
    assert (info.sampling_rate, info.channels, info.cut_off) == (rate, channels, False)
    assert len(whole) <= info.num_frames <= len(whole) + 0.05 * rate
    assert info.num_frames == pytest.approx(len(clip), abs=0.1 * rate)
    # Raw AAC cannot say that its first frame is the encoder's delay, and WMA's decoder drops one.
    delay = {".aac": -1024, ".wma": 2048}.get(path.suffix, 0)
    inside = slice(rate, 7 * rate)
    wanted = np.roll(clip, -delay, axis=0)[inside]
    channels_alike = [rms(whole[inside, i] - wanted[:, i]) < 0.05 for i in range(channels)]
    assert sum(channels_alike) >= channels - 1  # the low-frequency channel of 5.1 loses its tone

    for start, seconds in ((0.2, 0.5), (3.217, 1.5), (7.5, None)):
        part, first = decoded(path, start, seconds, 0.0777), round(start * rate)
        np.testing.assert_array_equal(decoded(path.read_bytes(), start, seconds), part)
        assert seconds is None or len(part) == round(seconds * rate)
        errors = [
            np.abs(part[100:-100] - whole[first + shift :][100 : len(part) - 100]).max()
            for shift in range(-misplaced, misplaced + 1)
        ]
        assert min(errors) < 2e-3  # AAC and WMA fill in noise, which is drawn anew
    assert len(load_audio(path, RATE, 1.0, 2.0)) == 2 * RATE
    np.testing.assert_allclose(load_audio(path, rate), whole.mean(axis=1), atol=1e-7)


def test_suffixes_cover_what_is_tested() -> None:
    suffixes = {Path(row[0]).suffix.lower() for row in FORMATS + FFMPEG_FORMATS}
    assert suffixes <= AUDIO_SUFFIXES and {Path(row[0]).suffix for row in FFMPEG_FORMATS} == PYAV_SUFFIXES


@pytest.mark.parametrize(
    ("name", "codec", "options", "reason"),
    [
        ("cut.m4a", "aac", {}, "is not audio that can be read, or is cut off"),
        ("cut.m4a", "aac", {"movflags": "faststart"}, "is cut off or damaged: "),
        ("cut.webm", "libopus", {}, r"is cut off: holds [12]\.\d of 4.0 s"),
        ("cut.aac", "aac", {}, "is cut off or damaged"),
        ("cut.wma", "wmav2", {}, "is cut off"),
    ],
)
def test_truncated_file_of_ffmpeg_says_why(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], reason: str
) -> None:
    path = halved(encoded(tmp_path / name, chirps(4.0, 48_000, 1), 48_000, codec, **options))
    with pytest.raises(AudioError, match=reason):
        load_audio(path, RATE)


@pytest.mark.parametrize("sound", [True, False])
def test_film_gives_its_sound_track_or_says_that_it_has_none(tmp_path: Path, sound: bool) -> None:
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10, width=32, height=32)
        track = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for _ in range(20):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(pictures.encode(None))
        if track:
            add_sound(container, track, speech_like()[:, None])
    if sound:
        assert len(load_audio(tmp_path / "film.mp4", RATE)) == pytest.approx(RATE, abs=32)
    else:
        with pytest.raises(AudioError, match="has no sound track"):
            read_info(tmp_path / "film.mp4")


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoded(tmp_path / "clip.m4a", chirps(1.0, RATE, 1), RATE, "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    for source in (path, path.read_bytes()):
        for read in (read_info, decoded, lambda given: load_audio(given, RATE)):
            with pytest.raises(AudioError, match=r"M4A.* need PyAV: pip install 'peft-audio\[formats\]'"):
                read(source)
    assert load_audio(written(tmp_path / "clip.wav", speech_like()), RATE).size == RATE


def test_list_of_files_in_disguise_opens_no_other_file(tmp_path: Path) -> None:
    encoded(tmp_path / "private.m4a", chirps(1.0, RATE, 1), RATE, "aac")
    (tmp_path / "clip.wav").write_text("ffconcat version 1.0\nfile private.m4a\n")
    with pytest.raises(AudioError, match="is not audio that can be read"):
        read_info(tmp_path / "clip.wav")


@pytest.mark.parametrize("name", ["long.flac", "long.m4a"])
def test_end_of_ten_minutes_is_sought_and_blocks_hold_half_a_minute(tmp_path: Path, name: str) -> None:
    clip = chirps(600, 8_000, 1) if name.endswith("flac") else np.tile(chirps(60, 8_000, 1), (10, 1))
    path = tmp_path / name
    written(path, clip, 8_000, "PCM_16") if name.endswith("flac") else encoded(path, clip, 8_000, "aac", 16_000)
    start = time.perf_counter()
    blocks = [len(block) for block in read_blocks(path)]
    middle = time.perf_counter()
    part = load_audio(path, 8_000, 590.0, 2.0)
    assert time.perf_counter() - middle < 0.5 * (middle - start)  # 2 s against 600 s
    assert blocks[:20] == [240_000] * 20 and sum(blocks) == pytest.approx(len(clip), abs=200)
    assert rms(part - clip[4_720_000:4_736_000, 0]) < 0.05


def test_import_is_light() -> None:
    code = "import sys, peft_audio.audio.decoding; print(*({'av', 'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_a_hole_in_ogg_is_told_and_not_filled_with_what_follows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "holed.ogg", rng.normal(0, 0.1, 5 * 44_100), 44_100)
    content = bytearray((tmp_path / "holed.ogg").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    (tmp_path / "holed.ogg").write_bytes(content)
    with pytest.raises(AudioError, match=r"is cut off: holds \d\.\d of 5.0 s|cut off or damaged"):
        load_audio(tmp_path / "holed.ogg", 16_000)


def test_opus_without_its_end_is_cut_off(tmp_path: Path) -> None:
    soundfile.write(
        tmp_path / "whole.opus",
        np.random.default_rng(0).normal(0, 0.1, 5 * 48_000),
        48_000,
        format="OGG",
        subtype="OPUS",
    )
    content = (tmp_path / "whole.opus").read_bytes()
    (tmp_path / "cut.opus").write_bytes(content[: len(content) // 2])
    assert read_info(tmp_path / "cut.opus").cut_off and not read_info(tmp_path / "whole.opus").cut_off


@pytest.mark.parametrize("suffix", ["au", "mp3", "wav"])
def test_what_is_no_sound_is_no_sound_by_any_name(tmp_path: Path, suffix: str) -> None:
    for name, content in (("text", b"notes, not sound\n" * 99), ("html", b"<!DOCTYPE html><html></html>" * 50)):
        (tmp_path / f"{name}.{suffix}").write_bytes(content)
        with pytest.raises(AudioError, match="is not audio that can be read"):
            read_info(tmp_path / f"{name}.{suffix}")
