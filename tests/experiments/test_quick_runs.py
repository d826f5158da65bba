"""What `make quick` leaves: whole runs, numbers that can be, controls beside every score, and what is found there."""

import math
from pathlib import Path

import pytest
from heqruns import command

from experiments.command_line import EXPERIMENTS
from experiments.harness.metrics import Metrics
from experiments.harness.page.writing import NAME
from experiments.harness.records import RunFolder, open_run

pytestmark = pytest.mark.quick
RUNS = Path(__file__).parents[2] / "runs" / "quick"
SHARES = ("iia", "iia_low", "iia_high", "accuracy", "agreement", "chance", "coverage")
FOUND = {
    "heq": ("das", "mean", 0.7),
    "addition": ("plot-oblique-das", "mean", 0.9),
    "mcqa": ("plot-das", "answer", 0.9),
}
"""A method that finds its variable even in a small run: what it scores at least; its controls are 0.2 below."""


@pytest.fixture(scope="module", name="run", params=EXPERIMENTS)
def _run(request: pytest.FixtureRequest) -> RunFolder:
    if not (RUNS / request.param).exists():
        pytest.skip(f"needs runs/quick/{request.param}, which `make quick` leaves")
    return open_run(RUNS / request.param)


@pytest.fixture(scope="module", name="metrics")
def _metrics(run: RunFolder) -> Metrics:
    return Metrics(row for unit in run.units() for row in unit.rows)


def test_every_number_is_finite_written_once_and_a_share_where_it_says_so(run: RunFolder):
    rows = [row for unit in run.units() for row in unit.rows]
    assert rows
    assert {row.experiment for row in rows} == {run.path.name}
    assert len({row[:-1] for row in rows}) == len(rows)
    assert [row for row in rows if not math.isfinite(row.value)] == []
    assert [row for row in rows if row.metric in SHARES and not 0 <= row.value <= 1] == []


def test_every_tested_method_has_an_interval_around_its_score_and_controls(run: RunFolder, metrics: Metrics):
    tested = metrics.tested()
    for method in tested:
        rate = metrics.rate(method, "mean", "test")
        assert rate is not None
        assert rate.low <= rate.mean <= rate.high, method
    kinds = {method.split("-")[1] for method in metrics.methods if method.startswith("control-")}
    if tested:
        assert {"identity", "random", "shuffled"} <= kinds
    else:
        assert run.path.name in ("reduction", "certify", "discovery", "lm-reduction")


def test_a_variable_that_is_there_is_found_and_its_controls_are_not(run: RunFolder, metrics: Metrics):
    if run.path.name not in FOUND:
        pytest.skip("nothing is sure to be found in so small a run")
    method, variable, least = FOUND[run.path.name]
    score = metrics.mean(method, variable, "test", "iia")
    assert score >= least
    for kind in ("random", "shuffled"):
        assert metrics.mean(f"control-{kind}-{method}", variable, "test", "iia") < score - 0.2


def test_figures_and_a_page_were_written(run: RunFolder):
    figures = sorted((run.path / "figures").iterdir())
    assert {path.suffix for path in figures} == {".pdf", ".png"}
    assert min(path.stat().st_size for path in figures) > 1000
    page = (run.path / NAME).read_text(encoding="utf-8")
    assert 'src="http' not in page, "a page needs nothing from elsewhere"
    assert page.rstrip().endswith("</html>")


def test_the_tables_are_made_from_the_records_alone(run: RunFolder):
    ended = command("tables", "--details", "--out", run.path)
    assert (ended.status, ended.err) == (0, "")
    assert max(map(len, ended.out.splitlines())) <= 150, "the screen of these tests"
    assert len(ended.out.splitlines()) > 10
