"""Recall of what was told: labels by hand, what families change, where words stand, and a real network that recalls."""

import numpy as np
import pytest

from abstraction.causal import label_pairs
from abstraction.evaluation import Classes
from abstraction.evaluation.solving import solved
from abstraction.models import load_decoder
from abstraction.models.packaged import smollm2
from abstraction.tasks import recall
from abstraction.tasks.prompts import WordTokenizer, last_positions, load_tokenizer, span_positions

KEYS = ("Mary", "John", "Tom", "Anna", "Paul", "Jane", "Mark")
VALUES = ("Smith", "Brown", "King", "Young", "Hill", "Cook", "Stone", "Baker")
LEXICON = recall.Lexicon(KEYS, VALUES)
WORDS = {word for frame in recall.FRAMES for word in frame.replace(",", " ").replace(".", " ").split()}
TOKENIZER = WordTokenizer((*KEYS, *VALUES, ",", ".", *sorted(word for word in WORDS if not word.startswith("{"))))
SIZES = {"fit": 40, "calibration": 20, "test": 30}
ACTIVE = {
    "asked": (True, True, True),
    "order": (False, True, False),
    "values": (False, False, True),
    "asked_values": (True, True, True),
    "apart": (True, True, True),
}
DIFFERENT = {"asked": 1, "order": 2, "values": 2, "asked_values": 2, "apart": 3}
"""How many different labels an interchange of each of the three variables has."""


@pytest.fixture(scope="module", name="banks")
def _banks():
    return recall.make_banks(3, LEXICON, SIZES)


def _row(frame=0, keys=(0, 1, 2), values=(0, 1, 2), asked=1):
    columns = zip(recall.INPUTS, (frame, *keys, *values, asked), strict=True)
    return {name: np.array([value]) for name, value in columns}


def test_a_prompt_by_hand():
    assert recall.render(_row(), LEXICON) == [
        "The finalists were Mary Smith, John Brown and Tom King. The winner was John"
    ]
    found = recall.MODEL.run(_row())
    assert [int(found[name][0]) for name in recall.VARIABLES] == [1, 1, 1]
    found = recall.MODEL.run(_row(keys=(4, 2, 6), values=(7, 3, 5), asked=6))
    assert [int(found[name][0]) for name in recall.VARIABLES] == [6, 2, 5]


def test_three_answers_to_three_questions_by_hand():
    """Base: Mary Smith, John Brown, Tom King, asked Mary. Source: Tom Hill, Mary Cook, John Stone, asked John."""
    base, source = _row(asked=0), _row(keys=(2, 0, 1), values=(4, 5, 6), asked=1)
    bank = label_pairs(recall.MODEL, base, source, variables=recall.VARIABLES, role="fit")
    assert VALUES[bank.factual[0]] == "Smith"
    assert [VALUES[label] for label in bank.labels[:, 0]] == ["Brown", "King", "Stone"]


def test_labels_of_every_family_from_the_text_alone(banks):
    for bank, family in banks.values():
        base, source = (recall.render(side, LEXICON) for side in (bank.base, bank.source))
        for row in range(bank.size):
            (names, told, asked), (others, said, wanted) = _read(base[row]), _read(source[row])
            assert VALUES[bank.factual[row]] == told[names.index(asked)]
            expected = [told[names.index(wanted)], told[others.index(wanted)], said[others.index(wanted)]]
            assert [VALUES[label] for label in bank.labels[:, row]] == expected
            name = recall.FAMILIES[family[row]]
            assert tuple(bank.active[:, row]) == ACTIVE[name]
            assert len(set(expected)) == DIFFERENT[name]
            assert sorted(names) == sorted(others)
            assert (told == said) == (name == "asked")
            assert (set(told) == set(said)) == (name in ("asked", "order"))
            assert not set(told) & set(said) or name in ("asked", "order")


