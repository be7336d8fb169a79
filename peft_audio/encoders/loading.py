"""Find, load and identify pretrained encoders, with a fresh classification head."""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, BitsAndBytesConfig
from transformers.utils import logging

from peft_audio.config import ModelConfig
from peft_audio.encoders.base import LAYER_WEIGHTS, MASK_VECTOR, EncoderFamily
from peft_audio.encoders.family import FAMILIES, encoder_of, family_of
from peft_audio.errors import EncoderError, UserError, unloadable
from peft_audio.files import expanded, is_folder, sha256

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED_ENCODER = "wav2vec2-nano"
COMMIT = re.compile("[0-9a-f]{40}")
PACKAGES = ("peft-audio", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate")


@dataclass(frozen=True)
class Base:
    """Identify the encoder that an adapter belongs to.

    Attributes:
        name: What the user gave: a Hub id, a folder, or the bundled encoder's name.
        commit: The Hub's commit, None for a folder.
        sha256: Of the encoder's weights, see `weights_sha256`.
        model_type: Its family.
        minimum_samples: The length to which shorter clips are padded.
    """

    name: str
    commit: str | None
    sha256: str
    model_type: str
    minimum_samples: int


def resolve_base(name: str) -> str:
    """Return the name by which transformers finds the encoder: a folder or a Hub id.

    Raises:
        UserError: The name looks like a folder and no folder of transformers' form is there.
    """
    if name == BUNDLED_ENCODER:
        return str(ASSETS / BUNDLED_ENCODER)
    folder = expanded(name)
    if is_folder(folder):
        if not (folder / "config.json").is_file():
            raise EncoderError(f"{name} has no config.json; give a folder made by save_pretrained.")
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EncoderError(f"no folder {name}; give an existing folder, a Hub id or {BUNDLED_ENCODER}.")
    return name


def pin_base(cfg: ModelConfig) -> tuple[str, str | None]:
    """Return the name by which transformers finds the encoder, and for a Hub id the commit of its revision.

    Raises:
        UserError: There is no such folder, repository or revision, or no connection.
    """
    base = resolve_base(cfg.name)
    if is_folder(base):
        return base, None
    try:
        # The Hub's cache keeps each commit's files in a folder of its name.
        return base, Path(hf_hub_download(base, "config.json", revision=cfg.revision)).parent.name
    except (OSError, ValueError) as error:
        raise unloadable(cfg.name, error) from error


def with_commit(cfg: ModelConfig) -> ModelConfig:
    """Replace the revision of a Hub base by its commit, so that every later load gets the same files.

    Raises:
        UserError: There is no such folder, repository or revision, or no connection.
    """
    commit = pin_base(cfg)[1]
    return cfg if commit is None else replace(cfg, revision=commit)


def with_recorded_commit(cfg: ModelConfig, made: Mapping[str, Any]) -> ModelConfig:
    """Take the commit of a Hub base from the settings of an earlier run, unless another commit is asked for.

    A branch or tag that is asked for is not resolved again; a line is printed.

    Args:
        cfg: Encoder that is asked for now.
        made: Settings of the earlier run, by dotted name; empty if there is none.
    """
    commit = made.get("model.revision")
    recorded = made.get("model.name") == cfg.name and isinstance(commit, str) and COMMIT.fullmatch(commit)
    if not recorded or (cfg.revision and COMMIT.fullmatch(cfg.revision)):
        return cfg
    if cfg.revision:
        print(f"note: the recorded commit {commit} is used; --model.revision {cfg.revision} is not resolved again")
    return replace(cfg, revision=commit)


def base_config(cfg: ModelConfig) -> Any:
    """Load the config of an encoder of a known family, as it is stored.

    Raises:
        UserError: It cannot be loaded, or the family is unknown.
    """
    base, commit = pin_base(cfg)
    try:
        config = AutoConfig.from_pretrained(base, revision=commit, trust_remote_code=False)
        family_of(config)
        return config
    except Exception as error:  # transformers raises nearly every kind there is at files that are damaged
        raise unloadable(cfg.name, error) from error


def input_window(cfg: ModelConfig) -> float | None:
    """Return the fixed length of an encoder's inputs in seconds, or None if an input is as long as its clip.

    Raises:
        UserError: The encoder cannot be loaded, or cannot take `input_seconds`.
    """
    config = base_config(cfg)
    return family_of(config).window(config, cfg.input_seconds)


def load_extractor(cfg: ModelConfig) -> Any:
    """Load the feature extractor of an encoder, which knows sampling rate, normalisation and window.

    Raises:
        UserError: None can be loaded from there.
    """
    (base, commit), config = pin_base(cfg), base_config(cfg)
    family = family_of(config)
    window = family.window(config, cfg.input_seconds)
    try:
        with quiet_loading():
            extractor = AutoFeatureExtractor.from_pretrained(base, revision=commit, trust_remote_code=False)
        family.check_extractor(extractor, config)
        if window is not None:
            family.fit_extractor(extractor, window)
        return extractor
    except Exception as error:  # transformers raises nearly every kind there is at files that are damaged
        raise unloadable(cfg.name, error) from error


def load_classifier(cfg: ModelConfig, labels: Sequence[str]) -> Any:
    """Load a pretrained encoder in float32 under a fresh head, exact for padded batches.

    The head is drawn from torch's global generator, and so is an encoder that is not to be pretrained: seed it first.

    Args:
        cfg: Which encoder.
        labels: The label names in the order of the logits.

    Returns:
        A transformers classifier in eval mode whose `forward` takes what the family's `pad` returns, and gives `logits`
        of shape (clips, labels). A fixed window is cut to `input_seconds`.

    Raises:
        UserError: The encoder is of an unknown family, cannot be loaded, or lacks weights of its own.
    """
    model, absent = load_with_absent(cfg, labels)
    config, family = model.config, family_of(model.config)
    absent = {key for key in absent if not key.startswith((*family.head, LAYER_WEIGHTS))}
    if absent:
        raise EncoderError(
            f"{cfg.name} lacks {len(absent)} weights of its own encoder (or has them in another shape), "
            f"{min(absent)} first; they would stay random, so give a complete checkpoint."
        )
    spoilt = [name for name, value in encoder_of(model).named_parameters() if not value.isfinite().all()]
    if spoilt:
        raise EncoderError(f"{cfg.name} holds NaN or infinity in {spoilt[0]}; get it again, or another one.")
    for name in family.head_layers:
        # A base that is a classifier itself brings a head, for labels of its own: draw ours as transformers does.
        module = model.get_submodule(name)
        nn.init.normal_(module.weight, std=family.head_std(config))
        nn.init.zeros_(module.bias)
        if cfg.head_dropout:
            module.register_forward_pre_hook(partial(_drop_before, cfg.head_dropout))
    if cfg.layer_weighted_sum:
        nn.init.constant_(model.layer_weights, 1 / len(model.layer_weights))
    family.make_padding_exact(model)
    family.replace_attention(model)
    return model.eval()


def load_tuned(folder: Path, labels: Sequence[str], layer_weighted_sum: bool) -> Any:
    """Load a classifier that full fine-tuning saved, with its head; otherwise as `load_classifier`.

    Raises:
        UserError: It cannot be loaded, or lacks weights.
    """
    model, absent = load_with_absent(ModelConfig(name=str(folder), layer_weighted_sum=layer_weighted_sum), labels)
    if absent:
        raise UserError(f"{folder}: {len(absent)} weights are missing, {min(absent)} first; get the model again.")
    family = family_of(model.config)
    family.make_padding_exact(model)
    family.replace_attention(model)
    return model.eval()


def load_with_absent(cfg: ModelConfig, labels: Sequence[str], any_family: bool = False) -> tuple[Any, set[str]]:
    """Load a classifier with transformers; also return the names of weights that the checkpoint lacks.

    Args:
        cfg: Which encoder.
        labels: The label names in the order of the logits.
        any_family: Take encoders, too, that nothing else here can work with.

    Raises:
        UserError: The encoder is of an unknown family, or cannot be loaded.
    """
    base, commit = pin_base(cfg)
    # A daemon thread of transformers would convert an old pytorch_model.bin on the Hub behind the user's back.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        config = AutoConfig.from_pretrained(base, revision=commit, trust_remote_code=False)
        family = FAMILIES.get(config.model_type)
        # transformers has no name for an attention of our own.
        if cfg.attention != "auto" and not (family and family.uncalled):
            config._attn_implementation = cfg.attention
        _refuse_foreign_kernels(cfg, config)
        if not any_family:
            family_of(config)
        config.update(classifier_settings(cfg, labels, family))
        with quiet_loading():
            model, loading = _with_weights(cfg, base, commit, config)
    except Exception as error:  # transformers raises nearly every kind there is at files that are damaged
        raise unloadable(cfg.name, error) from error
    window = None if family is None else family.window(model.config, cfg.input_seconds)
    if family is not None and window is not None:
        family.fit_model(model, window)
    for module in model.modules():
        # On some CPUs bitsandbytes repacks 4-bit weights in the first evaluation, without gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    absent_vector = [key for key in loading["missing_keys"] if key.endswith(MASK_VECTOR)]
    if absent_vector:
        # CTC models tuned without SpecAugment lack the vector that only SpecAugment reads: no random one, but zeros.
        nn.init.zeros_(model.get_parameter(absent_vector[0]))
    mismatched = {key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]}
    return model, {key for key in {*loading["missing_keys"], *mismatched} if not key.endswith(MASK_VECTOR)}


