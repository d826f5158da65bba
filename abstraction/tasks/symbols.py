"""Answer symbols as sets of tokens, and the scorers that read them from full-vocabulary logits (PLOT, MCQA).

    class of X = { token t : strip(NFKC(text of t)), upper-cased, is X }

so " A", "A", "a" and the full-width "Ａ" all say A; "AB", "" and "1" do not.

Scorers in use for this benchmark differ in what they forgive, and numbers from different ones do not compare. A report
gives every method the same scorer; the default is `strict`, because it alone lets the network say anything it likes and
still does not depend on which of several spellings it prefers.
"""

import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.tasks.prompts import Tokenizer
from abstraction.tasks.ranges import check_indices
from abstraction.typing import AnyArray

LETTERS = tuple(ascii_uppercase)
SCORERS = ("strict", "letters", "options", "token", "checker", "decoded")


def normal_form(text: str) -> str:
    """Return a text in NFKC, stripped, in upper case."""
    return unicodedata.normalize("NFKC", text).strip().upper()


def symbol_classes(
    tokenizer: Tokenizer, symbols: Sequence[str] = LETTERS, *, prefix: str = "Answer:"
) -> tuple[tuple[int, ...], ...]:
    """Find all tokens that say each symbol.

    The symbols must also be told apart by the first token after the prompt. Where " 1" is written as a space and a
    digit, all digits begin with the same token, every prediction is "right", and accuracy is 1 everywhere.

    Args:
      tokenizer: its whole vocabulary is searched.
      symbols: what an answer can be.
      prefix: the end of a prompt, after which the answer comes with or without a space.

    Returns:
      For each symbol its token ids, ascending; no id is in two classes.

    Raises:
      ValueError: a symbol has no single-token form, or several begin with the same token.
    """
    wanted = {normal_form(symbol): [] for symbol in symbols}
    if len(wanted) != len(symbols) or not wanted or "" in wanted:
        raise ValueError(f"got symbols {list(symbols)}, expected some, none empty, that differ when normalised")
    for index in range(tokenizer.size):
        text = normal_form(tokenizer.decode([index]))
        if text in wanted:
            wanted[text].append(index)
    forms = {space: [_continuation(tokenizer, prefix, space + symbol) for symbol in symbols] for space in ("", " ")}
    whole = [any(len(ids) == 1 for ids in pair) for pair in zip(*forms.values(), strict=True)]
    without = [symbol for symbol, one, ids in zip(symbols, whole, wanted.values(), strict=True) if not (one and ids)]
    if without:
        raise ValueError(f"got symbols {without} that are no single token after {prefix!r}, expected one token each")
    for space, continuations in forms.items():
        firsts = [ids[:1] for ids in continuations]
        shared = [symbol for symbol, first in zip(symbols, firsts, strict=True) if first and firsts.count(first) > 1]
        if shared:
            raise ValueError(
                f"got symbols {shared} that begin with the same token when written as {space + shared[0]!r} after "
                f"{prefix!r}, expected first tokens that tell them apart"
            )
    return tuple(tuple(ids) for ids in wanted.values())


def score(
    logits: Float[AnyArray, "N tokens"],
    classes: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    expected: Int[AnyArray, " N"],
    base_labels: Int[AnyArray, "N options"],
    *,
    symbols: Sequence[str] = LETTERS,
    prefix: str = "Answer:",
) -> dict[str, Bool[np.ndarray, " N"]]:
    """Judge last-token logits by every scorer; report `strict`.

    | name | the network is right when |
    |---|---|
    | strict | its top token has the normal form of the expected symbol |
    | letters | that symbol has the largest logit of all symbols, each by its best variant |
    | options | likewise among the options of the base prompt; wrong where the expected symbol is not among them |
    | token | its top token is " X" itself |
    | checker | the text of its top token contains " X" or is contained in it; the empty text and a space count |
    | decoded | the stripped text of its top token is "X" |

    A model may have more outputs than its tokenizer has tokens: those have no text, and only `checker` counts them.
    Logits that are not finite are wrong by every scorer.

    Args:
      logits: over the whole vocabulary, at the last token.
      classes: from `symbol_classes`.
      tokenizer: reads the top token.
      expected: index of the right symbol.
      base_labels: indices of the symbols that the base prompt offers.
      symbols: what the classes are of.
      prefix: as in `symbol_classes`.

    Raises:
      ValueError: arrays of different numbers of rows, symbols that are not there, or classes that are not theirs.
    """
    logits, expected, base_labels = np.asarray(logits), np.asarray(expected), np.asarray(base_labels)
    _check_scored(logits, classes, expected, base_labels, symbols)
    finite = np.isfinite(logits).all(axis=-1)
    top = logits.argmax(axis=-1)
    known = {int(index): tokenizer.decode([int(index)]) for index in np.unique(top) if index < tokenizer.size}
    pairs = [(known.get(int(index), ""), symbols[int(right)]) for index, right in zip(top, expected, strict=True)]
    best = np.stack([logits[:, list(ids)].max(axis=-1) for ids in classes], axis=-1)
    offered = np.take_along_axis(best, base_labels, axis=-1).argmax(axis=-1)
    spaced = [_continuation(tokenizer, prefix, f" {symbol}") for symbol in symbols]
    single = np.array([ids[0] if len(ids) == 1 else -1 for ids in spaced])
    right = {
        "strict": np.array([normal_form(text) == normal_form(symbol) for text, symbol in pairs], bool),
        "letters": best.argmax(axis=-1) == expected,
        "options": np.take_along_axis(base_labels, offered[:, None], axis=-1)[:, 0] == expected,
        "token": top == single[expected],
        "checker": np.array([text in f" {symbol}" or f" {symbol}" in text for text, symbol in pairs], bool),
        "decoded": np.array([text.strip() == symbol for text, symbol in pairs], bool),
    }
    return {name: values & finite for name, values in right.items()}


def _check_scored(
    logits: np.ndarray,
    classes: Sequence[Sequence[int]],
    expected: np.ndarray,
    base_labels: np.ndarray,
    symbols: Sequence[str],
) -> None:
    rows = logits.shape[:1]
    if logits.ndim != 2 or expected.shape != rows or base_labels.shape[:1] != rows or base_labels.ndim != 2:
        raise ValueError(
            f"got logits, expected symbols and options of shapes {logits.shape}, {expected.shape}, "
            f"{base_labels.shape}, expected (N, tokens), (N,) and (N, options)"
        )
    if len(classes) != len(symbols) or not all(classes):
        raise ValueError(f"got {len(classes)} classes, expected one or more tokens of each of {len(symbols)} symbols")
    for ids in classes:
        check_indices("token of a class", ids, logits.shape[1])
    check_indices("expected symbol", expected, len(symbols))
    check_indices("symbol of an option", base_labels, len(symbols))


def _continuation(tokenizer: Tokenizer, prefix: str, text: str) -> list[int]:
    """Return the tokens of `text` where it follows the prefix; none where the two share a token, as in ":A"."""
    ids, spans = tokenizer.encode(prefix + text)
    if any(start < len(prefix) < end for start, end in spans):
        return []
    return [index for index, (_, end) in zip(ids, spans, strict=True) if end > len(prefix)]
