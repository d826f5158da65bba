"""Recall of what the prompt tells: does a language model find who is meant, where that was told, and what was told?

    The finalists were Emma Walker, Susan Baker and Lisa Hill. The winner was Susan            -> Baker

    Q = the name asked,   P = the i with key_i = Q,   V = value_P

Keys are first names, values are surnames, and a pair of them is a fact. The variables are the query Q, the position P
of the fact that is asked for, and the value V, which is also the output. The first two are the lexical and the
positional way to retrieve what is bound to a name (Gur-Arieh, Geva and Geiger, arXiv 2510.06182; Feng and Steinhardt,
arXiv 2310.17191). For a base b and a source s an interchange of Q has the label value(b) of the key Q(s), one of P has
value_{P(s)}(b), one of V has V(s). Sources tell the keys of their base, and come in five families:

| family | order of the keys | values | asked | label for `query` | for `position` | for `value` |
|---|---|---|---|---|---|---|
| asked | the base's | the base's | another key | active | active, the same | active, the same |
| order | another | the base's | the base's key | invariant | active | invariant |
| values | the base's | others | the base's key | invariant | invariant | active |
| asked_values | the base's | others | another key | active | active, the same | active, another |
| apart | another | others | another key | active | active, another | active, a third |

The second and the last tell the query from the position, the last three either from the value. "Others" are values that
the base does not tell at all. No three keys are told together in two banks, so no prompt is in two either.

A key that was not told is at position -1, where the value is -1, which no readout scores: such sources are refused.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from string import Formatter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from abstraction.causal import PairBank, causal_model, label_pairs
from abstraction.checks import whole
from abstraction.tasks.ioi import name_ids
from abstraction.tasks.mcqa import bank_role
from abstraction.tasks.prompts import Encoded, Span, Tokenizer, encode_prompts
from abstraction.typing import Setting

FACTS = 3
KEYS = tuple(f"key{i}" for i in range(FACTS))
VALUES = tuple(f"value{i}" for i in range(FACTS))
INPUTS = ("frame", *KEYS, *VALUES, "asked")
"""Indices: of the frame, which is rendered alone, of keys and values in the order they are told, of the key asked."""
VARIABLES = ("query", "position", "value")
FAMILIES = ("asked", "order", "values", "asked_values", "apart")
POSITIONS = ("last", "told_key", "told_value")
SIZES = MappingProxyType({"fit": 250, "calibration": 150, "test": 250})


def _position(query: Any, key0: Any, key1: Any, key2: Any) -> Any:
    return sum((place + 1) * (key == query) for place, key in enumerate((key0, key1, key2))) - 1


def _value(position: Any, value0: Any, value1: Any, value2: Any) -> Any:
    return sum((position == place) * (value + 1) for place, value in enumerate((value0, value1, value2))) - 1


MODEL = causal_model(INPUTS, "value", query=lambda asked: asked, position=_position, value=_value)

_TOLD = "{key0} {value0}, {key1} {value1} and {key2} {value2}"
_FRAMES = (
    ("finalists", "The winner was"),
    ("candidates", "The election was won by"),
    ("players", "The captain was"),
    ("members", "The chair was"),
)
FRAMES = tuple(f"The {who} were {_TOLD}. {asks} {{asked}}" for who, asks in _FRAMES)
_KEYS = """
Mary John Tom James Anna David Sarah Michael Emma Peter Laura Robert Alice Paul Susan Mark Kate George Lisa Daniel Jane
Kevin Rachel Simon Julia Andrew
"""
_VALUES = """
Smith Brown King Young White Green Hill Wood Baker Cook Stone Wright Carter Parker Turner Walker Hunter Fisher Cooper
Taylor Miller Mason Clark Lewis Adams Jones Davis Wilson Moore Martin Hall Allen Evans Collins Morris Rogers Reed Bell
Murphy Bailey Kelly Howard Ward Gray Ross Foster
"""


@dataclass(frozen=True)
class Lexicon:
    """The words of the prompts.

    Attributes:
      keys: what is asked about, four or more.
      values: what is told of them, six or more, so that a source has others than its base; no key among them.
      frames: with a slot for each key and value, and `{asked}`, each once.

    Raises:
      ValueError: too few words, one twice, or a frame without its slots.
    """

    keys: tuple[str, ...] = tuple(_KEYS.split())
    values: tuple[str, ...] = tuple(_VALUES.split())
    frames: tuple[str, ...] = FRAMES

    def __post_init__(self) -> None:
        words = (*self.keys, *self.values)
        if len(set(words)) != len(words) or len(self.keys) < FACTS + 1 or len(self.values) < 2 * FACTS:
            raise ValueError(
                f"got keys {self.keys} and values {self.values}, expected {FACTS + 1} or more keys and {2 * FACTS} or "
                "more values, no word twice"
            )
        if not self.frames:
            raise ValueError("got no frames, expected one or more")
        needed = sorted((*KEYS, *VALUES, "asked"))
        for frame in self.frames:
            slots = sorted(slot for _, slot, _, _ in Formatter().parse(frame) if slot is not None)
            if slots != needed:
                raise ValueError(f"got a frame with slots {slots}, expected each of {needed} once")

    def prompt(self, frame: int, *rest: int) -> tuple[str, dict[str, Span]]:
        """Write one prompt, given the input variables in order, and say which characters fill each slot."""
        words = {name: self.keys[index] for name, index in zip(KEYS, rest[:FACTS], strict=True)}
        words |= {name: self.values[index] for name, index in zip(VALUES, rest[FACTS:-1], strict=True)}
        words["asked"] = self.keys[rest[-1]]
        text, spans = "", {}
        for literal, slot, _, _ in Formatter().parse(self.frames[frame]):
            text += literal
            if slot is not None:
                spans[slot] = (len(text), len(text) + len(words[slot]))
                text += words[slot]
        return text, spans


class FamilyBank(NamedTuple):
    """N pairs, each of a family.

    Attributes:
      bank: the pairs and their labels.
      family: index into `FAMILIES`, `[N]`.
    """

    bank: PairBank
    family: Int[np.ndarray, " N"]


def lexicon_for(tokenizer: Tokenizer, lexicon: Lexicon | None = None) -> Lexicon:
    """Keep the keys and values that are one token with a space before them, each another.

    Raises:
      ValueError: too few are.
    """
    lexicon = Lexicon() if lexicon is None else lexicon
    kept: dict[int, str] = {}
    for word in (*lexicon.keys, *lexicon.values):
        ids = name_ids(tokenizer, word)
        if len(ids) == 1:
            kept.setdefault(ids[0], word)
    words = set(kept.values())
    keys, values = (tuple(word for word in side if word in words) for side in (lexicon.keys, lexicon.values))
    return Lexicon(keys, values, lexicon.frames)


def answers(tokenizer: Tokenizer, lexicon: Lexicon) -> tuple[tuple[int, ...], ...]:
    """Return the token of every value, the classes of the output; see `Decoder.answers`.

    Raises:
      ValueError: a value is not one token.
    """
    found = {word: name_ids(tokenizer, word) for word in lexicon.values}
    if wrong := sorted(word for word, ids in found.items() if len(ids) != 1):
        raise ValueError(f"got values {wrong} of several tokens, expected one each; `lexicon_for` keeps those")
    return tuple(tuple(ids) for ids in found.values())


def render(setting: Setting, lexicon: Lexicon) -> list[str]:
    """Write the prompts of a setting.

    Raises:
      ValueError: an index is out of range, a key or a value is told twice, or the key asked was not told.
    """
    return [text for text, _ in _prompts(setting, lexicon)]


def encode(setting: Setting, tokenizer: Tokenizer, lexicon: Lexicon, *, length: int | None = None) -> Encoded:
    """Write and tokenise the prompts of a setting, padded on the left: the network's input."""
    return encode_prompts(tokenizer, render(setting, lexicon), side="left", length=length)


