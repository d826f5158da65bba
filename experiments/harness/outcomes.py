"""What single pairs answer, kept for the page of a run: at most 64 of the first test split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from abstraction.interventions import Handle
from abstraction.interventions.patching import handle_outputs
from abstraction.sharding import on_host
from abstraction.typing import Setting
from experiments.harness.methods import Bench

MOST = 64
NOT_RUN = -2
"""In place of an answer on a pair that a variable was not tested with; the page leaves it out."""
Write = Callable[[Setting], Sequence[str]]
Spans = Mapping[str, Mapping[str, Sequence[tuple[int, int]]]]
"""By side, `base` or `source`, and by the name of a token: where it stands in each text."""


def in_numbers(setting: Setting) -> list[str]:
    """Write a setting as its values by name."""
    columns = {name: np.asarray(values) for name, values in setting.items()}
    count = len(next(iter(columns.values())))
    return [", ".join(f"{name} {values[row]}" for name, values in columns.items()) for row in range(count)]


def kept_pairs(
    bench: Bench, write: Write = in_numbers, answers: Sequence[str] | None = None, spans: Spans | None = None
) -> dict[str, Any]:
    """Describe the first test pairs: their texts, what each variable's interchange must answer, and its names."""
    split, recorded = next(iter(bench.tests.items()))
    bank = recorded.bank
    kept: dict[str, Any] = {"split": split, "answers": None if answers is None else list(answers)}
    for side in ("base", "source"):
        kept[side] = list(write(getattr(bank, side)))[:MOST]
    kept["expected"] = np.asarray(bank.labels)[:, :MOST].tolist()
    if spans is not None:
        kept["spans"] = {
            side: {name: [list(map(int, span)) for span in list(each)[:MOST]] for name, each in named.items()}
            for side, named in spans.items()
        }
    return kept


def answers_of(bench: Bench, handles: Handle) -> np.ndarray:
    """Return what the network answers on the first test pairs with each variable's handle, `[V, n]`; -1: not finite."""
    recorded = next(iter(bench.tests.values()))
    outputs = on_host(handle_outputs(bench.network, recorded.runs, handles))
    answers = [recorded.readout.decode(jnp.asarray(each))[:MOST] for each in outputs]
    return np.asarray(jnp.stack(answers), np.int32)
