"""Hypotheses that a bank tells apart, against a plain loop over pairs."""

import itertools

import numpy as np
import pytest

from abstraction.causal import causal_model, changes, concatenate_banks, label_pairs, sample_bank
from abstraction.causal.hypotheses import EVERYTHING, NOTHING, distinguishable
from abstraction.causal.pairs import restrict
from abstraction.causal.sampling import uniform_stream
from abstraction.tasks.addition import adder, structured_banks
from abstraction.tasks.equality import EQUALITY

DIGITS = {name: range(3) for name in "wxyz"}
# The same answers by another route: the first three are compared, then the last with what the first two say.
OTHER = causal_model(
    ("w", "x", "y", "z"),
    "o",
    wx=lambda w, x: w != x,
    yz=lambda y, z: y != z,
    last=lambda z: z,
    o=lambda wx, yz: 1 - (wx ^ yz),
)
HYPOTHESES = {
    "wx": (EQUALITY, "wx"),
    "both": (EQUALITY, ("wx", "yz")),
    "yz": (EQUALITY, "yz"),
    "input w": (EQUALITY, "w"),
    "other wx": (OTHER, "wx"),
    "w and yz": (OTHER, ("w", "yz")),
}


def _stream(count, seed=0, values=DIGITS):
    return itertools.islice(uniform_stream(seed, values, 100), count)


def _loop_labels(hypotheses, base, source):
    """Label every pair on its own, under every hypothesis, nothing and everything."""
    rows = []
    for n in range(len(next(iter(base.values())))):
        b, s = ({name: int(values[n]) for name, values in side.items()} for side in (base, source))
        row = []
        for model, variables in hypotheses.values():
            names = [variables] if isinstance(variables, str) else variables
            row.append(int(model.do(b, {name: model.run(s)[name] for name in names})[model.output]))
        model = next(iter(hypotheses.values()))[0]
        rows.append([*row, int(model.run(b)[model.output]), int(model.run(s)[model.output])])
    return rows


def _loop_counts(rows, counted=lambda pair, hypothesis: True):
    size = len(rows[0])
    pairs, hits = np.zeros((size, 2), int), np.zeros((size, size, 2), int)
    for n, row in enumerate(rows):
        for a in range(size):
            if not counted(n, a):
                continue
            half = 0 if row[a] != row[-2] else 1
            pairs[a, half] += 1
            for b in range(size):
                hits[a, b, half] += row[a] == row[b]
    return pairs, hits


def test_counts_are_those_of_a_loop_over_the_pairs_of_a_stream():
    report = distinguishable(_stream(2), HYPOTHESES)
    rows = [row for base, source in _stream(2) for row in _loop_labels(HYPOTHESES, base, source)]
    pairs, hits = _loop_counts(rows)
    assert report.names == (*HYPOTHESES, NOTHING, EVERYTHING)
    np.testing.assert_array_equal(report.pairs, pairs)
    np.testing.assert_array_equal(report.hits, hits)
    differ = [[sum(row[a] != row[b] for row in rows) for b in range(len(report.names))] for a in range(len(rows[0]))]
    np.testing.assert_array_equal(report.differ, differ)
    np.testing.assert_allclose(report.share, np.array(differ) / 200, rtol=1e-12)


def test_the_ceiling_is_the_iia_of_the_rival_on_sensitive_and_on_invariant_pairs():
    report = distinguishable(_stream(1), HYPOTHESES)
    rows = np.array([row for base, source in _stream(1) for row in _loop_labels(HYPOTHESES, base, source)])
    a, b = report.names.index("wx"), report.names.index(EVERYTHING)
    active = rows[:, a] != rows[:, -2]
    expected = [(rows[mask, a] == rows[mask, b]).mean() for mask in (active, ~active)]
    np.testing.assert_allclose(report.ceiling[a, b], np.mean(expected), rtol=1e-12)
    np.testing.assert_array_equal(np.diag(report.ceiling), 1.0)


def test_models_that_say_the_same_of_a_variable_are_alike_and_no_others():
    report = distinguishable(_stream(2), HYPOTHESES)
    assert report.alike == (("wx", "other wx"), ("both", EVERYTHING))
    assert "told apart by no pair: wx from other wx, both from everything" in str(report)


