"""Is this adapter whole, and does it answer as recorded?"""

from __future__ import annotations

import sys
from pathlib import Path

from peft_audio.errors import UserError
from peft_audio.processes import quick_imports

# Of float32 sums in another order, relative to the largest logit where that is above 1: an adapter that was recorded on
# an AMD EPYC (tests/golden/rslora) answers 2e-5 off on an Intel Xeon with AMX.
TOLERANCE = 1e-4


def check_probes(folder: Path, base: str | None = None) -> list[str]:
    """What differs between the recorded and the measured answers to the probe clips.

    Args:
        folder: An adapter directory.
        base: Where the base encoder is now, if not where the record says.

    Returns:
        One sentence a difference; none if logits agree within `TOLERANCE` and top labels by name.

    Raises:
        UserError: It cannot be loaded.
    """
    # Here, so that a process that only verifies can start quickly.
    from peft_audio.adapters.load import as_published, load_unasked
    from peft_audio.adapters.probes import check_answers

    adapter = load_unasked(folder, base)
    problems = check_answers(adapter, TOLERANCE)
    if problems or not adapter.record.family.uncalled:
        return problems
    found = check_answers(as_published(adapter), TOLERANCE)
    return [f"loaded as its README says, {problem}" for problem in found]


def main(folder: str) -> int:
    """Print what is wrong with an adapter directory; the exit code says whether anything is."""
    try:
        with quick_imports():
            problems = check_probes(Path(folder))
    except UserError as error:
        problems = [str(error)]
    print("\n".join(problems) or "ok")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
