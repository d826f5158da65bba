"""Multiple choice about colours (CopyColors): does a network point at an answer and then read its letter?

    P = the i with choice_i = color,   A = label_P                                    (PLOT, MCQA benchmark)

    The pen is red. What color is the pen?
    A. blue
    B. red
    C. gray
    D. black
    Answer:

The variables are the answer pointer P and the answer A, a letter; A is also the output. For a base b and a source s an
interchange of P has the label b.label[P(s)], one of A has the label A(s). Sources come in three families, which differ
from their base in the order of the choices, in the letters, or in both:

| family | pointer moves | letters | label for `answer_pointer` | label for `answer` |
|---|---|---|---|---|
| answerPosition | yes | the base's | active, b.label[P(s)] | active, the same letter |
| randomLetter | no | others | invariant, A(b) | active, A(s) |
| answerPosition_randomLetter | yes | others | active, b.label[P(s)] | active, A(s), another letter |

"Others" are letters that the base does not offer at all, so A(s) is then never one of the base's options. Every pair is
active for `answer`, a third of them invariant for `answer_pointer`, and the last two families tell the variables apart.
All pairs count for both; the halves are in `bank.active`.

A *group* is a base with its sources. Groups are never split between banks, and no prompt occurs in two groups.
"""

import dataclasses
import re
from collections.abc import Mapping
from string import Formatter
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int

from abstraction.causal import PairBank, causal_model, label_pairs
from abstraction.causal.pairs import Role
from abstraction.checks import is_whole, whole
from abstraction.tasks.prompts import Encoded, Span, Tokenizer, encode_prompts
from abstraction.tasks.symbols import LETTERS
from abstraction.typing import Setting

OPTIONS = 4
CHOICES = tuple(f"choice{i}" for i in range(OPTIONS))
LABELS = tuple(f"label{i}" for i in range(OPTIONS))
INPUTS = ("noun", "color", *CHOICES, *LABELS)
"""Indices: of the noun and the colours in a lexicon, of the labels in the alphabet. The noun is only rendered."""
VARIABLES = ("answer_pointer", "answer")
FAMILIES = ("answerPosition", "randomLetter", "answerPosition_randomLetter")
SIZES = MappingProxyType({"fit": 200, "calibration": 200, "test": 200})


def _pointer(color: Any, choice0: Any, choice1: Any, choice2: Any, choice3: Any) -> Any:
    return (choice1 == color) + 2 * (choice2 == color) + 3 * (choice3 == color)


def _answer(answer_pointer: Any, label0: Any, label1: Any, label2: Any, label3: Any) -> Any:
    return sum((answer_pointer == i) * label for i, label in enumerate((label0, label1, label2, label3)))


MODEL = causal_model(INPUTS, "answer", answer_pointer=_pointer, answer=_answer)

