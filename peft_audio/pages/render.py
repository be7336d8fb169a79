"""Fill the templates in `templates/`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render_html(name: str, **values: Any) -> str:
    """Fill an HTML template; values are escaped.

    Args:
        name: File name in `templates/`.
        **values: Variables of the template. A missing one is an error.
    """
    return _environment(escape=True).get_template(name).render(values)


def render_text(name: str, **values: Any) -> str:
    """Fill a template of Markdown or code; values are inserted as they are.

    Args:
        name: File name in `templates/`.
        **values: Variables of the template. Pass text from outside through `text.escape_markdown`. A missing
            one is an error.
    """
    return _environment(escape=False).get_template(name).render(values)


@cache
def _environment(escape: bool) -> Environment:
    # Imported here, so that loading an adapter does not load Jinja2.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        autoescape=escape,
        keep_trailing_newline=True,
        loader=PackageLoader("peft_audio.pages"),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
