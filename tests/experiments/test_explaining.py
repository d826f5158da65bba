"""`--explain`: every experiment says what it would ask of its networks, and nothing runs."""

import re
from pathlib import Path

import pytest
from heqruns import SMALL, command

from abstraction.explaining import count_operations
from experiments.command_line import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("shapes_for_arrays")
ASKED = {
    "heq": ["record", "site_signatures", "sweep", "tally_handles", "train_candidates"],
    "addition": ["record", "site_signatures", "sweep", *["tally_handles"] * 2, *["train_candidates"] * 3],
    "mcqa": ["record", "site_signatures", "sweep", *["tally_handles"] * 2, *["train_candidates"] * 2],
    "ioi": ["record", "site_signatures", "sweep", *["tally_handles"] * 2, "train_candidates"],
    "reduction": ["collect_statistics", "interchanged_outputs"],
    "certify": ["collect_statistics", "interchanged_outputs"],
    "discovery": ["record", "site_signatures", "sweep", "tally_handles", "train_candidates"],
    "lm-reduction": ["text_statistics"],
}


def test_every_experiment_is_looked_at():
    assert set(ASKED) == set(EXPERIMENTS)


@pytest.mark.parametrize("name", ASKED)
def test_every_experiment_says_what_it_asks(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("experiments.reduction.options.SHARED", tmp_path / "none")
    experiment = EXPERIMENTS[name]
    first = experiment.costs(experiment.options.preset("quick")).cases[0]
    drivers = first.drivers()
    assert [driver.name for driver in drivers] == ASKED[name]
    for driver in drivers:
        assert driver.runs > 0
        assert count_operations(driver.at(1)) > 0, driver


def test_what_a_run_would_cost_is_printed_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    ended = command("heq", "--explain", "--methods", "plot-ot", "das", *SMALL)
    assert (ended.status, ended.err) == (0, "")
    assert re.search(r"heq, on this \w+", ended.out)
    assert re.search(r"train_candidates das: 8 searches, rank 4, 64 pairs a step +4,096", ended.out), ended.out
    assert "peak GB" in ended.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target", "h100"), "got --target h100, expected given beside --explain"),
        (("--explain", "--target", "gpu"), "got target 'gpu', expected one of"),
        (("--explain", "--das.ranks", "99"), "--das.ranks"),
    ],
)
def test_what_cannot_be_explained_is_one_line(flags: tuple[str, ...], words: str):
    ended = command("heq", *flags)
    assert (ended.status, ended.out) == (2, "")
    assert words in ended.err
