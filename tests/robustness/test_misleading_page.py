from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_on_misleading_results_names_tests_that_exist() -> None:
    rows = [
        line
        for line in (ROOT / "docs" / "misleading.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| \d", line)
    ]
    assert {int(row.split("|")[1]) for row in rows} == set(range(1, 18))
    for row in rows:
        file = ""
        named = re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", row)
        assert named and named[0][0], row
        for path, test in named:
            file = path or file
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, test)
