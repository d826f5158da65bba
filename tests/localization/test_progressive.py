"""Coarse to fine: a network that carries where it was told to, masks and supports by hand, and what is refused."""

import jax
import numpy as np
import pytest
from planted import CARRY, IDLE, planted, planted_adder

from abstraction.evaluation import Bits, Repeats, judge, tally_handles
from abstraction.evaluation.controls import identity_handle
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import Basis, Handle, coordinate_sites, group_sites, span_sites, state_sites, unit_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.handles import handle_depths
from abstraction.interventions.sites import prefix_sites
from abstraction.localization import (
    VARIANTS,
    Search,
    SearchConfig,
    alignment_search,
    candidate_grid,
    coarse_stage,
    fine_stage,
)
from abstraction.localization.couplings import score_coupling
from abstraction.localization.progressive import chosen_rows, evidence_support, mask_rows
from abstraction.localization.rules import Plans
from abstraction.localization.supports import coordinate_support
from abstraction.models import Tap

TAP = Tap("hidden", 4, 2)
SITES = coordinate_sites(TAP, [(0, [0]), (0, [0, 1]), (0, [2, 3]), (1, [0])])


@pytest.fixture(scope="module", name="adder")
def _adder():
    return planted_adder()


def _menus(plant):
    tap = plant.tap
    return {"pairs": group_sites(tap, 2), "units": unit_sites(tap), "triples": group_sites(tap, 3)}


def _coarse(plant, variant):
    return coarse_stage(plant.network, plant.fit, variant, plant.signature, evidence=plant.calibration)


def _fine(plant, variant, depths, menus=None):
    menus = _menus(plant) if menus is None else menus
    return fine_stage(plant.network, plant.fit, menus, depths, variant, plant.signature, evidence=plant.calibration)


def _tested(plant, handles):
    return judge_alone(plant.network, handles, {"test": plant.test})["test"]


@pytest.fixture(scope="module", params=VARIANTS, name="found")
def _found(request, adder):
    variant = VARIANTS[request.param]
    coarse = _coarse(adder, variant)
    return variant, coarse, _fine(adder, variant, handle_depths(coarse.choice.handles))


def test_the_planted_network_adds_and_its_carry_is_one_unit(adder):
    """The plant itself: it is right on every pair, and swapping the carry unit is the carry's interchange."""
    for recorded in (adder.fit, adder.calibration, adder.test):
        np.testing.assert_array_equal(Bits().decode(recorded.runs.outputs), recorded.bank.factual)
    weight = np.zeros((2, 3, 6), np.float32)
    weight[[0, 1], [0, 1], CARRY] = 1.0
    np.testing.assert_array_equal(_tested(adder, Handle("hidden", weight)).combined, 1.0)


def test_the_coarse_stage_sends_each_carry_to_its_step(found):
    _, coarse, _ = found
    assert handle_depths(coarse.choice.handles).tolist() == [0, 1]
    # a whole state holds more than the carry
    assert coarse.choice.tally.combined.max() < 0.8
    assert np.unique(coarse.choice.handles.weight).tolist() == [0.0, 1.0]


def test_the_fine_stage_finds_the_carry_unit(adder, found):
    *_, fine = found
    weight = np.asarray(fine.choice.handles.weight)
    for v, depth in enumerate((0, 1)):
        assert weight[v, depth, CARRY] > np.abs(weight[v]).max() - 1e-6
        # beside it units that do nothing, and others by less: a handle that swaps half of a counting unit too is right
        # on every pair, and has a loss equal to the seventh digit
        assert np.abs(np.delete(weight[v, depth], [CARRY, *IDLE])).max() < 0.75 * weight[v, depth, CARRY]
        assert (np.delete(weight[v], depth, axis=0) == 0).all()
    np.testing.assert_array_equal(fine.choice.tally.combined, 1.0)
    np.testing.assert_array_equal(_tested(adder, fine.choice.handles).combined, 1.0)


