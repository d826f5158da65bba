"""`--explain`: what a run would cost, before anything runs, here or on an accelerator that is not there (`--target`).

Every driver of the run is traced and compiled at its shapes: how often the network runs, operations, the chunk that
goes at once, and memory as XLA plans it. Experiments add what they count by hand, stage by stage.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from tqdm import tqdm

from abstraction.explaining import Asks, Case, Planned, Searches, Where, plan_case, shape
from abstraction.models import Decoder, DecoderConfig, Prompts, TokenView
from experiments.harness.options import DasOptions
from experiments.harness.tables import Part, show_parts, table

_FORMATS = {"runs": ",", "FLOPs": ".1e", "chunk": ",", "in GB": ".3g", "peak GB": ".3g", "compile s": ".0f"}


@dataclass(frozen=True)
class Costs:
    """What an experiment would ask of its networks.

    Attributes:
      cases: its networks, pairs and searches.
      counted: what is known without compiling.
    """

    cases: Sequence[Asks]
    counted: Sequence[Part] = ()


def searches(name: str, options: DasOptions, places: int, width: int, depths: int = 1) -> Searches:
    """Return the searches of options: every rank, rate and restart, at so many places."""
    ranks = [rank for rank in options.ranks if rank <= width]
    count = len(ranks) * len(options.learning_rates) * options.restarts * places
    training = options.training
    return Searches(name, count, max(ranks), depths, training.batch_size, training.max_epochs)


class Seen(NamedTuple):
    """A decoder, tokens of its prompts, those at the end that an edit runs again, and answers that are read."""

    decoder: DecoderConfig
    tokens: int
    window: int
    answers: int


def decoder_case(name: str, seen: Seen, pairs: tuple[int, int], found: Sequence[Searches], rest: bool = True) -> Case:
    """Return a decoder seen at one token of each prompt: fit pairs and pairs of all banks, and searches."""
    answers = tuple((token,) for token in range(min(seen.answers, seen.decoder.vocabulary - rest)))
    view = TokenView(Decoder(seen.decoder, answers, rest=rest), window=seen.window)
    inputs = lambda count: Prompts(shape((count, seen.tokens), jnp.int32), shape((count,), jnp.int32))
    return Case(name, view, inputs, "block_output", *pairs, found)


def explain(costs: Callable[[Any], Costs], options: Any, target: str | None) -> None:
    """Print what a run would cost.

    Args:
      costs: of the experiment.
      options: of the run.
      target: a kind of device, None for the one that is there.

    Raises:
      ValueError: options that cannot work, or no compiler for the target.
    """
    options.check()
    where, known = Where.of(target), costs(options)
    show_parts(known.counted)
    for case in known.cases:
        rows: list[dict[str, Any]] = []
        with tqdm(case.drivers(), unit="driver", disable=None, leave=False, file=sys.stderr) as bar:
            for planned in plan_case(case, where, tell=bar.set_description_str):
                rows.append(_row(planned, where))
                bar.update()
        memory = "" if where.memory is None else f", {where.memory / 1e9:.1f} GB"
        show_parts([table(f"{case.name}, on {where.name}{memory}", rows, _FORMATS, keys=2)])
    show_parts(_notes(where))


def _row(planned: Planned, where: Where) -> dict[str, Any]:
    driver, footprint = planned.driver, planned.ahead.footprint
    bound = where.bound(planned.operations, footprint)
    return {
        "driver": driver.name,
        "size": driver.size,
        "runs": driver.runs,
        "FLOPs": planned.operations,
        "chunk": planned.chunk,
        "in GB": math.nan if footprint is None else footprint.arguments / 1e9,
        "peak GB": math.nan if footprint is None else footprint.total / 1e9,
        "fits": "yes" if planned.fits(where.memory) else "no",
        "compile s": planned.seconds_compile,
        **({} if bound is None else {"at least s": f"{bound:.2g}"}),
    }


def _notes(where: Where) -> list[Part]:
    lines = [
        "runs: of one pair, each method's handles and searches at their most; chunk: how many go at once; in: what a "
        "program is given, peak: all it holds, by XLA's plan."
    ]
    if where.flops is not None:
        lines.append(
            "at least s: operations over the vendor's peak in bfloat16, or what is held read once; no run is that fast."
        )
    return list(lines)
