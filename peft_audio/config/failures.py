"""What a library or the machine raised, in words for the user, where there is something to be done about it."""

from __future__ import annotations

import errno

AGAIN = "The same command with --train.resume true goes on from the last checkpoint."
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG)


def explain(error: BaseException) -> str | None:
    """What happened and what helps; None for what nobody but us can mend.

    Args:
        error: What ended the run.
    """
    said = " ".join(str(error).split())
    out_of_memory = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, MemoryError) or any(words in said for words in out_of_memory):
        return (
            f"memory is too small ({said[:120] or 'MemoryError'}). Split steps with "
            "--train.gradient_accumulation_steps (the clips of a step stay the same) or let --train.auto_micro_batch "
            "true find how; lower --data.max_seconds; in an evaluation, lower --train.batch_size or "
            "--data.max_eval_seconds."
        )
    if "DataLoader worker" in said and ("exited unexpectedly" in said or "killed by signal" in said):
        return (
            f"a process that reads recordings died ({said[:160]}), often for want of memory. Lower "
            f"--data.num_workers, or set it to 0. {AGAIN}"
        )
    number, strerror = getattr(error, "errno", None), getattr(error, "strerror", None)
    if number in FULL or "No space left on device" in said:
        where = getattr(error, "filename", None)
        return f"the disk is full{f' at {where}' if where else ''} ({strerror or said[:160]}). Make room. {AGAIN}"
    if number in REFUSED:
        return f"{getattr(error, 'filename', None) or 'a file'} cannot be written or read ({strerror}). {AGAIN}"
    return None
