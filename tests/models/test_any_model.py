"""Networks written without this library in mind, wrapped in one line: the laws, for each of them.

The oracle is the same forward composed in plain Python out of the user's own modules; see `tests/zoo/table.py`.
Float32 sums in another order differ by some 1e-7 of the largest number, and by more after a softmax and three blocks.
"""

from functools import cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from flax import nnx
from slowly import all_but
from zoo import linen_networks
from zoo.table import ROWS, Case, case

from abstraction.interventions import Interchange, unit_sites
from abstraction.interventions.handles import take_handle
from abstraction.interventions.patching import handle_outputs, patched_outputs, run_pairs
from abstraction.models import Network, check_model, listing, wrap

LIGHT = [name for name in ROWS if "transformer" not in name]
"""Those that compile in no time; laws of the engine rather than of a framework see one or two of the others."""
SOME = [*LIGHT, "linen scanned transformer"]
CLOSE = {"rtol": 2e-5, "atol": 2e-6}
"""Programs that compute the same numbers by other sums; see the module."""


class Ready(NamedTuple):
    """A wrapped network and its runs."""

    case: Case
    network: Network
    outputs: jax.Array
    base: dict[str, jax.Array]
    source: dict[str, jax.Array]


@jax.jit
def _run(network, inputs, edits=None):
    return network(inputs, edits or {}, tuple(network.taps))


@cache
def _ready(name):
    row = case(name)
    network = row.wrapped()
    outputs, base = _run(network, row.base)
    return Ready(row, network, outputs, base, _run(network, row.source)[1])


@pytest.fixture(params=ROWS, scope="module")
def ready(request):
    return _ready(request.param)


def _swap(ready, **weights):
    """Interchange each tap by a weight per depth; 0 where none is given. Weights are values: one program."""
    weigh = lambda name, states: jnp.asarray(weights.get(name, np.zeros(len(states))), jnp.float32)[:, None, None]
    return {name: Interchange(states, weigh(name, states)) for name, states in ready.source.items()}


def _hand(ready, inputs=None, **weights):
    """Run the forward by hand: outputs, and what it saw at each tap `[L, N, ..., D]`."""
    weigh = {
        name: jnp.asarray(weights.get(name, np.zeros(len(states))), jnp.float32) for name, states in ready.base.items()
    }
    return _by_hand(ready.case.by_hand)(ready.case.base if inputs is None else inputs, weigh, ready.source)


@cache
def _by_hand(forward):
    """Compile it, once for all weights."""

    @jax.jit
    def run(inputs, weights, sources):
        seen = {name: {} for name in sources}

        def edit(tap, depth, value):
            if tap not in weights:
                return value
            weight = weights[tap][depth]
            seen[tap][depth] = (1 - weight) * value + weight * sources[tap][depth]
            return seen[tap][depth]

        outputs = forward(inputs, edit)
        return outputs, {tap: jnp.stack([found[depth] for depth in sorted(found)]) for tap, found in seen.items()}

    return run


