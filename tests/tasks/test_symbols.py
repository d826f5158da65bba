"""Answer symbols: which tokens say a letter, and what each scorer forgives."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.tasks.prompts import HubTokenizer, WordTokenizer
from abstraction.tasks.symbols import LETTERS, SCORERS, normal_form, score, symbol_classes
from tests.tasks.test_prompts import byte_backend


@dataclass(frozen=True)
class Pieces:
    """A tokenizer of given pieces: the longest that fits comes first."""

    pieces: tuple[str, ...]

    @property
    def size(self):
        return len(self.pieces)

    def encode(self, text):
        ids, spans, at = [], [], 0
        while at < len(text):
            piece = max((p for p in self.pieces if p and text.startswith(p, at)), key=len)
            ids.append(self.pieces.index(piece))
            spans.append((at, at + len(piece)))
            at += len(piece)
        return ids, spans

    def decode(self, ids):
        return "".join(self.pieces[index] for index in ids)


SPELLINGS = (" A", "A", "a", "Ａ", "AB", " AB", "", " ", "1", " B", "B", "Answer:")
PIECES = Pieces(SPELLINGS)
AB = ("A", "B")
# What each scorer says when the top token is this and A is right (spec H4).
TRUTH = {
    #        strict decoded checker token
    " A": (True, True, True, True),
    "A": (True, True, True, False),
    "a": (True, False, False, False),
    "Ａ": (True, False, False, False),
    "AB": (False, False, False, False),
    " AB": (False, False, True, False),
    "": (False, False, True, False),
    " ": (False, False, True, False),
    "1": (False, False, False, False),
    " B": (False, False, False, False),
    "B": (False, False, False, False),
}


def test_a_class_holds_every_spelling_and_nothing_longer():
    assert symbol_classes(PIECES, AB) == ((0, 1, 2, 3), (9, 10))


def test_normal_form():
    assert [normal_form(text) for text in SPELLINGS[:9]] == ["A", "A", "A", "A", "AB", "AB", "", "", "1"]


@pytest.mark.parametrize("text", TRUTH)
def test_truth_table_of_the_scorers(text):
    logits = np.zeros((1, PIECES.size), np.float32)
    logits[0, SPELLINGS.index(text)] = 1.0
    said = score(logits, symbol_classes(PIECES, AB), PIECES, np.array([0]), np.array([[1, 0]]), symbols=AB)
    assert tuple(said) == SCORERS
    assert tuple(bool(said[name][0]) for name in ("strict", "decoded", "checker", "token")) == TRUTH[text]


def test_restricted_scorers_ignore_every_other_token():
    tokenizer = WordTokenizer((*LETTERS, "Answer", ":", "the"))
    classes = symbol_classes(tokenizer)
    logits = np.zeros((3, tokenizer.size), np.float32)
    logits[:, 28] = 9.0  # the top token is a word
    logits[:, 2] = 3.0  # C, the best letter
    logits[:, 1] = 2.0  # B, the best option
    logits[1, 2] = 10.0
    offered = np.array([[0, 1, 3, 4]] * 3)
    said = score(jnp.asarray(logits), classes, tokenizer, jnp.array([2, 2, 1]), offered)
    assert said["strict"].tolist() == [False, True, False]
    assert said["token"].tolist() == [False, True, False]
    assert said["letters"].tolist() == [True, True, False]
    assert said["options"].tolist() == [False, False, True]


def test_letters_take_the_best_variant():
    logits = np.zeros((1, PIECES.size), np.float32)
    logits[0, [0, 3, 9]] = [1.0, 5.0, 4.0]
    said = score(logits, symbol_classes(PIECES, AB), PIECES, np.array([0]), np.array([[0, 1]]), symbols=AB)
    assert said["letters"].tolist() == said["options"].tolist() == [True]


def test_outputs_beyond_the_vocabulary_say_nothing():
    logits = np.zeros((1, PIECES.size + 5), np.float32)
    logits[0, -1] = 1.0
    said = score(logits, symbol_classes(PIECES, AB), PIECES, np.array([0]), np.array([[0, 1]]), symbols=AB)
    assert not said["strict"][0]
    assert said["checker"][0]


def test_letters_of_a_byte_level_tokenizer():
    tokenizer = HubTokenizer(byte_backend([("Ġ", letter) for letter in LETTERS]))
    classes = symbol_classes(tokenizer)
    assert [sorted(tokenizer.decode([index]) for index in ids) for ids in classes] == [
        [f" {letter}", letter, letter.lower()] for letter in LETTERS
    ]


def test_an_alphabet_that_collapses_to_its_space_is_refused():
    with pytest.raises(ValueError, match=r"\['A', 'B', .* begin with the same token when written as ' A'"):
        symbol_classes(HubTokenizer(byte_backend()))
    digits = Pieces((" ", *"0123456789", "Answer:"))
    with pytest.raises(ValueError, match="begin with the same token when written as ' 0'"):
        symbol_classes(digits, tuple("0123456789"))


def test_only_the_symbols_that_collapse_are_named():
    pieces = Pieces((" ", "Answer:", "A", "B", "C", " C"))
    with pytest.raises(ValueError, match=r"got symbols \['A', 'B'\] that begin"):
        symbol_classes(pieces, ("A", "B", "C"))


def test_a_symbol_without_a_token_is_refused():
    with pytest.raises(ValueError, match=r"got symbols \['10'\] that are no single token"):
        symbol_classes(Pieces((" 1", "1", "0", " 2", "2", "Answer:")), ("2", "10"))


def test_a_symbol_that_merges_with_the_prompt_counts_by_its_other_form():
    pieces = Pieces((" A", "A", " B", "B", "Answer", ":", ":A", ":B"))
    assert symbol_classes(pieces, AB) == ((0, 1), (2, 3))
    with pytest.raises(ValueError, match=r"got symbols \['A', 'B'\] that are no single token"):
        symbol_classes(Pieces((" ", "A", "B", "Answer", ":", ":A", ":B")), AB)


def test_symbols_that_normalise_to_one_are_refused():
    with pytest.raises(ValueError, match="differ when normalised"):
        symbol_classes(PIECES, ("A", "a"))
