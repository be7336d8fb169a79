"""Save an adapter or model, and verify in a fresh process that it computes the same logits."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from peft_audio.adapters.files import WEIGHTS, WHOLE_WEIGHTS
from peft_audio.adapters.load import Adapter
from peft_audio.adapters.probes import measure_probes
from peft_audio.adapters.record import RECORD, AdapterRecord, adapter_readme
from peft_audio.encoders.loading import quiet_loading
from peft_audio.errors import UserError
from peft_audio.files import partial_path
from peft_audio.processes import python_command, run_python
from peft_audio.strategies.base import Trainable, peft_weights

# Time after which a process that verifies a copy is considered hanging.
VERIFY_SECONDS = 500


def saved_folder(run_folder: Path, trained: Trainable, pretrained: bool) -> Path:
    """Return the folder of a run's adapter, `adapter/`, or of its whole model, `model/`."""
    return run_folder / ("model" if trained.peft_config is None or not pretrained else "adapter")


def saved_weights(folder: Path) -> Path:
    """Return the file with the weights of an adapter or whole model."""
    return folder / (WEIGHTS if folder.name == "adapter" else WHOLE_WEIGHTS)


def write_adapter(
    run_folder: Path, model: Any, trained: Trainable, extractor: Any, record: AdapterRecord, verify: bool = True
) -> Path:
    """Write an adapter or whole model to a partial folder, and verify a copy in a fresh process.

    Adapters are saved in the form of PEFT, whole models in that of transformers.

    Args:
        run_folder: Folder of the run, in which `<saved_folder>.partial` is written.
        model: Trained model; it is moved to the CPU and set to eval mode.
        trained: Parameters and modules that trained.
        extractor: Feature extractor of the encoder.
        record: Record of the adapter, to which this function adds the probes.
        verify: Whether a fresh process loads a copy and compares its logits.

    Returns:
        The partial folder.

    Raises:
        UserError: The copy did not reproduce the logits; the partial folder is kept.
    """
    folder = saved_folder(run_folder, trained, record.pretrained)
    record = replace(record, probes=measure_probes(Adapter(model.to("cpu").eval(), extractor, record)))
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if record.whole:
        with quiet_loading():
            model.save_pretrained(partial)
    else:
        _save_peft(partial, model, trained, record)
    for weights in partial.glob("*.safetensors"):
        # Files of safetensors are readable only by their owner, but adapters are made to be shared.
        weights.chmod(0o644)
    extractor.save_pretrained(partial)
    (partial / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(adapter_readme(record), encoding="utf-8")
    if verify:
        print("loading a copy in a fresh process, to compare its answers ...", flush=True)
        _verify_copy(partial)
    return partial


def save_adapter(*args: Any, **kwargs: Any) -> Path:
    """Call `write_adapter`, rename the partial folder to its final name, and return it."""
    partial = write_adapter(*args, **kwargs)
    return partial.rename(partial.with_suffix(""))


def _save_peft(folder: Path, model: Any, trained: Trainable, record: AdapterRecord) -> None:
    """Write the two files of PEFT as `PeftModel.save_pretrained` does."""
    assert trained.peft_config is not None
    config = copy(trained.peft_config)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config.base_model_name_or_path, config.revision = record.base.name, record.base.commit
    config.inference_mode = True
    # AutoPeftModel finds the class of the base by this mapping.
    config.auto_mapping = {"base_model_class": type(plain).__name__, "parent_library": type(plain).__module__}
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name in {"target_modules", "feedforward_modules", "modules_to_save"} & stored.keys():
        # The order of sets differs between processes.
        stored[name] = sorted(stored[name]) if isinstance(stored[name], list) else stored[name]
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: value.contiguous().cpu() for name, value in peft_weights(model, trained).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _verify_copy(folder: Path) -> None:
    """Load a copy of an adapter in a fresh process, and check that it reproduces the logits of the probes."""
    module = ["-m", "peft_audio.adapters.verify"]
    command = python_command(module)
    with tempfile.TemporaryDirectory() as elsewhere:
        elsewhere_copy = shutil.copytree(folder, Path(elsewhere) / "adapter")
        try:
            child = run_python([*module, str(elsewhere_copy)], VERIFY_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise _unverified(folder, f"took more than {VERIFY_SECONDS} s", command) from error
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise _unverified(folder, f"was ended by {name}, often because memory ran out", command)
    if "Traceback (most recent call last)" in child.stderr:
        raise _unverified(folder, f"failed ({child.stderr.strip().splitlines()[-1][:300]})", command)
    if child.returncode:
        raise UserError(f"the saved adapter in {folder} did not reproduce its logits:\n{child.stdout}{child.stderr}")


def _unverified(folder: Path, problem: str, command: list[str]) -> UserError:
    """Make the error for a verification that did not finish."""
    return UserError(
        f"the fresh process that loads a copy of {folder} {problem}; the files are kept, unverified. Check them with: "
        f"{' '.join([*command, str(folder)])}; or resume with --train.resume true --train.verify_adapter false."
    )
