"""The network of the binary addition experiment: trained here, or read from a PyTorch checkpoint."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import optax

from abstraction.evaluation import Bits, accuracy
from abstraction.files import read_npz
from abstraction.interventions import factual_outputs
from abstraction.models import GRU, Network
from abstraction.tasks import addition
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.typing import Params
from experiments.addition.options import AdderBackbone
from experiments.harness.records import RunFolder, digest
from experiments.harness.trainings import Training, require_finite

BITS = Bits()
SAMPLED = 65_536


@dataclasses.dataclass(frozen=True)
class AdditionLoss:
    """Binary cross-entropy of the bits of the sum."""

    model: GRU

    def __call__(self, params: Params, batch: dict[str, jax.Array], context: tuple) -> jax.Array:
        outputs, _ = self.model.apply(params, batch["inputs"])
        return BITS.loss(outputs, batch["labels"]).mean()


def gru(options: AdderBackbone) -> GRU:
    """Build the network's shape."""
    return GRU(2, options.width, options.bits)


def factual_data(seed: int, bits: int) -> dict[str, np.ndarray]:
    """Return every input and its sum, or random ones where there are too many."""
    exhaustive = bits <= addition.EXHAUSTIVE_BITS
    setting = addition.every_input(bits) if exhaustive else addition.random_inputs(seed, SAMPLED, bits)
    labels = np.asarray(addition.adder(bits).run(setting)["total"]).astype(np.int32)
    return {"inputs": addition.encode(setting, bits), "labels": labels}


def checkpoint_file(options: AdderBackbone, seed: int) -> str:
    """Name the checkpoint of a seed."""
    return f"binary_addition_gru_h{options.width}_seed{seed}.npz"


def load_adder(options: AdderBackbone, seed: int) -> Params:
    """Read a trained network.

    Raises:
      ValueError: the file is missing, is no npz file, or its arrays are not those of this network.
    """
    folder = options.checkpoints
    if folder is None:
        raise ValueError("got no --backbone.checkpoints, expected the folder of trained networks")
    path = folder / checkpoint_file(options, seed)
    if not path.exists():
        there = sorted(file.name for file in folder.glob("binary_addition_gru_h*.npz")) or "none"
        raise ValueError(f"got --backbone.checkpoints {folder}, expected {path.name} in it; adders there: {there}")
    try:
        return gru(options).params_from_torch(read_npz(path))
    except ValueError as error:
        raise ValueError(f"got an unusable checkpoint {path}: {error}") from error


def exactness(model: GRU, params: Params, data: dict[str, np.ndarray]) -> float:
    """Return the share of sums that are right in every bit."""
    outputs = factual_outputs(Network(model, params), data["inputs"])
    return accuracy(np.asarray(BITS.decode(outputs)), data["labels"])


def trained_adder(
    options: AdderBackbone, seed: int, run: RunFolder, report: Callable[[str], None]
) -> tuple[Params, dict[str, float], dict[str, Any]]:
    """Train or load one network.

    Returns:
      Its parameters, what is known of it (the seconds of all legs too), and the digest of what it was made from.
    """
    watch = Training(
        run.path / "checkpoints" / f"seed-{seed}",
        lambda epoch, metrics: report(f"seed {seed}: backbone, epoch {epoch}, {metrics['accuracy']:.4f} of sums exact"),
    )
    with watch.timed() as elapsed:
        params, known, details = _trained_or_read(options, seed, watch)
    require_finite(params)
    return params, {**known, "seconds": elapsed.run, "seconds_compile": elapsed.compile}, details


def _trained_or_read(
    options: AdderBackbone, seed: int, watch: Training
) -> tuple[Params, dict[str, float], dict[str, Any]]:
    model, data = gru(options), factual_data(seed, options.bits)
    if options.checkpoints is not None:
        params = load_adder(options, seed)
        arrays = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        return params, {"accuracy": exactness(model, params, data), "epochs": 0.0}, {"data": digest(arrays)}
    init_key, order_key = jax.random.split(jax.random.key(seed))
    trained = fit(
        order_key,
        AdditionLoss(model),
        model.init(init_key),
        _adam(options.learning_rate),
        data,
        Schedule(options.batch_size, options.epochs, Stop("accuracy", 1.0, 1)),
        Watch(lambda params: {"accuracy": exactness(model, params, data)}, watch.checkpoints, watch),
        context=(),
    )
    known = {"accuracy": exactness(model, trained.params, data), "epochs": float(trained.epochs)}
    return trained.params, known, {"data": digest(data)}


@cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """Make the optimizer once: a new one would compile the epoch again."""
    return optax.adam(learning_rate)
