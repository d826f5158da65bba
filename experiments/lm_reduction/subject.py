"""The language model that is reduced, its texts, and its prompts with indirect objects."""

import ast
import dataclasses
import re
import sysconfig
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from abstraction.causal import PairBank, label_pairs
from abstraction.evaluation import Recorded, record
from abstraction.evaluation.controls import full_state_handles
from abstraction.evaluation.text import text_decoder
from abstraction.interventions.handles import at_one_depth, take_handle
from abstraction.interventions.patching import handle_outputs
from abstraction.models import Decoder, DecoderConfig, Network, Prompts, TokenView, load_decoder, on_mesh, prompts_at
from abstraction.models.generation import Sampling, generate
from abstraction.models.packaged import NAME as SMOLLM2
from abstraction.models.packaged import smollm2
from abstraction.models.token_views import window_of
from abstraction.tasks import ioi
from abstraction.tasks.prompts import Span, Tokenizer, last_positions, load_tokenizer
from abstraction.typing import Setting
from experiments.lm_reduction.options import TINY, LmReduction, Texts

TAP = "block_output"
_PIECE = re.compile(r"\w+|\n|[^\w\s]")
_SHORTEST = 200
"""Characters below which a docstring says little."""
_AT_ONCE = 32
"""Rows that are written, and prompts that are answered, at once."""


@dataclasses.dataclass(frozen=True)
class HashedWords:
    """A tokenizer of any text for networks that have learned none: one id per word, by its checksum."""

    size: int = 509

    def encode(self, text: str) -> tuple[list[int], list[Span]]:
        """Split a text into words."""
        found = list(_PIECE.finditer(text))
        return [zlib.crc32(match[0].encode()) % self.size for match in found], [match.span() for match in found]

    def decode(self, ids: Sequence[int]) -> str:
        """Name the ids; the words are not kept."""
        return " ".join(f"<{index}>" for index in ids)


class Subject(NamedTuple):
    """A language model and how it is spoken to.

    Attributes:
      name: for people and records.
      network: a decoder of the whole vocabulary.
      tokenizer: makes tokens of text.
    """

    name: str
    network: Network
    tokenizer: Tokenizer


def load_subject(model: str | None, mesh: Mesh | None = None) -> Subject:
    """Load a network, or draw the random one.

    Args:
      model: which.
      mesh: where its weights go.

    Raises:
      ValueError: there is none of this name, or it is of an unknown kind.
      ImportError: the package of the default network is not installed; how to get it.
    """
    if model == TINY:
        words = HashedWords()
        config = DecoderConfig(
            vocabulary=words.size, width=24, depth=3, heads=4, kv_heads=2, head_size=6, hidden=48, tied=False
        )
        decoder = Decoder(config)
        network = Network(decoder, decoder.init(jax.random.key(0)))
        return Subject(TINY, network if mesh is None else on_mesh(network, mesh), words)
    source = smollm2() if model is None else model
    return Subject(model or SMOLLM2, load_decoder(source, mesh=mesh), load_tokenizer(source))


