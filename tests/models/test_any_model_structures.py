"""A named value inside every structure JAX has: read and replaced there, or refused with what to do instead.

Every function below computes four steps h <- tanh(h W_t), some of them from the last W to the first; the oracle is that
loop in NumPy. Depths are the steps in the order in which they run.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from abstraction.interventions import Interchange
from abstraction.models import At, listing, tap, wrap
from abstraction.models.any_model.program import bodies, opened

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""Float32 against float64."""
N, STEPS, WIDTH = 5, 4, 6


def _params(rng):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return {"in": draw(3, WIDTH), "steps": 0.7 * draw(STEPS, WIDTH, WIDTH), "out": draw(WIDTH, 4)}


def _step(h, kernel):
    return tap(jnp.tanh(h @ kernel), "h")


def _ends(middle):
    """Write a function of params and inputs whose middle is one way to run the steps."""

    def forward(params, x):
        return middle(x @ params["in"], params["steps"]) @ params["out"]

    return forward


def _loop(h, steps):
    for kernel in steps:
        h = _step(h, kernel)
    return h


def _scan(h, steps, **options):
    return jax.lax.scan(lambda h, kernel: (_step(h, kernel), None), h, steps, **options)[0]


def _nested(h, steps):
    outer = lambda h, pair: (_scan(h, pair), None)
    return jax.lax.scan(outer, h, steps.reshape(2, 2, WIDTH, WIDTH))[0]


def _scan_of_loop(h, steps):
    outer = lambda h, pair: (_loop(h, pair), None)
    return jax.lax.scan(outer, h, steps.reshape(2, 2, WIDTH, WIDTH))[0]


def _loop_of_scans(h, steps):
    return _scan(_step(_scan(h, steps[:2]), steps[2]), steps[3:])


def _cond(h, steps):
    for number, kernel in enumerate(steps):
        tanh, product = (lambda h, k: _step(h, k)), (lambda h, k: tap(jnp.tanh(jnp.matmul(h, k)), "h"))
        h = jax.lax.cond(kernel[0, 0] > number, tanh, product, h, kernel)
    return h


def _switch_in_scan(h, steps):
    def step(h, each):
        number, kernel = each
        branches = [lambda h, k: _step(h, k), lambda h, k: _step(1.0 * h, k), lambda h, k: _step(h, 1.0 * k)]
        return jax.lax.switch(number % 3, branches, h, kernel), None

    return jax.lax.scan(step, h, (jnp.arange(STEPS), steps))[0]


@jax.custom_jvp
def _ruled(h, kernel):
    return _step(h, kernel)


@_ruled.defjvp
def _ruled_jvp(primals, tangents):
    return jax.jvp(lambda h, kernel: jnp.tanh(h @ kernel), primals, tangents)


@jax.custom_vjp
def _backward(h, kernel):
    return _step(h, kernel)


_backward.defvjp(
    lambda h, kernel: jax.vjp(lambda h, kernel: jnp.tanh(h @ kernel), h, kernel),
    lambda pull, cotangent: pull(cotangent),
)


def _each(step):
    def middle(h, steps):
        for kernel in steps:
            h = step(h, kernel)
        return h

    return middle


def _policy(h, steps):
    return jax.checkpoint(_loop, policy=jax.checkpoint_policies.dots_saveable)(h, steps)


FORWARDS = {
    "a Python loop": _ends(_loop),
    "jit within jit": _ends(jax.jit(lambda h, steps: _each(jax.jit(_step))(h, steps))),
    "scan": _ends(_scan),
    "scan, reverse": _ends(partial(_scan, reverse=True)),
    "scan, unrolled": _ends(partial(_scan, unroll=2)),
    "scan in scan": _ends(_nested),
    "scan of a loop": _ends(_scan_of_loop),
    "a loop of scans": _ends(_loop_of_scans),
    "fori_loop": _ends(lambda h, steps: jax.lax.fori_loop(0, STEPS, lambda t, h: _step(h, steps[t]), h)),
    "remat with a policy": _ends(_policy),
    "scan of remat": _ends(lambda h, s: jax.lax.scan(jax.checkpoint(lambda h, k: (_step(h, k), None)), h, s)[0]),
    "remat of scan": _ends(jax.checkpoint(_scan)),
    "cond in all branches": _ends(_cond),
    "switch in scan": _ends(_switch_in_scan),
    "custom_jvp": _ends(_each(_ruled)),
    "custom_vjp": _ends(_each(_backward)),
    "vmap over examples": lambda params, x: jax.vmap(_ends(_scan), (None, 0))(params, x),
    "vmap within": _ends(lambda h, steps: jax.vmap(_loop, (0, None))(h, steps)),
    "examples last": _ends(lambda h, s: jax.vmap(lambda h, s: _scan(h, s), (1, None), 1)(h.T, s).T),
}
REVERSED = {"scan, reverse"}


