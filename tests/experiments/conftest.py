"""Let the tests of this folder import its helpers, and print on a screen wide enough for every table."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _wide_screen():
    """For runs that a whole module shares, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "150")
        yield
