"""Statistics of every block of a language model, from one pass over text in which every token predicts the next.

    a    what a map W reads at a token: units of a block's MLP, or z of its heads;   w = W a is written to the stream
    mean, covariance of a                 over tokens that are not padding
    F = E[g g^T],  g = (dz/dw)^T L v      v drawn so that E[v v^T] = 1, L L^T = B the curvature of D in the logits z
    H = W^T F W                           curvature of the risk at a, taken to be independent of a

An exact curvature costs a pull for every one of 49,152 logits. Here one v is drawn at every token, and a single pull
gives g at every block, token, and map that writes: for `kl` L v is p - e_y with y ~ p, the Fisher estimate, for `logit`
signs, centred. Draws at different tokens are independent, so what one token does to later predictions adds up to its
own F, and mixed terms are 0 in expectation. That F and a a^T are averaged apart is the factorisation of K-FAC.

Memory is that of one batch, and of D x D sums for each block; rows are cut into batches of equal size, which the
devices of a mesh share.

Source: CMR, arXiv 2602.24266 (second-order risk); Martens and Grosse, arXiv 1503.05671 (factorised Fisher).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.checks import one_of, whole
from abstraction.evaluation.text import row_batches, text_decoder
from abstraction.interventions.edits import Add
from abstraction.models import Network
from abstraction.models.positions import check_tokens, token_mask
from abstraction.models.wiring import find_array
from abstraction.planning import Program
from abstraction.pytrees import pytree
from abstraction.randomness import check_key
from abstraction.reduction.discrepancies import centred
from abstraction.reduction.moments import Statistics
from abstraction.sharding import mesh_of, on_host
from abstraction.typing import AnyArray

WRITES = {"mlp_product": "mlp_output", "mlp_hidden": "mlp_output", "head_output": "attention_output"}
"""What is written of the units of each tap that can be reduced."""
DRAWN = ("kl", "logit")
"""Discrepancies whose curvature can be drawn."""


@pytree
class Units:
    """Moments of one tap in L blocks, and the curvature of what is written of it.

    Attributes:
      mean: `[L, D]`.
      covariance: `[L, D, D]`.
      low: smallest activation, `[L, D]`.
      high: largest, `[L, D]`.
      written: F of each discrepancy, `[L, W, W]`.
    """

    mean: Float[AnyArray, "L D"]
    covariance: Float[AnyArray, "L D D"]
    low: Float[AnyArray, "L D"]
    high: Float[AnyArray, "L D"]
    written: Mapping[str, Float[AnyArray, "L W W"]]


@pytree
class TextStatistics:
    """What one pass over text says of every block.

    Attributes:
      tokens: how many were seen.
      units: by the name of the tap, without its block.
    """

    tokens: Int[AnyArray, ""]
    units: Mapping[str, Units]


def text_statistics(
    network: Network,
    tokens: Int[AnyArray, "N T"],
    key: Array,
    *,
    discrepancies: Sequence[str] = DRAWN,
    batch_size: int = 4,
) -> TextStatistics:
    """Run a text once and keep moments and curvature of the MLP units and heads of every block.

    Args:
      network: a `Decoder` of the whole vocabulary.
      tokens: rows of text, padded with -1.
      key: randomness of the draws.
      discrepancies: D, one or more of `DRAWN`; each costs a backward pass.
      batch_size: rows at once.

    Raises:
      ValueError: another network, tokens that are none, an unknown discrepancy, or numbers that are not finite.
    """
    decoder = text_decoder(network)
    check_tokens(tokens, decoder.config.vocabulary)
    check_key(key)
    whole("batch size", batch_size)
    if isinstance(discrepancies, str) or not len(discrepancies):
        raise ValueError(f"got discrepancies {discrepancies!r}, expected one or more of {DRAWN}")
    for name in discrepancies:
        one_of("discrepancy", name, DRAWN)
    total: Any = None
    for step, batch in enumerate(row_batches(tokens, batch_size, mesh_of(network.params))):
        sums = _sums(network, batch, jax.random.fold_in(key, step), tuple(discrepancies))
        # Sums of one batch are float32, those over batches float64: that is where they grow long.
        sums = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), on_host(sums))
        total = sums if total is None else _added(total, sums)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(total)):
        raise ValueError("got activations or gradients that are not finite, expected finite numbers; look at the text")
    count, parts = total
    return TextStatistics(np.asarray(int(count)), {tap: _moments(count, part) for tap, part in parts.items()})


def block_statistics(network: Network, text: TextStatistics, tap: str, discrepancy: str) -> Statistics:
    """Return the statistics of one tap of one block, every token an example of its own.

    Args:
      network: the decoder in the form of `unrolled_decoder`.
      text: of the same network.
      tap: with its block, `mlp_product3`.
      discrepancy: whose curvature is meant.

    Raises:
      ValueError: a tap that was not recorded, or a discrepancy that was not drawn.
    """
    name = tap.rstrip("0123456789")
    one_of("tap", name, sorted(text.units))
    one_of("discrepancy", discrepancy, sorted(text.units[name].written))
    one_of("tap", tap, sorted(network.taps))
    block, units, model = int(tap[len(name) :]), text.units[name], network.model
    (consumer,) = model.consumers(tap)  # pyright: ignore[reportAttributeAccessIssue]
    kernel = np.asarray(find_array(network.params, consumer.kernel), np.float64)
    hessian = kernel @ np.asarray(units.written[discrepancy][block]) @ kernel.T
    mean, own = np.asarray(units.mean[block]), np.diagonal(hessian)
    covariance, zeros = np.asarray(units.covariance[block]), np.zeros(len(mean))
    return Statistics(
        count=np.asarray(text.tokens, np.float64),
        positions=np.asarray(1.0),
        mean=mean,
        covariance=covariance,
        gradient_eps=zeros,
        gradient_kappa=zeros,
        eps_eps=own * (np.diagonal(covariance) + mean**2),
        eps_kappa=-own * mean,
        kappa_kappa=own,
        hessian=hessian,
        low=np.asarray(units.low[block]),
        high=np.asarray(units.high[block]),
    )


def text_program(network: Network, rows: Int[Any, "N T"], discrepancies: Sequence[str] = DRAWN) -> Program:
    """Make the program of `text_statistics` for rows that all go at once."""
    return Program(_sums, (network, rows, jax.random.key(0)), {"discrepancies": tuple(discrepancies)})


@partial(jax.jit, static_argnames=("discrepancies",))
def _sums(network: Network, tokens: Int[Array, "N T"], key: Array, discrepancies: tuple[str, ...]) -> Any:
    """Return the number of tokens, and by tap the sums of a, a a^T, their ends, and g g^T of each discrepancy."""
    model: Any = network.model
    config, there = model.config, token_mask(tokens)
    taps = ("mlp_product" if config.gated else "mlp_hidden", "head_output")
    zeros = jnp.zeros((config.depth, *tokens.shape, config.width), config.precision)

    def run(offsets: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        edits = {tap: Add(offset) for tap, offset in offsets.items()}
        run = model.scan(network.params, tokens, edits, (*taps, "final_input"), at=None, cache=False)
        stream = run.recorded["final_input"][0]
        return model.read(model.network(network.params), stream.reshape(-1, config.width)), run.recorded

    logits, pull, recorded = jax.vjp(run, {WRITES[tap]: zeros for tap in taps}, has_aux=True)
    counted = there.reshape(-1, 1)
    pulled = {}
    for name, one in zip(discrepancies, jax.random.split(key, len(discrepancies)), strict=True):
        pulled[name] = pull(jnp.where(counted, _draw(name, one, logits), 0.0))[0]
    found = {}
    for tap in taps:
        units = jax.lax.map(lambda a: _unit_sums(a.reshape(len(counted), -1), counted), recorded[tap])
        # Nothing that counts attends to padding; a row of nothing else has no derivative at all.
        square = lambda g: _squares(jnp.where(there[..., None], g, 0.0))
        found[tap] = (*units, {name: jax.lax.map(square, pulled[name][WRITES[tap]]) for name in discrepancies})
    return counted.sum(dtype=jnp.float32), found


def _draw(discrepancy: str, key: Array, logits: Float[Array, "M V"]) -> Float[Array, "M V"]:
    """Return L v at every token."""
    if discrepancy == "kl":
        drawn = jax.random.categorical(key, logits)
        return jax.nn.softmax(logits).at[jnp.arange(len(drawn)), drawn].add(-1.0)
    return centred(jax.random.rademacher(key, logits.shape, logits.dtype)) * jnp.sqrt(2.0).astype(logits.dtype)


def _unit_sums(states: Float[Array, "M D"], counted: Array) -> tuple[Array, Array, Array, Array]:
    states = states.astype(jnp.float32)
    kept = jnp.where(counted, states, 0.0)
    low, high = jnp.where(counted, states, jnp.inf).min(0), jnp.where(counted, states, -jnp.inf).max(0)
    return kept.sum(0), _squares(kept), low, high


def _squares(rows: Float[Array, "*M D"]) -> Float[Array, "D D"]:
    flat = rows.reshape(-1, rows.shape[-1]).astype(jnp.float32)
    return jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST)


def _added(total: Any, sums: Any) -> Any:
    (count, parts), (fresh, others) = total, sums
    joined = {}
    for tap, (mean, second, low, high, written) in parts.items():
        other = others[tap]
        second += other[1]
        together = {name: written[name] + other[4][name] for name in written}
        joined[tap] = (mean + other[0], second, np.minimum(low, other[2]), np.maximum(high, other[3]), together)
    return count + fresh, joined


def _moments(count: Any, part: Any) -> Units:
    total, second, low, high, written = part
    mean = total / count
    covariance = second / count - mean[:, :, None] * mean[:, None, :]
    return Units(mean, covariance, low, high, {name: sums / count for name, sums in written.items()})
