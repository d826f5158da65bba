"""Prompts as tokens: padding, offsets, positions found by characters."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from abstraction.tasks.prompts import (
    HubTokenizer,
    Tokenizer,
    WordTokenizer,
    encode_prompts,
    highlight,
    last_positions,
    load_tokenizer,
    offset_positions,
    span_positions,
)

WORDS = WordTokenizer(("Is", "it", "A", "?", "\n", ".", "no", "Answer", ":"))
TEXTS = ("Is it A?\nA. no", "Answer: A")


def byte_backend(merges=(), bos=True):
    """A byte-level tokenizer of the `tokenizers` package with a beginning-of-sequence token."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<bos>", *alphabet, *(left + right for left, right in merges)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    if bos:
        backend.add_special_tokens(["<bos>"])
        backend.post_processor = tokenizers.processors.Sequence(
            [
                tokenizers.processors.ByteLevel(trim_offsets=False),
                tokenizers.processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)]),
            ]
        )
    return backend


def test_words_have_ids_and_characters():
    ids, spans = WORDS.encode("Is it A?\nA")
    assert ids == [0, 1, 2, 3, 4, 2]
    assert spans == [(0, 2), (3, 5), (6, 7), (7, 8), (8, 9), (9, 10)]
    assert WORDS.decode([7, 8, 2]) == "Answer : A"
    assert isinstance(WORDS, Tokenizer)
    assert WORDS.size == 9


def test_a_space_before_a_word_makes_no_other_token():
    assert WORDS.encode(" A")[0] == WORDS.encode("A")[0] == [2]


def test_an_unknown_word_is_refused_by_name():
    with pytest.raises(ValueError, match=r"unknown words \['maybe'\]"):
        WORDS.encode("Is it maybe")


@pytest.mark.parametrize("words", [("a", "a"), ("a b",), ("",), (" ",)])
def test_words_that_cannot_be_tokens_are_refused(words):
    with pytest.raises(ValueError, match="expected distinct single words"):
        WordTokenizer(words)


def test_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"got ids \[-1, 9\]"):
        WORDS.decode([0, -1, 9])


def test_padding_is_minus_one_on_the_side_asked_for():
    left = encode_prompts(WORDS, TEXTS)
    right = encode_prompts(WORDS, TEXTS, side="right", length=9)
    assert left.tokens.tolist() == [[0, 1, 2, 3, 4, 2, 5, 6], [-1] * 5 + [7, 8, 2]]
    assert right.tokens.tolist() == [[0, 1, 2, 3, 4, 2, 5, 6, -1], [7, 8, 2] + [-1] * 6]
    assert left.tokens.dtype == np.int32
    assert left.offsets[1].tolist() == [[-1, -1]] * 5 + [[0, 6], [6, 7], [8, 9]]
    assert left.texts == TEXTS
    assert last_positions(left).tolist() == [7, 7]
    assert last_positions(right).tolist() == [7, 2]


def test_padding_moves_positions_and_nothing_else():
    spans = [(6, 7), (0, 6)]
    left, right = encode_prompts(WORDS, TEXTS, length=10), encode_prompts(WORDS, TEXTS, side="right", length=10)
    for encoded in (left, right):
        for which in ("last", "first"):
            positions = span_positions(encoded, spans, which)
            assert encoded.tokens[[0, 1], positions].tolist() == [2, 7]
    shift = span_positions(left, spans) - span_positions(right, spans)
    assert shift.tolist() == [2, 7]


def test_a_prompt_longer_than_the_length_is_refused():
    with pytest.raises(ValueError, match=r"got a prompt of 8 tokens, expected at most 7: prompt 0, 'Is it A"):
        encode_prompts(WORDS, TEXTS, length=7)


@pytest.mark.parametrize("texts", [(), ("A", " ")])
def test_prompts_without_tokens_are_refused(texts):
    with pytest.raises(ValueError, match="expected some prompts"):
        encode_prompts(WORDS, texts)


def test_an_unknown_side_is_refused(unchecked):
    with pytest.raises(ValueError, match="got side 'both'"):
        encode_prompts(WORDS, TEXTS, side="both")  # pyright: ignore[reportArgumentType]


