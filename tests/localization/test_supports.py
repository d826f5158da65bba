"""Supports and candidates: the cross product, where searches start, and what is refused."""

import itertools

import jax
import numpy as np
import pytest

from abstraction.interventions import Basis, rotation_basis
from abstraction.interventions.bases import random_frames
from abstraction.localization import candidate_grid, full_supports
from abstraction.localization.supports import Support, coordinate_support, feature_support
from abstraction.models import Tap

TAP = Tap("hidden", 8, 3)
FRAME = random_frames(jax.random.key(0), (), 8)
TURNED = rotation_basis(FRAME)
KEY = jax.random.key(1)


def _grid(supports, **options):
    return candidate_grid(KEY, TAP, supports, **options)


def _supports():
    return [
        coordinate_support(TAP, 0, 1, [2, 5, 6], "three"),
        *full_supports(TAP, [0, 1], [0]),
        feature_support(TAP, 1, 2, TURNED, [0, 3], "two"),
    ]


def test_full_supports_are_all_states_variable_major():
    supports = full_supports(TAP, [1, 0])
    assert [(support.variable, support.depth) for support in supports] == list(itertools.product((1, 0), range(3)))
    for support in supports:
        np.testing.assert_array_equal(support.encoder, np.eye(8))
        np.testing.assert_array_equal(support.decoder, np.eye(8))
        assert (support.size, support.name, support.turn) == (8, "full", True)


def test_a_coordinate_support_reads_and_writes_its_coordinates():
    support = coordinate_support(TAP, 1, 2, [6, 1], "pair")
    state = np.arange(8.0)
    np.testing.assert_array_equal(state @ support.encoder, [6, 1])
    np.testing.assert_array_equal(np.array([10.0, 20.0]) @ support.decoder, [0, 20, 0, 0, 0, 0, 10, 0])
    assert (support.variable, support.depth, support.name) == (1, 2, "pair")


def test_a_feature_support_takes_columns_of_the_encoder_and_rows_of_the_decoder(rng):
    encoder = rng.standard_normal((8, 8)).astype(np.float32)
    decoder = np.linalg.inv(encoder).astype(np.float32)
    support = feature_support(TAP, 0, 0, Basis(encoder, decoder, np.zeros(8)), [4, 0], "oblique", turn=False)
    np.testing.assert_array_equal(support.encoder, encoder[:, [4, 0]])
    np.testing.assert_array_equal(support.decoder, decoder[[4, 0]])
    assert not support.turn
    orthonormal = feature_support(TAP, 0, 0, TURNED, [4, 0], "rotated")
    np.testing.assert_array_equal(orthonormal.decoder, FRAME.T[[4, 0]])


def test_the_grid_is_the_cross_product():
    options = {"learning_rates": (1e-3, 1e-2), "sparsities": (0.0, 0.5), "restarts": 2}
    candidates = _grid(full_supports(TAP, range(2)), ranks=(1, 4), **options)
    columns = {name: values.tolist() for name, values in candidates.columns().items()}
    names = ("variable", "depth", "rank", "learning_rate", "sparsity", "restart")
    assert set(columns) == {*names, "support", "limit"}
    rows = list(zip(*(columns[name] for name in names), strict=True))
    rates = np.float32([1e-3, 1e-2]).tolist()
    assert rows == list(itertools.product(range(2), range(3), (1, 4), rates, (0.0, 0.5), range(2)))
    assert set(columns["limit"]) == {8}


def test_a_rank_that_a_support_does_not_have_is_left_out_for_it_alone():
    candidates = _grid(_supports(), ranks=(1, 2, 3, 4))
    found = list(zip(candidates.support.tolist(), candidates.rank.tolist(), strict=True))
    assert found == [(0, 1), (0, 2), (0, 3), *((s, r) for s in (1, 2) for r in (1, 2, 3, 4)), (3, 1), (3, 2)]
    assert candidates.limit.tolist() == [3] * 3 + [8] * 8 + [2] * 2
    assert candidates.variable.tolist() == [0] * 7 + [1] * 6
    assert candidates.depth.tolist() == [1] * 3 + [0] * 8 + [2] * 2


