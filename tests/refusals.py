"""One row of a table of bad inputs: what is called, and a word its refusal must contain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest


class Refusal(NamedTuple):
    """A call that must be refused."""

    name: str
    call: Callable[[], Any]
    match: str


def check_refusal(row: Refusal) -> None:
    """Run the call: a ValueError that says what was got and what was expected."""
    with pytest.raises(ValueError, match=row.match) as caught:
        row.call()
    message = str(caught.value)
    assert "got" in message, message
    assert "expected" in message, message