def _refuse_foreign_kernels(cfg: ModelConfig, config: Any) -> None:
    """A config.json can make transformers fetch a kernel, which is code, or hold the weights in fewer bits."""
    if config._attn_implementation not in (None, "eager", "sdpa"):
        asked = config._attn_implementation
        raise EncoderError(f"{cfg.name}/config.json asks for the attention {asked}; take that out of it.")
    if getattr(config, "quantization_config", None) is not None:
        raise EncoderError(f"{cfg.name} is stored quantised; give the encoder as it was before that.")


def _with_weights(cfg: ModelConfig, base: str, commit: str | None, config: Any) -> tuple[Any, Any]:
    if not cfg.pretrained:
        model = AutoModelForAudioClassification.from_config(config, dtype=torch.float32)
        return model, {"missing_keys": [], "mismatched_keys": []}
    how: dict[str, Any] = {"config": config, "revision": commit, "dtype": torch.float32}
    how |= {"ignore_mismatched_sizes": True, "output_loading_info": True} | quantization_settings(cfg, config)
    return AutoModelForAudioClassification.from_pretrained(base, trust_remote_code=False, **how)


def _drop_before(share: float, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (nn.functional.dropout(args[0], share, module.training), *args[1:])


def identify_base(cfg: ModelConfig, model: Any) -> Base:
    """Name, commit and hash of the encoder in a classifier that nothing has changed yet."""
    if cfg.quantization != "none":
        # What the adapter is saved for is the encoder as published. LoRA starts as it would without this second head.
        with torch.random.fork_rng():
            model = load_classifier(replace(cfg, quantization="none"), ["any", "other"])
    # Checkpoints saved without SpecAugment lack this vector, and it is drawn anew at each loading.
    weights, config = encoder_of(model).state_dict(), model.config
    sha256 = weights_sha256({name: value for name, value in weights.items() if name != MASK_VECTOR})
    return Base(cfg.name, pin_base(cfg)[1], sha256, config.model_type, family_of(config).minimum_samples(config))


def classifier_settings(cfg: ModelConfig, labels: Sequence[str], family: EncoderFamily | None) -> dict[str, Any]:
    """Return the config settings for labels, head and regularisation, the same in training and loading.

    Args:
        cfg: Settings of the model.
        labels: Label names in the order of the logits.
        family: Family of the encoder; None for one that nothing here can train.
    """
    labels_and_head = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
        "num_labels": len(labels),
        "use_weighted_layer_sum": cfg.layer_weighted_sum,
    }
    return labels_and_head | (family.load_settings(cfg.dropout) if family else {})


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def use_exact_float32() -> None:
    """Let float32 be float32 on NVIDIA GPUs: cuDNN's TF32 convolutions keep 10 bits of the mantissa."""
    torch.backends.cudnn.allow_tf32 = False


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, shapes and float32 values, whatever file format or precision they were stored in."""

    def parts() -> Iterator[bytes]:
        for name in sorted(state):
            values = state[name].detach().to("cpu", torch.float32).contiguous()
            yield json.dumps([name, list(values.shape)]).encode()
            yield values.numpy().tobytes()

    return sha256(parts())


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' report of the fresh head and PEFT's use of a deprecated name from the user's screen.

    This package checks the keys itself, and a user can change neither.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
            # AST's own filter bank, as it was pretrained with.
            warnings.filterwarnings("ignore", message="At least one mel filter has all zero", category=UserWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def quantization_settings(cfg: ModelConfig, config: Any) -> dict[str, Any]:
    """Build the loading arguments that hold linear layers in 8 or 4 bits; empty without quantisation."""
    if cfg.quantization == "none":
        return {}
    keep = list(family_of(config).unquantized)
    # bitsandbytes warns at every product of every step that it computes in float16.
    getLogger("bitsandbytes.autograd._functions").setLevel("ERROR")
    eight = cfg.quantization == "int8"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=eight, load_in_4bit=not eight, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=keep
        ),
        # Accelerate moves no quantised model, and transformers would take the first GPU whatever was launched.
        "device_map": {"": PartialState().device},
    }
