"""Marks on what Haiku modules return, by interception of the transformed function."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from abstraction.models.any_model.program import called


@contextlib.contextmanager
def haiku_marks() -> Iterator[None]:
    """Mark what every Haiku module returns that runs inside; nothing where Haiku has not been imported."""
    haiku = sys.modules.get("haiku")
    if haiku is None:
        yield
        return

    def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name == "__init__":
            return function(*args, **kwargs)
        path = context.module.module_name.replace("/~/", "/")
        place = path if context.method_name == "__call__" else f"{path}.{context.method_name}"
        return called(function, args, kwargs, place, type(context.module).__name__)

    with haiku.intercept_methods(intercept):
        yield
