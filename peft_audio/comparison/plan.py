"""Estimate what a comparison will cost from a few timed steps of each arm."""

from __future__ import annotations

import heapq
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from joblib import cpu_count
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from peft_audio.comparison.jobs import threads_of_run, wait_and_measure
from peft_audio.comparison.rules import MIN_SEEDS, ON_TEST, equal_settings
from peft_audio.comparison.settings import CompareRecipe
from peft_audio.comparison.tuning import Cell, cells, check_arms, first_rate, grid_of, is_tuned, make_job
from peft_audio.config.parse import in_words
from peft_audio.errors import UserError
from peft_audio.files import expanded, read_json, write_atomically
from peft_audio.processes import child_environment, end_processes, python_command, visible_gpus
from peft_audio.text import several

# Largest number of runs side by side on a CPU, because each holds the encoder and its libraries in memory.
MOST_AT_ONCE = 4
# Largest time of the timed steps of all arms, in seconds and as a share of `minutes`. A plan must take at most a
# minute, of which the command needs some seconds to start and end.
LIMIT_SECONDS = 45.0
LIMIT_SHARE = 0.25
TIMING = "timing.json"
LEAST_RATES = 2  # smallest number of rates for a ranking


@dataclass(frozen=True)
class ArmTiming:
    """Costs of the parts of one arm's runs.

    Attributes:
        trainable_parameters: number of trained parameters; of fitted coefficients for a baseline.
        adapter_bytes: size of the saved weights.
        peak_memory_bytes: peak memory of the timed steps; longer clips later on can need more.
        fixed_seconds: time of one run to load the encoder, prepare the strategy, warm up and save; it depends neither
            on the number of clips nor on that of steps.
        step_seconds: time of an optimizer step.
        slowdown: time of a step with the threads of a run that shares the CPUs, over `step_seconds`.
        validation_seconds: time per clip of the validation after each epoch.
        evaluation_seconds: time per clip of the evaluation at the end.
        fill_seconds: time per clip to fill the feature cache, which runs share.
        cached: layers whose output is cached; empty if nothing is.
        caches_training: whether training starts from cached features, not only validation.
        steps_per_epoch: optimizer steps in which all training clips are seen once.
        fit_seconds: time per training clip to fit a baseline.
    """

    trainable_parameters: int
    adapter_bytes: int
    peak_memory_bytes: int
    fixed_seconds: float = 0.0
    step_seconds: float = 0.0
    slowdown: float = 1.0
    validation_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    fill_seconds: float = 0.0
    cached: str = ""
    caches_training: bool = False
    steps_per_epoch: int = 0
    fit_seconds: float = 0.0


@dataclass(frozen=True)
class Measured:
    """Costs of the parts of a comparison's runs.

    Attributes:
        clips: number of clips of each split.
        recordings: number of training recordings; differs from the clips if recordings are cut into windows.
        classes: number of labels.
        start_seconds: time from the start of a process until its libraries are imported.
        first_seconds: further time of a run that only the first one in a process needs.
        scan_seconds: time to find, decode and divide the recordings.
        verify_seconds: time of the fresh process that verifies an adapter.
        arms: costs of each arm, by name.
    """

    clips: dict[str, int]
    recordings: int
    classes: int
    start_seconds: float
    first_seconds: float
    scan_seconds: float
    verify_seconds: float
    arms: dict[str, ArmTiming]


@dataclass(frozen=True)
class Request:
    """Request to time arms.

    Attributes:
        arms: recipe and command line of a final run of each arm, by name.
        first: arm that is timed first and decides the size of the sample.
        shared_threads: number of threads of a run that shares the CPUs with others.
        limit_seconds: time that the process should take from its start.
        spawned: `time.time()` when the process was started.
    """

    arms: dict[str, tuple[str, list[str]]]
    first: str
    shared_threads: int
    limit_seconds: float
    spawned: float


@dataclass(frozen=True)
class Timing:
    """Measured costs and the conditions under which they were measured.

    Attributes:
        measured: costs of the arms, by their parts.
        devices: number of GPUs, or 1 for the CPU.
        shared: number of runs side by side whose costs do not count.
        seconds: time that measuring took.
        other_cpus: mean number of CPUs that other programs kept busy meanwhile; None if nobody measured it.
        busy: whether they left fewer CPUs than threads.
    """

    measured: Measured
    devices: int
    shared: int
    seconds: float
    other_cpus: float | None
    busy: bool


