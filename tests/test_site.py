"""The site: what its hooks make of links, formulas and docstrings. `make docs` builds all of it."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SITE = Path(__file__).parent.parent / "docs" / "site"


def _module(name, *packages):
    for package in packages:
        pytest.importorskip(package, reason="make docs installs it")
    return SimpleNamespace(**runpy.run_path(str(SITE / f"{name}.py")))


@pytest.fixture(scope="module")
def hooks():
    return _module("hooks", "mkdocs", "griffe", "jupytext", "latex2mathml")


def _moved(hooks, page, text):
    return hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)), None, None)


def test_links_lead_where_they_do_in_the_repository(hooks):
    assert _moved(hooks, "index.md", "[a](docs/method.md) [b](CHANGELOG.md#x)") == "[a](method.md) [b](changelog.md#x)"
    assert _moved(hooks, "method.md", "[a](results) [b](../README.md)") == "[a](results/README.md) [b](index.md)"
    assert _moved(hooks, "speed.md", "[a](../benchmarks/results/speed.csv)") == "[a](benchmarks/results/speed.csv)"
    assert _moved(hooks, "tutorials/x.md", "[a](a_variable_found.py)") == "[a](a_variable_found.md)"
    assert _moved(hooks, "results/mcqa.md", "[a](../nowhere.md)") == "[a](../nowhere.md)"  # which MkDocs refuses
    code = "```python\nf[0](docs/method.md)\n```"
    assert _moved(hooks, "index.md", code) == code


def test_a_formula_is_mathml_or_an_error(hooks):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="method.md"))
    drawn = hooks.on_page_content('<span class="arithmatex">\\(a&lt;\\tfrac{b}{2}\\ c\\)</span>', page, None, None)
    assert drawn.startswith("<math")
    assert "<mfrac>" in drawn
    assert "\\" not in drawn
    with pytest.raises(Exception, match="no words for"):
        hooks.on_page_content('<span class="arithmatex">\\(\\nosuchcommand x\\)</span>', page, None, None)


def test_columns_of_a_docstring_keep_their_lines():
    docstrings = _module("docstrings", "griffe")
    kept = "One line   (source).\n\n    a formula    (1)\n\nArgs:\n  a: two  spaces.\n\nProse. One space."
    assert docstrings.fenced(kept) == kept
    table = "first   what it is\nsecond  another"
    assert docstrings.fenced(f"One line.\n\n{table}") == f"One line.\n\n```text\n{table}\n```"
