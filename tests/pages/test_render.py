from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from peft_audio.pages.render import render_html, render_text

HOSTILE = "<script>alert(1)</script> {{ 7 * 7 }} {% raw %} '\""


def test_values_are_text_in_html_and_never_templates() -> None:
    page = render_html("page.html", title=HOSTILE)
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 7 }} {% raw %} &#39;&#34;" in page


def test_text_holds_values_as_they_are_and_refuses_missing_ones() -> None:
    values = {"labels": HOSTILE, "settings": "", "fit": "", "uncalled": ""}
    code = render_text("load_adapter.py.txt", **values, revision="abc")
    assert f"labels = {HOSTILE}\n" in code and '    dtype=torch.float32, revision="abc",\n' in code
    assert "    dtype=torch.float32,\n" in render_text("load_adapter.py.txt", **values, revision=None)
    with pytest.raises(UndefinedError, match="revision"):
        render_text("load_adapter.py.txt", **values)
