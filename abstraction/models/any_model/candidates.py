"""What a model has that can be tapped, as a table."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from abstraction.models.any_model.functions import as_function
from abstraction.models.any_model.wrapped import BatchSpot, batch_spots


class Candidate(NamedTuple):
    """A value that can be a tap.

    Attributes:
      place: what `wrap` takes: one place, or an expression that matches those that differ by a number.
      kind: `module`, `name` or `line`.
      about: the class of the module, or the operation.
      depth: how often it occurs in a run.
      shape: of one occurrence, examples in front, `[N, ..., D]`.
      obstacle: why it cannot be a tap; empty where it can.
    """

    place: str
    kind: str
    about: str
    depth: int
    shape: tuple[int, ...]
    obstacle: str


class Listing(tuple[Candidate, ...]):
    """Candidates, in the order in which they first run; `print` shows a table."""

    def __str__(self) -> str:
        rows = [("place", "what", "depth", "shape [N, ..., D]", "")]
        for each in self:
            what = each.about if each.kind != "line" else f"line: {each.about}"
            rows.append((each.place, what, str(each.depth), str(list(each.shape)), each.obstacle))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows)


def listing(model: Any, params: Any, inputs: Any, *, lines: bool = True) -> Listing:
    """List every value of a model that can be read and replaced.

    Args:
      model: as `wrap` takes it.
      params: likewise.
      inputs: likewise; outputs may be anything here.
      lines: whether to list what source lines compute, beside modules and names.

    Returns:
      Place, depth and shape of each; those that cannot be opened say why.

    Raises:
      ValueError: what `wrap` refuses of a model as a whole.
    """
    function, arrays = as_function(model, params, None)
    spots = [each for each in batch_spots(function, arrays, inputs, outputs=False) if _shown(each, lines)]
    return Listing(_candidate(place, found) for place, found in _grouped(spots))


def _shown(each: BatchSpot, lines: bool) -> bool:
    """Leave out what a line computes that is no activation: a bias that is broadcast, a mask."""
    return each.spot.kind != "line" or (lines and each.axis is not None)


def _grouped(spots: list[BatchSpot]) -> Iterable[tuple[str, list[BatchSpot]]]:
    """Join places of one shape, and modules that differ by a number alone: one expression matches all of them."""
    groups: dict[tuple[str, tuple[int, ...], int | None], list[BatchSpot]] = {}
    for each in spots:
        place = each.spot.place
        joined = re.sub(r"(?<![^/])[0-9]+(?![^/])", "[0-9]+", place) if each.spot.kind == "module" else place
        groups.setdefault((joined, each.spot.shape, each.axis), []).append(each)
    for (joined, *_), found in groups.items():
        names = {each.spot.place for each in found}
        yield joined if len(names) > 1 else names.pop(), found


def _candidate(place: str, found: list[BatchSpot]) -> Candidate:
    spot, axis = found[0]
    shape, obstacle = spot.shape, spot.obstacle
    if axis is None or len(shape) < 2:
        obstacle = obstacle or "has not one axis of examples and one of units"
    else:
        shape = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    about = f"{spot.about}; {spot.note}" if spot.note else spot.about
    return Candidate(place, spot.kind, about, sum(each.spot.times for each in found), shape, obstacle)
