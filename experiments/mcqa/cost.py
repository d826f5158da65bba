"""What an MCQA run costs, counted before anything runs, beside the authors' way of running it.

The authors run base and source through the whole network, with logits of every token, for every site, candidate and
training batch (PLOT, their code; a training step counts three times). Here both are run once per bank; an edit runs one
token through the later blocks. Depths that are not known before a stage has run count as the mean over all.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from abstraction.interventions.patching import CHUNK_BYTES
from abstraction.localization import Variant
from abstraction.models import DecoderConfig
from abstraction.models.costs import forward_flops, parameter_bytes, recording_bytes, suffix_bytes, suffix_flops
from experiments.harness.options import DasOptions
from experiments.harness.progressive import METHODS
from experiments.harness.tables import Part, table
from experiments.mcqa.grids import VARIANTS
from experiments.mcqa.options import Mcqa

VARIABLES = 2
_WITHOUT_STAGES = {"full-das", "full-das-v1", "full-state", "dbm", "dbm-pca", "boundless-das"}
_FRAMES = 6
"""Frames, width by rank, that a search holds: its start, what is trained, Adam's two, its gradient, what is read."""


class Shape(NamedTuple):
    """What the cost depends on: the decoder, tokens per prompt, tokens that are run again."""

    decoder: DecoderConfig
    tokens: int
    window: int = 1


class Stage(NamedTuple):
    """One stage's count.

    Attributes:
      name: for people.
      evaluations: edited prompts, or whole prompts where nothing is edited.
      flops: operations here.
      naive_forwards: whole prompts that the authors' way runs.
      naive_flops: its operations.
      chunk: handles at once; 0 where it does not apply.
      bytes: working set of one chunk.
    """

    name: str
    evaluations: int
    flops: float
    naive_forwards: int
    naive_flops: float
    chunk: int = 0
    bytes: int = 0


def stages(config: Mcqa, shape: Shape) -> list[Stage]:
    """Count every stage that the chosen methods need, each once."""
    banks, chosen = config.banks, set(config.methods)
    pairs = banks.fit + banks.calibration + banks.test
    made = round(pairs * banks.spare)
    whole = forward_flops(shape.decoder, shape.tokens, outputs=shape.decoder.vocabulary)
    rows = [
        Stage("factual filter", 2 * made, 2 * made * whole, 2 * made, 2 * made * _naive(shape)),
        Stage("recording", 2 * pairs, 2 * pairs * whole, 0, 0.0),
    ]
    depth = shape.decoder.depth
    for name, protocol in VARIANTS.items():
        ending = "" if name == "ours" else f"-{name}"
        used = {method for method in chosen if METHODS[method].protocol == name}
        if not used:
            continue
        if used - _WITHOUT_STAGES:
            rows.append(_edits(shape, f"stage A{ending}, signatures", depth, banks.fit, depth))
            tried = VARIABLES * min(protocol.heaviest, depth)
            naive = tried * _couplings(protocol.coarse)
            rows.append(_edits(shape, f"stage A{ending}, calibration", tried, banks.calibration, naive))
        for kind in ("native", "pca"):
            if any(f"plot-{kind}" in method for method in used):
                sites = VARIABLES * _sites(config, shape, kind)
                rows.append(_edits(shape, f"stage B {kind}{ending}, signatures", sites, banks.fit, sites))
                grid = _grid(protocol, len(config.stages.resolutions))
                rows.append(_edits(shape, f"stage B {kind}{ending}, calibration", grid, banks.calibration, grid))
    for method in ("plot-das", "full-das", "plot-das-v1", "full-das-v1"):
        if method in chosen:
            options = config.das_v1 if method.endswith("v1") else config.das
            rows += _search(shape, config, method, options, depth if "full" in method else 1)
    return rows


