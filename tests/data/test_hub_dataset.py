"""A base encoder by its Hub id, from a stand-in that speaks the Hub's download protocol on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from helpers.hub_standin import COMMIT, serve
from helpers.matrix import first_quick
from helpers.parquet_datasets import make_dataset, write_split
from helpers.recipe_runs import free_port, settings
from helpers.tiny_encoders import tiny_config
from robustness import chaos
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

ROOT = Path(__file__).parents[2]

# Trains nothing: loads, saves an adapter, and loads that by the commit in its record.
SCRIPT = """
import json, sys
from pathlib import Path
from peft_audio.adapters.record import describe_adapter
from peft_audio.adapters.load import load_adapter
from peft_audio.adapters.save import save_adapter
from peft_audio.config import ModelConfig
from peft_audio.strategies import LoraRecipe, Setup
from peft_audio.strategies.lora import apply_lora
from peft_audio.encoders.family import family_of
from peft_audio.encoders.loading import identify_base, load_classifier, load_extractor
cfg = LoraRecipe(model=ModelConfig(name="org/tiny"))
model = load_classifier(cfg.model, ["a", "b"])
base, extractor = identify_base(cfg.model, model), load_extractor(cfg.model)
model, trained = apply_lora(model, Setup(family_of(model.config), cfg))
record = describe_adapter(cfg, base, ["a", "b"], extractor, "lora", {})
folder = save_adapter(Path(sys.argv[1]), model, trained, extractor, record)
print(json.dumps({"name": base.name, "commit": base.commit, "loaded": load_adapter(folder).record.base.commit}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub with one repository, `org/tiny`: an old pickled checkpoint; and the requests it got."""
    folder = tmp_path / "repository"
    torch.manual_seed(0)
    model = Wav2Vec2ForPreTraining(tiny_config())
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    with serve({"org/tiny": folder}, {}) as address_and_requests:
        yield address_and_requests


def environment(address: str, home: Path) -> dict[str, str]:
    """A process that knows this Hub, has an empty cache, and no other Hub."""
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return os.environ | hub


def launch(recipe: str, flags: list[str], env: dict[str, str], processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    command += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    command += ["--multi_gpu"] if processes > 1 else []
    env = env | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += [str(ROOT / "recipes" / f"{recipe}.py"), *flags]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=280)


def load(source: str, env: dict[str, str], **wanted: object) -> subprocess.CompletedProcess[str]:
    """Load the splits of a dataset in a process of its own; prints ids by split, labels and revision as JSON."""
    code = (
        "import json, sys\n"
        "from peft_audio.config import DataConfig\nfrom peft_audio.errors import UserError\n"
        "from peft_audio.data.splits import load_splits\n"
        "try:\n"
        "    found = load_splits(DataConfig(**json.loads(sys.argv[1])))\n"
        "except UserError as error:\n"
        "    sys.exit(f'error: {error}')\n"
        "ids = {name: list(found[name]['id']) for name in ('train', 'validation', 'test')}\n"
        "print(json.dumps(ids | {'labels': found.labels, 'revision': found.revision}))\n"
    )
    command = [sys.executable, "-c", code, json.dumps({"source": source} | wanted)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_a_base_from_the_hub_is_pinned_to_its_commit(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, requests = hub
    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment(address, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert json.loads(child.stdout.splitlines()[-1]) == {"name": "org/tiny", "commit": COMMIT, "loaded": COMMIT}
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["revision"] == COMMIT
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert 'BASE = "org/tiny"' in readme and f'revision="{COMMIT}"' in readme
    # transformers would ask for the repository, and then for a pull request that converts the old checkpoint.
    assert not [request for request in requests if "/api/models/" in request or request.startswith("POST")], requests
    # Once pinned, only the commit is asked for: a push in the middle of a run changes nothing.
    assert {request for request in requests if "/resolve/main/" in request} <= {
        "HEAD /org/tiny/resolve/main/config.json",
        "GET /org/tiny/resolve/main/config.json",
        "HEAD /org/tiny/resolve/main/adapter_config.json",  # transformers 5.17
    }


def test_a_dataset_is_read_at_one_commit_with_its_own_splits(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "tones")
    with serve({}, {"org/tones": folder}) as (address, requests):
        done = load("org/tones", environment(address, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["revision"] == COMMIT and found["labels"] == ["low", "high"], "the dataset's own order of labels"
    assert found["test"] == [f"test0.{i:05}.wav" for i in range(7)]
    assert len(found["train"]) == 24 and len(found["validation"]) == 5
    assert not [request for request in requests if "/resolve/main/" in request], requests


@pytest.mark.slow
def test_what_is_not_clear_about_a_dataset_is_asked(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "tones")
    with serve({}, {"org/tones": folder}) as (address, _):
        env = environment(address, tmp_path / "home")
        wrong = {
            "org/absent is not a local folder": load("org/absent", env),
            "at --data.revision v9 is not a local folder": load("org/tones", env, revision="v9"),
            "has no column 'speaker'; its columns are file (string), audio (Audio), pitch (ClassLabel)": load(
                "org/tones", env, group_column="speaker"
            ),
        }
    for words, done in wrong.items():
        assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: --data."), done.stderr
        assert words in done.stderr, done.stderr


@pytest.mark.slow
def test_splits_of_other_names_and_labels_of_other_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    for split in ("one", "two", "three"):
        write_split(folder / "data" / f"{split}-00000-of-00001.parquet", split, ["low", "high"], "pitch", 8)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: data/{name}-*\n" for name in ("one", "two", "three"))
        + "---\n"
    )
    with serve({}, {"org/odd": folder}) as (address, _):
        env = environment(address, tmp_path / "home")
        lost = load("org/odd", env)
        named = load("org/odd", env, split_names={"one": "train", "three": "test"})
        wrong = load("org/odd", env, split_names={"one": "train"}, label_column="audio")
    assert "has no train split, only one, two, three; map the names with --data.split_names" in lost.stderr
    assert named.returncode == 0, named.stderr
    found = json.loads(named.stdout.splitlines()[-1])
    assert found["test"] == [f"three.{i:05}.wav" for i in range(8)] and len(found["train"] + found["validation"]) == 8
    assert "--data.label_column: org/odd has no column 'audio'" in wrong.stderr


@pytest.mark.slow
def test_streaming_on_two_processes_evaluates_every_clip_once(tmp_path: Path, tiny_base: Path) -> None:
    folder, run = make_dataset(tmp_path / "tones", bad=1), tmp_path / "run"
    flags = [*settings(Path("org/tones"), tiny_base, run), "--data.streaming", "true", "--train.max_steps", "12"]
    flags += ["--train.epochs", "3", "--data.shuffle_buffer", "4", "--train.batch_size", "5"]
    with serve({}, {"org/tones": folder}) as (address, _):
        env = environment(address, tmp_path / "home")
        stopped = launch("lora", flags, env, processes=2)
        done = launch("lora", [*flags, "--data.on_bad_clip", "skip", "--train.overwrite", "true"], env, processes=2)
    # Which process meets a bad clip first is chance; the other can only be stopped.
    message = r"error( \(process 1\))?: --data.source: train[01].00011.wav is not audio that can be read"
    assert stopped.returncode and re.search(message, stopped.stderr), stopped.stderr
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "report.json").read_text())
    assert report["num_processes"] == 2 and report["steps"] == 12 and report["train_clips"] is None
    assert report["dataset_revision"] == COMMIT and report["test_accuracy"] > 0.8
    predictions = pq.read_table(run / "predictions.parquet").to_pandas()
    wanted = [f"test0.{i:05}.wav" for i in range(7)] + [f"validation0.{i:05}.wav" for i in range(5)]
    assert sorted(predictions["id"]) == wanted
    # Each process reads one of the two files, over and over: 60 clips are more than two times 12.
    skipped = (run / "skipped_clips.csv").read_text().splitlines()
    assert report["skipped_clips"] == 2
    assert [line.split(",")[0] for line in skipped[1:]] == ["train0.00011.wav", "train1.00011.wav"]


@pytest.mark.slow
def test_a_streamed_run_that_was_killed_ends_in_the_same_bits(tmp_path: Path, tiny_base: Path) -> None:
    folder = make_dataset(tmp_path / "tones", bad=1)
    flags = [*settings(Path("org/tones"), tiny_base, tmp_path / "whole"), "--data.streaming", "true"]
    flags += ["--data.shuffle_buffer", "4", "--data.on_bad_clip", "skip", "--train.max_steps", "12"]
    flags += ["--augment.preset", "light", "--train.checkpoint_every_steps", "1", "--train.verify_adapter", "false"]
    other = [*flags, "--train.output_dir", str(tmp_path / "one"), "--train.resume", "true"]
    with serve({}, {"org/tones": folder}) as (address, _):
        env = environment(address, tmp_path / "home")
        whole = launch("lora", flags, env)
        command = [sys.executable, str(ROOT / "recipes" / "lora.py"), *other]
        with subprocess.Popen(command, env=env | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}) as killed:
            while not (tmp_path / "one" / "checkpoints" / "step-00000004").exists() and killed.poll() is None:
                time.sleep(0.005)
            killed.kill()
        again = launch("lora", other, env)
    assert (whole.returncode, killed.returncode, again.returncode) == (0, -signal.SIGKILL, 0), again.stderr
    assert json.loads((tmp_path / "one" / "report.json").read_text())["resumes"] == 1
    assert chaos.unlike(tmp_path / "whole", tmp_path / "one") == []


@pytest.mark.parametrize("recipe", first_quick(["lora", "full"]))
@pytest.mark.slow
def test_gtzan_settings_run_on_a_stand_in_with_its_columns(recipe: str, tmp_path: Path, tiny_base: Path) -> None:
    genres = ["blues", "classical", "rock"]
    folder = tmp_path / "gtzan"
    write_split(folder / "all" / "train" / "0000.parquet", "track", genres, "genre", 31, bad=1)
    # The lists as they are published, and the lines that the settings file gives to make one table of them.
    tracks = [f"track.{i:05}.wav" for i in range(30)]
    for name, part in (("train", tracks[:18]), ("valid", tracks[18:24]), ("test", tracks[24:29])):
        lines = [f"{genres[int(track[6:11]) % 3]}/{track}" for track in part]
        (tmp_path / f"{name}_filtered.txt").write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    config = ROOT / "recipes" / "configs" / f"gtzan_{recipe}.yaml"
    flags = ["--config", str(config), "--model.name", str(tiny_base), "--train.output_dir", str(tmp_path / "run")]
    flags += ["--train.epochs", "2", "--train.mixed_precision", "no"]
    if recipe == "lora":
        script = [line[4:] for line in config.read_text().splitlines() if line.startswith(("#   echo", "#   for"))]
        subprocess.run(["bash", "-c", "\n".join(script)], cwd=tmp_path, check=True)
        flags += ["--data.splits_file", str(tmp_path / "gtzan_fault_filtered.csv")]
    with serve({}, {"marsyas/gtzan": folder}) as (address, requests):
        done = launch(recipe, flags, environment(address, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert any("refs%2Fconvert%2Fparquet" in request for request in requests)
    splits = pq.read_table(tmp_path / "run" / "splits.parquet").to_pandas()
    if recipe == "lora":
        assert (report["train_clips"], report["validation_clips"], report["test_clips"]) == (18, 6, 5)
        assert not report["validation_is_test"] and report["skipped_clips"] == 0
        assert list(splits["id"][splits["split"] == "test"]) == tracks[24:29]
        assert "2 of 31 clips are left out" in done.stdout
    else:
        # A fifth of 30 usable clips, which the best epoch is chosen on as well.
        assert (report["train_clips"], report["validation_clips"], report["test_clips"]) == (24, 6, 6)
        assert report["validation_is_test"] and report["skipped_clips"] == 1
        assert report["validation_accuracy"] == report["test_accuracy"]
        assert "so the figures are too good" in done.stdout
