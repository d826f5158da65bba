"""Rows P22 and P23, causal models against pyvene's: all variables of runs and interchanges, and counterfactual pairs.

pyvene evaluates one setting at a time from a function per variable. Models are written twice, here in its form.
"""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from broken import noticed

from abstraction.causal import CausalModel, causal_model, label_pairs, pairs
from abstraction.causal.pairs import counterfactual_labels
from abstraction.tasks import mcqa
from abstraction.tasks.addition import adder, carries, every_input
from abstraction.tasks.equality import EQUALITY

pyvene = pytest.importorskip("pyvene", reason="pyvene is the oracle: pip install -e '.[parity]'", exc_type=ImportError)

pytestmark = pytest.mark.parity

AND = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p & q)
BITS = 3


def theirs(inputs, mechanisms):
    """Build pyvene's model of inputs `{name: values}` and mechanisms `{name: (values, parents, function)}`."""
    fixed = {name: (lambda value: lambda: value)(values[0]) for name, values in inputs.items()}
    return pyvene.CausalModel(
        [*inputs, *mechanisms],
        {**inputs, **{name: values for name, (values, _, _) in mechanisms.items()}},
        {**{name: [] for name in inputs}, **{name: list(parents) for name, (_, parents, _) in mechanisms.items()}},
        {**fixed, **{name: function for name, (_, _, function) in mechanisms.items()}},
        pos={},
    )


def their_and():
    truth = [False, True]
    return theirs(
        {"a": truth, "b": truth},
        {
            "p": (truth, "a", lambda a: a),
            "q": (truth, "b", lambda b: b),
            "y": (truth, "pq", lambda p, q: p and q),
        },
    )


def their_equality(entities=3):
    truth, names = [True, False], list(range(entities))
    same = lambda left, right: left == right
    return theirs(
        {name: names for name in "wxyz"},
        {"wx": (truth, "wx", same), "yz": (truth, "yz", same), "o": (truth, ("wx", "yz"), same)},
    )


