"""The tables of a discovery run, from its units alone: one per task, a row per width and reduction.

Every accuracy stands beside its interval, the wider of the binomial one over pairs and Student's t over seeds.
"""

from collections.abc import Sequence

from rich.table import Table

from experiments.discovery.options import DENSE, HARD, SURVIVES
from experiments.harness.metrics import Metrics, Rate
from experiments.harness.records import Unit
from experiments.harness.accuracy import beside_controls

FINDERS = ("plot", "das", "transferred")
TITLES = {
    "heq": "hierarchical equality: WX and YZ in reduced MLPs (units kept in each hidden layer)",
    "addition": "binary addition: the carries in reduced GRUs (units of the state kept)",
    "mcqa": "multiple choice: answer pointer and answer in reduced decoders (units kept in each MLP)",
}
NOTES = (
    "plot, das: searched afresh in the reduced network, das with rotations (heq, mcqa) or invertible maps (addition):",
    "one set of directions need not both read and write. transferred: the dense network's PLOT handle, cut to the",
    "units kept, with the share of its weight that is left; of mcqa, whose stream keeps its width, its DAS handle.",
    "sensitive: the output must change. specific: it must not, although another variable changes. combined: mean of",
    "sensitive and invariant; doing nothing at most .5 (mcqa: .25, where answer has no invariant pairs). random,",
    "shuffled: same weights on random directions, and with another pair's source, on the pairs of the first accuracy.",
    "fidelity: both networks give the same answer when kept units are interchanged with p = .1. verdict: in how many",
    f"seeds DAS has IIA >= {SURVIVES} for every variable, on pairs that must change and on those that must not;",
    "weakest DAS: the least of these. interval: wider of binomial over pairs or trials and Student t over seeds.",
)


def renderables(units: Sequence[Unit], *, details: bool) -> list[Table | str]:
    """Make what a run prints.

    Args:
      units: the complete seeds.
      details: a table per variable, too.
    """
    metrics = metrics_of(units)
    shown: list[Table | str] = []
    for task in TITLES:
        sweep = places(metrics, task)
        if not sweep:
            continue
        shown.append(network_table(metrics, task, sweep))
        for variable in variables(metrics, task) if details else ["mean"]:
            shown += [finder_table(metrics, task, sweep, finder, variable) for finder in FINDERS]
        shown.append(verdict(metrics, task, sweep))
        shown += below_controls(metrics, task, sweep)
    return [*shown, *NOTES]


def metrics_of(units: Sequence[Unit]) -> Metrics:
    """Look a run's rows up; fidelities are accuracies over trials, and get their intervals as such."""
    names = {"fidelity": "iia", "trials": "pairs"}
    return Metrics(row._replace(metric=names.get(row.metric, row.metric)) for unit in units for row in unit.rows)


def places(metrics: Metrics, task: str) -> list[tuple[int, str]]:
    """Return every width and reduction of a task, widest first, reductions in the order they were run."""
    start = f"{task}-keep"
    found = [
        (int(split.removeprefix(start)), method)
        for method, variable, split, metric in metrics.measured()
        if (variable, metric) == ("network", "survives") and split.startswith(start)
    ]
    return sorted(found, key=lambda place: -place[0])


def variables(metrics: Metrics, task: str) -> list[str]:
    """Name what a task is scored by, the mean first."""
    width, method = places(metrics, task)[0]
    split = f"{task}-keep{width}-sensitive"
    names = [name for name in metrics.variables if name != "mean"]
    return ["mean", *(name for name in names if metrics.rate(f"{method}/das", name, split))]


