from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from peft_audio import DataConfig, LoraRecipe, TrainConfig
from peft_audio.config import dotted, to_yaml
from peft_audio.errors import ResumeError
from peft_audio.runs import folder


@pytest.mark.parametrize("streaming", [False, True])
def test_a_stream_resumes_with_the_same_number_of_workers_only(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: dict[str, Any] = {"source": "org/tones", "streaming": streaming, "num_workers": 2}
    cfg = LoraRecipe(data=DataConfig(**data), train=TrainConfig(max_steps=4, resume=True))
    about = {"settings": dotted(to_yaml(cfg)), "made_with": {}}
    before = {"settings": about["settings"] | {"data.num_workers": 0}, "made_with": {}}
    state = {"about": before, "position": {"step": 1, "log_bytes": 0}, "run_seconds": 0.0}
    checkpoint = SimpleNamespace(folder=tmp_path, state=state)
    monkeypatch.setattr(folder, "newest_checkpoint", lambda *_: checkpoint)
    if streaming:
        with pytest.raises(ResumeError, match=r"data\.num_workers 0 there, 2 here"):
            folder.checkpoint_to_resume(tmp_path, cfg, about)
    else:
        assert folder.checkpoint_to_resume(tmp_path, cfg, about) is checkpoint
