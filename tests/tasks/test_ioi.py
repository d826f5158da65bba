"""Indirect objects: labels by hand, what families change, and where names stand."""

import numpy as np
import pytest

from abstraction.tasks import ioi
from abstraction.tasks.prompts import WordTokenizer, last_positions, span_positions

WORDS = sorted({word for frame in ioi.FRAMES for word in frame.replace(",", " ,").replace(".", " .").split()})
WORDS = tuple(word for word in WORDS if not word.startswith("{"))
NAMES = ("Mary", "John", "Tom", "Anna", "Paul", "Jane", "Mark", "Kate")
LEXICON = ioi.Lexicon(NAMES)
TOKENIZER = WordTokenizer((*NAMES, *WORDS))
SIZES = {"fit": 40, "calibration": 20, "test": 24}


@pytest.fixture(scope="module", name="banks")
def _banks():
    return ioi.make_banks(3, LEXICON, SIZES)


def test_a_prompt_by_hand():
    setting = {"name0": [0, 0], "name1": [1, 1], "order": [0, 1], "frame": [0, 40]}
    assert ioi.render(setting, LEXICON) == [
        "Then, Mary and John went to the store. John gave a drink to",
        "When Mary and John met at the store, Mary handed a letter to",
    ]
    assert ioi.MODEL.run({name: np.array(values) for name, values in setting.items()})["token"].tolist() == [0, 1]


def test_labels_by_hand_for_every_family(banks):
    """What an interchange of a variable must answer, from the text alone."""
    for bank, family in banks.values():
        base, source = ioi.render(bank.base, LEXICON), ioi.render(bank.source, LEXICON)
        for row in range(bank.size):
            stand = [bank.base["name0"][row], bank.base["name1"][row]]
            there = [bank.source["name0"][row], bank.source["name1"][row]]
            subjects = [
                text.split(",")[-1] if "When" in text else text.split(". ")[1] for text in (base[row], source[row])
            ]
            subjects = [next(NAMES.index(name) for name in NAMES if name in text.split()) for text in subjects]
            indirect = [sum(pair) - subject for pair, subject in zip((stand, there), subjects, strict=True)]
            assert bank.factual[row] == indirect[0]
            assert bank.labels[1, row] == indirect[1], "the token is the source's"
            assert bank.labels[0, row] == stand[there.index(indirect[1])], "the position is the source's"
            name = ioi.FAMILIES[family[row]]
            assert (bank.labels[0, row] != bank.factual[row]) == (name in ("order", "order_names"))
            assert (bank.labels[1, row] != bank.factual[row]) == (name != "subject")


def test_families_change_what_they_say(banks):
    bank, family = banks["fit"]
    names = lambda side: [{a, b} for a, b in zip(side["name0"].tolist(), side["name1"].tolist(), strict=True)]
    shared = np.array([len(a & b) for a, b in zip(names(bank.base), names(bank.source), strict=True)])
    for index, (name, count) in enumerate(zip(ioi.FAMILIES, (2, 0, 0, 1), strict=True)):
        rows = family == index
        assert rows.sum() == 10
        assert (shared[rows] == count).all()
        flipped = bank.base["order"][rows] != bank.source["order"][rows]
        assert flipped.all() if "order" in name else not flipped.any()


def test_no_two_names_meet_in_two_banks(banks):
    met = {}
    for role, (bank, _) in banks.items():
        for side in (bank.base, bank.source):
            for pair in zip(side["name0"].tolist(), side["name1"].tolist(), strict=True):
                assert met.setdefault(frozenset(pair), role) == role
    again = ioi.make_banks(3, LEXICON, SIZES)["test"].bank
    np.testing.assert_array_equal(again.base["name0"], banks["test"].bank.base["name0"])


