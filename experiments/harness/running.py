"""Run an experiment seed by seed into a run folder."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from experiments.harness.endings import Continuation
from experiments.harness.explaining import Costs
from experiments.harness.files import locked, remove_leftovers
from experiments.harness.loggers import opened
from experiments.harness.logs import given_back, hold_less, logger
from experiments.harness.options import Options
from experiments.harness.processes import any_of, copied, is_first
from experiments.harness.records import RunFolder, Unit, create_run
from experiments.harness.report import Report
from experiments.harness.valid import parse_seeds


class Experiment(NamedTuple):
    """What the command line needs of an experiment.

    Attributes:
      name: its subcommand.
      options: the class of its options.
      run_seed: `(options, seed, run folder, report) -> Unit`.
      random_seeds: every seed that a run's seed stands for.
      report: its tables and figures.
      check: refuses what the options alone cannot tell, such as checkpoints that are not there.
      instead: what some options ask for instead of a run; True where it was done.
      costs: what `--explain` shows.
    """

    name: str
    options: type[Options]
    run_seed: Callable[[Any, int, RunFolder, Callable[[str], None]], Unit]
    random_seeds: Callable[[int], dict[str, int]]
    report: Report
    check: Callable[[Any], None] = lambda options: None
    instead: Callable[[Any], bool] = lambda options: False
    costs: Callable[[Any], Costs] = lambda options: Costs([])


def run_experiment(experiment: Experiment, options: Options, continuation: Continuation | None = None) -> RunFolder:
    """Check the options, make or continue the run folder, and run the seeds.

    Args:
      experiment: which.
      options: its options.
      continuation: told the folder of the run before anything is computed, and asked between steps whether to go on.

    Raises:
      ValueError: an option cannot work, the folder does not fit it, or another process writes to it.
    """
    options.check()
    experiment.check(options)
    continuation = Continuation([]) if continuation is None else continuation
    if options.resume and options.out is None:
        raise ValueError("got --resume without --out, expected the folder of the run to continue")
    out = options.out or Path("runs") / f"{experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    continuation.together = any_of
    begin = lambda: _begun(experiment, options, out)
    with writing(out) if is_first() else nullcontext(), copied(out, begin, RunFolder) as run:
        continuation.writes_to(out)
        try:
            run_seeds(experiment, options, run, continuation)
        except ValueError:
            run.forget_if_empty()
            raise
    return run


def _begun(experiment: Experiment, options: Options, out: Path) -> RunFolder:
    """Make or continue the run folder, and write down with what."""
    run = create_run(out, options, resume=options.resume, ignore=("seeds", "out", "resume", "mesh", "log"))
    remove_leftovers(out)
    changed = run.add_to_manifest(seeds=parse_seeds(options.seeds), experiment=experiment.name)
    if changed:
        print(f"note: changed since this run was last continued: {'; '.join(changed)}", file=sys.stderr)
    return run


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; a folder that was made for it and stays empty is removed again.

    Raises:
      ValueError: it is a file, or another process writes to it.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"got {out}, which is a file; expected a folder")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out):
            yield
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()


def run_seeds(
    experiment: Experiment, options: Options, run: RunFolder, continuation: Continuation | None = None
) -> None:
    """Run the seeds that are not complete yet, writing each as soon as it is."""
    step = (continuation or Continuation([])).step
    done = set(run.unit_names())
    missing = [seed for seed in parse_seeds(options.seeds) if f"seed-{seed}" not in done]
    hold_less()
    log = logger(run.path)
    silent, named = (None, options.log) if is_first() else (True, ())
    with tqdm(missing, unit="seed", disable=silent, leave=False) as bar, opened(named, run) as loggers, given_back():

        def tell(seed: int, stage: str) -> None:
            bar.set_description_str(f"seed {seed}: {stage}")
            line = log(seed, stage)
            for each in loggers:
                each.stage(line)
            step()

        for seed in bar:
            step()
            unit = experiment.run_seed(options, seed, run, partial(tell, seed))
            run.note_in_manifest("data", unit.name, unit.details["data"])
            run.note_in_manifest("random_seeds", unit.name, experiment.random_seeds(seed))
            run.write_unit(unit)
            run.write_metrics(run.units())
            log(seed, "done")
            for each in loggers:
                each.unit(unit)
    run.write_metrics(run.units())
