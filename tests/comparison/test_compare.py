"""Rules, ranks and statistics of a comparison, on folders of runs as recipes leave them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from rich.console import Console
from scipy import stats
from sklearn.metrics import f1_score

from peft_audio.comparison.collect import read_comparison
from peft_audio.comparison.page import print_comparison, sections, to_markdown
from peft_audio.comparison.results import Comparison
from peft_audio.errors import UserError
from peft_audio.text import escape_markdown

LABELS = ("no", "yes")
CLIPS = 200
SEEDS = range(5)
RATES = {3e-4: 0.70, 1e-3: 0.80, 3e-3: 0.75}
REPORT = {
    "pretrained": True,
    "validation_accuracy": 0.8,
    "validation_macro_f1": 0.8,
    "validation_loss": 0.5,
    "train_accuracy": 0.95,
    "best_epoch": 1,
    "trainable_parameters": 100,
    "total_parameters": 1000,
    "adapter_bytes": 400,
    "train_seconds": 10.0,
    "total_seconds": 20.0,
    "samples_per_second": 50.0,
    "inference_seconds": 0.01,
    "peak_memory_bytes": 2**30,
    "encoder_drift": 0.0,
    "device": "cpu",
    "mixed_precision": "no",
    "train_clips": 400,
    "validation_clips": 100,
    "test_clips": CLIPS,
    "validation_is_test": False,
    "dataset_sha256": "d",
    "split_sha256": "s",
    "base_sha256": "b",
    "versions": {"torch": "2"},
}


def write_run(folder: Path, strategy: str, seed: int, rate: float, correct: np.ndarray | None, **changes: Any) -> None:
    """A finished run: a final one where it is told which test clips were labelled correctly."""
    folder.mkdir(parents=True)
    settings = {"train.seed": seed, "train.learning_rate": rate, "train.epochs": 8, "train.best_metric": "macro_f1"}
    settings |= {"data.source": "clips", "model.name": "encoder"}
    settings |= {name: changes.pop(name) for name in list(changes) if "." in name}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, part = name.partition(".")
        sections.setdefault(section, {})[part] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(sections))
    accuracy = None if correct is None else float(correct.mean())
    report = REPORT | {"strategy": strategy, "seed": seed, "test_accuracy": accuracy} | changes
    (folder / "report.json").write_text(json.dumps(report))
    lines = [
        {"step": 1, "loss": 1.0},
        {"epoch": 1, "train_loss": 1.0, "validation_loss": 0.5, "validation_accuracy": 0.8},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if correct is None:
        return
    truth = np.arange(len(correct)) % 2
    yes = np.where(correct == 1, truth, 1 - truth)
    table = {
        "id": [f"clip{i:04}" for i in range(len(correct))],
        "group": [f"speaker{i % 10}" for i in range(len(correct))],
        "split": "test",
        "label": [LABELS[label] for label in truth],
        "probability_no": 1.0 - yes,
        "probability_yes": yes * 1.0,
    }
    pd.DataFrame(table).to_parquet(folder / "predictions.parquet")


def correct_clips(accuracy: float, seed: int) -> np.ndarray:
    """Which clips are correct: each with the same probability."""
    return (np.random.default_rng(seed).random(CLIPS) < accuracy).astype(int)


def write_arm(folder: Path, strategy: str, accuracy: float, draw: int = 0, **changes: Any) -> None:
    """Three tuning runs of which 1e-3 is best, and five final ones with that rate."""
    for rate, score in RATES.items():
        place = folder / strategy / f"tuning{rate:g}"
        write_run(place, strategy, 1000, rate, None, **{"validation_macro_f1": score} | changes)
    for seed in SEEDS:
        place = folder / strategy / f"final{seed}"
        write_run(place, strategy, seed, 1e-3, correct_clips(accuracy, draw + seed), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LoRA, head-only and full fine-tuning under equal conditions."""
    write_arm(tmp_path, "full", 0.9, trainable_parameters=1000)
    write_arm(tmp_path, "lora", 0.88, draw=100)
    write_arm(tmp_path, "head_only", 0.6, draw=200, trainable_parameters=10)
    return tmp_path


def by_name(comparison: Comparison) -> dict[str, Any]:
    return {arm.name: arm for arm in comparison.arms}


