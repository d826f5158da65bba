"""Path patching: the effect of senders on the output through chosen receivers alone.

    pass 1   senders edited, every frozen activation at its base value; the receivers' values are recorded
    pass 2   the base run with the receivers at those values; its outputs are the effect of the paths

What is not frozen carries the senders' change on: of a decoder whose `head_output` and `mlp_output` are frozen, the
residual stream does, so that the paths are the direct ones, from what a sender writes to what a receiver reads
(Wang et al. 2023, Sec. 3.1; Goldowsky-Dill et al. 2023). A receiver is an input: `query`, `key` or `value` of some
heads, `mlp_input`, or `final_input` for the direct effect on the outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from abstraction.interventions.edits import InOrder, Set
from abstraction.models import Edit, Network
from abstraction.models.positions import known_values
from abstraction.models.taps import Edits, check_taps
from abstraction.typing import AnyArray, Outputs

DECODER_FROZEN = ("head_output", "mlp_output")
"""What writes to the residual stream of a `Decoder`."""

_BRANCHES = (
    ("attention_input", "query", "key", "value", "head_output", "attention_output", "attention_post_norm"),
    ("mlp_input", "mlp_hidden", "mlp_product", "mlp_output", "mlp_post_norm"),
)
"""Taps of a decoder's block that follow one from the other: what an earlier one sends passes a later one."""


def path_outputs(
    network: Network,
    inputs: Any,
    senders: Edits,
    receivers: Mapping[str, AnyArray],
    *,
    frozen: Sequence[str] = DECODER_FROZEN,
    base: Mapping[str, Array] | None = None,
) -> Outputs:
    """Run the base inputs with what the senders change in the receivers, and nothing else.

    A pure function of all its arrays: map it over senders with `jax.vmap`.

    Args:
      network: the network.
      inputs: a batch of base inputs.
      senders: edits of what sends, by tap; each sees the base value there.
      receivers: by tap, where it receives: truth values that lead with the tap's depth and broadcast to its activation,
        `[L, 1]` for whole depths, `[L, D]` for some units, `[L, N, T, 1]` for some positions.
      frozen: taps whose other values are the base's in the first pass.
      base: the frozen taps as a run without edits records them, if it has been run.

    Returns:
      Outputs `[N, C]`.

    Raises:
      ValueError: an unknown tap, no sender or no receiver, a receiver that is frozen, a sender whose block goes on to a
        frozen tap, places of another shape, or a frozen tap that `base` lacks.
    """
    _check(network, senders, receivers, frozen)
    if base is None:
        base = network(inputs, record=tuple(frozen))[1]
    if missing := [name for name in frozen if name not in base]:
        raise ValueError(f"got a base run of {sorted(base)}, expected one with {missing}")
    edits: dict[str, Edit] = {name: Set(base[name]) for name in frozen}
    for name, edit in senders.items():
        edits[name] = InOrder((edits[name], edit)) if name in edits else edit
    received = network(inputs, edits, tuple(receivers))[1]
    return network(inputs, {name: Set(received[name], _weight(where)) for name, where in receivers.items()})[0]


def _check(network: Network, senders: Edits, receivers: Mapping[str, AnyArray], frozen: Sequence[str]) -> None:
    check_taps(network.taps, senders, (*receivers, *frozen))
    if not senders or not receivers:
        raise ValueError(f"got senders {sorted(senders)} and receivers {sorted(receivers)}, expected some of each")
    if both := sorted(set(receivers) & set(frozen)):
        raise ValueError(f"got receivers {both} that are frozen, expected what reads the frozen taps, such as 'query'")
    for name in senders:
        later = [branch[branch.index(name) + 1 :] for branch in _BRANCHES if name in branch]
        if stopped := sorted(set(frozen).intersection(*later)) if later else []:
            raise ValueError(
                f"got a sender at {name!r}, all of whose effect goes through {stopped}, which are frozen; expected a "
                "sender there, or others frozen"
            )
    for name, where in receivers.items():
        tap = network.taps[name]
        shape = jnp.shape(where)
        if len(shape) < 2 or shape[0] != tap.depth or shape[-1] not in (1, tap.width):
            raise ValueError(
                f"got places of shape {shape} in tap {name!r}, expected ({tap.depth}, ..., {tap.width}) or "
                f"({tap.depth}, ..., 1)"
            )
        known = known_values(where)
        if known is not None and (known.dtype != bool or not known.any()):
            raise ValueError(f"got places of type {known.dtype} in tap {name!r}, expected truth values, some true")


def _weight(where: AnyArray) -> Array:
    return jnp.asarray(where).astype(jnp.float32)
