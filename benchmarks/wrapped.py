"""A wrapped model beside one whose forward pass was written by hand with taps, and beside the user's own.

The hand-written model is the user's function with the calls that edit and record a tap put in, which is the least that
can be done; it lives here. Both run the same sweep: every layer's state interchanged, handle by handle, in one program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from abstraction.interventions import Handle, factual_outputs, state_sites
from abstraction.interventions.patching import handle_outputs, run_pairs
from abstraction.models import Network, Tap, tap, wrap
from abstraction.models.taps import NO_EDITS, Edits, check_taps, tapped
from benchmarks.records import OURS, Row, compare, measure, require_agreement

DEPTH, EXAMPLES, SCORED, TAP = 6, 64, 10, "state"


class Size(NamedTuple):
    """A network of one kind and width."""

    kind: str
    width: int
    tokens: int = 1


HAND = "taps written by hand"

SIZES = (Size("MLP", 512), Size("transformer", 128, 24))


def mlp(params: Any, inputs: Array) -> Array:
    """Run an MLP as a user writes it: a scan over its layers, whose state he has named."""
    layer = lambda state, weights: (tap(_layer(state, weights), TAP), None)
    return jax.lax.scan(layer, inputs, params["layers"])[0] @ params["head"]


def transformer(params: Any, inputs: Array) -> Array:
    """Run a transformer as a user writes it: a scan over its blocks, whose state he has named."""
    block = lambda state, weights: (tap(_block(state, weights), TAP), None)
    return jax.lax.scan(block, inputs, params["layers"])[0][:, -1] @ params["head"]


def _layer(state: Array, weights: Any) -> Array:
    return jnp.tanh(state @ weights["kernel"] + weights["bias"])


def _block(state: Array, weights: Any) -> Array:
    mask = jnp.tril(jnp.ones((state.shape[1],) * 2, bool))
    query, key, value = (state @ weights[name] for name in ("query", "key", "value"))
    scores = jnp.where(mask, query @ jnp.swapaxes(key, 1, 2) * state.shape[-1] ** -0.5, -1e9)
    state = state + jax.nn.softmax(scores) @ value
    return state + jax.nn.gelu(state @ weights["up"]) @ weights["down"]


FUNCTIONS = {"MLP": mlp, "transformer": transformer}


@dataclass(frozen=True)
class ByHand:
    """The same networks as models of this library, with their taps written into the forward pass."""

    size: Size

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The state after each layer."""
        return {TAP: Tap(TAP, self.size.width, DEPTH)}

    def init(self, key: Array) -> Any:
        """Draw parameters."""
        return _params(self.size, key)

    def apply(
        self, params: Any, inputs: Array, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Array, dict[str, Array]]:
        """Run the network; see `Model.apply`."""
        check_taps(self.taps, edits, record)

        def layer(state: Array, each: tuple[Any, Edits]) -> tuple[Array, dict[str, Array]]:
            weights, edits = each
            step = _layer if self.size.kind == "MLP" else _block
            state = tapped(TAP, step(state, weights), edits)
            return state, {name: state for name in record}

        state, recorded = jax.lax.scan(layer, inputs, (params["layers"], dict(edits)))
        last = state if self.size.kind == "MLP" else state[:, -1]
        return last @ params["head"], recorded

    def resume(self, params: Any, tap: str, depth: Any, activation: Array, *, inputs: Any, states: Array) -> Array:
        """Refuse, as a wrapped model does.

        Raises:
          ValueError: always.
        """
        raise ValueError(f"got a resume from {tap!r}, expected a run with edits")


def _params(size: Size, key: Array) -> Any:
    width = size.width
    shapes = {"kernel": (width, width), "bias": (width,)}
    if size.kind == "transformer":
        shapes = dict.fromkeys(("query", "key", "value"), (width, width))
        shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    keys = iter(jax.random.split(key, len(shapes) + 1))
    draw = lambda shape: jax.random.normal(next(keys), shape) * shape[-2 if len(shape) > 1 else -1] ** -0.5
    return {"layers": {name: draw((DEPTH, *shape)) for name, shape in shapes.items()}, "head": draw((width, SCORED))}


def run(budget: float) -> list[Row]:
    """Time a plain run, a recording and a sweep of both kinds of network."""
    return [row for size in SIZES for row in _rows(size, budget)]


def _rows(size: Size, budget: float) -> list[Row]:
    params = _params(size, jax.random.key(0))
    shape = (EXAMPLES, size.width) if size.kind == "MLP" else (EXAMPLES, size.tokens, size.width)
    base, source = (jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32) for seed in (0, 1))
    function = FUNCTIONS[size.kind]
    networks = {f"{OURS}, wrapped": wrap(function, params, base, [TAP]), HAND: Network(ByHand(size), params)}
    text = f"{size.kind}, {DEPTH} layers of {size.width}, {EXAMPLES} examples"
    plain = {"the user's own function": partial(jax.jit(function), params, base)}
    plain |= {name: partial(factual_outputs, network, base) for name, network in networks.items()}
    runs = {name: run_pairs(network, base, source, taps=(TAP,)) for name, network in networks.items()}
    handles = _handles(next(iter(networks.values())))
    swept = {name: partial(handle_outputs, network, runs[name], handles) for name, network in networks.items()}
    return [
        *_timed(f"{text}: a plain run", plain, "the user's own function", budget),
        *_timed(f"{text}: every state interchanged", swept, HAND, budget),
    ]


def _handles(network: Network) -> Handle:
    return state_sites(network.taps[TAP]).handles()


def _timed(size: str, calls: Mapping[str, Callable[[], Array]], baseline: str, budget: float) -> list[Row]:
    require_agreement({name: call() for name, call in calls.items()}, atol=1e-5)
    timings = {name: measure(call, budget=budget, compiled=True, least=20) for name, call in calls.items()}
    return compare("wrapped", size, timings, baseline=baseline)
