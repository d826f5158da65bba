"""Pair banks: labels, masks, quotas, roles."""

import dataclasses

import numpy as np
import pytest

from abstraction.causal import (
    causal_model,
    changes,
    changes_exactly,
    concatenate_banks,
    label_pairs,
    sample_bank,
    unchanged,
)
from abstraction.causal.pairs import (
    check_bank,
    digest,
    restrict,
    select_variables,
    shared_pairs,
    shuffle_labels,
    take_rows,
)
from abstraction.causal.sampling import changes_any, changes_none

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


def test_a_restriction_keeps_what_did_not_count_from_counting():
    bank = _bank([changes_any(10)])
    some = dataclasses.replace(bank, eligible=np.arange(10) % np.array([[2], [3]]) == 0)
    np.testing.assert_array_equal(restrict(some, 1).eligible, [np.zeros(10, bool), some.eligible[1]])
    rows = np.array([7, 3, 6])
    np.testing.assert_array_equal(take_rows(some, rows).eligible, some.eligible[:, rows])
    np.testing.assert_array_equal(select_variables(some, [1]).eligible, some.eligible[1:])


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


def _numbered(y, values=(0, 1, 1)):
    model = causal_model(("a", "b"), "y", m=lambda a, b: a + b, y=y)
    base, source = {"a": np.array(values), "b": np.array([0, 1, 2])}, {"a": np.array([1, 0, 2]), "b": np.ones(3, int)}
    return model, base, source, label_pairs(model, base, source, variables=("m",), role="fit")


@pytest.mark.parametrize(
    "y",
    [lambda m: m / 4, lambda m: m * 3_000_000_000, lambda m: m.astype(np.uint8), lambda m: m.astype(np.float32) / 3],
    ids=["share", "big", "narrow", "float32"],
)
def test_labels_keep_the_type_and_the_value_of_the_output(y):
    model, base, source, bank = _numbered(y)
    factual, label = model.run(base)["y"], model.interchange(base, {"m": source})["y"]
    assert bank.factual.dtype == bank.labels.dtype == factual.dtype
    np.testing.assert_array_equal(bank.factual, factual)
    np.testing.assert_array_equal(bank.labels, [label])
    np.testing.assert_array_equal(bank.active, [factual != label])


def test_truth_values_are_classes():
    *_, bank = _numbered(lambda m: m > 1)
    assert bank.labels.dtype == bank.factual.dtype == np.int32
    assert bank.factual.tolist() == [0, 1, 1]


def test_labels_of_two_types_take_the_one_that_holds_both():
    """Set to its value on the source, the whole number m is a float only where the mechanism makes it one."""
    model = causal_model(("a",), "y", m=lambda a: a, k=lambda a: a / 2, y=lambda m, k: m)
    ints = {"a": np.array([1, 2])}
    output = causal_model(("a",), "y", m=lambda a: a, y=lambda m: m)
    bank = label_pairs(output, ints, {"a": np.array([0.5, 3.0])}, variables=("m",), role="fit")
    assert bank.factual.dtype == bank.labels.dtype == np.float64
    np.testing.assert_array_equal(bank.labels, [[0.5, 3.0]])
    assert label_pairs(model, ints, ints, variables=("k",), role="fit").labels.dtype == np.int64


def test_a_pair_counts_for_one_quota_only():
    """Whatever changes for the first variable changes for some: one pair must not fill both quotas."""
    bank = _bank([changes_any(20), changes(0, 20)])
    assert bank.size == 40
    again = _bank([changes(0, 20), changes(0, 20), changes_any(5)])
    assert again.size == 45


def test_quotas_of_nothing_may_stand_beside_others():
    assert _bank([changes_none(0), changes_any(3)]).size == 3


def test_shared_pairs_are_compared_exactly():
    model = causal_model(("a",), "y", y=lambda a: (a > 0.5) * 1)
    bank = lambda values: label_pairs(
        model, {"a": np.array(values)}, {"a": np.array(values)}, variables=("y",), role="fit"
    )
    assert shared_pairs(bank([0.2, 0.7]), bank([0.3, 0.9])) == 0
    assert shared_pairs(bank([0.2, 0.7]), bank([0.7, 0.2])) == 2
    assert shared_pairs(bank([0, 1]), bank([1.0, 5.0])) == 1
    assert shared_pairs(bank([0]), bank([0.2])) == 0
    assert shared_pairs(bank([2**60]), bank([2**60 + 1])) == 0


def test_shared_pairs_do_not_depend_on_the_order_of_names():
    *_, bank = _numbered(lambda m: m)
    turned = dataclasses.replace(bank, base=dict(reversed(bank.base.items())))
    assert shared_pairs(bank, turned) == 3
    assert digest(bank) == digest(turned)


def test_digests_tell_banks_apart():
    *_, bank = _numbered(lambda m: m)
    assert digest(bank) == digest(_numbered(lambda m: m)[-1])
    assert len(digest(bank)) == 64
    changed = [
        {"role": "test"},
        {"variables": ("n",)},
        {"labels": bank.labels + 1},
        {"factual": bank.factual[::-1]},
        {"eligible": ~bank.eligible},
        {"base": bank.source},
        {"source": {"a": bank.source["a"], "c": bank.source["b"]}},
        {"labels": bank.labels.astype(np.float64)},
    ]
    digests = {digest(dataclasses.replace(bank, **change)) for change in changed}
    assert len(digests | {digest(bank)}) == len(changed) + 1


def test_the_digest_of_a_bank_is_what_it_always_was():
    """Artifacts hold it: it must not move with versions, machines or the layout of arrays in memory."""
    *_, bank = _numbered(lambda m: m.astype(np.int64))
    expected = "286a0c6559c33caf114f7e4389c5a5bff747c765e95470f0656b24acaada3d8a"
    assert digest(bank) == expected
    strided = dataclasses.replace(bank, labels=np.asfortranarray(bank.labels), factual=bank.factual.astype(">i8"))
    assert digest(strided) == expected


def test_banks_that_belong_together_pass_the_check():
    first, second = _bank([changes(0, 5)]), _bank([changes_any(7)])
    for bank in (first, restrict(second, 1), concatenate_banks(first, second), select_variables(first, [1])):
        check_bank(bank)
    shuffled = shuffle_labels(np.random.default_rng(0), second)
    check_bank(shuffled)
    np.testing.assert_array_equal(np.sort(shuffled.labels, axis=1), np.sort(second.labels, axis=1))


def test_taking_rows_keeps_what_belongs_to_them():
    bank = _bank([changes_any(20)])
    rows = np.array([7, 0, 7])
    taken = take_rows(bank, rows)
    np.testing.assert_array_equal(taken.labels, bank.labels[:, rows])
    np.testing.assert_array_equal(taken.source["b"], bank.source["b"][rows])
    with pytest.raises(ValueError, match="expected a list of integers of 0 to 19"):
        take_rows(bank, np.array([20]))
    with pytest.raises(ValueError, match="expected a list of integers"):
        take_rows(bank, np.array([-1]))