TEMPLATE = (
    "The {noun} is {color}. What color is the {subject}?\n"
    "{label0}. {choice0}\n{label1}. {choice1}\n{label2}. {choice2}\n{label3}. {choice3}\nAnswer:"
)


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words of the prompts.

    Attributes:
      nouns: what is asked about.
      colors: four or more colours.
      templates: one for all nouns, or one for each. Slots: `{subject}`, the noun in the question, and `{label0}` to
        `{label3}`, which must all occur; `{noun}`, the noun elsewhere, `{color}`, `{choice0}` to `{choice3}`.

    Raises:
      ValueError: too few words, a word twice, or a template without its slots.
    """

    nouns: tuple[str, ...]
    colors: tuple[str, ...]
    templates: tuple[str, ...] = (TEMPLATE,)

    def __post_init__(self) -> None:
        if len(set(self.colors)) != len(self.colors) or len(self.colors) < OPTIONS or not self.nouns:
            raise ValueError(
                f"got {len(self.nouns)} nouns and colours {self.colors}, expected a noun and {OPTIONS} distinct colours"
            )
        if len(self.templates) not in (1, len(self.nouns)):
            raise ValueError(f"got {len(self.templates)} templates, expected one, or one for each noun")
        written = self.nouns if len(self.templates) == 1 else list(zip(self.nouns, self.templates, strict=True))
        if len(set(written)) != len(written):
            raise ValueError(f"got nouns {self.nouns}, expected none twice in the same template")
        for template in self.templates:
            slots = [slot for _, slot, _, _ in Formatter().parse(template) if slot is not None]
            needed = ("subject", *LABELS)
            if any(slots.count(name) != 1 for name in needed) or set(slots) - {"noun", "subject", *INPUTS}:
                raise ValueError(f"got slots {slots}, expected each of {needed} once, others among {INPUTS}")

    def prompt(self, noun: int, color: int, *rest: int) -> tuple[str, dict[str, Span]]:
        """Write one prompt, given the input variables in order, and say which characters fill each slot."""
        words = {"noun": self.nouns[noun], "subject": self.nouns[noun], "color": self.colors[color]}
        words |= {name: self.colors[index] for name, index in zip(CHOICES, rest[:OPTIONS], strict=True)}
        words |= {name: LETTERS[index] for name, index in zip(LABELS, rest[OPTIONS:], strict=True)}
        text, spans = "", {}
        for literal, slot, _, _ in Formatter().parse(self.templates[noun if len(self.templates) > 1 else 0]):
            text += literal
            if slot is not None:
                spans[slot] = (len(text), len(text) + len(words[slot]))
                text += words[slot]
        return text, spans


_NOUNS = """
apron bag basket bell belt blanket bottle bowl box brush bucket button candle cap car chair clock coat cup curtain
cushion desk door drum fan fence flag folder fork glove guitar hammer hat helmet jacket jar kettle kite ladder lamp mug
notebook pen pillow plate ribbon rug scarf shelf shirt sofa table tent towel umbrella vase wallet whistle
"""
_COLORS = "red blue gray black white green yellow brown pink purple teal beige"
LEXICON = Lexicon(nouns=tuple(_NOUNS.split()), colors=tuple(_COLORS.split()))


class FamilyBank(NamedTuple):
    """N pairs, each of a family and of a group.

    Attributes:
      bank: the pairs and their labels.
      family: index into `FAMILIES`, `[N]`.
      group: which base question a pair belongs to, `[N]`; numbers are unique across the banks of one call.
    """

    bank: PairBank
    family: Int[np.ndarray, " N"]
    group: Int[np.ndarray, " N"]


def render(setting: Setting, lexicon: Lexicon = LEXICON) -> list[str]:
    """Write the prompts of a setting.

    Raises:
      ValueError: an index is out of range, a prompt offers a letter twice, or it offers its colour not exactly once.
    """
    return [text for text, _ in _prompts(setting, lexicon)]


def spans(setting: Setting, lexicon: Lexicon = LEXICON) -> dict[str, list[Span]]:
    """Return where things stand in the prompts, in characters, as they were written there.

    Returns:
      `subject`: the noun in the question; `correct_symbol`: the letter in front of the correct choice.
    """
    pointers = np.asarray(MODEL.run(setting)["answer_pointer"])
    written = [places for _, places in _prompts(setting, lexicon)]
    return {
        "subject": [places["subject"] for places in written],
        "correct_symbol": [places[f"label{pointer}"] for places, pointer in zip(written, pointers, strict=True)],
    }


def encode(
    setting: Setting,
    tokenizer: Tokenizer,
    lexicon: Lexicon = LEXICON,
    *,
    side: Literal["left", "right"] = "left",
    length: int | None = None,
) -> Encoded:
    """Write and tokenise the prompts of a setting: the network's input."""
    return encode_prompts(tokenizer, render(setting, lexicon), side=side, length=length)


def vocabulary(lexicon: Lexicon = LEXICON) -> tuple[str, ...]:
    """Return the words of a `WordTokenizer` for every prompt: the alphabet, then the others in sorted order."""
    literals = [literal for template in lexicon.templates for literal, _, _, _ in Formatter().parse(template)]
    words = re.findall(r"\w+|\n|[^\w\s]", " ".join([*literals, *lexicon.nouns, *lexicon.colors]))
    return (*LETTERS, *sorted(set(words) - set(LETTERS)))


def sample_settings(generator: np.random.Generator, count: int, lexicon: Lexicon = LEXICON) -> dict[str, np.ndarray]:
    """Draw base questions: a noun, four of the colours, one of them the noun's, and four of the letters.

    Raises:
      ValueError: fewer than one question.
    """
    whole("count", count, 1)
    choices = generator.random((count, len(lexicon.colors))).argsort(axis=1)[:, :OPTIONS]
    pointer = generator.integers(0, OPTIONS, count)
    noun = generator.integers(0, len(lexicon.nouns), count)
    letters = _letters(generator, np.zeros((count, 0), int))
    return _setting(noun, choices[np.arange(count), pointer], choices, letters)


