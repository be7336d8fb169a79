"""What a library or the machine raised, in words for the user, where there is something to be done about it."""

from __future__ import annotations

import errno
import signal

# SIGTERM comes from `kill`, from SLURM on pre-emption and from torchrun; SIGUSR1 from SLURM where a job asks for a
# warning (`--signal=USR1@90`).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
AGAIN = "The same command with --train.resume true goes on from the last checkpoint."
LESS_MEMORY = (
    "Split steps with --train.gradient_accumulation_steps (the clips of a step stay the same) or let "
    "--train.auto_micro_batch true find how; lower --data.max_seconds; in an evaluation, lower --train.batch_size or "
    "--data.max_eval_seconds."
)
FULL = (errno.ENOSPC, errno.EDQUOT)
MEANINGS = {
    # Of gloo and of NCCL.
    ("Connection closed by peer", "Connection reset by peer", "ncclRemoteError", "remote process exited"): (
        "another process of this run ended or is out of reach; what it said tells why ({said}). {again}"
    ),
    ("does not have a deterministic implementation",): (
        "--train.deterministic: torch has no such kernel here ({said}). Leave the setting out."
    ),
}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG)


def explain(error: BaseException, folder: str, less_memory: str = LESS_MEMORY, again: str = AGAIN) -> str | None:
    """What happened and what helps; None for what nobody but us can mend.

    Args:
        error: What ended the run or the command.
        folder: The one it writes to, if it is known.
        less_memory: How to get by with less memory.
        again: How to go on once it is mended.
    """
    said = " ".join(str(error).split())
    out_of_memory = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, MemoryError) or any(words in said for words in out_of_memory):
        return f"memory is too small ({said[:120] or 'MemoryError'}). {less_memory}"
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "killed by signal" in said):
        return (
            f"a process that reads recordings died ({said[:160]}), often for want of memory. Lower "
            f"--data.num_workers, or set it to 0. {again}"
        )
    for parts, meaning in MEANINGS.items():
        if any(part in said for part in parts):
            return meaning.format(said=said[:160], again=again)
    number, strerror = getattr(error, "errno", None), getattr(error, "strerror", None)
    where = getattr(error, "filename", None)
    if number in FULL or "No space left on device" in said:
        at = f" at {where}" if where else f", most likely that of {folder}" if folder else ""
        return f"the disk is full{at} ({strerror or said[:160]}). Make room. {again}".rstrip()
    if number in REFUSED or (number == errno.ENOENT and where):
        what = "is not there, or not any more" if number == errno.ENOENT else "cannot be written or read"
        return f"{where or 'a file'} {what} ({strerror}). {again}".rstrip()
    return None