def test_plans_have_one_resolution_for_the_union_and_one_for_each_menu_otherwise(found):
    variant, _, fine = found
    axes, plan = dict(fine.plans.axes), np.asarray(fine.plans.coupling.plan)
    assert axes["resolution"] == (("union",) if variant.union else ("pairs", "units", "triples"))
    # at the two chosen depths there are 3 pairs, 6 units and 2 triples each
    assert fine.effects.sites.size == 2 * (3 + 6 + 2)
    assert plan.shape == (*(len(values) for _, values in fine.plans.axes), 2, 22)
    assert fine.fallback.shape == plan.shape[:-1]
    names = [name for name, _ in fine.plans.axes]
    owner = np.repeat([0, 1, 2], [6, 12, 4])
    for g, part in enumerate(np.moveaxis(plan, names.index("resolution"), 0)):
        outside = np.zeros(22, bool) if variant.union else owner != g
        assert (part[..., outside] == 0).all()
    assert fine.grid.weight.shape[:1] + fine.grid.weight.shape[-2:] == (2, 3, 6)
    assert [name for name, _ in fine.grid.axes] == [*names, "subset", "strength"]


def test_rows_keep_to_their_own_depth(found):
    *_, fine = found
    plan, depths = np.asarray(fine.plans.coupling.plan), np.asarray(fine.effects.sites.depth)
    assert not fine.fallback.any()
    for v, depth in enumerate((0, 1)):
        assert (plan[..., v, depths != depth] == 0).all()
        assert (plan[..., v, :].sum(axis=-1) > 0).all()


def test_a_shared_eps_is_one_for_all_variables(found):
    variant, coarse, fine = found
    if variant.selection.shared_axis is not None:
        for choice in (coarse.choice, fine.choice):
            assert len({setting["epsilon"] for setting in choice.settings}) == 1
    assert variant.selection.shared_axis == (None if variant is VARIANTS["ours"] else "epsilon")


def _guides(fine):
    rows = chosen_rows(fine.plans, fine.choice)
    return [evidence_support(row, fine.effects.sites, 0.5) for row in rows]


def test_the_evidence_of_what_was_chosen_is_at_the_carry(found):
    *_, fine = found
    guides = _guides(fine)
    assert [depth for depth, _ in guides] == [0, 1]
    assert all(CARRY in features and len(features) < 6 for _, features in guides)


def test_chosen_rows_are_those_of_the_settings(found):
    *_, fine = found
    rows = chosen_rows(fine.plans, fine.choice)
    assert rows.shape == (2, 22)
    for v, setting in enumerate(fine.choice.settings):
        place = [list(values).index(setting[name]) for name, values in fine.plans.axes]
        np.testing.assert_array_equal(rows[v], np.asarray(fine.plans.coupling.plan)[(*place, v)])
        assert rows[v].sum() > 0


@pytest.mark.slow
def test_a_search_in_the_support_of_the_evidence_finds_the_carry(adder):
    fine, tap = _fine(adder, VARIANTS["ours"], (0, 1)), adder.tap
    supports = [coordinate_support(tap, v, *guide, "plot") for v, guide in enumerate(_guides(fine))]
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(1,), learning_rates=(5e-2,), restarts=2)
    config = SearchConfig(batch_size=136, max_epochs=60, patience=60, cosine=True)
    search = Search(config=config, controls=Repeats(draws=3, shuffles=2))
    searched = alignment_search(
        jax.random.key(0), adder.network, adder.fit, candidates, search, evidence=adder.calibration
    )
    assert searched.score.exceeds.all()
    assert _tested(adder, searched.handles).combined.min() > 0.99
    write = np.abs(searched.handles.basis.decoder[:, 0])
    assert write.argmax(axis=1).tolist() == [CARRY, CARRY]


