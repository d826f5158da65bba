"""What the page of a run says, from its records alone: verdicts, maps, methods, searches, and what made them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.harness.accuracy import beside_controls
from experiments.harness.metrics import IDENTITY, Metrics, Rate
from experiments.harness.outcomes import NOT_RUN
from experiments.harness.records import RunFolder, Unit, flat_options

WHOLE = "full-state"
"""The method that localizes nothing: it stands in tables and never gives a verdict."""
MOST_COLUMNS, MOST_UNITS, MOST_CURVES = 96, 12, 24
Json = dict[str, Any]


def verdicts(units: Sequence[Unit], metrics: Metrics) -> list[Json]:
    """Say of each variable where it is, how sure that is, and against what.

    The method that speaks is the one of the best calibration score among those that swap a part of a state: test pairs
    choose nothing.
    """
    methods = [name for name in metrics.tested() if name not in (IDENTITY, WHOLE)]
    variables = [name for name in metrics.variables if name != "mean"]
    found = []
    for index, variable in enumerate(variables):
        scored = {name: _calibrated(units, name, index) for name in methods}
        scored = {name: score for name, score in scored.items() if np.isfinite(score)}
        scored = {name: score for name, score in scored.items() if not _whole(units, name, index)} or scored
        if not scored:
            continue
        method = max(scored, key=lambda name: scored[name])
        if rate := metrics.rate(method, variable, "test"):
            found.append(_verdict(units, metrics, method, variable, rate) | {"calibration": scored[method]})
    return found


def _verdict(units: Sequence[Unit], metrics: Metrics, method: str, variable: str, rate: Rate) -> Json:
    levels = {
        kind: metrics.mean(f"control-{kind}-{method}", variable, "test", "iia") for kind in ("random", "shuffled")
    }
    levels["identity"] = metrics.mean(IDENTITY, variable, "test", "iia")
    levels["chance"] = metrics.mean(IDENTITY, variable, "test", "chance")
    levels = {kind: level for kind, level in levels.items() if np.isfinite(level)}
    reached = [kind for kind, level in levels.items() if rate.low <= level]
    return {
        "variable": variable,
        "method": method,
        "iia": rate.mean,
        "low": rate.low,
        "high": rate.high,
        "pairs": int(metrics.values(method, variable, "test", "pairs").sum()),
        "controls": levels,
        "reached": reached,
        "above": not reached,
        "where": where(units, method, metrics.variables.index(variable)),
    }


def _whole(units: Sequence[Unit], method: str, index: int) -> bool:
    """Return whether a method swaps a whole state, of which random directions are the same: no part is told."""
    masses = [unit.arrays[f"{method}/mass"][index] for unit in units if f"{method}/mass" in unit.arrays]
    return any(mass.sum(axis=-1).max() > (1 - 1e-3) * mass.shape[-1] for mass in masses)


def _calibrated(units: Sequence[Unit], method: str, index: int) -> float:
    scores = [unit.details[method]["calibration_score"] for unit in units if _chosen(unit, method)]
    scores = [score[index] for score in scores if index < len(score)]
    return float(np.mean(scores)) if scores else float("nan")


def _chosen(unit: Unit, method: str) -> bool:
    details = unit.details.get(method)
    return isinstance(details, dict) and "calibration_score" in details


def where(units: Sequence[Unit], method: str, index: int) -> str:
    """Name the depth of a handle and the units it swaps most, seed by seed where seeds differ."""
    told = []
    for unit in units:
        mass = unit.arrays.get(f"{method}/mass")
        if mass is None or index >= len(mass):
            continue
        depth = int(mass[index].sum(axis=-1).argmax())
        weights = mass[index, depth]
        units_swapped = np.argsort(-weights, kind="stable")[:MOST_UNITS]
        strong = [int(each) for each in units_swapped if weights[each] > 0.5 * weights.max()]
        rank = f"{weights.sum():.3g} directions of {len(weights)}"
        some = f": units {', '.join(map(str, sorted(strong)))}" if 0 < len(strong) < MOST_UNITS else ""
        told.append(f"{depth_name(unit, depth)}, {rank}{some}")
    return "; ".join(dict.fromkeys(told))


def depth_name(unit: Unit, depth: int) -> str:
    """Name a depth: a block and a token, or a layer."""
    names = unit.details.get("places")
    return names[depth] if names else f"layer {depth}"


def maps(units: Sequence[Unit], metrics: Metrics, spoken: Sequence[Json]) -> list[Json]:
    """Return heat maps: full swaps by layer and position where they were measured, and what each verdict swaps."""
    variables = [name for name in metrics.variables if name != "mean"]
    found = []
    if all("sweep" in unit.arrays and "positions" in unit.details for unit in units):
        grid = np.mean([unit.arrays["sweep"] for unit in units], axis=0)
        for index, variable in enumerate(variables[: grid.shape[1]]):
            found.append(
                {
                    "title": f"{variable}: IIA when the whole state is swapped, by layer and token",
                    "kind": "sweep",
                    "variable": index,
                    "rows": list(units[0].details["positions"]),
                    "columns": [str(layer) for layer in range(grid.shape[2])],
                    "values": _rounded(grid[:, index]),
                    "n": int(units[0].details.get("sweep_pairs", 0)),
                    "top": 1.0,
                }
            )
    for each in spoken:
        if f"{each['method']}/mass" in units[0].arrays:
            index = metrics.variables.index(each["variable"])
            found.append(_mass_map(units[0], each, index))
    return found


def _mass_map(unit: Unit, verdict: Json, index: int) -> Json:
    mass = np.asarray(unit.arrays[f"{verdict['method']}/mass"][index], float)
    width = -(-mass.shape[1] // MOST_COLUMNS)
    edges = np.arange(0, mass.shape[1], width)
    grouped = np.add.reduceat(mass, edges, axis=1)
    kept = np.flatnonzero(grouped.sum(axis=1) > 0) if len(mass) > 24 else np.arange(len(mass))
    names = [str(edge) if width == 1 else f"{edge}-{min(edge + width, mass.shape[1]) - 1}" for edge in edges.tolist()]
    return {
        "title": f"{verdict['variable']}: what {verdict['method']} swaps, by depth and unit ({unit.name})",
        "kind": "handle",
        "method": verdict["method"],
        "variable": index,
        "rows": [depth_name(unit, int(depth)) for depth in kept],
        "columns": names,
        "values": _rounded(grouped[kept]),
        "n": 0,
        "top": float(grouped.max() or 1.0),
    }


def pairs(unit: Unit) -> Json | None:
    """Return the pairs whose outcomes were kept, what each method answers on them, and each cell of the sweep."""
    kept = unit.details.get("pairs")
    if kept is None:
        return None
    got = {
        name.removesuffix("/got"): [row[row != NOT_RUN].tolist() for row in np.asarray(array)]
        for name, array in unit.arrays.items()
        if name.endswith("/got")
    }
    swept = unit.arrays.get("sweep_got")
    return {**kept, "got": got, "sweep": None if swept is None else np.asarray(swept).tolist(), "unit": unit.name}


def searches(unit: Unit, metrics: Metrics) -> list[Json]:
    """Return the best calibration score of every search by rank and by depth, and its training curves."""
    found = []
    for method in metrics.tested():
        entry: Json = {"method": method}
        for axis in ("rank", "depth"):
            if lines := best_scores(unit, method, axis):
                entry[axis] = lines
        curve = unit.arrays.get(f"{method}/curve")
        if curve is not None and np.ndim(curve) == 2 and len(curve) > 1:
            entry["curve"] = _rounded(np.asarray(curve).T[:MOST_CURVES])
        if len(entry) > 1:
            found.append(entry)
    return found


def best_scores(unit: Unit, method: str, axis: str) -> list[list[list[float]]]:
    """Return (place, best score over everything else), for each variable, where several places were tried."""
    names = ("variable", axis)
    if any(f"{method}/{name}" not in unit.arrays for name in ("scores", *(f"candidates/{name}" for name in names))):
        return []
    owner, places = (unit.arrays[f"{method}/candidates/{name}"] for name in names)
    scores = unit.arrays[f"{method}/scores"]
    if len(np.unique(places)) < 2:
        return []
    lines = []
    for variable, row in enumerate(np.asarray(scores, float)):
        tried = places[owner == variable]
        own = row[~np.isnan(row)]
        if not len(tried) or len(own) % len(tried):
            return []
        best = own.reshape(-1, len(tried)).max(axis=0)
        lines.append([[float(place), round(float(best[tried == place].max()), 5)] for place in np.unique(tried)])
    return lines if any(len(line) > 1 for line in lines) else []


def provenance(run: RunFolder) -> list[tuple[str, str]]:
    """Say with what a run was computed, as rows of two cells."""
    legs = run.invocations
    if not legs:
        return []
    last, rows = legs[-1], []
    rows.append(("command", " ".join(map(str, last.get("command", [])))))
    rows.append(("started", str(legs[0].get("started", ""))))
    git = last.get("git", {})
    rows.append(("code", f"{git.get('revision', '')[:12] or 'unknown'}{' with changes' if git.get('dirty') else ''}"))
    device = last.get("device", {})
    rows.append(
        (
            "device",
            f"{device.get('backend', '')}: {', '.join(device.get('devices', []))}, {device.get('cpus', '')} CPUs",
        )
    )
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in last.get("versions", {}).items())))
    rows.append(("seeds", ", ".join(str(leg.get("seeds", "")) for leg in legs)))
    return rows


def differences(runs: Sequence[RunFolder]) -> list[tuple[str, ...]]:
    """Return the options in which runs differ: a name, and the value in each run."""
    flat = [flat_options(run.config) for run in runs]
    names = list(dict.fromkeys(name for options in flat for name in options))
    rows = [(name, *(str(options.get(name, "absent")) for options in flat)) for name in names]
    return [row for row in rows if len(set(row[1:])) > 1 and row[0] not in ("out", "resume")]


def warnings(metrics: Metrics) -> list[str]:
    """Return the methods that do not exceed their controls, in words."""
    return [line.removeprefix("note  ") for line in beside_controls(metrics, metrics.tested())]


def intervals(metrics: Metrics) -> list[Json]:
    """Return the score of every method with its interval and controls, for bars."""
    rows = []
    for method in metrics.tested():
        if rate := metrics.rate(method, "mean", "test"):
            row: Json = {"method": method, "iia": rate.mean, "low": rate.low, "high": rate.high}
            for kind in ("random", "shuffled"):
                level = metrics.mean(f"control-{kind}-{method}", "mean", "test", "iia")
                row[kind] = level if np.isfinite(level) else None
            seconds = metrics.mean(method, "mean", "test", "seconds")
            row["seconds"] = seconds if np.isfinite(seconds) else None
            rows.append(row)
    return rows


def _rounded(values: np.ndarray) -> list[Any]:
    rounded = np.round(np.asarray(values, float), 5).astype(object)
    rounded[~np.isfinite(np.asarray(values, float))] = None
    return rounded.tolist()


def loading(run: RunFolder, spoken: Sequence[Mapping[str, Any]], unit: Unit) -> str:
    """Write the Python that reads the chosen handles again."""
    lines = ["from abstraction import judge, load", "", "# network: the one of this run, as its experiment makes it"]
    for method in dict.fromkeys(each["method"] for each in spoken):
        path = run.path / "handles" / f"{method}-{unit.name}.safetensors"
        if path.is_file():
            lines.append(f'choice = load("{path.as_posix()}", network)  # {method}')
    if len(lines) == 3:
        return ""
    lines.append("print(choice.variables, choice.settings)")
    return "\n".join(lines)
