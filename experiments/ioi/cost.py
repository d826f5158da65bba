"""What a run about indirect objects costs, counted before anything runs: edited prompts, operations, bytes."""

from typing import NamedTuple

import numpy as np

from abstraction.models import DecoderConfig
from abstraction.models.costs import forward_flops, parameter_bytes, recording_bytes, suffix_flops
from abstraction.models.packaged import smollm2
from abstraction.models.token_views import window_of
from abstraction.models.weights import load_config
from abstraction.tasks import ioi, prompts
from abstraction.tasks.ioi import POSITIONS, VARIABLES
from experiments.harness.explaining import Costs, Seen, decoder_case, searches
from experiments.harness.options import DasOptions
from experiments.harness.tables import Part, table
from experiments.ioi.options import Ioi
from experiments.ioi.subject import load_subject, places_in, sizes_of

SEEN = {"position": "subject_again", "token": "last"}
"""The token that each variable is counted at; a run looks for it."""


class Shape(NamedTuple):
    """What the cost depends on: the decoder, tokens per prompt, those run again for each position, and names read."""

    decoder: DecoderConfig
    tokens: int
    windows: dict[str, int]
    names: int


class Stage(NamedTuple):
    """One stage's count: edited prompts, or whole ones where nothing is edited, and operations."""

    name: str
    prompts: int
    flops: float


def load_shape(config: Ioi) -> Shape:
    """Read what the cost of a run depends on, without the weights of a large model."""
    options = config.network
    if options.model is None and options.kind == "random":
        subject = load_subject(options)
        decoder, tokenizer, lexicon = subject.decoder.config, subject.tokenizer, subject.lexicon
    else:
        source = smollm2() if options.model is None else options.model
        decoder = load_config(source, revision=options.revision, dtype=options.dtype)
        tokenizer = prompts.load_tokenizer(source, revision=options.revision)
        lexicon = ioi.lexicon_for(tokenizer)
    (made,) = ioi.make_banks(0, lexicon, {"fit": 128}).values()
    encoded = ioi.encode(made.bank.base, tokenizer, lexicon)
    seen = {name: places_in(encoded, made.bank.base, lexicon, (name,)) for name in POSITIONS}
    windows = {name: window_of(each) for name, each in seen.items()}
    return Shape(decoder, encoded.tokens.shape[1], windows, len(lexicon.names))


def stages(config: Ioi, shape: Shape) -> list[Stage]:
    """Count the stages that take time: recordings, maps, and searches."""
    banks, vocabulary = config.banks, shape.decoder.vocabulary
    pairs, wide = banks.fit + banks.calibration + banks.test, banks.wide
    whole = lambda outputs: forward_flops(shape.decoder, shape.tokens, outputs=outputs)
    made, places = round(2 * pairs * banks.spare), shape.decoder.depth * len(POSITIONS)
    window = max(shape.windows.values())
    rows = [
        Stage("factual filter", made, made * whole(vocabulary)),
        Stage("recording, all tokens", 4 * wide, 4 * wide * whole(shape.names)),
        Stage("recording, two tokens", 4 * pairs, 4 * pairs * whole(shape.names)),
        *(
            Stage(name, places * wide, places * wide * _mean_suffix(shape, window))
            for name in ("places, effects", "places, map")
        ),
    ]
    for variable in VARIABLES:
        window, depth = shape.windows[SEEN[variable]], shape.decoder.depth
        edits = depth * banks.fit
        rows.append(Stage(f"stage A, {variable}", edits, edits * _mean_suffix(shape, window)))
        for method, options, blocks in (("plot-das", config.das, 1), ("full-das", config.full, depth)):
            if method in config.methods:
                seen = _seen(options, banks.fit) * blocks
                # Forward, forward again (blocks are rematerialised) and twice as much backward.
                rows.append(Stage(f"{method}, {variable}", seen, 4 * seen * _mean_suffix(shape, window)))
    return rows


def _seen(options: DasOptions, pairs: int) -> int:
    training = options.training
    steps = training.max_epochs * (training.steps_per_epoch or pairs // training.batch_size)
    return len(options.ranks) * len(options.learning_rates) * options.restarts * steps * training.batch_size


def _mean_suffix(shape: Shape, window: int) -> float:
    depths = range(shape.decoder.depth)
    each = [suffix_flops(shape.decoder, at, shape.tokens, window=window, outputs=shape.names) for at in depths]
    return float(np.mean(each))


def explanation(config: Ioi, shape: Shape) -> list[Part]:
    """Return what `--explain` prints."""
    every, banks = stages(config, shape), config.banks
    every.append(Stage("all", sum(one.prompts for one in every), sum(one.flops for one in every)))
    rows = [{"stage": one.name, "prompts": one.prompts, "FLOPs": one.flops} for one in every]
    pairs, states = banks.fit + banks.calibration + banks.test, 4 * shape.decoder.depth * shape.decoder.width
    kept = sum(
        recording_bytes(shape.decoder, pairs, shape.tokens, shape.windows[at]) + pairs * states for at in SEEN.values()
    )
    held = {"weights": parameter_bytes(shape.decoder), "recordings": kept}
    words = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in held.items())
    windows = ", ".join(f"{name} {count}" for name, count in shape.windows.items())
    return [
        f"{shape.decoder.depth} blocks of width {shape.decoder.width}, vocabulary {shape.decoder.vocabulary:,}; "
        f"prompts of {shape.tokens} tokens, of which an edit runs again: {windows}",
        table("what this run costs: prompts, edited or whole, and operations", rows, {"prompts": ",", "FLOPs": ".1e"}),
        f"held at once, in GiB: {words}; together {sum(held.values()) / 2**30:.2f}",
    ]


def costs(config: Ioi) -> Costs:
    """Return what a run is counted to cost, and what it asks of the network at the token of each variable."""
    seen, cases = load_shape(config), []
    for variable in VARIABLES:
        width, depth, token = seen.decoder.width, seen.decoder.depth, variable == "token"
        fit, calibration, test = sizes_of(variable, config)
        found = [searches("plot-das", config.das if token else config.das_position, 1, width)]
        found += [searches("full-das", config.full, depth, width, depth)] if token else []
        shape = Seen(seen.decoder, seen.tokens, seen.windows[SEEN[variable]], seen.names)
        cases.append(decoder_case(f"ioi, {variable}", shape, (fit, fit + calibration + test), found, rest=False))
    return Costs(cases, explanation(config, seen))
