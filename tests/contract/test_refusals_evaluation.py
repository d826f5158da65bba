"""Bad inputs of recording, solving, tallying, judging and intervals: each is refused by name."""

import dataclasses

import jax
import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Classes, Repeats, binomial_interval, judge, mean_interval, record, tally_handles
from abstraction.evaluation.controls import random_subspaces
from abstraction.evaluation.iia import unique_handles
from abstraction.evaluation.judging import judge_alone, judge_controls
from abstraction.evaluation.recording import record_together
from abstraction.evaluation.solving import solved
from abstraction.interventions import Handle, rotation_basis
from abstraction.interventions.handles import take_handle
from abstraction.interventions.patching import take_pairs
from abstraction.models import MLP, Network

COPY = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
MODEL = MLP(2, 4, 2, 4)
NETWORK = Network(MODEL, MODEL.init(jax.random.key(0)))
A, B, C, D = np.random.default_rng(0).integers(0, 2, (4, 8))
BANK = label_pairs(COPY, {"a": A, "b": B}, {"a": C, "b": D}, variables=("p", "q"), role="test")
KEY = jax.random.key(0)


def _encode(setting):
    return np.stack([setting["a"], setting["b"]], -1).astype(np.float32)


RECORDED = record(NETWORK, _encode, BANK, tap="hidden")
HANDLES = Handle("hidden", np.ones((2, 2, 4), np.float32))
TESTS = {"test": RECORDED}
FRAMES = rotation_basis(np.tile(np.eye(4), (2, 2, 1, 1)))


def _record(network=NETWORK, encode=_encode, bank=BANK, tap="hidden", **options):
    return record(network, encode, bank, tap=tap, **options)


def _solved(network=NETWORK, encode=_encode, bank=BANK, model=COPY, **options):
    return solved(network, encode, bank, model, **options)


def _changed(**change):
    return dataclasses.replace(BANK, **change)


def _params(value):
    params = jax.device_get(NETWORK.params)
    return Network(MODEL, {**params, "head": {**params["head"], "bias": np.full(4, value, np.float32)}})


def _never():
    """A fifth class that is none of the labels, and always the answer."""
    model = MLP(2, 4, 2, 5)
    params = jax.device_get(model.init(jax.random.key(0)))
    return Network(model, {**params, "head": {**params["head"], "bias": np.array([0, 0, 0, 0, 1e6], np.float32)}})


def _tally(variable=(0, 1), handles=HANDLES, recorded=RECORDED):
    return tally_handles(NETWORK, recorded, handles, np.asarray(variable))


def _judge(handles=HANDLES, tests=TESTS):
    return judge(NETWORK, handles, tests)


def _of_depth(depth):
    return Handle("hidden", np.ones((2, 4), np.float32), None, np.asarray(depth))


NAMED = dataclasses.replace(RECORDED, bank=_changed(variables=("q", "p")))
RECORDING = [
    ("an unknown tap", lambda: _record(tap="hiden"), r"taps \['hiden'\] to record, expected some of"),
    ("no tap", lambda: _record(tap=()), r"taps \[\] to record"),
    ("no bank", lambda: record_together(NETWORK, {}, tap="hidden"), r"banks \[\] and taps"),
    ("fewer inputs", lambda: _record(encode=lambda s: _encode(s)[:3]), "3 base inputs of bank '', expected 8, one for"),
    ("one input for all", lambda: _record(encode=lambda s: _encode(s)[:1]), "1 base inputs of bank"),
    ("inputs of NaN", lambda: _record(encode=lambda s: _encode(s) * np.nan), "base input 0 of bank '' that is not fin"),
    ("infinite inputs", lambda: _record(encode=lambda s: _encode(s) + np.inf), "not finite"),
    ("inputs that are words", lambda: _record(encode=lambda s: np.full((8, 2), "x")), "inputs of type <U1"),
    ("no inputs", lambda: _record(encode=lambda s: {}), "empty tree"),
    ("an input", lambda: _record(encode=lambda s: 1.0), "share one leading axis"),
    ("weights of NaN", lambda: _record(_params(np.nan)), r"params\['head'\]\['bias'\] with values that are not finite"),
    ("infinite weights", lambda: _record(_params(-np.inf)), r"params\['head'\]\['bias'\]"),
    ("no weights", lambda: _record(Network(MODEL, {})), "that is missing"),
    ("a wider model's", lambda: _record(Network(MODEL, MLP(2, 5, 2, 4).init(KEY))), r"of shape .*, expected"),
    ("fewer classes", lambda: _record(readout=Classes(3)), "label 3 at .*, expected classes 0 to 2"),
    ("more classes than outputs", lambda: _record(readout=Classes(9)), "4 outputs for 9 classes"),
    (
        "labels past the outputs",
        lambda: _record(bank=_changed(labels=BANK.labels + 4)),
        r"label \d at .*classes 0 to 3",
    ),
    ("labels below 0", lambda: _record(bank=_changed(labels=BANK.labels - 1)), "label -1 at"),
    ("labels of a half", lambda: _record(bank=_changed(labels=BANK.labels + 0.5)), r"label \d.5 at"),
    ("labels of NaN", lambda: _record(bank=_changed(labels=BANK.labels * np.nan)), "not finite"),
    ("labels of another bank", lambda: _record(bank=_changed(labels=BANK.labels[:, :3])), r"shapes \[\(2, 3\)"),
    ("a factual output past the end", lambda: _record(bank=_changed(factual=BANK.factual + 4)), r"label \d at"),
    ("eligibility in numbers", lambda: _record(bank=_changed(eligible=np.ones((2, 8)))), "expected truth values"),
    ("a role that is none", lambda: _record(bank=_changed(role="train")), "role 'train'"),
    ("a name twice", lambda: _record(bank=_changed(variables=("p", "p"))), "each once"),
    ("two taps, one wanted", lambda: _record(tap=("hidden", "logits")).tap, "expected one, or a tap by name"),
    ("shuffled past the end", lambda: RECORDED.shuffled(np.arange(1, 9)), r"sources from \[8\]"),
    ("shuffled by fewer", lambda: RECORDED.shuffled(np.arange(3)), r"order of shape \(3,\), expected \(8,\)"),
]