@dataclass(frozen=True)
class ArmPlan:
    """Estimated costs of one arm.

    Attributes:
        name: name of the arm.
        num_trainable_params: number of trained parameters.
        file_size: size of the saved weights, bytes.
        accelerator_memory_max: peak memory of the timed steps, bytes; longer clips later on may need more.
        train_time: seconds in training steps of one run that has the device to itself.
        total_time: seconds of one final run, from start to report.
        tuning_time: seconds of one tuning run that has the device to itself.
        runs: number of tuning runs at least, tuning runs at most, final runs.
        seconds: time of all of them at least and at most, one after the other.
    """

    name: str
    num_trainable_params: int
    file_size: int
    accelerator_memory_max: int
    train_time: float
    total_time: float
    tuning_time: float
    runs: tuple[int, int, int]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Estimated costs of a comparison.

    Attributes:
        arms: costs of each arm.
        seconds: time of the whole comparison at least and at most; runs side by side count once.
        at_once: largest number of runs side by side.
        unranked: reasons why the result cannot be ranked; empty if it can.
        settings: settings that were cut to fit into `minutes`, by dotted name.
        fits: whether the comparison fits into `minutes`; None without it.
        rank_minutes: time of the comparison with as many seeds and rates as a ranking needs; None if it has them, or if
            other settings forbid a ranking.
        other_cpus: mean number of CPUs that other programs kept busy during the timing, if it was too many.
    """

    arms: tuple[ArmPlan, ...]
    seconds: tuple[float, float]
    at_once: int
    unranked: tuple[str, ...]
    settings: dict[str, Any]
    fits: bool | None
    rank_minutes: float | None
    other_cpus: float | None


def plan(cfg: CompareRecipe, timing: Timing, settings: dict[str, Any] | None = None) -> Plan:
    """Estimate what a comparison will cost.

    Args:
        cfg: comparison.
        timing: measured costs of its arms.
        settings: settings that were cut to get this comparison.
    """
    seconds = (duration(cfg, timing, least=True), duration(cfg, timing))
    ranked = replace(cfg, seeds=max(cfg.seeds, MIN_SEEDS), trials=max(cfg.trials, LEAST_RATES))
    fits = None if cfg.minutes is None else seconds[1] + timing.seconds <= 60 * cfg.minutes
    return Plan(
        arms=tuple(arm_plan(cfg, timing, name) for name in cfg.arms),
        seconds=seconds,
        at_once=cfg.jobs or (timing.shared if cfg.seeds > 1 or cfg.trials > 1 else timing.devices),
        unranked=unranked(cfg),
        settings=settings or {},
        fits=fits,
        rank_minutes=(duration(ranked, timing) + timing.seconds) / 60
        if ranked != cfg and not unranked(ranked)
        else None,
        other_cpus=timing.other_cpus if timing.busy else None,
    )


def runs_at_once(cfg: CompareRecipe, costs_count: bool) -> int:
    """Return the number of runs side by side.

    There is one for each GPU. Without GPUs, runs share the CPUs if their costs do not count.
    """
    if cfg.jobs is not None:
        return cfg.jobs
    gpus = len(visible_gpus())
    return gpus or (1 if costs_count else min(MOST_AT_ONCE, cpu_count()))


def unranked(cfg: CompareRecipe) -> tuple[str, ...]:
    """Return the reasons why the settings of a comparison forbid a ranking; empty if they do not.

    `rules.broken_rules` tests the finished runs.
    """
    reasons = []
    if cfg.seeds < MIN_SEEDS:
        reasons.append(f"{several(cfg.seeds, 'seed')}, must be {MIN_SEEDS} or more (--seeds {MIN_SEEDS})")
    if cfg.trials < LEAST_RATES:
        reasons.append(
            f"{several(cfg.trials, 'learning rate')}, must be {LEAST_RATES} or more (--trials {LEAST_RATES})"
        )
    arms = {name: cfg.all_arms()[name] for name in cfg.arms}
    competing = {
        name: cfg.shared_settings(arm) for name, arm in arms.items() if not arm.control or name == cfg.reference
    }
    on_test = [name for name, settings in competing.items() if settings.get("data.validate_on_test")]
    if on_test:
        reasons.append(f"epochs or rates of {', '.join(on_test)} are {ON_TEST}, must be chosen on validation")
    for setting in equal_settings(cfg.train_seconds is not None):
        values = {name: settings[setting] for name, settings in competing.items() if setting in arms[name].flags}
        section, _, field = setting.partition(".")
        usual = [] if len(values) == len(competing) else [getattr(getattr(cfg, section), field)]
        if len({*map(str, values.values()), *map(str, usual)}) > 1:
            reasons.append(f"{', '.join(values)}: other {setting} than the other arms, must be the same")
    return tuple(reasons)


def measure(cfg: CompareRecipe) -> Timing:
    """Time a few steps of every arm in one process, or read an earlier timing with the same settings.

    A timing made on a busy machine is repeated as long as the comparison has not started.

    Raises:
        UserError: The settings of an arm are wrong, or it cannot be timed.
    """
    check_arms(cfg)
    folder = expanded(cfg.output_dir)
    jobs = {
        name: make_job(cfg, Cell(name, 0 if cfg.folds else None), "final", 0, first_rate(cfg, name))
        for name in cfg.arms
    }
    about = json.loads(json.dumps({name: job.flags | {"recipe": job.recipe} for name, job in jobs.items()}))
    stored = _stored(folder / TIMING, about)
    # A started comparison keeps its timing, so that the same command makes the same cuts.
    if stored and (not stored.busy or (folder / "runs").exists()):
        return stored
    gpus, shared = visible_gpus(), runs_at_once(cfg, costs_count=False)
    limit = LIMIT_SECONDS if cfg.minutes is None else min(LIMIT_SECONDS, LIMIT_SHARE * 60 * cfg.minutes)
    first = next((name for name in (cfg.reference, *cfg.arms) if is_tuned(cfg, Cell(name, None))), cfg.arms[0])
    request = Request(
        arms={name: (job.recipe, job.arguments()) for name, job in jobs.items()},
        first=first,
        shared_threads=threads_of_run(shared),
        limit_seconds=limit,
        spawned=time.time(),
    )
    began = time.perf_counter()
    measured, load = _timed(request, child_environment(gpus[0] if gpus else None, threads_of_run(1)), folder)
    timing = {
        "measured": measured,
        "devices": max(1, len(gpus)),
        "shared": shared,
        "seconds": time.perf_counter() - began,
        "other_cpus": load["other_cpus"],
        "busy": bool(load["busy"]),
    }
    write_atomically(folder / TIMING, json.dumps({"about": about} | timing, indent=1) + "\n")
    return _from_json(timing)


def _timed(request: Request, environment: dict[str, str], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time the arms in a fresh process, and return the measured costs and the load of the machine."""
    asked, written, log = (folder / name for name in ("timing-request.json", "timing-result.json", "timing.log"))
    folder.mkdir(parents=True, exist_ok=True)
    written.unlink(missing_ok=True)
    write_atomically(asked, json.dumps(asdict(request)))
    command = python_command(["-m", "peft_audio.comparison.timing", str(asked), str(written)])
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            load = wait_and_measure(child, threads_of_run(1))
        except BaseException:
            end_processes([child.pid])
            raise
    if child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise UserError(f"the arms cannot be timed: {lines[-1] if lines else f'exit code {child.returncode}'}")
    measured = read_json(written)
    for path in (asked, written):
        path.unlink()
    return measured, load


