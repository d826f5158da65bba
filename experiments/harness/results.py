"""What a seed leaves: rows, details and arrays in one schema for all experiments, and the chosen handles in files.

A method measures, chooses on evidence, and hands its frozen handles to the judge, with their controls, once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abstraction.artifacts import save
from abstraction.evaluation import Repeats, Tally, binomial_interval, identity_handle
from abstraction.evaluation.controls import chance_level
from abstraction.evaluation.iia import INVARIANT, SENSITIVE
from abstraction.evaluation.judging import judge_alone, judge_controls
from abstraction.interventions.handles import at_one_depth, coordinate_mass, stack_handles
from abstraction.localization import Choice
from abstraction.models.base import Recordable
from experiments.harness.logs import device_peak, peak_memory
from experiments.harness.methods import Bench, Outcome
from experiments.harness.outcomes import answers_of
from experiments.harness.records import Row, RunFolder, Unit
from experiments.harness.timing import Time, stopwatch


@dataclass(frozen=True)
class Results:
    """What one seed leaves, gathered as it is measured.

    Attributes:
      experiment: the name in its rows.
      seed: likewise.
      repeats: draws of each control.
      rows: the numbers.
      details: everything else, as JSON.
      arrays: for the figures.
    """

    experiment: str
    seed: int
    repeats: Repeats = field(default_factory=Repeats)
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """What is written down of the seed."""
        return Unit(f"seed-{self.seed}", self.rows, self.details, self.arrays)

    def apart(self, run: RunFolder, name: str, make: Callable[["Results"], None]) -> "Results":
        """Return a part of the seed: what a leg of the run that was stopped has left of it, or what is measured now."""

        def made() -> Unit:
            # Whether pairs are kept is asked of the details; the pairs themselves are no part's.
            asked = {"pairs": True} if "pairs" in self.details else {}
            own = Results(self.experiment, self.seed, self.repeats, details=asked)
            make(own)
            if own.details.get("pairs") is True:
                del own.details["pairs"]
            return own.unit

        unit = run.part(self.unit.name, name, made)
        return Results(self.experiment, self.seed, self.repeats, unit.rows, unit.details, unit.arrays)

    def part(self, run: RunFolder, name: str, make: Callable[["Results"], None]) -> None:
        """Add a part of the seed."""
        unit = self.apart(run, name, make)
        self.rows.extend(unit.rows)
        for key, value in unit.details.items():
            known = self.details.get(key)
            self.details[key] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        self.arrays.update(unit.arrays)

    def add(self, method: str, variable: str, split: str, **values: float) -> None:
        """Add a row per value."""
        self.rows.extend(
            Row(self.experiment, method, variable, split, name, self.seed, float(value))
            for name, value in values.items()
        )

    def took(self, what: str, elapsed: Time) -> None:
        """Add the time of something that every method shares."""
        self.add(what, "mean", "test", seconds=elapsed.run, seconds_compile=elapsed.compile)

    def tallied(self, bench: Bench, method: str, tallies: Mapping[str, Tally]) -> None:
        """Add IIA, its interval and the number of pairs, per split and variable."""
        for split, tally in tallies.items():
            for variable, values in accuracies(bench.variables, tally).items():
                self.add(method, variable, split, **values)

    def compare(self, bench: Bench) -> None:
        """Add what the network scores as it is, and what the best constant answer does: the level of chance."""
        handles = stack_handles([identity_handle(bench.tap)] * len(bench.variables))
        tallies = judge_alone(bench.network, handles, bench.tests)
        self.tallied(bench, "control-identity", split_halves(bench, tallies))
        for split, recorded in bench.tests.items():
            levels = zip(bench.variables, chance_level(recorded.bank).tolist(), strict=True)
            known = {name: level for name, level in levels if not np.isnan(level)}
            for name, level in (known | {"mean": float(np.mean([*known.values()]))}).items():
                self.add("control-identity", name, split, chance=level)

    def take(self, folder: Path, bench: Bench, method: str, outcome: Outcome, key: jax.Array) -> None:
        """Judge what a method found, and keep its handles in a file."""
        self.judge(bench, method, outcome, key)
        keep_choice(folder, bench, outcome.choice, f"{method}-seed-{self.seed}")

    def judge(self, bench: Bench, method: str, outcome: Outcome, key: jax.Array) -> None:
        """Judge frozen handles and their controls once, and write everything down."""
        handles, choice = outcome.choice.handles, outcome.choice
        if isinstance(bench.network.model, Recordable):
            handles = at_one_depth(handles)
        with stopwatch() as testing:
            tallies = judge_alone(bench.network, handles, bench.tests)
        controls = judge_controls(key, bench.network, handles, bench.tests, self.repeats)
        self.tallied(bench, method, {"calibration": choice.tally, **split_halves(bench, tallies)})
        self.tallied(bench, f"control-random-{method}", split_halves(bench, controls.random))
        self.tallied(bench, f"control-shuffled-{method}", split_halves(bench, controls.shuffled))
        times = {name: elapsed + testing for name, elapsed in outcome.times.items()}
        self.add(method, "mean", "test", **{name: elapsed.run for name, elapsed in times.items()})
        full = times["seconds"]
        self.add(method, "mean", "test", seconds_compile=full.compile, seconds_wall=full.total)
        self.details[method] = {
            "settings": dict(zip(bench.variables, choice.settings, strict=True)),
            "calibration_score": choice.tally.combined.tolist(),
            "calibration_loss": choice.tally.mean_loss.tolist(),
            "ties": choice.ties.tolist(),
            "last_site_ambiguous": choice.ambiguous.tolist(),
            "candidates_per_variable": choice.candidates,
            "handles_evaluated": choice.evaluated,
            "candidates_not_finite": choice.not_finite.tolist(),
            **outcome.details,
            "cost": _cost(outcome, full),
        }
        arrays = {"mass": coordinate_mass(handles, bench.sites.tap_depth), **outcome.arrays}
        if "pairs" in self.details:
            arrays["got"] = answers_of(bench, handles)
        self.arrays.update({f"{method}/{name}": np.asarray(array) for name, array in arrays.items()})


def _cost(outcome: Outcome, elapsed: Time) -> dict[str, float]:
    """Return sites, or searches, that a method tried in a second of its full grid, and the most memory held so far."""
    tried = {what: outcome.details.get(what, 0) for what in ("sites", "searches")}
    rates = {f"{what}_a_second": count / max(elapsed.run, 1e-9) for what, count in tried.items()}
    held = {"peak_memory": peak_memory(), "peak_device_memory": device_peak()}
    return {name: value for name, value in (rates | held).items() if value}


def seed_keys(seed: int, names: Sequence[str]) -> dict[str, jax.Array]:
    """Return a key for every name; one that is appended leaves those before it as they are."""
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


def keep_choice(folder: Path, bench: Bench, choice: Choice, name: str) -> None:
    """Write chosen handles to a file that `abstraction.load` reads, for the network they were chosen in."""
    plain = tuple({key: np.asarray(value).item() for key, value in setting.items()} for setting in choice.settings)
    path = folder / "handles" / f"{name}.safetensors"
    save(dataclasses.replace(choice, settings=plain), path, network=bench.network, data=bench.fit)


def split_halves(bench: Bench, tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    """Report the two halves of each split beside their mean, where the banks hold both."""
    if not bench.halves:
        return dict(tallies)
    halves = {
        f"{split}-{name}": tally.half(column)
        for split, tally in tallies.items()
        for column, name in ((SENSITIVE, "sensitive"), (INVARIANT, "invariant"))
    }
    return {**tallies, **halves}


def accuracies(variables: Sequence[str], tally: Tally) -> dict[str, dict[str, float]]:
    """Return IIA, its interval and the number of pairs, per variable that has pairs and for these together (`mean`).

    A split with sensitive and invariant pairs (calibration) is scored by the mean of the two halves, and its bounds
    are the means of their bounds; a test split holds one half, and its variables pool.
    """
    there = np.flatnonzero(tally.pairs.sum(axis=-1) > 0)
    tally, names = tally[there], [variables[int(index)] for index in there]
    if not names:
        return {}
    low, high = tally.interval()
    pairs = tally.pairs.sum(axis=-1)
    columns = {"iia": tally.combined, "iia_low": low, "iia_high": high, "pairs": pairs}
    pooled = {name: values.mean() for name, values in columns.items()} | {"pairs": pairs.sum()}
    if ((tally.pairs > 0).sum(axis=-1) == 1).all():
        pooled["iia_low"], pooled["iia_high"] = binomial_interval(pooled["iia"] * pairs.sum(), pairs.sum())
    single = {
        name: {key: float(np.asarray(column)[i]) for key, column in columns.items()} for i, name in enumerate(names)
    }
    return {**single, "mean": {name: float(value) for name, value in pooled.items()}}
