"""PLOT and alignment search on wrapped networks give the numbers of a Python loop over sites.

The networks are untrained: what is compared is numbers, not success. The oracle is the forward written by hand in
`tests/zoo/table.py`, once for each site and handle; what is tallied and weighed is counted pair by pair here.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import prob_delta_signature
from zoo.table import Case, case

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Recorded, record
from abstraction.interventions import unit_sites
from abstraction.localization import CutMenu, Recipe, Search, SearchConfig, Transport, alignment_search, plot
from abstraction.localization.rules import single_site_scores
from abstraction.localization.signatures import site_signatures
from abstraction.localization.supports import candidate_grid, full_supports
from abstraction.models import Network, wrap

PARITIES = causal_model(("a", "b"), "y", p=lambda a: a % 2, q=lambda b: b % 2, y=lambda p, q: p + 2 * q)
SOME = ("nnx mlp", pytest.param("linen scanned transformer", marks=pytest.mark.slow), "linen gru by rnn")
NAMES = (*SOME, "linen mlp", "equinox mlp", "plain mlp", "plain reverse rnn")
N, VALUES = 24, 10


class Setup(NamedTuple):
    case: Case
    network: Network
    fit: Recorded
    calibration: Recorded
    tap: str


def _encoder(shape, integers):
    """Make inputs of two whole numbers: tokens, or the sum of a row of a table for each."""
    tables = np.random.default_rng(1).standard_normal((2, VALUES, *shape)).astype(np.float32)

    def encode(setting):
        a, b = (np.asarray(setting[name]) for name in ("a", "b"))
        if integers:
            return np.stack([a, np.full_like(a, VALUES), b, np.full_like(a, VALUES)], axis=1)
        return tables[0][a] + tables[1][b]

    return encode


@cache
def _setup(name):
    row = case(name)
    # One tap: a program with others would be the same numbers.
    network = wrap(row.model, row.params, row.base, {row.state: row.taps[row.state]})
    encode = _encoder(row.base.shape[1:], jnp.issubdtype(row.base.dtype, jnp.integer))
    recorded = []
    for seed, role in enumerate(("fit", "calibration")):
        draw = lambda generator: {key: generator.integers(0, VALUES, N) for key in "ab"}
        generator = np.random.default_rng(seed)
        bank = label_pairs(PARITIES, draw(generator), draw(generator), variables=("p", "q"), role=role)
        recorded.append(record(network, encode, bank, tap=row.state))
    source = [encode(one.bank.source) for one in recorded]
    return Setup(row, network, *recorded, row.state), _states(row, source[0]), _states(row, source[1])


def _states(row, inputs):
    """Run the source by hand."""
    seen = {}

    def keep(tap, depth, value):
        if tap == row.state:
            seen[depth] = value
        return value

    row.by_hand(jnp.asarray(inputs), keep)
    return [seen[depth] for depth in range(len(seen))]


@pytest.fixture(params=NAMES, scope="module")
def setup(request):
    return _setup(request.param)


def _patched(setup, bank, sources, weights, encoder=None):
    """Run the bases by hand with weights `[L, K]` of coordinates, or of the columns of an orthonormal `[L, D, K]`."""
    encoder = np.stack([np.eye(np.shape(sources[0])[-1])] * len(sources)) if encoder is None else encoder
    return np.asarray(
        _by_hand(setup.case.by_hand, setup.tap)(bank.runs.inputs, sources, *map(jnp.float32, (weights, encoder)))
    )


@cache
def _by_hand(forward, state):
    """Compile the forward by hand, once for all weights."""

    @jax.jit
    def run(inputs, sources, weights, encoder):
        def edit(tap, depth, value):
            if tap != state:
                return value
            moved = (sources[depth] - value) @ encoder[depth]
            return value + (moved * weights[depth]) @ encoder[depth].T

        return forward(inputs, edit)

    return run


def _combined(bank, variable, outputs):
    """Count hits pair by pair: the mean of the accuracies of the sensitive and the invariant pairs."""
    halves = ([], [])
    for pair in range(N):
        label = bank.bank.labels[variable, pair]
        halves[int(label == bank.bank.factual[pair])].append(int(np.argmax(outputs[pair]) == label))
    return np.mean([np.mean(half) for half in halves if half])


@pytest.fixture(scope="module")
def swept(setup):
    """Swap every site alone, by hand."""
    found, sources, _ = setup
    return [_patched(found, found.fit, sources, row) for row in unit_sites(found.network.taps[found.tap]).rows()]


def test_effects_of_single_sites_are_those_of_a_loop(setup, swept):
    found, *_ = setup
    clean = _patched(
        found, found.fit, setup[1], np.zeros((len(setup[1]), unit_sites(found.network.taps[found.tap]).features))
    )
    expected = [prob_delta_signature(outputs.astype(np.float64), clean.astype(np.float64)) for outputs in swept]
    sites = unit_sites(found.network.taps[found.tap])
    # float32 sums in another order
    np.testing.assert_allclose(site_signatures(found.network, found.fit.runs, sites), expected, atol=2e-6)
    assert np.abs(expected).max() > 1e-2


def test_brute_force_counts_what_a_loop_counts(setup, swept):
    found, *_ = setup
    scores = single_site_scores(found.network, found.fit, unit_sites(found.network.taps[found.tap]))
    expected = [[_combined(found.fit, variable, outputs) for outputs in swept] for variable in range(2)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("setup", SOME, indirect=True)
def test_plot_scores_its_choice_as_a_loop_does(setup):
    found, _, sources = setup
    recipe = Recipe(Transport("joint", (0.1,)), CutMenu((1, 2), (1.0,)), controls=None)
    result = plot(
        found.network, found.fit, unit_sites(found.network.taps[found.tap]), recipe, evidence=found.calibration
    )
    for variable, weights in enumerate(np.asarray(result.handles.weight)):
        outputs = _patched(found, found.calibration, sources, weights)
        assert result.choice.tally.combined[variable] == pytest.approx(_combined(found.calibration, variable, outputs))
        assert np.nanmax(result.choice.scores[variable]) == result.choice.tally.combined[variable]


@pytest.mark.parametrize("setup", SOME, indirect=True)
def test_alignment_search_scores_its_choice_as_a_loop_does(setup):
    """Trained for two epochs: the subspaces have turned, and are swapped as they were scored."""
    found, _, sources = setup
    tap = found.network.taps[found.tap]
    candidates = candidate_grid(
        jax.random.key(0), tap, full_supports(tap, range(2)), ranks=(2,), learning_rates=(0.05,)
    )
    search = Search(config=SearchConfig(max_epochs=2, batch_size=N), controls=None)
    result = alignment_search(
        jax.random.key(1), found.network, found.fit, candidates, search, evidence=found.calibration
    )
    handles = result.handles
    turned = np.asarray(result.searched.handles.basis.encoder) - np.asarray(candidates.start)
    assert np.abs(turned).max() > 1e-2
    for variable in range(2):
        depth = int(np.asarray(handles.depth)[variable])
        weights, encoder = (
            np.zeros((tap.depth, *np.shape(leaf)[1:])) for leaf in (handles.weight, handles.basis.encoder)
        )
        weights[depth], encoder[depth] = handles.weight[variable], handles.basis.encoder[variable]
        outputs = _patched(found, found.calibration, sources, weights, encoder)
        assert result.choice.tally.combined[variable] == pytest.approx(_combined(found.calibration, variable, outputs))
