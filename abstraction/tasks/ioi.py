"""Indirect objects: does a language model find where the other name stands, and which name it is?

    P = the place of the indirect object, first or second name,   T = name_P        (IOI, Wang et al., arXiv 2211.00593)

    Then, Mary and John went to the store. John gave a drink to            -> Mary

The variables are the output position P and the output token T, a name, which is also the output. The order says which
of the two names is the subject, named again: the second (ABB: Mary, John, John) or the first (BAB: John, Mary, John).
For a base b and a source s an interchange of P has the label name_{P(s)}(b), one of T has the label T(s). Sources come
in four families, which differ from their base in the order, in both names, in both of these, or in the subject's name:

| family | order | names | label for `position` | label for `token` |
|---|---|---|---|---|
| order | the other | the base's | active, b's subject | active, the same name |
| names | the base's | two others | invariant, T(b) | active, T(s) |
| order_names | the other | two others | active, b's subject | active, T(s), another name |
| subject | the base's | a third name for the subject | invariant, T(b) | invariant, T(b) |

The third tells the variables apart. Pairs of names are never shared between banks, in whichever order they stand.

MIB's track scores the difference of two logits instead, by a linear model of signals of +1 and -1 that say whether the
position and the token are the base's (arXiv 2504.13151):

    logit(b's indirect object) - logit(b's subject)  =  beta_0 + beta_P p + beta_T t
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.causal import PairBank, causal_model, label_pairs
from abstraction.checks import whole
from abstraction.tasks.mcqa import bank_role
from abstraction.tasks.prompts import Encoded, Span, Tokenizer, encode_prompts
from abstraction.typing import Setting

INPUTS = ("name0", "name1", "order", "frame")
"""Indices of the two names, in the order they stand; the place of the indirect object; the frame, rendered alone."""
VARIABLES = ("position", "token")
FAMILIES = ("order", "names", "order_names", "subject")
POSITIONS = ("last", "subject_again", "first_name", "second_name")
SIZES = MappingProxyType({"fit": 256, "calibration": 128, "test": 256})

MODEL = causal_model(
    INPUTS,
    "token",
    position=lambda order: order,
    token=lambda position, name0, name1: (position == 0) * name0 + (position == 1) * name1,
)

_TEMPLATES = (
    "Then, {name0} and {name1} went to the {place}. {subject} gave a {thing} to",
    "When {name0} and {name1} met at the {place}, {subject} handed a {thing} to",
)
_PLACES, _THINGS = "store school park office garden hospital", "drink book ring ball letter snack"
FRAMES = tuple(
    template.replace("{place}", place).replace("{thing}", thing)
    for template, place, thing in itertools.product(_TEMPLATES, _PLACES.split(), _THINGS.split())
)
_NAMES = """
Mary John Tom James Anna David Sarah Michael Emma Peter Laura Robert Alice Paul Susan Mark Kate George Lisa Daniel Jane
Kevin Rachel Simon Julia Andrew Linda Steven Helen Adam Maria Jack Rose Henry Amy Frank Lucy Sam Grace Max
"""
NAMES = tuple(_NAMES.split())


@dataclass(frozen=True)
class Lexicon:
    """The words of the prompts.

    Attributes:
      names: four or more, each one token with a space before it.
      frames: with the slots `{name0}`, `{name1}`, `{subject}`, each once.

    Raises:
      ValueError: too few names, one twice, or a frame without its slots.
    """

    names: tuple[str, ...] = NAMES
    frames: tuple[str, ...] = FRAMES

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) < 4:
            raise ValueError(f"got names {self.names}, expected four or more, none twice")
        for frame in self.frames:
            slots = sorted(slot for _, slot, _, _ in Formatter().parse(frame) if slot is not None)
            if slots != ["name0", "name1", "subject"]:
                raise ValueError(f"got a frame with slots {slots}, expected name0, name1 and subject, each once")
        if not self.frames:
            raise ValueError("got no frames, expected one or more")

    def prompt(self, name0: int, name1: int, order: int, frame: int) -> tuple[str, dict[str, Span]]:
        """Write one prompt, and say which characters fill each slot."""
        words = {"name0": self.names[name0], "name1": self.names[name1]}
        words["subject"] = words["name1" if order == 0 else "name0"]
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
    """Keep the names that are one token with a space before them, each another.

    Raises:
      ValueError: fewer than four are.
    """
    lexicon = Lexicon() if lexicon is None else lexicon
    kept: dict[int, str] = {}
    for name in lexicon.names:
        ids = name_ids(tokenizer, name)
        if len(ids) == 1:
            kept.setdefault(ids[0], name)
    if len(kept) < 4:
        raise ValueError(f"got {len(kept)} names of one token ({sorted(kept.values())}), expected four or more")
    return Lexicon(tuple(kept.values()), lexicon.frames)


def vocabulary(lexicon: Lexicon) -> tuple[str, ...]:
    """Return the words of a `WordTokenizer` for every prompt: the names, then the others in sorted order."""
    literals = " ".join(literal for frame in lexicon.frames for literal, _, _, _ in Formatter().parse(frame))
    return (*lexicon.names, *sorted(set(re.findall(r"\w+|[^\w\s]", literals)) - set(lexicon.names)))


def name_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    """Return the tokens that a name adds to a text."""
    before, after = tokenizer.encode("to")[0], tokenizer.encode(f"to {name}")[0]
    return after[len(before) :] if after[: len(before)] == before else []


def answers(tokenizer: Tokenizer, lexicon: Lexicon) -> tuple[tuple[int, ...], ...]:
    """Return the token of every name, the classes of the output; see `Decoder.answers`.

    Raises:
      ValueError: a name is not one token.
    """
    found = {name: name_ids(tokenizer, name) for name in lexicon.names}
    if wrong := sorted(name for name, ids in found.items() if len(ids) != 1):
        raise ValueError(f"got names {wrong} of several tokens, expected one each; `lexicon_for` keeps those")
    return tuple(tuple(ids) for ids in found.values())


def render(setting: Setting, lexicon: Lexicon) -> list[str]:
    """Write the prompts of a setting.

    Raises:
      ValueError: an index is out of range, or both names are the same.
    """
    return [text for text, _ in _prompts(setting, lexicon)]


def encode(setting: Setting, tokenizer: Tokenizer, lexicon: Lexicon, *, length: int | None = None) -> Encoded:
    """Write and tokenise the prompts of a setting, padded on the left: the network's input."""
    return encode_prompts(tokenizer, render(setting, lexicon), side="left", length=length)


