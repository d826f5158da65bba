"""Run folders: what an experiment leaves behind, and how it resumes.

    config.json            every option of the run
    manifest.json          git revision, versions, device, data digests, RNG seeds, one entry per invocation
    metrics.csv            one number per row: experiment,method,variable,split,metric,seed,value
    units/seed-1.json      the rows and details of one seed, written when that seed is complete
    units/seed-1.safetensors   its arrays: costs, plans, handles, curves
    figures/*.png

Every file is written under a temporary name and renamed, so an interrupted run leaves complete files only. A folder
is resumed unit by unit; a damaged unit is reported and never overwritten.
"""

import csv
import dataclasses
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

PACKAGES = (
    "abstraction-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "ott-jax",
    "numpy",
    "scipy",
    "scikit-learn",
    "orbax-checkpoint",
)
SCHEMA = 1


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
        return _read_object(self.path / "config.json")

    def unit_names(self) -> list[str]:
        """Names of the complete units, in natural order of their seeds."""
        names = [path.stem for path in (self.path / "units").glob("*.json")]
        return sorted(names, key=lambda name: (len(name), name))

    def read_unit(self, name: str) -> Unit:
        """Read one unit.

        Raises:
          ValueError: a file of it is missing, truncated or not what was written.
        """
        path = self.path / "units" / f"{name}.json"
        content = _read_object(path)
        try:
            rows = [Row(*row) for row in content["rows"]]
            tensors = path.with_suffix(".safetensors").read_bytes()
            if content["sha256"] != hashlib.sha256(tensors).hexdigest():
                raise ValueError(f"the arrays in {name}.safetensors are not the ones that were written")
            return Unit(name, rows, content["details"], load_tensors(tensors))
        except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    def write_unit(self, unit: Unit) -> None:
        """Write a unit, arrays first; the JSON file marks it complete."""
        tensors = save_tensors({name: np.asarray(array, order="C") for name, array in unit.arrays.items()})
        write_atomically(self.path / "units" / f"{unit.name}.safetensors", tensors)
        content = {
            "schema": SCHEMA,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "rows": [list(row) for row in unit.rows],
            "details": unit.details,
        }
        write_atomically(self.path / "units" / f"{unit.name}.json", _json(content))

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

    def add_to_manifest(self, **entry: Any) -> None:
        """Append what this invocation ran with."""
        manifest = self._manifest()
        manifest["invocations"].append({**provenance(), **entry})
        write_atomically(self.path / "manifest.json", _json(manifest))

    def note_in_manifest(self, kind: str, unit: str, value: Any) -> None:
        """Write down what a unit was made from."""
        manifest = self._manifest()
        manifest.setdefault(kind, {})[unit] = value
        write_atomically(self.path / "manifest.json", _json(manifest))

    def forget_if_empty(self) -> None:
        """Leave no trace of a run that was refused before it computed anything."""
        if not any(next((self.path / folder).glob("*"), None) for folder in ("units", "checkpoints")):
            for name in ("config.json", "manifest.json"):
                (self.path / name).unlink(missing_ok=True)
            for folder in (self.path / "units", self.path):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _manifest(self) -> dict[str, Any]:
        path = self.path / "manifest.json"
        return _read_object(path, "invocations") if path.exists() else {"schema": SCHEMA, "invocations": []}


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
    options = json.loads(_json(dataclasses.asdict(config)))
    if (path / "config.json").exists():
        if not resume:
            raise ValueError(f"got {path}, which holds a run; expected an empty folder, another --out, or --resume")
        ours, stored = _flat_options(options), _flat_options(run.config)
        names = [name for name in {*ours, *stored} if name.split(".")[0] not in ignore]
        differing = sorted(name for name in names if ours.get(name) != stored.get(name))
        if differing:
            shown = "; ".join(f"{name}: got {ours.get(name)}, expected {stored.get(name)}" for name in differing)
            raise ValueError(f"got other options than the run in {path}: {shown}")
        run.units()
    elif path.exists() and any(path.iterdir()):
        raise ValueError(f"got {path}, which is not empty and holds no run; expected an empty or a new folder")
    (path / "units").mkdir(parents=True, exist_ok=True)
    if not (path / "config.json").exists():
        write_atomically(path / "config.json", _json(options))
    return run


def open_run(path: Path) -> RunFolder:
    """Open a run folder for reading.

    Raises:
      ValueError: there is no run, or its config is damaged.
    """
    run = RunFolder(path)
    if not (path / "config.json").exists():
        raise ValueError(f"got {path}, expected the folder of a run (with config.json and units/)")
    _ = run.config
    return run


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and values."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        state.update(f"{name}:{array.dtype.str}:{array.shape};".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def provenance() -> dict[str, Any]:
    """Describe code, versions and device."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": {"revision": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": {
            "backend": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
        },
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"got {type(value)}, expected something JSON can hold")


def _flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested options as their flags do: `das.training.margin`."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _flat_options(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _read_object(path: Path, *fields: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or not all(field in content for field in fields):
            raise ValueError(f"it holds no object with {list(fields)}")
        return content
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"got a damaged record {path} ({error}); nothing was changed. "
        "Restore what is damaged, or delete this file to compute it again"
    )


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