def _starts(candidates):
    """Return where each search starts, in coordinates of the tap: read and write directions of its rank."""
    for index, rank in enumerate(candidates.rank):
        candidate = candidates.take(index)
        frame, basis = candidate.start[:, :rank], candidate.basis
        assert (candidate.start[:, rank:] == 0).all()
        assert (candidate.start[~candidate.inside] == 0).all()
        np.testing.assert_allclose(frame.T @ frame, np.eye(rank), atol=1e-6)  # float32 of a float64 factor
        assert candidate.inside.sum() == candidate.limit
        yield (frame, frame.T) if basis is None else (basis.encoder @ frame, frame.T @ basis.decoder)


@pytest.mark.parametrize("native", [True, False])
def test_starts_are_orthonormal_inside_their_support(native):
    supports = _supports()[:3] if native else _supports()
    candidates = _grid(supports, ranks=(1, 2), restarts=2)
    assert (candidates.spans is None) == native
    for (encoder, decoder), index in zip(_starts(candidates), candidates.support, strict=True):
        support = supports[index]
        # float32 products of orthonormal matrices
        np.testing.assert_allclose(decoder, encoder.T, atol=1e-6)
        np.testing.assert_allclose(support.encoder @ support.decoder @ encoder, encoder, atol=1e-6)


def test_nothing_that_is_kept_of_native_candidates_grows_with_the_square_of_the_width():
    wide = Tap("hidden", 64, 3)
    candidates = candidate_grid(KEY, wide, full_supports(wide, range(2)), ranks=(1, 2))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(candidates))
    assert kept < 12 * (64 * (4 * 2 + 1) + 100), "two columns, a mask and a few numbers for each of 12"


def test_the_directions_of_features_are_kept_once_a_support():
    candidates = _grid(_supports(), ranks=(1, 2), restarts=5)
    assert {len(leaf) for leaf in jax.tree.leaves(candidates.spans)} == {4}


def test_coordinates_outside_a_support_are_exactly_zero_at_the_start():
    candidates = _grid([coordinate_support(TAP, 0, 1, [2, 5, 6], "three")], ranks=(1,), restarts=4)
    assert (candidates.start[:, [0, 1, 3, 4, 7]] == 0).all()
    assert (np.abs(candidates.start[:, [2, 5, 6]]) > 0).all()