@pytest.fixture
def optimized():
    """Compile as users do: the suite switches most of XLA's optimizations off."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.parametrize("name", all_but(SOME, ROWS))
def test_clean_outputs_are_the_users_own_bit_by_bit(name, optimized):
    row = case(name)
    forward = jax.jit(lambda network, inputs: network(inputs)[0])  # fresh, so that it is compiled here
    np.testing.assert_array_equal(forward(row.wrapped(), row.source), row.own(row.source))


@pytest.mark.parametrize("name", all_but(LIGHT, [*LIGHT, "nnx transformer", "linen scanned transformer"]))
def test_every_law_of_the_contract_holds(name):
    """Of the transformers one tap, since each is a dozen programs."""
    row = case(name)
    taps = {row.state: row.taps[row.state]} if "residual" in row.taps else row.taps
    laws = check_model(wrap(row.model, row.params, row.base, taps), row.base)
    assert max(laws.kept.values()) <= 1e-5
    assert row.state not in laws.silent


def test_records_are_what_a_forward_by_hand_sees(ready):
    outputs, seen = _hand(ready)
    np.testing.assert_allclose(ready.outputs, outputs, **CLOSE)
    for tap, states in ready.base.items():
        assert ready.network.taps[tap].depth == len(seen[tap])
        np.testing.assert_allclose(states, seen[tap], **CLOSE)


def test_weight_zero_changes_nothing_and_weight_one_of_a_whole_state_is_the_source(ready):
    """To the last bit within one program; the one without edits may round its sums elsewhere."""
    kept, states = _run(ready.network, ready.case.base, _swap(ready))
    np.testing.assert_allclose(kept, ready.outputs, **CLOSE)
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **CLOSE), states, ready.base)
    state = ready.case.state
    whole = _swap(ready, **{state: np.ones(len(ready.base[state]))})
    expected, _ = _run(ready.network, ready.case.source, whole)
    outputs, states = _run(ready.network, ready.case.base, whole)
    np.testing.assert_allclose(outputs, _hand(ready, ready.case.source)[0], **CLOSE)
    np.testing.assert_array_equal(states[state], ready.source[state])
    np.testing.assert_array_equal(outputs, expected)
    assert not np.allclose(outputs, kept, atol=1e-2)


def test_an_edit_at_one_depth_is_that_of_a_forward_by_hand(ready):
    """Each tap, first and last depth, half way to the source; deeper depths see what it changed."""
    for tap, states in ready.base.items():
        for at in {0, len(states) - 1}:
            half = {tap: 0.5 * (np.arange(len(states)) == at)}
            outputs, found = _run(ready.network, ready.case.base, _swap(ready, **half))
            expected, seen = _hand(ready, **half)
            np.testing.assert_allclose(outputs, expected, **CLOSE)
            jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **CLOSE), found, seen)
            assert not np.allclose(outputs, ready.outputs, atol=1e-5), f"{tap} at {at} moves the outputs"


@pytest.mark.parametrize("name", all_but(SOME, [*SOME, "equinox scanned transformer"]))
def test_gradients_through_an_edit_are_those_of_a_forward_by_hand(name):
    ready = _ready(name)
    state = ready.case.state
    start = jnp.full((len(ready.base[state]), ready.base[state].shape[-1]), 0.3)

    def loss(weight):
        return (
            ready.network(ready.case.base, {state: Interchange(ready.source[state], weight[:, None])})[0] ** 2
        ).sum()

    def oracle(weight):
        mix = lambda depth, value: (1 - weight[depth]) * value + weight[depth] * ready.source[state][depth]
        edit = lambda name, depth, value: mix(depth, value) if name == state else value
        return (ready.case.by_hand(ready.case.base, edit) ** 2).sum()

    found, expected = jax.jit(jax.grad(loss))(start), jax.jit(jax.grad(oracle))(start)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(jnp.abs(expected).max()))
    towards = jnp.cos(jnp.arange(start.size)).reshape(start.shape)
    forwards = jax.jit(lambda weight: jax.jvp(loss, (weight,), (towards,))[1])(start)
    np.testing.assert_allclose(forwards, (found * towards).sum(), rtol=1e-3, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", all_but(LIGHT, SOME))
def test_handles_at_once_are_handles_one_by_one(name):
    ready = _ready(name)
    network, state = ready.network, ready.case.state
    runs = run_pairs(network, ready.case.base, ready.case.source, taps=(state,))
    handles = unit_sites(network.taps[state]).take(np.array([0, 3, -1])).handles()
    patched = jax.jit(patched_outputs)
    one_by_one = [patched(network, runs, take_handle(handles, np.array(n))) for n in range(3)]
    mapped = jax.jit(jax.vmap(patched_outputs, (None, None, 0)))(network, runs, handles)
    np.testing.assert_allclose(handle_outputs(network, runs, handles), np.stack(one_by_one), **CLOSE)
    np.testing.assert_allclose(mapped, np.stack(one_by_one), **CLOSE)


def test_two_wraps_are_equal_and_compile_once(ready):
    again = ready.case.wrapped()
    assert again.model == ready.network.model
    assert hash(again.model) == hash(ready.network.model)
    other = Network(again.model, jax.tree.map(lambda leaf: leaf, again.params))
    with compilations() as events:
        outputs, _ = _run(other, ready.case.base)
    assert not events
    np.testing.assert_array_equal(outputs, ready.outputs)


def test_a_network_runs_without_jit_too():
    for name in ("plain reverse rnn", "nnx mlp", "equinox mlp"):
        ready = _ready(name)
        outputs, states = ready.network(ready.case.base, _swap(ready), tuple(ready.base))
        np.testing.assert_allclose(outputs, ready.outputs, **CLOSE)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, **CLOSE), states, ready.base)


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith(("nnx", "equinox"))])
def test_the_users_module_is_left_as_it_is(name):
    row = case(name)
    look = lambda: _nnx_classes(row.model) if name[0] == "n" else _classes(row.model)
    leaves = lambda: jax.tree.leaves(nnx.state(row.model) if name[0] == "n" else eqx.filter(row.model, eqx.is_array))
    classes, arrays = (
        look(),
        [np.array(leaf) for leaf in leaves() if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)],
    )
    network = row.wrapped()
    _run(network, row.base)
    assert look() == classes
    assert all(kind.__module__.split(".")[0] in ("zoo", "flax", "equinox") for kind in classes)
    after = [leaf for leaf in leaves() if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    jax.tree.map(np.testing.assert_array_equal, after, arrays)


def _nnx_classes(module):
    return [type(each) for _, each in nnx.iter_graph(module) if isinstance(each, nnx.Module)]


def _classes(value):
    modules = jax.tree.leaves(value, is_leaf=lambda each: isinstance(each, eqx.Module) and each is not value)
    inner = [kind for each in modules if isinstance(each, eqx.Module) for kind in _classes(each)]
    return [type(value), *inner]


def test_records_are_what_linen_captures():
    row = case("linen mlp")
    _, captured = row.model.apply(row.params, row.base, capture_intermediates=True)
    layers = [captured["intermediates"][f"Dense_{depth}"]["__call__"][0] for depth in range(2)]
    np.testing.assert_array_equal(_ready("linen mlp").base["linear"], np.stack(layers))


def test_every_place_that_is_listed_can_be_wrapped():
    model = linen_networks.MLP()
    row = case("linen mlp")
    for each in listing(model, row.params, row.base):
        assert not each.obstacle, each
    assert {each.place for each in listing(model, row.params, row.base, lines=False)} >= {"Dense_0", "Dense_1", "head"}