OR = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p | q)
OF_A = causal_model(("a",), "y", p=lambda a: a, q=lambda a: a, y=lambda p, q: p + 2 * q)
SOLVING = [
    (
        "a network that solves nothing",
        lambda: _solved(_never()),
        r"solves none of 8 pairs \(it answers 0.0000 of bases",
    ),
    ("a bank of another model", lambda: _solved(model=OR), "got a bank whose pair .* what the causal model answers"),
    ("a model of other inputs", lambda: _solved(model=OF_A), "got base inputs"),
    ("no causal model", lambda: _solved(model=MODEL), "expected CausalModel"),
    (
        "inputs by the wrong number",
        lambda: _solved(encode=lambda s: _encode(s)[:1]),
        "got 1 distinct inputs of the bank",
    ),
    ("inputs to solve that are NaN", lambda: _solved(encode=lambda s: _encode(s) * np.nan), "distinct input 0 of the"),
    ("weights that solve by NaN", lambda: _solved(_params(np.nan)), r"params\['head'\]\['bias'\]"),
    ("answers past the classes", lambda: _solved(readout=Classes(3)), "label 3 at .*, expected classes 0 to 2"),
    ("batches of nothing", lambda: _solved(batch=0), "got batch 0"),
    ("a bank that is broken", lambda: _solved(bank=_changed(role="train")), "role 'train'"),
    ("a bank of other labels", lambda: _solved(bank=_changed(factual=1 - BANK.factual)), "got a bank whose pair 0"),
]

TALLYING = [
    ("a variable past the end", lambda: _tally((0, 2)), "variable indices 0 to 2, expected 0 to 1"),
    ("variable -1", lambda: _tally((0, -1)), "variable indices -1 to 0"),
    ("half a variable", lambda: _tally((0.0, 0.5)), "expected a whole number for each of 2 handles"),
    ("variables that are truths", lambda: _tally((True, False)), "expected a whole number"),
    ("fewer variables", lambda: _tally((0, 1, 0)), r"variables of shape \(3,\)"),
    (
        "another tap",
        lambda: _tally(handles=Handle("logits", np.ones((2, 1, 4)))),
        r"expected a recorded one: \['hidden",
    ),
    ("another width", lambda: _tally(handles=Handle("hidden", np.ones((2, 2, 5)))), r"shape \(2, 2, 5\)"),
    ("another depth", lambda: _tally(handles=Handle("hidden", np.ones((2, 3, 4)))), r"shape \(2, 3, 4\)"),
    ("depth past the end", lambda: _tally(handles=_of_depth([0, 2])), r"depths at tap 'hidden' \[2\]"),
    ("depth -1", lambda: _tally(handles=_of_depth([0, -1])), r"depths at tap 'hidden' \[-1\]"),
    ("a handle alone", lambda: _tally(handles=take_handle(HANDLES, 0)), "expected"),
    (
        "runs of another bank",
        lambda: _tally(recorded=dataclasses.replace(RECORDED, runs=take_pairs(RECORDED.runs, np.arange(3)))),
        "beside a bank of 8 pairs, expected one for each",
    ),
    (
        "handles with a basis",
        lambda: unique_handles(dataclasses.replace(HANDLES, basis=FRAMES), np.arange(2)),
        "expected native handles",
    ),
    ("handles with a depth", lambda: unique_handles(_of_depth([0, 1]), np.arange(2)), "expected native handles"),
    ("variables of fewer", lambda: unique_handles(HANDLES, np.arange(3)), r"variables of shape \(3,\)"),
    ("a single handle", lambda: unique_handles(take_handle(HANDLES, 0), np.arange(2)), r"expected \[H, L, K\]"),
]

