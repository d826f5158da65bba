"""Recorded banks: pairs, runs and readout are one value, checked when it is made."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import planted
from summed import Summed

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Bits, Classes, record, tally_handles
from abstraction.evaluation.recording import record_together
from abstraction.interventions import Handle
from abstraction.models import MLP, Network
from abstraction.models.taps import NO_EDITS

COPY = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
MODEL = MLP(2, 4, 2, 4)
NETWORK = Network(MODEL, MODEL.init(jax.random.key(0)))


def _bank(seed, count, role="fit"):
    a, b, c, d = np.random.default_rng(seed).integers(0, 2, (4, count))
    return label_pairs(COPY, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role=role)


def _encode(setting):
    return np.stack([setting["a"], setting["b"]], -1).astype(np.float32)


BANK = _bank(0, 9)


def _record(network=NETWORK, encode=_encode, bank=BANK, tap="hidden", **options):
    return record(network, encode, bank, tap=tap, **options)


def test_a_recorded_bank_is_its_runs_in_order():
    recorded = _record(tap=("hidden", "logits"))
    outputs, states = NETWORK(_encode(BANK.base), record=("hidden",))
    np.testing.assert_allclose(recorded.runs.outputs, outputs, rtol=1e-5, atol=1e-6)  # float32 sums
    np.testing.assert_allclose(recorded.runs.base["hidden"], states["hidden"], rtol=1e-5, atol=1e-6)
    source = NETWORK(_encode(BANK.source), record=("hidden",))[1]["hidden"]
    np.testing.assert_allclose(recorded.runs.source["hidden"], source, rtol=1e-5, atol=1e-6)
    assert recorded.variables == ("p", "q")
    assert recorded.bank.labels.dtype == np.int32
    with pytest.raises(ValueError, match=r"got recorded taps \['hidden', 'logits'\], expected one"):
        _ = recorded.tap
    assert _record().tap == "hidden"


def test_banks_recorded_together_are_those_recorded_alone():
    banks = {"one": _bank(1, 5), "two": _bank(2, 8, "test"), "three": _bank(3, 1)}
    together = record_together(NETWORK, {name: (_encode, bank) for name, bank in banks.items()}, tap="hidden")
    assert list(together) == list(banks)
    for name, bank in banks.items():
        alone = _record(bank=bank)
        assert together[name].bank.role == bank.role
        for first, second in zip(jax.tree.leaves(together[name]), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)  # one program for all: float32 sums


def test_shuffled_pairs_keep_their_labels_and_change_their_sources():
    recorded, order = _record(), np.roll(np.arange(9), 2)
    moved = recorded.shuffled(order)
    np.testing.assert_array_equal(moved.bank.labels, recorded.bank.labels)
    np.testing.assert_array_equal(moved.runs.source["hidden"], np.asarray(recorded.runs.source["hidden"])[:, order])
    np.testing.assert_array_equal(moved.runs.base["hidden"], recorded.runs.base["hidden"])


def test_inputs_that_are_a_pytree_are_recorded_and_scored():
    """left + right, read off by a kernel that tells the label: a full swap of the sum takes the source's answer."""
    network = Network(Summed(), {"kernel": np.eye(4, dtype=np.float32)[:, :2]})
    model = causal_model(("y",), "out", z=lambda y: y, out=lambda z: z)
    base, source = np.random.default_rng(0).integers(0, 2, (2, 20))
    bank = label_pairs(model, {"y": base}, {"y": source}, variables=("z",), role="test")

    def encode(setting):
        hot = np.eye(4)[setting["y"]]
        return {"left": 3 * hot, "right": -hot}

    recorded = record(network, encode, bank, tap="sum")
    handles = Handle("sum", np.stack([np.ones((1, 4)), np.zeros((1, 4))]).astype(np.float32))
    tally = tally_handles(network, recorded, handles, np.zeros(2, int))
    assert tally.combined.tolist() == [1.0, 0.5]
    with pytest.raises(ValueError, match=r"got leading axes .*'left'.*: 20, .*'right'.*: 3.*expected arrays"):
        record(network, lambda setting: {"left": np.ones((20, 4)), "right": np.ones((3, 4))}, bank, tap="sum")


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """An MLP that answers at three tokens: outputs `[N, T, C]`."""

    inner: MLP = MODEL

    @property
    def taps(self):
        return self.inner.taps

    def init(self, key):
        return self.inner.init(key)

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        outputs, states = self.inner.apply(params, inputs, edits, record)
        return jnp.stack([outputs] * 3, axis=1), states

    def resume(self, params, tap, depth, activation, *, inputs, states):
        return self.inner.resume(params, tap, depth, activation, inputs=inputs, states=states)


