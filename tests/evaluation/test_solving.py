"""Pairs that a network solves, against a loop that runs one pair at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from summed import Summed

from abstraction.causal import causal_model, concatenate_banks, label_pairs
from abstraction.causal.pairs import digest, restrict, take_rows
from abstraction.evaluation import Bits, record
from abstraction.evaluation.solving import solved
from abstraction.models import MLP, Network
from abstraction.tasks import addition

COPY = causal_model(("a", "b"), "y", p=lambda a: a > 1, q=lambda b: b > 1, y=lambda p, q: p + 2 * q)
MODEL = MLP(2, 8, 1, 4)
NETWORK = Network(MODEL, MODEL.init(jax.random.key(3)))


def _bank(count=60, seed=0, role="test"):
    a, b, c, d = np.random.default_rng(seed).integers(0, 4, (4, count))
    return label_pairs(COPY, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role=role)


def _encode(setting):
    return np.stack([setting["a"], setting["b"]], -1).astype(np.float32) - 1.5


BANK = _bank()


def _loop(network, encode, bank, model, decode):
    """Run every base and every source by itself."""
    answers = []
    for side in (bank.base, bank.source):
        rows = []
        for n in range(bank.size):
            setting = {name: values[n : n + 1] for name, values in side.items()}
            expected = int(np.asarray(model.run(setting)[model.output])[0])
            rows.append(decode(np.asarray(network(encode(setting))[0])[0]) == expected)
        answers.append(np.array(rows))
    return answers


def _loop_halves(bank, rows):
    counts = np.zeros((len(bank.variables), 2), int)
    for v in range(len(bank.variables)):
        for n in rows:
            if bank.eligible[v, n]:
                counts[v, 0 if bank.labels[v, n] != bank.factual[n] else 1] += 1
    return counts


def test_kept_pairs_are_those_of_a_loop_over_pairs():
    found = solved(NETWORK, _encode, BANK, COPY)
    base, source = _loop(NETWORK, _encode, BANK, COPY, np.argmax)
    kept = [n for n in range(BANK.size) if base[n] and source[n]]
    assert 0 < len(kept) < BANK.size, "an untrained network solves some"
    np.testing.assert_array_equal(found.base, base)
    np.testing.assert_array_equal(found.source, source)
    assert (base != source).any()
    np.testing.assert_array_equal(found.kept, kept)
    assert digest(found.bank) == digest(take_rows(BANK, np.array(kept)))
    np.testing.assert_array_equal(found.before, _loop_halves(BANK, range(BANK.size)))
    np.testing.assert_array_equal(found.after, _loop_halves(BANK, kept))
    np.testing.assert_allclose(found.lost, 1 - found.after / found.before, rtol=1e-12)
    np.testing.assert_allclose(
        [found.share_base, found.share_source, found.share], [base.mean(), source.mean(), len(kept) / BANK.size]
    )


def test_a_bank_of_bits_is_read_by_its_readout():
    bank = addition.structured_banks(0, bits=3, fit=12, calibration=4, test=4).fit
    model = MLP(6, 10, 1, 4)
    network = Network(model, model.init(jax.random.key(0)))
    # Some sums are right by luck once the bits that are 0 most often are read as such.
    encode = lambda setting: addition.encode(setting, 3).reshape(-1, 6)
    found = solved(network, encode, bank, addition.adder(3), readout=Bits(), batch=7)
    decode = lambda outputs: sum(int(logit >= 0) << bit for bit, logit in enumerate(outputs))
    base, source = _loop(network, encode, bank, addition.adder(3), decode)
    np.testing.assert_array_equal(found.kept, np.flatnonzero(base & source))


@pytest.mark.parametrize("batch", [1, 3, 5, 1000])
def test_the_size_of_a_batch_does_not_matter(batch):
    found, expected = solved(NETWORK, _encode, BANK, COPY, batch=batch), solved(NETWORK, _encode, BANK, COPY)
    np.testing.assert_array_equal(found.kept, expected.kept)


def test_a_setting_is_run_once_however_many_pairs_it_is_in():
    counts = []

    def counted(setting):
        counts.append(len(setting["a"]))
        return _encode(setting)

    solved(NETWORK, counted, BANK, COPY)
    both = {(a, b) for side in (BANK.base, BANK.source) for a, b in zip(side["a"], side["b"], strict=True)}
    assert counts == [len(both)]
    assert counts[0] <= 16


def test_what_is_left_is_solved_whole_and_keeps_its_role():
    for role in ("fit", "calibration", "test"):
        first = solved(NETWORK, _encode, _bank(role=role), COPY)
        assert first.bank.role == role
        again = solved(NETWORK, _encode, first.bank, COPY)
        assert again.share == 1.0
        assert (again.lost == 0).all()
        runs = record(NETWORK, _encode, first.bank, tap="hidden").runs
        np.testing.assert_array_equal(np.argmax(runs.outputs, axis=-1), first.bank.factual)


def test_only_eligible_pairs_of_a_variable_are_counted():
    bank = concatenate_banks(restrict(_bank(30, 1), 0), restrict(_bank(30, 2), 1))
    found = solved(NETWORK, _encode, bank, COPY)
    np.testing.assert_array_equal(found.before, _loop_halves(bank, range(60)))
    np.testing.assert_array_equal(found.after, _loop_halves(bank, found.kept))
    none = solved(NETWORK, _encode, restrict(BANK, 0), COPY)
    assert np.isnan(none.lost[1]).all()
    assert "nan" in str(none)


def test_outputs_that_are_not_finite_answer_nothing():
    # All weights are 0, so the answer is class 0; where a is 1 the sum of both inputs is infinite, and 0 times it is
    # not a number, whose argmax would be class 0 too.
    network = Network(Summed(2, 4), {"kernel": np.zeros((2, 4), np.float32)})
    large = lambda setting: np.stack([setting["a"], setting["a"]], -1).astype(np.float32) * np.float32(3e38)
    encode = lambda setting: {"left": large(setting), "right": large(setting)}
    base, source = {"a": np.array([0, 0, 1, 1]), "b": np.zeros(4, int)}, {"a": np.array([0, 1, 0, 1]), "b": np.ones(4)}
    bank = label_pairs(COPY, base, source, variables=("p", "q"), role="fit")
    assert (bank.factual == 0).all()
    found = solved(network, encode, bank, COPY)
    np.testing.assert_array_equal(found.base, [True, True, False, False])
    np.testing.assert_array_equal(found.source, [True, False, True, False])
    assert found.kept.tolist() == [0]


def test_the_table_says_what_was_lost():
    found = solved(NETWORK, _encode, BANK, COPY)
    first, head, *rows = str(found).splitlines()
    assert first.startswith(f"{len(found.kept)} of 60 pairs are left")
    assert f"both {found.share:.4f}" in first
    assert head.split() == ["variable", "sensitive", "lost", "invariant", "lost"]
    assert rows[0].split()[:4] == ["p", str(found.after[0, 0]), "of", str(found.before[0, 0])]
    assert f"{found.lost[1, 1]:.4f}" in rows[1]


def test_a_network_of_other_inputs_goes_through_as_a_pytree():
    model = Summed(2, 4)
    network = Network(model, model.init(jax.random.key(1)))
    encode = lambda setting: {"left": _encode(setting), "right": np.square(_encode(setting))}
    found = solved(network, encode, BANK, COPY, batch=4)
    base, source = _loop(network, encode, BANK, COPY, np.argmax)
    np.testing.assert_array_equal(found.kept, np.flatnonzero(base & source))
    assert jnp.issubdtype(found.kept.dtype, jnp.integer)
