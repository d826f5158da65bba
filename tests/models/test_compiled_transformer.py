"""Variables are found where a compiler put them, and nowhere else: tracr writes the weights, and labels coordinates.

Nothing here is trained but rotations. The network is Haiku's, wrapped by two source lines of tracr's own code.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import causal_model, label_pairs
from abstraction.evaluation import Recorded, Repeats, judge, record
from abstraction.evaluation.judging import Score
from abstraction.interventions import unit_sites
from abstraction.interventions.handles import coordinate_mass
from abstraction.interventions.sites import coordinate_sites
from abstraction.localization import CutMenu, Recipe, Search, SearchConfig, Transport, alignment_search, plot
from abstraction.localization.supports import candidate_grid, coordinate_support, full_supports
from abstraction.models import Network, check_model, wrap

pytest.importorskip("tracr", reason="tracr compiles the network")

from tracr.transformer import model as tracr_model
from zoo.table import line
from zoo.tracr_networks import (
    AFTER_FIRST_MLP,
    AFTER_SECOND_ATTENTION,
    AFTER_SECOND_MLP,
    TOKENS,
    Compiled,
    compiled,
    prompts,
)

PROGRAM = causal_model(
    ("t0", "t1", "t2"), "y", p=lambda t0: t0 % 2, q=lambda t1: t1 // 2, y=lambda p, q, t2: p + 2 * q + 0 * t2
)
N = 96
CONTROLS = Repeats(draws=3, shuffles=2)
PLACES = {AFTER_FIRST_MLP: ("parity", "half"), AFTER_SECOND_ATTENTION: ("p", "q")}
"""The coordinates that hold p and q after each part; before, tokens hold both, and after, y holds both."""


@dataclass(frozen=True)
class LastAnswer:
    """Read the coordinates of the answer at the last token; times 8, as logits."""

    columns: tuple[int, ...]

    def __call__(self, output):
        return 8 * output.transformer_output.output[:, -1, jnp.array(self.columns)]


class Setup(NamedTuple):
    compiled: Compiled
    network: Network
    fit: Recorded
    calibration: Recorded
    test: Recorded

    @property
    def tap(self):
        return self.network.taps["residual"]


@pytest.fixture(scope="module", name="setup")
def _setup():
    network = compiled()
    forward = network.model.forward
    lines = [line(tracr_model, f"residual = residual + {part}", "add") for part in ("attn_out", "dense_out")]
    taps = {"residual": "|".join(map(re.escape, lines))}
    read = LastAnswer(tuple(network.coordinates("y")))
    wrapped = wrap(forward, network.model.params, jnp.zeros((2, 4), int), taps, read=read)
    banks = [_bank(seed, role) for seed, role in enumerate(("fit", "calibration", "test"))]
    return Setup(
        network, wrapped, *(record(wrapped, partial(prompts, network), bank, tap="residual") for bank in banks)
    )


def _bank(seed, role):
    generator = np.random.default_rng(seed)
    base, source = ({f"t{place}": generator.integers(0, len(TOKENS), N) for place in range(3)} for _ in range(2))
    return label_pairs(PROGRAM, base, source, variables=("p", "q"), role=role)


def test_the_compiled_network_computes_its_program(setup):
    for one in (setup.fit, setup.test):
        np.testing.assert_array_equal(np.argmax(one.runs.outputs, axis=1), one.bank.factual)
    laws = check_model(setup.network, jnp.asarray(prompts(setup.compiled, setup.fit.bank.base))[:4])
    assert laws.silent == {}


def test_records_are_what_the_network_itself_collects(setup):
    """tracr returns its residual stream after each part."""
    inputs = prompts(setup.compiled, setup.fit.bank.base)
    own = setup.compiled.model.forward(setup.compiled.model.params, inputs).transformer_output.residuals
    # float32, one program against many small ones
    np.testing.assert_allclose(setup.fit.runs.base["residual"], np.stack(own), atol=1e-5)


def test_each_variable_is_written_where_the_labels_say(setup):
    """One-hot codes at the last token: after the second attention, and not before."""
    states = np.asarray(setup.fit.runs.base["residual"])[:, :, -1]
    p, q = setup.fit.bank.base["t0"] % 2, setup.fit.bank.base["t1"] // 2
    for name, values in (("p", p), ("q", q)):
        columns = setup.compiled.coordinates(name)
        np.testing.assert_allclose(states[AFTER_SECOND_ATTENTION][:, columns], np.eye(2)[values], atol=1e-3)
        assert not states[AFTER_FIRST_MLP][:, columns].any()


def _plot(setup, sites):
    recipe = Recipe(Transport(epsilons=(0.01, 0.1)), CutMenu((1, 2), (1.0,)), controls=None)
    return plot(setup.network, setup.fit, sites, recipe, evidence=setup.calibration)


def _judged(setup, handles) -> Score:
    return judge(setup.network, handles, setup.test, CONTROLS)["test"]


def test_plot_finds_the_coordinates_that_the_compiler_labels(setup):
    """Of 96 coordinates, the two that hold each variable at a depth."""
    found = _plot(setup, unit_sites(setup.tap))
    score = _judged(setup, found.handles)
    np.testing.assert_array_equal(score.tally.combined, 1.0)
    assert score.exceeds.all()
    mass = coordinate_mass(found.handles, setup.tap.depth)
    for variable in range(2):
        depth = int(mass[variable].sum(axis=1).argmax())
        moved = np.argwhere(mass[variable] > 0.5).tolist()
        assert moved == [[depth, column] for column in setup.compiled.coordinates(PLACES[depth][variable])]
        assert (mass[variable] > 1e-3).sum() == 2


@pytest.mark.parametrize("depth", PLACES)
def test_alignment_search_finds_the_subspace_that_the_compiler_labels(setup, depth):
    """A difference of two coordinates is one direction; what is constant may be in it, and is never moved."""
    supports = full_supports(setup.tap, range(2), depths=[depth])
    score, handles = _search(setup, supports)
    np.testing.assert_array_equal(score.tally.combined, 1.0)
    assert score.exceeds.all()
    states = np.asarray(setup.fit.runs.base["residual"])[depth].reshape(-1, setup.tap.width)
    for variable, name in enumerate(PLACES[depth]):
        first, second = setup.compiled.coordinates(name)
        direction = np.asarray(handles.basis.encoder)[variable, :, 0]
        assert abs(direction[first] - direction[second]) > 0.8
    assert states.var(axis=0)[[first, second]].min() > 0.1


def _search(setup, supports):
    candidates = candidate_grid(jax.random.key(0), setup.tap, supports, ranks=(1,), learning_rates=(0.1,))
    config = SearchConfig(max_epochs=40, min_epochs=40, batch_size=N // 3, cosine=True, sensitive_weight=0.5)
    search = Search(config=config, controls=None)
    found = alignment_search(
        jax.random.key(1), setup.network, setup.fit, candidates, search, evidence=setup.calibration
    )
    return _judged(setup, found.handles), found.handles


def _elsewhere(setup, depth, *names):
    """Return the coordinates of a depth that hold none of some variables."""
    taken = {column for name in names for column in setup.compiled.coordinates(name)}
    return [column for column in range(setup.tap.width) if column not in taken]


@pytest.mark.slow
def test_neither_finds_a_variable_where_it_is_not(setup):
    """After the second attention all but p's own coordinates, after the last MLP all but those of y."""
    others = _elsewhere(setup, AFTER_SECOND_ATTENTION, "p")
    last = _elsewhere(setup, AFTER_SECOND_MLP, "y")
    sites = [(AFTER_SECOND_ATTENTION, [column]) for column in others] + [
        (AFTER_SECOND_MLP, [column]) for column in last
    ]
    score = _judged(setup, _plot(setup, coordinate_sites(setup.tap, sites)).handles)
    assert not score.exceeds[0]
    assert score.exceeds[1], "q is there"
    supports = [coordinate_support(setup.tap, v, AFTER_SECOND_ATTENTION, others, "others") for v in range(2)]
    score, _ = _search(setup, supports)
    assert not score.exceeds[0]
    assert score.exceeds[1], "q is there"
