"""`python -m experiments`: run an experiment, or rebuild the tables and figures of a run."""

import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from experiments import figures, heq, tables
from experiments.checks import check
from experiments.config import HEQ, Figures, Tables, parse_seeds, quick
from experiments.records import create_run, open_run

Command = (
    Annotated[HEQ, tyro.conf.subcommand("heq")]
    | Annotated[Tables, tyro.conf.subcommand("tables")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
)


def main() -> None:
    """Parse the command line and run it; bad input ends in one clear line and exit status 2."""
    command = tyro.cli(Command, prog="python -m experiments", description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        match command:
            case HEQ():
                _run_heq(command)
            case Tables(out=out, details=details):
                tables.show(open_run(out), details=details)
            case Figures(out=out):
                _draw(out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run_heq(config: HEQ) -> None:
    out = config.out or Path("runs") / f"heq-{time.strftime('%Y%m%d-%H%M%S')}"
    config = quick(config) if config.quick else config
    seeds = parse_seeds(config.seeds)
    check(config)
    if config.resume and config.out is None:
        raise ValueError("got --resume without --out, expected the folder of the run to continue")
    run = create_run(out, config, resume=config.resume, ignore=("seeds", "out", "resume"))
    run.add_to_manifest(seeds=seeds, experiment=heq.NAME)
    try:
        heq.run(config, run, seeds)
    except ValueError:
        run.forget_if_empty()
        raise
    tables.show(run)
    _draw(out)


def _draw(out: Path) -> None:
    for path in figures.draw(open_run(out)):
        print(f"figure  {path}")


if __name__ == "__main__":
    main()
