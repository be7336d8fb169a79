"""A Hub base stays the same from the first to the last load of a run, whatever is pushed meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.hub_standin import COMMIT, Hub, Repository, running
from helpers.tiny_encoders import tiny_config
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

from peft_audio.comparison import collect
from peft_audio.comparison.settings import ArmConfig, CompareRecipe
from peft_audio.config import ModelConfig, dotted, to_yaml
from peft_audio.encoders.loading import with_recorded_commit
from peft_audio.errors import UserError

ROOT = Path(__file__).parents[2]
NEW = "f" * 40


class Pushed(Repository):
    """A repository in which somebody pushes other weights once its newest commit was asked for."""

    new: Path

    def at(self, revision: str) -> tuple[str, Path] | None:
        found = super().at(revision)
        if revision == "main":
            self.commits[NEW] = self.new
        return found


def save_weights(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    Wav2Vec2ForPreTraining(tiny_config()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)
    return folder


def test_a_run_and_its_resumption_load_one_commit(tone_folder: Path, tmp_path: Path) -> None:
    hub = Hub({}, {})
    hub.models["org/tiny"] = Pushed({COMMIT: save_weights(tmp_path / "old", 0)})
    hub.models["org/tiny"].new = save_weights(tmp_path / "new", 1)
    run = tmp_path / "run"
    flags = {"data.source": tone_folder, "model.name": "org/tiny", "train.output_dir": run, "train.max_steps": 1}
    flags |= {"train.verify_adapter": "false", "train.resume": "true", "prefix_cache.use": "never"}
    command = [sys.executable, str(ROOT / "recipes" / "head_only.py")]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with running(hub):
        own = {"HF_ENDPOINT": hub.url(), "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        own |= {"HF_HUB_OFFLINE": "0", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

        def start() -> tuple[str, str]:
            subprocess.run(command, env=os.environ | own, check=True, capture_output=True, timeout=280)
            stored = json.loads((run / "adapter" / "adapter_config.json").read_text())["revision"]
            return stored, json.loads((run / "report.json").read_text())["base_sha256"]

        first = start()
        assert first[0] == dotted((run / "config.yaml").read_text())["model.revision"] == COMMIT
        assert list(hub.models["org/tiny"].commits) == [COMMIT, NEW]
        (run / "report.json").unlink()
        hub.requests.clear()
        assert start() == first
        # transformers asks again for files that the commit lacks, but nobody asks for the newest commit.
        assert all(f"/resolve/{COMMIT}/" in request for request in hub.requests), hub.requests


def test_another_commit_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    made = {"model.name": "org/tiny", "model.revision": COMMIT}
    assert with_recorded_commit(ModelConfig("org/tiny"), made).revision == COMMIT
    assert not capsys.readouterr().out
    assert with_recorded_commit(ModelConfig("org/tiny", "v2"), made).revision == COMMIT
    assert "--model.revision v2 is not resolved again" in capsys.readouterr().out
    assert with_recorded_commit(ModelConfig("org/tiny", NEW), made).revision == NEW
    assert with_recorded_commit(ModelConfig("org/other"), made).revision is None
    assert with_recorded_commit(ModelConfig("org/tiny"), {}).revision is None


def test_a_comparison_keeps_the_commits_that_it_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"org/tiny": COMMIT, "org/other": "a" * 40}
    monkeypatch.setattr(collect, "with_commit", lambda cfg: replace(cfg, revision=commits[cfg.name]))
    arm = ArmConfig("lora", flags={"model.name": "org/other"})
    asked = CompareRecipe(
        output_dir=str(tmp_path),
        arms=["lora", "mine"],
        reference="lora",
        own_arms={"mine": arm},
        model=ModelConfig("org/tiny"),
    )
    first = collect.with_commits(asked)
    assert first.shared_settings(first.all_arms()["lora"])["model.revision"] == COMMIT
    assert first.shared_settings(first.all_arms()["mine"])["model.revision"] == "a" * 40
    (tmp_path / "comparison.yaml").write_text(to_yaml(first))
    commits |= {"org/tiny": NEW, "org/other": NEW}
    assert collect.with_commits(asked) == first


def test_an_arm_with_its_own_base_never_gets_the_commit_of_the_shared_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"org/tiny": COMMIT, "org/new": "a" * 40}

    def resolved(cfg: ModelConfig) -> ModelConfig:
        if cfg.name not in commits:
            raise UserError(f"no {cfg.name}")
        assert cfg.revision is None
        return replace(cfg, revision=commits[cfg.name])

    def asked(names: dict[str, str], revision: str | None = None) -> CompareRecipe:
        own = {arm: ArmConfig("lora", flags={"model.name": name}) for arm, name in names.items()}
        model = ModelConfig("org/tiny", revision)
        arms = ["lora", *own]
        return CompareRecipe(output_dir=str(tmp_path), arms=arms, reference="lora", own_arms=own, model=model)

    def revisions(cfg: CompareRecipe) -> dict[str, str | None]:
        return {arm: cfg.shared_settings(cfg.all_arms()[arm]).get("model.revision") for arm in cfg.arms}

    monkeypatch.setattr(collect, "with_commit", resolved)
    first = collect.with_commits(asked({"broken": "org/nowhere", "changed": "org/nowhere"}))
    assert revisions(first) == {"lora": COMMIT, "broken": None, "changed": None}
    (tmp_path / "comparison.yaml").write_text(to_yaml(first))
    commits["org/nowhere"] = NEW
    again = asked({"broken": "org/nowhere", "changed": "org/new", "added": "org/new"}, COMMIT)
    wanted = {"lora": COMMIT, "broken": None, "changed": "a" * 40, "added": "a" * 40}
    assert revisions(collect.with_commits(again)) == wanted
