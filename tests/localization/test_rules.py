"""Scopes: a rule couples each of them on its own, as if no other site were there."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import clamped_sinkhorn, sinkhorn
from scipy.special import softmax

from abstraction.interventions import unit_sites
from abstraction.localization import BruteForce, Cosine, GromovWasserstein, Nearest, ReferenceTransport, Rule, Transport
from abstraction.localization.distances import cosine_similarity, transport_cost
from abstraction.localization.effects import Effects
from abstraction.localization.rules import Scopes, site_scopes
from abstraction.models import Tap

SITES = unit_sites(Tap("hidden", 4, 3))
# scopes of unequal size, in disorder, two of which overlap
SCOPES = Scopes("resolution", ("few", "most", "odd"), np.array([[c in keep for c in range(12)] for keep in (
    {3, 8, 9}, set(range(10)), {1, 3, 5, 7, 9, 11},
)]))  # fmt: skip
EPSILONS = (0.1, 1.0)


@pytest.fixture(scope="module", name="effects")
def _effects():
    generator = np.random.default_rng(0)
    abstract, neural = (jnp.asarray(generator.standard_normal((rows, 20)), jnp.float32) for rows in (3, 12))
    return Effects(abstract, neural, np.asarray(transport_cost(abstract, neural, unit=True)), SITES)


def _part(effects, mask):
    """Measure the sites of one scope alone."""
    return Effects(effects.abstract, effects.neural[mask], effects.cost[:, mask], SITES.take(mask))


RULES = {
    "transport": Transport("joint", EPSILONS),
    "absolute": Transport("joint", EPSILONS, absolute=True),
    "one-sided": Transport("joint", EPSILONS, taus=(1.0, 0.4)),
    "reference": ReferenceTransport(EPSILONS, iterations=80),
    "reference-beta": ReferenceTransport(EPSILONS, beta_neural=(None, 0.3), iterations=80),
    "nearest": Nearest(),
}


def _solutions(plans, scope_axis):
    """Move the scope to the front: `[G, ..., V, S]`."""
    names = [name for name, _ in plans.axes]
    return np.moveaxis(np.asarray(plans.coupling.plan), names.index(scope_axis), 0)


@pytest.mark.parametrize("name", RULES)
def test_a_scope_is_coupled_as_if_its_sites_were_all_there_are(effects, name):
    rule = RULES[name]
    assert isinstance(rule, Rule)
    together = rule(effects, SCOPES)
    plans = _solutions(together, "resolution")
    assert dict(together.axes)["resolution"] == ("few", "most", "odd")
    assert plans.shape[0] == 3
    assert np.asarray(together.coupling.plan).shape == (*(len(values) for _, values in together.axes), 3, 12)
    for plan, mask in zip(plans, SCOPES.mask, strict=True):
        assert (plan[..., ~mask] == 0).all()
        alone = rule(_part(effects, mask))
        expected = np.asarray(alone.coupling.plan)
        if any(axis == "scope" for axis, _ in alone.axes):
            expected = _solutions(alone, "scope")[0]
        np.testing.assert_allclose(plan[..., mask], expected, rtol=1e-4, atol=1e-6)  # float32, another shape
        # every variable is matched in full; 80 iterations of the clamped kernel end near that
        np.testing.assert_allclose(plan.sum(axis=-1), 1 / 3, rtol=2e-3)


def test_transport_in_a_scope_is_the_oracles(effects):
    plans = Transport("joint", EPSILONS, absolute=True)(effects, SCOPES)
    for (g, mask), (e, epsilon) in [(g, e) for g in enumerate(SCOPES.mask) for e in enumerate(EPSILONS)]:
        expected = sinkhorn(effects.cost[:, mask].astype(float), epsilon)
        np.testing.assert_allclose(plans.coupling.plan[0, g, e][:, mask], expected, atol=1e-5)  # float32 log domain
        np.testing.assert_allclose(plans.coupling.epsilon[0, g, e], epsilon, rtol=1e-6)


def test_reference_transport_in_a_scope_is_the_oracles(effects):
    plans = ReferenceTransport((0.01, 0.3), iterations=80)(effects, SCOPES)
    for (g, mask), (e, epsilon) in [(g, e) for g in enumerate(SCOPES.mask) for e in enumerate((0.01, 0.3))]:
        expected = clamped_sinkhorn(effects.cost[:, mask], epsilon, iterations=80)
        np.testing.assert_allclose(plans.coupling.plan[g, 0, e][:, mask], expected, atol=1e-5)  # float32 powers
    assert plans.coupling.clamped[:, 0, 0].min() > 0, "the clamp is at work at the smaller eps"


def test_relative_eps_follows_the_spread_in_each_scope_and_absolute_eps_does_not(effects):
    relative, absolute = (Transport("joint", (0.5,), absolute=flag)(effects, SCOPES).coupling for flag in (False, True))
    spreads = [effects.cost[:, mask].std() for mask in SCOPES.mask]
    np.testing.assert_allclose(relative.epsilon[0, :, 0], 0.5 * np.array(spreads), rtol=1e-6)
    np.testing.assert_allclose(absolute.epsilon[0, :, 0], 0.5, rtol=1e-6)
    doubled = effects._replace(cost=2 * effects.cost)
    again, other = (Transport("joint", (0.5,), absolute=flag)(doubled, SCOPES).coupling for flag in (False, True))
    np.testing.assert_allclose(again.plan, relative.plan, atol=1e-6)
    assert np.abs(other.plan - absolute.plan).max() > 1e-3


def test_ranked_scores_are_masked_by_scope(effects):
    scores = np.random.default_rng(1).uniform(size=(3, 12))
    cosine = np.asarray(cosine_similarity(effects.abstract, effects.neural))
    for rule, values in ((Cosine(0.5), cosine), (BruteForce(scores, 0.5), scores)):
        plan = np.asarray(rule(effects, SCOPES).coupling.plan)
        expected = softmax(values / 0.5, axis=1) / 3 * SCOPES.mask[:, None, :]
        np.testing.assert_allclose(plan, expected, rtol=1e-5)  # float32 softmax


def test_matched_geometries_are_masked_by_scope(effects):
    rule = GromovWasserstein((0.1,), alpha=0.5)
    joint = rule(effects, site_scopes(SITES, "joint")).coupling.plan
    scoped = rule(effects, SCOPES)
    assert [name for name, _ in scoped.axes] == ["resolution", "epsilon"]
    np.testing.assert_allclose(scoped.coupling.plan, joint * SCOPES.mask[:, None, None, :], rtol=1e-6)


def test_the_nearest_site_is_the_cheapest_of_each_scope(effects):
    plan = np.asarray(Nearest()(effects, SCOPES).coupling.plan)
    for g, mask in enumerate(SCOPES.mask):
        for v in range(3):
            cheapest = min(np.flatnonzero(mask), key=lambda s, v=v: effects.cost[v, s])
            np.testing.assert_allclose(plan[g, v], np.eye(12)[cheapest] / 3, rtol=1e-6)


def test_scopes_of_a_bank_are_its_depths_or_one(effects):
    assert site_scopes(SITES, "joint").mask.tolist() == [[True] * 12]
    depths = site_scopes(SITES, "depth")
    np.testing.assert_array_equal(depths.mask, np.repeat(np.eye(3, dtype=bool), 4, axis=1))
    assert (depths.axis, depths.values) == ("scope", (0, 1, 2))
    some = dataclasses.replace(SITES, depth=np.where(SITES.depth == 1, 2, SITES.depth))
    assert site_scopes(some, "depth").mask.sum(axis=1).tolist() == [4, 8]


def test_a_rules_own_scope_is_the_same_as_that_scope_given(effects):
    for scope in ("depth", "joint"):
        own, given = (Transport(scope, EPSILONS)(effects, scopes) for scopes in (None, site_scopes(SITES, scope)))
        np.testing.assert_array_equal(own.coupling.plan, given.coupling.plan)
        assert own.axes == given.axes


@pytest.mark.parametrize("rule", [Transport("joint", (1.0,)), ReferenceTransport((1.0,)), Nearest(), Cosine()])
def test_a_scope_without_sites_is_refused(effects, rule):
    mask = np.stack([np.ones(SITES.size, bool), np.zeros(SITES.size, bool)])
    with pytest.raises(ValueError, match=r"got resolution \['none'\] without sites"):
        rule(effects, Scopes("resolution", ("all", "none"), mask))
