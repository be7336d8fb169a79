"""Adapters broken on purpose; broken.py says what is said of each.

Each fault is done to a copy of a golden adapter or model, or is an adapter of plain PEFT with a part of it lost. A
payload that runs, from a pickle or from a file of code, would leave a file called EXECUTED.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForAudioClassification

from peft_audio.encoders.loading import quiet_loading

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = ["low", "mid dle", "höher", "zed"]
MARKER = "EXECUTED"
CODE = f"open({MARKER!r}, 'w').close()\n"
WEIGHTS, WHOLE = "adapter_model.safetensors", "model.safetensors"
HEAD = "base_model.model.classifier.bias"


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (CODE,)


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    # Set keys of a JSON file.
    def damage(folder: Path) -> None:
        stored = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(stored | changes), encoding="utf-8")

    return damage


def record(**changes: Any) -> Callable[[Path], None]:
    return edit("peft_audio.json", **changes)


def base(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        stored = json.loads((folder / "peft_audio.json").read_text(encoding="utf-8"))["base"]
        record(base=stored | changes)(folder)

    return damage


def taken(**changes: Any) -> Callable[[Path], None]:
    # The golden adapters' records are of schema 1, in which these are in three places.
    def damage(folder: Path) -> None:
        stored = json.loads((folder / "peft_audio.json").read_text(encoding="utf-8"))
        for name, value in changes.items():
            part = {"minimum_samples": "mask", "do_normalize": "normalisation"}.get(name)
            record(**({name: value} if part is None else {part: stored[part] | {name: value}}))(folder)

    return damage


def write(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def cut(file: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / file, (folder / file).stat().st_size // 2)


def weights(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        stored = load_file(folder / file)
        change(stored)
        save_file(stored, folder / file, metadata={"format": "pt"})

    return damage


def both(*damages: Callable[[Path], Any]) -> Callable[[Path], None]:
    return lambda folder: [damage(folder) for damage in damages] and None


def renamed(stored: dict[str, torch.Tensor]) -> None:
    for name in [name for name in stored if "lora_A" in name]:
        stored[name.replace("lora_A", "lora_down")] = stored.pop(name)


def without(*parts: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(stored: dict[str, torch.Tensor]) -> None:
        for name in [name for name in stored if any(part in name for part in parts)]:
            del stored[name]

    return change


def two_unlikely_labels_swapped(folder: Path) -> None:
    """No probe has either on top, so no top label changes."""
    probes = json.loads((folder / "peft_audio.json").read_text(encoding="utf-8"))["probes"]
    never = [label for label in LABELS if label not in {probe["label"] for probe in probes}]
    assert len(never) >= 2
    swap = {never[0]: never[1], never[1]: never[0]}
    record(labels=[swap.get(label, label) for label in LABELS])(folder)


def a_pickle(file: str) -> Callable[[Path], None]:
    return write(file, pickle.dumps(Payload()))


def a_folder(file: str) -> Callable[[Path], None]:
    return both(remove(file), lambda folder: (folder / file).mkdir())


def linked(folder: Path) -> None:
    elsewhere = folder.with_name(folder.name + " weights")
    shutil.move(folder / WEIGHTS, elsewhere)
    (folder / WEIGHTS).symlink_to(elsewhere.resolve())


def plain_peft(**settings: Any) -> Callable[[Path], None]:
    # What somebody saves without this package.
    def make(folder: Path) -> None:
        shutil.rmtree(folder)
        with quiet_loading():
            model = AutoModelForAudioClassification.from_pretrained("golden-base", num_labels=4, dtype=torch.float32)
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], **settings))
        model.save_pretrained(str(folder), save_embedding_layers=False)

    return make


@dataclass(frozen=True)
class Fault:
    """A golden product, what is done to its copy, what `verify` must say, and whether it loads with right answers."""

    of: str
    damage: Callable[[Path], None]
    words: str
    loads: bool = False
    broken: bool = True


INFINITE = weights(lambda stored: stored[HEAD].__setitem__(1, torch.inf))
FAULTS: dict[str, Fault] = {
    "the whole head is missing": Fault("lora", weights(without("projector", "classifier")), "classifier.bias"),
    "the projector is missing": Fault("lora", weights(without("projector")), "head: projector.bias, projector.weight"),
    "LoRA of one layer is missing": Fault("lora", weights(without("layers.1")), "weights are missing"),
    "a bias is missing": Fault("bias_only", weights(without("layers.1.feed_forward.output")), "weights are missing"),
    "IA3 of one layer is missing": Fault("ia3", weights(without("layers.1")), "weights are missing"),
    "the mixture of layers is missing": Fault("head_only_weighted", weights(without("layer_weights")), "layer_weights"),
    "renamed weights": Fault("lora", weights(renamed), "fit no layer"),
    "an unknown weight": Fault("lora", weights(lambda w: w.update({"../../x.weight": torch.zeros(1)})), "fit no layer"),
    "another r in adapter_config.json": Fault("lora", edit("adapter_config.json", r=8), "another shape"),
    "r of a thousand million": Fault(
        "lora", edit("adapter_config.json", r=10**9), "all weights in the file have fewer rows"
    ),
    "a pattern that takes days to match": Fault(
        "lora", edit("adapter_config.json", target_modules="((([a-z0-9_.])+)+)+!"), "can take days to match"
    ),
    "the same as the key of a rank": Fault(
        "lora", edit("adapter_config.json", rank_pattern={"(.|.)" * 30: 4}), "can take days to match"
    ),
    "a start that takes a million rounds": Fault(
        "lora", edit("adapter_config.json", init_lora_weights="pissa_niter_1000000"), "1000000 rounds"
    ),
    "another lora_alpha": Fault("lora", edit("adapter_config.json", lora_alpha=1), "logits differ"),
    "labels reversed": Fault("lora", record(labels=LABELS[::-1]), "probe of 0.5 s"),
    "two labels swapped that no probe has on top": Fault("lora", two_unlikely_labels_swapped, "probe of 0.5 s"),
    "a label too few": Fault("lora", record(labels=LABELS[:3]), "probes are of other labels"),
    "a label twice": Fault("lora", record(labels=["low", "low", "höher", "zed"]), "occurs twice"),
    "numbers as labels": Fault("lora", record(labels=[0, 1, 2, 3]), "labels must be texts"),
    "a label ../../x": Fault("lora", record(labels=["../../x", *LABELS[1:]]), "probes are of other labels"),
    "NaN": Fault("lora", weights(lambda w: w[HEAD].__setitem__(0, torch.nan)), "NaN or infinity in 1 of"),
    "infinity": Fault("lora", INFINITE, "NaN or infinity in 1 of"),
    "a weight changed by 0.0005": Fault("lora", weights(lambda w: w[HEAD][2].add_(5e-4)), "logits differ", loads=True),
    "cut off": Fault("lora", cut(WEIGHTS), "is damaged"),
    "an empty file": Fault("lora", write(WEIGHTS, b""), "is damaged"),
    "a header of 2^60 bytes": Fault("lora", write(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), "is damaged"),
    "a folder in place of the weights": Fault("lora", a_folder(WEIGHTS), "is a folder"),
    "a folder in place of the record": Fault("lora", a_folder("peft_audio.json"), "is a folder"),
    "a pickle only": Fault("lora", both(remove(WEIGHTS), a_pickle("adapter_model.bin")), "only as a pickle"),
    "a pickle under the name of the weights": Fault("lora", a_pickle(WEIGHTS), "is damaged"),
    "a pickle beside": Fault("lora", a_pickle("adapter_model.bin"), "pickles beside", loads=True, broken=False),
    "the weights are a link out of the folder": Fault("lora", linked, "is a link out", loads=True, broken=False),
    "code for AutoPeftModel to import": Fault(
        "lora",
        both(write("evil.py", CODE.encode()), edit("adapter_config.json", auto_mapping={"parent_library": "evil"})),
        "parent_library is evil",
        loads=True,
    ),
    "a module for PEFT to import": Fault(
        "lora",
        both(
            write("evil.py", CODE.encode()), edit("adapter_config.json", megatron_config={"a": 1}, megatron_core="evil")
        ),
        "megatron_config",
    ),
    "a preprocessor with code": Fault(
        "lora",
        both(
            write("evil.py", CODE.encode()),
            edit(
                "preprocessor_config.json",
                feature_extractor_type="Evil",
                auto_map={"AutoFeatureExtractor": "evil.Evil"},
            ),
        ),
        "preprocessor cannot be loaded",
    ),
    "recorded for another base": Fault("lora", base(name="other-base"), "other weights"),
    "PEFT names another base": Fault(
        "lora",
        edit("adapter_config.json", base_model_name_or_path="other-base"),
        "PEFT alone loads another",
        loads=True,
    ),
    "PEFT names another commit": Fault("lora", edit("adapter_config.json", revision="f" * 40), "revision", loads=True),
    "a commit that is none": Fault("lora", base(commit="../../refs"), "base.commit must be"),
    "the name of a base without end": Fault("lora", base(name="a" * 5_000), "does not exist"),
    "a base of a user who is not here": Fault("lora", base(name="~nobody-here/x"), "does not exist"),
    "the name of a base clears the screen": Fault(
        "lora", edit("adapter_config.json", base_model_name_or_path="\x1b[2J"), r"names the base \x1b[2J", loads=True
    ),
    "a base ../../nothing": Fault("lora", base(name="../../nothing"), "does not exist"),
    "recorded for another rate": Fault("lora", taken(sampling_rate=8000), "sampling_rate is 16000"),
    "a preprocessor of another rate": Fault("lora", edit("preprocessor_config.json", sampling_rate=8000), "is 8000"),
    "both of another rate": Fault(
        "lora",
        both(taken(sampling_rate=8000), edit("preprocessor_config.json", sampling_rate=8000)),
        "its base for 16000 Hz",
    ),
    "normalisation turned off in both": Fault(
        "lora",
        both(
            taken(do_normalize=False),
            edit("preprocessor_config.json", do_normalize=False),
        ),
        "logits differ",
    ),
    "a shortest input of 1 sample": Fault("lora", taken(minimum_samples=1), "minimum_samples is 1"),
    "a label that is half a character": Fault("lora", record(labels=["\ud800", *LABELS[1:]]), "surrogates not allowed"),
    "a metric of 400 digits": Fault("lora", record(metrics={"accuracy": 10**400}), "metrics must be numbers"),
    "no preprocessor": Fault("lora", remove("preprocessor_config.json"), "preprocessor_config.json is missing"),
    "no adapter_config.json": Fault("lora", remove("adapter_config.json"), "adapter_config.json is missing"),
    "adapter_config.json is a list": Fault("lora", write("adapter_config.json", b"[1]"), "no JSON object"),
    "an unknown kind of adapter": Fault("lora", edit("adapter_config.json", peft_type="EVIL"), "peft_type EVIL"),
    "a kind that is none of ours": Fault("lora", edit("adapter_config.json", peft_type="XLORA"), "PEFT cannot put it"),
    "no record": Fault("lora", remove("peft_audio.json"), "names of the 4 labels are not known", broken=False),
    "half a record": Fault("lora", cut("peft_audio.json"), "peft_audio.json is damaged"),
    "a record that is a list": Fault("lora", write("peft_audio.json", b"[]"), "no JSON object"),
    "a record of brackets without end": Fault("lora", write("peft_audio.json", b"[" * 100_000), "is damaged"),
    "a newer record": Fault("lora", record(schema_version=99), "upgrade peft-audio"),
    "a record without probes": Fault("lora", record(probes=[]), "no probe clips"),
    "another strategy recorded": Fault("lora", record(strategy="bias_only"), "fit no layer"),
    "a mixture of layers recorded that is not there": Fault("lora", record(layer_weighted_sum=True), "layer_weights"),
    "model: a pickle only": Fault("full", both(remove(WHOLE), a_pickle("pytorch_model.bin")), "only as a pickle"),
    "model: the classifier is missing": Fault("full", weights(without("classifier"), WHOLE), "weights are missing"),
    "model: NaN": Fault(
        "full", weights(lambda w: w["projector.bias"].__setitem__(0, torch.nan), WHOLE), "NaN or infinity"
    ),
    "model: a stride of 0": Fault("full", edit("config.json", conv_stride=[5, 2, 2, 2, 2, 2, 0]), "gives no answer"),
    "model: cut off": Fault("full", cut(WHOLE), "is damaged"),
    "model: labels reversed in the record": Fault("full", record(labels=LABELS[::-1]), "programs would disagree"),
    "model: labels reversed in both": Fault(
        "full",
        both(record(labels=LABELS[::-1]), edit("config.json", id2label=dict(enumerate(LABELS[::-1])))),
        "probe of 0.5 s",
    ),
    "model: code of its own": Fault(
        "full",
        both(
            write("evil.py", CODE.encode()),
            edit("config.json", auto_map={"AutoModelForAudioClassification": "evil.Evil", "AutoConfig": "evil.Evil"}),
        ),
        "names code of its own",
        loads=True,
        broken=False,
    ),
    "model: code of its own for an unknown type": Fault(
        "full",
        both(
            write("evil.py", CODE.encode()),
            edit("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
        ),
        "custom code",
    ),
    "model: a kernel from the Hub": Fault(
        "full", edit("config.json", attn_implementation="evil/kernel"), "evil/kernel"
    ),
    "model: stored quantised": Fault(
        "full",
        edit("config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "stored quantised",
    ),
    "model: a width that is text": Fault("full", edit("config.json", hidden_size="32"), "cannot be loaded"),
    "model: an adapter's settings beside": Fault("full", write("adapter_config.json", b"{}"), "remove that file"),
    "PEFT alone: the head was never saved": Fault("lora", plain_peft(), "classifier.weight, projector.bias"),
    'PEFT alone: task_type "SEQ_CLS"': Fault(
        "lora", plain_peft(task_type="SEQ_CLS"), "head: projector.bias, projector.weight: drawn at random"
    ),
    "PEFT alone: nothing is wrong": Fault(
        "lora", plain_peft(modules_to_save=["projector", "classifier"]), "names of the 4 labels", broken=False
    ),
}
