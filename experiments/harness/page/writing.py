"""One self-contained HTML page of a run: no server, no network, everything inside."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from experiments.harness.curves import Reduced
from experiments.harness.files import write_atomically
from experiments.harness.metrics import Metrics
from experiments.harness.page import contents, reductions
from experiments.harness.records import RunFolder
from experiments.harness.report import Report, complete_units
from experiments.harness.tables import Part, Table, exported

NAME = "report.html"
MOST_BYTES = 5_000_000


def write_page(run: RunFolder, report: Report, others: Sequence[RunFolder] = ()) -> Path:
    """Write the page of a run beside its records, and say in which options it differs from other runs.

    Raises:
      ValueError: the run has no complete unit or a damaged one, or the page would be larger than 5 MB.
    """
    text = page(run, report, others)
    path, size = run.path / NAME, len(text.encode())
    if size > MOST_BYTES:
        raise ValueError(f"got a page of {size} bytes for {run.path}, expected at most {MOST_BYTES}")
    write_atomically(path, text.encode())
    return path


def page(run: RunFolder, report: Report, others: Sequence[RunFolder] = ()) -> str:
    """Return the page."""
    units = complete_units(run)
    metrics = Metrics(row for unit in units for row in unit.rows)
    spoken = contents.verdicts(units, metrics)
    parts = report.tables(units, True)
    tables = [part for part in parts if isinstance(part, Table) and len(part.frame)]
    lines = [part for part in parts if isinstance(part, str)]
    reduced = report.reduced(units) if report.reduced else Reduced([])
    data = _data(run, report, spoken, reduced)
    values = {
        "title": f"{units[0].rows[0].experiment}: {run.path.name}",
        "lines": lines[:1],
        "notes": lines[1:],
        "verdicts": spoken,
        "reductions": reductions.verdicts(reduced.curves),
        "warnings": contents.warnings(metrics) if data["intervals"] else [],
        "tables": [_cells(part) for part in tables],
        "provenance": contents.provenance(run),
        "runs": [run.path.name, *(other.path.name for other in others)],
        "differences": contents.differences([run, *others]) if others else [],
        "missing": [] if data["curves"] else _missing(data),
        "python": contents.loading(run, spoken, units[0]),
        "data": data,
        "packed": Markup(_packed(data)),
        "css": Markup(_file("page.css")),
        "js": Markup(_file("page.js") + _file("curves.js")),
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_file("page.html")).render(values)


def _data(run: RunFolder, report: Report, spoken: list[dict[str, Any]], reduced: Reduced) -> dict[str, Any]:
    """Return what the script of the page draws."""
    units = complete_units(run)
    metrics = Metrics(row for unit in units for row in unit.rows)
    tables: list[Part] = [part for part in report.tables(units, False) if isinstance(part, Table) and len(part.frame)]
    return {
        "variables": [name for name in metrics.variables if name != "mean"],
        "maps": [*contents.maps(units, metrics, spoken), *reductions.kept_maps(reduced.kept)],
        "curves": reductions.figures(reduced.curves),
        "intervals": contents.intervals(metrics),
        "searches": contents.searches(units[0], metrics),
        "pairs": contents.pairs(units[0]),
        "exports": {style: "\n\n".join(exported(tables, style)) for style in ("markdown", "latex", "csv")},
    }


def _packed(data: dict[str, Any]) -> str:
    """Write JSON that no text in it can end: a prompt may hold `</script>`."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _cells(part: Table) -> dict[str, Any]:
    cells = part.cells()
    rows = [list(row) for row in cells.itertuples(index=False, name=None)]
    return {"title": part.title, "names": list(map(str, cells.columns)), "rows": rows}


def _missing(data: dict[str, Any]) -> list[str]:
    told = {"maps": "maps", "pairs": "outcomes of single pairs", "searches": "searches"}
    return [text for name, text in told.items() if not data[name]]


def _file(name: str) -> str:
    return (files("experiments.harness.page") / name).read_text(encoding="utf-8")
