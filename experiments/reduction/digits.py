"""The images and the network of the mechanism reduction experiments.

    logits = fc_out relu(fc2 relu(fc1 x)),   taps fc1, hidden1, fc2, hidden2, fc_out

The published network has 512 units per hidden layer and reads MNIST; it is trained here, or read from a PyTorch
checkpoint. Its accuracy on test images describes it; nothing is chosen by it.
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from abstraction.evaluation import CLASSES, accuracy
from abstraction.evaluation.readouts import FactualLoss
from abstraction.files import read_npz
from abstraction.interventions import factual_outputs
from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.tasks.mnist import Digits, download_mnist, load_digits, load_mnist
from abstraction.training import Schedule, Watch, fit
from abstraction.typing import Params
from experiments.harness.methods import Tell
from experiments.harness.records import RunFolder, digest
from experiments.harness.trainings import Training, require_finite
from experiments.reduction.options import RECIPES, SHARED, Data, DataName, NetworkOptions

CLASS_COUNT = 10


class LoadedDigits(NamedTuple):
    """Images, and which they are."""

    name: DataName
    digits: Digits


def loaded_digits(options: Data, tell: Tell) -> LoadedDigits:
    """Read the images, after downloading them where that is asked for.

    Raises:
      ValueError: they are not there, damaged, or cannot be downloaded.
    """
    name = options.name
    if name == "digits":
        return LoadedDigits(name, load_digits())
    folder = options.data_dir or SHARED
    if options.download:
        download_mnist(folder, progress=lambda url, done, _: tell(f"{url}, {done / 1e6:.1f} MB"))
    return LoadedDigits(name, load_mnist(folder))


def network(options: NetworkOptions, data: LoadedDigits) -> Sequential:
    """Build the network's shape."""
    width = options.width or RECIPES[data.name].width
    layers = (
        Dense("fc1", width),
        Activation("hidden1", "relu"),
        Dense("fc2", width),
        Activation("hidden2", "relu"),
        Dense("fc_out", CLASS_COUNT),
    )
    return Sequential((data.digits.train_images.shape[1],), layers)


def load_network(path: Path, model: Sequential) -> Params:
    """Read a trained network.

    Raises:
      ValueError: the file is missing, is no npz file, or its arrays are not those of this network.
    """
    if not path.is_file():
        there = sorted(file.name for file in path.parent.glob("*.npz")) or "none"
        raise ValueError(f"got --network.checkpoint {path}, expected an npz file; in its folder: {there}")
    try:
        return model.params_from_torch(read_npz(path))
    except ValueError as error:
        raise ValueError(f"got an unusable checkpoint {path}: {error}") from error


def accuracy_on_test(model: Sequential, params: Params, digits: Digits) -> float:
    """Return the share of test images that are read correctly."""
    outputs = factual_outputs(Network(model, params), digits.test_images)
    return accuracy(np.asarray(CLASSES.decode(outputs)), digits.test_labels)


def trained_network(
    options: NetworkOptions, data: LoadedDigits, seed: int, run: RunFolder, tell: Tell
) -> tuple[Params, dict[str, float], dict[str, Any]]:
    """Train or load one network.

    Returns:
      Its parameters, what is known of it, and the digest of what it was made from.
    """
    model = network(options, data)
    if options.checkpoint is not None:
        params = load_network(options.checkpoint, model)
        arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        known = {"accuracy": accuracy_on_test(model, params, data.digits), "epochs": 0.0}
        return params, known, {"data": digest(arrays)}
    recipe = RECIPES[data.name]
    rows = {"inputs": data.digits.train_images, "labels": data.digits.train_labels}
    init_key, order_key = jax.random.split(jax.random.key(seed))
    watch = Training(
        run.path / "checkpoints" / f"seed-{seed}",
        lambda epoch, metrics: tell(f"network, epoch {epoch}, loss {metrics['loss']:.4f}"),
    )
    trained = fit(
        order_key,
        FactualLoss(model, CLASSES),
        model.init(init_key),
        _adam(options.learning_rate),
        rows,
        Schedule(options.batch_size or recipe.batch_size, options.epochs or recipe.epochs),
        Watch(checkpoints=watch.checkpoints, progress=watch),
        context=(),
    )
    require_finite(trained.params)
    known = {"accuracy": accuracy_on_test(model, trained.params, data.digits), "epochs": float(trained.epochs)}
    return trained.params, known, {"data": digest(rows)}


@cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """Make the optimizer once: a new one would compile the epoch again."""
    return optax.adam(learning_rate)
