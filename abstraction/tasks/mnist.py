"""Handwritten digits: MNIST from its IDX files, and the small digits that scikit-learn bundles.

    x = (pixel / 255 - .1307) / .3081,   one row of 784 pixels per image

An IDX file is a magic number 0 0 8 n (8: unsigned bytes, n axes), the n sizes as big-endian 32-bit integers, and the
bytes, last axis fastest; files may be gzipped. The calibration rows of the certified-interventional-fidelity
experiments are `torch.randperm(60000)[:2000]` with seed 0, reproduced here bit by bit.
"""

import gzip
import hashlib
import io
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
from jaxtyping import Float, Int, UInt8

from abstraction.checks import is_whole, whole

# SHA-256 of the four files, unpacked.
MNIST_SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
MEAN, DEVIATION = 0.1307, 0.3081
_UNSIGNED_BYTE = 8
_CHUNK = 1 << 16
_MOST_AXES = 8
# Deflate writes at least one bit per 129 bytes.
_MOST_RATIO = 1032
# From here on PyTorch draws 64 bits per step.
_RANDPERM_LIMIT = (2**32 - 1) // 20

DownloadProgress = Callable[[str, int, int | None], None]
"""Called with an address, the bytes read so far, and how many there are, where the server says."""


class Digits(NamedTuple):
    """Images of digits as rows of scaled pixels, and what they show.

    Attributes:
      train_images: `[N, pixels]`, float32.
      train_labels: `[N]`, 0 to 9, int32.
      test_images: likewise, of other images.
      test_labels: likewise.
    """

    train_images: Float[np.ndarray, "N pixels"]
    train_labels: Int[np.ndarray, " N"]
    test_images: Float[np.ndarray, "M pixels"]
    test_labels: Int[np.ndarray, " M"]


def load_mnist(folder: str | Path, *, checksums: Mapping[str, str] | None = MNIST_SHA256) -> Digits:
    """Read MNIST, or data in its format, from four IDX files, each raw or with the ending `.gz`.

    Args:
      folder: where the files are.
      checksums: SHA-256 of each unpacked file, by name without ending; None reads other data of this format.

    Raises:
      ValueError: a file is missing, truncated, longer than it says, no IDX file, not the file of its checksum, or has
        other counts than its partner.
    """
    folder = Path(folder)
    arrays: list[np.ndarray] = []
    for stem, axes in zip(MNIST_SHA256, (3, 1, 3, 1), strict=True):
        path = _existing(folder, stem)
        if path is None:
            raise ValueError(f"got {folder}, expected {stem} or {stem}.gz in it; {_there(folder)}")
        content = _unpacked(path.read_bytes(), str(path))
        array = _parsed(content, str(path))
        if array.ndim != axes:
            raise ValueError(f"got {path} with {array.ndim} axes, expected {axes}")
        if checksums is not None:
            _check_sum(content, checksums[stem], str(path))
        arrays.append(array)
    train_images, train_labels, test_images, test_labels = arrays
    _check_counts(folder, train_images, train_labels, test_images, test_labels)
    return Digits(
        _scaled(train_images), train_labels.astype(np.int32), _scaled(test_images), test_labels.astype(np.int32)
    )