def test_a_pair_in_which_all_flips_coincide_tells_nothing_from_a_swap_of_everything():
    # W = X moves from false to true and Y = Z stays: one variable is all that changes.
    base = {name: np.full(40, value) for name, value in zip("wxyz", (0, 1, 0, 1), strict=True)}
    source = {name: np.full(40, value) for name, value in zip("wxyz", (0, 0, 0, 1), strict=True)}
    both = {"wx": (EQUALITY, "wx"), "yz": (EQUALITY, "yz")}
    report = distinguishable([(base, source)], both)
    assert report.alike == (("wx", EVERYTHING), ("yz", NOTHING))
    assert report.weak == ()
    assert distinguishable([(base, source)], both, least=41).weak == (
        ("wx", "yz"),
        ("wx", NOTHING),
        ("yz", EVERYTHING),
        (NOTHING, EVERYTHING),
    )


def test_under_the_labels_of_a_variable_its_eligible_pairs_count():
    stream = lambda: uniform_stream(0, DIGITS)
    banks = [sample_bank(EQUALITY, stream(), [changes(v, 25)], variables=("wx", "yz"), role="test") for v in range(2)]
    bank = concatenate_banks(*(restrict(each, v) for v, each in enumerate(banks)))
    hypotheses = {name: HYPOTHESES[name] for name in ("yz", "both", "wx", "other wx")}
    report = distinguishable(bank, hypotheses)
    own = [slice(25, 50), slice(0, 50), slice(0, 25), slice(0, 25), slice(0, 50), slice(0, 50)]
    counted = lambda pair, hypothesis: pair in range(50)[own[hypothesis]]
    pairs, hits = _loop_counts(_loop_labels(hypotheses, bank.base, bank.source), counted)
    np.testing.assert_array_equal(report.pairs, pairs)
    np.testing.assert_array_equal(report.hits, hits)
    assert report.pairs[2].tolist() == [25, 0]
    assert np.isfinite(report.ceiling[2]).all(), "the mean of the halves that have pairs"


def test_a_variable_without_eligible_pairs_has_no_ceiling():
    base, source = next(_stream(1))
    bank = restrict(label_pairs(EQUALITY, base, source, variables=("wx", "yz"), role="fit"), 0)
    report = distinguishable(bank, {"yz": HYPOTHESES["yz"]})
    assert np.isnan(report.ceiling[0]).all()
    assert np.isnan(report.share[0]).all()
    assert report.alike == (("yz", NOTHING), ("yz", EVERYTHING))


def test_the_bank_is_judged_as_one_chunk_and_a_stream_up_to_its_limit():
    bank = structured_banks(0, bits=3, fit=20, calibration=10, test=10).fit
    hypotheses = {name: (adder(3), name) for name in ("c1", "c2", "s0")}
    half = lambda start, stop: tuple(
        {name: values[start:stop] for name, values in side.items()} for side in (bank.base, bank.source)
    )
    whole = distinguishable(bank, hypotheses)
    chunked = distinguishable([half(0, 101), half(101, bank.size)], hypotheses)
    np.testing.assert_array_equal(whole.hits, chunked.hits)
    limited = distinguishable(itertools.repeat(half(0, 101)), hypotheses, max_pairs=150)
    assert limited.pairs.sum(axis=-1).tolist() == [150] * 5


def test_labels_that_are_shares_and_numbers_meet_exactly():
    ints = causal_model(("a",), "y", m=lambda a: a, y=lambda m: m)
    floats = causal_model(("a",), "y", m=lambda a: a / 2, y=lambda m: m * 2)
    base, source = {"a": np.arange(6)}, {"a": np.arange(6)[::-1]}
    report = distinguishable([(base, source)], {"int": (ints, "m"), "float": (floats, "m")})
    assert ("int", "float") in report.alike


@pytest.mark.parametrize("seed", range(3))
def test_differences_of_pairs_that_all_count_are_symmetric(seed):
    report = distinguishable(_stream(1, seed), HYPOTHESES)
    np.testing.assert_array_equal(report.differ, report.differ.T)
    np.testing.assert_array_equal(np.diag(report.differ), 0)


def test_the_table_has_a_row_and_a_column_for_each():
    report = distinguishable(_stream(1), {"wx": HYPOTHESES["wx"], "yz": HYPOTHESES["yz"]})
    title, head, *rows = str(report).splitlines()
    assert "IIA" in title
    assert head.split() == ["labels", "of", "sensitive", "invariant", "wx", "yz", NOTHING, EVERYTHING]
    assert [row.split()[0] for row in rows[:4]] == list(report.names)
    assert f"{report.ceiling[0, 1]:.4f} ({report.differ[0, 1]})" in rows[0]