def test_equal_conditions_are_ranked(folder: Path) -> None:
    comparison = read_comparison([folder])
    assert comparison.broken_rules == ()
    arms = by_name(comparison)
    assert {name: arm.rank for name, arm in arms.items()} == {"full": 1, "lora": 2, "head_only": 3}
    values = [float(correct_clips(0.9, seed).mean()) for seed in SEEDS]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    measured = arms["full"].test_accuracy
    assert measured.values == pytest.approx(values)
    assert (measured.interval.low, measured.interval.high) == pytest.approx((low, high))
    truth = np.arange(CLIPS) % 2
    found = [np.where(correct_clips(0.9, seed) == 1, truth, 1 - truth) for seed in SEEDS]
    assert arms["full"].test_macro_f1.values == pytest.approx(
        [f1_score(truth, said, average="macro") for said in found]
    )
    assert arms["lora"].learning_rates == (1e-3,)
    assert [(trial.learning_rate, trial.chosen) for trial in arms["lora"].trials] == [
        (3e-4, False),
        (1e-3, True),
        (3e-3, False),
    ]
    assert arms["full"].gap == pytest.approx(0.15)
    assert arms["full"].front == ("num_trainable_params",)
    assert arms["head_only"].difference.high < -0.2
    assert arms["head_only"].p_holm < 0.05
    assert "1/100 of its trained parameters" in arms["head_only"].claim
    assert (comparison.groups, comparison.conditional) == (10, False)


def test_results_have_the_fields_that_peft_reads(folder: Path) -> None:
    """Those that `preprocess` in PEFT's method_comparison/processing.py takes from a result."""
    result = read_comparison([folder]).results[0]
    run, trained, meta = result["run_info"], result["train_info"], result["meta_info"]
    assert {"peft_config", "experiment_name", "train_config", "total_time", "peft_branch", "created_at"} <= run.keys()
    assert "model_id" in run["train_config"]
    memory = {f"accelerator_memory_{part}" for part in ("reserved_avg", "max", "reserved_99th")}
    assert {"status", "train_time", "file_size", "metrics", *memory} <= trained.keys()
    assert {"test accuracy", "train loss", "train samples", "train total tokens"} <= trained["metrics"][-1].keys()
    packages = {f"{name}-version" for name in ("peft", "transformers", "datasets", "torch", "bitsandbytes")}
    assert packages <= meta["package_info"].keys() and "system_info" in meta


def test_one_method_under_two_names_is_not_told_apart(tmp_path: Path) -> None:
    write_arm(tmp_path, "full", 0.85)
    write_arm(tmp_path, "lora", 0.85, draw=50)
    arm = by_name(read_comparison([tmp_path]))["lora"]
    assert arm.difference.low < 0 < arm.difference.high
    assert arm.p_holm > 0.05


