"""The recipe decides precision; a launcher that disagrees is told so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from peft_audio.config import TrainConfig
from peft_audio.errors import UserError
from peft_audio.training import hardware as accelerator
from peft_audio.training.hardware import make_accelerator


@pytest.fixture(autouse=True)
def _fresh_accelerator_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Accelerate keeps the first choice of precision for the whole process."""
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("launched", "asked"), [(None, "bf16"), ("no", "bf16"), ("bf16", "bf16"), ("no", "no")])
def test_the_recipe_decides_the_precision(launched: str | None, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    assert make_accelerator(TrainConfig(mixed_precision=asked)).mixed_precision == asked


@pytest.mark.parametrize(("launched", "asked"), [("bf16", "no"), ("fp16", "bf16"), ("fp8", "no")])
def test_a_launcher_that_disagrees_is_refused(launched: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    with pytest.raises(
        UserError, match=rf"--train.mixed_precision: got {asked}, must be {launched}, as given to accelerate launch"
    ):
        make_accelerator(TrainConfig(mixed_precision=asked))


def test_fp16_on_a_cpu_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    with pytest.raises(UserError, match=r"--train.mixed_precision: got fp16, must be bf16 or no on a CPU"):
        make_accelerator(TrainConfig(mixed_precision="fp16"))


def test_a_number_of_micro_batches_in_the_environment_scales_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    made = make_accelerator(TrainConfig(gradient_accumulation_steps=2))
    weight = torch.nn.Parameter(torch.ones(1))
    made.backward(3 * weight.sum())
    assert weight.grad.item() == 3


def test_one_process_where_several_were_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_accelerator(TrainConfig())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # what `accelerate launch --cpu --num_processes 2` leaves
    make_accelerator(TrainConfig())
    assert capsys.readouterr().err.startswith("note: one process runs.")


def test_processes_that_do_not_see_each_other_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # what a launch config for two leaves where ACCELERATE_USE_CPU is not set
    with pytest.raises(UserError, match=r"got 2 processes that run separately.*ACCELERATE_USE_CPU=true"):
        make_accelerator(TrainConfig())


@pytest.mark.parametrize(("gpus", "refused"), [(0, False), (1, True), (2, False)])
def test_cpu_processes_that_would_meet_on_too_few_gpus_are_told(
    gpus: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Accelerate: on an H100, two processes of the launch config for CPUs ended in CUDA's words."""
    two = SimpleNamespace(num_processes=2, is_local_main_process=True, distributed_type=DistributedType.MULTI_CPU)
    two.device, two.mixed_precision = torch.device("cpu"), "no"
    monkeypatch.setattr(accelerator, "Accelerator", lambda **_: two)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match=r"put CUDA_VISIBLE_DEVICES= before") if refused else nullcontext():
        make_accelerator(TrainConfig())
