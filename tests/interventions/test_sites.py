"""Site banks and handles as arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import (
    Handle,
    InOrder,
    Interchange,
    coordinate_sites,
    group_sites,
    span_sites,
    state_sites,
    unit_sites,
)
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.handles import at_one_depth
from abstraction.interventions.patching import patched_outputs, run_pairs
from abstraction.interventions.sites import band_sites, basis_at, feature_ranks, prefix_sites
from abstraction.models import GRU, MLP, Network, Tap

TAP = Tap("hidden", 5, 3)


def _components():
    """Fit components of ranks 5, 2 and 3 at the three depths."""
    states = np.random.default_rng(0).standard_normal((3, 30, 5))
    states[1, :, 2:] = states[1, :, :2] @ np.random.default_rng(1).standard_normal((2, 3))
    states[2] = states[2, :, :3] @ np.random.default_rng(2).standard_normal((3, 5))
    return pca_bases(states)


BASES = _components()


def test_units_are_depth_major_one_hot_rows():
    rows = unit_sites(TAP).rows()
    np.testing.assert_array_equal(rows.reshape(15, 15), np.eye(15))


def test_groups_partition_every_depth():
    sites = group_sites(TAP, 2)
    assert sites.size == 9
    np.testing.assert_array_equal(sites.rows().sum(axis=0), np.ones((3, 5)))
    assert sites.weights().sum(axis=1).tolist() == [2, 2, 1] * 3


def test_states_are_whole_depths():
    np.testing.assert_array_equal(state_sites(TAP).rows(), np.eye(3)[:, :, None] * np.ones(5))


def test_a_handle_of_sites_is_the_sum_of_their_weights(rng):
    sites = coordinate_sites(TAP, [(0, [0, 1]), (0, [1, 2]), (2, [4])])
    mass = rng.uniform(size=3).astype(np.float32)
    expected = np.zeros((3, 5))
    expected[0, 0], expected[0, 1], expected[0, 2], expected[2, 4] = mass[0], mass[0] + mass[1], mass[1], mass[2]
    np.testing.assert_allclose(sites.union(mass), expected, rtol=1e-6)


def test_sites_that_follow_one_another_leave_the_product_of_what_each_leaves(rng):
    sites = coordinate_sites(TAP, [(0, [0, 1]), (0, [1, 2]), (2, [1]), (0, [1])])
    mass = rng.uniform(0, 1.5, (4, 2, 4))
    weights = sites.succession(mass)
    assert weights.shape == (4, 2, 3, 5)
    for place in np.ndindex(4, 2):
        m = mass[place]
        expected = np.zeros((3, 5))
        expected[0, 0], expected[0, 2], expected[2, 1] = m[0], m[1], m[2]
        expected[0, 1] = 1 - (1 - m[0]) * (1 - m[1]) * (1 - m[3])
        np.testing.assert_allclose(weights[place], expected, rtol=1e-12, atol=1e-12)


def test_succession_is_a_loop_of_interpolations_in_any_order(rng):
    sites = coordinate_sites(TAP, [(1, [0, 1]), (1, [1, 2]), (1, [4]), (1, [1])])
    mass = rng.uniform(0, 1.5, 4)
    base, source = jnp.asarray(rng.standard_normal((2, 6, 5)), jnp.float32)
    at_once = Interchange(source, sites.succession(mass)[1].astype(np.float32))(base)
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        one_by_one = InOrder(tuple(Interchange(source, np.float32(mass[j]) * sites.weights()[j]) for j in order))
        np.testing.assert_allclose(one_by_one(base), at_once, rtol=1e-5, atol=1e-6)  # float32 products


def test_sites_without_overlap_add_up_or_follow_one_another_alike(rng):
    mass = rng.uniform(size=(7, 9))
    sites = group_sites(TAP, 2)
    np.testing.assert_allclose(sites.succession(mass), sites.union(mass), rtol=1e-6)  # rows are float32


def test_unions_and_successions_are_those_of_whole_rows(rng):
    """Sites of different sizes that overlap, with masses of which many are 0, against dense rows."""
    sites = coordinate_sites(TAP, [(0, [4, 0]), (0, [0, 1, 2]), (1, [3]), (2, [0]), (2, [0, 4, 1, 2, 3])])
    rows = sites.rows().astype(np.float64)
    mass = rng.uniform(0, 1.2, (3, 2, 5)) * (rng.uniform(size=(3, 2, 5)) < 0.6)
    np.testing.assert_allclose(sites.union(mass), np.tensordot(mass, rows, axes=1), rtol=1e-12, atol=1e-15)
    left = 1 - np.prod(1 - mass[..., None, None] * rows, axis=-3)
    np.testing.assert_allclose(sites.succession(mass), left, rtol=1e-12, atol=1e-15)
    assert sites.counts.tolist() == [2, 3, 1, 1, 5]
    assert sites.union(mass.astype(np.float32)).dtype == np.float32


def test_a_bank_of_units_grows_with_the_sites_and_not_with_the_width():
    kept = {
        width: sum(leaf.nbytes for leaf in jax.tree.leaves(unit_sites(Tap("hidden", width, 2)))) for width in (50, 500)
    }
    assert kept[500] == 10 * kept[50] == 1000 * 3 * 4


def test_some_sites_are_taken_by_number_or_by_mask():
    sites = span_sites(TAP, BASES, [(0, [0]), (1, [1]), (2, [0, 2]), (0, [4])])
    taken = sites.take(np.array([2, 0]))
    assert taken.depth.tolist() == [2, 0]
    np.testing.assert_array_equal(taken.weights(), sites.weights()[[2, 0]])
    assert (taken.tap, taken.tap_depth, taken.basis) == ("hidden", 3, BASES)
    masked = sites.take(sites.depth == 0)
    np.testing.assert_array_equal(masked.rows(), sites.rows()[[0, 3]])


def test_ranks_are_counted_without_the_padding():
    assert feature_ranks(BASES) == [5, 2, 3]


def test_spans_are_sites_of_components():
    sites = span_sites(TAP, BASES, [(0, [0, 4]), (1, [1])])
    assert sites.depth.tolist() == [0, 1]
    np.testing.assert_array_equal(sites.weights(), [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    handles = sites.handles()
    for index, depth in enumerate([0, 1]):
        np.testing.assert_array_equal(handles.basis.encoder[index], BASES.encoder[depth])
        np.testing.assert_array_equal(handles.basis.decoder[index], BASES.decoder[depth])


def test_prefixes_hold_the_first_components_or_all_there_are():
    sites = prefix_sites(TAP, BASES, 3)
    assert sites.depth.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(sites.weights(), [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])


def test_bands_partition_the_components_of_every_depth():
    sites = band_sites(TAP, BASES, 2)
    assert sites.depth.tolist() == [0, 0, 0, 1, 2, 2]
    assert sites.weights().sum(axis=1).tolist() == [2, 2, 1, 2, 2, 1]
    np.testing.assert_array_equal(sites.rows().sum(axis=0), np.arange(5) < np.array([[5], [2], [3]]))


def test_a_basis_is_picked_at_each_depth():
    picked = basis_at(BASES, np.array([2, 2, 0]))
    np.testing.assert_array_equal(picked.encoder, BASES.encoder[[2, 2, 0]])
    np.testing.assert_array_equal(basis_at(BASES, np.array(1)).decoder, BASES.decoder[1])
    assert basis_at(None, np.array([0, 1])) is None


def test_handles_of_one_depth_each_become_local():
    weight = np.zeros((3, 3, 5), np.float32)
    weight[0, 2, 1], weight[1, 0, :3] = 0.5, 1.0  # the third changes nothing
    local = at_one_depth(Handle("hidden", weight))
    assert np.asarray(local.depth).tolist() == [2, 0, 0]
    np.testing.assert_array_equal(local.weight, [weight[0, 2], weight[1, 0], np.zeros(5)])
    weight[1, 1, 4] = -0.1
    handles = Handle("hidden", weight)
    assert at_one_depth(handles) is handles, "one handle of two depths keeps the batch as it is"
    single = Handle("hidden", weight[0])
    assert at_one_depth(single) is single
    assert at_one_depth(local) is local


@pytest.mark.parametrize(("model", "shape"), [(MLP(4, 5, 3, 2), (4,)), (GRU(2, 5, 3), (3, 2))])
@pytest.mark.parametrize("basis", [None, BASES], ids=["native", "components"])
def test_local_handles_give_the_outputs_of_the_handles_they_came_from(rng, model, shape, basis):
    network = Network(model, model.init(jax.random.key(0)))
    runs = run_pairs(network, *rng.standard_normal((2, 7, *shape)).astype(np.float32), taps=("hidden",))
    weight = np.zeros((3, 3, 5), np.float32)
    weight[[0, 1, 2], [1, 0, 2]] = rng.uniform(size=(3, 5))
    repeated = jax.tree.map(lambda leaf: np.stack([leaf] * 3), basis)
    handles = Handle("hidden", weight, repeated)
    local = at_one_depth(handles)
    outputs = jax.vmap(lambda handle: patched_outputs(network, runs, handle))
    assert np.asarray(local.depth).tolist() == [1, 0, 2]
    np.testing.assert_allclose(outputs(local), outputs(handles), rtol=1e-4, atol=1e-5)  # float32, another order
    assert np.abs(outputs(handles) - runs.outputs).max() > 1e-3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: span_sites(TAP, BASES, [(1, [2])]), r"\[2\] in site 0, expected 0 to 1, .*depth 1 have rank 2"),
        (lambda: span_sites(TAP, BASES, [(0, [0]), (2, [3])]), r"components \[3\] in site 1, .*depth 2 have rank 3"),
        (lambda: span_sites(TAP, BASES, [(0, [-1])]), r"got components \[-1\]"),
        (lambda: span_sites(TAP, BASES, [(0, [])]), r"got components \[\]"),
        (lambda: span_sites(TAP, BASES, [(3, [0])]), "at depth 3, expected 0 to 2 of tap 'hidden'"),
        (lambda: prefix_sites(TAP, BASES, 6), r"got spans of 6 components, expected 1 to 5, .* by depth \[5, 2, 3\]"),
        (lambda: prefix_sites(TAP, BASES, 0), "got spans of 0 components"),
        (lambda: band_sites(TAP, BASES, 6), "got spans of 6 components"),
        (lambda: band_sites(TAP, BASES, 0), "got spans of 0 components"),
    ],
)
def test_spans_the_states_do_not_have_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: group_sites(TAP, 0), "got site width 0, expected between 1 and 5"),
        (lambda: group_sites(TAP, 6), "got site width 6"),
        (lambda: coordinate_sites(TAP, [(3, [0])]), "at depth 3, expected 0 to 2 of tap 'hidden'"),
        (lambda: coordinate_sites(TAP, [(-1, [0])]), "at depth -1"),
        (lambda: coordinate_sites(TAP, [(0, [5])]), r"got coordinates \[5\] in site 0, expected some of 0 to 4"),
        (lambda: coordinate_sites(TAP, [(0, [])]), r"got coordinates \[\]"),
    ],
)
def test_sites_outside_the_tap_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_basis_at_other_depths_than_the_tap_is_refused(rng):
    basis = pca_bases(rng.standard_normal((2, 30, 4)))
    with pytest.raises(ValueError, match="got a basis at 2 depths, expected 3"):
        span_sites(Tap("hidden", 4, 3), basis, [(0, [0])])
