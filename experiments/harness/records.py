"""Run folders: what an experiment leaves behind, and how it resumes.

    config.json            every option of the run
    manifest.json          git revision, versions, device, data digests, RNG seeds, the digests of config and units, one
                           entry per invocation
    metrics.csv            one number per row: experiment,method,variable,split,metric,seed,value
    units/seed-1.json      the rows and details of one seed, written when that seed is complete
    units/seed-1.safetensors   its arrays: costs, plans, handles, curves
    parts/seed-1/plot-das.*    the same of a part of a seed that is not complete yet
    figures/*.png

Every file is written under a temporary name and renamed, so an interrupted run leaves complete files only. A unit
carries the checksum of its content, and the manifest knows which units belong to the run: a number that was edited, or
a unit that was made for another seed or another run, is refused by name. A folder is resumed unit by unit; a damaged
unit is reported and never overwritten. Whoever writes holds `files.locked(folder)`.
"""

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from experiments.harness.files import (
    checksum,
    damaged,
    is_leftover,
    read_object,
    read_sealed,
    sealed,
    to_json,
    write_atomically,
)
from experiments.harness.logs import FILE as LOG
from experiments.harness.provenance import changes, provenance

_BEGUN = {"config.json", "manifest.json", LOG}


class Row(NamedTuple):
    """One number of `metrics.csv`."""

    experiment: str
    method: str
    variable: str
    split: str
    metric: str
    seed: int
    value: float


class Unit(NamedTuple):
    """The complete result of one seed.

    Attributes:
      name: file stem, `seed-1`.
      rows: its numbers.
      details: everything else worth knowing, as JSON.
      arrays: named arrays for the figures.
    """

    name: str
    rows: list[Row]
    details: dict[str, Any]
    arrays: dict[str, np.ndarray]


