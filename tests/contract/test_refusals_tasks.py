"""What the tasks refuse: entities, digits, words and sizes that are none, by name and with the valid range."""

import gzip
import json
import struct

import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.tasks import addition, copycolors, equality, ioi, mcqa, mnist, prompts, symbols

VECTORS = equality.entities(0)
WORDS = prompts.WordTokenizer(("Answer", ":", "A", "B", "is"))
ENCODED = prompts.encode_prompts(WORDS, ["Answer: A", "is B"])
SETTING = mcqa.sample_settings(np.random.default_rng(0), 3)
BANK = mcqa.make_banks(0, {"fit": 6})["fit"]
NAMES = ioi.Lexicon(ioi.NAMES[:8])
NAMED = ioi.make_banks(0, NAMES, {"fit": 8})["fit"]
CLASSES, LOGITS = ((2,), (3,)), np.zeros((2, 5), np.float32)
OPTIONS = np.array([[0, 1], [1, 0]])


def _score(logits=LOGITS, classes=CLASSES, expected=(0, 1), options=OPTIONS):
    return symbols.score(logits, classes, WORDS, np.array(expected), np.array(options), symbols=("A", "B"))


def ioi_words():
    """A tokenizer that writes every name as two words."""

    class Split(prompts.WordTokenizer):
        def encode(self, text):
            return [index for _ in text.split() for index in (0, 1)], [(0, 1)] * (2 * len(text.split()))

    return Split(("A", "B"))