def test_an_oblique_support_is_turned_without_losing_what_it_writes(rng):
    encoder = rng.standard_normal((8, 3)).astype(np.float32)
    decoder = np.linalg.pinv(encoder).astype(np.float32)
    basis = Basis(encoder, decoder, np.zeros(8))
    candidates = _grid([feature_support(TAP, 0, 0, basis, range(3), "oblique")], ranks=(3,))
    ((turned, back),) = _starts(candidates)
    # float32 products; the pseudo-inverse is exact to its own rounding
    np.testing.assert_allclose(back @ turned, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(turned @ back, encoder @ decoder, atol=1e-5)
    assert np.abs(turned - encoder).max() > 0.1


def test_features_that_are_not_turned_stay_what_they_are_and_start_once():
    kept = feature_support(TAP, 0, 0, TURNED, [1, 4], "kept", turn=False)
    candidates = _grid([kept, *full_supports(TAP, [0], [1])], ranks=(1, 2), restarts=3)
    assert candidates.support.tolist() == [0] * 2 + [1] * 6
    assert candidates.restart.tolist() == [0, 0, 0, 1, 2, 0, 1, 2]
    for rank, (encoder, decoder) in zip((1, 2), _starts(candidates), strict=False):
        np.testing.assert_array_equal(encoder, kept.encoder[:, :rank])
        np.testing.assert_array_equal(decoder, kept.decoder[:rank])


def test_restarts_start_elsewhere_and_a_key_starts_at_the_same_place():
    first, again = (_grid(full_supports(TAP, [0], [0]), ranks=(2,), restarts=2) for _ in range(2))
    np.testing.assert_array_equal(first.start, again.start)
    assert np.abs(first.start[0] - first.start[1]).max() > 0.1
    other = candidate_grid(jax.random.key(2), TAP, full_supports(TAP, [0], [0]), ranks=(2,))
    assert np.abs(first.start[0] - other.start[0]).max() > 0.1


def test_where_a_candidate_starts_does_not_depend_on_the_others():
    alone = _grid(full_supports(TAP, [1], [2]), ranks=(2,))
    among = _grid(_supports() + full_supports(TAP, [1], [2]), ranks=(2, 3))
    (row,) = np.flatnonzero((among.support == 4) & (among.rank == 2))
    np.testing.assert_array_equal(among.start[row, :, :2], alone.start[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: full_supports(TAP, [0], [3]), r"got depths at tap 'hidden' \[3\], expected whole numbers from 0 to 2"),
        (lambda: full_supports(TAP, [0], [-1]), r"got depths at tap 'hidden' \[-1\]"),
        (lambda: coordinate_support(TAP, 0, 0, [], "none"), r"got features \[\] in support 'none' of variable 0"),
        (lambda: coordinate_support(TAP, 1, 0, [0, 8], "x"), r"got features \[0, 8\] in support 'x' of variable 1"),
        (lambda: coordinate_support(TAP, 0, 0, [-1], "x"), r"got features \[-1\].*expected one or more of 0 to 7"),
        (lambda: feature_support(TAP, 0, 0, rotation_basis(FRAME[:, :3]), [3], "x"), r"got features \[3\].*of 0 to 2"),
        (
            lambda: coordinate_support(Tap("logits", 2), 0, 1, [0], "x"),
            r"got depths at tap 'logits' \[1\], expected whole numbers from 0 to 0",
        ),
    ],
)
def test_supports_outside_the_tap_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (0,)}, r"got ranks \[0\] and 4 supports, expected ranks from 1 to 8, the width of tap 'hidden'"),
        ({"ranks": (9,)}, r"got ranks \[9\]"),
        ({"ranks": ()}, r"got ranks \[\]"),
        ({"ranks": (1,), "restarts": 0}, "got restarts 0, expected at least 1"),
        ({"ranks": (1,), "learning_rates": (0.0,)}, r"learning rates \[0.0\], expected positive finite"),
        ({"ranks": (1,), "sparsities": (-0.1,)}, r"sparsities \[-0.1\].*at least 0"),
        ({"ranks": (1,), "sparsities": ()}, r"sparsities \[\]"),
    ],
)
def test_grids_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _grid(_supports(), **options)


def test_a_grid_without_supports_is_refused():
    with pytest.raises(ValueError, match="and 0 supports"):
        _grid([], ranks=(1,))


def test_a_rank_that_fits_no_support_of_some_variable_is_refused():
    small = feature_support(TAP, 1, 2, TURNED, [0, 3], "two")
    with pytest.raises(ValueError, match=r"got ranks \[3\], expected one that fits.*variables \[1\] have sizes \[2\]"):
        _grid([*full_supports(TAP, [0]), small], ranks=(3,))


def test_a_support_can_be_made_by_hand():
    axis = np.eye(8, dtype=np.float32)
    line = Support(0, 1, 8, np.array([0]), Basis(axis[:, :1], 2 * axis[:1], np.zeros(8)), "line", False)
    ((encoder, decoder),) = _starts(_grid([line], ranks=(1,)))
    np.testing.assert_array_equal(encoder[:, 0], axis[0])
    np.testing.assert_array_equal(decoder[0], 2 * axis[0])
