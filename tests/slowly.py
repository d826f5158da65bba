"""Families of which the ordinary run sees some, and `make slow` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def all_but(usual: Iterable[str], names: Iterable[str]) -> list[Any]:
    """Return names as parameters, slow but for the usual ones, of which each must be there."""
    usual, names = set(usual), list(names)
    assert usual <= set(names), usual
    return [name if name in usual else pytest.param(name, marks=pytest.mark.slow) for name in names]
