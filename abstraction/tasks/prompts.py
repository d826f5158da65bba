"""Prompts as tokens: a tokenizer, a padded batch with character offsets, and token positions found by characters.

    position of a character span = the token that covers the span's last (or first) character

Positions are found in the text, where the meaning is, and never by counting tokens or by searching for one: a letter
that answers a question may also be a word of it. They are given in the coordinates of the padded batch.

Padding is the token -1, on either side; the attention mask and the position ids follow from the tokens alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from re import compile as pattern
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32

from abstraction.checks import is_whole, whole
from abstraction.models.gguf_files import is_gguf, read_gguf
from abstraction.pytrees import pytree, static
from abstraction.tasks.gguf_tokenizers import tokenizer_of

PAD = -1
Span = tuple[int, int]
"""Characters `start` to `end`, the end excluded."""

_WORD = pattern(r"\w+|\n|[^\w\s]")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def size(self) -> int:
        """The number of ids."""
        ...

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Return the ids, special tokens included, and the characters of each; a special token has (0, 0)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of some ids."""
        ...


@dataclass(frozen=True)
class WordTokenizer:
    """One id per word, punctuation mark or newline; spaces only separate, so " A" and "A" are the same token.

    Attributes:
      words: the vocabulary; a word's id is its place.

    Raises:
      ValueError: a word occurs twice or is not a single token.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        wrong = [word for word in self.words if not _WORD.fullmatch(word)]
        if wrong or len(set(self.words)) != len(self.words):
            raise ValueError(f"got words {wrong or self.words}, expected distinct single words, marks or newlines")

    @property
    def size(self) -> int:
        """The number of words."""
        return len(self.words)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Split a text into words.

        Raises:
          ValueError: a word is not in the vocabulary.
        """
        matches = list(_WORD.finditer(text))
        unknown = sorted({match.group() for match in matches} - self._ids.keys())
        if unknown:
            raise ValueError(f"got unknown words {unknown}, expected some of the {self.size} words known: {self.words}")
        return [self._ids[match.group()] for match in matches], [match.span() for match in matches]

    def decode(self, ids: Sequence[int]) -> str:
        """Join words with spaces.

        Raises:
          ValueError: an id is out of range.
        """
        wrong = [index for index in ids if not is_whole(index) or not 0 <= index < self.size]
        if wrong:
            raise ValueError(f"got ids {wrong}, expected values from 0 to {self.size - 1}")
        return " ".join(self.words[index] for index in ids)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


@dataclass(frozen=True)
class HubTokenizer:
    """A tokenizer of the `tokenizers` package; make it with `load_tokenizer`."""

    backend: Any

    @property
    def size(self) -> int:
        """The number of ids, added tokens included; a model may have more outputs than that."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Encode a text, with the special tokens the tokenizer puts around it."""
        encoding = self.backend.encode(text, add_special_tokens=True)
        return list(encoding.ids), [tuple(span) for span in encoding.offsets]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, special tokens included."""
        return self.backend.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(name: str | Path, *, revision: str | None = None) -> HubTokenizer:
    """Load a tokenizer from a folder with a `tokenizer.json`, a GGUF file, or the Hugging Face hub by name.

    Raises:
      ImportError: the extra `hub` is not installed.
      ValueError: the tokenizer has no fast implementation, which alone knows the characters of its tokens, or is of a
        kind that is not read from GGUF files.
    """
    file = Path(name) / "tokenizer.json"
    try:
        if is_gguf(name):
            backend = tokenizer_of(read_gguf(name).metadata)
        elif file.exists():
            from tokenizers import Tokenizer as Backend

            backend = Backend.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            backend = getattr(AutoTokenizer.from_pretrained(name, revision=revision), "backend_tokenizer", None)
    except ImportError as error:
        raise ImportError(f"reading the tokenizer {str(name)!r} needs the extra `hub`: {error}") from error
    if backend is None:
        raise ValueError(f"got {str(name)!r}, a tokenizer without a tokenizer.json, expected a fast tokenizer")
    # A saved tokenizer may carry the truncation and padding of its training.
    backend.no_truncation()
    backend.no_padding()
    return HubTokenizer(backend)


@pytree
class Encoded:
    """N prompts as one padded batch; make it with `encode_prompts`.

    Attributes:
      tokens: ids, -1 where there is padding.
      offsets: first character of each token and the one after its last; -1 where there is padding.
      texts: the N prompts.
    """

    tokens: Int32[np.ndarray, "N T"]
    offsets: Int32[np.ndarray, "N T 2"]
    texts: tuple[str, ...] = static()


def encode_prompts(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    side: Literal["left", "right"] = "left",
    length: int | None = None,
) -> Encoded:
    """Encode prompts and pad them to one length.

    Args:
      tokenizer: makes the tokens.
      texts: N prompts.
      side: where padding goes; "left" puts every last token into the last column.
      length: tokens per row; by default those of the longest prompt.

    Raises:
      ValueError: there is no prompt, one is no text, has no token or is longer than `length`, or the side is unknown.
    """
    if side not in ("left", "right"):
        raise ValueError(f"got side {side!r}, expected 'left' or 'right'")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"got texts {texts!r}, expected a sequence of prompts")
    if length is not None:
        whole("length", length, 1)
    rows = [tokenizer.encode(text) for text in texts]
    lengths = [len(ids) for ids, _ in rows]
    if not all(lengths) or not lengths:
        raise ValueError(f"got {len(rows)} prompts of lengths {lengths}, expected some prompts of one token or more")
    total = max(lengths) if length is None else length
    if max(lengths) > total:
        index = int(np.argmax(lengths))
        raise ValueError(
            f"got a prompt of {lengths[index]} tokens, expected at most {total}: prompt {index}, {texts[index]!r}"
        )
    tokens = np.full((len(rows), total), PAD, np.int32)
    offsets = np.full((len(rows), total, 2), PAD, np.int32)
    for index, (ids, spans) in enumerate(rows):
        start = total - len(ids) if side == "left" else 0
        tokens[index, start : start + len(ids)] = ids
        offsets[index, start : start + len(ids)] = spans
    return Encoded(tokens, offsets, tuple(texts))


def last_positions(encoded: Encoded) -> Int32[np.ndarray, " N"]:
    """Return the position of every prompt's last token."""
    length = encoded.tokens.shape[1]
    return (length - 1 - np.argmax(encoded.tokens[:, ::-1] != PAD, axis=1)).astype(np.int32)