EQUALITY = [
    Refusal("negative seed", lambda: equality.entities(-1), "seed -1"),
    Refusal("seed that is a float", lambda: equality.entities(1.5), "seed 1.5"),
    Refusal("entity past the last", lambda: equality.encode(VECTORS, np.array([[0, 1, 2, 100]])), "rows 100"),
    Refusal("entity below 0", lambda: equality.encode(VECTORS, np.array([[0, -1, 2, 3]])), "rows -1"),
    Refusal("three entities", lambda: equality.encode(VECTORS, np.array([[0, 1, 2]])), r"shape \(1, 3\)"),
    Refusal("entities that are floats", lambda: equality.encode(VECTORS, np.ones((1, 4))), "type float64"),
    Refusal("no factual row", lambda: equality.factual_data(0, 0), "count 0"),
    Refusal("half a row", lambda: equality.factual_data(0, 2.5), "count 2.5"),
    Refusal("no balanced row", lambda: equality.balanced_data(0, 0), "count 0"),
    Refusal("pool of one", lambda: next(equality.pool_stream(0, 1)), "pool of 1"),
    Refusal("pool that is a float", lambda: next(equality.pool_stream(0, 64.0)), "pool of 64.0"),
    Refusal("chunks of nothing", lambda: next(equality.independent_stream(0, 0)), "chunk 0"),
    Refusal("paper's banks of one pair", lambda: equality.paper_banks(0, size=1), "size 1"),
    Refusal("an empty fit bank", lambda: equality.independent_banks(0, fit=0), "fit 0"),
    Refusal("a share that is not a number", lambda: equality.independent_banks(0, both=float("nan"), tests={}), "nan"),
    Refusal("a policy that is none", lambda: equality.paper_banks(0, size=4, calibration="best"), "policy 'best'"),
]
ADDITION = [
    Refusal("no bits", lambda: addition.adder(0), "0 bits"),
    Refusal("31 bits", lambda: addition.adder(31), "31 bits"),
    Refusal("bits that are a float", lambda: addition.adder(4.0), "4.0 bits"),
    Refusal("carries of no bits", lambda: addition.carries(-1), "bits -1"),
    Refusal("a number too wide", lambda: addition.encode({"a": np.array([16]), "b": np.array([1])}), "a 16"),
    Refusal("a number below 0", lambda: addition.encode({"a": np.array([1]), "b": np.array([-1])}), "b -1"),
    Refusal("half a number", lambda: addition.encode({"a": np.array([0.5]), "b": np.array([1])}), "type float64"),
    Refusal("one summand", lambda: addition.encode({"a": np.array([1])}), r"without \['b'\]"),
    Refusal("unequal rows", lambda: addition.encode({"a": np.array([1]), "b": np.array([1, 2])}), "one shape"),
    Refusal("every input of 7 bits", lambda: addition.every_input(7), "7 bits"),
    Refusal("every input of no bit", lambda: addition.every_input(0), "bits 0"),
    Refusal("no random input", lambda: addition.random_inputs(0, 0, 4), "count 0"),
    Refusal("families of no bits", lambda: addition.source_families(0), "bits 0"),
    Refusal("known with a sum", lambda: addition.known_with("s1"), "'s1'"),
    Refusal("a pool out of range", lambda: addition.base_order(0, {"a": np.array([99]), "b": np.array([1])}), "a 99"),
    Refusal("more bases than inputs", lambda: addition.structured_banks(0, fit=300), "300"),
    Refusal("no base to fit", lambda: addition.structured_banks(0, fit=0), "fit 0"),
    Refusal("half a base", lambda: addition.structured_banks(0, test=1.5), "test 1.5"),
]
MCQA = [
    Refusal("a variable left out", lambda: mcqa.render({"noun": np.array([0])}), "without"),
    Refusal("indices that are floats", lambda: mcqa.render({k: v * 1.0 for k, v in SETTING.items()}), "float64"),
    Refusal("a noun past the last", lambda: mcqa.render(SETTING | {"noun": np.full(3, 999)}), "999"),
    Refusal("no question", lambda: mcqa.sample_settings(np.random.default_rng(0), 0), "count 0"),
    Refusal("no bank", lambda: mcqa.make_banks(0, {}), "no sizes"),
    Refusal("half a pair", lambda: mcqa.make_banks(0, {"fit": 4.5}), "4.5"),
    Refusal("a bank of two pairs", lambda: mcqa.make_banks(0, {"fit": 2}), "2 pairs"),
    Refusal("an unknown role", lambda: mcqa.make_banks(0, {"train": 6}), "'train'"),
    Refusal("a negative seed", lambda: mcqa.make_banks(-1), "seed -1"),
    Refusal("rows in place of a mask", lambda: mcqa.select_pairs(BANK, np.array([0, 1, 2, 3, 4, 5])), "type int64"),
    Refusal("no pair to keep", lambda: mcqa.select_pairs(BANK, np.ones(6, bool), 0), "size 0"),
    Refusal("a family that is none", lambda: mcqa.counterfactual(np.random.default_rng(0), SETTING, "x"), "'x'"),
]
IOI = [
    Refusal("three names", lambda: ioi.Lexicon(ioi.NAMES[:3]), "four or more"),
    Refusal("a frame without its slots", lambda: ioi.Lexicon(frames=("{name0} to",)), "expected name0, name1"),
    Refusal("a negative seed", lambda: ioi.make_banks(-1, NAMES), "seed -1"),
    Refusal("no bank", lambda: ioi.make_banks(0, NAMES, {}), "no sizes"),
    Refusal("half a pair", lambda: ioi.make_banks(0, NAMES, {"fit": 4.5}), "4.5"),
    Refusal("an unknown role", lambda: ioi.make_banks(0, NAMES, {"train": 8}), "'train'"),
    Refusal("a name past the last", lambda: ioi.render(NAMED.bank.base | {"name0": np.full(8, 8)}, NAMES), "example 0"),
    Refusal(
        "names that are floats", lambda: ioi.spans({k: v * 1.0 for k, v in NAMED.bank.base.items()}, NAMES), "float"
    ),
    Refusal("a variable left out", lambda: ioi.encode({"name0": np.array([0])}, WORDS, NAMES), "without"),
    Refusal("names that are no token", lambda: ioi.answers(ioi_words(), NAMES), "of several tokens"),
    Refusal("names of which none is a token", lambda: ioi.lexicon_for(ioi_words(), NAMES), "got 0 names"),
    Refusal("outputs of other pairs", lambda: ioi.logit_differences(np.zeros((3, 9)), NAMED.bank), r"\(3, 9\)"),
    Refusal("fewer outputs than names", lambda: ioi.logit_differences(np.zeros((8, 2)), NAMED.bank), r"\(8, 2\)"),
    Refusal("a signal too few", lambda: ioi.linear_model(np.zeros(3), np.ones(2), np.ones(3)), r"\(2,\)"),
    Refusal("a difference that is none", lambda: ioi.linear_model(np.full(3, np.nan), *np.ones((2, 3))), "not all"),
    Refusal("shares of numbers", lambda: ioi.solved_shares(np.ones(8), NAMED.family), "type float64"),
]
TOKENS = [
    Refusal("a text in place of texts", lambda: prompts.encode_prompts(WORDS, "Answer"), "'Answer'"),
    Refusal("no prompt", lambda: prompts.encode_prompts(WORDS, []), "0 prompts"),
    Refusal("prompts that are numbers", lambda: prompts.encode_prompts(WORDS, [3]), "3"),
    Refusal("a length of no token", lambda: prompts.encode_prompts(WORDS, ["A"], length=0), "length 0"),
    Refusal("an id past the last", lambda: WORDS.decode([5]), "5"),
    Refusal("an id that is a float", lambda: WORDS.decode([1.0]), "1.0"),
    Refusal("positions of floats", lambda: prompts.offset_positions(np.array([1.5, 1]), 0, ENCODED), "float64"),
    Refusal("one position too few", lambda: prompts.offset_positions(np.array([1]), 0, ENCODED), r"\(1,\)"),
    Refusal("a position on padding", lambda: prompts.offset_positions(np.array([1, 0]), 0, ENCODED), "prompt 1"),
    Refusal("no row shown", lambda: prompts.highlight(ENCODED, np.array([1, 1]), WORDS, 0), "rows 0"),
    Refusal("no symbol", lambda: symbols.symbol_classes(WORDS, ()), r"\[\]"),
    Refusal("an empty symbol", lambda: symbols.symbol_classes(WORDS, ("A", " ")), "none empty"),
    Refusal("a symbol that is not there", lambda: _score(expected=(0, 2)), "expected symbol 2"),
    Refusal("an option below 0", lambda: _score(options=[[0, 1], [-1, 0]]), "option -1"),
    Refusal("a class past the logits", lambda: _score(classes=((2,), (9,))), "token of a class 9"),
    Refusal("a class too few", lambda: _score(classes=((2,),)), "1 classes"),
    Refusal("rows that do not belong together", lambda: _score(expected=(0,)), r"\(2, 5\), \(1,\)"),
]