JUDGING = [
    ("no split", lambda: _judge(tests={}), "splits of variables {}, expected a handle per variable"),
    ("no split alone", lambda: judge_alone(NETWORK, HANDLES, {}), "at least one"),
    ("no split of controls", lambda: judge_controls(KEY, NETWORK, HANDLES, {}), "at least one"),
    ("a handle too many", lambda: _judge(Handle("hidden", np.ones((3, 2, 4)))), "got 3 handles for splits"),
    ("a handle too few", lambda: _judge(Handle("hidden", np.ones((1, 2, 4)))), "got 1 handles for splits"),
    ("splits of other variables", lambda: _judge(tests={**TESTS, "b": NAMED}), "splits, at least one, of the same var"),
    ("an unknown tap", lambda: _judge(Handle("hiden", np.ones((2, 2, 4)))), "handles of tap 'hiden', expected one of"),
    ("a tap not recorded", lambda: _judge(Handle("logits", np.ones((2, 1, 4)))), "expected a recorded one"),
    ("another width", lambda: _judge(Handle("hidden", np.ones((2, 2, 5)))), r"shape \(2, 2, 5\)"),
    ("depth past the end", lambda: _judge(_of_depth([0, 2])), r"\[2\]"),
    ("a seed as key", lambda: judge_controls(0, NETWORK, HANDLES, TESTS), "key 0, expected one typed key"),
    ("no draws", lambda: Repeats(0), "draws of random subspaces 0, expected at least 1"),
    ("half a draw", lambda: Repeats(1.5), "draws of random subspaces 1.5"),
    ("a draw that is true", lambda: Repeats(True), "draws of random subspaces True"),
    ("no shuffles", lambda: Repeats(1, 0), "shuffles of sources 0"),
    ("shuffles in words", lambda: Repeats(1, "two"), "shuffles of sources 'two'"),
    ("a negative seed", lambda: Repeats(1, 1, -1), "seed of controls -1, expected at least 0"),
    ("no subspaces", lambda: random_subspaces(KEY, take_handle(HANDLES, 0), 4, 0), "draws of random subspaces 0"),
    ("more features than width", lambda: random_subspaces(KEY, take_handle(HANDLES, 0), 3, 2), "4 features, expected"),
    ("a seed for subspaces", lambda: random_subspaces(0, take_handle(HANDLES, 0), 4, 2), "expected one typed key"),
]

INTERVALS = [
    ("more hits than trials", lambda: binomial_interval(5, 4), "hits 5.* of trials 4.*, expected 0 <= hits <= trials"),
    ("hits below 0", lambda: binomial_interval(-1, 4), "hits -1"),
    ("hits of NaN", lambda: binomial_interval(np.nan, 4), "hits nan"),
    ("endless trials", lambda: binomial_interval(1, np.inf), "trials inf"),
    ("trials of NaN", lambda: binomial_interval(1, np.nan), "trials nan"),
    ("a level of 1", lambda: binomial_interval(1, 4, 1.0), "level 1.0"),
    ("a level of 0", lambda: binomial_interval(1, 4, 0.0), "level 0.0"),
    ("a level of NaN", lambda: binomial_interval(1, 4, np.nan), "level nan"),
    ("a level in per cent", lambda: binomial_interval(1, 4, 95), "level 95"),
    ("one bad among many", lambda: binomial_interval(np.array([1, 9]), np.array([4, 4])), "expected 0 <= hits"),
    ("runs in a table", lambda: mean_interval(np.ones((2, 2))), r"values of shape \(2, 2\)"),
    ("a level of means", lambda: mean_interval(np.ones(3), 1.5), "level 1.5"),
]

ROWS = [Refusal(*row) for row in (*RECORDING, *SOLVING, *TALLYING, *JUDGING, *INTERVALS)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused(row):
    check_refusal(row)
