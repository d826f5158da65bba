"""Files that are complete or not there, records that carry the checksum of their content, and one writer per folder.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed. A record is a JSON object
with `schema` and `sha256`, the digest of everything else in it: an edited number is not the number that was written.
"""

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abstraction.files import replaced

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SCHEMA = 2
"""Version of the records; 1 had no checksums."""
LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)


def is_leftover(path: Path) -> bool:
    """Tell the temporary files and the lock that a killed process leaves behind."""
    return path.name == LOCK or bool(_TEMPORARY.fullmatch(path.name))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed, from a run's folder whose lock is held."""
    for path in list(folder.rglob(".*.tmp")):
        if is_leftover(path) and path.is_file():
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder; the system lets go of the lock when the process ends.

    Raises:
      ValueError: another process holds the lock.
    """
    path = folder / LOCK
    file = _open_lock(path)
    try:
        yield
    finally:
        # Removed while it is held: whoever opened it in between finds another file under its name.
        with suppress(OSError):
            path.unlink()
        os.close(file)


def _open_lock(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(file, path)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _take(file: int, path: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt  # exists on Windows alone

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
    except OSError as error:
        if error.errno in _NO_LOCKS:
            print(f"note: {path.parent} is on a file system without locks: start no second run on it", file=sys.stderr)
            return
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise ValueError(
            f"got {path.parent}, which another process is writing to; expected a folder of its own, or wait for it"
        ) from None


def to_json(content: Any) -> bytes:
    """Write plain values, arrays and paths as JSON."""
    return (json.dumps(content, indent=2, default=_plain) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> bytes:
    """Write a record with its schema and checksum."""
    plain = json.loads(to_json({**content, "schema": SCHEMA}))
    plain.pop("sha256", None)
    return to_json({**plain, "sha256": checksum(plain)})


def checksum(content: Any) -> str:
    """Return the SHA-256 of plain values, whatever the order of their names; floats count by their bits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
      ValueError: the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"got {type(content).__name__}, expected an object")
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a record, and check that it is what was written.

    Raises:
      ValueError: the file cannot be read, is of another schema, or was changed since it was written.
    """
    content = read_object(path)
    schema, written = content.get("schema"), content.pop("sha256", None)
    if schema != SCHEMA:
        raise damaged(path, f"got schema {schema!r}, expected {SCHEMA}")
    if written != checksum(content):
        raise damaged(path, "its checksum is not that of its content: it was changed after it was written")
    return content


def damaged(path: Path, reason: object) -> ValueError:
    """Make the error of a record that is not what was written."""
    shown, whole = " ".join(str(reason).split()), path.name in ("config.json", "manifest.json")
    advice = "run again in another folder" if whole else "delete this file to compute it again"
    return ValueError(
        f"got a damaged record {path} ({shown}), expected what the run wrote; nothing was changed. "
        f"Restore what is damaged, or {advice}"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"got {type(value)}, expected something JSON can hold")