@pytest.mark.parametrize("row", EQUALITY + ADDITION + MCQA + IOI + TOKENS, ids=lambda row: row.name)
def test_a_task_refuses_what_it_has_not(row, unchecked):
    check_refusal(row)


def test_logits_that_are_not_finite_are_right_by_no_scorer():
    logits = np.full((2, 5), np.nan, np.float32)
    logits[1] = [0, 0, 0, np.inf, 0]
    assert not np.stack(list(_score(logits).values())).any()


def _header(*sizes, axes=None):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, 8, len(sizes) if axes is None else axes, *sizes)


DIGITS = {
    "a gzip bomb": (gzip.compress(_header(2) + bytes(1 << 22)), "too long"),
    "a header of 4 TiB": (gzip.compress(_header(2**21, 2**21)), "long enough for 4398046511104"),
    "a header of 4 TiB, not packed": (_header(2**21, 2**21), "truncated"),
    "no axes": (_header(), "0 axes"),
    "200 axes": (_header(*[1] * 200) + b"\1", "200 axes"),
    "packed and cut": (gzip.compress(_header(3) + b"abc")[:-6], "complete gzip"),
    "packed noise": (b"\x1f\x8b" + bytes(20), "complete gzip"),
    "nothing": (b"", "magic number"),
    "an archive of arrays": (b"PK\3\4" + bytes(20), "magic number"),
}


@pytest.mark.parametrize(("content", "match"), DIGITS.values(), ids=DIGITS)
def test_a_file_of_digits_is_read_as_far_as_its_header_says(content, match, tmp_path):
    (tmp_path / "digits").write_bytes(content)
    check_refusal(Refusal("file", lambda: mnist.read_idx(tmp_path / "digits"), match))


SPLITS = [
    Refusal("no calibration row", lambda: mnist.calibration_rows(10, 0), "0 calibration rows"),
    Refusal("more rows than there are", lambda: mnist.calibration_rows(10, 11), "11 calibration rows"),
    Refusal("half a row", lambda: mnist.calibration_rows(10, 1.5), "1.5"),
    Refusal("a negative seed", lambda: mnist.torch_randperm(4, -1), "seed -1"),
    Refusal("a permutation of a float", lambda: mnist.torch_randperm(4.0, 0), "count 4.0"),
    Refusal("a folder in place of a file", lambda: mnist.read_idx("."), "an IDX file"),
]


@pytest.mark.parametrize("row", SPLITS, ids=lambda row: row.name)
def test_digits_refuse_splits_that_cannot_be(row, unchecked):
    check_refusal(row)


ROWS = {
    "no JSON": ("rows.json", "{", "expected JSON"),
    "a line that is no JSON": ("rows.jsonl", '{"prompt": 1}\n[', "expected JSON"),
    "nested a hundred thousand times": ("rows.json", "[" * 100_000, "expected JSON"),
    "a number": ("rows.json", "3", "list of rows"),
    "rows that are numbers": ("rows.json", "[3]", "list of rows"),
    "another ending": ("rows.csv", "a,b", "ending in one of"),
}


@pytest.mark.parametrize(("name", "text", "match"), ROWS.values(), ids=ROWS)
def test_files_that_hold_no_rows_are_refused(name, text, match, tmp_path):
    (tmp_path / name).write_text(text)
    check_refusal(Refusal("file", lambda: copycolors.read_rows(tmp_path / name), match))


COUNTERFACTUALS = {f"{family}_counterfactual": {"prompt": "x"} for family in mcqa.FAMILIES}
WHOLE = {"prompt": "A box is red.", "choices": {"label": ["A"], "text": ["red"]}, **COUNTERFACTUALS}
BAD_ROWS = {
    "no row": ([], "no rows"),
    "a row that is a list": ([[1]], "row 0 of type list"),
    "a row without columns": ([{"prompt": "x"}], "row 0 without"),
    "choices that are a list": ([WHOLE | {"choices": [1]}], "row 0"),
    "labels that are a number": ([WHOLE | {"choices": {"label": 3, "text": ["red"]}}], "row 0"),
    "a counterfactual that is a number": ([WHOLE | {"randomLetter_counterfactual": 3}], "row 0"),
}


@pytest.mark.parametrize(("rows", "match"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_rows_that_are_no_questions_are_refused(rows, match, unchecked):
    check_refusal(Refusal("rows", lambda: copycolors.banks_from_rows(json.loads(json.dumps(rows)), 0), match))


def test_an_answer_key_is_checked_or_ignored(unchecked):
    call = lambda: copycolors.banks_from_rows([WHOLE], 0, answer_key="maybe")
    check_refusal(Refusal("words", call, "answer_key 'maybe'"))
