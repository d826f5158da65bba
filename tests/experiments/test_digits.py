"""The network of the reduction experiment: which images it reads, how it is trained, loaded, resumed and refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tyro

from abstraction.tasks.mnist import load_digits
from experiments.harness.records import RunFolder
from experiments.harness.valid import check_values
from experiments.reduction import digits as experiment
from experiments.reduction import options
from experiments.reduction.digits import (
    LoadedDigits,
    load_network,
    loaded_digits,
    network,
    trained_network,
)
from experiments.reduction.options import Data, NetworkOptions

SMALL = NetworkOptions(width=32, epochs=6)
SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="module", name="data")
def _data() -> LoadedDigits:
    return LoadedDigits("digits", load_digits())


def train(folder: Path, data: LoadedDigits, options: NetworkOptions = SMALL, seed: int = 0) -> tuple[Any, list[str]]:
    told: list[str] = []
    return trained_network(options, data, seed, RunFolder(folder), told.append), told


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory: pytest.TempPathFactory, data: LoadedDigits) -> tuple[Any, list[str]]:
    return train(tmp_path_factory.mktemp("run"), data)


def torch_arrays(rng: np.random.Generator, pixels: int, width: int) -> dict[str, np.ndarray]:
    sizes = {"fc1": (width, pixels), "fc2": (width, width), "fc_out": (10, width)}
    arrays = {f"{name}.weight": rng.standard_normal(shape) / shape[1] ** 0.5 for name, shape in sizes.items()}
    arrays |= {f"{name}.bias": rng.standard_normal(shape[0]) for name, shape in sizes.items()}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def checkpoint(folder: Path, arrays: dict[str, Any]) -> Path:
    path = folder / "network.npz"
    np.savez(path, **arrays)
    return path


def test_a_short_training_reads_most_digits(trained: tuple[Any, list[str]]):
    (params, known, made_from), told = trained
    assert known["accuracy"] > 0.9
    assert known["epochs"] == 6
    assert [line.split(", loss")[0] for line in told] == [f"network, epoch {epoch}" for epoch in range(1, 7)]
    assert params["fc2"]["kernel"].shape == (32, 32)
    assert len(made_from["data"]) == 64


def test_a_seed_gives_the_same_network_and_another_seed_does_not(
    tmp_path: Path, data: LoadedDigits, trained: tuple[Any, list[str]]
):
    kernel = trained[0][0]["fc_out"]["kernel"]
    np.testing.assert_array_equal(train(tmp_path / "again", data)[0][0]["fc_out"]["kernel"], kernel)
    other = train(tmp_path / "other", data, dataclasses.replace(SMALL, epochs=1), seed=1)
    assert not np.array_equal(other[0][0]["fc_out"]["kernel"], kernel)


def test_a_resumed_training_ends_where_one_in_a_piece_does(
    tmp_path: Path, data: LoadedDigits, trained: tuple[Any, list[str]]
):
    train(tmp_path, data, dataclasses.replace(SMALL, epochs=2))
    (params, known, _), told = train(tmp_path, data)
    assert len(told) == 4
    assert known == trained[0][1]
    for ours, straight in zip(jax.tree.leaves(params), jax.tree.leaves(trained[0][0]), strict=True):
        np.testing.assert_array_equal(ours, straight)
    assert train(tmp_path, data)[1] == [], "a finished training went on"


def test_test_images_do_not_touch_training(tmp_path: Path, data: LoadedDigits, trained: tuple[Any, list[str]]):
    digits = data.digits
    blank = digits._replace(
        test_images=np.zeros_like(digits.test_images), test_labels=np.full_like(digits.test_labels, 3)
    )
    (params, known, made_from), _ = train(tmp_path, data._replace(digits=blank))
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(trained[0][0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert made_from == trained[0][2]
    assert known["accuracy"] in (0.0, 1.0), "one blank image has one reading"


def test_a_checkpoint_is_read_as_pytorch_wrote_it(tmp_path: Path, data: LoadedDigits, rng: np.random.Generator):
    arrays = torch_arrays(rng, 64, 32)
    options = dataclasses.replace(SMALL, checkpoint=checkpoint(tmp_path, arrays))
    (params, known, _), told = train(tmp_path / "run", data, options)
    hidden = data.digits.test_images
    for name in ("fc1", "fc2"):
        hidden = np.maximum(hidden @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"], 0)
    expected = hidden @ arrays["fc_out.weight"].T + arrays["fc_out.bias"]
    outputs, _ = network(options, data).apply(params, data.digits.test_images)
    # float32 sums of up to 64 products in another order, through three layers
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert known["accuracy"] == pytest.approx(np.mean(expected.argmax(axis=1) == data.digits.test_labels))
    assert told == []
    assert known["epochs"] == 0
    assert not (tmp_path / "run").exists()


def without(name: str) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


BAD = {
    "a missing array": (without("fc2.bias"), r"missed \['fc2.bias'\]"),
    "an unknown array": (lambda arrays: arrays | {"fc9.bias": np.zeros(3)}, r"unknown arrays \['fc9.bias'\]"),
    "another shape": (lambda arrays: arrays | {"fc2.weight": np.zeros((32, 31))}, r"'fc2.weight' of shape \(32, 31\)"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_checkpoint_of_other_arrays_is_refused(
    tmp_path: Path, data: LoadedDigits, rng: np.random.Generator, change: Callable, words: str
):
    path = checkpoint(tmp_path, change(torch_arrays(rng, 64, 32)))
    with pytest.raises(ValueError, match=f"got an unusable checkpoint {path}: .*{words}"):
        load_network(path, network(SMALL, data))


def test_a_network_of_other_images_is_refused(tmp_path: Path, data: LoadedDigits, rng: np.random.Generator):
    path = checkpoint(tmp_path, torch_arrays(rng, 784, 32))
    with pytest.raises(ValueError, match=r"'fc1.weight' of shape \(32, 784\), expected \(32, 64\)"):
        load_network(path, network(SMALL, data))


def test_a_damaged_or_missing_checkpoint_is_refused(tmp_path: Path, data: LoadedDigits, rng: np.random.Generator):
    path = checkpoint(tmp_path, torch_arrays(rng, 64, 32))
    content = path.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"got an unusable checkpoint {path}"):
            load_network(path, network(SMALL, data))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="got an unusable checkpoint"):
        load_network(tmp_path / "one.npy", network(SMALL, data))
    with pytest.raises(ValueError, match=r"expected an npz file; in its folder: \['network.npz'\]"):
        load_network(tmp_path / "other.npz", network(SMALL, data))


def test_sizes_are_the_published_ones_on_mnist_and_small_ones_on_the_bundled_digits(data: LoadedDigits):
    pixels = np.zeros((1, 784), np.float32)
    mnist = LoadedDigits("mnist", data.digits._replace(train_images=pixels, test_images=pixels))
    for one, sizes in ((mnist, (784, 512, 512, 512, 512, 10)), (data, (64, 128, 128, 128, 128, 10))):
        taps = network(NetworkOptions(), one).taps
        names = ("inputs", "fc1", "hidden1", "fc2", "hidden2", "fc_out")
        assert tuple(taps[name].width for name in names) == sizes
    assert options.RECIPES["mnist"] == (512, 15, 256)


def test_auto_is_mnist_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "SHARED", tmp_path / "nowhere")
    assert Data().name == "digits"
    assert Data(data_dir=tmp_path).name == "mnist"
    monkeypatch.setattr(options, "SHARED", tmp_path)
    assert Data().name == "mnist"
    assert Data("digits").name == "digits"


REFUSED = {
    "nowhere to read": (Data("mnist"), "got --data mnist, expected the folder .* --data-dir"),
    "nowhere to download to": (Data(download=True), "got --download True, expected --data-dir, the folder"),
    "a folder unused": (Data("digits", Path("mnist")), "got --data digits, expected --data mnist where --data-dir"),
    "a download unused": (Data("digits", download=True), "or --download is given"),
}


@pytest.mark.parametrize(("chosen", "words"), REFUSED.values(), ids=REFUSED)
def test_options_that_do_not_go_together_are_refused(
    chosen: Data, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(options, "SHARED", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=words):
        _ = chosen.name


def test_mnist_comes_from_its_folder_after_a_download_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Path] = []

    def downloaded(folder: Path, progress: Callable[[str, int, int | None], None]) -> Path:
        asked.append(folder)
        progress("https://mirror/file.gz", 1_500_000, None)
        return folder

    monkeypatch.setattr(experiment, "download_mnist", downloaded)
    told: list[str] = []
    for download in (True, False):
        with pytest.raises(ValueError, match=f"got {tmp_path}, expected train-images-idx3-ubyte or"):
            loaded_digits(Data(data_dir=tmp_path, download=download), told.append)
    assert asked == [tmp_path]
    assert told == ["https://mirror/file.gz, 1.5 MB"]


def test_the_bundled_digits_are_loaded_by_name(data: LoadedDigits):
    loaded = loaded_digits(Data("digits"), print)
    assert loaded.name == "digits"
    np.testing.assert_array_equal(loaded.digits.train_images, data.digits.train_images)


@pytest.mark.parametrize("name", ["width", "epochs", "batch_size"])
def test_sizes_below_one_are_refused(name: str):
    flag = name.replace("_", "-")
    check_values(dataclasses.replace(NetworkOptions(), **{name: 1}), "--network.")
    with pytest.raises(ValueError, match=f"got --network.{flag} 0, expected at least 1"):
        check_values(dataclasses.replace(NetworkOptions(), **{name: 0}), "--network.")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_learning_rates_must_be_positive_numbers(rate: float):
    with pytest.raises(ValueError, match=r"got --network\.learning-rate"):
        check_values(NetworkOptions(learning_rate=rate), "--network.")


def test_the_flags_of_the_images_have_no_prefix():
    @dataclasses.dataclass(frozen=True)
    class Both:
        data: Data = dataclasses.field(default_factory=Data)
        network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)

    line = ["--data", "mnist", "--data-dir", "folder", "--download", "--network.checkpoint", "one.npz"]
    both = tyro.cli(Both, args=line)
    assert both == Both(Data("mnist", Path("folder"), True), NetworkOptions(Path("one.npz")))


def test_the_given_network_reads_mnist_as_published(tmp_path: Path):
    path = SHARED / "mnist_mlp_seed0.npz"
    if not (path.exists() and (SHARED / "mnist").is_dir()):
        pytest.skip(f"neither MNIST nor its network is in {SHARED}")
    data = loaded_digits(Data("mnist", SHARED / "mnist"), print)
    _, known, _ = trained_network(NetworkOptions(path), data, 0, RunFolder(tmp_path), print)
    assert known["accuracy"] == pytest.approx(0.9818, abs=1e-9)
