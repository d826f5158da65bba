"""Pytree dataclasses: values map, names recompile, nothing mutates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.pytrees import leading_axis, pytree, static
from abstraction.randomness import host_generator


@pytree
class Point:
    x: jax.Array
    name: str = static(default="a")


def test_arrays_are_leaves_and_static_fields_are_structure():
    point = Point(jnp.arange(3.0))
    assert len(jax.tree.leaves(point)) == 1
    assert jax.tree.structure(point) != jax.tree.structure(Point(jnp.arange(3.0), "b"))
    assert jax.tree.map(lambda x: 2 * x, point).name == "a"


def test_a_new_value_does_not_recompile_and_a_new_name_does():
    traces = []

    @jax.jit
    def total(point):
        traces.append(point.name)
        return point.x.sum()

    for point in (Point(jnp.zeros(3)), Point(jnp.ones(3)), Point(jnp.ones(3), "b")):
        total(point)
    assert traces == ["a", "b"]


def test_instances_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Point(jnp.zeros(1)).x = jnp.ones(1)


@pytest.mark.parametrize("tree", [{}, {"a": np.zeros(())}, {"a": np.zeros(2), "b": np.zeros(3)}])
def test_leaves_without_a_common_leading_axis_are_refused(tree):
    with pytest.raises(ValueError, match="expected arrays that share one leading axis"):
        leading_axis(tree)


def test_a_key_stands_for_one_generator():
    draw = lambda seed: host_generator(jax.random.key(seed)).integers(0, 1000, 5).tolist()
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
