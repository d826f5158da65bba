"""Options: seeds are read, `quick` only shrinks, and every option is a flag with help."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from heqruns import command

from experiments.equality.options import (
    HEQ,
    METHODS,
    Backbone,
    DasOptions,
    EqualityBanks,
    PaperOptions,
    PlotOptions,
    parse_seeds,
    quick,
)

FEW_SEEDS = HEQ(
    seeds="4,7",
    methods=("das",),
    control_draws=2,
    control_shuffles=1,
    backbone=Backbone(epochs=2),
    banks=EqualityBanks(fit=300, calibration=200),
    plot=PlotOptions(epsilons=(5.0,), taus=(0.7,), strengths=(1.0,)),
    das=DasOptions(ranks=(1,)),
    paper=PaperOptions(beta_neural=(2.0,), subset_sizes=3, strengths=4),
)
RATES = HEQ(
    backbone=Backbone(learning_rate=2e-3),
    das=DasOptions(learning_rates=(3e-2,), restarts=2),
    paper=PaperOptions(das=DasOptions(learning_rates=(4e-4,), restarts=3)),
)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1:4", [1, 2, 3]), ("0:1", [0]), ("5", [5]), ("1,2,5", [1, 2, 5]), ("5, 2", [5, 2]), ("1:11", [*range(1, 11)])],
)
def test_seeds_are_a_range_or_a_list(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["", "a", "3:1", "2:2", "1,1", "-1", "-2:3", "1:2:3", "1.5", "1,,2", ":", "1:", ":3", "1:3,5", "one:two", "1 2"],
)
def test_other_seeds_are_refused(text: str):
    with pytest.raises(ValueError, match=re.escape(f"got seeds {text!r}, expected")):
        parse_seeds(text)


def _leaves(options: Any, prefix: str = "") -> dict[str, Any]:
    """Return every option by its dotted name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        nested = dataclasses.is_dataclass(value)
        found |= _leaves(value, f"{prefix}{field.name}.") if nested else {prefix + field.name: value}
    return found


def _size(value: Any) -> int | None:
    """Return how large an axis is; None for what is not an axis."""
    if isinstance(value, tuple):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@pytest.mark.parametrize("config", [HEQ(), FEW_SEEDS, RATES], ids=["defaults", "small already", "other rates"])
def test_quick_enlarges_nothing(config: HEQ):
    before, after = _leaves(config), _leaves(quick(config))
    grown = {
        name: (value, after[name])
        for name, value in before.items()
        if (size := _size(value)) is not None and _size(after[name]) > size
    }
    assert grown == {}


@pytest.mark.parametrize(
    "name",
    [
        "control_draws", "control_shuffles", "backbone.epochs", "banks.fit", "banks.calibration", "plot.epsilons",
        "plot.taus", "plot.strengths", "das.ranks", "das.training.max_epochs", "paper.beta_neural",
        "paper.subset_sizes", "paper.strengths", "paper.das.ranks", "paper.das.training.max_epochs",
    ],
)  # fmt: skip
def test_quick_shrinks_every_axis_that_costs_time(name: str):
    before, after = _size(_leaves(HEQ())[name]), _size(_leaves(quick(HEQ()))[name])
    assert before is not None
    assert after is not None
    assert 1 <= after < before


def test_quick_keeps_the_first_seed_and_runs_once_more_to_the_same():
    config = quick(HEQ(seeds="4,7", methods=("das",), out=Path("here"), resume=True))
    assert (config.seeds, config.methods, config.out, config.resume) == ("4", ("das",), Path("here"), True)
    assert quick(config) == config


def test_quick_keeps_what_is_not_a_size():
    before, after = _leaves(RATES), _leaves(quick(RATES))
    names = [name for name in before if name.endswith(("learning_rate", "learning_rates", "restarts"))]
    assert len(names) == 5
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_quick_keeps_a_grid_that_was_asked_for():
    asked = quick(HEQ(plot=PlotOptions(epsilons=(5.0,), strengths=(1.3,)), das=DasOptions(ranks=(3,))))
    assert asked.plot.epsilons == (5.0,)
    assert asked.plot.strengths == (1.3,)
    assert asked.das.ranks == (3,)


def _helps(subcommand: str) -> dict[str, str]:
    """Return the help text of every flag of a subcommand; text is indented by seven columns, flags by one."""
    ended = command(subcommand, "--help")
    assert ended.status == 0
    helps: dict[str, str] = {}
    flag = None
    for line in ended.out.splitlines():
        content = line.strip("│")
        if found := re.match(r" (--[\w.-]+)", content):
            flag = found[1]
            helps[flag] = ""
        elif flag and content.startswith(" " * 7):
            helps[flag] += " " + content.strip()
    return helps


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        return _helps("heq")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.mark.parametrize("name", _leaves(HEQ()))
def test_every_option_is_a_flag_with_help(helps: dict[str, str], name: str):
    assert _flag(name) in helps
    described = helps[_flag(name)].split("(default")[0]
    assert re.search(r"\w{2,}", described), f"{_flag(name)} has no help, only {helps[_flag(name)]!r}"


def test_no_flag_goes_beyond_the_options(helps: dict[str, str]):
    assert set(helps) == {_flag(name) for name in _leaves(HEQ())}


def test_help_shows_the_methods_and_the_defaults(helps: dict[str, str]):
    assert f"(default: {' '.join(METHODS)})" in helps["--methods"]
    assert "(default: 1:11)" in helps["--seeds"]
    assert f"(default: {HEQ().das.training.max_epochs})" in helps["--das.training.max-epochs"]


@pytest.mark.parametrize(
    ("subcommand", "flag", "text"),
    [
        ("tables", "--out", "The run folder."),
        ("tables", "--details", "One row per variable"),
        ("figures", "--out", "The run folder."),
    ],
)
def test_the_other_commands_have_help(subcommand: str, flag: str, text: str):
    ended = command(subcommand, "--help")
    assert ended.status == 0
    assert flag in ended.out
    assert text in ended.out
