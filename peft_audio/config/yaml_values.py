"""Read YAML that holds values alone: it runs no code, imports nothing and does not grow when it is read."""

from __future__ import annotations

import re
from typing import Any

import yaml

NO_CODE = "settings are values, and name no code"
# Settings are sections of settings; deeper than this, Python itself would not read them.
DEEPEST = 20
# A whole number of 308 digits, 256 of them in base 16, no longer is a float, and jsonargparse does not expect it.
_HUGE = re.compile(r"[-+]?[0-9][0-9a-fxob_:]{250,}", re.IGNORECASE)


class NotPlain(yaml.MarkedYAMLError):
    """The YAML holds more than values."""


def plain_yaml(text: str) -> Any:
    """Read YAML without tags, class_path (jsonargparse would import it), aliases or deep nesting.

    Raises:
        yaml.YAMLError: The text holds more than values, or is not YAML.
    """
    check_plain(text)
    return yaml.safe_load(text)


def dotted(text: str) -> dict[str, Any]:
    """Read the settings of a run's config.yaml, or of a similar file, by dotted name.

    Raises:
        yaml.YAMLError: As `plain_yaml`; also if the text does not hold sections of settings.
    """
    sections = plain_yaml(text)
    if not isinstance(sections, dict) or not all(isinstance(values, dict) for values in sections.values()):
        raise yaml.YAMLError("it does not hold settings by section")
    return {f"{part}.{name}": value for part, values in sections.items() for name, value in values.items()}


def check_plain(text: str) -> None:
    """Refuse YAML that `plain_yaml` does not read, without building its values.

    Raises:
        NotPlain: The text holds more than values.
        yaml.YAMLError: The text is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        mark: Any = event.start_mark
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.ScalarEvent) and event.value == "class_path":
            raise NotPlain(problem=f"a class_path; {NO_CODE}", problem_mark=mark)
        if isinstance(event, yaml.ScalarEvent) and event.style is None and _HUGE.fullmatch(event.value):
            raise NotPlain(problem=f"a number of {len(event.value)} digits, which no setting takes", problem_mark=mark)
        if isinstance(event, yaml.AliasEvent):
            # A few lines of them stand for gigabytes.
            problem = f"the alias *{event.anchor}; what it stands for must be written out"
            raise NotPlain(problem=problem, problem_mark=mark)
        if depth > DEEPEST:
            raise NotPlain(problem=f"values nested {depth} deep, which no setting is", problem_mark=mark)