def their_adder():
    """Add by schoolbook carries: each column is a sum of ones, halved."""
    bit, numbers = [0, 1], list(range(2**BITS))
    column = lambda t: lambda a, b, carry=0: (a // 2**t) % 2 + (b // 2**t) % 2 + carry
    mechanisms = {}
    for t in range(BITS):
        parents = ("a", "b", f"c{t}") if t else ("a", "b")
        mechanisms[f"s{t}"] = (bit, parents, lambda *values, t=t: column(t)(*values) % 2)
        mechanisms[f"c{t + 1}"] = (bit, parents, lambda *values, t=t: column(t)(*values) // 2)
    parts = (*(f"s{t}" for t in range(BITS)), f"c{BITS}")
    total = lambda *values: int("".join(str(int(value)) for value in reversed(values)), 2)
    mechanisms["total"] = (list(range(2 ** (BITS + 1))), parts, total)
    return theirs({"a": numbers, "b": numbers}, mechanisms)


def their_mcqa(colors=5, letters=6):
    palette, alphabet = list(range(colors)), list(range(letters))
    inputs = {"noun": [0, 1], "color": palette}
    inputs |= {name: palette for name in mcqa.CHOICES} | {name: alphabet for name in mcqa.LABELS}
    return theirs(
        inputs,
        {
            "answer_pointer": (list(range(4)), ("color", *mcqa.CHOICES), lambda color, *offered: offered.index(color)),
            "answer": (alphabet, ("answer_pointer", *mcqa.LABELS), lambda pointer, *offered: offered[pointer]),
        },
    )


def _grid(**values):
    rows = np.array(list(itertools.product(*values.values())))
    return dict(zip(values, rows.T, strict=True))


def _questions(seed, count):
    """Draw valid questions: four colours with the right one among them, and four letters."""
    generator, rows = np.random.default_rng(seed), []
    for _ in range(count):
        offered, letters = generator.permutation(5)[:4], generator.permutation(6)[:4]
        rows.append([generator.integers(2), generator.choice(offered), *offered, *letters])
    return dict(zip(mcqa.INPUTS, np.array(rows).T, strict=True))


CASES = {
    "and": (AND, their_and, lambda: _grid(a=[0, 1], b=[0, 1])),
    "hierarchical equality": (EQUALITY, their_equality, lambda: _grid(**dict.fromkeys("wxyz", range(3)))),
    "carry": (adder(BITS), their_adder, lambda: every_input(BITS)),
    "multiple choice": (mcqa.MODEL, their_mcqa, lambda: _questions(0, 40)),
}


# Where a question does not offer its colour once, it has no answer.
QUESTION = ("color", *mcqa.CHOICES)


@pytest.fixture(params=CASES, name="case")
def _case(request):
    ours, build, settings = CASES[request.param]
    return ours, build(), settings()


def free(model):
    """Name the variables that may be set to any of their values."""
    return [name for name in model.variables if model is not mcqa.MODEL or name not in QUESTION]


def _rows(setting):
    return [
        dict(zip(setting, row, strict=True))
        for row in zip(*(np.asarray(x).tolist() for x in setting.values()), strict=True)
    ]


def _equal(ours, rows):
    for name, values in ours.items():
        np.testing.assert_array_equal(values, [row[name] for row in rows], err_msg=name)


def test_runs_have_the_same_value_of_every_variable(case):
    ours, other, inputs = case
    assert sorted(ours.variables) == sorted(other.variables)
    _equal(ours.run(inputs), [other.run_forward(row) for row in _rows(inputs)])


def test_runs_under_an_intervention_have_the_same_value_of_every_variable(case):
    ours, other, inputs = case
    for name in free(ours):
        for value in other.values[name]:
            _equal(
                ours.do(inputs, {name: np.full(len(next(iter(inputs.values()))), value)}),
                [other.run_forward({**row, name: value}) for row in _rows(inputs)],
            )


def _pairs(inputs, seed=0, count=150):
    """Draw bases and sources among settings."""
    rows = np.random.default_rng(seed).integers(0, len(next(iter(inputs.values()))), (2, count))
    return ({name: values[row] for name, values in inputs.items()} for row in rows)


def test_interchanges_of_every_variable_have_the_same_value_of_every_variable(case):
    ours, other, inputs = case
    base, source = _pairs(inputs)
    plain = [other.run_forward(row) for row in _rows(base)]
    for name in free(ours):
        expected = [other.run_interchange(b, {name: s}) for b, s in zip(_rows(base), _rows(source), strict=True)]
        assert expected != plain, f"{name} moves nothing"
        _equal(ours.interchange(base, {name: source}), expected)


def test_labels_are_the_outputs_of_its_interchanges(case):
    ours, other, inputs = case
    base, source = _pairs(inputs, 1)
    inner = [name for name in ours.variables if name not in ours.inputs]
    bank = label_pairs(ours, base, source, variables=inner, role="fit")
    both = [tuple(inner), (inner[0], ours.output)]
    sets = counterfactual_labels(ours, base, source, both).labels
    for names, labels in [*zip([(name,) for name in inner], bank.labels, strict=True), *zip(both, sets, strict=True)]:
        expected = [
            other.run_interchange(b, dict.fromkeys(names, s))[ours.output]
            for b, s in zip(_rows(base), _rows(source), strict=True)
        ]
        assert expected != [other.run_forward(b)[ours.output] for b in _rows(base)], f"{names} moves nothing"
        np.testing.assert_array_equal(labels, expected, err_msg=str(names))


SAMPLED = {"and": ("p", "q"), "hierarchical equality": ("wx", "yz"), "carry": carries(BITS)}


@pytest.mark.parametrize("name", SAMPLED)
def test_labels_of_its_counterfactual_data_set_are_ours_given_its_pairs(name):
    ours, build, _ = CASES[name]
    other, variables = build(), SAMPLED[name]
    random.seed(0)
    found = other.generate_counterfactual_dataset(
        60,
        lambda intervention: sorted(intervention),
        batch_size=2,
        sampler=other.sample_input_tree_balanced,
        # Interventions of one variable, and of both at once, each with a source of its own.
        intervention_sampler=lambda: {
            name: random.choice(other.values[name])
            for name in random.sample(variables, random.randint(1, len(variables)))
        },
        return_tensors=False,
    )
    assert any(example["labels"] != example["base_labels"] for example in found), "the interchange moves nothing"
    kinds = {tuple(example["intervention_id"][0]) for example in found}
    assert len(kinds) == 2 ** len(variables) - 1
    for kind in kinds:
        examples = [example for example in found if tuple(example["intervention_id"][0]) == kind]
        columns = lambda rows: {name: np.array([row[name] for row in rows]) for name in ours.inputs}
        base = columns([example["input_ids"] for example in examples])
        # Sources come in the order that pyvene keeps its variables in.
        order = [variable for variable in other.variables if variable in kind]
        sources = {v: columns([e["source_input_ids"][i] for e in examples]) for i, v in enumerate(order)}
        _equal(ours.interchange(base, sources), [example["labels"] for example in examples])
        _equal(ours.run(base), [example["base_labels"] for example in examples])
        if len(kind) == 1:
            bank = label_pairs(ours, base, sources[kind[0]], variables=kind, role="fit")
            np.testing.assert_array_equal(bank.labels[0], [e["labels"][ours.output] for e in examples])
            np.testing.assert_array_equal(bank.factual, [e["base_labels"][ours.output] for e in examples])


DO, LABELS = CausalModel.do, pairs.counterfactual_labels


def _without_descendants(self, inputs, *interventions):
    """Set variables, and leave what follows from them."""
    fixed = {name: value for intervention in interventions for name, value in intervention.items()}
    return {**DO(self, inputs), **fixed}


def _only_one(self, inputs, *interventions):
    """Set one variable of several."""
    fixed = [item for intervention in interventions for item in intervention.items()]
    return DO(self, inputs, dict(fixed[:1]))


def _other_parents(self, inputs, *interventions):
    turned = tuple(replace(one, parents=one.parents[::-1]) for one in self.mechanisms)
    return DO(replace(self, mechanisms=turned), inputs, *interventions)


def _base_value(self, base, sources):
    """Take each value from the base in place of its source."""
    return DO(self, base, {name: self.run(base)[name] for name in sources})


def _sides(model, base, source, interchanges):
    """Label the source with the base's values."""
    found = LABELS(model, source, base, interchanges)
    return found._replace(
        base=found.source, source=found.base, factual=LABELS(model, base, source, interchanges).factual
    )


runs = test_runs_have_the_same_value_of_every_variable
held = test_runs_under_an_intervention_have_the_same_value_of_every_variable
swapped = test_interchanges_of_every_variable_have_the_same_value_of_every_variable
labelled = test_labels_are_the_outputs_of_its_interchanges
MUTANTS = {
    "P22 parents in another order": (runs, CausalModel, "do", _other_parents),
    "P22 what is set is not passed on": (held, CausalModel, "do", _without_descendants),
    "P22 the value of the base": (swapped, CausalModel, "interchange", _base_value),
    "P23 the other side": (labelled, pairs, "counterfactual_labels", _sides),
    "P23 one of two": (labelled, CausalModel, "do", _only_one),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_row_notices_what_is_broken(fault):
    check, place, name, wrong = MUTANTS[fault]
    ours, build, settings = CASES["carry"]
    with noticed(place, name, wrong):
        check((ours, build(), settings()))


@pytest.mark.parametrize("name", SAMPLED)
def test_a_data_set_of_its_pairs_notices_what_is_broken(name):
    """P23: the data set has interventions of several variables at once, and of one."""
    for place, what, wrong in ((CausalModel, "do", _only_one), (pairs, "counterfactual_labels", _sides)):
        with noticed(place, what, wrong):
            test_labels_of_its_counterfactual_data_set_are_ours_given_its_pairs(name)