def _search(shape: Shape, config: Mcqa, method: str, options: DasOptions, places: int) -> list[Stage]:
    ranks = [rank for rank in options.ranks if rank <= shape.decoder.width]
    count = VARIABLES * places * len(ranks) * len(options.learning_rates) * options.restarts
    training, pairs = options.training, config.banks.fit
    steps = training.max_epochs * (training.steps_per_epoch or pairs // training.batch_size)
    seen = count * steps * training.batch_size
    at_once = -(-count // training.bands)
    runs = suffix_bytes(shape.decoder, training.batch_size, shape.tokens, shape.window, outputs=_outputs(shape))
    # Forward, forward again (blocks are rematerialised) and twice as much backward.
    train = Stage(
        f"{method}, training", seen, 4 * seen * _mean_suffix(shape), 2 * seen, 3 * 2 * seen * _naive(shape), at_once,
        at_once * (runs + _FRAMES * 4 * shape.decoder.width * max(ranks, default=0)),
    )  # fmt: skip
    tried = count * len(options.strengths)
    return [train, _edits(shape, f"{method}, calibration", tried, config.banks.calibration, tried)]


def _edits(shape: Shape, name: str, handles: int, pairs: int, naive: int) -> Stage:
    size = pairs * shape.decoder.width * shape.decoder.precision.itemsize
    chunk = (
        1 if jax.default_backend() == "cpu" and pairs * shape.decoder.width >= 2**13 else max(1, CHUNK_BYTES // size)
    )
    chunk = min(chunk, handles)
    working = suffix_bytes(shape.decoder, pairs, shape.tokens, shape.window, chunk, outputs=_outputs(shape))
    runs = 2 * naive * pairs
    return Stage(
        name, handles * pairs, handles * pairs * _mean_suffix(shape), runs, runs * _naive(shape), chunk, working
    )


def _outputs(shape: Shape) -> int:
    return shape.decoder.vocabulary


def _mean_suffix(shape: Shape) -> float:
    depth = shape.decoder.depth
    each = [
        suffix_flops(shape.decoder, block, shape.tokens, window=shape.window, outputs=_outputs(shape))
        for block in range(depth)
    ]
    return float(np.mean(each))


def _naive(shape: Shape) -> int:
    return forward_flops(shape.decoder, shape.tokens, outputs=shape.decoder.vocabulary, every_token=True)


def _couplings(rule: Any) -> int:
    return len(rule.epsilons) * len(getattr(rule, "beta_neural", getattr(rule, "taus", (1,))))


def _sites(config: Mcqa, shape: Shape, kind: str) -> int:
    most = shape.decoder.width if kind == "native" else min(shape.decoder.width, config.banks.fit - 1)
    sizes = [size for size in config.stages.resolutions if size <= most]
    if kind == "pca" and config.stages.spans == "prefix":
        return len(sizes)
    return sum(-(-most // size) for size in sizes)


def _grid(protocol: Variant, resolutions: int) -> int:
    cuts = len(protocol.menu.subset_sizes) * len(protocol.menu.strengths)
    return VARIABLES * cuts * _couplings(protocol.fine) * resolutions


def memory(config: Mcqa, shape: Shape) -> dict[str, int]:
    """Estimate what is held at once: weights, recordings of all banks and of their sources, the largest chunk."""
    banks = config.banks
    pairs = banks.fit + banks.calibration + banks.test
    states = pairs * shape.decoder.depth * shape.decoder.width * shape.decoder.precision.itemsize
    return {
        "weights": parameter_bytes(shape.decoder),
        "recordings": recording_bytes(shape.decoder, pairs, shape.tokens, shape.window) + states,
        "largest chunk": max(stage.bytes for stage in stages(config, shape)),
    }


def explanation(config: Mcqa, shape: Shape) -> list[Part]:
    """Return what `--explain` prints."""
    every = stages(config, shape)
    counted = ("evaluations", "flops", "naive_forwards", "naive_flops")
    sums = {name: sum(getattr(stage, name) for stage in every) for name in counted}
    total = Stage("all", **sums, bytes=max(stage.bytes for stage in every))
    rows = [
        {
            "stage": stage.name,
            "prompts": stage.evaluations,
            "FLOPs": stage.flops,
            "theirs": stage.naive_forwards,
            "their FLOPs": stage.naive_flops,
            "fewer": stage.naive_flops / stage.flops or None,
            "chunk": str(stage.chunk or ""),
            "MiB": stage.bytes / 2**20,
        }
        for stage in [*every, total]
    ]
    formats = {
        "prompts": ",",
        "theirs": ",",
        "FLOPs": ".1e",
        "their FLOPs": ".1e",
        "fewer": ",.0f",
        "MiB": ",.1f",
    }
    held = memory(config, shape)
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in held.items())
    return [
        f"{shape.decoder.depth} blocks of width {shape.decoder.width}, vocabulary {shape.decoder.vocabulary:,}, "
        f"prompts of {shape.tokens} tokens, {shape.window} of which {'is' if shape.window == 1 else 'are'} run again",
        table("what this run costs in edited prompts, and the authors' way of it in whole ones", rows, formats),
        f"an edited prompt costs 1/{_naive(shape) / _mean_suffix(shape):,.0f} of a whole one on average over blocks, "
        "its vocabulary read in full in both; chunk: handles at once",
        f"held at once, in GiB: {parts}; together {sum(held.values()) / 2**30:.2f}",
    ]
