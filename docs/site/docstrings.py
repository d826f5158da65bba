"""Docstrings as they are read in the code: what is laid out in columns keeps its lines on the site."""

import re
from typing import Any

import griffe

COLUMNS = re.compile(r"\S {2,}\S")
SECTION = re.compile(r"[A-Z]\w+:\n")


class KeepColumns(griffe.Extension):
    """Fence the paragraphs of a docstring whose words are set in columns."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of every object."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Fence paragraphs with columns; leave the first line, sections, and what is indented, which is code already."""
    first, *others = re.split(r"\n[ \t]*\n", text)
    return "\n\n".join([first, *(f"```text\n{part}\n```" if _has_columns(part) else part for part in others)])


def _has_columns(part: str) -> bool:
    return not (SECTION.match(part) or part.startswith("    ")) and any(map(COLUMNS.search, part.splitlines()))
