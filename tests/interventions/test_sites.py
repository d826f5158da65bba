"""Site banks and handles as arrays."""

import numpy as np
import pytest

from abstraction.interventions import coordinate_sites, group_sites, state_sites, unit_sites
from abstraction.models import Tap

TAP = Tap("hidden", 5, 3)


def test_units_are_depth_major_one_hot_rows():
    rows = unit_sites(TAP).rows()
    np.testing.assert_array_equal(rows.reshape(15, 15), np.eye(15))


def test_groups_partition_every_depth():
    sites = group_sites(TAP, 2)
    assert sites.size == 9
    np.testing.assert_array_equal(sites.rows().sum(axis=0), np.ones((3, 5)))
    assert sites.weight.sum(axis=1).tolist() == [2, 2, 1] * 3


def test_states_are_whole_depths():
    np.testing.assert_array_equal(state_sites(TAP).rows(), np.eye(3)[:, :, None] * np.ones(5))


def test_a_handle_of_sites_is_the_sum_of_their_weights(rng):
    sites = coordinate_sites(TAP, [(0, [0, 1]), (0, [1, 2]), (2, [4])])
    mass = rng.uniform(size=3).astype(np.float32)
    expected = np.zeros((3, 5))
    expected[0, 0], expected[0, 1], expected[0, 2], expected[2, 4] = mass[0], mass[0] + mass[1], mass[1], mass[2]
    np.testing.assert_allclose(sites.union(mass), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: group_sites(TAP, 0), "got site width 0, expected between 1 and 5"),
        (lambda: group_sites(TAP, 6), "got site width 6"),
        (lambda: coordinate_sites(TAP, [(3, [0])]), "at depth 3, expected 0 to 2 of tap 'hidden'"),
        (lambda: coordinate_sites(TAP, [(-1, [0])]), "at depth -1"),
        (lambda: coordinate_sites(TAP, [(0, [5])]), r"got coordinates \[5\] in site 0, expected some of 0 to 4"),
        (lambda: coordinate_sites(TAP, [(0, [])]), r"got coordinates \[\]"),
        (lambda: unit_sites(Tap("logits", 2, None)), "without a depth axis"),
    ],
)
def test_sites_outside_the_tap_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
