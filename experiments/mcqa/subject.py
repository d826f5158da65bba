"""What an MCQA run is about: a network with its tokenizer, pairs it answers, and their recordings at one token."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Classes, Readout, Recorded
from abstraction.evaluation.planted import planted_network
from abstraction.evaluation.recording import record_together
from abstraction.interventions import factual_outputs, state_sites
from abstraction.localization import Signature
from abstraction.models import Decoder, Network, Prompts, TokenView, in_precision, load_decoder, on_mesh, prompts_at
from abstraction.models.token_views import window_of
from abstraction.models.weights import load_config
from abstraction.sharding import on_host
from abstraction.tasks import mcqa, prompts, symbols
from abstraction.tasks.copycolors import banks_from_rows, load_hub, read_rows
from abstraction.tasks.mcqa import FAMILIES, FamilyBank, Lexicon
from abstraction.tasks.prompts import Encoded, Tokenizer
from abstraction.typing import Setting
from experiments.harness.methods import Bench
from experiments.mcqa.cost import Shape
from experiments.mcqa.network import embedded_network
from experiments.mcqa.options import Mcqa, McqaBanks, NetworkOptions, Position

TAP = "block_output"
ROLES = ("fit", "calibration", "test")
LETTERS = len(symbols.LETTERS)
READOUTS: dict[str, Readout] = {"strict": CLASSES, "letters": Classes(LETTERS)}


class Subject(NamedTuple):
    """A network and how it is spoken to.

    Attributes:
      name: for people and records.
      network: a decoder whose outputs are the 26 letters and the best of all other tokens.
      tokenizer: makes tokens of text.
    """

    name: str
    network: Network
    tokenizer: Tokenizer

    @property
    def decoder(self) -> Decoder:
        """The network's model."""
        if not isinstance(self.network.model, Decoder):
            raise ValueError(f"got a network of {type(self.network.model).__name__}, expected a decoder")
        return self.network.model


class Questions(NamedTuple):
    """Banks of pairs by role, the words they are written with, and what is known of how they were made.

    Attributes:
      banks: `fit`, `calibration`, `test`.
      lexicon: writes their prompts.
      length: tokens of the longest prompt.
      accuracy: share of all made pairs whose two prompts the network answers.
    """

    banks: dict[str, FamilyBank]
    lexicon: Lexicon
    length: int
    accuracy: float


def load_subject(options: NetworkOptions, mesh: Mesh | None = None) -> Subject:
    """Load a network, or make the planted one.

    Args:
      options: which.
      mesh: where its weights go.

    Raises:
      ValueError: there is no such model, it is of an unknown kind, or its tokens cannot tell letters apart.
    """
    if options.model is None:
        made = embedded_network() if options.kind == "embedded" else planted_network(0)[:2]
        network = made[0] if options.dtype is None else in_precision(made[0], options.dtype)
        return Subject(options.kind, network if mesh is None else on_mesh(network, mesh), made[1])
    tokenizer = prompts.load_tokenizer(options.model, revision=options.revision)
    answers = symbols.symbol_classes(tokenizer)
    network = load_decoder(
        options.model, revision=options.revision, dtype=options.dtype, answers=answers, rest=True, mesh=mesh
    )
    return Subject(options.model, network, tokenizer)


def load_shape(config: Mcqa) -> Shape:
    """Read what the cost of a run depends on, without the weights of a large model.

    Raises:
      ValueError: as `load_subject`.
    """
    options = config.network
    if options.model is None:
        subject = load_subject(options)
        decoder, tokenizer = subject.decoder.config, subject.tokenizer
    else:
        decoder = load_config(options.model, revision=options.revision, dtype=options.dtype)
        tokenizer = prompts.load_tokenizer(options.model, revision=options.revision)
    setting = mcqa.sample_settings(np.random.default_rng(0), 64)
    encoded = mcqa.encode(setting, tokenizer)
    at = prompts_at(encoded.tokens, token_positions(encoded, setting, mcqa.LEXICON, config.position))
    return Shape(decoder, encoded.tokens.shape[1], window_of(at))


