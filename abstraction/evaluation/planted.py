"""A decoder that solves the MCQA task by weights set by hand, with the pointer where we put it.

All of it happens at the last token, in three blocks of attention, without MLPs:

    block 0   look at the colour's slot and at the question's noun    Q <- e(color),   and the noun's features
    block 1   find Q among the choices, read which one that is        P <- e(i),       choice_i = color
    block 2   look at the label of choice P, read its letter          O <- e(label_P)

e is one-hot, and each of Q, P, O has directions of its own. Every feature is written with norm 1, so that the RMS norms
only scale, by what is known; the whole stream is turned by a seeded rotation, which commutes with them. So after block
1 P is in 4 known directions, no native coordinate says much about it, and what is beside it there (colour, noun)
differs between prompts without mattering.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from abstraction.interventions.bases import random_frames
from abstraction.models import Decoder, DecoderConfig, Network
from abstraction.tasks import mcqa
from abstraction.tasks.mcqa import CHOICES, LABELS, LEXICON, OPTIONS
from abstraction.tasks.prompts import WordTokenizer, encode_prompts, last_positions, span_positions
from abstraction.tasks.symbols import LETTERS, symbol_classes
from abstraction.typing import Params

PARTS = {
    "color": len(LEXICON.colors),  # of a token
    "letter": len(LETTERS),  # of a token
    "noun": 8,  # of a token, and of the question's at the last one
    "word": 1,  # any other token
    "slot": 1,  # position of the colour
    "subject": 1,  # position of the question's noun
    "last": 1,  # position of the last token
    "choice": OPTIONS,  # position of each choice
    "label": OPTIONS,  # position of each label
    "asked": len(LEXICON.colors),  # Q
    "pointer": OPTIONS,  # P
    "answer": len(LETTERS),  # O
}
"""Features of the stream before it is turned, in order, and their sizes."""
WIDTH = sum(PARTS.values())
HEAD = len(LETTERS)
POINTER_BLOCK, SYMBOL_BLOCK = 1, 2
_SHARP, _SOFT, _GAIN = 16.0, 8.0, 12.0  # scores of a look-up; of the pointer's, which a search has to descend; logits
_READ = 2.0  # |h|^2 where it is read: a token's feature and a position's
_AT_LAST = (2.0, 4.0, 5.0, 6.0)  # |h|^2 at the last token before each block and at the end


class Plant(NamedTuple):
    """What is known of a planted network.

    Attributes:
      pointer_block: after this block the pointer is in the stream of the last token, and before it nowhere.
      pointer_basis: its directions there, orthonormal.
      symbol_block: after this block the answer is there too.
    """

    pointer_block: int
    pointer_basis: Float[np.ndarray, "D options"]
    symbol_block: int


def planted_network(seed: int) -> tuple[Network, WordTokenizer, Plant]:
    """Build the network; the seed draws the rotation of its stream and the features of the nouns.

    Returns:
      A decoder, whose outputs are the letters and the best other token; its tokenizer; the plant.
    """
    tokenizer = WordTokenizer(mcqa.vocabulary())
    rotation_key, noun_key = jax.random.split(jax.random.key(seed))
    positions = _positions(tokenizer)
    config = DecoderConfig(
        vocabulary=tokenizer.size,
        width=WIDTH,
        depth=3,
        heads=2,
        kv_heads=2,
        head_size=HEAD,
        hidden=1,
        learned_positions=positions["last"][0] + 1,
        query_scale=1.0,
        tied=False,
    )
    decoder = Decoder(config, symbol_classes(tokenizer), rest=True)
    drawn = decoder.init(jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), drawn)
    for norm in (params["blocks"]["attention_norm"], params["blocks"]["mlp_norm"], params["final_norm"]):
        norm["scale"][:] = 1.0
    _embed(params, tokenizer, positions, random_frames(noun_key, (len(LEXICON.nouns),), PARTS["noun"], 1)[..., 0])
    _attend(params["blocks"])
    params["unembedding"][: len(LETTERS), _part("answer")] = _GAIN * _unit(_AT_LAST[-1]) * np.eye(len(LETTERS))
    rotation = np.asarray(random_frames(rotation_key, (), WIDTH), np.float64)
    basis = rotation[_part("pointer")].T.astype(np.float32)
    return Network(decoder, _turned(params, rotation)), tokenizer, Plant(POINTER_BLOCK, basis, SYMBOL_BLOCK)


def _positions(tokenizer: WordTokenizer) -> dict[str, list[int]]:
    """Find where the template puts what is looked at; every word of it is one token, so that all prompts agree."""
    text, spans = LEXICON.prompt(0, 0, *range(OPTIONS), *range(OPTIONS))
    encoded = encode_prompts(tokenizer, [text])
    at = lambda *slots: [int(span_positions(encoded, [spans[slot]])[0]) for slot in slots]
    return {
        "slot": at("color"),
        "subject": at("subject"),
        "last": last_positions(encoded).tolist(),
        "choice": at(*CHOICES),
        "label": at(*LABELS),
    }


def _embed(params: Any, tokenizer: WordTokenizer, positions: dict[str, list[int]], nouns: np.ndarray) -> None:
    """Give tokens and positions their features."""
    embedding = params["embedding"]
    embedding[:, _part("word")] = 1.0
    for part, words, features in (
        ("color", LEXICON.colors, np.eye(len(LEXICON.colors))),
        ("letter", LETTERS, np.eye(len(LETTERS))),
        ("noun", LEXICON.nouns, nouns),
    ):
        rows = [tokenizer.words.index(word) for word in words]
        embedding[rows, _part("word")] = 0.0
        embedding[rows, _part(part)] = features
    for part, places in positions.items():
        params["positions"][places, _part(part)] = np.eye(len(places))


def _attend(blocks: Any) -> None:
    """Set the attention of the three blocks; a head that is not named writes nothing."""
    for head, (slot, copied, written) in enumerate((("slot", "color", "asked"), ("subject", "noun", "noun"))):
        _match(blocks, 0, head, "last", slot, _SHARP)
        _copy(blocks, 0, head, copied, written)
    _match(blocks, 1, 0, "asked", "color", _SHARP)
    # The colour's own slot has that colour too; this only the choices have.
    blocks["query"]["kernel"][1, _part("last"), PARTS["asked"]] = _SHARP * _unit(_AT_LAST[1])
    blocks["key"]["kernel"][1, _part("choice"), PARTS["asked"]] = _unit(_READ)
    _copy(blocks, 1, 0, "choice", "pointer")
    _match(blocks, 2, 0, "pointer", "label", _SOFT)
    _copy(blocks, 2, 0, "letter", "answer")


def _match(blocks: Any, block: int, head: int, asking: str, asked: str, score: float) -> None:
    """Let a head give `score` to tokens whose feature `asked` is what the last token has as `asking`."""
    columns, eye = slice(head * HEAD, head * HEAD + PARTS[asking]), np.eye(PARTS[asking])
    blocks["query"]["kernel"][block, _part(asking), columns] = score * _unit(_AT_LAST[block]) * eye
    blocks["key"]["kernel"][block, _part(asked), columns] = _unit(_READ) * eye


def _copy(blocks: Any, block: int, head: int, read: str, written: str) -> None:
    """Let a head copy the features `read`, where it looks, to `written`."""
    columns, eye = slice(head * HEAD, head * HEAD + PARTS[read]), np.eye(PARTS[read])
    blocks["value"]["kernel"][block, _part(read), columns] = _unit(_READ) * eye
    blocks["output"]["kernel"][block, columns, _part(written)] = eye


def _unit(squared: float) -> float:
    """Return the factor by which a normed stream of this |h|^2 has its features back."""
    return (squared / WIDTH) ** 0.5


def _part(name: str) -> slice:
    names = list(PARTS)
    start = sum(PARTS[part] for part in names[: names.index(name)])
    return slice(start, start + PARTS[name])


def _turned(params: Any, rotation: Float[np.ndarray, "D D"]) -> Params:
    """Turn the stream, h to h R: tables and what is written by R, what is read by its transpose."""
    blocks = params["blocks"]
    read = {name: {"kernel": rotation.T @ blocks[name]["kernel"]} for name in ("query", "key", "value", "gate", "up")}
    written = {name: {"kernel": blocks[name]["kernel"] @ rotation} for name in ("output", "down")}
    tables = {name: params[name] @ rotation for name in ("embedding", "positions", "unembedding")}
    turned = {**params, **tables, "blocks": {**blocks, **read, **written}}
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), turned)