def test_positions_are_where_the_names_stand(banks):
    bank, _ = banks["test"]
    encoded, places = ioi.encode(bank.base, TOKENIZER, LEXICON), ioi.spans(bank.base, LEXICON)
    rows = np.arange(bank.size)
    read = {name: encoded.tokens[rows, span_positions(encoded, where)] for name, where in places.items()}
    np.testing.assert_array_equal(read["first_name"], bank.base["name0"])
    np.testing.assert_array_equal(read["second_name"], bank.base["name1"])
    indirect = bank.factual
    np.testing.assert_array_equal(read["subject_again"], bank.base["name0"] + bank.base["name1"] - indirect)
    last = encoded.tokens[rows, last_positions(encoded)]
    assert {TOKENIZER.decode([token]) for token in last.tolist()} == {"to"}


def test_names_of_several_tokens_are_left_out():
    class Split(WordTokenizer):
        def encode(self, text):
            return super().encode(text.replace("Tom", "Paul Mark"))

    tokenizer = Split(TOKENIZER.words)
    kept = ioi.lexicon_for(tokenizer, LEXICON).names
    assert kept == tuple(name for name in NAMES if name != "Tom")
    assert ioi.answers(tokenizer, ioi.Lexicon(kept)) == tuple((NAMES.index(name),) for name in kept)
    with pytest.raises(ValueError, match=r"got names \['Tom'\] of several tokens"):
        ioi.answers(tokenizer, LEXICON)


def test_the_linear_model_of_the_logit_difference_is_found_again(banks, rng):
    bank, _ = banks["fit"]
    position, token = rng.choice([-1.0, 1.0], (2, 50))
    beta, error = ioi.linear_model(0.05 + 2.0 * position + 0.7 * token, position, token)
    np.testing.assert_allclose(beta, [0.05, 2.0, 0.7], rtol=1e-9)
    assert error < 1e-20
    outputs = rng.normal(size=(bank.size, len(NAMES) + 1))
    found = ioi.logit_differences(outputs, bank)
    for row in range(bank.size):
        indirect = bank.factual[row]
        subject = bank.base["name0"][row] + bank.base["name1"][row] - indirect
        assert found[row] == outputs[row, indirect] - outputs[row, subject]


def test_signals_say_what_is_the_bases(banks):
    bank, family = banks["fit"]
    found = ioi.signals(bank)
    assert found.shape == (2, 2, bank.size)
    flipped = np.isin(family, [0, 2])
    np.testing.assert_array_equal(found[0, 0], np.where(flipped, -1, 1))
    np.testing.assert_array_equal(found[1, 1], np.where(family == 3, 1, -1))
    assert (found[0, 1] == 1).all()
    assert (found[1, 0] == 1).all()


BAD = {
    "three names": (lambda: ioi.Lexicon(NAMES[:3]), "expected four or more"),
    "a name twice": (lambda: ioi.Lexicon(("Mary", "Mary", "Tom", "Anna")), "none twice"),
    "a frame without its subject": (lambda: ioi.Lexicon(NAMES, ("{name0} and {name1}",)), "expected name0, name1"),
    "no frames": (lambda: ioi.Lexicon(NAMES, ()), "no frames"),
    "a role": (lambda: ioi.make_banks(0, LEXICON, {"train": 8}), "bank named 'train'"),
    "too small": (lambda: ioi.make_banks(0, LEXICON, {"fit": 3}), "pairs for 'fit'"),
    "too few names": (lambda: ioi.make_banks(0, ioi.Lexicon(NAMES[:4]), SIZES), "expected four pairs for each bank"),
    "no banks": (lambda: ioi.make_banks(0, LEXICON, {}), "no sizes"),
    "one name": (
        lambda: ioi.render({"name0": [1], "name1": [1], "order": [0], "frame": [0]}, LEXICON),
        "two different names",
    ),
    "an index": (lambda: ioi.render({"name0": [1], "name1": [8], "order": [0], "frame": [0]}, LEXICON), "example 0"),
    "no order": (lambda: ioi.render({"name0": [1], "name1": [2], "frame": [0]}, LEXICON), r"without \['order'\]"),
    "a float": (
        lambda: ioi.render({"name0": [1.0], "name1": [2], "order": [0], "frame": [0]}, LEXICON), "whole numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_inputs_are_refused(case):
    build, match = case
    with pytest.raises(ValueError, match=match):
        build()
