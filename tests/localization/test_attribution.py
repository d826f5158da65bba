"""First-order attribution: derivatives along each site by another route, exactness where a network is linear."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import planted, planted_adder, planted_chain, recorded_banks
from scipy import stats

from abstraction.interventions import group_sites, unit_sites
from abstraction.interventions.bases import pca_bases
from abstraction.interventions.patching import handle_outputs
from abstraction.interventions.sites import band_sites, state_sites
from abstraction.localization import Signature, attribution
from abstraction.localization.attribution import first_order_changes, first_order_signatures, rank_agreement
from abstraction.localization.signatures import site_signatures
from abstraction.models import MLP, Network


def _logits(outputs, base, given):
    return outputs.T


def _random(activation="tanh", depth=2):
    """Draw a network of the planted shape whose layers are not linear, and its fit bank."""
    model = MLP(4, 6, depth, 4, activation)
    network = Network(model, jax.tree.map(lambda leaf: 2 * leaf, model.init(jax.random.key(3))))
    return network, recorded_banks(network)[0]


def _derivatives(network, runs, sites):
    """Differentiate forwards, site by site, what an interchange does as its weight leaves 0: `[C, N, S]`."""
    columns = []
    for site in range(sites.size):
        handle = jax.tree.map(lambda leaf, site=site: jnp.asarray(leaf)[site], sites.handles())

        def run(strength, handle=handle):
            moved = dataclasses.replace(handle, weight=strength * handle.weight)
            return network(runs.inputs, moved.edits(runs.source[sites.tap]))[0]

        columns.append(jax.jvp(run, (jnp.float32(0),), (jnp.float32(1),))[1].T)
    return np.stack(columns, axis=-1)


def _sites(network, fit, kind):
    tap = network.taps[fit.tap]
    if kind == "components":
        return band_sites(tap, pca_bases(np.asarray(fit.runs.base[fit.tap]).reshape(tap.depth, -1, tap.width)), 2)
    return {"units": unit_sites(tap), "groups": group_sites(tap, 4), "states": state_sites(tap)}[kind]


CASES = [
    ("mlp", "groups"), ("mlp", "components"), pytest.param("gru", "units", marks=pytest.mark.slow), ("gru", "states"),
    ("positions", "components"),
]  # fmt: skip


@pytest.mark.usefixtures("unchecked")  # states with positions have an axis more than a handle's hints say
@pytest.mark.parametrize(("case", "kind"), CASES)
def test_changes_are_derivatives_along_each_site(case, kind):
    if case == "mlp":
        network, fit = _random()
    elif case == "gru":
        plant = planted_adder(trained=False)
        network, fit = plant.network, plant.fit
    else:
        plant = planted_chain(planted(rotate=True), positions=True)
        network, fit = plant.network, plant.fit
    sites = _sites(network, fit, kind)
    found = first_order_changes(network, fit.runs, sites, _logits)
    # float32, summed in another order
    np.testing.assert_allclose(found, _derivatives(network, fit.runs, sites), rtol=1e-4, atol=2e-5)


def test_a_linear_network_is_exact_at_any_point():
    plant = planted(rotate=True)
    sites = group_sites(plant.tap, 4)
    exact = handle_outputs(plant.network, plant.fit.runs, sites.handles()) - plant.fit.runs.outputs
    for points in ((0.0,), (0.5,), (0.0, 1.0)):
        found = first_order_changes(plant.network, plant.fit.runs, sites, _logits, (), points)
        np.testing.assert_allclose(np.moveaxis(found, -1, 0).swapaxes(1, 2), exact, atol=2e-5)  # logits of 10 and more


def test_many_points_add_up_to_the_exact_change_of_a_full_state():
    network, fit = _random(depth=1)
    sites = state_sites(network.taps["hidden"])
    nodes = (np.polynomial.legendre.leggauss(3)[0] + 1) / 2
    exact = np.asarray(handle_outputs(network, fit.runs, sites.handles()) - fit.runs.outputs)[0].T
    # the head is linear, so the tap after the nonlinearity is exact; before it, only many points are
    before = dataclasses.replace(sites, tap="preactivation")
    runs = recorded_banks(network, tap="preactivation")[0].runs
    errors = []
    for points in ((0.0,), tuple(nodes), tuple((np.polynomial.legendre.leggauss(12)[0] + 1) / 2)):
        found = first_order_changes(network, runs, before, _logits, (), points)[..., 0]
        errors.append(np.abs(found - exact).max())
    # nodes of equal weight: the error falls as points fill the path, if not as fast as with Gauss's weights
    assert errors[2] < errors[0] / 3
    assert errors[1] < errors[0]


def test_signatures_of_a_linear_network_are_the_measured_ones():
    plant = planted(rotate=False)
    families = np.arange(plant.fit.bank.size) % 5
    for signature in (
        Signature("logit_delta"),
        Signature("logit_delta", classes=(3, 1)),
        Signature("logit_delta", families=families),
    ):
        runs, sites = plant.fit.runs, group_sites(plant.tap, 4)
        exact = site_signatures(plant.network, runs, sites, signature)
        found = first_order_signatures(plant.network, runs, sites, signature)
        np.testing.assert_allclose(found, exact, atol=1e-4)  # logits of up to 24


def test_probabilities_have_the_derivative_of_the_softmax():
    network, fit = _random()
    sites = unit_sites(network.taps["hidden"])
    found = first_order_signatures(network, fit.runs, sites, Signature("prob_delta"))
    logits = first_order_changes(network, fit.runs, sites, _logits)
    p = np.asarray(jax.nn.softmax(fit.runs.outputs)).T[..., None]
    expected = p * (logits - (p * logits).sum(axis=0))
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, 0).reshape(sites.size, -1), atol=1e-5)


def test_blocks_of_pairs_change_nothing(monkeypatch):
    network, fit = _random()
    sites = unit_sites(network.taps["hidden"])
    whole = first_order_changes(network, fit.runs, sites, _logits)
    monkeypatch.setattr(attribution, "_BYTES", 100_000)
    assert attribution._pairs_together(fit.runs, "hidden") < fit.bank.size // 2
    np.testing.assert_allclose(first_order_changes(network, fit.runs, sites, _logits), whole, atol=1e-5)


def test_steering_holds_every_depth_at_the_point_and_passes_gradients_on():
    network, fit = _random()
    base, source = (np.asarray(states["hidden"]) for states in (fit.runs.base, fit.runs.source))
    target = base + 0.25 * (source - base)
    edit = attribution._Steered(target, np.zeros_like(base))
    held = network(fit.runs.inputs, {"hidden": edit}, record=("hidden",))[1]["hidden"]
    np.testing.assert_allclose(held, target, atol=1e-6)
    head = np.asarray(network.params["head"]["kernel"])
    blocks = np.asarray(network.params["blocks"]["kernel"])[0]
    slope = 1 - np.tanh(base[0] @ blocks + np.asarray(network.params["blocks"]["bias"])[0]) ** 2
    # what is held at depth 1 is still a function of depth 0, by the layer's derivative where its inputs are
    found = first_order_changes(network, fit.runs, unit_sites(network.taps["hidden"]), _logits)
    expected = np.einsum("nd,dk,nk,kc->cnd", source[0] - base[0], blocks, slope, head)
    np.testing.assert_allclose(found[..., :6], expected, rtol=1e-4, atol=1e-5)


def test_agreement_is_spearmans_correlation(rng):
    first, exact = rng.standard_normal((2, 3, 20))
    first[0] = np.round(first[0])  # ties
    first[1, 4], exact[1, 7] = np.nan, -np.inf
    exact[2] = 1.0
    found = rank_agreement(first, exact)
    both = np.isfinite(first[1]) & np.isfinite(exact[1])
    assert found[0] == pytest.approx(stats.spearmanr(first[0], exact[0]).statistic, rel=1e-12)
    assert found[1] == pytest.approx(stats.spearmanr(first[1, both], exact[1, both]).statistic, rel=1e-12)
    assert np.isnan(found[2])
    assert rank_agreement(np.array([[1.0, 2.0]]), np.array([[3.0, 9.0]])).tolist() == [1.0]


def test_a_site_of_no_weight_changes_nothing():
    network, fit = _random()
    sites = unit_sites(network.taps["hidden"])
    idle = dataclasses.replace(sites, value=np.zeros_like(sites.value))
    assert not first_order_changes(network, fit.runs, idle, _logits).any()
