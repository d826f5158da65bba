"""The commands: which there are, what they were probably meant to be, and how their options are read.

An experiment's options start from a preset, then take those of `--config`, then the flags; flags win.
"""

import dataclasses
import inspect
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from abstraction.planning import TARGETS
from experiments.addition.experiment import EXPERIMENT as ADDITION
from experiments.certify.experiment import EXPERIMENT as CERTIFY
from experiments.discovery.experiment import EXPERIMENT as DISCOVERY
from experiments.equality.experiment import EXPERIMENT as EQUALITY
from experiments.harness import report
from experiments.harness.endings import COMMAND, WRONG, Continuation
from experiments.harness.explaining import explain
from experiments.harness.files import read_object
from experiments.harness.options import Options
from experiments.harness.page.writing import write_page
from experiments.harness.processes import is_first, join
from experiments.harness.programs import counted, keep_programs
from experiments.harness.records import RunFolder, open_run
from experiments.harness.running import Experiment, run_experiment
from experiments.harness.tables import Format
from experiments.harness.valid import Valid, nearest, require
from experiments.ioi.experiment import EXPERIMENT as IOI
from experiments.lm_reduction.experiment import EXPERIMENT as LM_REDUCTION
from experiments.mcqa.experiment import EXPERIMENT as MCQA
from experiments.reduction.experiment import EXPERIMENT as REDUCTION

_ROOMS = (EQUALITY, ADDITION, MCQA, IOI, REDUCTION, CERTIFY, DISCOVERY, LM_REDUCTION)
EXPERIMENTS = {each.name: each for each in _ROOMS}
_OF_ONE_RUN = ("out", "resume", "log")
"""Options that a run's config.json does not hand on."""
_WORDS = ("config", "target", "processes")
"""Flags beside the options that take a word."""
_PRESETS = {
    "quick": "A small version of everything that finishes in seconds; other flags change it.",
    "paper": "What the paper did, its methods alone; other flags change it.",
}


@dataclass(frozen=True)
class Tables:
    """Print the tables of a run again, from its records alone."""

    out: Annotated[Path, tyro.conf.arg(help="The run folder.")]
    details: bool = False
    """One row per variable, times, and the chosen settings of every seed."""
    format: Format = "terminal"
    """As wide as the screen, or for other programs; CSV with all digits."""


@dataclass(frozen=True)
class Page:
    """Write report.html of a run again, one page with everything inside, from its records alone."""

    out: Annotated[Path, tyro.conf.arg(help="The run folder.")]
    beside: tuple[Path, ...] = ()
    """Folders of other runs: the page lists the options in which they differ."""


@dataclass(frozen=True)
class Figures:
    """Draw the figures of a run again, from its records alone."""

    out: Annotated[Path, tyro.conf.arg(help="The run folder.")]


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
    if name in EXPERIMENTS:
        _run(EXPERIMENTS[name], rest, continuation)
    elif name in _READERS:
        options, act = _READERS[name]
        place = ["--out", *rest] if rest and not rest[0].startswith("-") else rest
        act(tyro.cli(options, prog=f"{COMMAND} {name}", description=options.__doc__, args=place))
    else:
        known = [*EXPERIMENTS, *_READERS]
        near = nearest([name], known).replace("did you mean ", f"did you mean {COMMAND} ")
        print(f"error: got {name!r}, expected one of {', '.join(known)}{near}", file=sys.stderr)
        raise SystemExit(WRONG)


def _run(experiment: Experiment, arguments: list[str], continuation: Continuation) -> None:
    page, options = parsed(experiment, arguments)
    require("--target", page.target, page.explain or page.target is None, "given beside --explain")
    if page.processes is not None:
        join(page.processes)
        signal.signal(signal.SIGTERM, continuation.terminate)  # JAX takes it when processes join
    if page.explain:
        explain(experiment.costs, options, page.target)
    if page.explain or experiment.instead(options):
        return
    place = None if page.no_cache else keep_programs()
    with counted() as programs:
        run = run_experiment(experiment, options, continuation)
        if not is_first():
            return
        report.show(run, experiment.report)
        _draw(run)
        print(f"report  {write_page(run, experiment.report)}")
    print(f"programs {programs}, {'not kept' if place is None else f'kept in {place}'}")


