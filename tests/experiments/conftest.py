"""Let the tests of this folder import its helpers, print on a wide enough screen, and look at pages in a browser."""

import shutil
import sys
from pathlib import Path

import matplotlib.figure
import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def _wide_screen():
    """For runs that a whole module shares, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "150")
        yield


_WHOLE_RUNS = {
    "test_addition_quick": "done", "test_certify": "folder", "test_ioi": "run", "test_lm_reduction": "done",
    "test_mcqa": "run", "test_progressive_methods": "problem", "test_reduction_quick": "done",
}  # fmt: skip
"""Modules and their fixture that runs a whole experiment, half a minute to two minutes of one core."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """What reads a whole run is slow, but of `heq`; `make quick` leaves a run of each, checked by `make check-quick`.

    Tests that share a run stay together, on one worker.
    """
    for item in items:
        if isinstance(item, pytest.Function) and _WHOLE_RUNS.get(item.path.stem) in item.fixturenames:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


_BLANK = ("test_command_line", "test_endings", "test_heq_resume", "test_ioi", "test_record_damage")
"""Modules whose runs leave figures that nobody looks at: drawing them takes longer than everything else there."""


@pytest.fixture(autouse=True, scope="module")
def _blank_figures(request: pytest.FixtureRequest):
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem in _BLANK:
            blank = lambda figure, path, **_: Path(path).write_bytes(b"blank")
            patch.setattr(matplotlib.figure.Figure, "savefig", blank)
        yield


@pytest.fixture(name="browser")
def _browser():
    pytest.importorskip("selenium", reason="pip install selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update",
                 "disable-sync", "no-first-run", "window-size=1000,900"):  # fmt: skip
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()
