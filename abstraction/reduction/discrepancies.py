"""Discrepancies D between the outputs of a reduced network and those of the dense one.

    kl      KL(softmax(t) || softmax(z))             the default: gradient 0 at z = t, so the risk is pure curvature
    logit   ||C (z - t)||^2,  C = I - 11^T / n       logit distortion D_2; softmax ignores the all-ones direction
    ce      CE(z, y) - CE(t, y)                      loss on labels, as the authors' code has it
    mse     ||z - y||^2 - ||t - y||^2                regression on targets y

z are the reduced network's outputs, t the dense one's, y labels. Second-order risk needs two things of D at the outputs
of the network that is being reduced: its gradient in z, and a factor L with L L^T = its Hessian there (positive
semidefinite; `kl` and `ce` share the one of the softmax, diag p - p p^T = L L^T, L = diag(sqrt p) - p sqrt(p)^T).

Source: CMR, arXiv 2602.24266 (interventional risk; the choice of D is ours); `zero_one` is for evaluation only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstraction.typing import AnyArray

Compare = Callable[[Array, Array, Array | None], Array]
"""`compare(outputs [N, C], target [N, C], labels) -> [N]`."""
Factor = Callable[[Array, Array, Array | None], Array]
"""`factor(outputs [N, C], target [N, C], labels) -> [N, C, R]`."""


@dataclass(frozen=True)
class Discrepancy:
    """How far outputs are from the dense network's; hashable, compared by identity of its functions.

    Attributes:
      name: what messages call it.
      compare: D per example.
      factor: L with L L^T = the Hessian of D in the outputs, `[N, C, R]`.
      labelled: whether D reads labels.
    """

    name: str
    compare: Compare
    factor: Factor
    labelled: bool = False

    def gradient(
        self, outputs: Float[Array, "N C"], target: Float[Array, "N C"], labels: Array | None
    ) -> Float[Array, "N C"]:
        """Differentiate D in the outputs."""
        return jax.grad(lambda z: self.compare(z, target, labels).sum())(outputs)


def centred(logits: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
    """Subtract the mean over classes, which no softmax sees."""
    return logits - logits.mean(axis=-1, keepdims=True)


def _kl(outputs: Array, target: Array, labels: Array | None) -> Array:
    log_p, log_q = jax.nn.log_softmax(target), jax.nn.log_softmax(outputs)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def _logit(outputs: Array, target: Array, labels: Array | None) -> Array:
    return (centred(outputs - target) ** 2).sum(-1)


def _ce(outputs: Array, target: Array, labels: Array | None) -> Array:
    at_label = lambda z: jnp.take_along_axis(jax.nn.log_softmax(z), _given(labels)[:, None], axis=-1)[:, 0]
    return at_label(target) - at_label(outputs)


def _mse(outputs: Array, target: Array, labels: Array | None) -> Array:
    return ((outputs - _given(labels)) ** 2).sum(-1) - ((target - _given(labels)) ** 2).sum(-1)


def _given(labels: Array | None) -> Array:
    if labels is None:
        raise ValueError("got no labels, expected labels for a discrepancy that reads them; 'kl' and 'logit' do not")
    return jnp.asarray(labels)


def _softmax_factor(outputs: Array, target: Array, labels: Array | None) -> Array:
    p = jax.nn.softmax(outputs)
    root = jnp.sqrt(p)
    return root[:, :, None] * jnp.eye(p.shape[-1], dtype=p.dtype) - p[:, :, None] * root[:, None, :]


def _centring_factor(outputs: Array, target: Array, labels: Array | None) -> Array:
    width = outputs.shape[-1]
    projector = jnp.eye(width, dtype=outputs.dtype) - 1 / width
    return jnp.broadcast_to(jnp.sqrt(2.0).astype(outputs.dtype) * projector, (len(outputs), width, width))


def _identity_factor(outputs: Array, target: Array, labels: Array | None) -> Array:
    eye = jnp.sqrt(2.0).astype(outputs.dtype) * jnp.eye(outputs.shape[-1], dtype=outputs.dtype)
    return jnp.broadcast_to(eye, (len(outputs), *eye.shape))


def custom_discrepancy(name: str, compare: Compare, *, labelled: bool = False) -> Discrepancy:
    """Make a discrepancy of any differentiable `compare`; the factor is a root of its Hessian, clipped at 0.

    Args:
      name: what messages call it.
      compare: `compare(outputs [N, C], target [N, C], labels) -> [N]`, example by example.
      labelled: whether it reads labels.
    """

    def factor(outputs: Array, target: Array, labels: Array | None) -> Array:
        def one(z: Array, t: Array, y: Array | None) -> Array:
            return jax.hessian(lambda v: compare(v[None], t[None], None if y is None else y[None])[0])(z)

        axes = (0, 0, None if labels is None else 0)
        values, vectors = jnp.linalg.eigh(jax.vmap(one, in_axes=axes)(outputs, target, labels))
        return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]

    return Discrepancy(name, compare, factor, labelled)


KL = Discrepancy("kl", _kl, _softmax_factor)
LOGIT = Discrepancy("logit", _logit, _centring_factor)
CE = Discrepancy("ce", _ce, _softmax_factor, labelled=True)
MSE = Discrepancy("mse", _mse, _identity_factor, labelled=True)
DISCREPANCIES = {each.name: each for each in (KL, LOGIT, CE, MSE)}


def zero_one(outputs: Float[AnyArray, "*N C"], target: Float[AnyArray, "*N C"]) -> Float[AnyArray, "*N"]:
    """Tell where the two networks choose another class; not differentiable, for evaluation."""
    return (outputs.argmax(-1) != target.argmax(-1)).astype(jnp.float32)