def test_a_menu_of_features_keeps_its_basis_and_is_judged_in_it():
    plant = planted(rotate=True)
    frame = np.linalg.qr(np.concatenate([plant.directions, np.eye(6)[:4]]).T)[0].astype(np.float32)
    basis = Basis(frame[None], frame.T[None].copy(), np.zeros((1, 6), np.float32))
    tap = plant.tap
    menus = {
        "lines": span_sites(tap, basis, [(0, [k]) for k in range(6)]),
        "planes": span_sites(tap, basis, [(0, [2, 3]), (0, [0, 5]), (0, [1, 4])]),
    }
    for variant in VARIANTS.values():
        fine = fine_stage(plant.network, plant.fit, menus, (0, 0), variant, evidence=plant.calibration)
        handles = fine.choice.handles
        assert np.abs(handles.weight[:, 0]).argmax(axis=1).tolist() == [0, 1]
        np.testing.assert_array_equal(handles.basis.encoder, np.broadcast_to(frame, (2, 1, 6, 6)))
        np.testing.assert_array_equal(_tested(plant, handles).combined, 1.0)
    score = judge(plant.network, handles, plant.test, Repeats(draws=5, shuffles=2))["test"]
    assert score.random.combined.max() < 0.9
    assert score.exceeds.all()


def test_an_untrained_network_scores_what_no_intervention_scores():
    adder = planted_adder(trained=False)
    variant = VARIANTS["ours"]
    fine = _fine(adder, variant, handle_depths(_coarse(adder, variant).choice.handles))
    nothing = jax.tree.map(lambda leaf: np.stack([leaf] * 2), identity_handle(adder.tap))
    baseline, chosen = (
        tally_handles(adder.network, adder.test, handles, np.arange(2)).combined
        for handles in (nothing, fine.choice.handles)
    )
    # 340 test pairs: chance moves a score by about .02
    np.testing.assert_allclose(chosen, baseline, atol=0.06)
    # the choice is the best of 2000 on 340 pairs, and still says nothing
    assert fine.choice.tally.combined.max() < 0.25


def _plans(mass):
    """Wrap rows as a plan with one leading axis."""
    coupling = score_coupling(np.zeros(np.shape(mass)[-2:]))
    stacked = jax.tree.map(lambda leaf: np.asarray(leaf)[None], coupling)
    return Plans(type(coupling)(**{**vars(stacked), "plan": np.asarray(mass, np.float32)}), (("epsilon", (1.0,)),))


