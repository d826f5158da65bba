"""Grids of multiple choice: the variants of PLOT, and what a network of another size is searched with."""

import dataclasses
from typing import Any, TypeVar

from abstraction.localization import CutMenu, ReferenceTransport, Selection, Transport, Variant
from experiments.mcqa.options import Mcqa

_EPSILONS, _BETAS = (0.5, 1.0, 2.0, 4.0), (0.1, 0.3, 1.0, 3.0)
_PAPER_MENU = CutMenu((1, 2, 3, 4, 5), tuple(float(step) for step in range(10, 31)), per_site=False, break_ties="order")
VARIANTS: dict[str, Variant] = {
    "v1": Variant(
        ReferenceTransport(_EPSILONS, beta_neural=_BETAS, iterations=500),
        ReferenceTransport(_EPSILONS, iterations=500),
        _PAPER_MENU,
        heaviest=6,
        selection=Selection(first_wins=True),
    ),
    "v4": Variant(
        ReferenceTransport(_EPSILONS, beta_neural=_BETAS, iterations=500),
        Transport("joint", _EPSILONS, absolute=True),
        _PAPER_MENU,
        heaviest=6,
        selection=Selection(shared_axis="epsilon", first_wins=True),
    ),
    "ours": Variant(
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(0.5,)),
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(1.0, 0.5)),
        CutMenu((1, 2, 3, 4, 6, 8, 12, 16), (0.6, 0.8, 1.0, 1.2, 1.5, 2.0)),
        heaviest=6,
    ),
}
"""As `abstraction.localization.VARIANTS`, with this benchmark's grids (PLOT, MCQA)."""


def for_width(config: Mcqa, width: int, depth: int) -> Mcqa:
    """Give a network of another size the paper's grids for it, on every axis that was not chosen by a flag."""
    usual = Mcqa()
    if width <= 128:
        return config
    blocks = tuple(width // parts for parts in (3, 4, 6, 8, 9, 12, 16, 18))
    ranks = tuple(sorted({max(1, round(share * width)) for share in _SHARES}))
    bands = max(1, min(6, depth // 4))
    search = lambda options, default: dataclasses.replace(
        _unchosen(options, default, ranks=ranks), training=_unchosen(options.training, default.training, bands=bands)
    )
    return dataclasses.replace(
        config,
        stages=_unchosen(config.stages, usual.stages, resolutions=blocks),
        das=search(config.das, usual.das),
        das_v1=search(config.das_v1, usual.das_v1),
    )


_Chosen = TypeVar("_Chosen")


def _unchosen(options: _Chosen, usual: _Chosen, **fitting: Any) -> _Chosen:
    """Replace fields that still have their usual value."""
    changes = {name: value for name, value in fitting.items() if getattr(options, name) == getattr(usual, name)}
    return dataclasses.replace(options, **changes)  # pyright: ignore[reportArgumentType, reportCallIssue]


_SHARES = tuple(dims / 2304 for dims in (32, 64, 96, 128, 256, 512, 768, 1024, 1536, 2048, 2304))
"""Ranks of the paper's searches over the width of Gemma-2-2B."""
