"""Choose precision, attention and compilation before a run starts, and set up its processes and device.

Choices depend on no measured time, because a resumed run and the runs of a comparison must compute alike.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
    set_seed,
)
from huggingface_hub.utils import disable_progress_bars

from peft_audio.config import TrainConfig
from peft_audio.encoders.family import encoder_of, family_of
from peft_audio.encoders.loading import base_config, use_exact_float32
from peft_audio.errors import UserError, require

Settings = TypeVar("Settings", bound=Any)  # of a run or of a comparison


# Environment variable that resolves "auto" on this machine, so that CPUs with and without bf16 units compute alike.
AUTO_PRECISION = "PEFT_AUDIO_AUTO_PRECISION"


def resolve_auto(cfg: Settings, one_encoder: bool = True) -> Settings:
    """Replace "auto" in the settings by values for this device, and print them with the reasons.

    Args:
        cfg: Settings of a run or of a comparison.
        one_encoder: Whether all runs have the encoder of `cfg.model`. If not, attention and compilation stay "auto" for
            each run to decide.

    Raises:
        UserError: The encoder cannot be loaded, is of an unknown family, or does not support the attention that is set.
    """
    precision, reason = choose_precision(cfg.train.mixed_precision)
    choices = f"precision {'float32' if precision == 'no' else precision} ({reason})"
    train, model = replace(cfg.train, mixed_precision=precision), cfg.model
    if one_encoder:
        family = family_of(base_config(cfg.model))
        suits = family.suitable_arithmetic(device_type())
        allowed = f"{suits.attention}, the only attention of {family.examples}"
        accepted = family.accepts_attention(cfg.model.attention)
        require(accepted, "model.attention", cfg.model.attention, allowed, "Leave it out.")
        attention = cfg.model.attention if cfg.model.attention != "auto" else suits.attention
        compiled = suits.compiled if cfg.train.compile == "auto" else cfg.train.compile == "yes"
        choices += f"; attention {attention} ({suits.source if cfg.model.attention == 'auto' else 'as set'})"
        choices += ", compiled" if compiled else ""
        train, model = replace(train, compile="yes" if compiled else "no"), replace(model, attention=attention)
    if os.environ.get("RANK", "0") == "0":
        print(choices)
    return replace(cfg, train=train, model=model)


def choose_precision(setting: str) -> tuple[Any, str]:
    """Resolve `train.mixed_precision`.

    "auto" becomes the first that applies of: the precision given to `accelerate launch`, the environment variable
    PEFT_AUDIO_AUTO_PRECISION, bf16 on a device with bf16 units, float32.

    Args:
        setting: Value of `train.mixed_precision`.

    Returns:
        The precision and the reason for it.

    Raises:
        UserError: The environment variable is neither no nor bf16.
    """
    if setting != "auto":
        return setting, "as set"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no":
        return launched, "as given to accelerate launch"
    preferred = os.environ.get(AUTO_PRECISION)
    if preferred is not None:
        if preferred not in ("no", "bf16"):
            raise UserError(f"{AUTO_PRECISION}: got {preferred or repr('')}, must be no or bf16. Correct or unset it.")
        return preferred, f"{AUTO_PRECISION} is {preferred}"
    fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported(),
    }
    device = device_type()
    if device not in fast:
        return "no", f"bf16 was not tried on {device}"
    return ("bf16", "this device has bf16 units") if fast[device]() else ("no", "this device has no bf16 units")


def device_type() -> str:
    """Return the type of the device that Accelerate will use, before it starts."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"


def compile_layers(model: Any, setting: str) -> None:
    """Compile each transformer layer separately, in place, so that one graph serves all layers and clip lengths.

    Args:
        model: Model that a strategy returned.
        setting: Resolved value of `train.compile`; nothing is compiled unless it is "yes".
    """
    if setting != "yes":
        return
    for layer in encoder_of(model).get_submodule(family_of(model.config).layers):
        layer.compile(dynamic=True)


# FSDP, DeepSpeed and Megatron shard weights or do steps themselves, which our loop does not support.
SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
}
# One process reads a large collection or fits a baseline while the others wait; the default of NCCL is ten minutes.
LONG_TIMEOUT = InitProcessGroupKwargs(timeout=timedelta(hours=2))


def make_accelerator(cfg: TrainConfig) -> Accelerator:
    """Set up the processes and the device of a run, and seed all random generators.

    Raises:
        UserError: The launcher's kind of distributed training is not supported, its precision differs from that of
            `cfg`, or fp16 is set on a CPU.
    """
    # The launcher exports "no" by default, so only another value is a choice.
    launched, precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), choose_precision(cfg.mixed_precision)[0]
    if launched not in ("no", precision):
        raise UserError(
            f"--train.mixed_precision: got {precision}, must be {launched}, as given to accelerate launch. "
            "Give both the same, or remove it from the launcher's flags and config file."
        )
    # The loop weights its micro-batches itself; a number from the environment would scale each loss again.
    one = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(
        mixed_precision=precision, gradient_accumulation_plugin=one, kwargs_handlers=[LONG_TIMEOUT]
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        # Accelerate would compute in float32 and report fp16.
        raise UserError("--train.mixed_precision: got fp16, must be bf16 or no on a CPU. Try bf16.")
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(
            f"accelerate launch: got {accelerator.distributed_type.value}, must be one process, or several with "
            "MULTI_GPU. Choose another with `accelerate config`, or pass --num_processes and --multi_gpu."
        )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:
        raise UserError(
            f"accelerate launch: got {started} processes that run separately and would write into one folder, "
            f"expected one group. On a CPU, set ACCELERATE_USE_CPU=true before accelerate launch."
        )
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if accelerator.distributed_type == DistributedType.MULTI_CPU and 0 < gpus < local:
        # The barrier of Accelerate needs one GPU per process, even with gloo.
        raise UserError(
            f"accelerate launch: {local} processes on the CPU would hang with {gpus} visible GPUs. Hide the GPUs: "
            "put CUDA_VISIBLE_DEVICES= before accelerate launch."
        )
    # The launcher exports MASTER_ADDR for several processes, and WORLD_SIZE to each process that it starts.
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print(
            "note: one process runs. For several processes on a CPU, set ACCELERATE_USE_CPU=true and give accelerate "
            "launch --config_file recipes/accelerate/two_cpu_processes.yaml.",
            file=sys.stderr,
        )
    if not accelerator.is_local_main_process:
        disable_progress_bars()
    use_exact_float32()
    if accelerator.device.type == "cuda":
        # An earlier run in this process can have used more.
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    if cfg.deterministic:
        # Without this, cuBLAS can split its work differently in each run. It is read at the first matrix product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_seed(cfg.seed, deterministic=cfg.deterministic)
    return accelerator


def seed_dropout(cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Seed each process differently, so that dropout masks differ between processes."""
    torch.manual_seed(cfg.seed + accelerator.process_index)


def peak_memory_bytes(accelerator: Accelerator) -> int:
    """Return the peak memory in bytes: of the run on CUDA, of the process since its start on a CPU."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # does not exist on Windows

    # Linux counts in kibibytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
