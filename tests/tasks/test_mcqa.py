"""Multiple choice about colours: the causal model, the families, the banks and what the prompts say."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import PairBank
from abstraction.tasks import mcqa
from abstraction.tasks.mcqa import CHOICES, FAMILIES, INPUTS, LABELS, MODEL, Lexicon
from abstraction.tasks.prompts import WordTokenizer, last_positions, offset_positions, span_positions
from abstraction.tasks.symbols import LETTERS, symbol_classes

SMALL = Lexicon(nouns=("pen", "cat"), colors=("red", "blue", "gray", "black", "teal"))
# The pen is red; B. blue  A. red  Z. gray  I. black
PEN = dict(zip(INPUTS, np.array([[0], [0], [1], [0], [2], [3], [1], [0], [25], [8]]), strict=True))
TEXT = "The pen is red. What color is the pen?\nB. blue\nA. red\nZ. gray\nI. black\nAnswer:"


def columns(setting, names):
    return np.stack([setting[name] for name in names], axis=1)


@pytest.fixture(scope="module")
def banks():
    return mcqa.make_banks(0)


@pytest.fixture(scope="module")
def drawn():
    """Bases and one source of each family."""
    generator = np.random.default_rng(1)
    base = mcqa.sample_settings(generator, 500)
    return base, {family: mcqa.counterfactual(generator, base, family) for family in FAMILIES}


def test_a_prompt_by_hand():
    assert mcqa.render(PEN, SMALL) == [TEXT]
    run = MODEL.run(PEN)
    assert (run["answer_pointer"].tolist(), run["answer"].tolist()) == ([1], [0])


def test_the_model_agrees_with_reading_the_prompt(drawn):
    base, _ = drawn
    run = MODEL.run(base)
    for text, pointer, letter in zip(mcqa.render(base), run["answer_pointer"], run["answer"], strict=True):
        color = re.match(r"The \w+ is (\w+)\.", text)[1]
        lines = text.split("\n")[1:5]
        assert lines[pointer] == f"{LETTERS[letter]}. {color}"
        assert sum(line.endswith(f" {color}") for line in lines) == 1


def test_the_model_can_be_jitted():
    inputs = {name: jnp.asarray(values) for name, values in PEN.items()}
    assert jax.jit(lambda inputs: MODEL.run(inputs)["answer"])(inputs).tolist() == [0]


def test_the_noun_has_no_effect():
    other = PEN | {"noun": np.array([1])}
    assert MODEL.run(other)["answer"] == MODEL.run(PEN)["answer"]
    assert mcqa.render(other, SMALL) == [TEXT.replace("pen", "cat")]


def test_interchanges_by_hand():
    source = PEN | {"choice1": PEN["choice3"], "choice3": PEN["choice1"], "label3": np.array([5])}
    assert MODEL.interchange(PEN, {"answer_pointer": source})["answer"].tolist() == [8]
    assert MODEL.interchange(PEN, {"answer": source})["answer"].tolist() == [5]
    joint = MODEL.interchange(PEN, {"answer_pointer": source, "answer": PEN})
    assert (joint["answer_pointer"].tolist(), joint["answer"].tolist()) == ([3], [0])


def test_the_default_lexicon_is_large_and_distinct():
    lexicon = mcqa.LEXICON
    assert len(set(lexicon.nouns)) == len(lexicon.nouns) >= 40
    assert len(set(lexicon.colors)) == len(lexicon.colors) >= 10
    assert not set(lexicon.nouns) & set(lexicon.colors)
    assert all(word.isalpha() and word.islower() and len(word) > 1 for word in (*lexicon.nouns, *lexicon.colors))


def test_drawn_questions_are_well_formed_and_varied(drawn):
    base, _ = drawn
    assert list(base) == list(INPUTS)
    choices, letters = columns(base, CHOICES), columns(base, LABELS)
    assert all(len(set(row)) == 4 for row in choices.tolist())
    assert all(len(set(row)) == 4 for row in letters.tolist())
    assert ((choices == base["color"][:, None]).sum(axis=1) == 1).all()
    # 500 draws: every value turns up, and no pointer in less than a fifth of them
    assert set(letters.ravel()) == set(range(26))
    assert set(base["noun"]) == set(range(len(mcqa.LEXICON.nouns)))
    assert set(base["color"]) == set(range(len(mcqa.LEXICON.colors)))
    assert np.bincount(MODEL.run(base)["answer_pointer"], minlength=4).min() > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_differ_from_their_base_in_what_the_family_names(drawn, family):
    base, sources = drawn
    source = sources[family]
    moved, relabelled = "answerPosition" in family, "randomLetter" in family
    for name in ("noun", "color"):
        np.testing.assert_array_equal(source[name], base[name])
    pointers = MODEL.run(base)["answer_pointer"], MODEL.run(source)["answer_pointer"]
    assert ((pointers[0] != pointers[1]) == moved).all()
    before, after = columns(base, CHOICES), columns(source, CHOICES)
    np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
    assert ((before != after).any(axis=1) == moved).all()
    letters = columns(base, LABELS), columns(source, LABELS)
    if relabelled:
        assert not (letters[0][:, :, None] == letters[1][:, None, :]).any()
        assert all(len(set(row)) == 4 for row in letters[1].tolist())
    else:
        np.testing.assert_array_equal(*letters)


def test_the_correct_choice_moves_to_every_other_place(drawn):
    base, sources = drawn
    pointers = MODEL.run(base)["answer_pointer"], MODEL.run(sources["answerPosition"])["answer_pointer"]
    moves = np.zeros((4, 4), int)
    np.add.at(moves, pointers, 1)
    assert (np.diag(moves) == 0).all()
    assert moves[~np.eye(4, dtype=bool)].min() > 20  # 500 / 12 = 42 expected


def test_all_orders_of_the_other_choices_occur():
    base = {name: np.repeat(values, 600) for name, values in PEN.items()}
    source = mcqa.counterfactual(np.random.default_rng(0), base, "answerPosition")
    orders = np.unique(columns(source, CHOICES), axis=0)
    assert len(orders) == 3 * 6


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="got family 'noun', expected one of"):
        mcqa.counterfactual(np.random.default_rng(0), PEN, "noun")


def test_which_pairs_are_active(banks):
    for family_bank in banks.values():
        bank, family = family_bank.bank, family_bank.family
        assert bank.variables == mcqa.VARIABLES
        moved = family != FAMILIES.index("randomLetter")
        np.testing.assert_array_equal(bank.active, np.stack([moved, np.ones_like(moved)]))
        same = bank.labels[0] == bank.labels[1]
        np.testing.assert_array_equal(same, family == FAMILIES.index("answerPosition"))
        assert bank.eligible.all()


def test_labels_are_the_base_letter_at_the_sources_place_and_the_sources_letter(banks):
    bank = banks["test"].bank
    pointer = (columns(bank.source, CHOICES) == bank.source["color"][:, None]).argmax(axis=1)
    rows = np.arange(bank.size)
    np.testing.assert_array_equal(bank.labels[0], columns(bank.base, LABELS)[rows, pointer])
    np.testing.assert_array_equal(bank.labels[1], columns(bank.source, LABELS)[rows, pointer])


def test_banks_have_equal_shares_and_no_group_or_prompt_in_common(banks):
    assert list(banks) == ["fit", "calibration", "test"]
    groups, prompts = {}, {}
    for role, (bank, family, group) in banks.items():
        assert bank.role == role
        assert np.bincount(family).tolist() == [67, 67, 66]
        groups[role] = set(group.tolist())
        prompts[role] = {*mcqa.render(bank.base), *mcqa.render(bank.source)}
        assert len(groups[role]) == 67
        # one base and at most three sources a group, all different
        assert len(prompts[role]) == 67 + 200
        for number in groups[role]:
            assert len({text for text, g in zip(mcqa.render(bank.base), group, strict=True) if g == number}) == 1
    assert len(set.union(*groups.values())) == 3 * 67
    assert len(set.union(*prompts.values())) == 3 * 267


def test_banks_depend_on_the_seed_alone(banks):
    again, other = mcqa.make_banks(0)["fit"].bank, mcqa.make_banks(1)["fit"].bank
    for name in INPUTS:
        np.testing.assert_array_equal(again.source[name], banks["fit"].bank.source[name])
    assert (other.base["noun"] != again.base["noun"]).any()


def test_few_words_repeat_no_prompt(monkeypatch):
    # 161 280 prompts there are, and 1200 are drawn: four or five times one comes again
    monkeypatch.setattr(mcqa, "LETTERS", LETTERS[:8])
    tiny = Lexicon(nouns=("pen",), colors=SMALL.colors[:4])
    for seed in range(3):
        bank, _, group = mcqa.make_banks(seed, {"test": 900}, tiny)["test"]
        owner = {}
        for setting in (bank.base, bank.source):
            for text, number in zip(mcqa.render(setting, tiny), group, strict=True):
                assert owner.setdefault(text, number) == number


def test_too_few_words_are_refused(monkeypatch):
    monkeypatch.setattr(mcqa, "LETTERS", LETTERS[:8])
    tiny = Lexicon(nouns=("pen",), colors=SMALL.colors[:4])
    with pytest.raises(ValueError, match=r"base questions without a repetition, expected 20000: the lexicon is small"):
        mcqa.make_banks(0, {"test": 60000}, tiny)


@pytest.mark.parametrize(("sizes", "message"), [({"train": 9}, "named 'train'"), ({"fit": 2}, "got 2 pairs for 'fit'")])
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        mcqa.make_banks(0, sizes)


def test_selected_pairs_keep_their_rows(banks):
    family_bank = banks["calibration"]
    mask = np.arange(200) % 7 < 4
    kept = mcqa.select_pairs(family_bank, mask)
    assert isinstance(kept.bank, PairBank)
    assert kept.bank.size == mask.sum()
    for name in INPUTS:
        np.testing.assert_array_equal(kept.bank.base[name], family_bank.bank.base[name][mask])
        np.testing.assert_array_equal(kept.bank.source[name], family_bank.bank.source[name][mask])
    np.testing.assert_array_equal(kept.bank.labels, family_bank.bank.labels[:, mask])
    np.testing.assert_array_equal(kept.bank.factual, family_bank.bank.factual[mask])
    np.testing.assert_array_equal(kept.bank.eligible, family_bank.bank.eligible[:, mask])
    np.testing.assert_array_equal(kept.family, family_bank.family[mask])
    np.testing.assert_array_equal(kept.group, family_bank.group[mask])
    assert kept.bank.role == "calibration"


def test_selected_pairs_can_be_cut_to_equal_shares(banks):
    mask = np.arange(200) >= 5
    kept = mcqa.select_pairs(banks["fit"], mask, size=100)
    assert np.bincount(kept.family).tolist() == [34, 33, 33]
    assert set(kept.group) <= set(banks["fit"].group[mask])
    with pytest.raises(ValueError, match=r"got 195 of 200 pairs left .*expected 67 of every family"):
        mcqa.select_pairs(banks["fit"], mask, size=200)


def test_a_filter_that_leaves_too_little_says_how_much(banks):
    family_bank = banks["test"]
    with pytest.raises(ValueError, match=r"got 0 of 200 pairs left \(answerPosition 0 of 67, randomLetter 0 of 67"):
        mcqa.select_pairs(family_bank, np.zeros(200, bool))
    with pytest.raises(ValueError, match=r"got 133 of 200 pairs left .*randomLetter 0 of 67"):
        mcqa.select_pairs(family_bank, family_bank.family != 1)
    with pytest.raises(ValueError, match=r"mask of shape \(3,\)"):
        mcqa.select_pairs(family_bank, np.ones(3, bool))


def test_spans_by_hand():
    found = mcqa.spans(PEN, SMALL)
    # the second "pen"; the A of "A. red", not the one of "Answer"
    assert found == {"subject": [(34, 37)], "correct_symbol": [(47, 48)]}
    assert (TEXT[34:37], TEXT[47:53]) == ("pen", "A. red")


def test_the_correct_symbol_is_not_the_first_capital_that_matches():
    lexicon = Lexicon(("pen",), SMALL.colors, (mcqa.TEMPLATE.replace("The {", "A {").replace("the {", "a {"),))
    text, found = mcqa.render(PEN, lexicon)[0], mcqa.spans(PEN, lexicon)["correct_symbol"]
    assert text.startswith("A pen is red. What color is a pen?\nB. blue\nA. red\n")
    assert found == [(text.index("\nA. red") + 1, text.index("\nA. red") + 2)]


def test_positions_of_the_spans_name_the_right_tokens(banks):
    tokenizer = WordTokenizer(mcqa.vocabulary())
    base = banks["fit"].bank.base
    encoded, found = mcqa.encode(base, tokenizer, length=32), mcqa.spans(base)
    rows = np.arange(200)
    symbol = span_positions(encoded, found["correct_symbol"])
    np.testing.assert_array_equal(encoded.tokens[rows, symbol], MODEL.run(base)["answer"])
    period = encoded.tokens[rows, offset_positions(symbol, 1, encoded)]
    assert {tokenizer.decode([index]) for index in period.tolist()} == {"."}
    subject = encoded.tokens[rows, span_positions(encoded, found["subject"])]
    assert [tokenizer.decode([index]) for index in subject.tolist()] == [
        mcqa.LEXICON.nouns[noun] for noun in base["noun"]
    ]
    last = encoded.tokens[rows, last_positions(encoded)]
    assert {tokenizer.decode([index]) for index in last.tolist()} == {":"}


def test_a_word_tokenizer_covers_every_prompt_and_letter(banks):
    words = mcqa.vocabulary()
    assert words[:26] == LETTERS
    tokenizer = WordTokenizer(words)
    for family_bank in banks.values():
        encoded = mcqa.encode(family_bank.bank.source, tokenizer, side="right")
        assert encoded.tokens.shape == (200, 30)
        assert encoded.tokens.min() >= 0
    assert symbol_classes(tokenizer) == tuple((index,) for index in range(26))


@pytest.mark.parametrize(
    "change",
    [{"color": 4}, {"choice0": 0}, {"label0": 0}, {"label0": 26}, {"noun": 2}, {"choice2": -1}, {"choice2": 5}],
)
def test_settings_that_are_no_question_are_refused(change):
    wrong = PEN | {name: np.array([value]) for name, value in change.items()}
    with pytest.raises(ValueError, match=r"in example 0, expected indices below"):
        mcqa.render(wrong, SMALL)


@pytest.mark.parametrize(
    ("nouns", "colors", "templates", "message"),
    [
        ((), SMALL.colors, (mcqa.TEMPLATE,), "got 0 nouns"),
        (("pen",), ("red", "blue", "gray"), (mcqa.TEMPLATE,), "expected a noun and 4 distinct colours"),
        (("pen",), ("red", "blue", "gray", "red"), (mcqa.TEMPLATE,), "4 distinct colours"),
        (("pen",), SMALL.colors, (mcqa.TEMPLATE,) * 2, "got 2 templates"),
        (("pen", "pen"), SMALL.colors, (mcqa.TEMPLATE,), "none twice in the same template"),
        (("pen", "pen"), SMALL.colors, (mcqa.TEMPLATE,) * 2, "none twice in the same template"),
        (("pen",), SMALL.colors, ("The {noun} is {color}.",), "expected each of"),
        (("pen",), SMALL.colors, (mcqa.TEMPLATE + "{size}",), "got slots"),
    ],
)
def test_lexicons_that_make_no_prompt_are_refused(nouns, colors, templates, message):
    with pytest.raises(ValueError, match=message):
        Lexicon(nouns, colors, templates)