def rewrite(folder: Path, name: str, **changes: Any) -> None:
    """Change what some reports say."""
    for path in folder.glob(f"{name}/report.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove(folder: Path, name: str) -> None:
    for path in sorted((folder / name).glob("*")):
        path.unlink()
    (folder / name).rmdir()


def rig_setting(folder: Path, name: str, section: str, **changes: Any) -> None:
    for path in folder.glob(f"{name}/config.yaml"):
        content = yaml.safe_load(path.read_text())
        content[section] |= changes
        path.write_text(yaml.safe_dump(content))


def forget_tuning(folder: Path) -> None:
    for path in folder.glob("*/tuning*"):
        remove(folder, path.relative_to(folder).as_posix())


def rig_folds(folder: Path) -> None:
    """Rates tried without folds, final runs with one."""
    rig_setting(folder, "*/final*", "data", fold=1)


RIGGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "fewer trials": (lambda folder: remove(folder, "lora/tuning0.003"), "different numbers of learning rate trials"),
    "another split": (lambda folder: rewrite(folder, "lora/*", split_sha256="t"), "different data or splits"),
    "other data": (lambda folder: rewrite(folder, "lora/*", dataset_sha256="t"), "different data or splits"),
    "tuned on another split": (lambda folder: rewrite(folder, "*/tun*", split_sha256="t"), "runs of one fold are of"),
    "data that changed half-way": (lambda folder: rewrite(folder, "*/final4", dataset_sha256="t"), "runs of one fold"),
    "tuned elsewhere": (rig_folds, "no rate was tried on the validation clips of fold 1"),
    "chosen on the test clips": (
        lambda folder: rewrite(folder, "lora/*", validation_is_test=True),
        "chosen on the test",
    ),
    "a rate of its own": (
        lambda folder: rig_setting(folder, "lora/final*", "train", learning_rate=3e-3),
        "final runs use rate 0.003, validation chose 0.001",
    ),
    "more epochs": (lambda folder: rig_setting(folder, "lora/*", "train", epochs=16), "different train.epochs"),
    "more windows": (lambda folder: rig_setting(folder, "lora/*", "data", window_seconds=0.2), "data.window_seconds"),
    "chosen otherwise": (
        lambda folder: rig_setting(folder, "lora/*", "train", best_metric="loss"),
        "train.best_metric",
    ),
    "fewer seeds": (lambda folder: remove(folder, "lora/final4"), "lora: only 4 of at least 5 final seeds"),
    "other seeds": (lambda folder: rewrite(folder, "lora/final4", seed=9), "different final seeds"),
    "seeds of the tuning": (lambda folder: rewrite(folder, "*/final4", seed=1000), "served for tuning"),
    "frozen weights moved": (lambda folder: rewrite(folder, "lora/final3", encoder_drift=1e-7), "changed by 1e-07"),
    "frozen weights are no numbers": (lambda folder: rewrite(folder, "lora/final3", encoder_drift=np.nan), "by nan"),
    "nobody looked at frozen weights": (lambda folder: rewrite(folder, "lora/final3", encoder_drift=None), "by None"),
    "no tuning": (forget_tuning, "no arm's learning rate was chosen on validation"),
}


@pytest.mark.parametrize("case", RIGGED)
def test_nothing_is_ranked_where_a_rule_is_broken(folder: Path, case: str) -> None:
    rig, said = RIGGED[case]
    rig(folder)
    comparison = read_comparison([folder])
    assert any(said in rule for rule in comparison.broken_rules), comparison.broken_rules
    assert all(arm.rank is None and arm.claim is None and not arm.front for arm in comparison.arms)


def test_a_tuning_run_that_read_the_test_split_breaks_a_rule(folder: Path) -> None:
    """In a comparison's own folder the launcher says what a run was for."""
    for path in folder.glob("lora/*"):
        start = {"arm": "lora", "phase": "tuning" if "tuning" in path.name else "final", "exit_code": 0}
        path.with_name(path.name + ".json").write_text(json.dumps(start))
    rewrite(folder, "lora/tuning*", test_accuracy=0.9)
    assert any("tuning runs read the test split" in rule for rule in read_comparison([folder]).broken_rules)


@pytest.mark.parametrize("name", ["dataset_sha256", "split_sha256"])
def test_arms_on_other_data_or_splits_are_never_paired(folder: Path, name: str) -> None:
    rewrite(folder, "lora/*", **{name: "t"})
    assert by_name(read_comparison([folder]))["lora"].difference is None


def test_a_control_cannot_be_the_reference_that_escapes_the_rules(folder: Path) -> None:
    for seed in SEEDS[:2]:
        write_run(folder / "control" / str(seed), "log_mel", seed, 1e-3, correct_clips(0.4, seed), pretrained=False)
    comparison = read_comparison([folder], reference="log_mel")
    assert any("log_mel: only 2 of at least 5" in rule for rule in comparison.broken_rules)


def test_a_run_that_failed_again_does_not_count_by_its_old_report(folder: Path) -> None:
    record = {"arm": "lora", "phase": "final", "flags": {}, "exit_code": 1, "last_lines": "out of memory"}
    (folder / "lora" / "final4.json").write_text(json.dumps(record))
    comparison = read_comparison([folder])
    assert by_name(comparison)["lora"].failures[0].last_lines == "out of memory"
    assert "lora: 1 of its runs failed." in comparison.broken_rules


