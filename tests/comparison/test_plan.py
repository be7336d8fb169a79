"""What a comparison will cost: the arithmetic on known costs, the cuts, and the timing of a tiny comparison."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers.tones import divide
from rich.console import Console

from peft_audio.comparison import plan as planning
from peft_audio.comparison.budget import fit
from peft_audio.comparison.plan import (
    ArmTiming,
    Measured,
    Request,
    Timing,
    as_flags,
    duration,
    makespan,
    measure,
    plan,
    print_plan,
    run_seconds,
    steps_for_seconds,
    unranked,
)
from peft_audio.comparison.settings import ArmConfig, CompareRecipe
from peft_audio.comparison.timing import affordable, time_arms
from peft_audio.comparison.tuning import Cell, first_rate, make_job
from peft_audio.config import DataConfig, ModelConfig, TrainConfig
from peft_audio.errors import UserError
from peft_audio.processes import run_python

NETWORK = ArmTiming(
    trainable_parameters=1000,
    adapter_bytes=4000,
    peak_memory_bytes=2**30,
    fixed_seconds=3.0,
    step_seconds=0.5,
    slowdown=1.5,
    validation_seconds=0.01,
    evaluation_seconds=0.02,
    fill_seconds=0.05,
    cached="the convolutions",
    caches_training=True,
    steps_per_epoch=30,
)
BASELINE = ArmTiming(10, 0, 2**29, evaluation_seconds=0.01, fit_seconds=0.02)
ARMS = {
    "head_only": replace(NETWORK, step_seconds=0.01, cached="the whole encoder"),
    "lora": NETWORK,
    "last_n_layers": replace(NETWORK, step_seconds=0.3),
    "full": replace(NETWORK, step_seconds=0.8),
    "majority": BASELINE,
    "log_mel": BASELINE,
}
MEASURED = Measured(
    clips={"train": 480, "validation": 100, "test": 200},
    recordings=480,
    classes=10,
    start_seconds=5.0,
    first_seconds=2.0,
    scan_seconds=1.0,
    verify_seconds=6.0,
    arms=ARMS,
)
TIMING = Timing(MEASURED, devices=1, shared=2, seconds=30.0, other_cpus=0.0, busy=False)


def settings(**changes: Any) -> CompareRecipe:
    train = TrainConfig(evaluate_train=True, epochs=8)
    return CompareRecipe(**{"arms": list(ARMS), "reference": "full", "train": train} | changes)


def test_a_plan_adds_up() -> None:
    """240 steps, 8 validations of 100 clips, an evaluation of 100 or of 780 clips; 12 s or 18 s besides."""
    cfg = settings(arms=["lora"], reference="lora")
    tuning = 5 + 2 + 1 + 3 + 240 * 0.5 + 8 * 100 * 0.01 + 100 * 0.02
    final = 5 + 2 + 1 + 3 + 6 + 240 * 0.5 + 8 * 100 * 0.01 + 780 * 0.02
    (arm,) = plan(cfg, TIMING).arms
    assert (arm.tuning_time, arm.total_time) == pytest.approx((tuning, final))
    assert arm.train_time == pytest.approx(240 * 0.5 + 580 * 0.05)
    assert arm.runs == (3, 4, 5)
    assert arm.seconds == pytest.approx((3 * tuning + 5 * final, 4 * tuning + 5 * final))


def test_a_plan_names_settings_that_forbid_a_ranking() -> None:
    assert unranked(settings()) == ()
    data = DataConfig(validate_on_test=True)
    (reason,) = unranked(settings(arms=["lora", "full", "majority"], data=data))
    assert reason.startswith("epochs or rates of lora, full are chosen on the test clips (data.validate_on_test)")
    own = {"short": ArmConfig("lora", [1e-3], {"train.epochs": 3}), "same": ArmConfig("lora", [1e-3], {"lora.r": 2})}
    assert unranked(settings(arms=["full", "same"], own_arms=own)) == ()
    (reason,) = unranked(settings(arms=["full", "short"], own_arms=own))
    assert reason == "short: other train.epochs than the other arms, must be the same"
    assert unranked(settings(arms=["full", "short"], own_arms=own, train_seconds=10.0)) == ()


def test_runs_side_by_side_count_once_and_are_slower() -> None:
    cfg = settings(arms=["lora"], reference="lora")
    tuning, final = (run_seconds(cfg, TIMING, "lora", each, shared=True) for each in (False, True))
    assert tuning == pytest.approx(11 + 1.5 * (120 + 8 + 2))
    alone = run_seconds(cfg, TIMING, "lora", final=True)
    filled = 580 * 0.05
    # Three rates in two places, one more rate, the seed that measures costs, four more seeds in two places.
    most = 5 + max(tuning + filled, 2 * tuning) + tuning + alone + 2 * final
    assert duration(cfg, TIMING) == pytest.approx(most)
    assert duration(cfg, TIMING, least=True) == pytest.approx(most - tuning)
    one_place = replace(TIMING, shared=1)
    assert duration(cfg, one_place) == pytest.approx(5 + 4 * (130 + 11) + 5 * alone + filled)
    assert duration(replace(cfg, jobs=1), TIMING) == pytest.approx(duration(cfg, one_place))


def test_the_last_run_ends_the_phase() -> None:
    assert makespan([3.0, 3.0, 2.0], 2) == 5.0
    assert makespan([1.0] * 7, 3) == 3.0
    assert makespan([], 2) == 0.0


def test_a_budget_in_seconds_becomes_steps_by_what_was_timed() -> None:
    cfg = settings(train_seconds=60.0, arms=["lora", "full", "log_mel"])
    assert steps_for_seconds(cfg, TIMING) == {"lora": round((60 - 29) / 0.5), "full": round((60 - 29) / 0.8)}
    with pytest.raises(UserError, match=r"train_seconds: got 20, must be more than 29.0, which arm lora needs"):
        steps_for_seconds(replace(cfg, train_seconds=20.0), TIMING)


def test_cuts_are_made_in_their_order_and_a_ranking_is_lost_last() -> None:
    """As the time gets shorter, what is cut later is cut only where all that is cut earlier does not suffice."""
    order = ["extra_trials", "data.max_train_clips", "train.epochs", "arms", "seeds"]
    cut_last = []
    for minutes in (70, 60, 45, 35, 20, 14, 10, 6, 3, 1):
        cfg = settings(minutes=minutes)
        cut, changed = fit(cfg, TIMING)
        last = max((order.index(name) for name in changed if name in order), default=-1)
        cut_last.append(last)
        planned = plan(cut, TIMING, changed)
        assert planned.fits or last == len(order) - 1, minutes
        if "seeds" in changed:
            assert changed["arms"] == ["head_only", "full", "majority"] and changed["train.epochs"] == 2
            assert changed["data.max_train_clips"] < 120
        else:
            assert not unranked(cut)
    assert cut_last == sorted(cut_last) and {*cut_last} == {-1, 0, 1, 2, 3, 4}


def test_spare_seeds_and_rates_go_after_epochs_and_before_arms() -> None:
    cuts = [fit(settings(minutes=minutes, seeds=8, trials=3), TIMING)[1] for minutes in (100, 80, 16, 12, 8, 6)]
    spare, arms = ([bool(cut.keys() & names) for cut in cuts] for names in ({"seeds", "trials"}, {"arms"}))
    assert spare == sorted(spare) and arms == sorted(arms)
    assert not cuts[0].keys() & {"seeds", "trials", "arms"} and 0 < spare.index(True) < arms.index(True)


def test_what_was_cut_first_is_restored_where_dropping_an_arm_left_time() -> None:
    """Without the dearest arms, 60 minutes hold all the clips and epochs of the others."""
    dear = replace(TIMING, measured=replace(MEASURED, arms=ARMS | {"lora": replace(NETWORK, step_seconds=60.0)}))
    cut, changed = fit(settings(minutes=60), dear)
    assert changed == {"arms": [name for name in ARMS if name != "lora"]} and cut.train.epochs == 8


def test_a_control_that_is_the_reference_is_not_dropped() -> None:
    cut, changed = fit(settings(minutes=1, reference="log_mel"), TIMING)
    assert "arms" in changed and "log_mel" in cut.arms


def test_numbers_of_rates_that_arms_bring_are_not_cut() -> None:
    own = {"mine": ArmConfig("lora", [1e-3, 3e-3, 1e-2])}
    arms = {**ARMS, "mine": NETWORK}
    cfg = settings(own_arms=own, arms=[*arms], minutes=3)
    _, changed = fit(cfg, replace(TIMING, measured=replace(MEASURED, arms=arms)))
    assert "trials" not in changed and changed["extra_trials"] == 0


def printed(cfg: CompareRecipe, timing: Timing = TIMING) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    cut, changed = fit(cfg, timing)
    print_plan(plan(cut, timing, changed), cfg.minutes, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_first_line_says_whether_the_result_can_be_ranked() -> None:
    assert printed(settings())[0] == "The result can be ranked."
    lines = printed(settings(minutes=45))
    assert lines[0] == "The result can be ranked."
    assert lines[1].startswith("to fit into 45 minutes: --extra_trials 0 ")
    lines = printed(settings(minutes=4))
    assert lines[0].startswith("The result cannot be ranked: ") and "5 or more (--seeds 5)" in lines[0]
    (needed,) = [line for line in lines if line.startswith("a comparison that can be ranked would take about ")]
    assert printed(settings(minutes=int(needed.split()[-2])))[0] == "The result can be ranked."
    assert printed(settings(seeds=1))[0] == "The result cannot be ranked: 1 seed, must be 5 or more (--seeds 5)."
    assert "nothing more can be cut: the comparison takes longer than 1 minutes" in printed(settings(minutes=1))


def test_the_table_fits_and_a_busy_machine_is_named() -> None:
    lines = printed(settings(), replace(TIMING, other_cpus=1.4, busy=True))
    assert max(map(len, lines[:-2])) <= 80
    assert all(any(line.split()[:1] == [name] for line in lines) for name in ARMS)
    assert lines[-1].startswith("warning: other programs kept 1.4 CPUs busy during the timing")
    assert not any("warning" in line for line in printed(settings()))


def test_cut_settings_are_written_as_flags() -> None:
    flags = as_flags({"extra_trials": 0, "data.max_train_clips": 100, "arms": ["lora", "full"]})
    assert flags == '--extra_trials 0 --data.max_train_clips 100 --arms "[lora, full]"'


def test_fewer_steps_are_timed_where_they_are_dear() -> None:
    assert affordable(NETWORK, 60.0, 16) == (8, 64)
    steps, clips = affordable(NETWORK, 20.0, 16)
    assert 2 < steps < 8 and 16 < clips < 64
    assert affordable(NETWORK, 1.0, 16) == (2, 16)


@pytest.fixture
def tiny(tone_folder: Path, tiny_base: Path, tmp_path: Path) -> CompareRecipe:
    """24 clips to train on, 6 to validate, 6 to test."""
    tones = divide(tone_folder, tmp_path / "tones", {"train": (6, 6), "validation": (3, 3), "test": (3, 3)})
    return settings(
        output_dir=str(tmp_path / "compared"),
        arms=["head_only", "lora", "log_mel"],
        reference="lora",
        data=DataConfig(source=str(tones)),
        model=ModelConfig(name=str(tiny_base)),
        train=TrainConfig(epochs=2, batch_size=4),
    )


def request_of(cfg: CompareRecipe) -> Request:
    jobs = {name: make_job(cfg, Cell(name, None), "final", 0, first_rate(cfg, name)) for name in cfg.arms}
    arms = {name: (job.recipe, job.arguments()) for name, job in jobs.items()}
    return Request(arms, cfg.reference, shared_threads=1, limit_seconds=20.0, spawned=time.time())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_all_arms_are_timed_in_one_process(
    precision: Literal["no", "bf16"], tiny: CompareRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timing trains one model several times."""
    tiny = replace(tiny, train=replace(tiny.train, mixed_precision=precision))
    monkeypatch.setattr("peft_audio.comparison.timing.run_python", lambda *args: None)
    measured = time_arms(request_of(tiny), tmp_path / "timed")
    assert (measured.clips, measured.recordings, measured.classes) == (
        {"train": 12, "validation": 6, "test": 6},
        12,
        2,
    )
    lora, head_only = measured.arms["lora"], measured.arms["head_only"]
    assert lora.steps_per_epoch == 3 and 0 < head_only.trainable_parameters < lora.trainable_parameters
    for arm in (lora, head_only):
        assert min(arm.step_seconds, arm.validation_seconds, arm.evaluation_seconds, arm.fixed_seconds) > 0
        assert arm.cached and arm.caches_training and arm.adapter_bytes > 0
    assert measured.arms["log_mel"].fit_seconds > 0


