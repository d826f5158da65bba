"""Inverses of small matrices by products alone: against float64 NumPy, and their derivatives against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from abstraction.localization.small_matrices import (
    cosine_and_sine,
    general_inverse,
    inverse,
    inverse_root,
    orthonormalized,
)


def _positive(rng, size):
    columns = rng.standard_normal((size + 3, size))
    return columns.T @ columns / size + np.eye(size)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 40, 64, 150])
def test_inverses_are_those_of_numpy(rng, size):
    matrix = _positive(rng, size)
    root = np.asarray(jax.jit(inverse_root)(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(root, np.linalg.inv(np.linalg.cholesky(matrix)), atol=2e-5)
    np.testing.assert_array_equal(np.triu(root, 1), 0)
    np.testing.assert_allclose(inverse(jnp.asarray(matrix, jnp.float32)), np.linalg.inv(matrix), atol=2e-5)


@pytest.mark.parametrize("size", [1, 5, 24])
def test_a_general_inverse_takes_pivots(rng, size):
    matrix = rng.standard_normal((size, size)) + 2 * np.eye(size)[::-1]
    matrix[0, 0] = 0.0 if size > 1 else 1.5
    found = np.asarray(general_inverse(jnp.asarray(matrix, jnp.float32)))
    np.testing.assert_allclose(found @ matrix, np.eye(size), atol=1e-4)


def test_columns_are_orthonormalized_as_by_qr_and_idle_ones_stay(rng):
    columns = rng.standard_normal((30, 20)).astype(np.float32)
    columns[:, 13:] = 0
    found = np.asarray(orthonormalized(jnp.asarray(columns)))
    expected = np.linalg.qr(columns[:, :13].astype(float))
    np.testing.assert_allclose(found[:, :13], expected[0] * np.sign(np.diagonal(expected[1])), atol=1e-5)
    np.testing.assert_array_equal(found[:, 13:], 0)


@pytest.mark.parametrize("angle", [0.0, 0.3, 3.0, 9.0])
def test_cosine_and_sine_are_those_of_the_eigenvalues(rng, angle):
    vectors = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    angles = angle * np.linspace(0, 1, 6)
    of = lambda values: vectors @ np.diag(values) @ vectors.T
    cosine, sine = cosine_and_sine(jnp.asarray(of(angles**2), jnp.float32))
    np.testing.assert_allclose(cosine, of(np.cos(angles)), atol=2e-4)  # doubled three times in float32
    np.testing.assert_allclose(sine, of(np.sinc(angles / np.pi)), atol=2e-4)


@pytest.mark.parametrize("function", [inverse, general_inverse, orthonormalized])
def test_derivatives_are_those_of_differences(rng, function, unchecked):
    with jax.enable_x64(True):
        matrix = jnp.asarray(_positive(rng, 18))
        symmetric = (lambda x: function((x + x.T) / 2)) if function is inverse else function
        check_grads(symmetric, (matrix,), order=1, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)
