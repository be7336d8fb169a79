"""YAML that holds values and nothing else: settings run no code, import nothing, and do not grow when they are read."""

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
    """It is YAML, and says more than values."""


def plain_yaml(text: str) -> Any:
    """What YAML says in values alone: no tags, no class_path (jsonargparse would import it), no aliases, not too deep.

    Raises:
        yaml.YAMLError: It says more, or is none.
    """
    check_plain(text)
    return yaml.safe_load(text)


def dotted(text: str) -> dict[str, Any]:
    """The settings of a run's config.yaml, or of the like, by dotted name.

    Raises:
        yaml.YAMLError: As `plain_yaml`; also where it does not hold sections of settings.
    """
    sections = plain_yaml(text)
    if not isinstance(sections, dict) or not all(isinstance(values, dict) for values in sections.values()):
        raise yaml.YAMLError("it does not hold settings by section")
    return {f"{part}.{name}": value for part, values in sections.items() for name, value in values.items()}


def check_plain(text: str) -> None:
    """Refuse what `plain_yaml` does not take, without building what it stands for.

    Raises:
        NotPlain: It says more than values.
        yaml.YAMLError: It is no YAML.
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