def spans(setting: Setting, lexicon: Lexicon) -> dict[str, list[Span]]:
    """Return where the fact that is asked for was told, in characters: its key and its value."""
    written = [places for _, places in _prompts(setting, lexicon)]
    places = np.asarray(MODEL.run(setting)["position"]).tolist()
    pick = lambda names: [each[names[place]] for each, place in zip(written, places, strict=True)]
    return {"told_key": pick(KEYS), "told_value": pick(VALUES)}


def make_banks(seed: int, lexicon: Lexicon, sizes: Mapping[str, int] = SIZES) -> dict[str, FamilyBank]:
    """Draw one bank per role, with equal shares of the families; no three keys are told together in two banks.

    Args:
      seed: of the draws.
      lexicon: the words.
      sizes: number of pairs by role; five divides them, or the first families have one pair more.

    Raises:
      ValueError: a role is unknown, a bank too small to hold every family, or too few keys for so many banks.
    """
    whole("seed", seed, 0)
    if not sizes:
        raise ValueError("got no sizes of banks, expected one or more")
    for role, size in sizes.items():
        bank_role(role)
        whole(f"pairs for {role!r}", size, len(FAMILIES))
    generator, banks = np.random.default_rng(seed), {}
    triples = _dealt(generator, len(lexicon.keys), sizes)
    for (role, size), told in zip(sizes.items(), triples, strict=True):
        family = np.arange(size) % len(FAMILIES)
        rows = [_pair(generator, told, FAMILIES[each], lexicon) for each in family.tolist()]
        base, source = (dict(zip(INPUTS, np.array(side).T, strict=True)) for side in zip(*rows, strict=True))
        banks[role] = FamilyBank(label_pairs(MODEL, base, source, variables=VARIABLES, role=bank_role(role)), family)
    return banks


