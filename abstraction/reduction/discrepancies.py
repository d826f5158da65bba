"""Discrepancies D between the outputs of a reduced network and those of the dense one.

    kl      KL(softmax(t) || softmax(z))             the default: gradient 0 at z = t, so the risk is pure curvature
    logit   ||C (z - t)||^2,  C = I - 11^T / n       logit distortion D_2; softmax ignores the all-ones direction
    ce      CE(z, y) - CE(t, y)                      loss on labels, as the authors' code has it
    mse     ||z - y||^2 - ||t - y||^2                regression on targets y

z are the reduced network's outputs, t the dense one's, y labels. Second-order risk needs two things of D at the outputs
of the network that is being reduced: its gradient in z, and its Hessian B there (positive semidefinite), either as
products B v or by columns of a root L, L L^T = B. Neither makes a matrix of classes by classes. `kl` and `ce` share the
Hessian of the softmax, B = diag p - p p^T, whose root L = diag(sqrt p) - p sqrt(p)^T has columns sqrt(p_r) (e_r - p).

Source: CMR, arXiv 2602.24266 (interventional risk; the choice of D is ours); `zero_one` is for evaluation only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstraction.typing import AnyArray

Compare = Callable[[Array, Array, Array | None], Array]
"""`compare(outputs [N, C], target [N, C], labels) -> [N]`."""


class Bend(NamedTuple):
    """The Hessian B = L L^T of a discrepancy at some outputs `[N, C]`.

    Attributes:
      columns: `columns(indices [b]) -> [b, N, C]`, columns of L, one for each of C classes.
      product: `product(v [N, C]) -> [N, C]`, B v of each example.
    """

    columns: Callable[[Array], Array]
    product: Callable[[Array], Array]


Bending = Callable[[Array, Array, Array | None], Bend]
"""`bending(outputs [N, C], target [N, C], labels)`."""


@dataclass(frozen=True)
class Discrepancy:
    """How far outputs are from the dense network's; hashable, compared by identity of its functions.

    Attributes:
      name: what messages call it.
      compare: D per example.
      bending: the Hessian of D in the outputs.
      labelled: whether D reads labels.
    """

    name: str
    compare: Compare
    bending: Bending
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


def _one_hot(indices: Array, outputs: Array) -> Float[Array, "b 1 C"]:
    return jax.nn.one_hot(indices, outputs.shape[-1], dtype=outputs.dtype)[:, None]


def _softmax_bend(outputs: Array, target: Array, labels: Array | None) -> Bend:
    p = jax.nn.softmax(outputs)

    def columns(indices: Array) -> Array:
        root = jnp.sqrt(p[:, indices]).T[:, :, None]
        return root * _one_hot(indices, p) - p * root

    return Bend(columns, lambda v: p * (v - (p * v).sum(-1, keepdims=True)))


def _centring_bend(outputs: Array, target: Array, labels: Array | None) -> Bend:
    columns = lambda indices: centred(_one_hot(indices, outputs)) * jnp.sqrt(2.0).astype(outputs.dtype)
    whole = lambda indices: jnp.broadcast_to(columns(indices), (len(indices), *outputs.shape))
    return Bend(whole, lambda v: 2 * centred(v))


def _identity_bend(outputs: Array, target: Array, labels: Array | None) -> Bend:
    columns = lambda indices: _one_hot(indices, outputs) * jnp.sqrt(2.0).astype(outputs.dtype)
    whole = lambda indices: jnp.broadcast_to(columns(indices), (len(indices), *outputs.shape))
    return Bend(whole, lambda v: 2 * v)


def custom_discrepancy(name: str, compare: Compare, *, labelled: bool = False) -> Discrepancy:
    """Make a discrepancy of any differentiable `compare`; its Hessian is clipped at 0, of which a root is kept.

    That root has C^2 numbers an example: of many classes, the discrepancies here cost less.

    Args:
      name: what messages call it.
      compare: `compare(outputs [N, C], target [N, C], labels) -> [N]`, example by example.
      labelled: whether it reads labels.
    """

    def bending(outputs: Array, target: Array, labels: Array | None) -> Bend:
        def one(z: Array, t: Array, y: Array | None) -> Array:
            return jax.hessian(lambda v: compare(v[None], t[None], None if y is None else y[None])[0])(z)

        axes = (0, 0, None if labels is None else 0)
        values, vectors = jnp.linalg.eigh(jax.vmap(one, in_axes=axes)(outputs, target, labels))
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]
        product = lambda v: jnp.einsum("ncr,ndr,nd->nc", root, root, v)
        return Bend(lambda indices: jnp.moveaxis(root[..., indices], -1, 0), product)

    return Discrepancy(name, compare, bending, labelled)


KL = Discrepancy("kl", _kl, _softmax_bend)
LOGIT = Discrepancy("logit", _logit, _centring_bend)
CE = Discrepancy("ce", _ce, _softmax_bend, labelled=True)
MSE = Discrepancy("mse", _mse, _identity_bend, labelled=True)
DISCREPANCIES = {each.name: each for each in (KL, LOGIT, CE, MSE)}


def zero_one(outputs: Float[AnyArray, "*N C"], target: Float[AnyArray, "*N C"]) -> Float[AnyArray, "*N"]:
    """Tell where the two networks choose another class; not differentiable, for evaluation."""
    return (outputs.argmax(-1) != target.argmax(-1)).astype(jnp.float32)
