"""Each law of `check_model` is broken by a model that is wrong in one way, and named."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import Network, Tap, check_model, tap, wrap
from abstraction.models.taps import NO_EDITS, check_resume, check_taps, tapped_once

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)), jnp.float32)


@dataclass(frozen=True)
class Tiny:
    """x -> tanh(x A) -> B, with one fault or none."""

    fault: str = ""

    @property
    def taps(self):
        return {"hidden": Tap("hidden", 4, resumes=True)}

    def init(self, key):
        first, second = jax.random.split(key)
        return {"a": jax.random.normal(first, (6, 4)), "b": jax.random.normal(second, (4, 3))}

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        if self.fault == "takes any tap":
            edits = {name: edit for name, edit in edits.items() if name in self.taps}
            record = [name for name in record if name in self.taps]
        check_taps(self.taps, edits, record)
        hidden = jnp.tanh(inputs @ params["a"])
        if self.fault == "mixes examples":
            hidden = hidden - hidden.mean(axis=0)
        edited, kept = tapped_once("hidden", hidden, edits)
        if self.fault == "records before the edit":
            kept = hidden[None]
        if self.fault == "records another value":
            kept = 2 * kept
        outputs = (hidden if self.fault == "ignores edits" else edited) @ params["b"]
        if self.fault == "a way around the tap":
            outputs = outputs + inputs[:, :3]
        if self.fault == "recording changes it" and record:
            outputs = 1.1 * outputs
        if self.fault == "a shape without depth":
            kept = kept[0]
        return outputs, {name: kept for name in record}

    def resume(self, params, tap, depth, activation, *, inputs, states):
        check_resume(self.taps, tap, depth, activation)
        return (states[0] if self.fault == "resumes from the record" else activation) @ params["b"]


def _check(fault="", **options):
    model = Tiny(fault)
    return check_model(Network(model, model.init(jax.random.key(0))), X, **options)


def test_a_model_without_a_fault_keeps_every_law():
    laws = _check(plain=_plain)
    assert len(laws.kept) == 9
    assert max(laws.kept.values()) < 1e-5
    assert laws.silent == {}
    assert all(law in str(laws) for law in laws.kept)


def _plain(params, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


FAULTS = {
    "recording changes it": "recording changes nothing",
    "a shape without depth": "recorded with shape",
    "mixes examples": "do not see one another",
    "records another value": "own value changes nothing",
    "records before the edit": "a record follows its edit",
    "ignores edits": "tap 'hidden': a tap moves an output",
    "a way around the tap": "carries everything",
    "resumes from the record": "hidden, depth 0.*resuming equals a whole run",
    "takes any tap": "an edit of an unknown tap",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_breaks_its_law(fault):
    with pytest.raises(ValueError, match=FAULTS[fault]) as caught:
        _check(fault)
    assert "expected" in str(caught.value)


def test_another_forward_pass_than_the_users_is_told():
    with pytest.raises(ValueError, match="plain forward pass"):
        _check(plain=lambda params, inputs: _plain(params, inputs) + 1e-7 * inputs[:, :3])


def test_one_example_and_outputs_that_are_none_are_refused():
    network = Network(Tiny(), Tiny().init(jax.random.key(0)))
    with pytest.raises(ValueError, match="at least two"):
        check_model(network, X[:1])
    with pytest.raises(ValueError, match="finite"):
        check_model(network, X * np.nan)


class Normed(nn.Module):
    """Batch statistics, as in training."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="dense")(x)
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=False, name="norm")(x)))


def test_batch_statistics_are_caught():
    model = Normed()
    variables = model.init(jax.random.key(0), X)

    network = wrap(_with_statistics, variables, X, {"hidden": "dense"})
    with pytest.raises(ValueError, match="examples do not see one another"):
        check_model(network, X)


def _with_statistics(variables, x):
    return Normed().apply(variables, x, mutable=["batch_stats"])[0]


def test_a_named_value_that_nothing_reads_is_told_by_name():
    def forward(params, x):
        tap(jnp.tanh(x @ params), "unread")
        return tap(x @ params, "read")

    with pytest.raises(ValueError, match="tap 'unread': a tap moves an output at some depth"):
        check_model(wrap(forward, jnp.eye(6), X, ["read", "unread"]), X)


def test_depths_that_nothing_reads_are_listed():
    def forward(params, x):
        first = tap(x @ params, "hidden")
        return tap(x @ params, "hidden") + 0 * first

    laws = check_model(wrap(forward, jnp.eye(6), X, ["hidden"]), X)
    assert laws.silent == {"hidden": [0]}
    assert "nothing reads 'hidden' at depths [0]" in str(laws)
