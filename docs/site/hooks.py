"""What MkDocs does not do by itself: pages from files outside `docs`, links as the repository has them, formulas.

Links lead where they do on disk, so the same pages read well in the repository and on the site. A link out of `docs`
brings the file along; one to a folder leads to its README, or to a list of what is there. Tutorials are scripts with
percent cells; nothing is run here. Formulas become MathML, which browsers draw without a script.
"""

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
import jupytext
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "abstraction"
FRONT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
FENCE = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', flags=re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference where the navigation leaves a place for them."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] = _reference_nav()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the files that pages link to."""
    texts = {source: (ROOT / source).read_text(encoding="utf-8") for source in FRONT}
    texts |= {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in _pages()}
    for source, page in FRONT.items():
        files.append(File.generated(config, page, content=texts[source]))
    for script in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        page = f"tutorials/{script.stem}.md"
        files.append(File.generated(config, page, content=_tutorial(script)))
    for page, content in _reference().items():
        files.append(File.generated(config, page, content=content))
    for target in sorted({target for source, text in texts.items() for target in _targets(source, text)}):
        _bring(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links where they lead in the repository."""
    origin = {page: source for source, page in FRONT.items()}.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        target = _resolved(origin, link[1])
        if not (ROOT / target).exists():
            return link[1]  # a page that is made, or a broken link, which MkDocs reports
        return posixpath.relpath(_site_path(target), here or ".")

    parts = re.split(f"({FENCE.pattern})", markdown, flags=FENCE.flags)
    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML; one that cannot be is an error."""

    def drawn(formula: re.Match[str]) -> str:
        text = re.sub(r"\\(?=\s)", r"\\;", _unescaped(formula[2]))
        found = convert(text, display="block" if formula[1] == "div" else "inline")
        if "\\" in found:
            raise PluginError(f"got a formula that MathML has no words for in {page.file.src_uri}: {text}")
        return found

    return FORMULA.sub(drawn, html)


def _pages() -> list[Path]:
    return sorted(path for path in (ROOT / "docs").rglob("*.md"))


def _unescaped(text: str) -> str:
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _resolved(origin: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _targets(source: str, text: str) -> list[str]:
    """Return what a page links to outside of `docs`, from the root of the repository."""
    found = [_resolved(source, link) for link in LINK.findall(FENCE.sub("", text))]
    return [target for target in found if not target.startswith("docs/") and target not in FRONT]


def _site_path(target: str) -> str:
    """Return where a file or folder of the repository is on the site."""
    if target in FRONT:
        return FRONT[target]
    path = PurePosixPath(target)
    inside = path.relative_to("docs") if path.parts[0] == "docs" else path
    if (ROOT / target).is_dir():
        return (inside / ("README.md" if (ROOT / target / "README.md").exists() else "index.md")).as_posix()
    if inside.parts[0] == "tutorials" and inside.suffix == ".py":
        return inside.with_suffix(".md").as_posix()
    return inside.as_posix()


def _bring(files: Files, config: MkDocsConfig, target: str) -> None:
    """Bring a file along, or of a folder all of its files and a page with them."""
    path = ROOT / target
    if not path.is_dir():
        if path.exists() and files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(path)))
        return
    names = sorted(each.name for each in path.iterdir() if each.is_file())
    for name in names:
        _bring(files, config, f"{target}/{name}")
    shown = [f"![{Path(name).stem}]({name})" if name.endswith(".png") else f"- [{name}]({name})" for name in names]
    files.append(File.generated(config, f"{target}/index.md", content="\n".join([f"# {target}", "", *shown, ""])))


def _tutorial(script: Path) -> str:
    notebook: Any = jupytext.reads(script.read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = {"jupytext": {"notebook_metadata_filter": "-all"}}
    note = f"*This page is a script: [{script.name}]({script.name}?raw). `make notebooks` makes a notebook of it.*"
    cells = [
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in notebook.cells
    ]
    return "\n\n".join([*cells, note, ""])


def _modules(room: Path) -> list[str]:
    """Name the modules of a room, and those of a folder in it: `any_model.program`."""
    inner = (path for path in room.glob("*/*.py") if room != PACKAGE)
    paths = [path for path in (*room.glob("*.py"), *inner) if not path.stem.startswith("_")]
    return sorted(".".join(path.relative_to(room).with_suffix("").parts) for path in paths)


def _rooms() -> list[str]:
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def _reference_nav() -> list[Any]:
    nav: list[Any] = ["reference/index.md"]
    nav += [{name: f"reference/{name}.md"} for name in _modules(PACKAGE)]
    for room in _rooms():
        pages: list[Any] = [f"reference/{room}/index.md"]
        nav.append({room: pages + [{name: f"reference/{room}/{name}.md"} for name in _modules(PACKAGE / room)]})
    return nav


def _reference() -> dict[str, str]:
    """Write a page for the front door and for each room, which list their names, and one for each module."""
    package: Any = griffe.load("abstraction", search_paths=[str(ROOT)], allow_inspection=False)
    pages = {"reference/index.md": _door("abstraction", package)}
    pages |= {f"reference/{name}.md": _module(f"abstraction.{name}") for name in _modules(PACKAGE)}
    for room in _rooms():
        pages[f"reference/{room}/index.md"] = _door(f"abstraction.{room}", package[room])
        modules = _modules(PACKAGE / room)
        pages |= {f"reference/{room}/{name}.md": _module(f"abstraction.{room}.{name}") for name in modules}
    return pages


def _module(path: str) -> str:
    return f"# `{path}`\n\n::: {path}\n"


def _door(path: str, module: Any) -> str:
    """List the names that a room exports, each by its first line."""
    exports = {name: module[name].target_path for name in module.exports or ()}
    exported = _homes() if path == "abstraction" else exports
    names = sorted(exported, key=str.lower)
    rows = [f"| [`{name}`][{_final(module, exported[name])}] | {_first(module, exported[name])} |" for name in names]
    table = ["## Names", "", "| | |", "|---|---|", *rows] if rows else []
    options = "    options:\n      members: false"
    return "\n".join([f"# `{path}`", "", f"::: {path}", options, "", *table, ""])


def _homes() -> dict[str, str]:
    """Read where the front door finds each name: it imports them when they are asked for."""
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    homes = re.findall(r"^    from (abstraction[.\w]*) import (\w+) as ", source, flags=re.MULTILINE)
    return {name: f"{home}.{name}" for home, name in homes}


def _found(module: Any, path: str) -> Any:
    found = module.package[path.removeprefix("abstraction.")]
    return found.final_target if found.is_alias else found


def _final(module: Any, path: str) -> str:
    return _found(module, path).path


def _first(module: Any, path: str) -> str:
    docstring = _found(module, path).docstring
    return docstring.value.strip().split("\n\n")[0].replace("\n", " ").replace("|", "\\|") if docstring else ""
