"""The variables of a seed, each searched on its own, as one: rows, means, a linear model of logits, and MIB's files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from abstraction.tasks import ioi
from abstraction.tasks.ioi import FAMILIES, POSITIONS, VARIABLES
from experiments.harness.files import write_atomically
from experiments.harness.outcomes import NOT_RUN
from experiments.harness.records import Row
from experiments.harness.results import Results
from experiments.ioi.heads import VARIABLE
from experiments.ioi.judging import PLAIN
from experiments.ioi.places import Place

_MIB_NAMES = {"position": "output_position", "token": "output_token"}
_MIB_FAMILIES = {"order": "s1_io_flip"}


def join_all(results: Results, searched: Mapping[str, Mapping[str, Results]], positions: Mapping[str, str]) -> None:
    """Add what every method has left of every variable.

    Args:
      results: of the seed.
      searched: by variable and method; of `PLAIN`, what `keep_plain` has left.
      positions: the token each variable is at.
    """
    plain = {variable: parts[PLAIN] for variable, parts in searched.items()}
    fitted = [[each.arrays.pop(f"linear/{name}") for each in plain.values()] for name in ("differences", "signals")]
    signals = {variable: each.arrays.pop("test/signals") for variable, each in plain.items()}
    results.details["pairs"] = plain[VARIABLE].details.pop("pairs")
    results.details["linear"] = model = _linear_model(*fitted)
    join(results, plain, PLAIN)
    for method in searched[VARIABLE]:
        if method == PLAIN:
            continue
        parts = {variable: each[method] for variable, each in searched.items() if method in each}
        differences = {variable: part.arrays.pop(f"{method}/differences") for variable, part in parts.items()}
        join(results, parts, method)
        spread_mass(results, method, [positions[variable] for variable in parts])
        means = []
        for variable, found in differences.items():
            position, token = signals[variable]
            errors = (found - (model["bias"] + model["position"] * position + model["token"] * token)) ** 2
            means.append(float(errors.mean()))
            results.add(method, variable, "test", squared_error=means[-1])
            results.arrays[f"{method}/errors/{variable}"] = errors
        results.add(method, "mean", "test", squared_error=float(np.mean(means)))


def _linear_model(differences: Sequence[np.ndarray], signals: Sequence[np.ndarray]) -> dict[str, float]:
    """Fit the linear model of the logit difference to runs as they are, and to full swaps at the variables' places.

    Args:
      differences: of calibration pairs of each variable, `[2, N]`.
      signals: of the same, `[2, 2, N]`.

    Returns:
      bias, position and token, and the mean squared error.
    """
    given = np.concatenate([each.transpose(1, 0, 2).reshape(2, -1) for each in signals], axis=1)
    beta, error = ioi.linear_model(np.concatenate([each.ravel() for each in differences]), *given)
    return {**dict(zip(("bias", *VARIABLES), beta.tolist(), strict=True)), "error": error}


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


def _joined(values: Sequence[Any]) -> Any:
    """Join one detail of several variables: lists one after another, dicts merged, all of truth values, or the sum."""
    if isinstance(values[0], dict):
        return {name: each for value in values for name, each in value.items()}
    if isinstance(values[0], list):
        return [each for value in values for each in value]
    if isinstance(values[0], bool):
        return all(values)
    return max(values)


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