def _stored(path: Path, about: dict[str, Any]) -> Timing | None:
    """Read an earlier timing of the same arms with the same settings; None if there is none."""
    stored = read_json(path)
    of_arms = stored.get("about", {})
    if not about or any(of_arms.get(name) != facts for name, facts in about.items()):
        return None
    return _from_json(stored)


def _from_json(stored: dict[str, Any]) -> Timing:
    measured = dict(stored["measured"])
    measured["arms"] = {name: ArmTiming(**arm) for name, arm in measured["arms"].items()}
    rest = {field.name: stored[field.name] for field in fields(Timing) if field.name != "measured"}
    return Timing(Measured(**measured), **rest)


def share_of_clips(cfg: CompareRecipe, timing: Timing) -> float:
    """Return the share of the timed training clips that the comparison trains on."""
    most = cfg.data.max_train_clips
    return 1.0 if most is None else min(1.0, most / timing.measured.recordings)


def steps_and_epochs(cfg: CompareRecipe, timing: Timing, arm: str) -> tuple[int, int]:
    """Count the optimizer steps of a run, and the epochs that they make."""
    of_arm = timing.measured.arms[arm]
    per_epoch = max(1, math.ceil(of_arm.steps_per_epoch * share_of_clips(cfg, timing)))
    if cfg.train_seconds is not None:
        steps = steps_for_seconds(cfg, timing)[arm]
    else:
        steps = min(per_epoch * cfg.train.epochs, cfg.train.max_steps or sys.maxsize)
    return steps, math.ceil(steps / per_epoch)