def test_seeds_without_all_folds_are_left_out(tmp_path: Path) -> None:
    for fold in (0, 1):
        write_arm(tmp_path / f"fold{fold}", "full", 0.9, draw=fold, **{"data.fold": fold}, split_sha256=f"s{fold}")
    remove(tmp_path, "fold1/full/final4")
    (arm,) = read_comparison([tmp_path]).arms
    assert arm.seeds == (0, 1, 2, 3)
    pooled = [np.concatenate([correct_clips(0.9, fold + seed) for fold in (0, 1)]).mean() for seed in arm.seeds]
    assert arm.test_accuracy.values == pytest.approx(pooled)


def test_arms_on_other_clips_are_never_paired(folder: Path) -> None:
    for seed in SEEDS:
        path = folder / "lora" / f"final{seed}" / "predictions.parquet"
        table = pd.read_parquet(path)
        table["id"] = "other" + table["id"]
        table.to_parquet(path)
    assert by_name(read_comparison([folder]))["lora"].difference is None


def test_controls_are_not_ranked_and_not_held_to_the_rules(folder: Path) -> None:
    for seed in SEEDS[:2]:
        write_run(folder / "control" / str(seed), "log_mel", seed, 1e-3, correct_clips(0.4, seed), pretrained=False)
    comparison = read_comparison([folder])
    assert comparison.broken_rules == ()
    assert by_name(comparison)["log_mel"].rank is None
    assert comparison.arms[-1].name == "log_mel"


def test_settings_tell_arms_of_one_strategy_apart(tmp_path: Path) -> None:
    write_arm(tmp_path / "a", "lora", 0.9, **{"lora.r": 8})
    write_arm(tmp_path / "b", "lora", 0.8, draw=9, **{"lora.r": 2})
    names = {arm.name for arm in read_comparison([tmp_path / "a", tmp_path / "b"]).arms}
    assert names == {"lora (lora.r 2)", "lora (lora.r 8)"}


def test_predictions_that_contradict_their_report_are_refused(folder: Path) -> None:
    rewrite(folder, "lora/final0", test_accuracy=0.99)
    with pytest.raises(UserError, match=r"predictions.parquet gives a test accuracy of .* has 0.9900"):
        read_comparison([folder])


@pytest.mark.parametrize("name", ["report.json", "config.yaml", "predictions.parquet"])
def test_a_damaged_run_is_named(folder: Path, name: str) -> None:
    (folder / "lora" / "final0" / name).write_text("{")
    with pytest.raises(UserError, match=rf"lora/final0/{name}"):
        read_comparison([folder])


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hold no report\.json"):
        read_comparison([tmp_path])


def test_times_of_runs_that_shared_their_device_are_left_out(folder: Path) -> None:
    """Runs that nobody launched for a comparison may have had company."""
    arm = by_name(read_comparison([folder]))["lora"]
    assert arm.train_time is None
    for seed in SEEDS:
        start = {"arm": "lora", "phase": "final", "alone": True}
        (folder / "lora" / f"final{seed}.json").write_text(json.dumps(start))
    assert by_name(read_comparison([folder]))["lora"].train_time == 10.0


def start(folder: Path, name: str, **record: Any) -> None:
    """Write how a final run was started and what its launcher measured."""
    (folder / "lora" / f"{name}.json").write_text(json.dumps({"arm": "lora", "phase": "final"} | record))


def test_costs_of_a_busy_machine_are_marked(folder: Path) -> None:
    for seed in SEEDS:
        start(folder, f"final{seed}", alone=True, busy=True, other_cpus=1.5)
    comparison = read_comparison([folder])
    arm = by_name(comparison)["lora"]
    assert (arm.train_time, arm.other_cpus) == (10.0, 1.5)
    (note,) = [note for note in comparison.notes if "busy" in note]
    assert note.startswith("times of lora (1.5 CPUs) were measured on a busy machine")
    (costs,) = [section for section in sections(comparison) if section.title == "Costs"]
    (row,) = [row for row in costs.rows if row[0] == "lora"]
    assert row[3:] == ("1,024", "10.0*", "20.0*", "50.0*", "10.0*")
    assert any(line.startswith("*: measured on a busy machine") for line in costs.lines)


