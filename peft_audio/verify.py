"""Is this adapter whole, and does it answer as recorded?"""

from __future__ import annotations

import sys
from pathlib import Path

from peft_audio.config import UserError
from peft_audio.quick_start import quick_imports

# Of float32 sums in another order, on another processor, relative to the largest logit where that is above 1.
TOLERANCE = 1e-5


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
    from peft_audio.adapters import load_adapter, measure_probes

    adapter = load_adapter(folder, base, merge=False)
    if not adapter.record.probes:
        return ["the record holds no probe clips"]
    problems = []
    for was, now in zip(adapter.record.probes, measure_probes(adapter), strict=True):
        clip = f"probe of {was['seconds']:g} s"
        if set(was["logits"]) != set(now["logits"]):
            problems.append(f"{clip}: the recorded logits are of other labels")
            continue
        # By name, so that labels in another order are noticed even where the top one is the same.
        differences = [abs(was["logits"][label] - value) for label, value in now["logits"].items()]
        # Written so that NaN, which is not smaller than anything either, is a difference too.
        allowed = TOLERANCE * max(1.0, *(abs(value) for value in was["logits"].values()))
        if not all(difference <= allowed for difference in differences):
            problems.append(f"{clip}: logits differ by {max(differences):.1e}, more than {allowed:.0e}")
        if was["label"] != now["label"]:
            problems.append(f"{clip}: says {now['label']}, recorded {was['label']}")
    return problems


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
