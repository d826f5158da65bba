"""`python -m experiments`: run an experiment, or rebuild the tables and figures of a run."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from experiments import addition, certify, discovery, heq, mcqa, reduction, reports
from experiments.addition_options import Addition
from experiments.certify_options import Certify
from experiments.config import HEQ, Figures, Tables
from experiments.discovery_options import Discovery
from experiments.mcqa_options import Mcqa
from experiments.records import open_run
from experiments.reduction_options import Reduction
from experiments.running import Experiment, run_experiment

Command = (
    Annotated[HEQ, tyro.conf.subcommand("heq")]
    | Annotated[Addition, tyro.conf.subcommand("addition")]
    | Annotated[Mcqa, tyro.conf.subcommand("mcqa")]
    | Annotated[Reduction, tyro.conf.subcommand("reduction")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Discovery, tyro.conf.subcommand("discovery")]
    | Annotated[Tables, tyro.conf.subcommand("tables")]
    | Annotated[Figures, tyro.conf.subcommand("figures")]
)


def main() -> None:
    """Parse the command line and run it; bad input ends in one clear line and exit status 2."""
    command = tyro.cli(Command, prog="python -m experiments", description=__doc__)  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        match command:
            case HEQ():
                _run(heq.EXPERIMENT, command)
            case Addition():
                _run(addition.EXPERIMENT, command)
            case Mcqa(retrain=True):
                mcqa.retrain(command)
            case Mcqa(explain=True):
                mcqa.explain(command)
            case Mcqa():
                _run(mcqa.EXPERIMENT, command)
            case Reduction():
                _run(reduction.EXPERIMENT, command)
            case Certify():
                _run(certify.EXPERIMENT, command)
            case Discovery():
                _run(discovery.EXPERIMENT, command)
            case Tables(out=out, details=details):
                reports.show(open_run(out), details=details)
            case Figures(out=out):
                _draw(out)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _run(experiment: Experiment, config: HEQ | Addition | Mcqa | Reduction | Certify | Discovery) -> None:
    run = run_experiment(experiment, config)
    reports.show(run)
    _draw(run.path)


def _draw(out: Path) -> None:
    for path in reports.draw(open_run(out)):
        print(f"figure  {path}")


if __name__ == "__main__":
    main()
