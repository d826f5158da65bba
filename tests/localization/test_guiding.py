"""Supports of guided searches: known answers by hand."""

import jax
import numpy as np

from abstraction.interventions.bases import pca_bases
from abstraction.localization.guiding import distinct_supports, prefix_supports, state_supports, support_of
from abstraction.models import MLP

TAP = MLP(3, 4, 2, 2).taps["hidden"]


def test_the_whole_state_is_searched_where_each_variable_is():
    supports = state_supports(TAP, np.array([1, 0, 1]))
    assert [(s.variable, s.depth, s.size, s.name) for s in supports] == [
        (0, 1, 4, "full"),
        (1, 0, 4, "full"),
        (2, 1, 4, "full"),
    ]


def test_prefixes_are_the_first_components_of_their_depth(rng: np.random.Generator):
    states = rng.normal(size=(2, 50, 4)).astype(np.float32) * np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    basis = pca_bases(states)
    [one, two] = prefix_supports(TAP, np.array([1]), (1, 9), basis)
    assert (one.size, two.size, one.name, two.name) == (1, 4, "first 1", "first 9")
    centred = np.asarray(states[1], np.float64) - states[1].mean(axis=0)
    first = np.linalg.svd(centred, full_matrices=False)[2][0]
    # float32 components against float64
    np.testing.assert_allclose(abs(np.asarray(one.encoder)[:, 0] @ first), 1, rtol=1e-4)


def test_a_support_that_is_there_is_not_searched_again():
    whole, part = support_of(TAP, 0, 1, range(4), "full"), support_of(TAP, 0, 1, [0, 2], "selected")
    other = support_of(TAP, 1, 1, [0, 2], "S80")
    kept = distinct_supports([other, whole, part, whole._replace(name="S100"), part._replace(name="S90")])
    assert [(s.variable, s.name) for s in kept] == [(0, "full"), (0, "selected"), (1, "S80")]
    assert jax.tree.leaves(kept[0].features.tolist()) == [0, 1, 2, 3]
