"""Bad inputs of causal models, banks, sampling policies, hypotheses and readouts: a new entry point joins by a row."""

import dataclasses

import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.causal import (
    Quota,
    causal_model,
    changes,
    changes_exactly,
    concatenate_banks,
    label_pairs,
    sample_bank,
    unchanged,
)
from abstraction.causal.balancing import balanced_bank
from abstraction.causal.hypotheses import distinguishable
from abstraction.causal.pairs import check_bank, restrict, select_variables, shared_pairs, shuffle_labels
from abstraction.causal.sampling import changes_any, changes_none, uniform_stream
from abstraction.evaluation import Bits, Classes

MODEL = causal_model(("a", "b"), "y", m=lambda a: a, y=lambda m, b: m ^ b)
OTHER = causal_model(("a", "c"), "y", m=lambda a: a, y=lambda m, c: m ^ c)
BASE, SOURCE = {"a": np.arange(8) % 2, "b": np.arange(8) // 4}, {"a": np.arange(8) // 4, "b": np.ones(8, int)}
BANK = label_pairs(MODEL, BASE, SOURCE, variables=("m", "y"), role="fit")


def _label(model=MODEL, base=BASE, source=SOURCE, variables=("m",), role="fit"):
    return label_pairs(model, base, source, variables=variables, role=role)


def _outputs(y, **mechanisms):
    return _label(causal_model(("a", "b"), "y", m=lambda a: a, **mechanisms, y=y))


def _sample(quotas, stream=((BASE, SOURCE),), **options):
    return sample_bank(MODEL, stream, quotas, **{"variables": ("m",), "role": "fit", **options})


def _with(**changed):
    return dataclasses.replace(BANK, **changed)


def _float_bank(values):
    model = causal_model(("a", "b"), "y", y=lambda a, b: a * 1.0 + b)
    return label_pairs(model, {"a": values, "b": values}, {"a": values, "b": values}, variables=("y",), role="fit")


def _told(pairs=((BASE, SOURCE),), hypotheses=None, **options):
    return distinguishable(pairs, {"m": (MODEL, "m")} if hypotheses is None else hypotheses, **options)


def _balance(by=None, stream=((BASE, SOURCE),), size=2, **options):
    by = {"label": (0, 1)} if by is None else by
    return balanced_bank(MODEL, stream, by, size=size, **{"variables": ("m",), "role": "fit", **options})


NAN = np.array([0, np.nan, 0, 0, 0, 0, 0, 0])
SHORT = {name: column[:1] for name, column in SOURCE.items()}
EMPTY = {name: column[:0] for name, column in BASE.items()}

MODELS = [
    Refusal("inputs as one word", lambda: causal_model("ab", "y", y=lambda a: a), "got inputs 'ab'"),
    Refusal("no inputs", lambda: causal_model((), "y", y=lambda: 1), "one or more names"),
    Refusal("an input that is no name", lambda: causal_model((1,), "y", y=lambda: 1), "one or more names"),
    Refusal("a mechanism of any parents", lambda: causal_model(("a",), "y", y=lambda *a: a[0]), r"\['\*a'\]"),
    Refusal("a mechanism of keywords", lambda: causal_model(("a",), "y", y=lambda *, a: a), "names of its parents"),
    Refusal("a mechanism without names", lambda: causal_model(("a",), "y", y=max), "whose parameters are named"),
    Refusal("a mechanism that is a value", lambda: causal_model(("a",), "y", y=3), "got mechanism 3"),
    Refusal("a parent that is unknown", lambda: causal_model(("a",), "y", y=lambda b: b), r"parents \['b'\]"),
    Refusal("an input twice", lambda: causal_model(("a", "a"), "y", y=lambda a: a), "each name once"),
    Refusal("a variable twice", lambda: causal_model(("a",), "y", a=lambda: 1, y=lambda a: a), "second definition"),
    Refusal("no such output", lambda: causal_model(("a",), "z", y=lambda a: a), "got output 'z'"),
    Refusal("a run of another model's inputs", lambda: MODEL.run({"a": 1, "b": 1, "c": 1}), r"got inputs \['c'\]"),
    Refusal("a mechanism among inputs", lambda: MODEL.run({"a": 1, "b": 1, "m": 0}), r"got inputs \['m'\]"),
    Refusal("a run without an input", lambda: MODEL.run({"a": 1}), "a value for each"),
    Refusal("do on no variable", lambda: MODEL.do({"a": 1, "b": 1}, {"z": 1}), "got an intervention on"),
    Refusal("interchange of no variable", lambda: MODEL.interchange(BASE, {"z": BASE}), "got an interchange of"),
]

BANKS = [
    Refusal("one source for all", lambda: _label(source=SHORT), "one row per pair"),
    Refusal("one base for all", lambda: _label(base=SHORT), "one row per pair"),
    Refusal("a short column", lambda: _label(base={**BASE, "b": BASE["b"][:7]}), "one row per pair"),
    Refusal("no pairs", lambda: _label(base=EMPTY, source=EMPTY), "at least one pair"),
    Refusal("scalar inputs", lambda: _label(base={"a": 1, "b": 0}), "one value per pair"),
    Refusal("inputs in two axes", lambda: _label(base={**BASE, "a": np.ones((8, 2), int)}), "one value per pair"),
    Refusal("inputs that are objects", lambda: _label(base={**BASE, "a": np.array([None] * 8)}), "type object"),
    Refusal("an input that is missing", lambda: _label(base={"a": BASE["a"]}), "got base inputs"),
    Refusal("an input too many", lambda: _label(source={**SOURCE, "c": BASE["a"]}), "got source inputs"),
    Refusal("inputs that are no mapping", lambda: _label(base=[BASE["a"], BASE["b"]]), "got base inputs list"),
    Refusal("an input that is NaN", lambda: _label(base={**BASE, "a": NAN}), "got base 'a' = nan at pair 1"),
    Refusal("an input that is infinite", lambda: _label(source={**SOURCE, "b": NAN * 0 + np.inf}), "'b' = inf"),
    Refusal("an unknown role", lambda: _label(role="train"), "got role 'train'"),
    Refusal("an unknown variable", lambda: _label(variables=("m", "z")), r"\['z'\], expected variables among"),
    Refusal("a variable twice", lambda: _label(variables=("m", "m")), "each once"),
    Refusal("no variables", lambda: _label(variables=()), "one or more of"),
    Refusal("variables as one word", lambda: _label(variables="m"), "got variables 'm'"),
    Refusal("an output that is a scalar", lambda: _outputs(lambda m: 1), r"'y' of shape \(\)"),
    Refusal("an output summed over pairs", lambda: _outputs(lambda m: m.sum(keepdims=True)), r"'y' of shape \(1,\)"),
    Refusal("an output per pair and class", lambda: _outputs(lambda m: np.eye(2)[m]), r"shape \(8, 2\)"),
    Refusal("a variable that is a scalar", lambda: _outputs(lambda m, k: m + k, k=lambda a: a.sum()), "'k' of shape"),
    Refusal("an output that is NaN", lambda: _outputs(lambda m: np.where(m, np.nan, 0)), "got nan as the factual"),
    Refusal("an output that is infinite", lambda: _outputs(lambda m: np.where(m, -np.inf, 0)), "got -inf as"),
    Refusal(
        "a label that is NaN",
        lambda: _label(
            causal_model(("a", "b"), "y", m=lambda a: a, y=lambda m, a: np.where(m != a, np.nan, 0.0)),
        ),
        "got nan as the label of 'm' .* at pair 1",
    ),
    Refusal("an output in words", lambda: _outputs(lambda m: np.where(m, "yes", "no")), "expected one number per"),
    Refusal("a complex output", lambda: _outputs(lambda m: m * 1j), "type complex128"),
    Refusal(
        "integers and floats that no type holds",
        lambda: concatenate_banks(
            _outputs(lambda m: m * 0.5),
            _outputs(lambda m: m * (2**60 + 1)),
        ),
        "one type that holds all",
    ),
    Refusal("no bank to join", lambda: concatenate_banks(), "at least one"),
    Refusal("banks of two roles", lambda: concatenate_banks(_label(), _label(role="test")), "share variables and role"),
    Refusal("banks of other variables", lambda: concatenate_banks(_label(), BANK), "share variables and role"),
    Refusal(
        "banks of other inputs",
        lambda: concatenate_banks(_label(), _label(OTHER, *({"a": x["a"], "c": x["b"]} for x in (BASE, SOURCE)))),
        "and inputs",
    ),
    Refusal("shared pairs of other inputs", lambda: shared_pairs(BANK, _with(base={"c": BASE["a"]})), "same inputs"),
    Refusal("shared pairs without inputs", lambda: shared_pairs(*[_with(base={}, source={})] * 2), "same inputs"),
    Refusal("a variable past the last", lambda: restrict(BANK, 2), "integers of 0 to 1"),
    Refusal("a negative variable", lambda: restrict(BANK, -1), "integers of 0 to 1"),
    Refusal("half a variable", lambda: restrict(BANK, 0.5), "integers of 0 to 1"),
    Refusal("a variable by name", lambda: restrict(BANK, "m"), "integers of 0 to 1"),
    Refusal("no variable chosen", lambda: select_variables(BANK, []), "some of 0 to 1"),
    Refusal("a variable chosen twice", lambda: select_variables(BANK, [1, 1]), "each once"),
    Refusal("a mask for indices", lambda: select_variables(BANK, [True, False]), "integers of 0 to 1"),
    Refusal("floats for indices", lambda: select_variables(BANK, [0.0, 1.0]), "integers of 0 to 1"),
    Refusal("a negative index", lambda: select_variables(BANK, [-1]), "integers of 0 to 1"),
    Refusal(
        "one pair to shuffle",
        lambda: shuffle_labels(np.random.default_rng(0), _label(base=SHORT, source=SHORT)),
        "got 1 pairs",
    ),
    Refusal("a bank with a label that is NaN", lambda: check_bank(_with(labels=BANK.labels * np.nan)), "got labels of"),
    Refusal("a bank with words", lambda: check_bank(_with(factual=np.array(["x"] * 8))), "got factual outputs of"),
    Refusal("a bank with labels of fewer pairs", lambda: check_bank(_with(labels=BANK.labels[:, :4])), "of shapes"),
    Refusal("a bank of fewer variables", lambda: check_bank(_with(variables=("m",))), "of shapes"),
    Refusal("a bank with other inputs", lambda: check_bank(_with(base={"a": np.zeros(3)})), "of shapes"),
    Refusal("a bank with shares of pairs", lambda: check_bank(_with(eligible=np.full((2, 8), 0.5))), "truth values"),
    Refusal("a bank that names a variable twice", lambda: check_bank(_with(variables=("m", "m"))), "each once"),
    Refusal("a bank of no role", lambda: check_bank(_with(role="train")), "role 'train'"),
    Refusal("a bank without pairs", lambda: check_bank(_with(factual=np.zeros(0), base={}, source={})), "at least one"),
]

POLICIES = [
    Refusal("a negative quota", lambda: changes(0, -1), "got a quota's count"),
    Refusal("half a quota", lambda: changes_any(2.5), "got a quota's count"),
    Refusal("a quota that is NaN", lambda: changes_none(np.nan), "got a quota's count"),
    Refusal("a quota that is a truth value", lambda: changes_any(True), "got a quota's count"),
    Refusal("a negative variable", lambda: unchanged(-1, 2), "integers of 0 or more"),
    Refusal("a variable by name", lambda: changes("m", 2), "integers of 0 or more"),
    Refusal("a variable twice", lambda: changes_exactly([0, 0], 2), "each once"),
    Refusal("one variable for many", lambda: changes_exactly(0, 2), "integers of 0 or more"),
    Refusal("a variable that is not sampled", lambda: _sample([changes(1, 2)]), "integers of 0 to 0"),
    Refusal("exactly one that is not sampled", lambda: _sample([changes_exactly([3], 2)]), "integers of 0 to 0"),
    Refusal("no quotas", lambda: _sample([]), r"got quotas of \[\]"),
    Refusal("quotas of nothing", lambda: _sample([changes_any(0)]), r"got quotas of \[0\]"),
    Refusal("nothing to look at", lambda: _sample([changes_any(1)], max_pairs=0), "max_pairs 0"),
    Refusal("a stream that is empty", lambda: _sample([changes_any(1)], ()), "0 candidate pairs"),
    Refusal("a pool too small", lambda: _sample([changes_any(99)]), "found"),
    Refusal("a condition over variables", lambda: _sample([Quota(1, "odd", lambda a: a)]), "a truth value per pair"),
    Refusal("a condition in numbers", lambda: _sample([Quota(1, "odd", lambda a: a[0] + 0)]), "a truth value per pair"),
    Refusal("chunks of one source", lambda: _sample([changes_any(1)], ((BASE, SHORT),)), "one row per pair"),
]

WRONG = causal_model(("a", "b"), "y", m=lambda a: a, y=lambda m, b: m | b)
TOLD = [
    Refusal("no hypotheses", lambda: _told(hypotheses={}), r"got hypotheses \[\]"),
    Refusal("hypotheses in a list", lambda: _told(hypotheses=[(MODEL, "m")]), "expected Mapping"),
    Refusal("a hypothesis of nothing", lambda: _told(hypotheses={"nothing": (MODEL, "m")}), "names other than"),
    Refusal("a hypothesis without a name", lambda: _told(hypotheses={3: (MODEL, "m")}), "names other than"),
    Refusal("a variable without a model", lambda: _told(hypotheses={"m": "m"}), "hypothesis 'm' = 'm'"),
    Refusal("a model without a variable", lambda: _told(hypotheses={"m": (MODEL,)}), "variable or variables"),
    Refusal("a variable by index", lambda: _told(hypotheses={"m": (MODEL, 0)}), "got variables of 'm' 0"),
    Refusal("an unknown hypothesis", lambda: _told(hypotheses={"z": (MODEL, "z")}), r"an interchange of \['z'\]"),
    Refusal("a hypothesis of no variable", lambda: _told(hypotheses={"z": (MODEL, ())}), "one or more of"),
    Refusal("a variable twice in one", lambda: _told(hypotheses={"m": (MODEL, ("m", "m"))}), "each once"),
    Refusal(
        "models of other inputs",
        lambda: _told(hypotheses={"m": (MODEL, "m"), "o": (OTHER, "m")}),
        "got models of inputs .* expected the same",
    ),
    Refusal(
        "models that answer differently",
        lambda: _told(hypotheses={"m": (MODEL, "m"), "w": (WRONG, "m")}),
        r"got models that answer base 5 by 0 \('m'\) and 1 \('w'\)",
    ),
    Refusal("no pairs to tell by", lambda: _told(()), "got no pairs"),
    Refusal("pairs that are none", lambda: _told(3), "got pairs 3"),
    Refusal("one pair for a stream", lambda: _told((BASE, SOURCE)), "got a chunk of pairs dict"),
    Refusal("chunks of one source for all", lambda: _told(((BASE, SHORT),)), "one row per pair"),
    Refusal("a broken bank", lambda: _told(_with(labels=BANK.labels[:, :4])), "of shapes"),
    Refusal("no differing pair asked for", lambda: _told(least=0), "got least 0"),
    Refusal("a stream of no pairs", lambda: _told(max_pairs=0), "got max_pairs 0"),
]

BALANCES = [
    Refusal("nothing to balance", lambda: _balance({}), r"got \{\} to balance"),
    Refusal("a balance in one word", lambda: _balance("label"), r"got \['label'\] to balance"),
    Refusal("an unknown balance", lambda: _balance({"labels": (0, 1)}), r"got \['labels'\] to balance"),
    Refusal("a balance without values", lambda: _balance({"label": ()}), "expected at least one"),
    Refusal("a value twice", lambda: _balance({"label": (0, 0)}), "each once"),
    Refusal("values that are one word", lambda: _balance({"label": "01"}), "a list of numbers or of words"),
    Refusal("one value for a list", lambda: _balance({"label": 1}), "a list of numbers or of words"),
    Refusal("values that are NaN", lambda: _balance({"label": (0, np.nan)}), "finite ones"),
    Refusal("values that are objects", lambda: _balance({"label": (None, 1)}), "a list of numbers or of words"),
    Refusal(
        "words for labels", lambda: _balance({"label": ("0", "1")}), "got values .* of 'label', expected some like"
    ),
    Refusal("values of another variable", lambda: _balance({"source": {"y": (0, 1)}}), "expected some for 'm'"),
    Refusal("a size that is odd", lambda: _balance(size=3), r"size of 3 pairs for cells \{'m': 2\}"),
    Refusal("a bank of no pairs", lambda: _balance(size=0), "got size 0"),
    Refusal("half a pair", lambda: _balance(size=2.0), "got size 2.0"),
    Refusal("no candidates", lambda: _balance(max_pairs=0), "got max_pairs 0"),
    Refusal("an empty stream to balance", lambda: _balance(stream=()), "0 candidates"),
    Refusal("a label that never occurs", lambda: _balance({"label": (0, 2)}), r"with label 2 \(never seen\)"),
    Refusal("a pool too small to balance", lambda: _balance(size=200), "more pairs of 'm' with label 0 .* seen"),
    Refusal("an unknown variable to balance", lambda: _balance(variables=("z",)), r"an interchange of \['z'\]"),
    Refusal("no variable to balance", lambda: _balance(variables=()), "one or more of"),
    Refusal("a balanced bank of no role", lambda: _balance(role="train"), "got role 'train'"),
    Refusal("a stream by a negative seed", lambda: next(uniform_stream(-1, {"a": (0, 1)})), "got seed -1"),
    Refusal("a stream of nothing", lambda: next(uniform_stream(0, {})), "one or more inputs"),
    Refusal("a stream of an input without values", lambda: next(uniform_stream(0, {"a": ()})), "a list of values"),
    Refusal("a stream of empty chunks", lambda: next(uniform_stream(0, {"a": (0, 1)}, 0)), "got chunk 0"),
]

READOUTS = [
    Refusal("classes from 1", lambda: Classes().check(np.array([1, 2]), 2), r"got label 2 at \[1\], expected classes"),
    Refusal("a negative class", lambda: Classes().check(np.array([[0, -1]]), 2), r"got label -1 at \[0, 1\]"),
    Refusal("a share for a class", lambda: Classes().check(np.array([0.5]), 2), "got label 0.5"),
    Refusal("a class that is NaN", lambda: Classes().check(np.array([np.nan]), 2), "got label nan"),
    Refusal("a class past int32", lambda: Classes().check(np.array([2**32]), 2), "got label 4294967296"),
    Refusal("a class past those counted", lambda: Classes(2).check(np.array([2]), 3), "classes 0 to 1"),
    Refusal("fewer outputs than classes", lambda: Classes(3).check(np.array([0]), 2), "2 outputs for 3 classes"),
    Refusal("no labels", lambda: Classes().check(np.zeros(0, int), 2), "got 0 labels"),
    Refusal("labels in words", lambda: Classes().check(np.array(["a"]), 2), "expected integers"),
    Refusal("no outputs", lambda: Classes().check(np.array([0]), 0), "got outputs 0"),
    Refusal("no classes", lambda: Classes(0), "got classes 0"),
    Refusal("negative classes", lambda: Classes(-2), "got classes -2"),
    Refusal("half a class", lambda: Classes(2.5), "got classes 2.5"),
    Refusal("a number of too many bits", lambda: Bits().check(np.array([8]), 3), "numbers of 3 bits 0 to 7"),
    Refusal("a negative number", lambda: Bits().check(np.array([-1]), 3), "got label -1"),
    Refusal("a number between two", lambda: Bits().check(np.array([1.5]), 3), "got label 1.5"),
    Refusal("more bits than int32 holds", lambda: Bits().check(np.array([0]), 32), "expected 1 to 31, a whole number"),
    Refusal("more logits than int32 holds", lambda: Bits().decode(np.zeros((1, 32), np.float32)), "1 to 31"),
]

ROWS = [
    pytest.param(row, id=f"{table}: {row.name}")
    for table, rows in (
        ("model", MODELS),
        ("bank", BANKS),
        ("policy", POLICIES),
        ("hypotheses", TOLD),
        ("balance", BALANCES),
        ("readout", READOUTS),
    )
    for row in rows
]


@pytest.mark.parametrize("row", ROWS)
def test_bad_inputs_are_refused(row, unchecked):
    check_refusal(row)
