"""Hierarchical equality: data, encoding and banks (PLOT, first benchmark)."""

import dataclasses
import functools
from typing import get_args

import numpy as np
import pytest

from abstraction.causal.pairs import shared_pairs, take_rows
from abstraction.tasks import equality

# Counts of the authors' code: fit pairs (of 1000) that change the output for WX and for YZ.
ACTIVE_FIT = {1: (276, 226), 2: (183, 322), 3: (267, 235)}
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))]
SMALL = {"size": 10, "fit_pool": 100, "calibration_pool": 200, "test_pool": 100}

paper = functools.cache(equality.paper_banks)


@pytest.mark.parametrize("seed", SEEDS)
def test_paper_banks_have_the_authors_counts(seed):
    fit, calibration, tests = paper(seed)
    assert tuple(fit.active.sum(axis=1)) == ACTIVE_FIT[seed]
    assert fit.active.any(axis=0).sum() == 500
    assert (calibration.active.sum(axis=1) == 500).all()
    assert not calibration.active.all(axis=0).any()
    for v in range(2):
        assert tests["test"].active[v][tests["test"].eligible[v]].sum() == 1000
        invariant = tests["test-invariant"]
        assert (~invariant.active[v][invariant.eligible[v]]).sum() == 1000


def test_paper_pairs_are_the_authors_draws():
    """Enumerate a small pool by hand: pairs (b != s) base-major, permuted twice by one generator."""
    pool, seed = 9, 5
    codes = np.random.default_rng(seed + 17).choice(100**4, size=pool, replace=False)
    pairs = [(b, s) for b in range(pool) for s in range(pool) if b != s]
    generator = np.random.default_rng(seed)
    first = generator.permutation(len(pairs))
    second = generator.permutation(len(pairs))
    expected = [pairs[first[index]] for index in second]
    got = [
        tuple(int(np.flatnonzero(codes == _code(setting, row))[0]) for setting in chunk)
        for chunk in equality.pool_stream(seed, pool, chunk=10)
        for row in range(len(chunk[0]["w"]))
    ]
    assert got == expected


def _code(setting, row):
    w, x, y, z = (int(setting[name][row]) for name in equality.INPUTS)
    return ((w * 100 + x) * 100 + y) * 100 + z


def test_specific_pairs_change_for_the_other_variable_only():
    bank = paper(1).tests["test-specific"]
    for v in range(2):
        chosen = bank.eligible[v]
        assert chosen.sum() == 1000
        assert not bank.active[v, chosen].any()
        assert bank.active[1 - v, chosen].all()


@pytest.mark.parametrize("seed", SEEDS)
def test_banks_of_different_roles_share_no_pair(seed):
    fit, calibration, tests = paper(seed)
    for bank in tests.values():
        assert shared_pairs(fit, bank) == 0
        assert shared_pairs(calibration, bank) == 0


@pytest.mark.parametrize("role", ["fit", "calibration"])
def test_a_test_pair_that_was_seen_before_is_refused(role):
    banks = equality.independent_banks(0, fit=30, calibration=30, test=20)
    assert equality.disjoint(banks) is banks
    seen = dataclasses.replace(take_rows(getattr(banks, role), np.arange(3)), role="test")
    with pytest.raises(ValueError, match=f"got 3 pairs of the {role} bank in seen, expected disjoint banks"):
        equality.disjoint(banks._replace(tests={**banks.tests, "seen": seen}))


def test_independent_banks_hold_every_pattern_in_proportion():
    banks = equality.independent_banks(0, fit=900, calibration=300, both=0.1)
    wx, yz = banks.fit.active
    counts = [int(mask.sum()) for mask in (wx & yz, wx & ~yz, ~wx & yz, ~wx & ~yz)]
    assert counts == [90, 270, 270, 270]
    assert banks.calibration.size == 300


def test_banks_are_a_function_of_the_seed():
    small = {"fit": 30, "calibration": 30, "test": 20}
    first, again, other = (equality.independent_banks(seed, **small) for seed in (0, 0, 1))
    assert shared_pairs(first.fit, again.fit) == len({*map(tuple, _table(first.fit))})
    assert shared_pairs(first.fit, other.fit) == 0


def _table(bank):
    return np.stack([*bank.base.values(), *bank.source.values()], axis=1).tolist()


@pytest.mark.parametrize("policy", get_args(equality.CalibrationPolicy))
def test_every_calibration_policy_has_the_pairs_it_names(policy):
    banks = equality.paper_banks(3, size=20, calibration=policy, fit_pool=300, calibration_pool=600, test_pool=300)
    wx, yz = banks.calibration.active
    either, both = wx | yz, wx & yz
    claims = {
        "shared_only": (wx ^ yz).all() and wx.sum() == 10,
        "shared_wx_positive": wx.all(),
        "shared_yz_positive": yz.all(),
        "shared_any_positive": either.all(),
        "shared_any_mixed50": either.sum() == 10,
        "shared_both_positive": both.all(),
        "separate_variable_positive": banks.calibration.eligible.sum() == 40 and wx[:20].all() and yz[20:].all(),
        "separate_variable_only": (wx[:20] & ~yz[:20]).all() and (yz[20:] & ~wx[20:]).all(),
    }
    assert claims[policy]


def test_labels_of_uniform_rows_are_98_to_2():
    data = equality.factual_data(0, 200_000)
    rows = data["rows"].astype(int)
    expected = (rows[:, 0] == rows[:, 1]) == (rows[:, 2] == rows[:, 3])
    np.testing.assert_array_equal(data["labels"], expected)
    # P(O = 1) = .99^2 + .01^2 = .9802; the standard error of 200 000 draws is .0003
    assert abs(data["labels"].mean() - 0.9802) < 0.0015


def test_balanced_data_holds_every_combination_equally_often():
    data = equality.balanced_data(0, 4000)
    rows = data["rows"]
    cells = 2 * (rows[:, 0] == rows[:, 1]) + (rows[:, 2] == rows[:, 3])
    np.testing.assert_array_equal(cells, data["cells"])
    np.testing.assert_array_equal(np.bincount(cells), [1000] * 4)
    np.testing.assert_array_equal(data["labels"], (cells == 0) | (cells == 3))


def test_encoding_concatenates_the_vectors_of_w_x_y_z():
    vectors = equality.entities(0)
    encoded = equality.encode(vectors, np.array([[3, 1, 4, 15]]))
    np.testing.assert_array_equal(encoded[0], np.concatenate([vectors[i] for i in (3, 1, 4, 15)]))
    assert np.abs(vectors).max() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: equality.paper_banks(0, **SMALL | {"size": 1000, "fit_pool": 10}), "impossible sampling policy"),
        (lambda: equality.paper_banks(0, **SMALL | {"fit_pool": 1}), "got a pool of 1 rows"),
        (lambda: equality.paper_banks(0, size=10, calibration="all"), "got calibration policy 'all'"),
        (lambda: equality.independent_banks(0, both=1.5), "got a share of 1.5"),
    ],
)
def test_impossible_banks_are_refused(build, message, unchecked):
    with pytest.raises(ValueError, match=message):
        build()