def network_table(metrics: Metrics, task: str, sweep: Sequence[tuple[int, str]]) -> Table:
    """Show what every network computes: right answers, agreement with the dense one, and the verdict."""
    worst = ["worst cell"] if task == "heq" else []
    columns = ["kept", "reduced by", "accuracy", *worst, "fidelity", "95% interval", "weakest DAS", "verdict"]
    table = _table(TITLES[task] + f", {_seeds(metrics)}", columns)
    for width, method in sweep:
        split = f"{task}-keep{width}"
        value = lambda name, split=split, method=method: metrics.mean(method, "network", split, name)
        survived = metrics.values(method, "network", split, "survives")
        cells = [f"{value('accuracy'):.4f}", *([f"{value('worst_cell'):.4f}"] if worst else [])]
        cells += _rated(metrics.rate(method, "network", split))
        weakest = metrics.values(method, "network", split, "weakest").min()
        table.add_row(str(width), method, *cells, f"{weakest:.4f}", f"{survived.sum():.0f} of {len(survived)}")
    return table


def finder_table(metrics: Metrics, task: str, sweep: Sequence[tuple[int, str]], finder: str, variable: str) -> Table:
    """Show the accuracy of one kind of handle in every network, beside its controls."""
    first, others = _splits(task)
    moved = ["weight kept"] if finder == "transferred" else []
    names = [first[1], "95% interval", "worst", *(title for _, title in others), "random", "shuffled"]
    what = "mean of the variables" if variable == "mean" else f"variable {variable}"
    table = _table(f"{task}, {finder}: IIA on test pairs, {what}", ["kept", "reduced by", *moved, *names])
    for width, method in sweep:
        label, place = f"{method}/{finder}", f"{task}-keep{width}"
        rate = metrics.rate(label, variable, place + first[0])
        if rate is None:
            continue
        share = [f"{metrics.mean(label, variable, place, 'kept_share'):.3f}"] if moved else []
        rest = [metrics.rate(label, variable, place + split) for split, _ in others]
        controls = [
            metrics.rate(f"control-{kind}-{label}", variable, place + first[0]) for kind in ("random", "shuffled")
        ]
        table.add_row(
            str(width), method, *share, *_rated(rate), f"{rate.worst:.4f}",
            *(f"{r.mean:.4f}" if r else "" for r in rest), *(f"{r.mean:.3f}" if r else "" for r in controls),
        )  # fmt: skip
    return table


def below_controls(metrics: Metrics, task: str, sweep: Sequence[tuple[int, str]]) -> list[str]:
    """Name the searches whose accuracy is not above its controls, in which networks and by which of them."""
    split = _splits(task)[0][0]
    return [
        f"{line}, {width} units kept"
        for width, method in sweep
        for line in beside_controls(metrics, [f"{method}/{finder}" for finder in FINDERS], f"{task}-keep{width}{split}")
    ]


def verdict(metrics: Metrics, task: str, sweep: Sequence[tuple[int, str]]) -> str:
    """Say how small each reduction can go before the variables break in some seed."""
    parts = []
    for method in dict.fromkeys(name for _, name in sweep):
        if method == DENSE:
            continue
        smallest = None
        for width in [w for w, name in sweep if name in (DENSE, method)]:
            name = method if (width, method) in sweep else DENSE
            if not metrics.values(name, "network", f"{task}-keep{width}", "survives").all():
                break
            smallest = width
        parts.append(f"{method} {'none' if smallest is None else smallest}")
    kinds = " and ".join(HARD[task])
    return f"{task}: smallest width down to which the variables survive in every seed ({kinds}): {', '.join(parts)}"


def _splits(task: str) -> tuple[tuple[str, str], list[tuple[str, str]]]:
    """Return the split that is the score, and the others, each with its title."""
    if task == "heq":
        return ("-sensitive", "sensitive"), [("-invariant", "invariant"), ("-specific", "specific")]
    return ("", "combined"), [("-sensitive", "sensitive"), ("-invariant", "invariant")]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("reduced by", "95% interval") else "right", no_wrap=True)
    return table


def _rated(rate: Rate | None) -> list[str]:
    return ["", ""] if rate is None else [f"{rate.mean:.4f}", f"{rate.low:.4f} {rate.high:.4f}"]


def _seeds(metrics: Metrics) -> str:
    return f"{len(metrics.seeds)} seed{'s' if len(metrics.seeds) > 1 else ''}"
