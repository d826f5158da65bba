"""Balanced banks, against a loop that takes one pair after another."""

import dataclasses
import itertools

import numpy as np
import pytest

from abstraction.causal import causal_model, label_pairs
from abstraction.causal.balancing import balanced_bank
from abstraction.causal.pairs import digest
from abstraction.causal.sampling import uniform_stream
from abstraction.tasks.equality import EQUALITY

DIGITS = {name: range(4) for name in "wxyz"}
VARIABLES = ("wx", "yz")
SUMS = causal_model(("a", "b", "c"), "y", p=lambda a, b: a + b, q=lambda c: c, y=lambda p, q: (p + q) % 3)


def _stream(seed=0, values=DIGITS, chunk=64):
    return uniform_stream(seed, values, chunk)


def _balanced(by, model=EQUALITY, stream=None, variables=VARIABLES, size=40, **options):
    options = {"max_pairs": 20_000, **options}
    return balanced_bank(model, stream or _stream(), by, variables=variables, role="fit", size=size, **options)


def _loop(model, stream, by, variables, size, limit=100_000):
    """Take pairs one at a time, for every variable in whose cell there is room: settings, and for whom they count."""
    cells = {name: list(itertools.product(*by.values())) for name in variables}
    room = {name: dict.fromkeys(each, size // len(each)) for name, each in cells.items()}
    taken = []
    for base, source in stream:
        for n in range(len(next(iter(base.values())))):
            b, s = ({name: int(values[n]) for name, values in side.items()} for side in (base, source))
            run, given, counts = model.run(b), model.run(s), []
            for name in variables:
                label, factual = int(model.do(b, {name: given[name]})[model.output]), int(run[model.output])
                facts = {"label": label, "factual": factual, "active": label != factual}
                facts |= {"base": int(run[name]), "source": int(given[name])}
                cell = tuple(facts[what] for what in by)
                counts.append(room[name].get(cell, 0) > 0)
                if counts[-1]:
                    room[name][cell] -= 1
            if any(counts):
                taken.append((b, s, counts))
            if not any(left for each in room.values() for left in each.values()):
                return taken
            limit -= 1
            assert limit
    raise AssertionError("the stream ended")


POLICIES = [
    pytest.param(EQUALITY, DIGITS, {"label": (0, 1)}, VARIABLES, id="labels"),
    pytest.param(EQUALITY, DIGITS, {"label": (0, 1), "factual": (1, 0)}, VARIABLES, id="labels and answers"),
    pytest.param(EQUALITY, DIGITS, {"active": (False, True), "source": (0, 1)}, VARIABLES, id="halves and values"),
    pytest.param(EQUALITY, DIGITS, {"base": (0, 1), "source": (0, 1)}, ("yz",), id="both values of one"),
    pytest.param(SUMS, {name: range(3) for name in "abc"}, {"label": (0, 2)}, ("p", "q"), id="some of the labels"),
    # An invariant label is the answer, so an invariant 0 of one variable excludes an invariant 2 of the other.
    pytest.param(
        SUMS, {name: range(3) for name in "abc"}, {"label": range(3), "active": (0, 1)}, ("q", "p"), id="sums"
    ),
]


@pytest.mark.parametrize(("model", "values", "by", "variables"), POLICIES)
def test_the_pairs_are_those_of_a_loop(model, values, by, variables):
    found = _balanced(by, model, _stream(3, values), variables, size=48)
    taken = _loop(model, _stream(3, values), by, variables, 48)
    for side, column in ((found.bank.base, 0), (found.bank.source, 1)):
        for name in model.inputs:
            np.testing.assert_array_equal(side[name], [row[column][name] for row in taken])
    np.testing.assert_array_equal(found.bank.eligible.T, [counts for *_, counts in taken])


@pytest.mark.parametrize(("model", "values", "by", "variables"), POLICIES)
def test_every_cell_of_every_variable_occurs_equally_often(model, values, by, variables):
    found = _balanced(by, model, _stream(1, values), variables, size=24)
    bank = found.bank
    again = label_pairs(model, bank.base, bank.source, variables=variables, role="fit")
    assert digest(dataclasses.replace(again, eligible=bank.eligible)) == digest(bank)
    base, source = model.run(bank.base), model.run(bank.source)
    for v, name in enumerate(variables):
        columns = {"label": bank.labels[v], "factual": bank.factual, "active": bank.active[v]}
        columns |= {"base": base[name], "source": source[name]}
        cells = list(zip(*(np.asarray(columns[what]).astype(int).tolist() for what in by), strict=True))
        cells = [cell for cell, counts in zip(cells, bank.eligible[v], strict=True) if counts]
        expected = list(itertools.product(*by.values()))
        assert {cell: cells.count(cell) for cell in expected} == dict.fromkeys(expected, 24 // len(expected))
        assert len(cells) == 24
        assert found.counts[name] == dict.fromkeys(expected, 24 // len(expected))
        assert all(found.seen[name][cell] >= count for cell, count in found.counts[name].items())
        assert sum(found.seen[name].values()) <= found.candidates


@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_the_size_of_stream_chunks_does_not_matter(chunk):
    base, source = next(_stream(0, chunk=300))
    cut = lambda side, start: {name: values[start : start + chunk] for name, values in side.items()}
    chunks = [(cut(base, start), cut(source, start)) for start in range(0, 300, chunk)]
    whole = _balanced({"label": (0, 1)}, stream=[(base, source)], size=60)
    assert digest(_balanced({"label": (0, 1)}, stream=chunks, size=60).bank) == digest(whole.bank)


def test_the_same_seed_gives_the_same_bank_and_another_seed_another():
    draw = lambda seed: digest(_balanced({"label": (0, 1)}, stream=_stream(seed)).bank)
    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_values_may_differ_from_variable_to_variable():
    values = {name: range(3) for name in "abc"}
    by = {"source": {"p": range(5), "q": range(3)}}
    found = _balanced(by, SUMS, _stream(0, values), ("p", "q"), size=15)
    assert found.counts == {"p": {(p,): 3 for p in range(5)}, "q": {(q,): 5 for q in range(3)}}
    source, (of_p, of_q) = found.bank.source, found.bank.eligible
    np.testing.assert_array_equal(np.bincount(source["c"][of_q]), [5, 5, 5])
    np.testing.assert_array_equal(np.bincount((source["a"] + source["b"])[of_p]), [3] * 5)


def test_values_that_are_words_are_balanced():
    model = causal_model(("a",), "y", word=lambda a: np.where(a > 1, "high", "low"), y=lambda word: word == "high")
    found = _balanced({"source": ("low", "high")}, model, _stream(0, {"a": range(10)}), ("word",), size=20)
    assert (found.bank.source["a"] > 1).sum() == 10


def test_a_label_that_never_occurs_is_refused_and_named():
    with pytest.raises(ValueError, match=r"lacks 10 more pairs of 'wx' with label 2 \(never seen\).* 640 candidates"):
        _balanced({"label": (0, 2)}, size=20, max_pairs=600, variables=("wx",))


def test_values_that_do_not_occur_together_are_refused():
    # An invariant pair has its factual output as label, so label and answer differ in active pairs alone.
    by = {"label": (0, 1), "factual": (0, 1), "active": (0, 1)}
    with pytest.raises(ValueError, match=r"label 0, factual 0, active 1 \(never seen\)"):
        _balanced(by, max_pairs=2000)


def test_the_report_says_how_often_each_cell_was_taken_and_seen():
    found = _balanced({"label": (0, 1)}, size=20)
    lines = str(found).splitlines()
    assert 20 <= found.bank.size <= 40
    assert lines[0] == f"{found.bank.size} pairs of {found.candidates} candidates, by label"
    assert lines[1] == f"wx: label 0: 10 of {found.seen['wx'][0,]}"
    assert len(lines) == 5


def test_a_uniform_stream_draws_every_value_equally_and_independently():
    base, source = next(uniform_stream(0, {"a": range(2), "b": ("x", "y", "z")}, 6000))
    both = np.stack([base["a"], np.unique(base["b"], return_inverse=True)[1], source["a"]])
    counts = np.unique(both, axis=1, return_counts=True)[1]
    assert len(counts) == 12
    # 500 each, of a standard deviation of 21: five of them.
    assert (np.abs(counts - 500) < 107).all()
    again, _ = next(uniform_stream(0, {"a": range(2), "b": ("x", "y", "z")}, 6000))
    np.testing.assert_array_equal(base["b"], again["b"])