def test_costs_come_from_quiet_runs_where_there_are_any(folder: Path) -> None:
    rewrite(folder, "lora/final0", train_seconds=63.0)
    rewrite(folder, "lora/final1", train_seconds=5.0)
    start(folder, "final0", alone=True, busy=True, other_cpus=1.5)
    start(folder, "final1", alone=True, busy=False, other_cpus=0.1)
    arm = by_name(read_comparison([folder]))["lora"]
    assert (arm.train_time, arm.other_cpus) == (5.0, None)


def test_the_note_on_missing_costs_names_arms_and_columns(folder: Path) -> None:
    start(folder, "final0", alone=True)
    rewrite(folder, "lora/final0", peak_memory_bytes=None)
    notes = [note for note in read_comparison([folder]).notes if note.startswith("missing costs")]
    whole = "peak memory, MiB, training, s, whole run, s, clips/s, inference, ms/clip"
    assert [note.split(". ")[0] for note in notes] == [
        f"missing costs of full, head_only: {whole}",
        "missing costs of lora: peak memory, MiB",
    ]


UNBALANCED = np.arange(CLIPS) % 25 < 4  # 16% of the clips are "yes"


def write_answers(run: Path, yes: np.ndarray, truth: np.ndarray = UNBALANCED) -> None:
    """Replace what a final run answered, and which clips there are."""
    path = run / "predictions.parquet"
    table = pd.read_parquet(path)
    table["label"] = np.where(truth, "yes", "no")
    table["probability_yes"], table["probability_no"] = yes * 1.0, 1.0 - yes
    table.to_parquet(path)
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"test_accuracy": float((yes == truth).mean())}))


def write_unbalanced(folder: Path, **answers: Callable[[np.random.Generator], np.ndarray]) -> None:
    """Write five final runs of each arm on unbalanced classes; each arm gives its answers."""
    for number, (name, answer) in enumerate(answers.items()):
        if name == "log_mel":
            write_run(folder / name / "final0", name, 0, 1e-3, np.zeros(CLIPS), pretrained=False)
        else:
            write_arm(folder, name, 0.5)
        for seed, run in enumerate(sorted((folder / name).glob("final*"))):
            write_answers(run, answer(np.random.default_rng([number, seed])))


def never(rng: np.random.Generator) -> np.ndarray:
    return np.zeros(CLIPS, dtype=bool)


def learner(recall: float, alarms: float) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda rng: rng.random(CLIPS) < np.where(UNBALANCED, recall, alarms)


def test_an_arm_that_always_answers_the_largest_class_is_below_the_line(tmp_path: Path) -> None:
    write_unbalanced(tmp_path, full=learner(0.6, 0.12), head_only=never, lora=learner(0.8, 0.05))
    comparison = read_comparison([tmp_path])
    arms = by_name(comparison)
    assert not comparison.broken_rules and comparison.metric == "macro_f1" and comparison.majority == "no"
    assert [arm.name for arm in comparison.arms] == ["lora", "full", "head_only"]
    assert {name: arm.rank for name, arm in arms.items()} == {"lora": 1, "full": 2, "head_only": None}
    # By accuracy it would have been second, before full.
    assert arms["full"].test_accuracy.interval.mean < 0.84 and arms["head_only"].test_accuracy.values == (0.84,) * 5
    assert arms["head_only"].test_balanced_accuracy.values == (0.5,) * 5
    assert arms["head_only"].claim is None and arms["head_only"].front == () and arms["lora"].claim is not None
    assert arms["head_only"].recalls == (1.0, 0.0) and comparison.label_clips == (168, 32)
    said = "head_only is no better than always answering 'no': it gives this answer for every test clip."
    assert comparison.on_controls == (said,)
    markdown = to_markdown(comparison)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    line = next(i for i, row in enumerate(rows) if "no better than always answering 'no':" in row)
    assert "lora" in rows[line - 2] and "full" in rows[line - 1] and "head_only" in rows[line + 1]
    assert "84.0 (5 equal seeds)" in rows[line + 1] and "[84.0, 84.0]" not in markdown
    assert markdown.index(escape_markdown(said)) < markdown.index("- lora is ")
    with (console := Console(width=80, file=io.StringIO())).capture() as screen:
        print_comparison(comparison, [tmp_path / "comparison.md"], console)
    assert f"- {said}" in screen.get() and "answerin" not in screen.get().partition("What this shows")[0]


