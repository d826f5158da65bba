"""What cannot be a tap, or a model, is refused by name, with what to do; join by adding a row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import Refusal, check_refusal
from zoo.table import case

from abstraction.models import At, listing, tap, wrap

pytestmark = pytest.mark.usefixtures("unchecked")

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)), jnp.float32)
PARAMS = {"kernel": jnp.asarray(np.random.default_rng(1).standard_normal((6, 6)), jnp.float32)}


def _named(params, x):
    return tap(jnp.tanh(x @ params["kernel"]), "hidden")


def _while(params, x):
    step = lambda each: (each[0] + 1, _named(params, each[1]))
    return jax.lax.while_loop(lambda each: each[0] < 3, step, (0, x))[1]


def _one_branch(params, x):
    return jax.lax.cond(params["kernel"][0, 0] > 0, lambda x: _named(params, x), lambda x: x @ params["kernel"], x)


def _two_shapes(params, x):
    return tap(tap(x @ params["kernel"], "hidden")[:, :3] * 2, "hidden")


def _no_examples(params, x):
    return x @ tap(params["kernel"] * 2, "hidden")


def _scalar(params, x):
    return x * tap((x @ params["kernel"]).sum(axis=1), "hidden")[:, None]


def _counting(params, x):
    return _named(params, x) if len(x) % 2 else tap(_named(params, x), "again")


def _mixed(params, x):
    """Pair every example with every other: two axes grow."""
    return tap(x @ x.T, "hidden") @ jnp.ones((len(x), 3))


def _tuple(params, x):
    return _named(params, x), x


def _total(params, x):
    return _named(params, x).sum()


def _wrap(function, taps=("hidden",), params=PARAMS, **options):
    return lambda: wrap(function, params, X, taps, **options)


def _sharded(params, x):
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(lambda x: _named(params, x), mesh=mesh, in_specs=spec, out_specs=spec)(x)


def _foreign():
    nnx_mlp, equinox_mlp = case("nnx mlp").model, case("equinox mlp").model
    yield Refusal("params beside an NNX module", _wrap(nnx_mlp, ["head"]), "has its own")
    yield Refusal("params beside an Equinox module", _wrap(equinox_mlp, ["head"]), "has its own")


ROWS = [
    Refusal("a while loop", _wrap(_while), "jax.lax.scan"),
    Refusal("one branch of a cond", _wrap(_one_branch), "in all of them"),
    Refusal("a shard_map", _wrap(_sharded), "before or after it"),
    Refusal("a place that is nowhere", _wrap(_named, ["hiden"]), r"'hidden'"),
    Refusal("a pattern that is nowhere", _wrap(_named, {"h": "hid[0-9]+"}), "nowhere"),
    Refusal("two shapes at one tap", _wrap(_two_shapes), "several shapes"),
    Refusal("a value without examples", _wrap(_no_examples), "axis of examples"),
    Refusal("a value with examples twice", _wrap(_mixed), "axis of examples"),
    Refusal("a number per example", _wrap(_scalar), "of units"),
    Refusal("more axes of units than there are", _wrap(_named, {"h": At("hidden", units=2)}), "2 of units"),
    Refusal("no axis of units", _wrap(_named, {"h": At("hidden", units=0)}), "units"),
    Refusal("code that counts examples", _wrap(_counting), "how many"),
    Refusal("a tuple of outputs", _wrap(_tuple), "`read`"),
    Refusal("a number of outputs", _wrap(_total), "`read`"),
    Refusal("a Linen module without variables", _wrap(nn.Dense(3), ["."], None), "no params"),
    Refusal("no model", _wrap("network"), "module, or a function"),
    Refusal("listing no model", lambda: listing(3, PARAMS, X), "module, or a function"),
]


@pytest.mark.parametrize("row", [*ROWS, *_foreign()], ids=lambda row: row.name)
def test_bad_taps_and_models_are_refused(row):
    check_refusal(row)


def test_outputs_in_a_tuple_are_read():
    network = wrap(_tuple, PARAMS, X, ["hidden"], read=_first)
    np.testing.assert_array_equal(network(X)[0], jax.jit(_named)(PARAMS, X))


def _first(outputs):
    return outputs[0]
