"""Break the package in named ways, one at a time, and print which test notices each.

    python tests/mutations.py                      # all of them, about half an hour on two cores
    python tests/mutations.py "same crop"          # those whose name holds the words
    python tests/mutations.py --functions          # those of helpers/broken_functions.py only

Functions of helpers/broken_functions.py are replaced when the tests start. They are found by name, so they survive
moves of code, and the default run must notice them. The other mutations replace a piece of text in a copy of the
checkout; slow tests may notice them too. The exit code is 1 if a mutation was not caught, or no longer applies because
the code has changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from helpers.broken_functions import BROKEN, VARIABLE, Broken

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutation:
    """A fault: in which file what becomes what, and the test files that should notice."""

    name: str
    file: str
    before: str
    after: str
    tests: str


MUTATIONS = (
    Mutation(
        "group norm takes its statistics over the padding",
        "peft_audio/encoders/exact_padding.py",
        "if self.valid_frames is None:",
        "if True:",
        "tests/encoders/test_loading.py",
    ),
    Mutation(
        "gradient is the mean over a micro-batch, not over the step",
        "peft_audio/data/sampler.py",
        "float(self.clip_weights[i] / total)) for i in mine",
        "1 / len(mine)) for i in mine",
        "tests/data/test_loaders.py tests/training/test_loop.py",
    ),
    Mutation(
        "fp16 checkpoints stay fp16",
        "peft_audio/encoders/loading.py",
        '"revision": commit, "dtype": torch.float32}',
        '"revision": commit, "dtype": "auto"}',
        "tests/encoders/test_loading.py",
    ),
    Mutation(
        "predictions not put back in the order of the clips",
        "peft_audio/evaluation/run_split.py",
        'order = rows["index"].argsort()',
        'order = torch.arange(len(rows["index"]))',
        "tests/training/test_loop.py tests/recipes/test_recipes.py",
    ),
    Mutation(
        "another base accepted",
        "peft_audio/adapters/load.py",
        "if loaded.sha256 != record.base.sha256:",
        "if False:",
        "tests/adapters/test_load_and_save.py tests/inference/test_predict.py",
    ),
    Mutation(
        "verify passes a head that was never saved",
        "peft_audio/adapters/examine.py",
        "for name in fresh - shapes.keys())",
        "for name in fresh & set())",
        "tests/adapters/test_examine.py",
    ),
    Mutation(
        "the test split is read although it was not to be",
        "peft_audio/finetune.py",
        "if cfg.train.evaluate_test:",
        "if True:",
        "tests/recipes/test_recipes.py",
    ),
    Mutation(
        "mixture of layers trained and not saved",
        "peft_audio/strategies/base.py",
        "save_embedding_layers=False) | mixture",
        "save_embedding_layers=False)",
        "tests/encoders/test_families.py",
    ),
    Mutation(
        "mixture of layers left frozen by LoRA",
        "peft_audio/strategies/base.py",
        "        model.layer_weights.requires_grad_(True)",
        "        pass",
        "tests/encoders/test_families.py",
    ),
    Mutation(
        "WavLM's attention is transformers', which ignores LoRA",
        "peft_audio/encoders/wavlm.py",
        "        call_linear_layers(model)",
        "        pass",
        "tests/encoders/test_wavlm.py",
    ),
    Mutation(
        "an adapter of a quantised encoder is saved for the quantised one",
        "peft_audio/encoders/loading.py",
        'model = load_classifier(replace(cfg, quantization="none"), ["any", "other"])',
        "pass",
        "tests/encoders/test_quantization.py",
    ),
    Mutation(
        "a quantised encoder is what is measured and saved",
        "peft_audio/finetune.py",
        "model = on_float32_encoder(result.model, trained, cfg.model, splits.labels)",
        "model = result.model",
        "tests/recipes/test_recipes.py",
    ),
    Mutation(
        "what is reported was measured in 16 bits",
        "peft_audio/evaluation/run_split.py",
        "accelerator.autocast() if mixed_precision else nullcontext():",
        "accelerator.autocast():",
        "tests/recipes/test_recipes.py",
    ),
    Mutation(
        "every process draws the same dropout",
        "peft_audio/training/hardware.py",
        "torch.manual_seed(cfg.seed + accelerator.process_index)",
        "torch.manual_seed(cfg.seed)",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "DoRA without dropout",
        "peft_audio/strategies/base.py",
        'hasattr(module, "lora_dropout")',
        '"lora_dropout" in name.split(".")',
        "tests/strategies/test_strategies.py",
    ),
    Mutation(
        "only the first process says what went wrong",
        "peft_audio/config/parse.py",
        'f" (process {process}): {message.splitlines()[0]}"',
        "sys.exit(1)",
        "tests/recipes/test_recipes.py",
    ),
    Mutation(
        "class weights are not normalised over the step",
        "peft_audio/data/sampler.py",
        "total = self.clip_weights[step].sum()",
        "whole = len(step)",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "L1 shrinks biases and norms too",
        "peft_audio/training/optimizer.py",
        "matrix = weights[name].ndim > 1 and",
        "matrix = weights[name].ndim > 0 and",
        "tests/training/test_loop.py",
    ),
    Mutation(
        "a launcher's precision is overruled in silence",
        "peft_audio/training/hardware.py",
        'if launched not in ("no", precision):',
        "if False:",
        "tests/training/test_accelerator.py",
    ),
    Mutation(
        "a failing tracker stops the run",
        "peft_audio/training/tracking.py",
        "                self.trackers.remove(tracker)\n",
        "                raise\n",
        "tests/training/test_tracking.py",
    ),
    Mutation(
        "a class may be missing where it is in few groups",
        "peft_audio/data/divide.py",
        " + lacking.sum(axis=1) * table.sum()",
        "",
        "tests/data/test_divide.py",
    ),
    Mutation(
        "the end of a recording is in no window",
        "peft_audio/data/windows.py",
        "math.ceil(spare / (hop or window) - 1e-6) + 1",
        "math.floor(spare / (hop or window) + 1e-6) + 1",
        "tests/data/test_windows.py",
    ),
    Mutation(
        "each window counts as a recording",
        "peft_audio/evaluation/run_split.py",
        "    if len(firsts) < len(recordings):\n",
        "    if False:\n",
        "tests/data/test_windows.py",
    ),
    Mutation(
        "logits of windows are averaged instead of probabilities",
        "peft_audio/tasks/single_label.py",
        "logits.double().softmax(-1))",
        "logits.double().log_softmax(-1).exp().sqrt())",
        "tests/data/test_windows.py",
    ),
    Mutation(
        "a part of a recording is read to the recording's end",
        "peft_audio/data/dataset.py",
        "length = limit if to_end else min(limit, seconds)",
        "length = limit",
        "tests/data/test_manifest.py",
    ),
    Mutation(
        "channels that cancel each other are not silent",
        "peft_audio/data/scan.py",
        "mono = block.mean(axis=1)",
        "mono = block[:, 0]",
        "tests/checks/test_collection.py",
    ),
    Mutation(
        "silence is trained on",
        "peft_audio/audio/decoding.py",
        "SILENT_PEAK = 1e-4",
        "SILENT_PEAK = 0.0",
        "tests/checks/test_collection.py tests/data/test_splits.py",
    ),
    Mutation(
        "copies are looked for within a split only",
        "peft_audio/checks/collection.py",
        'splits, labels = set(members["split"]) - {""}, set(members["label"])',
        'splits, labels = set(members["split"][:1]) - {""}, set(members["label"])',
        "tests/checks/test_collection.py",
    ),
    Mutation(
        "batch_seconds forgets what padding adds",
        "peft_audio/data/sampler.py",
        "if batches and (len(batches[-1]) + 1) * longest <= batch_seconds:",
        "if batches and sum(lengths[batches[-1]]) + lengths[row] <= batch_seconds:",
        "tests/data/test_loaders.py",
    ),
    Mutation(
        "a stream begins anew after each validation",
        "peft_audio/data/streaming.py",
        "self.batches = iter(self.loader) if self.batches is None else self.batches",
        "self.batches = iter(self.loader)",
        "tests/data/test_streaming.py",
    ),
    Mutation(
        "attention heads are scored with what clips take from each other",
        "peft_audio/strategies/attention_heads.py",
        "gradients.abs().mean(0)",
        "gradients.mean(0).abs()",
        "tests/strategies/test_attention_heads.py",
    ),
    Mutation(
        "attention heads: the one-hot factor trains too",
        "peft_audio/strategies/attention_heads.py",
        "fixed.requires_grad_(False).copy_(value)",
        "fixed.data.copy_(value)",
        "tests/strategies/test_attention_heads.py",
    ),
    Mutation(
        "attention heads: the output projection's rows train, not its columns",
        "peft_audio/strategies/attention_heads.py",
        "(a, one_hot, b) if name == family.attention_paths[-1] else (b, one_hot.T, a)",
        "(b, one_hot.T, a)",
        "tests/strategies/test_attention_heads.py",
    ),
    Mutation(
        "comparison: times of runs that shared their device count",
        "peft_audio/comparison/arms.py",
        "for run in finals if run.alone]",
        "for run in finals]",
        "tests/comparison/test_compare.py",
    ),
    Mutation(
        "comparison: any rate passes for the one that validation chose",
        "peft_audio/comparison/rules.py",
        "elif rate != best_rate(scores):",
        "elif False:",
        "tests/comparison/test_compare.py",
    ),
    Mutation(
        "comparison: tuning runs may have other data",
        "peft_audio/comparison/rules.py",
        "every = {name: [*runs, *tuning.get(name, ())] for name, runs in finals.items()}",
        "every = dict(finals)",
        "tests/comparison/test_compare.py",
    ),
    Mutation(
        "comparison: arms on other splits are paired",
        "peft_audio/comparison/compare.py",
        "hashes(finals[name]) == hashes(finals[home])",
        "True",
        "tests/comparison/test_compare.py",
    ),
    Mutation(
        "comparison: broken rules do not keep arms from being ranked",
        "peft_audio/comparison/compare.py",
        "    if broken:\n        arms = [replace(",
        "    if False:\n        arms = [replace(",
        "tests/comparison/test_compare.py",
    ),
    Mutation(
        "comparison: tuning reads the test split",
        "peft_audio/comparison/tuning.py",
        '"train.evaluate_test": phase == "final"',
        '"train.evaluate_test": True',
        "tests/comparison/test_grid.py",
    ),
    Mutation(
        "comparison: final seeds are those of the tuning",
        "peft_audio/comparison/tuning.py",
        "FIRST_TUNING_SEED = 1000",
        "FIRST_TUNING_SEED = 0",
        "tests/comparison/test_grid.py",
    ),
    Mutation(
        "comparison: only the arm at its edge gets another trial",
        "peft_audio/comparison/tuning.py",
        "            tried[cell].append(next_rate(scores))\n",
        "            tried[cell] += [next_rate(scores)] * at_edge(scores)\n",
        "tests/comparison/test_grid.py",
    ),
    Mutation(
        "comparison: changed settings are taken for the same run",
        "peft_audio/comparison/jobs.py",
        "    return record if same else {}\n",
        "    return record\n",
        "tests/comparison/test_jobs.py",
    ),
    Mutation(
        "statistics: eight speakers are resampled as clips",
        "peft_audio/evaluation/significance.py",
        "return codes if count is not None and count >= MIN_GROUPS else np.arange(clips), count",
        "return np.arange(clips), count",
        "tests/evaluation/test_significance.py",
    ),
    Mutation(
        "prefix cache: position embeddings are added once more",
        "peft_audio/encoders/conv_prefix.py",
        "lambda hidden: hidden.new_zeros(())",
        "lambda hidden: hidden",
        "tests/feature_cache/test_cut.py",
    ),
    Mutation(
        "prefix cache: a key without the weights",
        "peft_audio/feature_cache/cache.py",
        '"weights": weights_sha256(prefix_weights(model, cut)),',
        '"weights": "",',
        "tests/feature_cache/test_cache.py",
    ),
    Mutation(
        "prefix cache: what is reused is not computed again",
        "peft_audio/feature_cache/fill.py",
        "    for clip in clips:\n        (now,)",
        "    for clip in clips[:0]:\n        (now,)",
        "tests/feature_cache/test_cache.py",
    ),
    Mutation(
        "prefix cache: no checksum",
        "peft_audio/feature_cache/store.py",
        'if zlib.crc32(stored) != place["crc32"]:',
        "if False:",
        "tests/feature_cache/test_cache.py",
    ),
    Mutation(
        "prefix cache: views are ignored without it",
        "peft_audio/data/dataset.py",
        "draw.epoch if self.views is None else (draw.epoch - 1) % self.views + 1",
        "draw.epoch",
        "tests/feature_cache/test_cache.py",
    ),
    Mutation(
        "prefix cache: a key that knows training's length for validation's",
        "peft_audio/feature_cache/fill.py",
        "limit = clips.view.cfg.max_seconds if views else clips.view.cfg.max_eval_seconds",
        "limit = clips.view.cfg.max_seconds",
        "tests/feature_cache/test_cache.py",
    ),
    Mutation(
        "precision: the float32 encoder is not given back",
        "peft_audio/training/frozen_weights.py",
        'if cfg.quantization == "none" and not low:',
        'if cfg.quantization == "none":',
        "tests/training/test_hardware.py",
    ),
    Mutation(
        "a run goes on on another kind of device",
        "peft_audio/runs/run.py",
        '        "device": accelerator.device.type,\n',
        "",
        "tests/training/test_resuming.py",
    ),
    Mutation(
        "random numbers are not put back when a run goes on",
        "peft_audio/training/checkpointing.py",
        '        _set_random_state(mine, state["random"][index], learner.accelerator)',
        "        pass",
        "tests/training/test_resuming.py",
    ),
    Mutation(
        "an epoch begins anew when a run goes on",
        "peft_audio/data/sampler.py",
        "self.epoch, self.first_step = epoch, step",
        "self.epoch, self.first_step = epoch, 0",
        "tests/training/test_resuming.py",
    ),
    Mutation(
        "the optimizer forgets its moments when a run goes on",
        "peft_audio/training/checkpointing.py",
        'optimizer.load_state_dict({"state": states, "param_groups": groups})',
        'optimizer.load_state_dict({"state": {}, "param_groups": groups})',
        "tests/training/test_resuming.py",
    ),
    Mutation(
        "starting to read draws from the generator of dropout",
        "peft_audio/data/loaders.py",
        '"persistent_workers": count > 0, "generator": own}',
        '"persistent_workers": count > 0}',
        "tests/training/test_resuming.py",
    ),
    Mutation(
        "weights that are not finite are saved",
        "peft_audio/training/checkpointing.py",
        'if not all(each["finite"] for each in of_all):',
        "if False:",
        "tests/training/test_resuming.py",
    ),
)


def main() -> int:
    """Print one row per mutation: name, first test that fails, seconds."""
    words = " ".join(word for word in sys.argv[1:] if word != "--functions")
    others = () if "--functions" in sys.argv else MUTATIONS
    chosen = [mutation for mutation in (*BROKEN, *others) if words in mutation.name]
    if not chosen:
        sys.exit(f"no mutation has {words!r} in its name")
    # A test that fails anyway would be taken for one that notices.
    tests = run_tests(ROOT, " ".join(sorted({test for mutation in chosen for test in mutation.tests.split()})))
    if tests.returncode:
        print(f"the tests fail without any mutation:\n{tests.stdout[-2000:]}")
        return 1
    missed = 0
    for mutation in chosen:
        began = time.monotonic()
        verdict = run(mutation)
        missed += not verdict.startswith("caught")
        print(f"| {mutation.name} | {verdict} | {time.monotonic() - began:.0f} |", flush=True)
    print(f"{missed} not caught" if missed else "all caught")
    return int(missed > 0)


@contextmanager
def copied() -> Iterator[Path]:
    """The checkout in a temporary folder."""
    ignored = shutil.ignore_patterns(".git", "runs", ".venv", "__pycache__", ".*_cache")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(ROOT, Path(folder) / "copy", ignore=ignored))


def run(mutation: Mutation | Broken) -> str:
    """Make the mutation, and run its tests."""
    if isinstance(mutation, Broken):
        return verdict_of(run_tests(ROOT, mutation.tests, {VARIABLE: mutation.name}))
    with copied() as copy:
        target = copy / mutation.file
        text = target.read_text(encoding="utf-8")
        if text.count(mutation.before) != 1:
            return f"NOT APPLICABLE: {mutation.before!r} is there {text.count(mutation.before)} times"
        target.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")
        return verdict_of(run_tests(copy, mutation.tests))


def verdict_of(tests: subprocess.CompletedProcess[str]) -> str:
    """Name the first test that failed."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", tests.stdout, re.MULTILINE)
    if tests.returncode == 1 and found:
        return f"caught by {found[1]}"
    return "NOT CAUGHT" if tests.returncode == 0 else f"TESTS DID NOT RUN: {tests.stdout[-300:]}"


def run_tests(copy: Path, tests: str, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run test files of a copy against the package in that copy, up to the first failure."""
    # Side by side, pytest says of a failure that it was interrupted.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *([] if copy == ROOT else ["-m", ""]),
        *tests.split(),
    ]
    environment = os.environ | {"PYTHONPATH": str(copy)} | (more or {})
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main())
