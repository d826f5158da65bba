"""The commands: which there are, what they were probably meant to be, and how their options are read."""

import difflib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import tyro

from experiments.addition import experiment as addition
from experiments.addition.options import Addition
from experiments.certify import experiment as certify
from experiments.certify.options import Certify
from experiments.discovery import experiment as discovery
from experiments.discovery.options import Discovery
from experiments.equality import experiment as heq
from experiments.equality.options import HEQ, Figures, Tables
from experiments.harness import reports
from experiments.harness.endings import COMMAND, WRONG, Continuation
from experiments.harness.files import read_object
from experiments.harness.programs import NO_CACHE, counted, keep_programs
from experiments.harness.records import open_run
from experiments.harness.running import Experiment, run_experiment
from experiments.mcqa import experiment as mcqa
from experiments.mcqa.options import Mcqa
from experiments.reduction import experiment as reduction
from experiments.reduction.options import Reduction

_CONFIG = "--config"
_OF_ONE_RUN = ("out", "resume")
"""Options that a run's config.json does not hand on."""


class Command(NamedTuple):
    """A subcommand.

    Attributes:
      options: the dataclass of its options.
      run: what it does with them.
      is_experiment: it computes, and takes --config; the others read a run.
    """

    options: type
    run: Callable[[Any, Continuation], None]
    is_experiment: bool = True


def run_command(arguments: list[str], continuation: Continuation) -> None:
    """Read a command line and do what it says.

    Raises:
      ValueError: an option cannot work, or a record is damaged.
      SystemExit: the command or an option does not exist.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else WRONG)
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        raise SystemExit(WRONG)
    command = COMMANDS[name]
    if not command.is_experiment and rest and not rest[0].startswith("-"):
        rest = ["--out", *rest]
    prog, doc = f"{COMMAND} {name}", command.options.__doc__ or ""
    if command.is_experiment:
        doc += (
            f"\n\n{_CONFIG} PATH takes the options of a run (its folder, or config.json); flags after it win. Compiled "
            f"programs are kept between runs, where the last line says; {NO_CACHE} makes them anew."
        )
        rest = with_config(rest, command.options)
    kept = [argument for argument in rest if argument != NO_CACHE]
    options = tyro.cli(command.options, prog=prog, description=doc, args=kept if command.is_experiment else rest)
    if not command.is_experiment:
        command.run(options, continuation)
        return
    place = keep_programs() if len(kept) == len(rest) else None
    with counted() as programs:
        command.run(options, continuation)
    print(f"programs {programs}, {'not kept' if place is None else f'kept in {place}'}")


def _run(experiment: Experiment) -> Callable[[Any, Continuation], None]:
    def run(config: Any, continuation: Continuation) -> None:
        folder = run_experiment(experiment, config, continuation.writes_to)
        reports.show(folder)
        _draw(folder.path)

    return run


def _mcqa(config: Mcqa, continuation: Continuation) -> None:
    if config.retrain:
        mcqa.retrain(config)
    elif config.explain:
        mcqa.explain(config)
    else:
        _run(mcqa.EXPERIMENT)(config, continuation)


def _show(config: Tables, continuation: Continuation) -> None:
    reports.show(open_run(config.out), details=config.details)


def _draw(out: Path) -> None:
    for path in reports.draw(open_run(out)):
        print(f"figure  {path}")


COMMANDS = {
    "heq": Command(HEQ, lambda config, continuation: _run(heq.EXPERIMENT)(config, continuation)),
    "addition": Command(Addition, lambda config, continuation: _run(addition.EXPERIMENT)(config, continuation)),
    "mcqa": Command(Mcqa, _mcqa),
    "reduction": Command(Reduction, lambda config, continuation: _run(reduction.EXPERIMENT)(config, continuation)),
    "certify": Command(Certify, lambda config, continuation: _run(certify.EXPERIMENT)(config, continuation)),
    "discovery": Command(Discovery, lambda config, continuation: _run(discovery.EXPERIMENT)(config, continuation)),
    "tables": Command(Tables, _show, is_experiment=False),
    "figures": Command(Figures, lambda config, continuation: _draw(config.out), is_experiment=False),
}


def _usage() -> str:
    lines = [f"usage: {COMMAND} COMMAND [options]; {COMMAND} COMMAND --help explains every option", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.options.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    guess = f"; did you mean {COMMAND} {close[0]}?" if close else ""
    return f"error: got {name!r}, expected one of {', '.join(COMMANDS)}{guess}"


def with_config(arguments: list[str], options: type) -> list[str]:
    """Replace `--config PATH` by the flags it stands for, before all others, so that these win.

    Raises:
      ValueError: there is no such file, or it holds other options than these.
    """
    place = next((place for place, text in enumerate(arguments) if text.split("=")[0] == _CONFIG), None)
    if place is None:
        return arguments
    _, joined, path = arguments[place].partition("=")
    after = place + 1 if joined else place + 2
    path = path if joined else "".join(arguments[place + 1 : after])
    if not path:
        raise ValueError(f"got {_CONFIG} without a path, expected a config.json or the folder of a run")
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"got {_CONFIG} {path}, expected a config.json or the folder of a run")
    stored = {name: value for name, value in read_object(file).items() if name not in _OF_ONE_RUN}
    return [*_flags(options, stored, file), *arguments[:place], *arguments[after:]]


def _flags(options: type, stored: Mapping[str, Any], file: Path, prefix: str = "") -> list[str]:
    """Write stored options as the flags that give them."""
    types, flags = get_type_hints(options, include_extras=True), []
    for name, value in stored.items():
        if name not in types:
            raise ValueError(
                f"got {prefix}{name} in {file}, expected options of {options.__name__}: {', '.join(types)}"
            )
        # tyro: a field may ask for a flag without the names of what it is in.
        bare = any(getattr(extra, "prefix_name", None) is False for extra in getattr(types[name], "__metadata__", ()))
        flag = ("" if bare else prefix) + name.replace("_", "-")
        if isinstance(value, dict):
            flags += _flags(types[name], value, file, f"{flag}.")
        elif isinstance(value, bool):
            head, dot, last = flag.rpartition(".")
            flags.append(f"--{flag}" if value else f"--{head}{dot}no-{last}")
        else:
            flags += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return flags
