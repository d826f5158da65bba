"""How frozen handles are judged: each variable at its own token, logit differences, and the MIB track's JSON."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abstraction.causal.pairs import PairBank
from abstraction.evaluation import full_state_handles
from abstraction.interventions import Handle
from abstraction.interventions.handles import at_one_depth, take_handle
from abstraction.interventions.patching import handle_outputs
from abstraction.tasks import ioi
from abstraction.tasks.ioi import FAMILIES, POSITIONS, VARIABLES
from experiments.harness.files import write_atomically
from experiments.harness.methods import Bench, Outcome
from experiments.harness.outcomes import NOT_RUN, kept_pairs
from experiments.harness.records import Row
from experiments.harness.results import Results, keep_choice
from experiments.ioi.places import Place, one_bank
from experiments.ioi.subject import Subject, whole_vocabulary

_MIB_NAMES = {"position": "output_position", "token": "output_token"}
_MIB_FAMILIES = {"order": "s1_io_flip"}
Linear = tuple[float, float, float]


def judge_apart(
    results: Results, benches: Mapping[str, Bench], outcomes: Mapping[str, Outcome], method: str, key: jax.Array
) -> None:
    """Judge a handle of every variable on its own bench, over the whole vocabulary, and write it down as one method."""
    parts = {}
    for index, (variable, bench) in enumerate(benches.items()):
        parts[variable] = Results(results.experiment, results.seed, results.repeats, details={"pairs": True})
        own = jax.random.fold_in(key, index)
        parts[variable].judge(whole_vocabulary(bench), method, outcomes[variable], own)
    join(results, parts, method)


def compare_apart(results: Results, benches: Mapping[str, Bench]) -> None:
    """Add what the network scores as it is, and the level of chance, of every variable on its own bench."""
    parts = {}
    for variable, bench in benches.items():
        parts[variable] = Results(results.experiment, results.seed, results.repeats)
        parts[variable].compare(whole_vocabulary(bench))
    join(results, parts, "control-identity")


def keep_apart(folder: Path, benches: Mapping[str, Bench], outcomes: Mapping[str, Outcome], name: str) -> None:
    """Write the handle of every variable to a file of its own, for the network seen at its token."""
    for variable, bench in benches.items():
        keep_choice(folder, bench, outcomes[variable].choice, f"{name}-{variable}")


def join(results: Results, parts: Mapping[str, Results], method: str) -> None:
    """Join the results of one variable each: their rows, means over them, times as sums, and details as lists."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for variable, part in parts.items():
        results.rows.extend(row for row in part.rows if row.variable != "mean")
        for row in part.rows:
            if row.variable == "mean":
                values.setdefault((row.method, row.split, row.metric), []).append(row.value)
                if row.metric.startswith("seconds"):
                    results.rows.append(row._replace(variable=variable))
    add = lambda metric: np.sum if metric.startswith("seconds") or metric == "pairs" else np.mean
    results.rows.extend(
        Row(results.experiment, name, "mean", split, metric, results.seed, float(add(metric)(each)))
        for (name, split, metric), each in values.items()
    )
    if found := [part.details[method] for part in parts.values() if method in part.details]:
        results.details[method] = {name: _joined([each[name] for each in found]) for name in found[0]}
    first, *others = parts
    for name in parts[first].arrays:
        kept = [part.arrays[name] for part in parts.values() if name in part.arrays]
        if name.endswith("/mass"):
            results.arrays[name] = np.concatenate(kept)
        elif name.endswith("/got"):  # a variable may be tested with fewer pairs than are kept of another
            most = max(each.shape[1] for each in kept)
            wide = [np.pad(each, ((0, 0), (0, most - each.shape[1])), constant_values=NOT_RUN) for each in kept]
            results.arrays[name] = np.concatenate(wide)
        else:  # searches of the variables differ in size: those of the first keep their name
            results.arrays[name] = kept[0]
            results.arrays.update({f"{name}/{other}": one for other, one in zip(others, kept[1:], strict=True)})


def spread_mass(results: Results, method: str, positions: Sequence[str]) -> None:
    """Say of every handle at which block and token it acts: `[V, L, D]` becomes `[V, L P, D]`."""
    mass = results.arrays[f"{method}/mass"]
    wide = np.zeros((len(mass), mass.shape[1], len(POSITIONS), mass.shape[2]), mass.dtype)
    for row, position in enumerate(positions):
        wide[row, :, POSITIONS.index(position)] = mass[row]
    results.arrays[f"{method}/mass"] = wide.reshape(len(mass), -1, mass.shape[2])


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


