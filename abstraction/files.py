"""Files of arrays: safetensors with a JSON header, written whole or not at all.

The header holds one entry of ours, JSON of `{"kind": ..., "about": ..., "digest": ...}`, the last a SHA-256 of all the
rest; no pickle, nothing that runs when it is read.
"""

import hashlib
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from abstraction.typing import AnyArray

_HEADER = "abstraction"


def write_arrays(path: str | Path, kind: str, arrays: Mapping[str, AnyArray], about: Mapping[str, Any]) -> None:
    """Write named arrays and what is known of them; the file appears under its name only when complete.

    Args:
      path: the file; its folder is made.
      kind: what it holds, with a version, such as "handle 1".
      arrays: by name.
      about: what JSON can hold.

    Raises:
      ValueError: something that JSON cannot hold, or an array of a type that is not a number.
    """
    stored = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    if strange := {name: array.dtype for name, array in stored.items() if array.dtype.kind in "OUSMmc"}:
        raise ValueError(f"got arrays of types {strange}, expected numbers")
    try:
        text = json.dumps(dict(about))
    except (TypeError, ValueError) as error:
        raise ValueError(f"got a description that is not JSON, expected numbers, words and lists: {error}") from error
    header = json.dumps({"kind": kind, "about": json.loads(text), "digest": _digest(kind, text, stored)})
    with replaced(path) as partial:
        save_file(stored, partial, {_HEADER: header})


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Yield a name to write a file under, which then takes its place whole, or not at all; its folder is made."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the process, so that two that write the same file do not write into each other's.
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_arrays(path: str | Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write_arrays` has written.

    Args:
      path: the file.
      kind: what it must hold.

    Returns:
      The arrays by name, and what is known of them.

    Raises:
      ValueError: the file is damaged, or holds something else.
      FileNotFoundError: there is no such file.
    """
    found, about, arrays = _read(path)
    if found != kind:
        raise ValueError(f"got a file of {found!r} in {path}, expected {kind!r}")
    return arrays, about


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file that may come from anywhere.

    Every header is looked at before its array is read: an array must be of real numbers and as long as what is stored.

    Raises:
      ValueError: the file is damaged, holds something else than arrays of real numbers, or numbers that are not finite.
      FileNotFoundError: there is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {member.filename.removesuffix(".npy"): _npy(archive, member) for member in archive.infolist()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"got an unusable file {path}, expected an npz of real numbers: {error}") from error
    return arrays


def _npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{member.filename} has format {version}, expected 1.0 or 2.0")
        shape, _, dtype = readers[version](stream)
    if dtype.kind not in "fiu":
        raise ValueError(f"{member.filename} is of type {dtype}, expected real numbers")
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} claims shape {shape}, expected what {member.file_size} bytes can hold")
    with archive.open(member) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{member.filename} has values that are not finite, expected finite numbers")
    return array


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file that may come from anywhere.

    Raises:
      ValueError: the file is damaged, or holds something else than finite real numbers.
      FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"got {path}, expected a safetensors file there")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"got an unusable file {path}, expected safetensors of real numbers: {error}") from error
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"got arrays {broken} in {path} with values that are not finite, expected finite numbers")
    return arrays


def kind_of(path: str | Path) -> str:
    """Return what a file holds.

    Raises:
      ValueError: the file is damaged, or is not one of ours.
      FileNotFoundError: there is no such file.
    """
    return _read(path, header_only=True)[0]


def _read(path: str | Path, *, header_only: bool = False) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"got {path}, expected a file that was saved there")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            kind, about = str(header["kind"]), dict(header["about"])
            if header_only:
                return kind, about, {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            if _digest(kind, json.dumps(about), arrays) != header["digest"]:
                raise ValueError("its content has another checksum than its header")
            return kind, about, arrays
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"got an unreadable file {path}, expected one of this library: {error!r}") from error


def _digest(kind: str, about: str, arrays: Mapping[str, np.ndarray]) -> str:
    total = hashlib.sha256(json.dumps([kind, about]).encode())
    for name in sorted(arrays):
        total.update(json.dumps([name, arrays[name].dtype.name, *arrays[name].shape]).encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()
