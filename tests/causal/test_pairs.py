"""Pair banks: labels, masks, quotas, roles."""

import numpy as np
import pytest

from abstraction.causal import (
    causal_model,
    changes,
    changes_any,
    changes_exactly,
    changes_none,
    concatenate_banks,
    label_pairs,
    restrict,
    sample_bank,
    shared_pairs,
    unchanged,
)

AND = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p & q)
VARIABLES = ("p", "q")


def _stream(seed=0, chunk=64):
    generator = np.random.default_rng(seed)
    while True:
        a, b, c, d = generator.integers(0, 2, (4, chunk))
        yield {"a": a, "b": b}, {"a": c, "b": d}


def _bank(quotas, **options):
    return sample_bank(AND, _stream(), quotas, variables=VARIABLES, role="fit", **options)


def test_labels_and_active_mask_by_hand():
    base = {"a": np.array([1, 1, 0]), "b": np.array([1, 1, 1])}
    source = {"a": np.array([0, 1, 1]), "b": np.array([1, 0, 0])}
    bank = label_pairs(AND, base, source, variables=VARIABLES, role="fit")
    np.testing.assert_array_equal(bank.factual, [1, 1, 0])
    np.testing.assert_array_equal(bank.labels, [[0, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(bank.active, [[True, False, True], [False, True, False]])
    assert bank.size == 3


@pytest.mark.parametrize(
    ("quota", "holds"),
    [
        (changes(0, 50), lambda active: active[0]),
        (unchanged(1, 50), lambda active: ~active[1]),
        (changes_any(50), lambda active: active.any(axis=0)),
        (changes_none(50), lambda active: ~active.any(axis=0)),
        (changes_exactly([0], 50), lambda active: active[0] & ~active[1]),
        (changes_exactly([0, 1], 50), lambda active: active.all(axis=0)),
        (changes_exactly([], 50), lambda active: ~active.any(axis=0)),
    ],
)
def test_every_pair_of_a_quota_meets_its_condition(quota, holds):
    bank = _bank([quota])
    assert bank.size == 50
    assert holds(bank.active).all()


def test_quotas_fill_in_the_order_of_the_stream():
    bank = _bank([changes_any(20), changes_none(20)])
    base, source = next(_stream(chunk=64))
    full = label_pairs(AND, base, source, variables=VARIABLES, role="fit")
    first = np.flatnonzero(full.active.any(axis=0))[:5]
    np.testing.assert_array_equal(bank.base["a"][bank.active.any(axis=0)][:5], base["a"][first])
    assert bank.active.any(axis=0).sum() == 20


def test_the_size_of_stream_chunks_does_not_matter():
    whole = next(_stream(chunk=400))
    cut = lambda step: [
        tuple({name: column[start : start + step] for name, column in setting.items()} for setting in whole)
        for start in range(0, 400, step)
    ]
    quotas = [changes(0, 30), changes_none(40)]
    banks = [sample_bank(AND, cut(step), quotas, variables=VARIABLES, role="fit") for step in (400, 7)]
    assert shared_pairs(*banks) > 0
    for first, second in zip(*(np.sort(bank.labels, axis=1) for bank in banks), strict=True):
        np.testing.assert_array_equal(first, second)


def test_an_impossible_policy_says_what_it_could_not_find():
    never = changes_exactly([0, 1], 5)
    only_ones = [({"a": np.ones(8, int), "b": np.ones(8, int)}, {"a": np.ones(8, int), "b": np.ones(8, int)})]
    with pytest.raises(ValueError, match=r"impossible sampling policy: 5 pairs .* exactly the variables \[0, 1\]"):
        sample_bank(AND, only_ones, [never], variables=VARIABLES, role="fit")


def test_an_endless_stream_gives_up_after_max_pairs():
    never = changes(0, 1)
    stream = (
        ({"a": np.zeros(8, int), "b": np.zeros(8, int)}, {"a": np.ones(8, int), "b": np.ones(8, int)})
        for _ in iter(int, 1)
    )
    with pytest.raises(ValueError, match="24 candidate pairs"):
        sample_bank(AND, stream, [never], variables=VARIABLES, role="fit", max_pairs=24)


def test_a_bank_smaller_than_a_split_is_refused():
    with pytest.raises(ValueError, match="found"):
        sample_bank(AND, [next(_stream())], [changes_any(1000)], variables=VARIABLES, role="test")


def test_unknown_roles_and_variables_are_refused(unchecked):
    base, source = next(_stream())
    with pytest.raises(ValueError, match=r"got role 'train', expected one of \('fit', 'calibration', 'test'\)"):
        label_pairs(AND, base, source, variables=VARIABLES, role="train")
    with pytest.raises(ValueError, match=r"\['z'\], expected variables among"):
        label_pairs(AND, base, source, variables=("z",), role="fit")


def test_restriction_makes_pairs_count_for_one_variable():
    bank = restrict(_bank([changes_any(10)]), 1)
    assert not bank.eligible[0].any()
    assert bank.eligible[1].all()


def test_concatenation_keeps_order_and_refuses_mixtures():
    first, second = _bank([changes(0, 5)]), _bank([changes(1, 7)])
    joined = concatenate_banks(first, second)
    assert joined.size == 12
    np.testing.assert_array_equal(joined.labels[:, :5], first.labels)
    np.testing.assert_array_equal(joined.source["b"][5:], second.source["b"])
    other = sample_bank(AND, _stream(), [changes(0, 5)], variables=VARIABLES, role="test")
    with pytest.raises(ValueError, match="share variables and role"):
        concatenate_banks(first, other)


def test_shared_pairs_counts_distinct_pairs():
    base = {"a": np.array([0, 0, 1]), "b": np.array([0, 0, 1])}
    bank = label_pairs(AND, base, base, variables=VARIABLES, role="fit")
    assert shared_pairs(bank, bank) == 2
