"""What a run about indirect objects is about: a network with its tokenizer, pairs it answers, and their recordings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from abstraction.causal.pairs import PairBank, select_variables, take_rows
from abstraction.evaluation import Recorded
from abstraction.evaluation.recording import record_together
from abstraction.evaluation.solving import solved
from abstraction.interventions import state_sites
from abstraction.localization import Signature
from abstraction.models import (
    Decoder,
    DecoderConfig,
    Network,
    Prompts,
    TokenView,
    in_precision,
    load_decoder,
    on_mesh,
    prompts_at,
)
from abstraction.models.packaged import NAME, smollm2
from abstraction.models.token_views import ONE, window_of
from abstraction.tasks import ioi, prompts
from abstraction.tasks.ioi import FAMILIES, POSITIONS, VARIABLES, FamilyBank, Lexicon
from abstraction.tasks.prompts import Encoded, Tokenizer, WordTokenizer
from abstraction.typing import Setting
from experiments.harness.methods import Bench
from experiments.ioi.options import Ioi, IoiBanks, IoiNetwork

TAP = "block_output"
ROLES = ("fit", "calibration", "test")
SIGNATURE = Signature()
"""Of every pair apart: averaged over pairs whose names differ, an effect on names is next to nothing."""
_SMALL = Lexicon(ioi.NAMES[:12])


class Subject(NamedTuple):
    """A network and how it is spoken to.

    Attributes:
      name: for people and records.
      network: a decoder whose outputs are the names and the best of all other tokens.
      tokenizer: makes tokens of text.
      lexicon: the names that are one token each, and the frames.
    """

    name: str
    network: Network
    tokenizer: Tokenizer
    lexicon: Lexicon

    @property
    def decoder(self) -> Decoder:
        """The network's model."""
        if not isinstance(self.network.model, Decoder):
            raise ValueError(f"got a network of {type(self.network.model).__name__}, expected a decoder")
        return self.network.model

    def without_weights(self) -> "Subject":
        """Return what is known of the network but its weights, which are let go where nothing else holds them."""
        return self._replace(network=Network(self.decoder, {}))

    def untrained(self, key: jax.Array) -> "Subject":
        """Return a network of the same shape and random weights."""
        network = Network(self.decoder, self.decoder.init(key))
        return self._replace(name=f"untrained {self.name}", network=network)


class Questions(NamedTuple):
    """Banks of pairs by role, and what is known of how they were made.

    Attributes:
      banks: `fit`, `calibration`, `test`.
      length: tokens of the longest prompt.
      prompts: distinct prompts that were made.
      accuracy: share of these that the network answers.
      kept: share of pairs whose two prompts it answers.
    """

    banks: dict[str, FamilyBank]
    length: int
    prompts: int
    accuracy: float
    kept: float


def load_subject(options: IoiNetwork, mesh: Mesh | None = None) -> Subject:
    """Load a network, or make the small random one.

    Args:
      options: which.
      mesh: where its weights go.

    Raises:
      ImportError: SmolLM2 is not installed; how to get it.
      ValueError: there is no such model, it is of an unknown kind, or fewer than four names are one token.
    """
    if options.model is None and options.kind == "random":
        subject = _random_subject()
        network = subject.network if options.dtype is None else in_precision(subject.network, options.dtype)
        return subject._replace(network=network if mesh is None else on_mesh(network, mesh))
    source, name = (smollm2(), NAME) if options.model is None else (options.model, options.model)
    tokenizer = prompts.load_tokenizer(source, revision=options.revision)
    lexicon = ioi.lexicon_for(tokenizer)
    answers = ioi.answers(tokenizer, lexicon)
    network = load_decoder(
        source, revision=options.revision, dtype=options.dtype, answers=answers, rest=True, mesh=mesh
    )
    return Subject(name, network, tokenizer, lexicon)


def _random_subject() -> Subject:
    tokenizer = WordTokenizer(ioi.vocabulary(_SMALL))
    config = DecoderConfig(
        vocabulary=tokenizer.size, width=32, depth=4, heads=4, kv_heads=2, head_size=8, hidden=48, embedding_scale=6.0
    )
    decoder = Decoder(config, ioi.answers(tokenizer, _SMALL), rest=True)
    return Subject("random", Network(decoder, decoder.init(jax.random.key(0))), tokenizer, _SMALL)


def make_questions(options: IoiBanks, subject: Subject, seed: int, batch: int = 32) -> Questions:
    """Draw pairs of which no two names meet in two banks, and keep those whose prompts the network answers.

    Raises:
      ValueError: the network answers too few of them.
    """
    sizes = {role: getattr(options, role) for role in ROLES}
    made = ioi.make_banks(seed, subject.lexicon, {role: _drawn(size, options.spare) for role, size in sizes.items()})
    sides = [side for each in made.values() for side in (each.bank.base, each.bank.source)]
    length = max(_tokens(subject, side, None).shape[1] for side in sides)
    encode = lambda setting: _tokens(subject, setting, length)
    banks, answered, kept = {}, {}, []
    for role, each in made.items():
        rows = np.arange(each.bank.size)
        if options.solved:
            found = solved(subject.network, encode, each.bank, ioi.MODEL, batch=batch)
            rows = found.kept
            for side, right in ((each.bank.base, found.base), (each.bank.source, found.source)):
                answered |= dict(zip(ioi.render(side, subject.lexicon), right.tolist(), strict=True))
            kept.append((found.share, each.bank.size))
        banks[role] = _balanced(each, rows, sizes[role], role)
    shares = np.array(kept or [(np.nan, 1)])
    accuracy = float(np.mean([*answered.values()])) if answered else float("nan")
    return Questions(banks, length, len(answered), accuracy, float(np.average(shares[:, 0], weights=shares[:, 1])))


