"""Reading digits: the file format, what is refused, the download, the splits, and PyTorch's permutation."""

import gzip
import hashlib
import struct
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from abstraction.tasks.mnist import (
    DEVIATION,
    MEAN,
    MNIST_SHA256,
    Digits,
    calibration_rows,
    download_mnist,
    load_digits,
    load_mnist,
    read_idx,
    torch_randperm,
)

STEMS = tuple(MNIST_SHA256)
REAL = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture(autouse=True)
def _directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask this machine, not a proxy."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(name="arrays")
def _arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = ((7, 3, 2), (7,), (4, 3, 2), (4,))
    high = (256, 10, 256, 10)
    return {stem: rng.integers(0, top, shape) for stem, shape, top in zip(STEMS, shapes, high, strict=True)}


@pytest.fixture(name="checksums")
def _checksums(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {stem: hashlib.sha256(idx(array)).hexdigest() for stem, array in arrays.items()}


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Two files gzipped, two raw."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for at, (stem, array) in enumerate(arrays.items()):
        (folder / (f"{stem}.gz" if at % 2 else stem)).write_bytes(gzip.compress(idx(array)) if at % 2 else idx(array))
    return folder


@pytest.fixture(name="served")
def _served(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The folder that mirrors serve."""
    folder = tmp_path / "served"
    folder.mkdir()
    for stem, array in arrays.items():
        (folder / f"{stem}.gz").write_bytes(gzip.compress(idx(array)))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_idx_file_is_read_by_hand(tmp_path: Path):
    path = tmp_path / "two-by-three"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 250, 251, 255]))
    np.testing.assert_array_equal(read_idx(path), [[1, 2, 3], [250, 251, 255]])
    assert read_idx(path).dtype == np.uint8


def test_raw_and_gzipped_files_say_the_same(tmp_path: Path, rng: np.random.Generator):
    array = rng.integers(0, 256, (3, 4, 5))
    (tmp_path / "raw").write_bytes(idx(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "raw"), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed"), array)


def test_images_become_scaled_rows_and_labels_stay(
    folder: Path, arrays: dict[str, np.ndarray], checksums: dict[str, str]
):
    digits = load_mnist(folder, checksums=checksums)
    train, train_labels, test, test_labels = arrays.values()
    for found, images in ((digits.train_images, train), (digits.test_images, test)):
        assert found.dtype == np.float32
        expected = (images.reshape(len(images), 6) / 255 - 0.1307) / 0.3081
        # float32 against float64
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(digits.train_labels, train_labels)
    np.testing.assert_array_equal(digits.test_labels, test_labels)


BAD = {
    "text": (b"<html>404</html>", "magic number"),
    "empty": (b"", "magic number"),
    "signed bytes": (b"\0\0\x09\x01\0\0\0\x01\0", "IDX type 0x09, expected 0x08"),
    "half a header": (
        b"\0\0\x08\x03\0\0\0\x07",
        "of 8 bytes and 3 axes, .* the sizes of 3 axes in its first 16",
    ),
    "no axes": (b"\0\0\x08\0\0", "the sizes of 0 axes"),
    "truncated": (idx(np.zeros((7, 3, 2)))[:-1], r"of 57 bytes, truncated; expected 58 for sizes \[7, 3, 2\]"),
    "trailing bytes": (idx(np.zeros((7, 3, 2))) + b"\0", "of 59 bytes, too long; expected 58"),
    "truncated gzip": (gzip.compress(idx(np.arange(42).reshape(7, 3, 2)))[:-9], "a complete gzip file"),
    "damaged gzip": (b"\x1f\x8b" + bytes(40), "a complete gzip file"),
    "labels": (idx(np.zeros(7)), "with 1 axes, expected 3"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_a_damaged_file_is_refused_by_name(folder: Path, checksums: dict[str, str], content: bytes, words: str):
    path = folder / STEMS[0]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        load_mnist(folder, checksums=checksums)
    assert str(path) in str(error.value)


def test_one_changed_pixel_is_refused(folder: Path, checksums: dict[str, str]):
    path = folder / STEMS[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(ValueError, match=f"{path} with SHA-256 {found} .*expected {checksums[STEMS[0]]}"):
        load_mnist(folder, checksums=checksums)
    load_mnist(folder, checksums=None)


def test_other_data_is_not_mistaken_for_mnist(folder: Path):
    with pytest.raises(ValueError, match=f"expected {MNIST_SHA256[STEMS[0]]}"):
        load_mnist(folder)


COUNTS = {"fewer labels": (1, (6,)), "other images": (2, (4, 2, 3)), "more test images": (2, (5, 3, 2))}


@pytest.mark.parametrize(("at", "shape"), COUNTS.values(), ids=COUNTS)
def test_counts_and_sizes_must_agree(folder: Path, at: int, shape: tuple[int, ...]):
    (folder / STEMS[at]).with_suffix(".gz" if at % 2 else "").write_bytes(idx(np.zeros(shape)))
    with pytest.raises(ValueError, match="expected as many images as labels") as error:
        load_mnist(folder, checksums=None)
    assert str(shape) in str(error.value)


def test_no_images_are_refused(folder: Path):
    for at, shape in enumerate(((0, 3, 2), (0,))):
        (folder / STEMS[at]).with_suffix(".gz" if at % 2 else "").write_bytes(idx(np.zeros(shape)))
    with pytest.raises(ValueError, match="at least one"):
        load_mnist(folder, checksums=None)


def test_a_missing_file_is_named_with_what_is_there(folder: Path):
    (folder / f"{STEMS[3]}.gz").unlink()
    with pytest.raises(ValueError, match=rf"expected {STEMS[3]} or {STEMS[3]}.gz in it; there: \['t10k-images"):
        load_mnist(folder, checksums=None)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=f"{tmp_path / 'nowhere'} is no folder"):
        load_mnist(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected an IDX file; there: "):
        read_idx(tmp_path / "nothing")


def test_the_download_fetches_what_is_missing(
    folder: Path, served: Path, arrays: dict[str, np.ndarray], checksums: dict[str, str]
):
    (folder / STEMS[0]).unlink()
    kept = (folder / STEMS[2]).stat().st_mtime_ns
    told: list[tuple[str, int, int | None]] = []
    assert (
        download_mnist(folder, mirrors=[served.as_uri()], checksums=checksums, progress=lambda *one: told.append(one))
        == folder
    )
    size = (served / f"{STEMS[0]}.gz").stat().st_size
    assert told == [(f"{served.as_uri()}/{STEMS[0]}.gz", size, size)]
    assert (folder / STEMS[2]).stat().st_mtime_ns == kept
    found = load_mnist(folder, checksums=checksums)
    np.testing.assert_array_equal(found.train_labels, arrays[STEMS[1]])


def test_the_download_goes_on_to_the_next_mirror(tmp_path: Path, served: Path, checksums: dict[str, str]):
    handler = partial(Silent, directory=str(served))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirrors = [(tmp_path / "no-mirror").as_uri(), f"http://127.0.0.1:{server.server_port}/"]
        download_mnist(tmp_path / "new" / "mnist", mirrors=mirrors, checksums=checksums)
        server.shutdown()
    assert names(tmp_path / "new" / "mnist") == sorted(f"{stem}.gz" for stem in STEMS)
    load_mnist(tmp_path / "new" / "mnist", checksums=checksums)


class Silent(SimpleHTTPRequestHandler):
    """A server that keeps its log to itself."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("damage", [lambda body: body[:-5], lambda body: gzip.compress(b"another file")])
def test_a_corrupted_body_leaves_nothing_behind(tmp_path: Path, served: Path, checksums: dict[str, str], damage):
    path = served / f"{STEMS[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"got no {STEMS[0]}.gz from 1 mirrors .*Without a network"):
        download_mnist(tmp_path / "new", mirrors=[served.as_uri()], checksums=checksums)
    assert not (tmp_path / "new").exists()


def test_without_a_network_the_error_says_what_to_do(tmp_path: Path):
    # Nothing listens on port 1 of this machine.
    with pytest.raises(ValueError, match=r"2 mirrors .*put .*train-labels-idx1-ubyte\.gz.* into .*scikit-learn"):
        download_mnist(tmp_path, mirrors=["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"])
    assert names(tmp_path) == []


def test_another_file_of_the_name_is_left_alone(folder: Path, served: Path, checksums: dict[str, str]):
    path = folder / STEMS[0]
    path.write_bytes(b"somebody's own")
    with pytest.raises(ValueError, match=f"{path} .*nothing was changed"):
        download_mnist(folder, mirrors=[served.as_uri()], checksums=checksums)
    assert path.read_bytes() == b"somebody's own"


@pytest.fixture(scope="module", name="mnist")
def _mnist() -> Digits:
    if not REAL.is_dir():
        pytest.skip(f"MNIST is not in {REAL}")
    return load_mnist(REAL)


def test_mnist_has_its_counts_and_moments(mnist: Digits):
    assert mnist.train_images.shape == (60_000, 784)
    assert mnist.test_images.shape == (10_000, 784)
    assert np.bincount(mnist.train_labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(mnist.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # MEAN and DEVIATION are rounded to four digits.
    assert abs(mnist.train_images.mean(dtype=np.float64)) < 5e-5 / DEVIATION
    assert abs(mnist.train_images.std(dtype=np.float64) - 1) < 5e-5 / DEVIATION
    assert mnist.train_images.min() == pytest.approx(-MEAN / DEVIATION)


def test_bundled_digits_are_split_once_and_for_all():
    digits, again = load_digits(), load_digits()
    assert digits.train_images.shape == (1297, 64)
    assert digits.test_images.shape == (500, 64)
    for one, other in zip(digits, again, strict=True):
        np.testing.assert_array_equal(one, other)
    together = np.concatenate([digits.train_labels, digits.test_labels])
    assert np.bincount(together).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert min(np.bincount(digits.test_labels)) > 30
    rows = np.concatenate([digits.train_images, digits.test_images])
    assert len(np.unique(rows, axis=0)) == 1797, "no image is in both splits"


def test_bundled_pixels_have_mean_zero_and_variance_one():
    images = load_digits().train_images.astype(np.float64)
    # stored in float32
    assert abs(images.mean()) < 1e-6
    assert abs(images.std() - 1) < 1e-6


def test_the_split_of_the_bundled_digits_has_its_size(unchecked: None):
    assert len(load_digits(test=1).train_images) == 1796
    for test in (0, 1797):
        with pytest.raises(ValueError, match=f"got {test} test images, expected between 1 and 1796"):
            load_digits(test=test)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"pip install 'abstraction-jax\[experiments\]'"):
        load_digits()


def test_permutations_are_those_that_pytorch_drew():
    # torch 2.13.0: torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    known = [36044, 10678, 57327, 55074, 21567, 15479, 9481, 43095, 26145, 7479]
    assert torch_randperm(60_000, 0)[:10].tolist() == known
    assert torch_randperm(10, 0).tolist() == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]
    assert calibration_rows(60_000, 2_000)[:10].tolist() == known


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_a_permutation_holds_every_row_once(count: int, seed: int):
    assert np.sort(torch_randperm(count, seed)).tolist() == list(range(count))


def test_calibration_rows_grow_from_the_front_and_depend_on_the_seed():
    few, many = calibration_rows(500, 20, seed=3), calibration_rows(500, 400, seed=3)
    np.testing.assert_array_equal(few, many[:20])
    assert not np.array_equal(few, calibration_rows(500, 20, seed=4))


@pytest.mark.parametrize(("count", "seed"), [(0, 0), ((2**32 - 1) // 20, 0), (5, -1)])
def test_permutations_that_pytorch_draws_otherwise_are_refused(count: int, seed: int):
    with pytest.raises(ValueError, match=f"got count {count} and seed {seed}, expected a count in"):
        torch_randperm(count, seed)


@pytest.mark.parametrize("count", [0, 501])
def test_more_calibration_rows_than_there_are_are_refused(count: int):
    with pytest.raises(ValueError, match=f"got {count} calibration rows, expected between 1 and the 500"):
        calibration_rows(500, count)