def _read(text):
    told, asked = text.split(" were ")[1].split(". ")
    keys, values = zip(*(fact.split() for fact in told.replace(" and ", ", ").split(", ")), strict=True)
    return keys, values, asked.split()[-1]


def test_families_have_equal_shares(banks):
    assert np.bincount(banks["fit"].family).tolist() == [8] * 5
    odd = recall.make_banks(0, LEXICON, {"fit": 7})["fit"].family
    assert np.bincount(odd).tolist() == [2, 2, 1, 1, 1]


def test_no_three_keys_are_told_together_in_two_banks(banks):
    met = {}
    for role, (bank, _) in banks.items():
        for side in (bank.base, bank.source):
            for keys in zip(*(side[name].tolist() for name in recall.KEYS), strict=True):
                assert met.setdefault(frozenset(keys), role) == role
    again = recall.make_banks(3, LEXICON, SIZES)["test"].bank
    np.testing.assert_array_equal(again.base["asked"], banks["test"].bank.base["asked"])
    other = recall.make_banks(4, LEXICON, SIZES)["test"].bank
    assert (other.base["asked"] != banks["test"].bank.base["asked"]).any()


def test_positions_are_where_words_stand(banks):
    bank, _ = banks["test"]
    encoded, places = recall.encode(bank.base, TOKENIZER, LEXICON), recall.spans(bank.base, LEXICON)
    rows = np.arange(bank.size)
    assert {"last", *places} == set(recall.POSITIONS)
    key, value = (span_positions(encoded, places[name]) for name in ("told_key", "told_value"))
    np.testing.assert_array_equal(encoded.tokens[rows, key], bank.base["asked"])
    np.testing.assert_array_equal(encoded.tokens[rows, value], len(KEYS) + bank.factual)
    np.testing.assert_array_equal(value, key + 1)
    np.testing.assert_array_equal(encoded.tokens[rows, last_positions(encoded)], bank.base["asked"])


def test_words_of_several_tokens_are_left_out():
    class Split(WordTokenizer):
        def encode(self, text):
            return super().encode(text.replace("Tom", "Paul Mark").replace("Hill", "King , King"))

    tokenizer = Split((*TOKENIZER.words, "to"))
    kept = recall.lexicon_for(tokenizer, LEXICON)
    assert kept.keys == tuple(word for word in KEYS if word != "Tom")
    assert kept.values == tuple(word for word in VALUES if word != "Hill")
    assert recall.answers(tokenizer, kept) == tuple((tokenizer.words.index(word),) for word in kept.values)
    with pytest.raises(ValueError, match=r"got values \['Hill'\] of several tokens"):
        recall.answers(tokenizer, LEXICON)


class _Same(WordTokenizer):
    """All names are one token."""

    def encode(self, text):
        return super().encode(text.replace("John", "Mary").replace("Tom", "Mary").replace("Anna", "Mary"))


def test_too_few_words_of_a_token_of_their_own_are_refused():
    four = recall.Lexicon(KEYS[:4], VALUES)
    with pytest.raises(ValueError, match=r"got keys \('Mary',\)"):
        recall.lexicon_for(_Same((*TOKENIZER.words, "to")), four)


@pytest.mark.slow
def test_a_real_network_recalls_what_it_was_told():
    """Over all tokens there are: the best token that is no value's is one more output, and wrong."""
    try:
        path = smollm2()
    except ImportError as error:
        pytest.skip(str(error))
    tokenizer = load_tokenizer(path)
    lexicon = recall.lexicon_for(tokenizer)
    network = load_decoder(path, answers=recall.answers(tokenizer, lexicon), rest=True)
    bank = recall.make_banks(0, lexicon, {"test": 150})["test"].bank
    encode = lambda setting: recall.encode(setting, tokenizer, lexicon, length=20).tokens
    found = solved(network, encode, bank, recall.MODEL, readout=Classes(len(lexicon.values) + 1), batch=60)
    right = np.concatenate([found.base, found.source])
    assert len(right) == 300
    assert right.mean() >= 0.95
