"""The stopwatch: compilation is counted apart, once, and listening ends with the block."""

import time

import jax
import jax.numpy as jnp
import pytest

from experiments.harness.timing import Time, stopwatch


def _fresh(pause: float = 0.0):
    """Make a jitted function that nothing has compiled; tracing it takes `pause` seconds."""

    def function(x: jax.Array) -> jax.Array:
        time.sleep(pause)
        return jnp.sin(x) * 2 + 1

    return jax.jit(function)


@pytest.fixture
def x() -> jax.Array:
    return jax.block_until_ready(jnp.arange(5.0))


def test_the_first_call_compiles_and_the_second_does_not(x: jax.Array):
    function = _fresh()
    with stopwatch() as first:
        jax.block_until_ready(function(x))
    with stopwatch() as second:
        jax.block_until_ready(function(x))
    assert 0 < first.compile <= first.total
    assert second.compile == 0
    assert second.total > 0
    assert second.run == second.total


def test_a_new_shape_compiles_again(x: jax.Array):
    function = _fresh()
    jax.block_until_ready(function(x))
    with stopwatch() as elapsed:
        jax.block_until_ready(function(x[:3]))
    assert elapsed.compile > 0


def test_tracing_counts_as_compilation_and_sleeping_does_not(x: jax.Array):
    with stopwatch() as tracing:
        jax.block_until_ready(_fresh(pause=0.05)(x))
    with stopwatch() as sleeping:
        time.sleep(0.05)
    assert tracing.compile >= 0.05
    assert tracing.run == tracing.total - tracing.compile
    assert sleeping.compile == 0
    assert sleeping.run >= 0.05


def test_a_jitted_function_inside_another_is_counted_once(x: jax.Array):
    inner = _fresh(pause=0.05)
    with stopwatch() as elapsed:
        jax.block_until_ready(jax.jit(lambda x: inner(x) + 1)(x))
    assert 0.05 <= elapsed.compile <= elapsed.total


def test_nested_stopwatches_both_count(x: jax.Array):
    with stopwatch() as outer:
        jax.block_until_ready(_fresh()(x))
        with stopwatch() as inner:
            jax.block_until_ready(_fresh()(x))
        between = inner.compile
        jax.block_until_ready(_fresh()(x))
    assert 0 < between == inner.compile < outer.compile


@pytest.mark.parametrize("fails", [False, True])
def test_listening_ends_with_the_block(x: jax.Array, fails: bool):
    elapsed = Time()
    try:
        with stopwatch() as elapsed:
            jax.block_until_ready(_fresh()(x))
            if fails:
                raise KeyError("inside")
    except KeyError:
        pass
    kept = (elapsed.total, elapsed.compile)
    jax.block_until_ready(_fresh()(x))
    assert kept == (elapsed.total, elapsed.compile)
    assert 0 < elapsed.compile <= elapsed.total


def test_an_exception_passes_through():
    with pytest.raises(KeyError), stopwatch():
        raise KeyError("inside")


def test_times_add_and_the_run_is_what_is_left():
    both = Time(3.0, 1.0) + Time(2.0, 0.5)
    assert (both.total, both.compile, both.run) == (5.0, 1.5, 3.5)
    assert Time(1.0, 1.25).run == 0.0