def parsed(experiment: Experiment, arguments: list[str]) -> tuple[Any, Options]:
    """Read the options of an experiment: the page of all flags, and the options alone.

    Raises:
      ValueError: a config.json cannot be read, or holds other options than these.
      SystemExit: a flag does not exist, or help was asked for.
    """
    kind, prog = experiment.options, f"{COMMAND} {experiment.name}"
    asked = next((place for place, text in enumerate(arguments) if text in ("-h", "--help", "--help-all")), None)
    if asked is not None:
        topic = "" if arguments[asked] == "--help-all" else "".join(arguments[asked + 1 : asked + 2]) or "main"
        page = _page(kind, topic)
        print(_described(kind, topic) + "\n")  # tyro would make one line of a paragraph
        tyro.cli(page, prog=prog, description="", args=["--help"])
    chosen = [name for name in kind.PRESETS if f"--{name}" in arguments]
    require("presets", [f"--{name}" for name in chosen], len(chosen) < 2, "one of them")
    stored, arguments = _stored(kind, arguments)
    base = kind.preset(chosen[0]) if chosen else kind()
    page = _page(kind, "")
    default = page(**_fields(base))
    read = tyro.cli(page, prog=prog, description=inspect.getdoc(kind), default=default, args=[*stored, *arguments])
    return read, kind(**_fields(read, of=kind))


def _fields(options: Any, of: type | None = None) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in dataclasses.fields(of or options)}


def _page(kind: type[Options], topic: str) -> type[Any]:
    """Make the class that a command line is read into: an experiment's options, and what is beside them.

    Args:
      kind: the options.
      topic: show all, the `main` ones, or those of one group.

    Raises:
      ValueError: there is no such group.
    """
    hints, groups = get_type_hints(kind, include_extras=True), _groups(kind)
    if topic not in ("", "main") and topic not in groups:
        near = nearest([topic], groups)
        raise ValueError(f"got --help {topic}, expected nothing or one of {', '.join(groups)}{near}")
    hidden = groups if topic == "main" else [name for name in hints if name != topic] if topic else []
    flag = lambda text: Annotated[bool, tyro.conf.arg(help=text), tyro.conf.FlagCreatePairsOff]
    beside: dict[str, Any] = {name: flag(text) for name, text in _PRESETS.items() if name in kind.PRESETS}
    beside["no_cache"] = flag("Compile every program anew; otherwise they are kept between runs.")
    beside["explain"] = flag("Print what the run would cost: forwards, operations, chunks, memory; and stop.")
    text = f"Explain it for an accelerator that need not be there: {', '.join(TARGETS)}."
    beside["target"] = Annotated[str | None, tyro.conf.arg(help=text)]
    text = "Share the run with the processes of other hosts: auto (Slurm, Open MPI, TPU pods) or HOST:PORT,INDEX,COUNT."
    beside["processes"] = Annotated[str | None, tyro.conf.arg(help=text)]
    text = "Take the options of a run, its folder or config.json; other flags change them."
    beside["config"] = Annotated[Path | None, tyro.conf.arg(help=text)]
    own = {each.name: each for each in dataclasses.fields(kind) if each.name in hidden}
    space: dict[str, Any] = {"__doc__": kind.__doc__, "__annotations__": {}, "__module__": kind.__module__}
    for name, each in own.items():
        space["__annotations__"][name] = tyro.conf.Suppress[hints[name]]
        space[name] = dataclasses.field(default=each.default, default_factory=each.default_factory)  # pyright: ignore
    for name, hint in beside.items() if topic in ("", "main") else ():
        space["__annotations__"][name], space[name] = hint, None if name in _WORDS else False
    return dataclass(frozen=True)(type(kind.__name__, (kind,), space))


