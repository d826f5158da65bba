"""`python -m experiments`: run an experiment, or rebuild the tables and figures of a run."""

import os
import sys

from experiments.harness.endings import in_one_line


def main() -> None:
    """Run the command line; whatever stops it ends in one line and an exit status."""
    arguments = sys.argv[1:]
    # XLA calls a program that it reads back foreign wherever it has tuned for the processor itself, 100 lines a run.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with in_one_line(arguments) as continuation:
        from experiments.command_line import run_command  # imports JAX: Ctrl-C may come while it does

        run_command(arguments, continuation)


if __name__ == "__main__":
    main()
