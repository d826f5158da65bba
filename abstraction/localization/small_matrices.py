"""Inverses and functions of the k x k matrices of frames, by products, and LAPACK for what is small alone.

On a CPU XLA calls LAPACK from the threads that it then parts a batch among, and waits for them: two such calls at once
can wait forever, and from some tens of rows on BLAS starts threads of its own beside them. So every derivative here is
written out, in terms of what is there already, and a program has one chain of such calls, each of them small.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAF, _LEAVES = 16, 8
_TERMS, _DOUBLINGS = 10, 3


def product(*factors: Array) -> Array:
    """Multiply, in float32 as it is: accelerators round products to fewer bits, and a frame has to stay orthonormal."""
    result, *others = factors
    for factor in others:
        result = jnp.matmul(result, factor, precision=jax.lax.Precision.HIGHEST)
    return result


def inverse_root(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Return L^-1, where L L^T is the Cholesky factorisation of a symmetric positive definite matrix.

    In halves, R = L^-1 of the first and S the Schur complement:

        A = [[F, C^T], [C, E]],  S = E - C R^T R C^T,  L^-1 = [[R, 0], [-S^-1/2 C R^T R, S^-1/2]]
    """
    return _inverse_root(matrix, max(_LEAF, -(-len(matrix) // _LEAVES)))


def _inverse_root(matrix: Float[Array, "k k"], leaf: int) -> Float[Array, "k k"]:
    size, half = len(matrix), -(-len(matrix) // 2)
    if size <= leaf:
        identity = jnp.eye(size, dtype=matrix.dtype)
        return jax.scipy.linalg.solve_triangular(jnp.linalg.cholesky(matrix), identity, lower=True)
    first, cross = matrix[:half, :half], matrix[half:, :half]
    root = _inverse_root(first, leaf)
    read = product(product(cross, root.T), root)
    rest = _inverse_root(matrix[half:, half:] - product(read, cross.T), leaf)
    return jnp.block([[root, jnp.zeros((half, size - half), matrix.dtype)], [-product(rest, read), rest]])


def _inverts(find: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Give a way to find X = A^-1 the derivative dX = -X dA X."""
    inverse = jax.custom_jvp(find)

    @inverse.defjvp
    def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        found = inverse(*primals)
        return found, -product(found, *tangents, found)

    return inverse


@_inverts
def inverse(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Invert a symmetric positive definite matrix; NaN where it is none."""
    root = inverse_root(matrix)
    return product(root.T, root)


@_inverts
def general_inverse(matrix: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """Invert any matrix that has an inverse: elimination with row pivots; not finite where it has none."""
    size = len(matrix)
    if size <= _LEAF:
        return jnp.linalg.inv(matrix)
    places = jnp.arange(size)

    def step(index: Array, both: Float[Array, "k m"]) -> Float[Array, "k m"]:
        pivot = jnp.where(places >= index, jnp.abs(both[:, index]), -1.0).argmax()
        order = jnp.where(places == index, pivot, jnp.where(places == pivot, index, places))
        both = both[order]
        row = both[index] / both[index, index]
        return jnp.where((places == index)[:, None], row, both - both[:, index][:, None] * row)

    both = jnp.concatenate([matrix, jnp.eye(size, dtype=matrix.dtype)], axis=1)
    return jax.lax.fori_loop(0, size, step, both)[:, size:]


@jax.custom_jvp
def orthonormalized(columns: Float[Array, "M k"]) -> Float[Array, "M k"]:
    """Return the Q factor Y L^-T of columns Y, L L^T = Y^T Y; a column that is 0 stays 0."""
    return product(columns, _columns_root(columns).T)


def _columns_root(columns: Float[Array, "M k"]) -> Float[Array, "k k"]:
    idle = (columns == 0).all(axis=0).astype(columns.dtype)
    return inverse_root(product(columns.T, columns) + jnp.diag(idle))


@orthonormalized.defjvp
def _orthonormalized_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """With C = dY L^-T and A = Q^T C: dQ = C - Q Phi, Phi the upper triangle of A + A^T, half of its diagonal."""
    (columns,), (moved,) = primals, tangents
    root = _columns_root(columns)
    found, turned = product(columns, root.T), product(moved, root.T)
    inner = product(found.T, turned)
    upper = jnp.triu(inner + inner.T) - jnp.diag(jnp.diagonal(inner))
    return found, turned - product(found, upper)


def cosine_and_sine(square: Float[Array, "k k"]) -> tuple[Float[Array, "k k"], Float[Array, "k k"]]:
    """Return cos(B^1/2) and B^-1/2 sin(B^1/2): power series of B / 4^3, doubled three times.

    The eigenvalues of B are squares of angles; up to angles of 9 radians both are right to 2e-4 in float32.
    """
    identity, part = jnp.eye(len(square), dtype=square.dtype), square / 4.0**_DOUBLINGS
    cosine = sine = identity
    for term in range(_TERMS, 0, -1):
        cosine = identity - product(part, cosine) / ((2 * term - 1) * (2 * term))
        sine = identity - product(part, sine) / ((2 * term) * (2 * term + 1))
    for _ in range(_DOUBLINGS):
        cosine, sine = 2 * product(cosine, cosine) - identity, product(sine, cosine)
    return cosine, sine