def read_idx(path: str | Path) -> UInt8[np.ndarray, "..."]:
    """Read an IDX file of unsigned bytes, raw or gzipped.

    Raises:
      ValueError: it is missing, damaged, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"got {path}, expected an IDX file; {_there(path.parent)}")
    return _parsed(_unpacked(path.read_bytes(), str(path)), str(path))


def download_mnist(
    folder: str | Path,
    *,
    mirrors: Sequence[str] = MNIST_MIRRORS,
    checksums: Mapping[str, str] = MNIST_SHA256,
    progress: DownloadProgress | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch those of the four files that are not there; a file appears only once its checksum is right.

    Args:
      folder: created if needed.
      mirrors: addresses of folders, tried in turn for every file.
      checksums: SHA-256 of each unpacked file, by name without ending.
      progress: told about every chunk.
      timeout: seconds without an answer before a mirror is given up.

    Returns:
      The folder.

    Raises:
      ValueError: no mirror has a file, or the folder holds another file of that name, which is left alone.
    """
    folder = Path(folder)
    for stem, checksum in checksums.items():
        path = _existing(folder, stem)
        if path is not None:
            try:
                _check_sum(_unpacked(path.read_bytes(), str(path)), checksum, str(path))
            except ValueError as error:
                raise ValueError(f"{error}; nothing was changed: delete the file to download it again") from error
            continue
        packed = _fetched(f"{stem}.gz", folder, mirrors, checksum, progress, timeout)
        _write(folder / f"{stem}.gz", packed)
    return folder


def load_digits(*, test: int = 500) -> Digits:
    """Return scikit-learn's 1797 digits of 8 x 8 pixels, split by a fixed permutation.

    Pixels are shifted and scaled together, so that those of all training images have mean 0 and variance 1.

    Args:
      test: images of the test split.

    Raises:
      ValueError: scikit-learn is not installed, or no image is left for one of the splits.
    """
    try:
        from sklearn import datasets  # an optional extra
    except ImportError as error:
        raise ValueError(
            "got no scikit-learn, expected it for its digits: pip install 'abstraction-jax[experiments]'"
        ) from error
    images, labels = (np.asarray(part) for part in datasets.load_digits(return_X_y=True))
    if not is_whole(test) or not 1 <= test < len(images):
        raise ValueError(f"got {test} test images, expected between 1 and {len(images) - 1}")
    order = torch_randperm(len(images), 0)
    train, held_out = order[:-test], order[-test:]
    scaled = ((images - images[train].mean()) / images[train].std()).astype(np.float32)
    labels = labels.astype(np.int32)
    return Digits(scaled[train], labels[train], scaled[held_out], labels[held_out])


def calibration_rows(rows: int, count: int, *, seed: int = 0) -> Int[np.ndarray, " count"]:
    """Draw distinct rows of a training set: `torch.randperm(rows)[:count]` under a seed.

    Raises:
      ValueError: more rows than there are, or fewer than one.
    """
    whole("rows", rows, 1)
    if not is_whole(count) or not 1 <= count <= rows:
        raise ValueError(f"got {count} calibration rows, expected between 1 and the {rows} of the training set")
    return torch_randperm(rows, seed)[:count]


def torch_randperm(count: int, seed: int) -> Int[np.ndarray, " count"]:
    """Permute 0 .. n - 1 as PyTorch's `randperm` does on a CPU, with a generator that was given this seed.

    With w_i the 32-bit outputs of the Mersenne Twister, whose first state both libraries fill alike:

        for i = 0 .. n - 2:   swap r_i and r_j,   j = i + w_i mod (n - i)

    Args:
      count: n, at least 1 and below (2^32 - 1) / 20, where PyTorch changes its method.
      seed: at least 0; as in PyTorch, its lowest 32 bits count.

    Raises:
      ValueError: a number out of its range.
    """
    if not (is_whole(count) and is_whole(seed)) or not 1 <= count < _RANDPERM_LIMIT or seed < 0:
        raise ValueError(
            f"got count {count} and seed {seed}, expected a count in [1, {_RANDPERM_LIMIT}) and a seed of at least 0"
        )
    # NumPy's newer generators fill the state in another way.
    twister = np.random.RandomState(seed % 2**32)
    words = twister.randint(0, 2**32, size=count - 1, dtype=np.uint32).tolist()
    order = list(range(count))
    for i, word in enumerate(words):
        j = i + word % (count - i)
        order[i], order[j] = order[j], order[i]
    return np.array(order)


def _scaled(images: UInt8[np.ndarray, "N height width"]) -> Float[np.ndarray, "N pixels"]:
    """Scale by table: 256 values are computed, and no float copy of the images beside the result."""
    table = (np.arange(256, dtype=np.float32) / 255 - MEAN) / DEVIATION
    return table[images.reshape(len(images), -1)]


