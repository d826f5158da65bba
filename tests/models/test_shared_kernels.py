"""Faults of wrapped models that a review found: kernels that read twice, exact places, branches, derivative rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded
from flax import nnx

from abstraction.interventions import building as do
from abstraction.models import Network, PlaceView, check_model, listing, placed, prompts_at, tap, wrap
from abstraction.models.any_model import At
from abstraction.models.decoder import Decoder
from abstraction.models.token_views import TokenView
from abstraction.reduction.compiling import compile_plan, patch
from abstraction.reduction.folding import affine_fold
from abstraction.reduction.plans import reduction_plan

RNG = np.random.default_rng(1)
X = jnp.asarray(RNG.normal(size=(20, 5)), jnp.float32)
draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)


def _fold(coefficients):
    kept, gone = np.arange(6), np.arange(6, 8)
    return affine_fold("h", kept, gone, RNG.normal(size=2), coefficients * RNG.normal(size=(2, 6)))


def test_a_kernel_that_reads_the_units_twice_is_refused():
    params = {"W": draw(5, 8), "b": draw(8), "V": draw(8, 3)}

    def twice(p, x):
        h = tap(x @ p["W"] + p["b"], "h")
        return h @ p["V"] + jnp.tanh(h) @ p["V"]

    plan = reduction_plan(wrap(twice, params, X, {"h": "h"}), [_fold(0)])
    assert "one kernel reads them twice, at test_shared_kernels.py" in plan.obstacles[0]

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.down = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            h = tap(self.up(x), "h")
            return self.down(h) + jnp.tanh(self.down(-h))

    plan = reduction_plan(wrap(Net(nnx.Rngs(0)), None, X, {"h": "h"}), [_fold(0)])
    assert "one kernel reads them twice" in plan.obstacles[0]


def test_a_tied_kernel_takes_constants_and_no_affine_maps():
    """An affine map would be folded into a kernel that also makes the units."""
    params = {"W": draw(5, 8), "b": draw(8)}
    tied = wrap(lambda p, x: tap(x @ p["W"] + p["b"], "h") @ p["W"].T, params, X, {"h": "h"})
    plan = reduction_plan(tied, [_fold(0)])
    assert plan.obstacles == ("",)
    patched = tied(X, patch(tied, plan))[0]
    np.testing.assert_allclose(
        compile_plan(tied, plan)(X)[0], patched, rtol=0, atol=2e-5 * float(jnp.abs(patched).max())
    )
    assert "a kernel that is used at test_shared_kernels.py" in reduction_plan(tied, [_fold(1)]).obstacles[0]


def test_a_place_that_is_named_exactly_is_itself_alone():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.f, self.g = nnx.Linear(5, 5, rngs=rngs), nnx.Linear(5, 5, rngs=rngs)

        def __call__(self, x):
            return self.g(jax.nn.relu(self.f(x)))

    assert wrap(Net(nnx.Rngs(0)), None, X, {"out": "."}).taps["out"].depth == 1
    two = lambda p, x: tap(tap(x @ p, "h_0") @ p, "h.0") @ p
    assert wrap(two, draw(5, 5), X, {"h": "h.0"}).taps["h"].depth == 1
    assert wrap(two, draw(5, 5), X, {"h": "h[._]0"}).taps["h"].depth == 2


def test_one_value_of_a_place_in_a_conditional_is_refused_and_all_of_them_are_edited():
    def branches(p, x):
        one, other = (lambda x, f=f: tap(f(x @ p), "u") for f in (jnp.tanh, jnp.sin))
        return jax.lax.cond(p[0, 0] > 0, one, other, tap(x * 2, "v")) @ p

    params = draw(5, 5)
    with pytest.raises(ValueError, match="inside a conditional, whose branches count apart"):
        wrap(branches, params, X, {"u": At("u", only=0)})
    for sign in (1.0, -1.0):
        network = wrap(branches, params.at[0, 0].set(sign), X, {"u": "u"})
        np.testing.assert_array_equal(network(X, do.zero(network.taps["u"]))[0], 0)


def test_a_value_inside_of_a_derivative_rule_says_that_a_tap_takes_its_place():
    @jax.custom_jvp
    def ruled(z):
        return tap(z * 2, "q")

    ruled.defjvps(lambda t, answer, z: 100 * t)
    model = lambda p, x: ruled(x @ p) @ p
    shown = str(listing(model, draw(5, 5), X))
    assert "gradients do not use the derivative rule" in shown
    assert "derivative rule" in wrap(model, draw(5, 5), X, {"q": "q"}).taps["q"].about


def test_a_wrapped_model_is_seen_at_named_tokens():
    params = {"e": draw(7, 4), "w": draw(4, 4)}
    model = lambda p, ids: tap(jnp.cumsum(tap(p["e"][ids], "emb") @ p["w"], 1), "mix")[:, -1] @ p["w"]
    ids = jnp.asarray([[1, 2, 3], [4, 5, 6]])
    network = wrap(model, params, ids, {"mix": "mix"})
    seen = Network(PlaceView(network.model, ("a", "b"), ("mix",)), network.params)
    at = {"a": np.array([0, 1]), "b": np.array([2, 2])}
    _, states = seen(placed(ids, at), record=("mix",))
    mixed = np.cumsum(np.asarray(params["e"])[ids] @ np.asarray(params["w"]), axis=1)
    for place, positions in enumerate(at.values()):
        np.testing.assert_allclose(states["mix"][place], mixed[np.arange(2), positions], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_laws_of_resuming_are_kept_by_views_of_tokens(rng):
    decoder = Decoder(FAMILIES["llama"])
    prompts = padded(rng, 4, 5, 3)
    check_model(Network(decoder, drawn(decoder)), prompts)
    check_model(Network(TokenView(decoder, 1), drawn(decoder)), prompts_at(prompts))
