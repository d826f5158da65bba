"""Runs that are sources of one another: s_0 -> s_1 -> ... -> base.

    a_0 = record(s_0),   a_i = record(s_i; edits_i(a_{i-1})),   outputs = f(base; edits_n(a_{n-1}))

Each run is edited by what the run before it recorded. Several sources side by side need nothing of their own: their
edits are combined by `together`, and each may be of another run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from abstraction.models import Network
from abstraction.models.taps import Edits
from abstraction.typing import Outputs


class Link(NamedTuple):
    """One source in a chain.

    Attributes:
      inputs: a batch, run with the edits of the link before, or none.
      record: the taps that the next run takes from.
      edits: makes the edits of the next run from what was recorded, `{tap: [L, N, ..., D]}`.
    """

    inputs: Any
    record: Sequence[str]
    edits: Callable[[dict[str, Array]], Edits | None]


def chained_outputs(network: Network, links: Sequence[Link], inputs: Any) -> Outputs:
    """Run sources one after another, each edited by the one before, and then the base.

    Args:
      network: the network.
      links: sources, the first one unedited; an `edits` that returns None leaves the next run alone.
      inputs: a batch of base inputs.

    Returns:
      Outputs of the base run, `[N, C]`.

    Raises:
      ValueError: no source, nothing recorded, or an edit that does not fit.
    """
    if not links or not all(link.record for link in links):
        raise ValueError(f"got {len(links)} sources, expected one or more, each with a tap to record")
    edits: Edits = {}
    for link in links:
        recorded = network(link.inputs, edits, tuple(link.record))[1]
        edits = link.edits(recorded) or {}
    return network(inputs, edits)[0]