def spans(setting: Setting, lexicon: Lexicon) -> dict[str, list[Span]]:
    """Return where names stand in the prompts, in characters, by the positions' names; `last` is none of them."""
    written = [places for _, places in _prompts(setting, lexicon)]
    slots = {"subject_again": "subject", "first_name": "name0", "second_name": "name1"}
    return {name: [places[slot] for places in written] for name, slot in slots.items()}


def make_banks(seed: int, lexicon: Lexicon, sizes: Mapping[str, int] = SIZES) -> dict[str, FamilyBank]:
    """Draw one bank per role, with equal shares of the families; no two names meet in two banks.

    Args:
      seed: of the draws.
      lexicon: the words.
      sizes: number of pairs by role; four divides them, or the first families have one pair more.

    Raises:
      ValueError: a role is unknown, a bank too small to hold every family, or too few names for so many banks.
    """
    whole("seed", seed, 0)
    if not sizes:
        raise ValueError("got no sizes of banks, expected one or more")
    generator, banks = np.random.default_rng(seed), {}
    for (role, size), pairs in zip(sizes.items(), _shared_pairs(generator, len(lexicon.names), sizes), strict=True):
        whole(f"pairs for {role!r}", size, len(FAMILIES))
        family = np.arange(size) % len(FAMILIES)
        base, source = _drawn(generator, pairs, family, len(lexicon.frames))
        banks[role] = FamilyBank(label_pairs(MODEL, base, source, variables=VARIABLES, role=bank_role(role)), family)
    return banks


def signals(bank: PairBank) -> Float[np.ndarray, "V 2 N"]:
    """Return whether position and token are the base's after an interchange of each variable: +1, or -1."""
    base, source = MODEL.run(bank.base), MODEL.run(bank.source)
    same = {name: np.where(np.asarray(base[name]) == np.asarray(source[name]), 1.0, -1.0) for name in VARIABLES}
    ones = np.ones(bank.size)
    return np.stack([np.stack([same["position"], ones]), np.stack([ones, same["token"]])])


def logit_differences(outputs: Float[np.ndarray, "N C"], bank: PairBank) -> Float[np.ndarray, " N"]:
    """Return logit(b's indirect object) - logit(b's subject) of outputs whose first classes are the names.

    Raises:
      ValueError: other numbers of outputs than of pairs, or fewer classes than names.
    """
    names = 1 + max(int(np.max(bank.base[name])) for name in ("name0", "name1"))
    if np.ndim(outputs) != 2 or np.shape(outputs)[0] != bank.size or np.shape(outputs)[1] < names:
        raise ValueError(
            f"got outputs of shape {np.shape(outputs)}, expected (N, C) with N = {bank.size} pairs and C of at least "
            f"{names}, a logit for each name"
        )
    first, second, rows = np.asarray(bank.base["name0"]), np.asarray(bank.base["name1"]), np.arange(bank.size)
    indirect = np.asarray(MODEL.run(bank.base)["token"])
    outputs = np.asarray(outputs, np.float64)
    return outputs[rows, indirect] - outputs[rows, first + second - indirect]