def _joined(values: Sequence[Any]) -> Any:
    """Join one detail of several variables: lists one after another, dicts merged, all of truth values, or the sum."""
    if isinstance(values[0], dict):
        return {name: each for value in values for name, each in value.items()}
    if isinstance(values[0], list):
        return [each for value in values for each in value]
    if isinstance(values[0], bool):
        return all(values)
    return max(values)


def linear_model(benches: Mapping[str, Bench], places: Mapping[str, Place]) -> tuple[Linear, float]:
    """Fit the linear model of the logit difference to runs as they are, and to full swaps at the variables' places.

    Returns:
      bias, position and token, and the mean squared error; on calibration pairs.
    """
    differences, signals = [], []
    for variable, bench in benches.items():
        recorded = one_bank(bench)
        bank, tap = recorded.bank, bench.tap
        swap = at_one_depth(take_handle(full_state_handles(tap), np.array([places[variable].block])))
        patched = np.asarray(handle_outputs(bench.network, recorded.runs, swap))[0]
        own = ioi.signals(bank)[VARIABLES.index(variable)]
        for outputs, signal in ((recorded.runs.outputs, np.ones_like(own)), (patched, own)):
            differences.append(ioi.logit_differences(np.asarray(outputs), bank))
            signals.append(signal)
    position, token = np.concatenate(signals, axis=1)
    beta, error = ioi.linear_model(np.concatenate(differences), position, token)
    bias, of_position, of_token = beta.tolist()
    return (bias, of_position, of_token), error


def squared_errors(bench: Bench, handles: Handle, variable: str, linear: Linear) -> np.ndarray:
    """Return the squared error of each test pair's logit difference, `[N]` (MIB's score; lower is better)."""
    recorded = bench.tests["test"]
    outputs = np.asarray(handle_outputs(bench.network, recorded.runs, at_one_depth(handles)))[0]
    position, token = ioi.signals(recorded.bank)[VARIABLES.index(variable)]
    bias, of_position, of_token = linear
    return (ioi.logit_differences(outputs, recorded.bank) - (bias + of_position * position + of_token * token)) ** 2


def add_errors(
    results: Results, benches: Mapping[str, Bench], outcomes: Mapping[str, Outcome], method: str, linear: Linear
) -> None:
    """Add the mean squared error of the logit difference, and keep every pair's by variable."""
    means = []
    for variable, bench in benches.items():
        errors = squared_errors(bench, outcomes[variable].choice.handles, variable, linear)
        means.append(float(errors.mean()))
        results.add(method, variable, "test", squared_error=means[-1])
        results.arrays[f"{method}/errors/{variable}"] = errors
    results.add(method, "mean", "test", squared_error=float(np.mean(means)))


def write_mib(
    folder: Path, model: str, family: Mapping[str, np.ndarray], places: Mapping[str, Place], results: Results
) -> None:
    """Write each method's results in the form of the MIB causal-variable track, a file per method.

    Scores are squared errors of the logit difference, on this run's test pairs, of one chosen place of the residual
    stream per variable; the track's own are of sets of heads and of its private data.
    """
    chosen: dict[str, dict[str, int]] = {}
    for row in results.rows:
        if row.metric == "block" and f"{row.method}/errors/{row.variable}" in results.arrays:
            chosen.setdefault(row.method, {})[row.variable] = int(row.value)
    for method, blocks in chosen.items():
        datasets = {}
        for index, name in enumerate(FAMILIES):
            units: dict[str, dict[str, Any]] = {}
            for variable, block in blocks.items():
                position, errors = places[variable].position, results.arrays[f"{method}/errors/{variable}"]
                unit = f"[[AtomicModelUnit(id='ResidualStream(Layer-{block},Token-{position})')]]"
                entry = units.setdefault(unit, {"metadata": {"layer": block, "position": position}})
                entry[_MIB_NAMES[variable]] = {"average_score": float(errors[family[variable] == index].mean())}
            datasets[f"{_MIB_FAMILIES.get(name, name)}_test"] = {"model_unit": units}
        content = {
            "method_name": method, "model_name": model, "task_name": "ioi_task", "dataset": datasets,
        }  # fmt: skip
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(folder / f"{method}-seed-{results.seed}.json", text.encode())