def test_accuracy_ranks_where_it_is_asked_for(tmp_path: Path) -> None:
    write_unbalanced(tmp_path, full=learner(0.6, 0.12), lora=learner(0.8, 0.05))
    assert by_name(read_comparison([tmp_path]))["full"].rank == 2
    comparison = read_comparison([tmp_path], metric="accuracy")
    full = by_name(comparison)["full"]
    assert full.rank is None and full.against_majority.difference.estimate == pytest.approx(
        full.test_accuracy.interval.mean - 0.84
    )
    assert comparison.on_controls[0].startswith("full is no better than always answering 'no' (accuracy; 95% interval")
    assert "full is the reference, so nothing is claimed about the other arms." in comparison.on_controls
    assert all(arm.claim is None for arm in comparison.arms)
    assert any("arms are ranked by test accuracy" in note for note in comparison.notes)


def test_guesses_in_the_proportion_of_the_classes_are_not_better_than_the_majority(tmp_path: Path) -> None:
    """Their macro-F1 is surely above that of one answer, because they reach every class."""
    write_unbalanced(tmp_path, full=learner(0.8, 0.05), lora=never)
    for number, run in enumerate(tmp_path.glob("*/final*")):
        table = pd.concat([pd.read_parquet(run / "predictions.parquet")] * 8)
        table["id"] = [f"clip{i:04}" for i in range(len(table))]
        table.to_parquet(run / "predictions.parquet")
        if run.parent.name == "lora":
            guesses = np.random.default_rng(number).random(len(table)) < 0.16
            write_answers(run, guesses, np.tile(UNBALANCED, 8))
    lora = by_name(read_comparison([tmp_path]))["lora"]
    assert lora.against_majority.difference.low > 0
    assert not lora.against_majority.better and lora.rank is None


def test_a_reference_that_learned_nothing_ends_all_claims(tmp_path: Path) -> None:
    write_unbalanced(tmp_path, full=never, lora=learner(0.8, 0.05))
    comparison = read_comparison([tmp_path])
    assert all(arm.claim is None for arm in comparison.arms) and by_name(comparison)["lora"].rank == 1
    assert comparison.on_controls == (
        "full is no better than always answering 'no': it gives this answer for every test clip.",
        "full is the reference, so nothing is claimed about the other arms.",
    )


def test_an_arm_that_is_not_better_than_log_mel_says_so_first(tmp_path: Path) -> None:
    arms = {"full": learner(0.95, 0.01), "lora": learner(0.8, 0.05), "log_mel": learner(0.82, 0.05)}
    write_unbalanced(tmp_path, **arms)
    comparison = read_comparison([tmp_path])
    full, lora = (by_name(comparison)[name] for name in ("full", "lora"))
    assert full.against_log_mel.better and not lora.against_log_mel.better and lora.rank == 2
    assert lora.claim.startswith("lora is no better than log_mel, a linear classifier on mean spectra") and (
        ". lora is " in lora.claim and "worse than full (macro-F1; 95% interval" in lora.claim
    )
    assert comparison.on_controls == ("Every arm is better than always answering 'no' (macro-F1).",)


def test_a_perfect_arm_is_better_than_the_controls(tmp_path: Path) -> None:
    """Its difference in balanced accuracy is the same in every draw, so it has no interval."""
    arms = {"full": lambda rng: UNBALANCED, "lora": learner(0.8, 0.05), "log_mel": never}
    write_unbalanced(tmp_path, **arms)
    for metric in ("macro_f1", "balanced_accuracy"):
        full = by_name(read_comparison([tmp_path], metric=metric))["full"]
        assert full.rank == 1 and full.against_majority.better and full.against_log_mel.better
    assert np.isnan(full.against_majority.difference.low) and full.against_majority.difference.estimate == 0.5


def write_rare(folder: Path, truth: np.ndarray, groups: int, alarms: int, missed: int = 0) -> None:
    """Write three arms on a rare class: one with a few errors, a constant one, and one that answers at random."""
    for name in ("full", "lora", "head_only"):
        write_arm(folder, name, 0.5)
        for seed, run in enumerate(sorted((folder / name).glob("final*"))):
            wrong = np.concatenate([np.flatnonzero(~truth)[:alarms], np.flatnonzero(truth)[:missed]])
            yes = {"full": truth.copy(), "lora": np.zeros(len(truth), bool), "head_only": np.roll(truth, 7 + seed)}[
                name
            ]
            if name == "full":
                yes[wrong] = ~yes[wrong]
            table = pd.read_parquet(run / "predictions.parquet").iloc[: len(truth)]
            table["group"] = [f"speaker{i % groups}" if groups else None for i in range(len(truth))]
            table.to_parquet(run / "predictions.parquet")
            write_answers(run, yes, truth)