def steps_for_seconds(cfg: CompareRecipe, timing: Timing) -> dict[str, int]:
    """Count the optimizer steps of each arm that fit into `cfg.train_seconds`.

    The time to fill the feature cache counts in full in each run.

    Raises:
        UserError: An arm needs all of the time for its feature cache.
    """
    steps = {}
    for name in cfg.arms:
        of_arm = timing.measured.arms[name]
        if cfg.train_seconds is None or not of_arm.step_seconds:
            continue
        once = _fill_seconds(cfg, timing, name)
        if cfg.train_seconds <= once:
            raise UserError(
                f"--train_seconds: got {cfg.train_seconds:g}, must be more than {once:.1f}, which arm {name} needs "
                "before its first step. Raise it, or try --prefix_cache.use never."
            )
        steps[name] = max(1, round((cfg.train_seconds - once) / of_arm.step_seconds))
    return steps


def _clips(cfg: CompareRecipe, timing: Timing, split: str) -> float:
    count = timing.measured.clips[split]
    return count * share_of_clips(cfg, timing) if split == "train" else count


def _fill_seconds(cfg: CompareRecipe, timing: Timing, arm: str) -> float:
    """Return the time to fill the feature cache of an arm."""
    of_arm = timing.measured.arms[arm]
    clips = _clips(cfg, timing, "validation") + (_clips(cfg, timing, "train") if of_arm.caches_training else 0)
    return of_arm.fill_seconds * clips


def run_seconds(cfg: CompareRecipe, timing: Timing, arm: str, final: bool, shared: bool = False) -> float:
    """Estimate the time of one run that finds the feature cache filled.

    Args:
        cfg: comparison.
        timing: measured costs.
        arm: name of the arm.
        final: whether it is a final run, which evaluates more clips and verifies its adapter.
        shared: whether other runs share the CPUs.
    """
    measured, of_arm = timing.measured, timing.measured.arms[arm]
    network = is_tuned(cfg, Cell(arm, None))
    evaluated = _clips(cfg, timing, "validation")
    if final:
        evaluated += _clips(cfg, timing, "test")
        evaluated += _clips(cfg, timing, "train") if cfg.train.evaluate_train else 0
    scaled = evaluated * of_arm.evaluation_seconds
    fixed = measured.start_seconds + measured.scan_seconds + of_arm.fixed_seconds
    if network:
        steps, epochs = steps_and_epochs(cfg, timing, arm)
        scaled += steps * of_arm.step_seconds + epochs * _clips(cfg, timing, "validation") * of_arm.validation_seconds
        fixed += measured.first_seconds + (measured.verify_seconds if final else 0.0)
    else:
        scaled += of_arm.fit_seconds * _clips(cfg, timing, "train")
    return fixed + scaled * (of_arm.slowdown if shared else 1.0)