def _groups(kind: type[Options]) -> list[str]:
    """Name the options that hold others."""
    return [name for name, value in _fields(kind()).items() if dataclasses.is_dataclass(value)]


def _described(kind: type[Options], topic: str) -> str:
    more = f"\n\nMethods: {', '.join(_methods(kind))}." if topic == "main" and _methods(kind) else ""
    more += f"\n\nMore: --help-all, or --help with a group: {', '.join(_groups(kind))}." if topic == "main" else ""
    paragraphs = ((inspect.getdoc(kind) or "") + more).split("\n\n")
    width = shutil.get_terminal_size().columns
    return "\n\n".join(textwrap.fill(" ".join(text.split()), width) for text in paragraphs)


def _methods(kind: type[Options]) -> tuple[str, ...]:
    hint = get_type_hints(kind, include_extras=True).get("methods")
    return next((extra.names for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Valid)), ())


def _stored(kind: type[Options], arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags that `--config PATH` stands for, and the other arguments."""
    place = next((place for place, text in enumerate(arguments) if text.split("=")[0] == "--config"), None)
    if place is None:
        return [], arguments
    _, joined, path = arguments[place].partition("=")
    after = place + 1 if joined else place + 2
    path = path if joined else "".join(arguments[place + 1 : after])
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    require("--config", path, bool(path) and file.exists(), "a config.json or the folder of a run")
    stored = {name: value for name, value in read_object(file).items() if name not in _OF_ONE_RUN}
    return list(_flags(kind, stored, file)), [*arguments[:place], *arguments[after:]]


def _flags(kind: type, stored: Mapping[str, Any], file: Path, prefix: str = "") -> Iterable[str]:
    """Write stored options as the flags that give them."""
    types = get_type_hints(kind, include_extras=True)
    for name, value in stored.items():
        expected = f"options of {kind.__name__}: {', '.join(each.name for each in dataclasses.fields(kind))}"
        require(f"{prefix}{name} in {file}", "", name in types, expected)
        # tyro: a field may ask for a flag without the names of what it is in.
        bare = any(getattr(extra, "prefix_name", None) is False for extra in getattr(types[name], "__metadata__", ()))
        head, last = "" if bare else prefix, name.replace("_", "-")
        if isinstance(value, dict):
            yield from _flags(types[name], value, file, f"{head}{last}.")
        elif isinstance(value, bool):
            yield f"--{head}{last}" if value else f"--{head}no-{last}"
        else:
            yield from [f"--{head}{last}", *map(str, value if isinstance(value, list) else [value])]


def _experiment_of(run: RunFolder) -> Experiment:
    name = report.complete_units(run)[0].rows[0].experiment
    require(f"a run of {name}", run.path, name in EXPERIMENTS, f"one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def _show(options: Tables) -> None:
    run = open_run(options.out)
    report.show(run, _experiment_of(run).report, details=options.details, style=options.format)


def _write(options: Page) -> None:
    run = open_run(options.out)
    print(f"report  {write_page(run, _experiment_of(run).report, [open_run(other) for other in options.beside])}")


def _draw(run: RunFolder) -> None:
    for path in report.draw(run, _experiment_of(run).report):
        print(f"figure  {path}")


_READERS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "tables": (Tables, _show),
    "report": (Page, _write),
    "figures": (Figures, lambda options: _draw(open_run(options.out))),
}


def _usage() -> str:
    lines = [f"usage: {COMMAND} COMMAND [options]; {COMMAND} COMMAND --help explains the options", ""]
    described = {name: each.options for name, each in EXPERIMENTS.items()}
    described |= {name: options for name, (options, _) in _READERS.items()}
    lines += [f"  {name:<12} {(inspect.getdoc(kind) or '').splitlines()[0]}" for name, kind in described.items()]
    return "\n".join(lines)