@pytest.mark.parametrize(
    ("truth", "groups", "alarms", "missed"),
    [
        pytest.param(np.arange(100) % 34 == 5, 0, 2, 0, id="3 of 100 clips"),
        pytest.param(np.arange(200) % 20 < 3, 20, 1, 1, id="3 of 20 groups"),
    ],
)
def test_draws_keep_the_rare_class(tmp_path: Path, truth: np.ndarray, groups: int, alarms: int, missed: int) -> None:
    """Without the rare class, the majority's answers would all be right."""
    assert truth.sum() == (30 if groups else 3)
    write_rare(tmp_path, truth, groups, alarms, missed)
    comparison = read_comparison([tmp_path])
    assert {arm.name for arm in comparison.arms if not arm.useless} == {"full"}
    assert by_name(comparison)["lora"].against_majority.constant
    assert by_name(comparison)["full"].against_majority.difference.groups == (groups or None)


def test_a_class_with_one_clip_is_named(tmp_path: Path) -> None:
    truth = np.arange(100) == 50
    write_rare(tmp_path, truth, 0, 2)
    comparison = read_comparison([tmp_path])
    assert comparison.on_controls[0] == "'yes' has 1 test clip: intervals of macro-F1 are not reliable."
    for run in tmp_path.glob("full/final[012]"):
        write_answers(run, np.zeros(100, bool), truth)
    comparison = read_comparison([tmp_path])
    assert by_name(comparison)["full"].rank is None
    said = "full cannot be shown to be better than always answering 'no': 'yes' has 1 test clip, so the interval is not"
    assert any(text.startswith(said) for text in comparison.on_controls)
    truth = np.arange(200) % 20 < 1
    write_rare(tmp_path / "groups", truth, 20, 0, 1)
    said = "'yes' has 1 test group: intervals of macro-F1 are not reliable."
    assert read_comparison([tmp_path / "groups"]).on_controls[0] == said


def test_the_largest_class_is_that_of_the_training_clips(tmp_path: Path) -> None:
    write_unbalanced(tmp_path, full=learner(0.8, 0.05), lora=learner(0.7, 0.05))
    assert read_comparison([tmp_path]).majority == "no"
    for run in tmp_path.glob("*/final*"):
        rows = {"label": ["yes"] * 5 + ["no"] * 9, "split": ["train"] * 6 + ["validation"] * 8}
        pd.DataFrame(rows).to_parquet(run / "splits.parquet")
    assert read_comparison([tmp_path]).majority == "yes"
    # Drawn training clips are balanced and do not show which class is largest.
    rig_setting(tmp_path, "*/*", "data", max_train_clips=6)
    comparison = read_comparison([tmp_path])
    drawn = "the largest class is that of the drawn training clips (data.max_train_clips) and the"
    assert comparison.majority == "no" and f"{drawn} validation clips." in comparison.notes
    rig_setting(tmp_path, "*/*", "data", validate_on_test=True)
    assert f"{drawn} test clips (data.validate_on_test)." in read_comparison([tmp_path]).notes
    # The arm of this control has counted all training clips.
    write_run(tmp_path / "majority" / "final0", "majority", 0, 1e-3, np.zeros(CLIPS), pretrained=False)
    write_answers(tmp_path / "majority" / "final0", np.ones(CLIPS, bool))
    comparison = read_comparison([tmp_path])
    assert comparison.majority == "yes" and not any("largest class" in note for note in comparison.notes)


def test_a_note_says_that_test_clips_decided_the_largest_class(tmp_path: Path) -> None:
    write_unbalanced(tmp_path, full=learner(0.8, 0.05))
    comparison = read_comparison([tmp_path])
    assert "the largest class is that of the test clips, because splits.parquet cannot be read." in comparison.notes