def duration(cfg: CompareRecipe, timing: Timing, least: bool = False) -> float:
    """Estimate the time of a whole comparison, with runs side by side as `compare` starts them.

    Args:
        cfg: comparison.
        timing: measured costs of its arms.
        least: leave out the extra trials, which only happen while a best rate is at the edge.
    """
    every, filled = cells(cfg), set[str]()
    tuned = [cell for cell in every if is_tuned(cfg, cell)]
    others = [cell for cell in every if not is_tuned(cfg, cell)]
    total = timing.measured.start_seconds  # of the comparison itself

    def phase(runs: Sequence[Cell], final: bool, costs_count: bool) -> float:
        count = cfg.jobs or (timing.devices if costs_count else timing.shared)
        seconds = []
        for cell in runs:
            spent = run_seconds(cfg, timing, cell.arm, final, shared=count > timing.devices)
            cached = timing.measured.arms[cell.arm].cached
            if cached and cached not in filled:
                filled.add(cached)
                spent += _fill_seconds(cfg, timing, cell.arm)
            seconds.append(spent)
        return makespan(seconds, count)

    if cfg.trials > 1:
        rates = {cell: len(grid_of(cfg, cfg.all_arms()[cell.arm])) for cell in tuned}
        total += phase([cell for cell in tuned for _ in range(rates[cell] * cfg.tuning_seeds)], False, False)
        for _ in range(0 if least else cfg.extra_trials):
            total += phase([cell for cell in tuned for _ in range(cfg.tuning_seeds)], False, False)
    total += phase([*tuned, *others], True, True)
    return total + phase([cell for _ in range(cfg.seeds - 1) for cell in tuned], True, False)


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Return when the last of several runs ends, if each starts as soon as one of `at_once` places is free."""
    places = [0.0] * at_once
    for spent in seconds:
        heapq.heapreplace(places, places[0] + spent)
    return max(places)


def arm_plan(cfg: CompareRecipe, timing: Timing, name: str) -> ArmPlan:
    """Estimate what the runs of one arm will cost."""
    of_arm, folds = timing.measured.arms[name], cfg.folds or 1
    tuned = is_tuned(cfg, Cell(name, None))
    least = len(grid_of(cfg, cfg.all_arms()[name])) if tuned and cfg.trials > 1 else 0
    most = least + cfg.extra_trials if least else 0
    least_runs, most_runs = (count * cfg.tuning_seeds * folds for count in (least, most))
    final_runs = folds * (cfg.seeds if tuned else 1)
    tuning, final = (run_seconds(cfg, timing, name, final) for final in (False, True))
    if tuned:
        steps, _ = steps_and_epochs(cfg, timing, name)
        train = steps * of_arm.step_seconds + _fill_seconds(cfg, timing, name)
    else:
        train = of_arm.fit_seconds * _clips(cfg, timing, "train")
    return ArmPlan(
        name=name,
        num_trainable_params=of_arm.trainable_parameters,
        file_size=of_arm.adapter_bytes,
        accelerator_memory_max=of_arm.peak_memory_bytes,
        train_time=train,
        total_time=final,
        tuning_time=tuning,
        runs=(least_runs, most_runs, final_runs),
        seconds=(least_runs * tuning + final_runs * final, most_runs * tuning + final_runs * final),
    )


def print_plan(planned: Plan, minutes: float | None, console: Console) -> None:
    """Print whether the result can be ranked, the cut settings, a row per arm, and the total."""

    def show(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    show(verdict(planned))
    if planned.settings:
        show(f"to fit into {minutes:g} minutes: {as_flags(planned.settings)}")
    if planned.rank_minutes is not None:
        show(f"a comparison that can be ranked would take about {math.ceil(planned.rank_minutes)} minutes")
    if planned.fits is False:
        show(f"nothing more can be cut: the comparison takes longer than {minutes:g} minutes")
    title = "Estimated costs, from a few steps of each arm"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # Names of usual length stay in one line; longer ones are folded, not cut.
    table.add_column("arm", min_width=min(20, max(len(arm.name) for arm in planned.arms)), overflow="fold")
    for name in ("trained", "saved, kB", "memory, MiB", "a run, s", "tuning runs", "final runs", "in all, min"):
        table.add_column(name, justify="right", no_wrap=name == "trained", overflow="fold")
    for arm in planned.arms:
        least, most, final = arm.runs
        table.add_row(
            arm.name,
            f"{arm.num_trainable_params:,}",
            f"{arm.file_size / 1000:,.0f}",
            f"{arm.accelerator_memory_max / 2**20:,.0f}",
            f"{arm.total_time:.0f}",
            f"{least}" if least == most else f"{least} to {most}",
            f"{final}",
            _minutes(arm.seconds),
        )
    console.print(table)
    runs = [sum(arm.runs[i] + arm.runs[2] for arm in planned.arms) for i in (0, 1)]
    count = f"{runs[0]}" if runs[0] == runs[1] else f"{runs[0]} to {runs[1]}"
    side = f", up to {planned.at_once} runs side by side" if planned.at_once > 1 else ", one run after the other"
    show(f"{count} runs, {_minutes(planned.seconds)} min in all{side}")
    if planned.other_cpus is not None:
        show(
            f"warning: other programs kept {planned.other_cpus:.1f} CPUs busy during the timing; the comparison is "
            "faster on a quiet machine"
        )


def verdict(planned: Plan) -> str:
    """Return a sentence on whether the result of a comparison can be ranked."""
    if planned.unranked:
        return f"The result cannot be ranked: {'; '.join(planned.unranked)}."
    return "The result can be ranked."


def as_flags(settings: dict[str, Any]) -> str:
    """Write settings as flags of the command line."""
    return " ".join(
        f'--{name} "[{", ".join(value)}]"' if isinstance(value, list) else f"--{name} {in_words(value)}"
        for name, value in settings.items()
    )


def _minutes(seconds: tuple[float, float]) -> str:
    low, high = (f"{value / 60:.0f}" if value >= 570 else f"{value / 60:.1f}" for value in seconds)
    return low if low == high else f"{low} to {high}"
