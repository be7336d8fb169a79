"""Accelerate as `accelerate launch` set it up, held against what the run was told."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed
from huggingface_hub.utils import disable_progress_bars

from peft_audio.config import TrainConfig
from peft_audio.encoders.loading import use_exact_float32
from peft_audio.errors import UserError
from peft_audio.training.hardware import choose_precision

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
