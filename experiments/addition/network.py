"""The network of the binary addition experiment: trained here, or read from a PyTorch checkpoint."""

from functools import cache

import jax
import numpy as np
import optax

from abstraction.evaluation import Bits, accuracy
from abstraction.evaluation.readouts import FactualLoss
from abstraction.files import read_npz
from abstraction.interventions import factual_outputs
from abstraction.models import GRU, Network
from abstraction.tasks import addition
from abstraction.training import Schedule, Stop, Watch, fit
from abstraction.typing import Params
from experiments.addition.options import AdderBackbone
from experiments.harness.methods import Tell
from experiments.harness.records import RunFolder, digest
from experiments.harness.results import Results
from experiments.harness.trainings import Training, require_finite
from experiments.harness.valid import parse_seeds

BITS = Bits()
SAMPLED = 65_536


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


def load_adder(options: AdderBackbone, seed: int, flag: str = "--backbone") -> Params:
    """Read a trained network; errors name the flag of the group of options that ask for it.

    Raises:
      ValueError: the file is missing, is no npz file, or its arrays are not those of this network.
    """
    folder = options.checkpoints
    if folder is None:
        raise ValueError(f"got no {flag}.checkpoints, expected the folder of trained networks")
    path = folder / checkpoint_file(options, seed)
    if not path.exists():
        there = sorted(file.name for file in folder.glob("binary_addition_gru_h*.npz")) or "none"
        raise ValueError(f"got {flag}.checkpoints {folder}, expected {path.name} in it; adders there: {there}")
    try:
        return gru(options).params_from_torch(read_npz(path))
    except ValueError as error:
        raise ValueError(f"got an unusable checkpoint {path}: {error}") from error


def check_checkpoints(options: AdderBackbone, seeds: str, flag: str = "--backbone") -> None:
    """Refuse checkpoints that are not there, before anything is computed."""
    if options.checkpoints is not None:
        for seed in parse_seeds(seeds):
            load_adder(options, seed, flag)


def exactness(model: GRU, params: Params, data: dict[str, np.ndarray]) -> float:
    """Return the share of sums that are right in every bit."""
    outputs = factual_outputs(Network(model, params), data["inputs"])
    return accuracy(np.asarray(BITS.decode(outputs)), data["labels"])


def trained_adder(options: AdderBackbone, results: Results, run: RunFolder, tell: Tell) -> Network:
    """Train or load a seed's network; what is known of it, the seconds of all legs too, goes to the results."""
    model, data, seed = gru(options), factual_data(results.seed, options.bits), results.seed
    watch = Training(
        run.path / "checkpoints" / f"seed-{seed}",
        lambda epoch, metrics: tell(f"backbone, epoch {epoch}, {metrics['accuracy']:.4f} of sums exact"),
    )
    with watch.timed() as elapsed:
        if options.checkpoints is None:
            params, epochs = _trained(options, model, data, seed, watch)
            made_from = digest(data)
        else:
            params, epochs = load_adder(options, seed), 0
            leaves = jax.tree_util.tree_leaves_with_path(params)
            made_from = digest({jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        known = {"accuracy": exactness(model, params, data), "epochs": float(epochs)}
    require_finite(params)
    known |= {"seconds": elapsed.run, "seconds_compile": elapsed.compile}
    results.add("backbone", "output", "validation", **known)
    results.details.update(data=made_from, backbone=known)
    return Network(model, params)


def _trained(
    options: AdderBackbone, model: GRU, data: dict[str, np.ndarray], seed: int, watch: Training
) -> tuple[Params, int]:
    init_key, order_key = jax.random.split(jax.random.key(seed))
    trained = fit(
        order_key,
        FactualLoss(model, BITS),
        model.init(init_key),
        _adam(options.learning_rate),
        data,
        Schedule(options.batch_size, options.epochs, Stop("accuracy", 1.0, 1)),
        Watch(lambda params: {"accuracy": exactness(model, params, data)}, watch.checkpoints, watch),
        context=(),
    )
    return trained.params, trained.epochs


@cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """Make the optimizer once: a new one would compile the epoch again."""
    return optax.adam(learning_rate)
