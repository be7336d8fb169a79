"""Verify that an adapter reproduces its recorded logits."""

from __future__ import annotations

import sys
from pathlib import Path

from peft_audio.errors import UserError
from peft_audio.processes import quick_imports

# Relative to the larger of 1 and the largest logit. Float32 sums in another order differ: an adapter that was recorded
# on an AMD EPYC (tests/golden/rslora) has logits that differ by 2e-5 on an Intel Xeon with AMX.
TOLERANCE = 1e-4


def check_probes(folder: Path, base: str | None = None) -> list[str]:
    """List the differences between recorded and measured logits of the probe clips.

    Args:
        folder: Adapter directory.
        base: Folder or Hub id of the base encoder, if the recorded one is no longer valid.

    Returns:
        One phrase per difference; none if logits are equal within `TOLERANCE` and top labels are the same.

    Raises:
        UserError: The adapter cannot be loaded.
    """
    # Imported here, so that `quick_imports` in `main` covers it.
    from peft_audio.adapters.load import as_published, load_unchecked
    from peft_audio.adapters.probes import check_answers

    adapter = load_unchecked(folder, base)
    problems = check_answers(adapter, TOLERANCE)
    if problems or not adapter.record.family.uncalled:
        return problems
    problems = check_answers(as_published(adapter), TOLERANCE)
    return [f"loaded as in its README: {problem}" for problem in problems]


def main(folder: str) -> int:
    """Print the problems of an adapter directory, and return the exit code, 1 if there are any."""
    try:
        with quick_imports():
            problems = check_probes(Path(folder))
    except UserError as error:
        problems = [str(error)]
    print("\n".join(problems) or "ok")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