def span_positions(
    encoded: Encoded, spans: Sequence[Span], which: Literal["last", "first"] = "last"
) -> Int32[np.ndarray, " N"]:
    """Return the position of the token that covers the last (or first) character of each span.

    Args:
      encoded: N prompts.
      spans: for each prompt, a span of characters in its text.
      which: the end of the span to look at.

    Raises:
      ValueError: a span is empty or outside its text, or its character belongs to no token.
    """
    if which not in ("last", "first"):
        raise ValueError(f"got which {which!r}, expected 'last' or 'first'")
    if len(spans) != len(encoded.texts):
        raise ValueError(f"got {len(spans)} spans, expected one for each of {len(encoded.texts)} prompts")
    positions = np.zeros(len(spans), np.int32)
    for index, ((start, end), text) in enumerate(zip(spans, encoded.texts, strict=True)):
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"got span {(start, end)} in prompt {index}, expected 0 <= start < end <= {len(text)}: {text!r}"
            )
        character = end - 1 if which == "last" else start
        covers = (encoded.offsets[index, :, 0] <= character) & (character < encoded.offsets[index, :, 1])
        if not covers.any():
            raise ValueError(
                f"got character {character} of prompt {index}, {text[character]!r}, which is in no token, expected "
                f"one of the characters of {encoded.offsets[index].tolist()}: {text!r}"
            )
        # A character written as several byte tokens is covered more than once.
        positions[index] = np.flatnonzero(covers)[-1 if which == "last" else 0]
    return positions


def offset_positions(positions: Int[np.ndarray, " N"], by: int, encoded: Encoded) -> Int32[np.ndarray, " N"]:
    """Move every position by some tokens: `by=1` from a symbol to the period after it.

    Raises:
      ValueError: a position is no whole number or leaves its prompt.
    """
    positions = np.asarray(positions)
    if positions.shape != (len(encoded.texts),) or not np.issubdtype(positions.dtype, np.integer) or not is_whole(by):
        raise ValueError(
            f"got positions of shape {positions.shape} and type {positions.dtype} moved by {by!r}, expected a whole "
            f"number for each of {len(encoded.texts)} prompts"
        )
    moved = positions + by
    length = encoded.tokens.shape[1]
    inside = (moved >= 0) & (moved < length)
    real = inside & (encoded.tokens[np.arange(len(moved)), np.clip(moved, 0, length - 1)] != PAD)
    if not real.all():
        index = int(np.argmin(real))
        valid = np.flatnonzero(encoded.tokens[index] != PAD)
        raise ValueError(
            f"got position {moved[index]} in prompt {index} ({positions[index]} moved by {by}), expected "
            f"{valid[0]} to {valid[-1]}: {encoded.texts[index]!r}"
        )
    return moved.astype(np.int32)


def highlight(encoded: Encoded, positions: Int[np.ndarray, " N"], tokenizer: Tokenizer, rows: int = 3) -> str:
    r"""Show where positions are: one prompt a line, the token in brackets, a newline as `\n`.

    Raises:
      ValueError: a position is padding, or fewer than one prompt is asked for.
    """
    whole("rows", rows, 1)
    lines = []
    for index, position in enumerate(offset_positions(positions, 0, encoded)[:rows]):
        text, (start, end) = encoded.texts[index], encoded.offsets[index, position].tolist()
        # A special token has no characters; only its name can be shown.
        token = text[start:end] or tokenizer.decode([int(encoded.tokens[index, position])])
        lines.append(f"{index} @{position}: " + f"{text[:start]}[{token}]{text[end:]}".replace("\n", "\\n"))
    return "\n".join(lines)