class RunFolder:
    """A run on disk. Build it with `create_run` or `open_run`."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def config(self) -> dict[str, Any]:
        """The options of the run."""
        return read_object(self.path / "config.json")

    @property
    def invocations(self) -> list[dict[str, Any]]:
        """What each leg of the run ran with, oldest first."""
        return self._manifest()["invocations"]

    def unit_names(self) -> list[str]:
        """Names of the complete units, in natural order of their seeds."""
        names = [path.stem for path in (self.path / "units").glob("*.json")]
        return sorted(names, key=lambda name: (len(name), name))

    def lost_units(self) -> list[str]:
        """Names of units that were computed, or were about to be written, and are not there."""
        return sorted(set(self._manifest()["units"]) - set(self.unit_names()))

    def read_unit(self, name: str) -> Unit:
        """Read one unit.

        Raises:
          ValueError: a file of it is missing, truncated, not what was written, or was written for something else.
        """
        unit = self._read(name, "units")
        if not unit.rows:
            raise damaged(self.path / "units" / f"{name}.json", "it holds no rows")
        return unit

    def _read(self, name: str, kind: str) -> Unit:
        path = self.path / kind / f"{name}.json"
        content = read_sealed(path)
        try:
            if content["unit"] != name:
                raise ValueError(f"it is {content['unit']}, copied under another name")
            if checksum(content) != self._manifest().get(kind, {}).get(name):
                raise ValueError("the manifest does not list it: it was made by another run or another leg")
            rows = [_row(values) for values in content["rows"]]
            tensors = path.with_suffix(".safetensors").read_bytes()
            if content["arrays"] != hashlib.sha256(tensors).hexdigest():
                raise ValueError(f"the arrays in {path.stem}.safetensors are not the ones that were written")
            return Unit(name, rows, content["details"], load_tensors(tensors))
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise error if "damaged record" in str(error) else damaged(path, error) from error

    def write_unit(self, unit: Unit) -> None:
        """Write a unit, arrays first, then its checksum into the manifest; the JSON file marks it complete.

        Its parts are removed then.
        """
        self._write(unit, "units")
        shutil.rmtree(self.path / "parts" / unit.name, ignore_errors=True)
        with suppress(OSError):
            (self.path / "parts").rmdir()

    def part(self, unit: str, name: str, make: Callable[[], Unit]) -> Unit:
        """Return a part of a unit that is not complete: what was written of it, or what is made now, and written.

        Raises:
          ValueError: what was written is damaged.
        """
        name = f"{unit}/{name}"
        if not (self.path / "parts" / f"{name}.json").exists():
            self._write(make()._replace(name=name), "parts")
        return self._read(name, "parts")

    def _write(self, unit: Unit, kind: str) -> None:
        tensors = save_tensors({name: np.asarray(array, order="C") for name, array in unit.arrays.items()})
        content = {
            "unit": unit.name,
            "arrays": hashlib.sha256(tensors).hexdigest(),
            "rows": [list(row) for row in unit.rows],
            "details": unit.details,
        }
        record = sealed(content)
        write_atomically(self.path / kind / f"{unit.name}.safetensors", tensors)
        self.note_in_manifest(kind, unit.name, json.loads(record)["sha256"])
        write_atomically(self.path / kind / f"{unit.name}.json", record)

    def units(self) -> list[Unit]:
        """Read all complete units."""
        return [self.read_unit(name) for name in self.unit_names()]

    def write_metrics(self, units: Iterable[Unit]) -> None:
        """Write `metrics.csv` from the units' rows."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(Row._fields)
        for unit in units:
            writer.writerows((*row[:-1], repr(float(row.value))) for row in unit.rows)
        write_atomically(self.path / "metrics.csv", buffer.getvalue().encode())

    def write_params(self, path: Path, params: Any) -> None:
        """Write the weights of a network, one array per path: `fc1.kernel`."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        arrays = {
            ".".join(str(getattr(part, "key", part)) for part in place): np.asarray(leaf, order="C")
            for place, leaf in leaves
        }
        write_atomically(path, save_tensors(arrays))

    def add_to_manifest(self, **entry: Any) -> list[str]:
        """Append what this invocation runs with, and return what changed since the one before."""
        manifest, now = self._manifest(), provenance()
        changed = changes(manifest["invocations"][-1], now) if manifest["invocations"] else []
        manifest["invocations"].append({**now, **entry, "changed": changed})
        self._write_manifest(manifest)
        return changed

    def note_in_manifest(self, kind: str, unit: str, value: Any) -> None:
        """Write down what a unit was made from."""
        manifest = self._manifest()
        manifest.setdefault(kind, {})[unit] = value
        self._write_manifest(manifest)

    def belongs_to(self, what: str, digest: str) -> None:
        """Write down what all of the run is of, such as the weights of its network; a leg with others is refused.

        Raises:
          ValueError: the run began with something else by that name.
        """
        known = self._manifest().get("made_from", {}).get(what)
        if known is None:
            self.note_in_manifest("made_from", what, digest)
        elif known != digest:
            raise ValueError(
                f"got a {what} of digest {digest[:12]}, expected {known[:12]}, that of the run in {self.path}: it has "
                "changed since, and what is there would not belong to it; take another --out"
            )

    def begin(self, options: Mapping[str, Any]) -> None:
        """Write the options, before anything else, and a manifest that knows them."""
        write_atomically(self.path / "config.json", to_json(options))
        self._write_manifest(self._new_manifest())

    def begin_manifest(self) -> None:
        """Write the manifest of a run that was killed before it had one."""
        if not (self.path / "manifest.json").exists():
            self._write_manifest(self._new_manifest())

    def check(self) -> None:
        """Check that config and manifest are those of this run.

        Raises:
          ValueError: one of them is missing or was changed.
        """
        manifest = self._manifest()
        if manifest["config"] != _file_digest(self.path / "config.json"):
            raise damaged(self.path / "config.json", "it was changed after the run began")

    def forget_if_empty(self) -> None:
        """Leave no trace of a run that was refused before it computed anything."""
        if self.path.is_dir() and {str(path.relative_to(self.path)) for path in _files(self.path)} <= _BEGUN:
            for name in _BEGUN:
                (self.path / name).unlink(missing_ok=True)
            for folder in sorted((path for path in self.path.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    folder.rmdir()

    def _manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        if not path.exists():
            # A run that was killed between its first two files has nothing yet that a manifest would have to know.
            if any(file.name != "config.json" for file in _files(self.path)):
                raise damaged(path, "it is missing, though the run had begun")
            return self._new_manifest()
        manifest = read_sealed(path)
        if not isinstance(manifest.get("invocations"), list) or not isinstance(manifest.get("units"), dict):
            raise damaged(path, "it lists no invocations or no units")
        return manifest

    def _new_manifest(self) -> dict[str, Any]:
        return {"config": _file_digest(self.path / "config.json"), "invocations": [], "units": {}}

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_atomically(self.path / "manifest.json", sealed(manifest))


def create_run(path: Path, config: Any, *, resume: bool, ignore: Sequence[str] = ()) -> RunFolder:
    """Start a run folder, or continue one.

    Args:
      path: the folder.
      config: a dataclass with every option.
      resume: continue a run that is there.
      ignore: options that may differ between invocations.

    Raises:
      ValueError: the folder holds a run and `resume` is off, its options differ, or a file of it is damaged.
    """
    run = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"got {path}, which is a file; expected a folder")
    options = json.loads(to_json(dataclasses.asdict(config)))
    if not (path / "config.json").exists():
        if any(_files(path)):
            raise ValueError(f"got {path}, which is not empty and holds no run; expected an empty or a new folder")
        run.begin(options)
        return run
    if not resume:
        raise ValueError(f"got {path}, which holds a run; expected an empty folder, another --out, or --resume")
    ours, stored = flat_options(options), flat_options(run.config)
    run.check()
    names = [name for name in {*ours, *stored} if name.split(".")[0] not in ignore]
    differing = sorted(name for name in names if ours.get(name) != stored.get(name))
    if differing:
        shown = "; ".join(f"{name}: got {ours.get(name)}, expected {stored.get(name)}" for name in differing)
        raise ValueError(f"got other options than the run in {path}: {shown}")
    run.units()
    run.begin_manifest()
    return run


def open_run(path: Path) -> RunFolder:
    """Open a run folder for reading.

    Raises:
      ValueError: there is no run, or its config or manifest is damaged.
    """
    run = RunFolder(path)
    if not (path / "config.json").exists():
        raise ValueError(f"got {path}, expected the folder of a run (with config.json)")
    _ = run.config
    run.check()
    return run


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and values."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        state.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested options as their flags do: `das.training.margin`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flat_options(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _row(values: Sequence[Any]) -> Row:
    row = Row(*values)
    if not all(isinstance(name, str) for name in row[:5]) or not isinstance(row.value, int | float):
        raise ValueError(f"got a row {list(values)}, expected five names, a seed and a number")
    return row


def _files(folder: Path) -> Iterator[Path]:
    """Yield what a process that ended left on purpose: every file but temporary ones and the lock."""
    return (path for path in folder.rglob("*") if not path.is_dir() and not is_leftover(path))


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise damaged(path, error) from error
