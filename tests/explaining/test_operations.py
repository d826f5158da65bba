"""Operations counted from what is traced: products, loops, conditions, solvers, and a whole decoder, by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.explaining import count_operations
from abstraction.explaining.cases import shape
from abstraction.models import Decoder, DecoderConfig
from abstraction.models.costs import forward_flops
from abstraction.planning import Program

M, K, N, T = 3, 5, 7, 11
LEFT, RIGHT, SQUARE = shape((M, K)), shape((K, N)), shape((N, N))


def _counted(function, *arguments) -> float:
    return count_operations(Program(jax.jit(function), arguments, {}))


def _loop(end, left, right):
    return jax.lax.fori_loop(0, end, lambda _, total: total + left @ right, jnp.zeros((M, N)))


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (lambda a, b: a @ b, (LEFT, RIGHT), 2 * M * K * N),
        (lambda a, b: jax.vmap(lambda one: one @ b)(a), (shape((T, M, K)), RIGHT), 2 * T * M * K * N),
        (lambda a, b: jax.jit(lambda c: c @ b)(a) + 1, (LEFT, RIGHT), 2 * M * K * N),
        (lambda a, b: jax.checkpoint(lambda c: c @ b)(a), (LEFT, RIGHT), 2 * M * K * N),
        (lambda a, b: jax.grad(lambda c: (c @ b).sum())(a), (LEFT, RIGHT), 2 * 2 * M * K * N),
        (lambda a, b: jax.lax.scan(lambda c, _: (c, a @ b), 0.0, None, length=T)[1], (LEFT, RIGHT), T * 2 * M * K * N),
        (partial(_loop, T), (LEFT, RIGHT), T * 2 * M * K * N),
        (_loop, (shape((), jnp.int32), LEFT, RIGHT), 2 * M * K * N),
        (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b.T @ b, lambda: a @ b), (LEFT, RIGHT),
         2 * M * K * N + 4 * M * K * N),
        (lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"), (shape((2, 3, 8, 8)), shape((4, 3, 3, 3))),
         2 * (2 * 4 * 6 * 6) * 27),
        (jnp.linalg.cholesky, (SQUARE,), N**3 / 3),
        (lambda a, b: jax.scipy.linalg.solve_triangular(a, b), (SQUARE, shape((N, M))), N * N * M),
        (lambda a: jnp.tanh(a).sum(), (SQUARE,), 0),
    ],
)  # fmt: skip
def test_operations_are_those_counted_by_hand(function, arguments, expected):
    assert _counted(function, *arguments) == pytest.approx(expected)


def test_a_product_counts_as_much_forward_and_backward_through_a_custom_rule():
    @jax.custom_vjp
    def product(a, b):
        return a @ b

    product.defvjp(lambda a, b: (a @ b, (a, b)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    assert _counted(product, LEFT, RIGHT) == 2 * M * K * N
    assert _counted(jax.grad(lambda a, b: product(a, b).sum(), argnums=(0, 1)), LEFT, RIGHT) == 6 * M * K * N


@pytest.mark.parametrize("gated", [False, True])
def test_a_decoder_counts_what_its_formula_says(gated):
    config = DecoderConfig(
        vocabulary=101, width=24, depth=3, heads=4, kv_heads=2, head_size=6, hidden=40,
        gated=gated, activation="silu" if gated else "gelu",
    )  # fmt: skip
    decoder = Decoder(config)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    found = _counted(lambda params, tokens: decoder.apply(params, tokens)[0], params, np.zeros((T, N), np.int32))
    assert found == T * forward_flops(config, N, outputs=101)
