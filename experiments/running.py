"""Run an experiment seed by seed into a run folder."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments.config import parse_seeds
from experiments.records import RunFolder, Unit, create_run


class Experiment(NamedTuple):
    """What the command line needs of an experiment.

    Attributes:
      name: its subcommand.
      run_seed: `(config, seed, run folder, report) -> Unit`.
      random_seeds: every seed that a run's seed stands for.
      check: refuses options that cannot work.
      quick: makes the small version of a configuration.
    """

    name: str
    run_seed: Callable[[Any, int, RunFolder, Callable[[str], None]], Unit]
    random_seeds: Callable[[int], dict[str, int]]
    check: Callable[[Any], None]
    quick: Callable[[Any], Any]


def run_experiment(experiment: Experiment, config: Any) -> RunFolder:
    """Check the options, make or continue the run folder, and run the seeds.

    Raises:
      ValueError: an option cannot work, or the folder does not fit it.
    """
    out = config.out or Path("runs") / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    config = experiment.quick(config) if config.quick else config
    seeds = parse_seeds(config.seeds)
    experiment.check(config)
    if config.resume and config.out is None:
        raise ValueError("got --resume without --out, expected the folder of the run to continue")
    run = create_run(out, config, resume=config.resume, ignore=("seeds", "out", "resume"))
    run.add_to_manifest(seeds=seeds, experiment=experiment.name)
    try:
        run_seeds(experiment, config, run, seeds)
    except ValueError:
        run.forget_if_empty()
        raise
    return run


def run_seeds(experiment: Experiment, config: Any, run: RunFolder, seeds: list[int]) -> None:
    """Run the seeds that are not complete yet, writing each as soon as it is."""
    done = set(run.unit_names())
    missing = [seed for seed in seeds if f"seed-{seed}" not in done]
    with tqdm(missing, unit="seed", disable=None, leave=False) as bar:
        for seed in bar:
            unit = experiment.run_seed(config, seed, run, bar.set_description_str)
            run.note_in_manifest("data", unit.name, unit.details["data"])
            run.note_in_manifest("random_seeds", unit.name, experiment.random_seeds(seed))
            run.write_unit(unit)
            run.write_metrics(run.units())
    run.write_metrics(run.units())