def _dealt(
    generator: np.random.Generator, keys: int, sizes: Mapping[str, int]
) -> Iterator[Int[np.ndarray, "triples facts"]]:
    """Deal all sets of keys out to the banks, by their sizes."""
    every = generator.permutation(np.array(list(itertools.combinations(range(keys), FACTS))))
    ends = (np.cumsum(list(sizes.values())) / sum(sizes.values()) * len(every)).astype(int)
    parts = np.split(every, ends[:-1])
    if not all(map(len, parts)):
        raise ValueError(
            f"got {keys} keys, {len(every)} sets of {FACTS} of them for {len(parts)} banks of {dict(sizes)} pairs, "
            "expected a set or more for each bank: more keys"
        )
    return iter(parts)


def _pair(
    generator: np.random.Generator, triples: Int[np.ndarray, "triples facts"], family: str, lexicon: Lexicon
) -> tuple[Int[np.ndarray, " inputs"], Int[np.ndarray, " inputs"]]:
    """Draw a base and its source."""
    keys = generator.permutation(generator.choice(triples))
    values, others = generator.permutation(len(lexicon.values))[: 2 * FACTS].reshape(2, FACTS)
    frame = generator.integers(len(lexicon.frames))
    # Three different places: of the fact asked in the base, of another, and a third, where a fact may move.
    asked, another, third = generator.permutation(FACTS)[:3].tolist()
    base = np.array([frame, *keys, *values, keys[asked]])
    order = np.arange(FACTS)
    if family == "order":
        order = _moved(generator, asked, another)
    elif family == "apart":
        order = _moved(generator, another, third)
    told = values if family in ("asked", "order") else others
    wanted = keys[asked if family in ("order", "values") else another]
    return base, np.array([frame, *keys[order], *told[order], wanted])


def _moved(generator: np.random.Generator, fact: int, place: int) -> Int[np.ndarray, " facts"]:
    """Order the facts at random, but one of them at a given place."""
    rest = generator.permutation(np.delete(np.arange(FACTS), fact))
    return np.insert(rest, place, fact)


def _prompts(setting: Setting, lexicon: Lexicon) -> list[tuple[str, dict[str, Span]]]:
    if missing := [name for name in INPUTS if name not in setting]:
        raise ValueError(f"got a setting without {missing}, expected values of {INPUTS}")
    rows = np.stack([np.asarray(setting[name]) for name in INPUTS], axis=1)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"got a setting of type {rows.dtype}, expected whole numbers")
    keys, values, asked = rows[:, 1 : 1 + FACTS], rows[:, 1 + FACTS : -1], rows[:, -1:]
    limits: Any = [len(lexicon.frames), *[len(lexicon.keys)] * FACTS, *[len(lexicon.values)] * FACTS, len(lexicon.keys)]
    right = ((rows >= 0) & (rows < limits)).all(axis=1) & ((keys == asked).sum(axis=1) == 1)
    for told in (keys, values):
        right &= (np.diff(np.sort(told, axis=1), axis=1) > 0).all(axis=1)
    if not right.all():
        index = int(np.argmin(right))
        raise ValueError(
            f"got {dict(zip(INPUTS, rows[index].tolist(), strict=True))} in example {index}, expected indices below "
            f"{dict(zip(INPUTS, limits, strict=True))}, no key and no value twice, and a key asked that was told"
        )
    return [lexicon.prompt(*row) for row in rows.tolist()]