def test_a_row_keeps_the_mass_at_its_own_depth():
    masked, fallback = mask_rows(_plans([[[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]]), SITES, np.array([0, 1]))
    np.testing.assert_array_equal(masked.coupling.plan, np.float32([[[0.1, 0.2, 0.3, 0.0], [0.0, 0.0, 0.0, 0.1]]]))
    assert fallback.tolist() == [[False, False]]
    assert masked.axes == (("epsilon", (1.0,)),)


def test_a_row_without_mass_at_its_depth_keeps_all_of_it_and_says_so():
    plans = _plans([[[0.0, 0.0, 0.0, 0.5], [0.2, 0.1, 0.0, 0.0]]])
    masked, fallback = mask_rows(plans, SITES, np.array([0, 0]))
    assert fallback.tolist() == [[True, False]]
    np.testing.assert_array_equal(masked.coupling.plan[0, 0], np.float32([0.0, 0.0, 0.0, 0.5]))
    np.testing.assert_array_equal(masked.coupling.plan[0, 1], np.float32([0.2, 0.1, 0.0, 0.0]))


def test_a_mass_that_is_not_a_number_does_not_count():
    masked, fallback = mask_rows(_plans([[[np.nan, 0.2, 0.0, 0.3]]]), SITES, np.array([0]))
    np.testing.assert_array_equal(masked.coupling.plan, np.float32([[[0.0, 0.2, 0.0, 0.0]]]))
    assert not fallback.any()


@pytest.mark.parametrize(("share", "features"), [(0.6, [0]), (0.8, [0, 1]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_a_support_is_the_fewest_features_that_hold_a_share_of_the_evidence(share, features):
    # evidence at depth 0: .3 + .2/2 = .4, .2/2 = .1, .1/2 = .05, .05, in total .6; at depth 1: .4
    assert evidence_support(np.array([0.3, 0.2, 0.1, 0.4]), SITES, share) == (0, features)
    # shares .667, .833, .917, 1


def test_a_support_is_at_the_heaviest_depth_and_its_features_are_in_order():
    units = unit_sites(TAP)
    mass = np.array([0.0, 0.0, 0.3, 0.0, 0.1, 0.0, 0.25, 0.05])  # depth 0 holds .3, depth 1 .4
    assert evidence_support(mass, units, 0.8) == (1, [0, 2])
    assert evidence_support(mass, units, 0.5) == (1, [2])
    assert evidence_support(mass[::-1].copy(), units, 0.8) == (0, [1, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exactly_a_share_is_enough(dtype):
    mass = np.array([0.5, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0], dtype)
    for share, features in ((0.75, [0, 1]), (0.7501, [0, 1, 2]), (1.0, [0, 1, 2])):
        assert evidence_support(mass, unit_sites(TAP), share) == (0, features)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
        evidence_support(np.ones(4), SITES, share)


@pytest.mark.parametrize("mass", [np.zeros(4), np.full(4, np.nan)])
def test_a_row_without_mass_supports_nothing(mass):
    with pytest.raises(ValueError, match="some mass"):
        evidence_support(mass, SITES, 0.8)


def test_a_handle_goes_to_the_depth_it_moves_most_the_earlier_of_equals():
    weight = np.zeros((3, 2, 4), np.float32)
    weight[0, 1, 0], weight[0, 0, 1:3] = -1.5, 0.7  # 1.5 against 1.4
    weight[1] = 1.0
    assert handle_depths(Handle("hidden", weight)).tolist() == [1, 0, 0]
    assert handle_depths(Handle("hidden", np.ones((2, 4)), None, np.array([2, 0]))).tolist() == [2, 0]


def test_stages_that_have_nothing_to_look_at_are_refused(adder):
    tap, variant = adder.tap, VARIANTS["ours"]
    with pytest.raises(ValueError, match="got an empty stage menu, expected sites of at least one resolution"):
        _fine(adder, variant, (0, 1), {})
    first = coordinate_sites(tap, [(0, [c]) for c in range(6)])
    with pytest.raises(ValueError, match="got a menu 'first' without a site at depth 1, where 'c2' is") as error:
        _fine(adder, variant, (0, 1), {"units": unit_sites(tap), "first": first})
    assert "expected sites at depths [0, 1], got some at [0]" in str(error.value)


def test_stages_refuse_test_pairs(adder):
    swapped = adder._replace(fit=adder.test)
    with pytest.raises(ValueError, match="got a test bank to measure effects on"):
        _coarse(swapped, VARIANTS["v4"])
    with pytest.raises(ValueError, match="got a test bank to measure effects on"):
        _fine(swapped, VARIANTS["v4"], (0, 1))


def test_sizes_beyond_the_number_of_sites_keep_all_of_them(adder):
    menus = {"states": state_sites(adder.tap)}
    fine = _fine(adder, VARIANTS["v4"], (0, 1), menus)
    assert dict(fine.grid.axes)["subset"] == (1, 2, 2)
    weights = np.moveaxis(fine.grid.weight, [name for name, _ in fine.grid.axes].index("subset") + 1, 0)
    np.testing.assert_array_equal(weights[1], weights[2])


def test_menus_on_two_bases_are_refused():
    plant = planted(rotate=True)
    bases = pca_bases(plant.fit.runs.base["hidden"])
    menus = {"units": unit_sites(plant.tap), "spans": prefix_sites(plant.tap, bases, 1)}
    with pytest.raises(ValueError, match=r"got menus \['units', 'spans'\] on 2 bases or taps"):
        fine_stage(plant.network, plant.fit, menus, (0, 0), VARIANTS["ours"], evidence=plant.calibration)