def test_a_span_of_several_tokens_has_a_first_and_a_last():
    encoded = encode_prompts(WORDS, ("Is it A?",))
    assert span_positions(encoded, [(0, 7)], "first").tolist() == [0]
    assert span_positions(encoded, [(0, 7)]).tolist() == [2]


@pytest.mark.parametrize(
    ("span", "message"),
    [((5, 6), "which is in no token"), ((3, 3), "expected 0 <= start < end"), ((0, 99), "<= 8"), ((-1, 2), "prompt 0")],
)
def test_spans_without_a_token_are_refused(span, message):
    with pytest.raises(ValueError, match=message):
        span_positions(encode_prompts(WORDS, ("Is it A?",)), [span])


def test_a_span_is_needed_for_every_prompt():
    with pytest.raises(ValueError, match="got 1 spans, expected one for each of 2"):
        span_positions(encode_prompts(WORDS, TEXTS), [(0, 1)])


def test_positions_move_inside_their_prompt_only():
    left, right = encode_prompts(WORDS, TEXTS), encode_prompts(WORDS, TEXTS, side="right")
    assert offset_positions(np.array([5, 6]), 1, left).tolist() == [6, 7]
    with pytest.raises(ValueError, match=r"got position 8 in prompt 0 \(7 moved by 1\), expected 0 to 7: 'Is it"):
        offset_positions(last_positions(left), 1, left)
    with pytest.raises(ValueError, match=r"got position 4 in prompt 1 .* expected 5 to 7: 'Answer: A'"):
        offset_positions(np.array([5, 5]), -1, left)
    with pytest.raises(ValueError, match=r"got position 3 in prompt 1 .* expected 0 to 2"):
        offset_positions(np.array([1, 2]), 1, right)


def test_highlight_puts_the_token_in_brackets():
    encoded = encode_prompts(WORDS, TEXTS)
    assert highlight(encoded, span_positions(encoded, [(9, 10), (6, 7)]), WORDS) == (
        "0 @5: Is it A?\\n[A]. no\n1 @6: Answer[:] A"
    )
    assert highlight(encoded, last_positions(encoded), WORDS, rows=1) == "0 @7: Is it A?\\nA. [no]"
    assert highlight(encoded, np.array([4, 7]), WORDS, rows=1) == "0 @4: Is it A?[\\n]A. no"


def test_a_hub_tokenizer_keeps_its_special_token_out_of_the_characters():
    tokenizer = HubTokenizer(byte_backend([("Ġ", "A")]))
    assert isinstance(tokenizer, Tokenizer)
    ids, spans = tokenizer.encode("no: A")
    assert spans == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 5)]
    assert tokenizer.decode(ids) == "<bos>no: A"
    assert tokenizer.decode(ids[-1:]) == " A"
    encoded = encode_prompts(tokenizer, ("no: A", "A"))
    assert span_positions(encoded, [(0, 1), (0, 1)]).tolist() == [1, 4]
    assert offset_positions(np.array([1, 4]), -1, encoded).tolist() == [0, 3]
    assert highlight(encoded, np.array([4, 3]), tokenizer) == "0 @4: no:[ A]\n1 @3: [<bos>]A"


def test_a_character_of_several_tokens_has_a_first_and_a_last():
    encoded = encode_prompts(HubTokenizer(byte_backend()), ("né",))
    assert encoded.tokens.shape == (1, 4)
    assert span_positions(encoded, [(1, 2)], "first").tolist() == [2]
    assert span_positions(encoded, [(1, 2)], "last").tolist() == [3]


def test_a_folder_gives_its_tokenizer_without_the_padding_of_its_training(tmp_path):
    backend = byte_backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.size == 257
    assert tokenizer.decode(tokenizer.encode("Answer:")[0]) == "<bos>Answer:"


def test_a_name_is_looked_up_on_the_hub(monkeypatch):
    asked = []

    def hub(backend):
        def from_pretrained(name, revision):
            asked.append((name, revision))
            return SimpleNamespace(backend_tokenizer=backend)

        fake = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=from_pretrained))
        monkeypatch.setitem(sys.modules, "transformers", fake)

    hub(byte_backend())
    assert load_tokenizer("some/model", revision="abc").size == 257
    assert asked == [("some/model", "abc")]
    hub(None)
    with pytest.raises(ValueError, match="expected a fast tokenizer"):
        load_tokenizer("some/model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="extra `hub`"):
        load_tokenizer("some/model")
