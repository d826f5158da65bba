"""What the page of a reduction run says: a verdict per budget, lines to hover over, maps of what is kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.harness.curves import Curves, KeptMap, Point
from experiments.harness.style import BLACK, look

_DASHES = {"-": "", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}
Json = dict[str, Any]


def verdicts(curves: Sequence[Curves]) -> list[Json]:
    """Say of each budget what is lost, against the best rival and against units kept by lot.

    One method speaks, the first of ours that ran. Its rival is the best on the test: that favours the rival.
    """
    cards = []
    for each in curves:
        shares = sorted({point.share for line in each.lines.values() for point in line}, reverse=True)
        for share in shares if each.spoken else ():
            at = {method: point for method, line in each.lines.items() for point in line if point.share == share}
            lost = {method: loss(each, point) for method, point in at.items()}
            lost = {method: point for method, point in lost.items() if np.isfinite(point.value)}
            if share < 1 and lost:
                cards.append(_card(each, share, lost))
    return cards


def loss(curves: Curves, point: Point) -> Point:
    """Return what a network loses, with its interval: the measure, or how far it is below the dense network."""
    if curves.lower:
        return point
    # The interval of a difference from a known level: its ends change places.
    value, low, high = curves.dense - point.value, curves.dense - point.high, curves.dense - point.low
    return point._replace(value=value, low=low, high=high)


def _card(curves: Curves, share: float, lost: dict[str, Point]) -> Json:
    rows = [_row(curves, method, lost) for method in sorted(lost, key=lambda name: lost[name].value)]
    speaker = next((method for method in curves.ours if method in lost), next(iter(lost)))
    row = next(row for row in rows if row["method"] == speaker)
    return {
        "group": curves.group,
        "what": curves.what if curves.lower else f"{curves.what}, below the dense network",
        "share": share,
        **row,
        "rows": rows,
    }


def _row(curves: Curves, method: str, lost: dict[str, Point]) -> Json:
    own, by_lot = lost[method], lost.get(curves.lot) if method != curves.lot else None
    apart = (*(curves.ours if method in curves.ours else (method,)), curves.lot)
    rivals = {name: point for name, point in lost.items() if name not in apart}
    rival = min(rivals, key=lambda name: rivals[name].value, default=None)
    best = rivals[rival] if rival is not None else None
    say, good = ("units kept by lot", False) if method == curves.lot else _said(own, (rival, best), by_lot)
    return {
        "method": method,
        "say": say,
        "good": good,
        "units": own.units,
        "note": own.note,
        "loss": own.value,
        **_ends(own),
        "rival": rival,
        "rival_loss": None if best is None else best.value,
        "of_rival": _part(own, best),
        "random_loss": None if by_lot is None else by_lot.value,
        "of_random": _part(own, by_lot),
    }


def _said(own: Point, rival: tuple[str | None, Point | None], by_lot: Point | None) -> tuple[str, bool]:
    """Say the worst that holds: no better than by lot, more than a rival, not told apart, less."""
    name, best = rival
    if by_lot is not None and not _less(own, by_lot):
        return "not shown to lose less than units kept by lot", False
    if best is None:
        return (
            "loses less than units kept by lot" if by_lot else "nothing to compare with was run"
        ), by_lot is not None
    if _less(own, best):
        return f"loses less than {name}, its best rival", True
    return f"{'loses more than' if _less(best, own) else 'not told apart from'} {name}, its best rival", False


def _less(one: Point, other: Point) -> bool:
    """Tell whether one loses less: by intervals where both have them, otherwise by values."""
    if np.isfinite(one.high) and np.isfinite(other.low):
        return bool(one.high < other.low)
    return bool(one.value < other.value)


def _part(own: Point, other: Point | None) -> float | None:
    return own.value / other.value if other is not None and own.value >= 0 and other.value > 0 else None


def _ends(point: Point) -> Json:
    return {name: _number(value) for name, value in (("low", point.low), ("high", point.high))}


def figures(curves: Sequence[Curves]) -> list[Json]:
    """Return what the script draws: a line per method, with its colour and dashes in every other figure."""
    return [
        {
            "group": each.group,
            "what": each.what,
            "lower": each.lower,
            "dense": _number(each.dense),
            "certified": each.certified,
            "lines": [
                {
                    "method": method,
                    "color": "currentColor" if look(method).color == BLACK else look(method).color,
                    "dash": _DASHES.get(look(method).linestyle, ""),
                    "points": [
                        [point.share, *map(_number, (point.value, point.low, point.high)), point.units, point.note]
                        for point in sorted(line)
                    ],
                }
                for method, line in each.lines.items()
                if line
            ],
        }
        for each in curves
        if any(each.lines.values())
    ]


def kept_maps(kept: Sequence[KeptMap]) -> list[Json]:
    """Return heat maps of the units that each method keeps, block by block."""
    return [
        {
            "title": f"{each.title} (of {each.whole} in each)",
            "kind": "kept",
            "rows": list(each.methods),
            "columns": [str(block) for block in range(each.counts.shape[1])],
            "across": "block ",
            "values": each.counts.tolist(),
            "n": 0,
            "top": each.whole,
        }
        for each in kept
    ]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
