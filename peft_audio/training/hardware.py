"""Choose precision, attention and compilation before a run starts, and set up its processes and device.

Nothing is timed at run time: a resumed run, and the runs of a comparison, must compute alike.
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


# Sets what "auto" becomes on this machine, so that CPUs with and without bf16 units compute alike.
AUTO_PRECISION = "PEFT_AUDIO_AUTO_PRECISION"


def resolve(cfg: Settings, one_encoder: bool = True) -> Settings:
    """Replace "auto" by what suits this device, and print why; `config.yaml` then holds what was used.

    Args:
        cfg: Settings of a run or of a comparison.
        one_encoder: Whether all runs have the encoder of `cfg.model`. If not, attention and compilation stay "auto" for
            each run to decide.

    Raises:
        UserError: The encoder cannot be found, or is of an unknown family.
    """
    precision, why = choose_precision(cfg.train.mixed_precision)
    tell = f"precision {'float32' if precision == 'no' else precision} ({why})"
    train, model = replace(cfg.train, mixed_precision=precision), cfg.model
    if one_encoder:
        family = family_of(base_config(cfg.model))
        suits = family.suitable_arithmetic(device_type())
        allowed = f"{suits.attention} for {family.examples}, which has no other"
        accepted = family.accepts_attention(cfg.model.attention)
        require(accepted, "model.attention", cfg.model.attention, allowed, "Leave it out.")
        attention = cfg.model.attention if cfg.model.attention != "auto" else suits.attention
        compiled = suits.compiled if cfg.train.compile == "auto" else cfg.train.compile == "yes"
        tell += f"; attention {attention} ({suits.source if cfg.model.attention == 'auto' else 'as asked'})"
        tell += ", compiled" if compiled else ""
        train, model = replace(train, compile="yes" if compiled else "no"), replace(model, attention=attention)
    if os.environ.get("RANK", "0") == "0":
        print(tell)
    return replace(cfg, train=train, model=model)


def choose_precision(asked: str) -> tuple[Any, str]:
    """Resolve `train.mixed_precision`.

    "auto" becomes, in this order: what `accelerate launch` was given, the environment variable
    PEFT_AUDIO_AUTO_PRECISION, bf16 on a device with units for it, float32.

    Args:
        asked: `train.mixed_precision`.

    Returns:
        The precision and the reason for it.

    Raises:
        UserError: The environment variable is neither no nor bf16.
    """
    if asked != "auto":
        return asked, "as asked"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no":
        return launched, "as accelerate launch was asked"
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
    return ("bf16", "this device has units for it") if fast[device]() else ("no", "this device has no bf16 units")


def device_type() -> str:
    """Where Accelerate will compute, asked before it starts."""
    if torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU") else "cpu"


def compile_layers(model: Any, wanted: str) -> None:
    """Compile each transformer layer by itself, in place: one graph serves all of them, and clips of any length.

    Args:
        model: What a strategy returned.
        wanted: `train.compile`, resolved; nothing is compiled unless it is "yes".
    """
    if wanted != "yes":
        return
    for layer in encoder_of(model).get_submodule(family_of(model.config).layers):
        layer.compile(dynamic=True)


# What shards or steps by itself (FSDP, DeepSpeed, Megatron) would go around our loop.
SUPPORTED = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_NPU,
    DistributedType.MULTI_XPU,
}
# One process reads a large collection, or fits a baseline, while the others wait; NCCL's default is ten minutes.
PATIENT = InitProcessGroupKwargs(timeout=timedelta(hours=2))


def make_accelerator(cfg: TrainConfig) -> Accelerator:
    """The processes of this run and their device, with every generator seeded.

    Raises:
        UserError: The launcher asks for a way of training that our loop does not do, or for another precision than
            `cfg`, or for fp16 on a CPU.
    """
    # The launcher exports "no" when nothing was asked, so only another value can be a choice.
    launched, precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), choose_precision(cfg.mixed_precision)[0]
    if launched not in ("no", precision):
        raise UserError(
            f"--train.mixed_precision: got {precision}, must be {launched}, which accelerate launch was "
            "given. Give both the same, or take it out of the launcher's flags and config file."
        )
    # The loop weighs its micro-batches itself; a number from the environment would scale every loss once more.
    one = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_plugin=one, kwargs_handlers=[PATIENT])
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
            f"accelerate launch: {started} processes were started, but each sees {accelerator.num_processes}, and all "
            "would write into one folder. On a CPU, set ACCELERATE_USE_CPU=true before accelerate launch."
        )
    local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if accelerator.distributed_type == DistributedType.MULTI_CPU and 0 < gpus < local:
        # Accelerate's barrier asks for a GPU for each process, also of gloo.
        raise UserError(
            f"accelerate launch: {local} processes on the CPU would wait for each other on {gpus} GPUs. Hide the GPUs: "
            "put CUDA_VISIBLE_DEVICES= before accelerate launch."
        )
    # What the launcher exports for several processes, without what it gives to each of them.
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        print(
            "note: one process runs. If you asked accelerate launch for several on a CPU, it started one all the same: "
            "set ACCELERATE_USE_CPU=true and use --config_file recipes/accelerate/two_cpu_processes.yaml.",
            file=sys.stderr,
        )
    if not accelerator.is_local_main_process:
        disable_progress_bars()
    use_exact_float32()
    if accelerator.device.type == "cuda":
        # An earlier run of this process may have held more.
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    if cfg.deterministic:
        # Else cuBLAS may divide its work otherwise in each run; it reads this with the first product.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_seed(cfg.seed, deterministic=cfg.deterministic)
    return accelerator


def seed_dropout(cfg: TrainConfig, accelerator: Accelerator) -> None:
    """Let each process draw dropout masks of its own."""
    torch.manual_seed(cfg.seed + accelerator.process_index)


def peak_memory_bytes(accelerator: Accelerator) -> int:
    """Return the peak memory in bytes: of this run on CUDA, of the whole process since its start on a CPU."""
    if accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(accelerator.device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    # Linux counts in kibibytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