def counterfactual(generator: np.random.Generator, base: Setting, family: str) -> dict[str, np.ndarray]:
    """Draw one source for every base.

    Raises:
      ValueError: the family is unknown.
    """
    if family not in FAMILIES:
        raise ValueError(f"got family {family!r}, expected one of {FAMILIES}")
    choices = np.stack([np.asarray(base[name]) for name in CHOICES], axis=1)
    letters = np.stack([np.asarray(base[name]) for name in LABELS], axis=1)
    if "answerPosition" in family:
        choices = _moved(generator, choices, np.asarray(MODEL.run(base)["answer_pointer"]))
    if "randomLetter" in family:
        letters = _letters(generator, letters)
    return _setting(np.asarray(base["noun"]), np.asarray(base["color"]), choices, letters)


def make_banks(seed: int, sizes: Mapping[str, int] = SIZES, lexicon: Lexicon = LEXICON) -> dict[str, FamilyBank]:
    """Draw one bank per role, with equal shares of the families and no prompt in common.

    Args:
      seed: of the draws.
      sizes: number of pairs by role; a number that three does not divide gives the first families one pair more.
      lexicon: the words.

    Raises:
      ValueError: a role is unknown, or a bank is too small to hold every family.
    """
    whole("seed", seed, 0)
    check_sizes(sizes)
    generator = np.random.default_rng(seed)
    counts = {role: -(-size // len(FAMILIES)) for role, size in sizes.items()}
    base, sources = _groups(generator, sum(counts.values()), lexicon)
    banks, first = {}, 0
    for role, size in sizes.items():
        group, family = np.divmod(np.arange(size), len(FAMILIES))
        group = group + first
        pair = {name: np.stack([source[name] for source in sources])[family, group] for name in INPUTS}
        bank = label_pairs(MODEL, {n: base[n][group] for n in INPUTS}, pair, variables=VARIABLES, role=bank_role(role))
        banks[role] = FamilyBank(bank, family, group)
        first += counts[role]
    return banks


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse sizes of banks that cannot be.

    Raises:
      ValueError: there is no role, one is unknown, or a bank is too small to hold every family.
    """
    if not sizes:
        raise ValueError(f"got no sizes of banks, expected some of {get_args(Role)}")
    for role, size in sizes.items():
        bank_role(role)
        if not is_whole(size) or size < len(FAMILIES):
            raise ValueError(f"got {size} pairs for {role!r}, expected {len(FAMILIES)} or more, one of each family")


def select_pairs(family_bank: FamilyBank, mask: Bool[np.ndarray, " N"], size: int | None = None) -> FamilyBank:
    """Keep some pairs: those that the network answers rightly on base and source.

    Args:
      family_bank: N pairs.
      mask: which to keep.
      size: keep only so many of them, the first of each family in equal shares.

    Raises:
      ValueError: no pair is left, a family is gone, or fewer than its share of `size` is left of one.
    """
    mask, count = np.asarray(mask), family_bank.bank.size
    if mask.shape != (count,) or mask.dtype != bool:
        raise ValueError(f"got a mask of shape {mask.shape} and type {mask.dtype}, expected {(count,)} and bool")
    total = int(mask.sum())
    present = np.unique(family_bank.family)
    kept = {int(family): np.flatnonzero(mask & (family_bank.family == family)) for family in present}
    survived = ", ".join(f"{FAMILIES[f]} {len(rows)} of {(family_bank.family == f).sum()}" for f, rows in kept.items())
    if not all(len(rows) for rows in kept.values()):
        raise ValueError(f"got {total} of {count} pairs left ({survived}), expected some of every family")
    if size is not None:
        whole("size", size, len(kept))
        for place, family in enumerate(kept):
            share = size // len(kept) + (place < size % len(kept))
            if len(kept[family]) < share:
                raise ValueError(f"got {total} of {count} pairs left ({survived}), expected {share} of every family")
            kept[family] = kept[family][:share]
    rows = np.sort(np.concatenate(list(kept.values())))
    bank = family_bank.bank
    chosen = dataclasses.replace(
        bank,
        base={name: values[rows] for name, values in bank.base.items()},
        source={name: values[rows] for name, values in bank.source.items()},
        factual=bank.factual[rows],
        labels=bank.labels[:, rows],
        eligible=bank.eligible[:, rows],
    )
    return FamilyBank(chosen, family_bank.family[rows], family_bank.group[rows])


def _groups(
    generator: np.random.Generator, count: int, lexicon: Lexicon
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Draw bases and, for each family, their sources, such that no prompt occurs in two groups."""
    drawn = count + count // 10 + 10
    base = sample_settings(generator, drawn, lexicon)
    sources = [counterfactual(generator, base, family) for family in FAMILIES]
    table = np.concatenate([np.stack(list(setting.values()), axis=1) for setting in (base, *sources)])
    prompt = np.unique(table, axis=0, return_inverse=True)[1].reshape(1 + len(FAMILIES), drawn)
    first = np.full(prompt.max() + 1, drawn)
    np.minimum.at(first, prompt, np.broadcast_to(np.arange(drawn), prompt.shape))
    fresh = np.flatnonzero((first[prompt] == np.arange(drawn)).all(axis=0))[:count]
    if len(fresh) < count:
        raise ValueError(
            f"got {len(fresh)} base questions without a repetition, expected {count}: the lexicon is small"
        )
    keep = lambda setting: {name: values[fresh] for name, values in setting.items()}
    return keep(base), [keep(source) for source in sources]


def _moved(
    generator: np.random.Generator, choices: Int[np.ndarray, "N options"], pointer: Int[np.ndarray, " N"]
) -> Int[np.ndarray, "N options"]:
    """Put the correct choice into another place and the others, in random order, into the places left."""
    rows = np.arange(len(choices))
    place = (pointer + generator.integers(1, OPTIONS, len(choices))) % OPTIONS
    priority = generator.random(choices.shape)
    priority[rows, pointer] = -1.0
    correct_first = priority.argsort(axis=1)
    place_first = (np.arange(OPTIONS) != place[:, None]).argsort(axis=1, kind="stable")
    moved = np.empty_like(choices)
    moved[rows[:, None], place_first] = np.take_along_axis(choices, correct_first, axis=1)
    return moved


def _letters(generator: np.random.Generator, taken: Int[np.ndarray, "N taken"]) -> Int[np.ndarray, "N options"]:
    """Draw different letters, none of those taken."""
    priority = generator.random((len(taken), len(LETTERS)))
    np.put_along_axis(priority, taken, 2.0, axis=1)
    return priority.argsort(axis=1)[:, :OPTIONS]


def _setting(noun: np.ndarray, color: np.ndarray, choices: np.ndarray, letters: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(INPUTS, (noun, color, *choices.T, *letters.T), strict=True))


def _prompts(setting: Setting, lexicon: Lexicon) -> list[tuple[str, dict[str, Span]]]:
    if missing := [name for name in INPUTS if name not in setting]:
        raise ValueError(f"got a setting without {missing}, expected values of {INPUTS}")
    rows = np.stack([np.asarray(setting[name]) for name in INPUTS], axis=1)
    if not np.issubdtype(rows.dtype, np.integer):
        raise ValueError(f"got a setting of type {rows.dtype}, expected whole numbers")
    limits = [len(lexicon.nouns), *[len(lexicon.colors)] * (1 + OPTIONS), *[len(LETTERS)] * OPTIONS]
    choices, letters = rows[:, 2 : 2 + OPTIONS], np.sort(rows[:, 2 + OPTIONS :], axis=1)
    right = ((rows >= 0) & (rows < limits)).all(axis=1)
    right &= (choices == rows[:, 1:2]).sum(axis=1) == 1
    right &= (np.diff(letters, axis=1) > 0).all(axis=1)
    if not right.all():
        index = int(np.argmin(right))
        raise ValueError(
            f"got {dict(zip(INPUTS, rows[index].tolist(), strict=True))} in example {index}, expected indices below "
            f"{dict(zip(INPUTS, limits, strict=True))}, the colour among the choices once and different letters"
        )
    return [lexicon.prompt(*row) for row in rows.tolist()]


def bank_role(name: str) -> Role:
    """Return the role that a bank is named after.

    Raises:
      ValueError: no role has that name.
    """
    for role in get_args(Role):
        if name == role:
            return role
    raise ValueError(f"got a bank named {name!r}, expected one of {get_args(Role)}")
