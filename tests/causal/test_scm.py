"""The causal-model engine against brute force and by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import causal_model
from abstraction.tasks.equality import EQUALITY

CHAIN = causal_model(("a",), "d", b=lambda a: a + 1, c=lambda b: 2 * b, d=lambda b, c: b * c)
ADDER = causal_model(
    ("a0", "b0", "a1", "b1"),
    "total",
    c1=lambda a0, b0: a0 & b0,
    s0=lambda a0, b0: a0 ^ b0,
    s1=lambda a1, b1, c1: a1 ^ b1 ^ c1,
    c2=lambda a1, b1, c1: (a1 & b1) | (c1 & (a1 ^ b1)),
    total=lambda s0, s1, c2: s0 + 2 * s1 + 4 * c2,
)


def test_run_evaluates_mechanisms_in_order():
    assert CHAIN.run({"a": 2}) == {"a": 2, "b": 3, "c": 6, "d": 18}


def test_do_recomputes_descendants_and_nothing_else():
    assert CHAIN.do({"a": 2}, {"c": 10}) == {"a": 2, "b": 3, "c": 10, "d": 30}
    assert CHAIN.do({"a": 2}, {"b": 10}) == {"a": 2, "b": 10, "c": 20, "d": 200}


def test_do_on_an_input_is_running_with_that_input():
    assert CHAIN.do({"a": 2}, {"a": 5}) == CHAIN.run({"a": 5})


def test_the_last_of_two_interventions_on_a_variable_wins():
    assert CHAIN.do({"a": 2}, {"b": 10}, {"b": 4, "c": 1}) == CHAIN.do({"a": 2}, {"b": 4, "c": 1})
    assert CHAIN.do({"a": 2}, {"b": 4, "c": 1}, {"b": 10}) == CHAIN.do({"a": 2}, {"b": 10, "c": 1})


def test_interchange_with_itself_is_identity():
    for name in CHAIN.variables:
        assert CHAIN.interchange({"a": 3}, {name: {"a": 3}}) == CHAIN.run({"a": 3})


def test_interchange_sets_the_value_of_the_source():
    assert CHAIN.interchange({"a": 2}, {"c": {"a": 4}})["d"] == 3 * 10


def test_a_joint_interchange_is_a_joint_do():
    joint = CHAIN.interchange({"a": 2}, {"b": {"a": 4}, "c": {"a": 0}})
    assert joint == CHAIN.do({"a": 2}, {"b": 5, "c": 2})


def test_adder_adds_every_pair_of_numbers():
    bits = np.array(list(itertools.product([0, 1], repeat=4))).T
    values = ADDER.run(dict(zip(ADDER.inputs, bits, strict=True)))
    a0, b0, a1, b1 = bits
    np.testing.assert_array_equal(values["total"], (a0 + 2 * a1) + (b0 + 2 * b1))


def test_equality_matches_the_formula_on_random_pairs(rng):
    base, source = rng.integers(0, 3, (2, 4, 10_000))
    settings = [dict(zip(EQUALITY.inputs, rows, strict=True)) for rows in (base, source)]
    expected = (source[0] == source[1]) == (base[2] == base[3])
    np.testing.assert_array_equal(EQUALITY.interchange(settings[0], {"wx": settings[1]})["o"], expected)
    expected = (base[0] == base[1]) == (source[2] == source[3])
    np.testing.assert_array_equal(EQUALITY.interchange(settings[0], {"yz": settings[1]})["o"], expected)


def test_one_jitted_vmap_evaluates_all_settings():
    a = jnp.arange(1000)
    vectorised = jax.jit(jax.vmap(lambda base, source: CHAIN.interchange({"a": base}, {"b": {"a": source}})["d"]))
    np.testing.assert_array_equal(vectorised(a, a[::-1]), 2 * (a[::-1] + 1) ** 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: causal_model(("a",), "y", y=lambda z: z), r"got parents \['z'\] of 'y'"),
        (lambda: causal_model(("a",), "y", b=lambda c: c, c=lambda a: a, y=lambda b: b), r"\['c'\] of 'b'"),
        (lambda: causal_model(("a",), "q", y=lambda a: a), "got output 'q', expected one of"),
        (lambda: causal_model(("a",), "y", a=lambda: 1, y=lambda a: a), "second definition of 'a'"),
        (lambda: causal_model(("a", "a"), "y", y=lambda a: a), "expected each name once"),
        (lambda: CHAIN.do({"a": 1}, {"q": 1}), r"\['q'\], expected variables among"),
        (lambda: CHAIN.interchange({"a": 1}, {"q": {"a": 1}}), r"got an interchange of \['q'\]"),
        (lambda: CHAIN.run({}), r"\['a'\]"),
    ],
)
def test_bad_names_are_refused_with_the_valid_ones(build, message):
    with pytest.raises(ValueError, match=message):
        build()