def make_questions(options: McqaBanks, subject: Subject, seed: int) -> Questions:
    """Draw pairs of which no question is in two banks, and keep those whose prompts the network answers.

    Raises:
      ValueError: the network answers too few of them.
    """
    sizes = {name: getattr(options, name) for name in ROLES}
    drawn = {name: -(-int(size * options.spare) // len(FAMILIES)) * len(FAMILIES) for name, size in sizes.items()}
    if options.data is None:
        made, lexicon = mcqa.make_banks(seed, drawn), mcqa.LEXICON
    else:
        hub = "/" in options.data and not options.data.endswith((".json", ".jsonl", ".parquet"))
        rows = load_hub(options.data, options.data_config) if hub else read_rows(options.data)
        made, lexicon = banks_from_rows(rows, seed, drawn)
    length = max(_encode(subject, lexicon, side, None).tokens.shape[1] for side in _sides(made))
    banks, right, count = {}, 0, 0
    for name, bank in made.items():
        solved = _solved(subject, lexicon, bank.bank, length)
        right, count = right + int(solved.sum()), count + len(solved)
        banks[name] = mcqa.select_pairs(bank, solved, size=sizes[name])
    return Questions(banks, lexicon, length, right / count)


def make_bench(subject: Subject, questions: Questions, config: Mcqa) -> Bench:
    """Record every bank at one token of each prompt.

    Args:
      subject: the network.
      questions: the pairs.
      config: scorer, position and memory.
    """
    network, recorded = record_banks(subject, questions, config, [config.position])
    fit, calibration, test = (recorded[config.position, name] for name in ROLES)
    families = np.asarray(questions.banks["fit"].family)
    signature = Signature("logit_delta", blocks=True, classes=LETTERS, families=families)
    sites = state_sites(network.taps[TAP])
    bench = Bench(network, sites, fit, calibration, {"test": test}, signature, halves=True)
    jax.block_until_ready(bench.fit.runs.outputs)
    return bench


def record_banks(
    subject: Subject, questions: Questions, config: Mcqa, positions: Sequence[Position], names: Sequence[str] = ROLES
) -> tuple[Network, dict[tuple[Position, str], Recorded]]:
    """Record some banks at some tokens: all of them at once, so that one program is compiled.

    Returns:
      The network seen at one token, whose window reaches the earliest of these, and what is recorded by position and
      bank.
    """
    order: list[tuple[Position, str]] = [(position, name) for position in positions for name in names]
    banks = {name: questions.banks[name].bank for name in names}
    encoders = {position: partial(_prompts_of, subject, questions, position) for position in positions}
    sides = [encoders[at](side) for at, name in order for side in (banks[name].base, banks[name].source)]
    count = sum(banks[name].size for _, name in order)
    view = TokenView(subject.decoder, window=window_of(*sides), batch=prompt_batch(subject, questions, config, count))
    network = dataclasses.replace(subject.network, model=view)
    pairs = {f"{position} {name}": (encoders[position], banks[name]) for position, name in order}
    recorded = record_together(network, pairs, tap=TAP, readout=READOUTS[config.scorer])
    return network, {(position, name): recorded[f"{position} {name}"] for position, name in order}


def _prompts_of(subject: Subject, questions: Questions, position: Position, setting: Setting) -> Prompts:
    """Write and tokenise prompts, and pick one token of each."""
    encoded = _encode(subject, questions.lexicon, setting, questions.length)
    return prompts_at(encoded.tokens, token_positions(encoded, setting, questions.lexicon, position))


def token_positions(encoded: Encoded, setting: Setting, lexicon: Lexicon, position: Position) -> np.ndarray:
    """Find a token in every prompt.

    Raises:
      ValueError: some prompt has no such token.
    """
    if position == "last":
        return prompts.last_positions(encoded)
    spans = mcqa.spans(setting, lexicon)
    if position == "subject":
        return prompts.span_positions(encoded, spans["subject"])
    symbol = prompts.span_positions(encoded, spans["correct_symbol"])
    return symbol if position == "symbol" else prompts.offset_positions(symbol, 1, encoded)


def prompt_batch(subject: Subject, questions: Questions, config: Mcqa, count: int) -> int | None:
    """Return how many of `count` prompts are recorded at once in the memory there is, or None for all."""
    shape, length = subject.decoder.config, questions.length
    itemsize = shape.precision.itemsize
    stream = length * (6 * shape.width + 3 * shape.hidden) * itemsize + 8 * shape.heads * length**2
    past = 2 * shape.depth * length * shape.kv_heads * shape.head_size * itemsize
    fits = max(1, int(config.network.gib * 2**30 / (stream + past + 8 * subject.decoder.config.vocabulary)))
    return None if fits >= count else fits


def whole_vocabulary(bench: Bench) -> Network:
    """Return the same network with logits of every token."""
    view = bench.network.model
    if not isinstance(view, TokenView):
        raise ValueError(f"got a bench of {type(view).__name__}, expected one of a decoder")
    decoder = dataclasses.replace(view.decoder, answers=(), rest=False)
    return dataclasses.replace(bench.network, model=dataclasses.replace(view, decoder=decoder))


def _encode(subject: Subject, lexicon: Lexicon, setting: Setting, length: int | None) -> Encoded:
    return mcqa.encode(setting, subject.tokenizer, lexicon, length=length)


def _sides(banks: Mapping[str, FamilyBank]) -> list[Setting]:
    return [side for bank in banks.values() for side in (bank.bank.base, bank.bank.source)]


def _solved(subject: Subject, lexicon: Lexicon, bank: PairBank, length: int) -> np.ndarray:
    """Tell which pairs have two prompts that the network answers, by the strict scorer."""
    right = np.ones(bank.size, bool)
    for side in (bank.base, bank.source):
        tokens = _encode(subject, lexicon, side, length).tokens
        answers = np.asarray(mcqa.MODEL.run(side)["answer"])
        for start in range(0, bank.size, 256):
            part = slice(start, start + 256)
            outputs = on_host(factual_outputs(subject.network, np.asarray(tokens)[part]))
            right[part] &= np.asarray(outputs).argmax(axis=-1) == answers[part]
    return right
