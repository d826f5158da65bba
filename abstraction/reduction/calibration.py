"""What a reduction may look at: inputs, never those of the test split, with labels or dense outputs where needed."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from abstraction.checks import finite, whole
from abstraction.models import Network
from abstraction.models.network import check_network
from abstraction.pytrees import leading_axis
from abstraction.reduction.discrepancies import CE, MSE, Discrepancy
from abstraction.sharding import mesh_of, over_rows, shared_rows
from abstraction.typing import AnyArray


class Calibration(NamedTuple):
    """Inputs a reduction looks at.

    Attributes:
      inputs: `[N, ...]`; an array, or a pytree of them where a model says so.
      labels: classes `[N]`, or values `[N, C]`, for methods that read them.
      target: outputs of the dense network, `[N, C]`, by default those of the network at hand.
    """

    inputs: Any
    labels: AnyArray | None = None
    target: AnyArray | None = None

    @property
    def rows(self) -> int:
        """Inputs N."""
        return leading_axis(self.inputs)


def calibration_of(inputs: Any) -> Calibration:
    """Return a calibration as it is, and plain inputs as one without labels."""
    return inputs if isinstance(inputs, Calibration) else Calibration(inputs)


def check_calibration(network: Network, calibration: Calibration, discrepancy: Discrepancy | None = None) -> None:
    """Refuse inputs that a network cannot be reduced on, before anything is run.

    Raises:
      ValueError: weights that are not the model's; no inputs, or of a shape the model does not take; outputs that are
        not `[N, C]`; labels or targets of other rows, or that the discrepancy cannot compare; numbers not finite.
    """
    check_network(network)
    leaves = jax.tree.leaves(calibration.inputs)
    if not leaves or not all(isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise ValueError(f"got calibration inputs of {kinds or 'an empty tree'}, expected arrays, one row an input")
    if not calibration.rows:
        raise ValueError("got no calibration inputs, expected at least one")
    for leaf in leaves:
        finite("calibration inputs", leaf)
    try:
        run = lambda params, inputs: network.model.apply(params, inputs)[0]
        shape = jax.eval_shape(run, network.params, calibration.inputs).shape
    except TypeError as error:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(f"got inputs of shapes {shapes}, expected what {network.model} takes: {error}") from error
    if len(shape) != 2 or shape[0] != calibration.rows:
        raise ValueError(f"got outputs of shape {shape}, expected [N, C]: one choice among C per example")
    if calibration.target is not None and finite("target outputs", calibration.target).shape != shape:
        raise ValueError(f"got target outputs of shape {np.shape(calibration.target)}, expected {shape}")
    if discrepancy is not None and discrepancy.labelled and calibration.labels is None:
        raise ValueError(f"got no labels, expected labels for the discrepancy {discrepancy.name!r}")
    if calibration.labels is not None:
        _check_labels(finite("labels", calibration.labels), shape, discrepancy)


def _check_labels(labels: np.ndarray, shape: tuple[int, ...], discrepancy: Discrepancy | None) -> None:
    if labels.shape[:1] != shape[:1]:
        raise ValueError(f"got labels of shape {labels.shape}, expected one row for each of {shape[0]} inputs")
    if discrepancy is CE:
        inside = labels.dtype.kind in "iu" and labels.ndim == 1 and (labels >= 0).all() and (labels < shape[1]).all()
        if not inside:
            raise ValueError(
                f"got labels of shape {labels.shape}, type {labels.dtype}, from {labels.min()} to {labels.max()}, "
                f"expected one class of 0 to {shape[1] - 1} per input"
            )
    if discrepancy is MSE and labels.shape != shape:
        raise ValueError(f"got labels of shape {labels.shape} for 'mse', expected those of the outputs, {shape}")


def shared_calibration(network: Network, calibration: Calibration) -> Calibration:
    """Send a calibration to the device; where a network lies on a mesh, devices share the examples."""
    return over_rows(mesh_of(network.params), jax.tree.map(jnp.asarray, calibration))


def batches(calibration: Calibration, batch_size: int, mesh: Mesh | None = None) -> Iterator[Calibration]:
    """Cut a calibration into batches of almost equal size, so that as few shapes as possible are compiled.

    Devices of a mesh share each of them, and have all of the few rows that are left.
    """
    whole("batch size", batch_size)
    shares = shared_rows(mesh, 1)
    units, left = divmod(calibration.rows, shares)
    count = max(1, -(-units * shares // max(batch_size, shares)))
    edges = np.linspace(0, units, count + 1).round().astype(int) * shares
    edges = np.unique([*edges, calibration.rows]) if left else edges
    for start, stop in pairwise(edges):
        part = jax.tree.map(lambda values, start=start, stop=stop: jnp.asarray(values[start:stop]), calibration)
        yield over_rows(mesh, part)