def _drawn(size: int, spare: float) -> int:
    return -(-int(size * spare) // len(FAMILIES)) * len(FAMILIES)


def _balanced(made: FamilyBank, rows: np.ndarray, size: int, role: str) -> FamilyBank:
    """Keep the first of each family, in equal shares.

    Raises:
      ValueError: fewer than its share is left of one.
    """
    parts = []
    for family, name in enumerate(FAMILIES):
        own, share = rows[made.family[rows] == family], size // len(FAMILIES) + (family < size % len(FAMILIES))
        if len(own) < share:
            raise ValueError(
                f"got {len(own)} {role} pairs of the family {name!r} with both prompts answered, expected {share}: "
                "raise --banks.spare, or take a network that solves the task"
            )
        parts.append(own[:share])
    chosen = np.sort(np.concatenate(parts))
    return FamilyBank(take_rows(made.bank, chosen), made.family[chosen])


def first_pairs(made: FamilyBank, size: int) -> FamilyBank:
    """Keep the first of each family of a bank, in equal shares."""
    return _balanced(made, np.arange(made.bank.size), min(size, made.bank.size), made.bank.role)


def record_pairs(
    subject: Subject,
    questions: Questions,
    banks: Mapping[str, PairBank],
    positions: Sequence[str],
    tap: str,
    batch: int,
) -> tuple[Network, dict[str, Recorded]]:
    """Record banks at one token of each prompt, or at several by name, with the names alone read.

    Returns:
      The network seen there, and what is recorded by bank.
    """
    encode = lambda setting: prompts_of(subject, questions, positions, setting)
    window = window_of(*(encode(side) for bank in banks.values() for side in (bank.base, bank.source)))
    decoder = dataclasses.replace(subject.decoder, rest=False)
    view = TokenView(decoder, window, batch=batch, positions=tuple(positions) if len(positions) > 1 else ONE)
    network = dataclasses.replace(subject.network, model=view)
    return network, record_together(network, {role: (encode, bank) for role, bank in banks.items()}, tap=tap)


def prompts_of(subject: Subject, questions: Questions, positions: Sequence[str], setting: Setting) -> Prompts:
    """Write and tokenise prompts, and pick a token of each, or several by name."""
    encoded = ioi.encode(setting, subject.tokenizer, subject.lexicon, length=questions.length)
    return places_in(encoded, setting, subject.lexicon, positions)


def places_in(encoded: Encoded, setting: Setting, lexicon: Lexicon, positions: Sequence[str]) -> Prompts:
    """Pick a token of each prompt, or several by name."""
    spans = ioi.spans(setting, lexicon)
    last = prompts.last_positions(encoded)
    found = {name: last if name == "last" else prompts.span_positions(encoded, spans[name]) for name in positions}
    return prompts_at(encoded.tokens, found if len(found) > 1 else found[positions[0]])


def wide_bench(subject: Subject, questions: Questions, config: Ioi) -> Bench:
    """Record some fit and calibration pairs at every named token: blocks x tokens are the places."""
    chosen = {role: first_pairs(questions.banks[role], config.banks.wide).bank for role in ROLES[:2]}
    network, recorded = record_pairs(subject, questions, chosen, POSITIONS, TAP, config.network.batch)
    sites = state_sites(network.taps[TAP])
    return Bench(network, sites, recorded["fit"], recorded["calibration"], {}, SIGNATURE, halves=True)


def pairs_of(variable: str, questions: Questions, config: Ioi) -> Questions:
    """Return the pairs that a variable is searched and tested with."""
    if variable == "token" or config.both:
        return questions
    sizes = dict[str, int](zip(ROLES, sizes_of(variable, config), strict=True))
    return questions._replace(banks={role: first_pairs(made, sizes[role]) for role, made in questions.banks.items()})


def sizes_of(variable: str, config: Ioi) -> tuple[int, int, int]:
    """Return how many fit, calibration and test pairs a variable is searched and tested with at most."""
    banks, most = config.banks, config.banks.position
    if variable == "token" or config.both:
        return banks.fit, banks.calibration, banks.test
    return most, max(len(FAMILIES), most // 2), most


def narrow_bench(subject: Subject, questions: Questions, config: Ioi, variable: str, position: str) -> Bench:
    """Record every bank for one variable, at the token where it is."""
    chosen = {role: select_variables(made.bank, [VARIABLES.index(variable)]) for role, made in questions.banks.items()}
    network, recorded = record_pairs(subject, questions, chosen, (position,), TAP, config.network.batch)
    fit, calibration, test = (recorded[role] for role in ROLES)
    bench = Bench(network, state_sites(network.taps[TAP]), fit, calibration, {"test": test}, SIGNATURE, halves=True)
    jax.block_until_ready(bench.fit.runs.outputs)
    return bench


def whole_vocabulary(bench: Bench) -> Bench:
    """Let the best token of the whole vocabulary be the answer, not only the best name."""
    view = bench.network.model
    if not isinstance(view, TokenView):
        raise ValueError(f"got a bench of {type(view).__name__}, expected one of a decoder")
    decoder = dataclasses.replace(view.decoder, rest=True)
    network = dataclasses.replace(bench.network, model=dataclasses.replace(view, decoder=decoder))
    return dataclasses.replace(bench, network=network)


def _tokens(subject: Subject, setting: Setting, length: int | None) -> np.ndarray:
    return ioi.encode(setting, subject.tokenizer, subject.lexicon, length=length).tokens
