"""What variables and sites do to the output, and the cost of matching them (PLOT, Sec. 3.1).

A signature has a number for every pair and class: S sites of N pairs and C classes are S N C numbers, 113 GB for 9,216
sites, 64 pairs and a vocabulary of 50,257. A coupling needs their costs alone, `[V, S]`. So signatures are kept where
they fit `Signature.memory`, and elsewhere costs are measured some sites at a time.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from abstraction.evaluation import Recorded
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import SiteBank
from abstraction.localization.distances import transport_cost
from abstraction.localization.signatures import (
    SIGNATURE,
    Signature,
    abstract_signatures,
    signature_length,
    site_signatures,
)
from abstraction.models import Network
from abstraction.models.network import on_device
from abstraction.sharding import on_host

_NO_EFFECT, _SMALL = 1e-8, 1e-4
_BYTES = 4


class Effects(NamedTuple):
    """Step 1: what variables and sites do to the output.

    Attributes:
      abstract: signatures of the variables, `[V, F]`.
      neural: signatures of the sites, `[S, F]`; None where they are more than `Signature.memory`.
      cost: transport cost, `[V, S]`.
      sites: what the columns are.
      largest: the largest number of any site's signature.
    """

    abstract: Float[Array, "V F"]
    neural: Float[Array, "S F"] | None
    cost: Float[Array, "V S"]
    sites: SiteBank
    largest: float = float("inf")


def measure_effects(network: Network, fit: Recorded, sites: SiteBank, signature: Signature = SIGNATURE) -> Effects:
    """Measure signatures on fit pairs and the cost between them.

    Args:
      network: the network.
      fit: recorded fit pairs.
      sites: the sites to measure.
      signature: how effects are measured and compared.

    Raises:
      ValueError: the bank is not a fit bank, a signature is not finite, the memory does not hold the signatures of one
        site, or what `site_signatures` refuses.
    """
    check_recorded(fit, network)
    if fit.bank.role != "fit":
        raise ValueError(f"got a {fit.bank.role} bank to measure effects on, expected a fit bank")
    network, together = on_device(network), _sites_together(fit, sites, signature)
    abstract = abstract_signatures(fit.bank, fit.runs.outputs.shape[-1], signature)
    if together == sites.size:
        neural = site_signatures(network, fit.runs, sites, signature)
        largest = _checked([_told(neural)], sites)
        return Effects(abstract, neural, _cost(abstract, neural, signature), sites, largest)
    costs, told = [], []
    for start in range(0, sites.size, together):
        # The last block is as long as the others, one program for all: it repeats its last site.
        rows = np.minimum(np.arange(start, start + together), sites.size - 1)
        neural = site_signatures(network, fit.runs, sites.take(rows), signature)
        told.append(_told(neural))
        costs.append(_cost(abstract, neural, signature))
    largest = _checked(told, sites)
    return Effects(abstract, None, jnp.concatenate(costs, axis=1)[:, : sites.size], sites, largest)


def _sites_together(fit: Recorded, sites: SiteBank, signature: Signature) -> int:
    """Return how many sites' signatures are held at once.

    Raises:
      ValueError: not even one, beside the variables'; or not all, and they are to be compared with one another.
    """
    length = signature_length(fit.runs, signature)
    one, variables = _BYTES * length, len(fit.variables)
    if one * sites.size <= signature.memory:
        return sites.size
    together = signature.memory // one
    if signature.blocks or not together:
        pairs, outputs = fit.runs.outputs.shape
        raise ValueError(
            f"got signatures of {sites.size} sites and {variables} variables, {length} numbers each ({pairs} pairs, "
            f"{outputs} outputs): {_size(one)} for one and {_size(one * sites.size)} for all sites, expected "
            f"{'all' if signature.blocks else 'one'} to fit the memory of {_size(signature.memory)}: count fewer "
            "`classes` (`answer_classes`), average over `families`, take fewer pairs or allow more `memory`"
        )
    return -(-sites.size // -(-sites.size // together))  # blocks of one length, as few as can be


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def _cost(abstract: Array, neural: Array, signature: Signature) -> Float[Array, "V S"]:
    parts = len(np.unique(signature.families)) if signature.families is not None and signature.blocks else 1
    return transport_cost(abstract, neural, metric=signature.metric, unit=signature.unit, blocks=parts)


@jax.jit
def _told(neural: Float[Array, "S F"]) -> tuple[Bool[Array, " S"], Float[Array, ""]]:
    """Tell which signatures are finite, and the largest number of all."""
    return jnp.isfinite(neural).all(axis=1), jnp.abs(neural).max(initial=0.0)


def _checked(told: Sequence[tuple[Array, Array]], sites: SiteBank) -> float:
    """Return the largest number of all sites' signatures, told block by block.

    Raises:
      ValueError: one of them is not finite.
    """
    finite, largest = zip(*on_host(told), strict=True)
    broken = np.flatnonzero(~np.concatenate(finite)[: sites.size])
    if len(broken):
        raise ValueError(
            f"got effects of sites {broken[:8].tolist()} ({len(broken)} of {sites.size}) that are not finite, expected "
            "finite outputs of every patched run"
        )
    return float(max(largest))


def kept_signatures(effects: Effects) -> Float[Array, "S F"]:
    """Return the signatures of the sites, for what compares them with one another.

    Raises:
      ValueError: they were more than the memory held.
    """
    if effects.neural is None:
        size = _BYTES * effects.sites.size * np.shape(effects.abstract)[1]
        raise ValueError(
            f"got effects without the signatures of their {effects.sites.size} sites, which are {_size(size)}, "
            "expected them: allow more `memory`, or count fewer `classes`"
        )
    return effects.neural


def check_heard(network: Network, fit: Recorded, effects: Effects, signature: Signature = SIGNATURE) -> None:
    """Refuse a network whose outputs no site changes: it ignores every edit, or says the same whatever happens.

    Raises:
      ValueError: as said.
    """
    sites, outputs = effects.sites, on_host(fit.runs.outputs)
    if effects.largest > _SMALL * max(1.0, float(np.abs(outputs).max())):
        return
    # A patched run sums in another order than a plain one, so that no edit at all has an effect of its own, if a small
    # one: sites that have that effect, to the last bits, have none.
    network, together = on_device(network), _sites_together(fit, sites, signature)
    for start in range(0, sites.size, together):
        some = sites.take(np.arange(start, min(start + together, sites.size)))
        idle = dataclasses.replace(some, value=np.zeros_like(some.value))
        neural, plain = (site_signatures(network, fit.runs, each, signature) for each in (some, idle))
        if float(_told(neural - plain)[1]) > _NO_EFFECT:
            return
    raise ValueError(
        f"got effects of at most {_NO_EFFECT} at all {sites.size} sites of tap {sites.tap!r}, expected a network "
        "whose outputs an edit changes"
    )
