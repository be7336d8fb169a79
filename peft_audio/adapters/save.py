"""Saving a run's product, which stands only once a fresh process has got the same logits from it."""

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

# A fresh process that takes longer than this to load a copy and answer for it hangs.
VERIFY_SECONDS = 500


def saved_folder(run_folder: Path, trained: Trainable, pretrained: bool) -> Path:
    """Where a run's product stands: `adapter/`, or `model/` where everything was trained or nothing was pretrained."""
    return run_folder / ("model" if trained.peft_config is None or not pretrained else "adapter")


def saved_weights(folder: Path) -> Path:
    """The file of a product that holds its weights."""
    return folder / (WEIGHTS if folder.name == "adapter" else WHOLE_WEIGHTS)


def write_adapter(
    run_folder: Path, model: Any, trained: Trainable, extractor: Any, record: AdapterRecord, verify: bool = True
) -> Path:
    """Write a run's product aside, and see a fresh process get the same logits from a copy.

    What trained beside a pretrained encoder is saved in PEFT's form, a whole model as transformers saves it.

    Args:
        run_folder: The directory goes there, as `<saved_folder>.partial`.
        model: A trained model; it is left on the CPU, in eval mode.
        trained: What trained in it.
        extractor: The encoder's feature extractor.
        record: What to say about it; probes are measured here.
        verify: Whether a fresh process is to load a copy.

    Returns:
        The directory.

    Raises:
        UserError: The copy did not reproduce the logits; what was written stays in `<directory>.partial`.
    """
    folder = saved_folder(run_folder, trained, record.pretrained)
    record = replace(record, probes=measure_probes(Adapter(model.to("cpu").eval(), extractor, record)))
    aside = partial_path(folder)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if record.whole:
        with quiet_loading():
            model.save_pretrained(aside)
    else:
        _save_peft(aside, model, trained, record)
    for weights in aside.glob("*.safetensors"):
        # safetensors makes its files readable by their owner alone; an adapter is made to be passed on.
        weights.chmod(0o644)
    extractor.save_pretrained(aside)
    (aside / RECORD).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    (aside / "README.md").write_text(adapter_readme(record), encoding="utf-8")
    if verify:
        print("loading a copy in a fresh process, to compare its answers ...", flush=True)
        _verify_copy(aside)
    return aside


def save_adapter(*args: Any, **kwargs: Any) -> Path:
    """As `write_adapter`, which it calls; then the directory takes its place, and is returned."""
    aside = write_adapter(*args, **kwargs)
    return aside.rename(aside.with_suffix(""))


def _save_peft(folder: Path, model: Any, trained: Trainable, record: AdapterRecord) -> None:
    """PEFT's two files, as `PeftModel.save_pretrained` writes them."""
    assert trained.peft_config is not None
    config = copy(trained.peft_config)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    config.base_model_name_or_path, config.revision = record.base.name, record.base.commit
    config.inference_mode = True
    # By this AutoPeftModel finds the class of the base.
    config.auto_mapping = {"base_model_class": type(plain).__name__, "parent_library": type(plain).__module__}
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    for name in {"target_modules", "feedforward_modules", "modules_to_save"} & stored.keys():
        # Sets are written in an order that changes from process to process.
        stored[name] = sorted(stored[name]) if isinstance(stored[name], list) else stored[name]
    path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    weights = {name: value.contiguous().cpu() for name, value in peft_weights(model, trained).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def _verify_copy(folder: Path) -> None:
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
        raise _unverified(folder, f"was ended by {name}, often for want of memory", command)
    if "Traceback (most recent call last)" in child.stderr:
        raise _unverified(folder, f"failed ({child.stderr.strip().splitlines()[-1][:300]})", command)
    if child.returncode:
        raise UserError(f"the saved adapter in {folder} did not reproduce its logits:\n{child.stdout}{child.stderr}")


def _unverified(folder: Path, what: str, command: list[str]) -> UserError:
    return UserError(
        f"the fresh process that loads a copy of {folder} {what}; the files stay there, unverified. Check them with: "
        f"{' '.join([*command, str(folder)])}; or start with --train.resume true --train.verify_adapter false."
    )