def _oracle(params, x, backwards, edit=lambda depth, h: h):
    """Run the steps in NumPy, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    h, states = np.asarray(x, np.float64) @ params["in"], []
    for depth, kernel in enumerate(params["steps"][:: -1 if backwards else 1]):
        h = edit(depth, np.tanh(h @ kernel))
        states.append(h)
    return h @ params["out"], np.stack(states)


@pytest.fixture(params=FORWARDS, scope="module")
def wrapped(request):
    rng = np.random.default_rng(0)
    params, x = _params(rng), jnp.asarray(rng.standard_normal((2, N, 3)), jnp.float32)
    network = wrap(FORWARDS[request.param], params, x[0], ["h"])
    return network, x, request.param in REVERSED


@jax.jit
def _run(network, x, edits):
    return network(x, edits, ("h",))


def test_a_named_value_is_read_in_the_order_in_which_steps_run(wrapped):
    network, (x, _), backwards = wrapped
    outputs, states = jax.jit(lambda network, x: network(x, record=("h",)))(network, x)
    expected, steps = _oracle(network.params, x, backwards)
    assert (network.taps["h"].depth, network.taps["h"].width) == (STEPS, WIDTH)
    np.testing.assert_allclose(outputs, expected, **CLOSE)
    np.testing.assert_allclose(states["h"], steps, **CLOSE)


def test_edits_act_at_their_depth_alone_and_later_depths_see_them(wrapped):
    network, (x, y), backwards = wrapped
    _, source = _oracle(network.params, y, backwards)
    weights = np.random.default_rng(1).uniform(0, 1, (STEPS, WIDTH))
    for used in [np.arange(STEPS) == depth for depth in range(STEPS)] + [np.ones(STEPS, bool)]:
        weight = weights * used[:, None]
        mixed = lambda depth, h, weight=weight: h + weight[depth] * (source[depth] - h)
        expected, steps = _oracle(network.params, x, backwards, mixed)
        edits = {"h": Interchange(jnp.asarray(source, jnp.float32), jnp.asarray(weight[:, None], jnp.float32))}
        outputs, states = _run(network, x, edits)
        np.testing.assert_allclose(outputs, expected, **CLOSE)
        np.testing.assert_allclose(states["h"], steps, **CLOSE)


def test_gradients_through_edits_are_those_of_central_differences(wrapped):
    network, (x, y), backwards = wrapped
    _, source = _oracle(network.params, y, backwards)
    start = np.full((STEPS, WIDTH), 0.4)
    mixed = lambda weight: lambda depth, h: h + weight[depth] * (source[depth] - h)
    loss = lambda weight: _oracle(network.params, x, backwards, mixed(weight))[0].sum()

    def found(weight):
        return network(x, {"h": Interchange(jnp.asarray(source, jnp.float32), weight[:, None])})[0].sum()

    steps = 1e-5 * np.eye(start.size).reshape(-1, *start.shape)
    expected = np.array([(loss(start + step) - loss(start - step)) / 2e-5 for step in steps]).reshape(start.shape)
    gradient = jax.jit(jax.grad(found))(jnp.asarray(start, jnp.float32))
    # float32 against float64
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrapped", ["a Python loop", "scan, reverse", "switch in scan", "remat of scan"], indirect=True
)
def test_a_batch_of_edits_is_a_loop_over_them(wrapped):
    network, (x, y), backwards = wrapped
    source = jnp.asarray(_oracle(network.params, y, backwards)[1], jnp.float32)
    weights = jnp.asarray(np.random.default_rng(2).uniform(0, 1, (3, STEPS, 1, WIDTH)), jnp.float32)
    run = lambda weight: _run(network, x, {"h": Interchange(source, weight)})[0]
    np.testing.assert_allclose(jax.vmap(run)(weights), np.stack([run(weight) for weight in weights]), **CLOSE)


def test_time_before_examples_is_turned_around(rng):
    """A value `[T, N, D]` is a tap `[1, N, T, D]`, and an edit of it is in that order."""
    params, x = _params(rng), jnp.asarray(rng.standard_normal((2, N, 7, 3)), jnp.float32)

    def forward(params, x):
        steps = jax.vmap(lambda each: tap(each @ params["in"], "h"))(jnp.swapaxes(x, 0, 1))
        return jnp.tanh(steps).sum(axis=0) @ params["out"]

    network = wrap(forward, params, x[0], ["h"])
    _, states = network(x[0], record=("h",))
    np.testing.assert_allclose(states["h"][0], x[0] @ params["in"], **CLOSE)
    swapped, _ = network(x[0], {"h": Interchange((x[1] @ params["in"])[None], jnp.ones((1, 1, WIDTH)))})
    np.testing.assert_allclose(swapped, forward(params, x[1]), **CLOSE)


def test_several_axes_of_units_are_one_width(rng):
    params, x = _params(rng), jnp.asarray(rng.standard_normal((2, N, 3)), jnp.float32)

    def forward(params, x):
        heads = tap(jnp.reshape(x @ params["in"], (-1, 2, 3)), "heads")
        return jnp.tanh(heads).reshape(-1, WIDTH) @ params["out"]

    network = wrap(forward, params, x[0], {"all": At("heads", units=2)})
    assert network.taps["all"].width == WIDTH
    outputs, states = network(x[0], {"all": Interchange((x[1] @ params["in"])[None], jnp.ones((1, WIDTH)))}, ("all",))
    np.testing.assert_allclose(states["all"][0], x[1] @ params["in"], **CLOSE)
    np.testing.assert_allclose(outputs, forward(params, x[1]), **CLOSE)


def test_units_stay_the_last_axis_under_vmap_over_positions(rng):
    """A matrix times a vector, mapped over tokens: XLA has the tokens last, the user has not."""
    params, x = _params(rng), jnp.asarray(rng.standard_normal((2, N, 7, 3)), jnp.float32)

    def forward(params, x):
        one = lambda token: tap(params["in"].T @ token, "h")
        return jnp.tanh(jax.vmap(jax.vmap(one))(x)).sum(axis=1) @ params["out"]

    network = wrap(forward, params, x[0], ["h"])
    assert network.taps["h"].width == WIDTH
    _, states = network(x[0], record=("h",))
    np.testing.assert_allclose(states["h"][0], x[0] @ params["in"], **CLOSE)


def test_names_that_a_model_has_for_its_remat_policy_go_on_to_serve_it(rng):
    """What is saved for the backward pass is what the user's policy says, in a run with edits too."""
    params, x = _params(rng), jnp.asarray(rng.standard_normal((N, 3)), jnp.float32)
    policy = jax.checkpoint_policies.save_only_these_names("saved")

    @partial(jax.checkpoint, policy=policy)
    def middle(h, kernel):
        return tap(jnp.tanh(checkpoint_name(h @ kernel, "saved")), "h")

    forward = _ends(_each(middle))
    network = wrap(forward, params, x, ["h", "saved"])
    states = network(x, record=("h",))[1]["h"]
    edits = {"h": Interchange(states, jnp.full((STEPS, 1, WIDTH), 0.5))}
    own, edited = (_products(lambda p, run=run: run(p).sum(), params) for run in (
        lambda p: forward(p, x), lambda p: network.model.apply(p, x, edits)[0],
    ))  # fmt: skip
    assert own == edited
    assert _products(lambda p: _ends(_each(jax.checkpoint(_step)))(p, x).sum(), params) > own, "no policy: recomputed"


def _products(loss, params):
    """Count the matrix products of a gradient, wherever they are."""
    return _count(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)


def _count(jaxpr):
    inner = [opened(body)[0] for eqn in jaxpr.eqns for body in bodies(eqn)]
    return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) + sum(map(_count, inner))


def test_a_listing_names_what_is_there_and_what_is_closed(rng):
    params, x = _params(rng), jnp.asarray(rng.standard_normal((N, 3)), jnp.float32)
    found = {each.place: each for each in listing(_ends(_nested), params, x)}
    assert (found["h"].kind, found["h"].depth, found["h"].shape, found["h"].obstacle) == ("name", 4, (N, WIDTH), "")
    closed = {each.place: each for each in listing(_ends(_until), params, x)}
    assert "while" in closed["h"].obstacle
    assert "jax.lax.scan" in str(listing(_ends(_until), params, x))


def _until(h, steps):
    return jax.lax.while_loop(
        lambda each: each[0] < STEPS, lambda each: (each[0] + 1, _step(each[1], steps[each[0]])), (0, h)
    )[1]
