"""Options: seeds are read, presets only shrink, every option is a flag with help, and what cannot work is refused."""

import dataclasses
import re
from typing import Any

import pytest
from heqruns import command

from experiments.addition.options import Addition
from experiments.certify.options import Certify
from experiments.command_line import EXPERIMENTS, parsed
from experiments.discovery.options import Discovery
from experiments.equality.options import Equality
from experiments.harness.options import Options, changed
from experiments.harness.valid import parse_seeds
from experiments.lm_reduction.options import LmReduction
from experiments.mcqa.options import Mcqa
from experiments.reduction.options import SHARED, OfDigits, Reduction

COMPLETE = {"heq": Equality, "addition": Addition, "mcqa": Mcqa, "reduction": Reduction, "certify": Certify}
COMPLETE |= {"discovery": Discovery, "lm-reduction": LmReduction}


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


@pytest.mark.parametrize("kind", COMPLETE.values(), ids=COMPLETE)
def test_quick_enlarges_nothing_and_is_smaller(kind: type[Options]):
    before, after = _leaves(kind()), _leaves(kind.preset("quick"))
    sizes = {name: (_size(before[name]), _size(after[name])) for name in before}
    grown = {name: pair for name, pair in sizes.items() if None not in pair and (pair[1] or 0) > (pair[0] or 0)}
    assert grown == {}
    assert sum(before[name] != after[name] for name in before) > 5


@pytest.mark.parametrize("kind", COMPLETE.values(), ids=COMPLETE)
def test_the_options_and_every_preset_can_work(kind: type[Options]):
    for options in (kind(), *(kind.preset(name) for name in kind.PRESETS)):
        if isinstance(options, OfDigits) and options.data.data == "mnist" and not SHARED.is_dir():
            with pytest.raises(ValueError, match="got --data mnist, expected the folder of its four files"):
                options.check()
        else:
            options.check()


def test_a_preset_keeps_what_it_does_not_name():
    quick, usual = Equality.preset("quick"), Equality()
    assert quick.das == dataclasses.replace(
        usual.das, ranks=(1, 2, 4, 8, 12), training=dataclasses.replace(usual.das.training, max_epochs=5)
    )
    assert changed(usual, {}) == usual


def test_every_flag_beside_a_preset_wins():
    read = parsed(EXPERIMENTS["heq"], ["--quick", "--seeds", "4,7", "--das.ranks", "3"])[1]
    assert read == changed(Equality.preset("quick"), {"seeds": "4,7", "das.ranks": (3,)})
    assert parsed(EXPERIMENTS["addition"], ["--methods", "plot-das", "--paper"])[1] == changed(
        Addition.preset("paper"), {"methods": ("plot-das",)}
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    {
        "a name": ({"methods": ("plot-das", "plot-dsa")}, "got --methods .*; did you mean plot-das[?]"),
        "a name twice": ({"methods": ("plot-das", "plot-das")}, "expected some of .*, each once"),
        "nothing": ({"das.ranks": ()}, r"got --das.ranks \[\], expected one or more at least 1"),
        "one of several": (
            {"stages.shares": (0.5, 2.0)},
            r"got --stages.shares \[0.5, 2.0\], expected in \(0, 1\]",
        ),
        "not a number": ({"masks.learning_rate": float("nan")}, "got --masks.learning-rate nan, expected positive"),
        "a rank above the width": ({"oblique.ranks": (17,)}, r"got --oblique.ranks \[17\], expected 1 to 16"),
        "more pairs than there are": ({"banks.fit": 1}, "got --das.training.batch-size 64, expected 1 to 26"),
        "bits": ({"backbone.bits": 1}, "got --backbone.bits 1, expected 2 to 30 bits"),
    }.values(),
)
def test_a_value_that_cannot_work_is_refused_by_its_flag(changes: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        changed(Addition(), changes).check()


def _helps(subcommand: str) -> dict[str, str]:
    """Return the help text of every flag of a subcommand; text is indented by seven columns, flags by one."""
    ended = command(subcommand, "--help-all")
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


@pytest.mark.parametrize("name", _leaves(Equality()))
def test_every_option_is_a_flag_with_help(helps: dict[str, str], name: str):
    assert _flag(name) in helps
    described = helps[_flag(name)].split("(default")[0]
    assert re.search(r"\w{2,}", described), f"{_flag(name)} has no help, only {helps[_flag(name)]!r}"


def test_no_flag_goes_beyond_the_options(helps: dict[str, str]):
    beside = {"--quick", "--paper", "--no-cache", "--config", "--explain", "--target", "--processes"}
    assert set(helps) == {_flag(name) for name in _leaves(Equality())} | beside


def test_help_shows_the_defaults(helps: dict[str, str]):
    assert "(default: all)" in helps["--methods"]
    assert "(default: 1:11)" in helps["--seeds"]
    assert f"(default: {Equality().das.training.max_epochs})" in helps["--das.training.max-epochs"]


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