def test_outputs_of_many_tokens_are_refused_by_their_shape(unchecked):
    with pytest.raises(ValueError, match=r"got outputs of shape \(9, 3, 4\), expected \[N, C\].*`TokenView`"):
        _record(Network(_Tokens(), NETWORK.params))


def _broken(value):
    params = jax.device_get(NETWORK.params)
    kernel = np.array(params["head"]["kernel"])
    kernel[0, 0] = value
    return Network(MODEL, {**params, "head": {**params["head"], "kernel": kernel}})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    with pytest.raises(ValueError, match=r"got params\['head'\]\['kernel'\] with values that are not finite"):
        _record(_broken(value))


def test_weights_of_another_model_are_refused_by_name():
    other = MLP(2, 5, 2, 4)
    with pytest.raises(ValueError, match=r"got params\[.*\] of shape .*, expected .* for MLP"):
        _record(Network(MODEL, other.init(jax.random.key(0))))
    deeper = MLP(2, 4, 3, 4)
    with pytest.raises(ValueError, match=r"got params\['blocks'\].* of shape"):
        _record(Network(MODEL, deeper.init(jax.random.key(0))))


def test_inputs_that_are_not_finite_are_refused_by_bank_side_and_row():
    def encode(setting):
        inputs = _encode(setting)
        inputs[4, 1] = np.nan
        return inputs

    with pytest.raises(ValueError, match="got base input 4 of bank 'late' that is not finite"):
        record_together(NETWORK, {"early": (_encode, _bank(1, 5)), "late": (encode, BANK)}, tap="hidden")


def test_labels_meet_the_readout_when_the_bank_meets_the_network():
    assert _record(readout=Classes(4)).readout == Classes(4)
    with pytest.raises(ValueError, match=r"got label \d at .*, expected classes 0 to 2"):
        _record(readout=Classes(3))
    narrow = MLP(2, 4, 2, 3)
    with pytest.raises(ValueError, match=r"got label 3 at .*, expected classes 0 to 2"):
        _record(Network(narrow, narrow.init(jax.random.key(0))))
    assert _record(readout=Bits()).bank.labels.max() == 3, "numbers of 4 bits"
    shares = causal_model(("a", "b"), "y", p=lambda a: a, y=lambda p, b: (p + b) / 2)
    bank = label_pairs(shares, {"a": [0, 1], "b": [1, 1]}, {"a": [1, 0], "b": [0, 1]}, variables=("p",), role="fit")
    assert bank.labels.dtype == np.float64, "a share stays a share until it is scored"
    with pytest.raises(ValueError, match=r"got label 0\.5 at .*, expected classes 0 to 3"):
        _record(bank=bank)


def test_runs_of_other_pairs_are_refused_wherever_they_are_counted():
    """`record` never makes them; whoever puts a value together by hand may."""
    recorded = _record()
    wrong = dataclasses.replace(recorded, bank=_bank(5, 4))
    handles = Handle("hidden", np.ones((1, 2, 4), np.float32))
    with pytest.raises(ValueError, match=r"got runs .*'outputs': 9.* beside a bank of 4 pairs, expected one for each"):
        tally_handles(NETWORK, wrong, handles, np.zeros(1, int))


def test_a_planted_network_is_right_on_every_pair_it_records():
    plant = planted(rotate=True)
    for recorded in (plant.fit, plant.calibration, plant.test):
        np.testing.assert_array_equal(np.asarray(recorded.runs.outputs).argmax(axis=1), recorded.bank.factual)
