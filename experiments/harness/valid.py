"""What a value of an option may be, and how one that may not is refused: by its flag, saying what was expected."""

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, get_type_hints


class Valid(NamedTuple):
    """What a value, or each of several, may be."""

    holds: Callable[[Any], bool]
    expected: str
    distinct: bool = False
    names: tuple[str, ...] = ()


def least(lowest: int) -> Valid:
    """Make the test of a count."""
    return Valid(lambda value: value >= lowest, f"at least {lowest}")


def one_of(names: Iterable[str]) -> Valid:
    """Make the test of names, each given once."""
    known = tuple(names)
    return Valid(lambda name: name in known, f"some of {', '.join(known)}, each once", True, known)


COUNT = least(1)
POSITIVE = Valid(lambda value: value > 0 and math.isfinite(value), "positive and finite")
PRICE = Valid(lambda value: value >= 0 and math.isfinite(value), "at least 0 and finite")
SHARE = Valid(lambda value: 0 < value <= 1, "in (0, 1]")
INSIDE = Valid(lambda value: 0 < value < 1, "in (0, 1)")
BELOW_ONE = Valid(lambda value: 0 <= value < 1, "in [0, 1)")


def require(flag: str, value: Any, holds: bool, expected: str) -> None:
    """Refuse a value by its flag, saying what was expected."""
    if not holds:
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"got {flag} {shown}, expected {expected}")


def most_of(flag: str, value: int | Collection[int], most: int, what: str = "") -> None:
    """Refuse numbers outside 1 to the most there can be."""
    values = value if isinstance(value, Collection) else (value,)
    holds = bool(values) and min(values) >= 1 and max(values) <= most
    require(flag, value, holds, f"1 to {most}" + (f", {what}" if what else ""))


def check_values(options: Any, prefix: str = "--") -> None:
    """Refuse a field whose value is not what `Valid` beside its type says, and so on in the options it holds."""
    hints = get_type_hints(type(options), include_extras=True)
    for each in dataclasses.fields(options):
        value, flag = getattr(options, each.name), prefix + each.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_values(value, f"{flag}.")
        for valid in getattr(hints[each.name], "__metadata__", ()):
            if isinstance(valid, Valid) and value is not None:
                _check_value(flag, value, valid)


def _check_value(flag: str, value: Any, valid: Valid) -> None:
    values = value if isinstance(value, tuple) else (value,)
    wrong = [str(each) for each in values if not valid.holds(each)]
    repeated = valid.distinct and len(set(values)) < len(values)
    expected = valid.expected if values else f"one or more {valid.expected}"
    require(flag, value, not wrong and not repeated and bool(values), expected + (nearest(wrong, valid.names)))


def nearest(wrong: Collection[str], names: Iterable[str]) -> str:
    """Say what misspelt names were probably meant to be; nothing where nothing is near."""
    known = list(names)
    close = [match for name in wrong for match in difflib.get_close_matches(name, known, n=1, cutoff=0.5)]
    return f"; did you mean {', '.join(dict.fromkeys(close))}?" if close else ""


def parse_seeds(text: str) -> list[int]:
    """Read `1:11` (stop excluded) or `1,2,5`.

    Raises:
      ValueError: anything else, an empty range, or a seed given twice.
    """
    if bounds := re.fullmatch(r"(\d+):(\d+)", text):
        seeds = [*range(int(bounds[1]), int(bounds[2]))]
    else:
        seeds = [int(seed) for seed in text.split(",")] if re.fullmatch(r"\d+(, ?\d+)*", text) else []
    if not seeds or len(set(seeds)) != len(seeds):
        expected = "start:stop with start below stop, or distinct numbers like 1,2,5"
        raise ValueError(f"got seeds {text!r}, expected {expected}")
    return seeds