def test_an_arm_that_cannot_be_timed_is_named(tiny: CompareRecipe, tmp_path: Path) -> None:
    own = {"broken": ArmConfig("head_only", flags={"model.name": "./nowhere"})}
    with pytest.raises(UserError, match=r"^arm broken: .*no folder ./nowhere"):
        time_arms(request_of(replace(tiny, own_arms=own, arms=["lora", "broken"])), tmp_path / "timed")


def test_a_timing_is_kept_for_the_same_settings(tiny: CompareRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    load = {"other_cpus": 0.5, "busy": False}

    def timed(request: Request, environment: dict[str, str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        calls.append([*request.arms])
        plain = json.loads(json.dumps(planning.asdict(MEASURED)))
        return plain, load

    monkeypatch.setattr(planning, "_timed", timed)
    Path(tiny.output_dir).mkdir()
    first = measure(tiny)
    assert first.measured == MEASURED and first.other_cpus == 0.5
    # Fewer arms, seeds and trials need no new timing, other settings do.
    fewer = replace(tiny, arms=["lora", "log_mel"], seeds=1, trials=2, minutes=10)
    assert measure(fewer) == first and len(calls) == 1
    other = replace(tiny, train=replace(tiny.train, batch_size=8))
    load["busy"] = True
    measure(other)
    assert len(calls) == 2
    # Measured on a busy machine: again, until the comparison begins.
    measure(other)
    assert len(calls) == 3
    (Path(tiny.output_dir) / "runs").mkdir()
    assert measure(other).busy and len(calls) == 3


@pytest.mark.slow
def test_plan_is_printed_by_the_command(tiny: CompareRecipe) -> None:
    flags = ["--output_dir", tiny.output_dir, "--arms", "[lora, majority]", "--reference", "lora"]
    flags += ["--data.source", tiny.data.source, "--model.name", tiny.model.name, "--train.epochs", "1"]
    ended = run_python(["-m", "peft_audio.cli", "plan", *flags], timeout_seconds=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0] == "The result can be ranked."
    # No machine is so fast that nothing is cut.
    ended = run_python(["-m", "peft_audio.cli", "plan", "--json", "--minutes", "0.1", *flags], timeout_seconds=300)
    found = json.loads(ended.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["lora", "majority"] and found["settings"]["extra_trials"] == 0