def _check_counts(folder: Path, *arrays: np.ndarray) -> None:
    shapes = [array.shape for array in arrays]
    train, train_labels, test, test_labels = shapes
    if train[:1] != train_labels or test[:1] != test_labels or train[1:] != test[1:] or 0 in (*train, *test):
        raise ValueError(
            f"got shapes {dict(zip(MNIST_SHA256, shapes, strict=True))} in {folder}, expected as many images as "
            "labels, at least one, and one size of image"
        )


def _existing(folder: Path, stem: str) -> Path | None:
    return next((path for path in (folder / f"{stem}.gz", folder / stem) if path.is_file()), None)


def _there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder"
    names = sorted(path.name for path in folder.iterdir())
    return f"there: {names[:12]}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"


def _unpacked(content: bytes, name: str) -> bytes:
    """Undo gzip, which its first two bytes tell: a raw IDX file begins with zeros.

    The header inside says how long the rest is, and no more than a byte beyond that is unpacked.
    """
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            head = file.read(4)
            head += file.read(4 * head[3] if len(head) == 4 else 0)
            rest = _expected(head, name) - len(head)
            if rest > _MOST_RATIO * len(content):
                raise ValueError(f"got {name} of {len(content)} bytes, expected a gzip file long enough for {rest}")
            return head + file.read(rest + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"got {name} of {len(content)} bytes, expected a complete gzip file: {error}") from error


def _parsed(content: bytes, name: str) -> UInt8[np.ndarray, "..."]:
    expected = _expected(content, name)
    header = 4 + 4 * content[3]
    sizes = [int(size) for size in np.frombuffer(content, ">u4", content[3], 4)]
    if len(content) != expected:
        trouble = "truncated" if len(content) < expected else "too long"
        raise ValueError(f"got {name} of {len(content)} bytes, {trouble}; expected {expected} for sizes {sizes}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)


def _expected(content: bytes, name: str) -> int:
    """Return how many bytes a file has according to its header, which is checked."""
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(
            f"got {name} that begins with {content[:4]!r}, expected the magic number 0 0 8 n of an IDX file"
        )
    kind, axes = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise ValueError(f"got {name} of IDX type {kind:#04x}, expected 0x08, unsigned bytes")
    header = 4 + 4 * axes
    if not 1 <= axes <= _MOST_AXES or len(content) < header:
        raise ValueError(
            f"got {name} of {len(content)} bytes and {axes} axes, expected 1 to {_MOST_AXES} axes and the sizes of "
            f"{axes} axes in its first {header}"
        )
    return header + math.prod(int(size) for size in np.frombuffer(content, ">u4", axes, 4))


def _check_sum(content: bytes, checksum: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise ValueError(f"got {name} with SHA-256 {found} (unpacked), expected {checksum}")


def _fetched(
    file: str,
    folder: Path,
    mirrors: Sequence[str],
    checksum: str,
    progress: DownloadProgress | None,
    timeout: float,
) -> bytes:
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{file}"
        try:
            packed = _answer(url, progress, timeout)
            _check_sum(_unpacked(packed, url), checksum, url)
            return packed
        except (OSError, HTTPException, ValueError) as error:
            failures.append(f"{url}: {error}")
    raise ValueError(
        f"got no {file} from {len(mirrors)} mirrors ({'; '.join(failures)}), expected one that answers. Without a "
        f"network, put {sorted(f'{stem}.gz' for stem in MNIST_SHA256)} into {folder}, or use scikit-learn's digits"
    )


def _answer(url: str, progress: DownloadProgress | None, timeout: float) -> bytes:
    with urlopen(url, timeout=timeout) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        content = bytearray()
        while chunk := response.read(_CHUNK):
            content += chunk
            if progress is not None:
                progress(url, len(content), total)
    return bytes(content)


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is either complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
