"""How frozen handles are judged: over the whole vocabulary, each variable at its own token; and logit differences."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abstraction.causal.pairs import PairBank
from abstraction.evaluation import Recorded, full_state_handles
from abstraction.interventions import Handle
from abstraction.interventions.handles import at_one_depth, handle_depths, take_handle
from abstraction.interventions.patching import handle_outputs
from abstraction.models import Network
from abstraction.sharding import on_host
from abstraction.tasks import ioi
from abstraction.tasks.ioi import VARIABLES
from experiments.harness.methods import Bench, Outcome
from experiments.harness.outcomes import kept_pairs
from experiments.harness.results import Results, keep_choice
from experiments.ioi.places import Place, one_bank
from experiments.ioi.subject import Subject, whole_vocabulary

PLAIN = "control-identity"
"""The method of a network as it is."""


def keep_plain(part: Results, bench: Bench, place: Place) -> None:
    """Add what the network scores as it is, the level of chance, and what a linear model of logits is fitted to.

    Arrays `linear/differences` `[2, N]`, of calibration pairs as they are and with the state at the place swapped, with
    `linear/signals` `[2, 2, N]`, position and token of each; and `test/signals` `[2, N]`.

    Args:
      part: what is added to.
      bench: of one variable.
      place: where it is.
    """
    part.compare(whole_vocabulary(bench))
    (variable,), recorded, test = bench.variables, one_bank(bench), bench.tests["test"].bank
    swap = at_one_depth(take_handle(full_state_handles(bench.tap), np.array([place.block])))
    own = _signals(recorded.bank, variable)
    part.arrays.update({
        "linear/differences": np.stack([
            ioi.logit_differences(on_host(recorded.runs.outputs), recorded.bank),
            _differences(bench.network, recorded, swap),
        ]),
        "linear/signals": np.stack([np.ones_like(own), own]),
        "test/signals": _signals(test, variable),
    })  # fmt: skip


def judge_variable(
    part: Results, folder: Path, named: tuple[str, str], found: tuple[Bench, Outcome], key: jax.Array
) -> None:
    """Judge a handle over the whole vocabulary, keep it in a file, and add every test pair's logit difference."""
    (method, variable), (bench, outcome) = named, found
    handles = outcome.choice.handles
    part.details["pairs"] = True
    part.judge(whole_vocabulary(bench), method, outcome, key)
    keep_choice(folder, bench, outcome.choice, f"{method}-seed-{part.seed}-{variable}")
    part.add(method, variable, "calibration", block=handle_depths(handles)[0])
    part.arrays[f"{method}/differences"] = _differences(bench.network, bench.tests["test"], at_one_depth(handles))


def _signals(bank: PairBank, variable: str) -> np.ndarray:
    """Return the signs of position and token in each pair, `[2, N]`."""
    return np.asarray(ioi.signals(bank)[VARIABLES.index(variable)], np.float64)


def _differences(network: Network, recorded: Recorded, handles: Handle) -> np.ndarray:
    return ioi.logit_differences(on_host(handle_outputs(network, recorded.runs, handles))[0], recorded.bank)


def written_pairs(bench: Bench, subject: Subject, bank: PairBank, position: str) -> dict[str, Any]:
    """Write the first test pairs, with the place of every token that has a name, for the page of the run."""
    spans = {}
    for side in ("base", "source"):
        setting = getattr(bank, side)
        written = ioi.spans(setting, subject.lexicon)
        ends = [len(text) for text in ioi.render(setting, subject.lexicon)]
        spans[side] = {**written, "last": [(end - len("to"), end) for end in ends]}
    tests = {"test": dataclasses.replace(bench.tests["test"], bank=bank)}
    write = lambda setting: ioi.render(setting, subject.lexicon)
    kept = kept_pairs(dataclasses.replace(bench, tests=tests), write, subject.lexicon.names, spans)
    return kept | {"token": position}