def linear_model(
    differences: Float[np.ndarray, " N"], position: Float[np.ndarray, " N"], token: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " 3"], float]:
    """Fit beta by least squares; return it and the mean squared error.

    Raises:
      ValueError: other numbers of signals than of differences, none, or one that is not finite.
    """
    sizes = [np.shape(each) for each in (differences, position, token)]
    finite = all(np.isfinite(each).all() for each in (differences, position, token))
    if len(set(sizes)) != 1 or len(sizes[0]) != 1 or not sizes[0][0] or not finite:
        raise ValueError(
            f"got differences and signals of shapes {sizes}, {'' if finite else 'not '}all finite, expected one finite "
            "number of each for every run"
        )
    columns = np.stack([np.ones(len(differences)), position, token], axis=1)
    beta = np.linalg.lstsq(columns, np.asarray(differences, np.float64), rcond=None)[0]
    return beta, float(np.mean((columns @ beta - differences) ** 2))


def solved_shares(right: Bool[np.ndarray, " N"], family: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Return the share of right pairs of each family; NaN of one that is not there.

    Raises:
      ValueError: `right` is not a truth value for each pair.
    """
    right, family = np.asarray(right), np.asarray(family)
    if right.dtype != bool or right.shape != family.shape:
        raise ValueError(
            f"got right of type {right.dtype} and shape {right.shape}, expected truth values of shape {family.shape}"
        )
    rows = [family == index for index in range(len(FAMILIES))]
    return {name: float(right[own].mean()) if own.any() else np.nan for name, own in zip(FAMILIES, rows, strict=True)}


def _shared_pairs(
    generator: np.random.Generator, names: int, sizes: Mapping[str, int]
) -> list[Int[np.ndarray, "pairs 2"]]:
    """Deal all pairs of names out to the banks, by their sizes."""
    every = generator.permutation(np.array(list(itertools.combinations(range(names), 2))))
    ends = np.cumsum(list(sizes.values())) / sum(sizes.values()) * len(every)
    parts = np.split(every, ends[:-1].astype(int))
    if least := [len(part) for part in parts if len(part) < 4]:
        raise ValueError(f"got {names} names, {least[0]} pairs of them for a bank, expected four pairs for each bank")
    return parts


def _drawn(
    generator: np.random.Generator, pairs: Int[np.ndarray, "pairs 2"], family: Int[np.ndarray, " N"], frames: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Draw bases and their sources out of some pairs of names."""
    rows: list[tuple[Sequence[int], Sequence[int]]] = []
    for each in family.tolist():
        found = None
        while found is None:
            found = _pair(generator, pairs, FAMILIES[each], frames)
        rows.append(found)
    base, source = (np.array(side) for side in zip(*rows, strict=True))
    return dict(zip(INPUTS, base.T, strict=True)), dict(zip(INPUTS, source.T, strict=True))


def _pair(
    generator: np.random.Generator, pairs: Int[np.ndarray, "pairs 2"], family: str, frames: int
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Draw a base and a source, or None where the names drawn allow none."""
    indirect, subject = generator.permutation(pairs[generator.integers(len(pairs))]).tolist()
    order, frame, other = generator.integers((2, frames, frames)).tolist()
    base = _row(indirect, subject, order, frame)
    if family == "order":
        return base, _row(subject, indirect, 1 - order, frame)
    if family == "subject":
        partners = pairs[(pairs == indirect).any(axis=1)].sum(axis=1) - indirect
        partners = partners[partners != subject]
        return (base, _row(indirect, int(generator.choice(partners)), order, frame)) if len(partners) else None
    apart = pairs[~np.isin(pairs, (indirect, subject)).any(axis=1)]
    if not len(apart):
        return None
    new, third = generator.permutation(apart[generator.integers(len(apart))]).tolist()
    return base, _row(new, third, order if family == "names" else 1 - order, other)


def _row(indirect: int, subject: int, order: int, frame: int) -> tuple[int, ...]:
    return (indirect, subject, order, frame) if order == 0 else (subject, indirect, order, frame)


def _prompts(setting: Setting, lexicon: Lexicon) -> list[tuple[str, dict[str, Span]]]:
    if missing := [name for name in INPUTS if name not in setting]:
        raise ValueError(f"got a setting without {missing}, expected values of {INPUTS}")
    rows = np.stack([np.asarray(setting[name]) for name in INPUTS], axis=1)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"got a setting of type {rows.dtype}, expected whole numbers")
    limits: Any = [len(lexicon.names), len(lexicon.names), 2, len(lexicon.frames)]
    right = ((rows >= 0) & (rows < limits)).all(axis=1) & (rows[:, 0] != rows[:, 1])
    if not right.all():
        index = int(np.argmin(right))
        raise ValueError(
            f"got {dict(zip(INPUTS, rows[index].tolist(), strict=True))} in example {index}, expected indices below "
            f"{dict(zip(INPUTS, limits, strict=True))} and two different names"
        )
    return [lexicon.prompt(*row) for row in rows.tolist()]