def python_rows(subject: Subject, texts: Texts, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of the license and docstrings of some modules of Python's library, and of others, held out.

    Every second module, by the checksum of its name, is for tests alone: whatever the seed, none is in both.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = sorted(path for path in library.glob("*.py") if path.stem != "this")
    order = np.random.default_rng([seed, 1]).permutation(len(modules))
    apart = [zlib.crc32(path.name.encode()) % 2 == 1 for path in modules]
    calibration = [_license(library), *(_docstrings(modules[i]) for i in order if not apart[i])]
    held_out = [_docstrings(path) for path, out in zip(modules, apart, strict=True) if out]
    return tuple(  # pyright: ignore[reportReturnType]
        _rows(subject, parts, count, texts.length)
        for parts, count in ((calibration, texts.calibration), (held_out, texts.test))
    )


def own_rows(subject: Subject, rows: int, length: int, key: jax.Array) -> np.ndarray:
    """Let the network write rows of text, drawn at temperature 1 after one word of a few."""
    openings = [subject.tokenizer.encode(word)[0][:1] for word in ("The", "In", "A", "When", "To", "This", "How", "It")]
    written = []
    for step, start in enumerate(range(0, rows, _AT_ONCE)):
        count = min(_AT_ONCE, rows - start)
        first = np.array([openings[index % len(openings)] for index in range(_AT_ONCE)], np.int32)
        sampling = Sampling(1.0, jax.random.fold_in(key, step))
        tokens = np.asarray(generate(subject.network, first, length - 1, sampling=sampling).tokens)
        written.append(np.concatenate([first, tokens], axis=1)[:count])
    return np.concatenate(written)


class Indirect(NamedTuple):
    """Pairs of prompts with an indirect object.

    Attributes:
      bank: the pairs; in each the source's answer is another name than the base's.
      lexicon: writes them.
      length: tokens of the longest prompt.
    """

    bank: PairBank
    lexicon: ioi.Lexicon
    length: int


def indirect_objects(subject: Subject, pairs: int, seed: int) -> Indirect:
    """Draw pairs of prompts whose sources have another answer."""
    lexicon = ioi.lexicon_for(subject.tokenizer)
    drawn = ioi.make_banks(seed, lexicon, {"test": 4 * pairs})["test"]
    chosen = np.flatnonzero(np.isin(drawn.family, [ioi.FAMILIES.index(name) for name in ("names", "order_names")]))
    sides = (drawn.bank.base, drawn.bank.source)
    base, source = ({name: np.asarray(values)[chosen[:pairs]] for name, values in side.items()} for side in sides)
    bank = label_pairs(ioi.MODEL, base, source, variables=ioi.VARIABLES, role="test")
    length = max(ioi.encode(side, subject.tokenizer, lexicon).tokens.shape[1] for side in (base, source))
    return Indirect(bank, lexicon, length)


def prompt_rows(subject: Subject, config: LmReduction, seed: int) -> np.ndarray:
    """Return prompts with indirect objects, about as many tokens of them as the other calibrations have."""
    lexicon = ioi.lexicon_for(subject.tokenizer)
    count = config.texts.calibration * config.texts.length // 16
    bank = ioi.make_banks(seed + 1, lexicon, {"fit": max(count, 8)})["fit"].bank
    tokens = ioi.encode(bank.base, subject.tokenizer, lexicon).tokens
    # Text is padded on the right.
    return np.stack([np.concatenate([row[row >= 0], row[row < 0]]) for row in np.asarray(tokens)])


def naming(network: Network, subject: Subject, indirect: Indirect) -> Network:
    """Let a decoder of the whole vocabulary answer a name, or the best other token."""
    answers = ioi.answers(subject.tokenizer, indirect.lexicon)
    return dataclasses.replace(network, model=dataclasses.replace(text_decoder(network), answers=answers, rest=True))


def recorded(network: Network, subject: Subject, indirect: Indirect) -> tuple[Network, Recorded]:
    """Record the residual stream of the last token after every block, in the pairs of prompts.

    Returns:
      The network seen at that token, answering names, and what was recorded.
    """

    def encode(setting: Setting) -> Prompts:
        encoded = ioi.encode(setting, subject.tokenizer, indirect.lexicon, length=indirect.length)
        return prompts_at(encoded.tokens, last_positions(encoded))

    named = naming(network, subject, indirect)
    window = window_of(encode(indirect.bank.base), encode(indirect.bank.source))
    view = dataclasses.replace(named, model=TokenView(named.model, window=window, batch=_AT_ONCE))  # pyright: ignore[reportArgumentType]
    return view, record(view, encode, indirect.bank, tap=TAP)


def swapped(view: Network, pairs: Recorded, blocks: Sequence[int] | None = None) -> np.ndarray:
    """Return the share of pairs that say the source's name once the last token's stream after a block is the source's.

    Args:
      view: the network seen at the last token.
      pairs: recorded in it.
      blocks: after which; by default each of them.
    """
    handles = at_one_depth(full_state_handles(view.taps[TAP]))
    chosen = handles if blocks is None else take_handle(handles, np.asarray(blocks))
    outputs = np.asarray(handle_outputs(view, pairs.runs, chosen))
    return (outputs.argmax(-1) == np.asarray(ioi.MODEL.run(pairs.bank.source)["token"])).mean(-1)


def _rows(subject: Subject, parts: Sequence[str], count: int, length: int) -> np.ndarray:
    """Tokenise texts, each after the other, and cut them into rows."""
    tokens: list[int] = []
    for part in parts:
        tokens += subject.tokenizer.encode(part)[0] if part else []
        if len(tokens) >= count * length:
            return np.array(tokens[: count * length], np.int32).reshape(count, length)
    raise ValueError(f"got {len(tokens)} tokens of Python's library, expected {count * length}; ask for fewer rows")


def _docstrings(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if text and len(text) >= _SHORTEST)


def _license(library: Path) -> str:
    path = library / "LICENSE.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else ""
